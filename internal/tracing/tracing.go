// Package tracing sends what a process of husk does, as spans of OpenTelemetry, to a collector that its environment names.
package tracing

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/containerd/otelttrpc"
	"github.com/containerd/ttrpc"
	"github.com/go-logr/logr"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	"go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
)

// flushWait bounds the wait at a process' end for a collector to take the last spans.
const flushWait = 500 * time.Millisecond

// Start begins to trace where OTEL_EXPORTER_OTLP_ENDPOINT or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT names a collector, and does
// nothing where neither does, or OTEL_SDK_DISABLED or OTEL_TRACES_EXPORTER=none says so (OpenTelemetry's specification,
// "Environment Variable Specification" and "OpenTelemetry Protocol Exporter"; the other variables named there are followed,
// except that the service has the name given here: engines hand on their own). No request fails or waits for want of the
// collector: what it does not take in time is lost, with a line in the log, and so is all where the environment is wrong. stop
// sends what is left and waits at most half a second for it.
func Start(service, version string, log *slog.Logger) (stop func()) {
	if !wanted(os.Getenv) {
		return func() {}
	}
	ctx := context.Background()
	exporter, err := exporter(ctx)
	if err != nil {
		log.Warn("nothing is traced", "error", err)
		return func() {}
	}
	about, err := resource.New(ctx, resource.WithTelemetrySDK(), resource.WithFromEnv(),
		resource.WithAttributes(semconv.ServiceName(service), semconv.ServiceVersion(version), semconv.ProcessPID(os.Getpid())))
	if err != nil {
		log.Warn("trace without a part of what the environment says", "error", err)
	}
	otel.SetLogger(logr.FromSlogHandler(log.Handler()))
	provider := trace.NewTracerProvider(trace.WithBatcher(exporter), trace.WithResource(about))
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { log.Warn("trace", "error", err) }))
	otel.SetTextMapPropagator(propagation.TraceContext{})
	otel.SetTracerProvider(provider)
	return func() {
		ctx, cancel := context.WithTimeout(ctx, flushWait)
		defer cancel()
		if err := provider.Shutdown(ctx); err != nil {
			log.Warn("the last spans are lost", "error", err)
		}
	}
}

// wanted tells whether an environment asks for traces.
func wanted(getenv func(string) string) bool {
	if strings.EqualFold(getenv("OTEL_SDK_DISABLED"), "true") || getenv("OTEL_TRACES_EXPORTER") == "none" {
		return false
	}
	return getenv("OTEL_EXPORTER_OTLP_ENDPOINT") != "" || getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") != ""
}

// exporter speaks the protocol that the environment asks for.
func exporter(ctx context.Context) (*otlptrace.Exporter, error) {
	protocol := os.Getenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
	if protocol == "" {
		protocol = os.Getenv("OTEL_EXPORTER_OTLP_PROTOCOL")
	}
	switch protocol {
	case "grpc":
		return otlptracegrpc.New(ctx)
	case "", "http/protobuf", "http/json":
		return otlptracehttp.New(ctx)
	}
	return nil, fmt.Errorf("OTEL_EXPORTER_OTLP_PROTOCOL=%q: must be grpc, http/protobuf or http/json", protocol)
}

// Interceptor makes a span of every request to a ttrpc server, in its caller's trace where the request names one. It follows
// the tracing that has been started before.
func Interceptor() ttrpc.UnaryServerInterceptor { return otelttrpc.UnaryServerInterceptor() }

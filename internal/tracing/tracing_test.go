package tracing

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/containerd/ttrpc"
	"go.opentelemetry.io/otel"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"

	"husk.dev/husk/internal/testenv"
)

// names are the names of the spans that came, each after its service.
func names(c *testenv.Collector) string {
	var all []string
	for _, s := range c.Spans() {
		all = append(all, s.Service+": "+s.Name)
	}
	return strings.Join(all, ", ")
}

// serveGRPC returns the address at which s serves gRPC.
func serveGRPC(t *testing.T, s *testenv.Collector) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	collector.RegisterTraceServiceServer(server, s)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	return "http://" + listener.Addr().String()
}

// traced makes one span in a process with that environment and returns what was logged.
func traced(t *testing.T, environment ...string) (logged string) {
	t.Helper()
	for _, pair := range environment {
		key, value, _ := strings.Cut(pair, "=")
		t.Setenv(key, value)
	}
	var log bytes.Buffer
	stop := Start("husk", "1.0", slog.New(slog.NewTextHandler(&log, nil)))
	_, span := otel.Tracer("test").Start(t.Context(), "work")
	span.End()
	stop()
	return log.String()
}

func TestProtocols(t *testing.T) {
	t.Run("http", func(t *testing.T) {
		var s testenv.Collector
		server := httptest.NewServer(&s)
		defer server.Close()
		log := traced(t, "OTEL_EXPORTER_OTLP_ENDPOINT="+server.URL, "OTEL_SERVICE_NAME=containerd")
		if got := names(&s); got != "husk: work" || log != "" {
			t.Errorf("the collector got %q, want one span of husk's; logged %q", got, log)
		}
	})
	t.Run("grpc", func(t *testing.T) {
		var s testenv.Collector
		log := traced(t, "OTEL_EXPORTER_OTLP_ENDPOINT="+serveGRPC(t, &s), "OTEL_EXPORTER_OTLP_PROTOCOL=grpc")
		if got := names(&s); got != "husk: work" || log != "" {
			t.Errorf("the collector got %q, want one span of husk's; logged %q", got, log)
		}
	})
}

// TestInterceptor takes a request for a part of its caller's trace.
func TestInterceptor(t *testing.T) {
	var c testenv.Collector
	server := httptest.NewServer(&c)
	defer server.Close()
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.URL)
	stop := Start("husk", "1.0", slog.Default())
	metadata := ttrpc.MD{}
	metadata.Set("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	_, err := Interceptor()(ttrpc.WithMetadata(t.Context(), metadata), nil, &ttrpc.UnaryServerInfo{FullMethod: "/some.Service/Fail"},
		func(context.Context, func(any) error) (any, error) { return nil, errors.New("a failure") })
	stop()
	if err == nil {
		t.Error("the error is lost")
	}
	want := testenv.Span{
		Service: "husk", Name: "some.Service/Fail", Trace: "0af7651916cd43dd8448eb211c80319c", Parent: "b7ad6b7169203331", Failed: true,
	}
	for _, got := range c.Spans() {
		if got.ID = ""; got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
	if n := len(c.Spans()); n != 1 {
		t.Errorf("%d spans came, want 1", n)
	}
}

func TestNotWanted(t *testing.T) {
	var s testenv.Collector
	server := httptest.NewServer(&s)
	defer server.Close()
	for _, environment := range [][]string{
		{},
		{"OTEL_EXPORTER_OTLP_ENDPOINT=" + server.URL, "OTEL_SDK_DISABLED=true"},
		{"OTEL_EXPORTER_OTLP_ENDPOINT=" + server.URL, "OTEL_TRACES_EXPORTER=none"},
	} {
		t.Run(strings.Join(environment, " "), func(t *testing.T) {
			if log := traced(t, environment...); log != "" {
				t.Errorf("logged %q", log)
			}
		})
	}
	if got := names(&s); got != "" {
		t.Errorf("the collector got %q, which nobody asked for", got)
	}
}

// TestWrongEnvironment takes no collector for a reason to fail.
func TestWrongEnvironment(t *testing.T) {
	closed := httptest.NewServer(nil)
	closed.Close()
	for _, c := range []struct{ environment, want string }{
		{"OTEL_EXPORTER_OTLP_ENDPOINT=" + closed.URL, "connection refused"},
		{"OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1 OTEL_EXPORTER_OTLP_PROTOCOL=smoke", `must be grpc, http/protobuf or http/json`},
	} {
		t.Run(c.environment, func(t *testing.T) {
			if log := traced(t, strings.Fields(c.environment)...); !strings.Contains(log, c.want) {
				t.Errorf("logged %q, want %q in it", log, c.want)
			}
		})
	}
}

package testenv

import (
	"context"
	"encoding/hex"
	"io"
	"net/http"
	"sync"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	traces "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// Span is what a Collector keeps of one.
type Span struct {
	Service, Name     string
	Trace, ID, Parent string // in hex; Parent is "" for the first of a trace
	Container         string // the attribute container.id
	Failed            bool
}

// Collector keeps the spans that come by OTLP, with HTTP or as a service of gRPC (OpenTelemetry Protocol Specification).
type Collector struct {
	collector.UnimplementedTraceServiceServer
	mu    sync.Mutex // guards spans
	spans []Span
}

// Spans returns what has come so far.
func (c *Collector) Spans() []Span {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]Span(nil), c.spans...)
}

// Export implements OTLP's service for gRPC.
func (c *Collector) Export(_ context.Context, r *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, of := range r.ResourceSpans {
		service := ""
		for _, a := range of.Resource.Attributes {
			if a.Key == "service.name" {
				service = a.Value.GetStringValue()
			}
		}
		for _, scope := range of.ScopeSpans {
			for _, s := range scope.Spans {
				span := Span{
					Service: service, Name: s.Name, Trace: hex.EncodeToString(s.TraceId), ID: hex.EncodeToString(s.SpanId),
					Parent: hex.EncodeToString(s.ParentSpanId), Failed: s.Status.GetCode() == traces.Status_STATUS_CODE_ERROR,
				}
				for _, a := range s.Attributes {
					if a.Key == "container.id" {
						span.Container = a.Value.GetStringValue()
					}
				}
				c.spans = append(c.spans, span)
			}
		}
	}
	return &collector.ExportTraceServiceResponse{}, nil
}

// ServeHTTP implements OTLP's HTTP with protobuf.
func (c *Collector) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	data, err := io.ReadAll(r.Body)
	var request collector.ExportTraceServiceRequest
	if err != nil || r.URL.Path != "/v1/traces" || proto.Unmarshal(data, &request) != nil {
		http.Error(w, "not traces", http.StatusBadRequest)
		return
	}
	_, _ = c.Export(r.Context(), &request)
}

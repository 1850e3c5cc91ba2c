package e2e

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"

	"husk.dev/husk/internal/sys"
	"husk.dev/husk/internal/testenv"
)

// TestTracing has husk's processes tell a collector what they do.
func TestTracing(t *testing.T) {
	begin(t)
	t.Run("owner", func(t *testing.T) {
		var collector testenv.Collector
		server := httptest.NewServer(&collector)
		defer server.Close()
		t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.URL)
		expect(t, "output", husk(t, "run", "--rm", demo, "echo", "traced").ok(), "traced\n")
		traced(t, &collector, "husk", "husk.control.v1.Control/Create", "", "plan", "start VMM", "create container")
	})
	t.Run("shim", func(t *testing.T) {
		t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
		e := newEngine(t)
		var collector testenv.Collector
		serveIn(t, fmt.Sprintf("/proc/%d/ns/net", e.pid), "127.0.0.1:4318", &collector)
		expect(t, "output", e.ok(runs("--rm", criImage, "seen", "echo", "traced")...), "traced\n")
		e.nothingLeft()
		traced(t, &collector, "containerd-shim-husk-v2", "containerd.task.v2.Task/Create", "seen", "plan", "start VMM", "create container")
		traced(t, &collector, "containerd-shim-husk-v2", "containerd.task.v2.Task/Start", "seen", "container start")
	})
	t.Run("nobody listens", func(t *testing.T) {
		server := httptest.NewServer(nil)
		server.Close()
		t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.URL)
		expect(t, "output", husk(t, "run", "--rm", demo, "echo", "not traced").ok(), "not traced\n")
	})
}

// traced checks that a request has come to a collector, with spans of what it did.
func traced(t *testing.T, c *testenv.Collector, service, request, container string, parts ...string) {
	t.Helper()
	all := c.Spans()
	i := slices.IndexFunc(all, func(s testenv.Span) bool { return s.Name == request })
	if i < 0 {
		t.Errorf("no span of %s in %+v", request, all)
		return
	}
	expect(t, "service of "+request, all[i].Service, service)
	expect(t, "container of "+request, all[i].Container, container)
	for _, part := range parts {
		if !slices.ContainsFunc(all, func(s testenv.Span) bool {
			return s.Name == part && s.Trace == all[i].Trace && s.Parent == all[i].ID
		}) {
			t.Errorf("no span %q below %s in %+v", part, request, all)
		}
	}
}

// serveIn serves HTTP in a network namespace until the test's end.
func serveIn(t *testing.T, namespace, address string, handler http.Handler) {
	t.Helper()
	var listener net.Listener
	err := sys.InNetwork(namespace, func() (err error) {
		listener, err = net.Listen("tcp", address)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: handler}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { _ = server.Close() })
}

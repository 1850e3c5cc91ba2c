package shim

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	v1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	v2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	taskevents "github.com/containerd/containerd/api/events"
	bootstrap "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	events "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	agentv1 "husk.dev/husk/api/agent/v1"
)

func TestParse(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string // of the error
	}{
		{[]string{"-namespace", "n", "-id", "i", "start"}, ""},
		{[]string{"-namespace", "n", "-id", "i", "-bundle", "/b", "delete"}, ""},
		{[]string{"-v"}, ""},
		{[]string{"-id", "i", "start"}, "missing"},
		{[]string{"-namespace", "n", "-id", "../i", "start"}, "not a name"},
		{[]string{"-unknown"}, "not defined"},
	} {
		_, err := parse(c.args, io.Discard)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%q: %v, want %q", c.args, err, c.want)
		}
	}
}

func TestStateID(t *testing.T) {
	long := strings.Repeat("a", 64)
	one, other := stateID("k8s.io", long), stateID("k8s.io", long[:63]+"b")
	if stateID("default", "web") != "default.web" {
		t.Error("a short name is not kept")
	}
	if len(one) > maxStateID || one == other || !strings.HasPrefix(one, "k8s.io."+long[:24]) {
		t.Errorf("long names became %q and %q", one, other)
	}
	if stateID("default", "a/b") != "" || stateID("default", "..") != "" {
		t.Error("a name that is a path was taken")
	}
}

// TestAnswer reads start's answer as the containerds of its time do.
func TestAnswer(t *testing.T) {
	answer := func(params *bootstrap.BootstrapParams) []byte {
		var out bytes.Buffer
		if err := (Program{Out: &out}).answer(params, "unix:///s"); err != nil {
			t.Fatal(err)
		}
		return out.Bytes()
	}
	if got := answer(nil); string(got) != "unix:///s" { // newer ones take JSON as well, CRI-O does not
		t.Errorf("containerd before 2.3, and CRI-O, are told %q", got)
	}
	input, err := proto.Marshal(&bootstrap.BootstrapParams{InstanceID: "i", Namespace: "n"})
	if err != nil {
		t.Fatal(err)
	}
	params := parameters(input, arguments{id: "i", namespace: "n"})
	var result bootstrap.BootstrapResult
	if err := proto.Unmarshal(answer(params), &result); err != nil || result.Version != 3 || result.Address != "unix:///s" {
		t.Errorf("containerd 2.3 is told %+v, %v", &result, err)
	}
	if parameters(input, arguments{id: "other", namespace: "n"}) != nil {
		t.Error("parameters of another container were taken")
	}
}

func TestMetrics(t *testing.T) {
	guest := &agentv1.StatsResponse{
		Cpu:    &agentv1.CPUStats{UsageUsec: 7, UserUsec: 4, SystemUsec: 3},
		Memory: &agentv1.MemoryStats{Usage: 100, Limit: 1<<64 - 1, Peak: 200, SwapUsage: 10, Stat: map[string]uint64{"anon": 60, "file": 40}},
		Pids:   &agentv1.PidsStats{Current: 2, Limit: 1<<64 - 1},
		Io:     []*agentv1.IOStats{{Major: 8, ReadBytes: 512, WriteOps: 1}},
	}
	one := metrics(guest, false).(*v1.Metrics)
	if one.CPU.Usage.Total != 7000 || one.Memory.Usage.Usage != 100 || one.Memory.RSS != 60 || one.Memory.Swap.Usage != 110 {
		t.Errorf("version 1: %v", one)
	}
	if one.Memory.Usage.Limit != 1<<63-4096 || len(one.Blkio.IoServiceBytesRecursive) != 2 || one.Blkio.IoServiceBytesRecursive[0].Value != 512 {
		t.Errorf("version 1: %v", one)
	}
	two := metrics(guest, true).(*v2.Metrics)
	if two.CPU.UsageUsec != 7 || two.Memory.Usage != 100 || two.Memory.Anon != 60 || two.Memory.UsageLimit != 1<<64-1 || two.Io.Usage[0].Wios != 1 {
		t.Errorf("version 2: %v", two)
	}
	if metrics(&agentv1.StatsResponse{}, false) == nil || metrics(&agentv1.StatsResponse{}, true) == nil {
		t.Error("a guest that says nothing has no metrics")
	}
}

// TestIdle lets a shim end that serves nothing and is not called, and no other.
func TestIdle(t *testing.T) {
	const wait = 20 * time.Millisecond
	s := &service{end: make(chan struct{}), containers: map[string]*container{"a": {}}}
	idle := s.idle(wait)
	stays := func(why string) {
		t.Helper()
		select {
		case <-idle:
			t.Fatal("ended while " + why)
		case <-time.After(10 * wait):
		}
	}
	stays("it had a container")
	release, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		_, _ = s.intercept(context.Background(), nil, nil, func(context.Context, func(any) error) (any, error) {
			<-release
			return nil, nil
		})
	}()
	for s.calls.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	s.mu.Lock()
	delete(s.containers, "a")
	s.pod = &pod{}
	s.mu.Unlock()
	stays("it had a pod and a call")
	s.mu.Lock()
	s.pod = nil
	s.mu.Unlock()
	stays("it was being called")
	close(release)
	<-done
	select {
	case <-idle:
	case <-time.After(time.Minute):
		t.Fatal("it does not end")
	}
}

// TestInput passes on what a client writes, and ends it when containerd says so, and not when the client goes.
func TestInput(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "in")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	o, err := stdio{in: fifo}.open()
	if err != nil {
		t.Fatal(err)
	}
	if err := o.feedIn(fifo); err != nil {
		t.Fatal(err)
	}
	client, err := os.OpenFile(fifo, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.WriteString("one"); err != nil {
		t.Fatal(err)
	}
	client.Close()
	got := make([]byte, 8)
	if n, err := o.In.Read(got); err != nil || string(got[:n]) != "one" {
		t.Fatalf("read %q, %v", got[:n], err)
	}
	if err := o.In.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if _, err := o.In.Read(got); !os.IsTimeout(err) {
		t.Errorf("without a client the input ended: %v", err)
	}
	if err := o.In.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	o.closeIn()
	if _, err := o.In.Read(got); err != io.EOF {
		t.Errorf("after CloseIO: %v, want the end", err)
	}
	o.Close()
	o.end()
}

func TestOutput(t *testing.T) {
	file := filepath.Join(t.TempDir(), "out")
	w, err := openOutput("file://" + file)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, "line\n"); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if data, err := os.ReadFile(file); err != nil || string(data) != "line\n" {
		t.Errorf("the file has %q, %v", data, err)
	}
	if _, err := openOutput("gopher:///bin/log"); err == nil {
		t.Error("an output of an unknown kind was taken")
	}
}

// TestLogger gives a process' output to a program.
func TestLogger(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "logger")
	script := "#!/bin/sh\nexec 5>&-\n{ echo \"$1 $2 $CONTAINER_NAMESPACE $CONTAINER_ID\"; cat <&3; cat <&4; } >" + dir + "/log\nmv " + dir + "/log " + dir + "/whole\n"
	if err := os.WriteFile(program, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	o, err := stdio{out: "binary://" + program + "?key=value", namespace: "n", id: "c", log: slog.New(slog.DiscardHandler)}.open()
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(o.Out, "out\n") // what arrives is checked
	_, _ = io.WriteString(o.Err, "err\n")
	o.Close()
	o.end()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		data, err := os.ReadFile(filepath.Join(dir, "whole"))
		if err == nil || time.Now().After(end) {
			if string(data) != "key value n c\nout\nerr\n" {
				t.Errorf("the logger got %q, %v", data, err)
			}
			return
		}
	}
}

// taken is a containerd that takes events, and refuses the first.
type taken struct {
	mu     sync.Mutex
	topics []string
	calls  int
}

func (s *taken) Forward(_ context.Context, r *events.ForwardRequest) (*emptypb.Empty, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.calls++; s.calls == 1 {
		return nil, io.ErrUnexpectedEOF
	}
	s.topics = append(s.topics, r.Envelope.Topic+" "+r.Envelope.Namespace+" "+r.Envelope.Event.TypeUrl)
	return &emptypb.Empty{}, nil
}

func TestEvents(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server, err := ttrpc.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	s := &taken{}
	events.RegisterTTRPCEventsService(server, s)
	go func() { _ = server.Serve(t.Context(), listener) }()
	defer server.Close()
	p := newPublisher(socket, "n", slog.New(slog.DiscardHandler))
	p.publish(topicCreate, &taskevents.TaskCreate{ContainerID: "c"})
	p.publish(topicExit, &taskevents.TaskExit{ContainerID: "c"})
	time.Sleep(100 * time.Millisecond) // the first try is refused by now; what follows is the end of the shim
	if err := p.close(); err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if got := strings.Join(s.topics, ", "); got != "/tasks/create n containerd.events.TaskCreate, /tasks/exit n containerd.events.TaskExit" {
		t.Errorf("containerd was told %q", got)
	}
}

// TestLateReader writes to a fifo whose reader comes later than what is written, as it may on a busy machine.
func TestLateReader(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "out")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	got := make(chan string, 1)
	go func() {
		time.Sleep(100 * time.Millisecond)
		data, err := os.ReadFile(fifo)
		if err != nil {
			t.Error(err)
		}
		got <- string(data)
	}()
	w, err := openOutput(fifo)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, "all of it"); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case text := <-got:
		if text != "all of it" {
			t.Errorf("the reader got %q", text)
		}
	case <-time.After(time.Minute):
		t.Fatal("the reader waits for ever")
	}
}

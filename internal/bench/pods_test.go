package bench

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestMessages reads with the API's own package what criClient sends.
func TestMessages(t *testing.T) {
	sandbox := &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Name: "a", Uid: "a", Namespace: "husk-bench"}, Hostname: "a",
		Linux: &cri.LinuxPodSandboxConfig{CgroupParent: "/groups"},
	}
	for _, c := range []struct {
		sent      message
		got, want proto.Message
	}{
		{runPodRequest(sandboxConfig("a", "/groups"), "husk"), &cri.RunPodSandboxRequest{},
			&cri.RunPodSandboxRequest{Config: sandbox, RuntimeHandler: "husk"}},
		{createRequest("pod", sandboxConfig("a", "/groups"), "main", "image", "sleep", "7"), &cri.CreateContainerRequest{},
			&cri.CreateContainerRequest{PodSandboxId: "pod", SandboxConfig: sandbox, Config: &cri.ContainerConfig{
				Metadata: &cri.ContainerMetadata{Name: "main"}, Image: &cri.ImageSpec{Image: "image"},
				Command: []string{"sleep", "7"}, Linux: &cri.LinuxContainerConfig{},
			}}},
		{idRequest("id"), &cri.StopPodSandboxRequest{}, &cri.StopPodSandboxRequest{PodSandboxId: "id"}},
		{idRequest("id"), &cri.RemovePodSandboxRequest{}, &cri.RemovePodSandboxRequest{PodSandboxId: "id"}},
		{idRequest("id"), &cri.StartContainerRequest{}, &cri.StartContainerRequest{ContainerId: "id"}},
	} {
		if err := proto.Unmarshal(c.sent, c.got); err != nil || !proto.Equal(c.got, c.want) {
			t.Errorf("sent %v (%v), want %v", c.got, err, c.want)
		}
	}
}

// podServer answers as a test says.
type podServer struct {
	cri.UnimplementedRuntimeServiceServer
}

func (podServer) RunPodSandbox(_ context.Context, r *cri.RunPodSandboxRequest) (*cri.RunPodSandboxResponse, error) {
	if r.RuntimeHandler == "absent" {
		return nil, status.Error(codes.NotFound, `no runtime for "absent": 100% sure`)
	}
	return &cri.RunPodSandboxResponse{PodSandboxId: "id of " + r.Config.Metadata.Name}, nil
}

func (podServer) StopPodSandbox(context.Context, *cri.StopPodSandboxRequest) (*cri.StopPodSandboxResponse, error) {
	return &cri.StopPodSandboxResponse{}, nil
}

// TestCRIClient calls a server of gRPC's own package.
func TestCRIClient(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	cri.RegisterRuntimeServiceServer(server, podServer{})
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	c := newCRIClient(socket)
	defer c.close()
	for range 3 {
		id, err := c.call(t.Context(), "RunPodSandbox", runPodRequest(sandboxConfig("one", "/p"), "husk"))
		if id != "id of one" || err != nil {
			t.Errorf("the answer is %q, %v", id, err)
		}
	}
	if id, err := c.call(t.Context(), "StopPodSandbox", idRequest("x")); id != "" || err != nil {
		t.Errorf("an empty answer is %q, %v", id, err)
	}
	if _, err := c.call(t.Context(), "RunPodSandbox", runPodRequest(nil, "absent")); err == nil || !strings.Contains(err.Error(), `no runtime for "absent": 100% sure`) {
		t.Errorf("the error is %v, want the server's", err)
	}
	if _, err := c.call(t.Context(), "RemovePodSandbox", idRequest("x")); err == nil || !strings.Contains(err.Error(), "not implemented") {
		t.Errorf("the error of a method that is not there is %v", err)
	}
	if _, err := newCRIClient(socket+"-absent").call(t.Context(), "Version", nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the error without a server is %v", err)
	}
}

func TestPodImage(t *testing.T) {
	dir := t.TempDir()
	busybox, name := filepath.Join(dir, "busybox"), filepath.Join(dir, "image.tar")
	if err := os.WriteFile(busybox, []byte("a program"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := writePodImage(name, busybox); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	files := map[string][]byte{}
	r := tar.NewReader(f)
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if files[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
	var manifest []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if err := json.Unmarshal(files["manifest.json"], &manifest); err != nil || len(manifest) != 1 {
		t.Fatalf("the manifest is %q: %v", files["manifest.json"], err)
	}
	m := manifest[0]
	if !reflect.DeepEqual(m.RepoTags, []string{podImage}) || len(m.Layers) != 1 || len(files[m.Config]) == 0 || len(files[m.Layers[0]]) < 1024 {
		t.Errorf("the manifest is %+v, the files are %d", m, len(files))
	}
}

func TestCPUTime(t *testing.T) {
	const stat = "7 (a) b) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 3 4 20 0 1 0 100 1000 100"
	if got := cpuTime(stat); got != 3*time.Second {
		t.Errorf("a process of 250 and 50 ticks used %v, want 3s", got)
	}
	if got := cpuTime("7 (a) S 1"); got != 0 {
		t.Errorf("a line that is cut off says %v", got)
	}
	if got := cpuTimes([]int{os.Getpid()}); len(got) != 1 {
		t.Errorf("this process used %v", got)
	}
}

// TestGroupLeftOut has a group that lacks what it needs: it is in the report with the reason, and nothing is measured.
func TestGroupLeftOut(t *testing.T) {
	s := quiet(t)
	s.setting.Runtimes = []Runtime{{Name: "a"}}
	r := newReport(s.options, s.setting)
	t.Setenv("PATH", t.TempDir())
	g := group{name: "pods", begin: beginPods, step: func(context.Context, *session, Runtime, add) error {
		t.Error("a step was taken")
		return nil
	}}
	s.measure(t.Context(), g, r)
	want := Failure{"pods", everyRuntime, "containerd is not installed: apt-get install containerd"}
	if len(r.Failures) != 1 || r.Failures[0] != want {
		t.Errorf("failures %+v, want %+v", r.Failures, want)
	}
}

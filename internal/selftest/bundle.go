package selftest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"husk.dev/husk/internal/ocispec"
)

// bundle is a container that is made as engines do it, on a root directory of the host.
type bundle struct {
	s    *session
	id   string
	spec specs.Spec
	made *call // that created it, and holds its output
}

// bundle is one that holds.
func (s *session) bundle(name string) *bundle {
	spec := ocispec.Example(false, 0, 0)
	spec.Process.Terminal = false
	spec.Process.Args = job("hold")
	spec.Root = &specs.Root{Path: s.dirs.path("rootfs"), Readonly: true}
	return &bundle{s: s, id: s.id(name), spec: spec}
}

// up creates and starts the container and waits until it says that it is up.
func (b *bundle) up(ctx context.Context) error {
	dir := b.s.dirs.path(b.id)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	data, err := json.Marshal(b.spec)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), data, 0o644); err != nil {
		return err
	}
	if b.made, err = b.s.start(options{engine: true}, "create", "--bundle", dir, b.id); err != nil {
		return err
	}
	defer b.made.close() // the container has the files open
	code, err := b.made.wait(ctx)
	if err == nil && code != 0 {
		err = b.made.failure(code, 0)
	}
	if err != nil {
		return err
	}
	if _, err := b.s.husk(ctx, "start", b.id); err != nil {
		return err
	}
	return until(ctx, "the container says that it is up", func() (bool, error) {
		if text := said(b.made.out); strings.Contains(text, "\n") {
			return true, nil
		}
		record, err := b.s.record(b.id)
		if err == nil && record.Effective() == "stopped" {
			err = fmt.Errorf("container %s has ended: %s%s", b.id, record.Reason, lastWords(said(b.made.err)))
		}
		return false, err
	})
}

// tryPod makes a pod as containerd and CRI-O do: a sandbox, and containers in its virtual machine and namespaces.
func tryPod(ctx context.Context, s *session) error {
	const container, sandbox = "io.kubernetes.cri.container-type", "io.kubernetes.cri.sandbox-id"
	first := s.bundle("pod")
	first.spec.Annotations = map[string]string{container: "sandbox", sandbox: first.id}
	if err := first.up(ctx); err != nil {
		return err
	}
	record, err := s.record(first.id)
	if err != nil {
		return err
	}
	const port = "127.0.0.1:7000"
	var members []*bundle
	for _, name := range []string{"server", "client"} {
		b := s.bundle(name)
		b.spec.Annotations = map[string]string{container: "container", sandbox: first.id}
		b.spec.Hostname = ""
		if name == "server" {
			b.spec.Process.Args = job("serve", port)
		}
		for kind, file := range map[specs.LinuxNamespaceType]string{specs.NetworkNamespace: "net", specs.IPCNamespace: "ipc", specs.UTSNamespace: "uts"} {
			ocispec.Namespace(&b.spec, kind).Path = fmt.Sprintf("/proc/%d/ns/%s", record.Host.PID, file)
		}
		if err := b.up(ctx); err != nil {
			return err
		}
		out, err := s.husk(ctx, "state", b.id)
		if err != nil {
			return err
		}
		if !strings.Contains(out, `"dev.husk.sandbox": "`+first.id+`"`) {
			return fmt.Errorf("the state of a container does not name its sandbox %s: %s", first.id, oneLine(out))
		}
		members = append(members, b)
	}
	const text = "within the pod"
	out, err := s.husk(ctx, append([]string{"exec", members[1].id}, job("ask", port, text)...)...)
	if err != nil {
		return err
	}
	if strings.TrimSpace(out) != text {
		return fmt.Errorf("over the pod's loopback came %q, want %q", out, text)
	}
	// One ends, the others do not notice.
	if _, err := s.husk(ctx, "delete", "--force", members[0].id); err != nil {
		return err
	}
	for _, b := range []*bundle{members[1], first} {
		if _, err := s.ends(ctx, 7, options{}, append([]string{"exec", b.id}, job("fail", "7")...)...); err != nil {
			return fmt.Errorf("after the end of another container of the pod: %w", err)
		}
	}
	for _, b := range []*bundle{members[1], first} {
		if _, err := s.husk(ctx, "delete", "--force", b.id); err != nil {
			return err
		}
	}
	return nil
}

// cgroupName is the control group of a container of this process.
func cgroupName(id string) string { return fmt.Sprintf("/husk-selftest-%d-%s", os.Getpid(), id) }

// cgroupPattern is where a control group is in a hierarchy, or, for "", where there is one alone.
func cgroupPattern(name, hierarchy string) string {
	return filepath.Join("/sys/fs/cgroup", hierarchy, name)
}

// cgroupsWork tells whether this process can make control groups, as an engine that names some can.
func (s *session) cgroupsWork() bool {
	if os.Geteuid() != 0 {
		return false
	}
	var tops []string
	for _, file := range []string{"", "*"} {
		found, err := filepath.Glob(cgroupPattern("cgroup.procs", file))
		if err != nil {
			return false
		}
		tops = append(tops, found...)
	}
	for _, procs := range tops {
		dir := filepath.Join(filepath.Dir(procs), cgroupName("probe"))
		if err := errors.Join(os.Mkdir(dir, 0o755), os.Remove(dir)); err != nil {
			return false
		}
	}
	return len(tops) > 0
}

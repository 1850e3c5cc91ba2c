package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"

	"google.golang.org/grpc/codes"

	agentv1 "husk.dev/husk/api/agent/v1"
	"husk.dev/husk/internal/sys"
)

// maxMappings bounds the lines of a mapping of ids (user_namespaces(7)).
const maxMappings = 340

// pod is what the containers of a pod share where none of them holds it.
type pod struct {
	id string

	user bool

	mu sync.Mutex // held while a holder starts, which may take long; never taken with the agent's held
	// holder has the pod's PID namespace, once a container has asked for it. With user it is there from the beginning, and
	// its are the user, IPC and UTS namespaces, which are the guest's own without. Guarded by mu.
	holder *holder
	failed error // why the pod was not made; guarded by mu
}

// MakePod makes what the containers of a pod share.
func (s service) MakePod(_ context.Context, r *agentv1.PodRequest) (*agentv1.Empty, error) {
	return empty, s.agent.makePod(r)
}

func (a *Agent) makePod(r *agentv1.PodRequest) error {
	if !validID(r.GetId()) {
		return fail(codes.InvalidArgument, "invalid pod id %q", r.GetId())
	}
	if len(r.GetUids()) > maxMappings || len(r.GetGids()) > maxMappings || (len(r.GetUids()) == 0) != (len(r.GetGids()) == 0) {
		return fail(codes.InvalidArgument, "a user namespace has 1 to %d mappings of users, and of groups", maxMappings)
	}
	p := &pod{id: r.GetId(), user: len(r.GetUids()) > 0}
	p.mu.Lock() // whoever finds the pod waits until it is made
	defer p.mu.Unlock()
	if !a.takePod(p) {
		return fail(codes.FailedPrecondition, "the guest has a pod or containers already")
	}
	if p.failed = a.preparePod(p, r); p.failed != nil {
		a.mu.Lock()
		a.pod = nil
		a.mu.Unlock()
	}
	return p.failed
}

// takePod makes p the guest's pod, where it has none and no containers.
func (a *Agent) takePod(p *pod) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.pod != nil || len(a.order) > 0 {
		return false
	}
	a.pod = p
	return true
}

// preparePod makes what p is to have from the beginning. Preconditions: p.mu is held.
func (a *Agent) preparePod(p *pod, r *agentv1.PodRequest) error {
	if err := a.setHostname(r.GetHostname()); err != nil {
		return err
	}
	if p.user {
		var err error
		p.holder, err = a.hold(syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS,
			UidMappings: idMaps(r.GetUids()), GidMappings: idMaps(r.GetGids()), GidMappingsEnableSetgroups: true,
			Credential: &syscall.Credential{},
		})
		if err != nil {
			return err
		}
	}
	if err := p.setSysctls(r); err != nil {
		if p.user {
			_ = a.reaper.Signal(p.holder.pid, syscall.SIGKILL) // it may have exited
		}
		return err
	}
	return nil
}

func idMaps(mappings []*agentv1.IDMapping) (all []syscall.SysProcIDMap) {
	for _, m := range mappings {
		all = append(all, syscall.SysProcIDMap{ContainerID: int(m.Inner), HostID: int(m.Outer), Size: int(m.Length)})
	}
	return all
}

// setSysctls sets kernel settings in the pod's namespaces.
func (p *pod) setSysctls(r *agentv1.PodRequest) error {
	set := func() error {
		for _, key := range slices.Sorted(maps.Keys(r.GetSysctls())) {
			err := setSysctl(key, r.GetSysctls()[key])
			if p.user && errors.Is(err, fs.ErrPermission) { // kernels differ in whose IPC settings of a user namespace are
				err = sys.AsUser(outerRoot(r.GetUids()), func() error { return setSysctl(key, r.GetSysctls()[key]) })
			}
			if err != nil {
				return err
			}
		}
		return nil
	}
	if !p.user {
		return set()
	}
	path, found := p.holder.namespace("ipc")
	if !found {
		return fail(codes.FailedPrecondition, "what held the pod's namespaces has ended")
	}
	return sys.InIPC(path, set) // its network is the guest's own
}

// outerRoot is the user that root of a user namespace is outside of it.
func outerRoot(mappings []*agentv1.IDMapping) int {
	for _, m := range mappings {
		if m.Inner == 0 {
			return int(m.Outer)
		}
	}
	return 0
}

// podNamespace is the path of a namespace of the pod's; an empty one and no error: every container has its own.
func (a *Agent) podNamespace(p *pod, kind string) (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.failed != nil:
		return "", p.failed
	case kind == "user" && !p.user:
		return "", nil
	case kind != "pid" && !p.user:
		return fmt.Sprintf("/proc/%d/ns/%s", os.Getpid(), kind), nil
	}
	if p.holder != nil && !p.user {
		// When process 1 of a PID namespace has ended, so have all others of it: the next have one of their own.
		if _, found := p.holder.namespace(kind); !found {
			p.holder = nil
		}
	}
	if p.holder == nil {
		var err error
		if p.holder, err = a.hold(syscall.SysProcAttr{}); err != nil {
			return "", err
		}
	}
	path, found := p.holder.namespace(kind)
	if !found {
		return "", fail(codes.FailedPrecondition, "what held the pod's %s namespace has ended", kind)
	}
	return path, nil
}

// setSysctl sets a kernel setting, named with dots as in sysctl(8), in this thread's namespaces.
func setSysctl(key, value string) error {
	name := strings.ReplaceAll(key, ".", "/")
	if !fs.ValidPath(name) {
		return fail(codes.InvalidArgument, "%q is no name of a setting", key)
	}
	if err := os.WriteFile("/proc/sys/"+name, []byte(value), 0); err != nil {
		return fmt.Errorf("set %s: %w", key, err)
	}
	return nil
}

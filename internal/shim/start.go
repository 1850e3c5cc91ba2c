package shim

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	bootstrap "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/containerd/api/types"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"husk.dev/husk/internal/ocispec"
	"husk.dev/husk/internal/state"
)

// serveAction is the action of the process that start leaves behind.
const serveAction = "serve"

const (
	// inheritedSocket is the descriptor that it finds its listener at.
	inheritedSocket = 3
	// inheritedMounts is that of its caller's mount namespace.
	inheritedMounts = 4
	// dialWait bounds the look for a shim that listens already.
	dialWait = time.Second
)

// EngineMounts is the path, in a shim that serves, of the mount namespace of the engine that started it.
const EngineMounts = "/proc/self/fd/4" // inheritedMounts

// start finds the shim of the container's pod, or of another one whose namespaces it joins, or makes one for it, and tells
// containerd where it listens.
func (p Program) start(a arguments) error {
	input, err := p.readInput()
	if err != nil {
		return err
	}
	dir, err := a.workDir()
	if err != nil {
		return err
	}
	params := parameters(input, a)
	about, err := belonging(dir)
	if errors.Is(err, os.ErrNotExist) { // a sandbox's, and not a container's
		about, err = &specs.Spec{}, saveOptions(dir, input, params)
	}
	if err != nil {
		return err
	}
	address := a.id
	if first := ocispec.SandboxID(about); first != "" {
		address = first
	}
	socket := socketPath(params.GetSocketDir(), a.address, a.namespace, address)
	served := listening(socket)
	if !served && address == a.id {
		if other := a.neighbour(dir, about); listening(other) {
			socket, served = other, true
		}
	}
	if !served && address != a.id {
		return fmt.Errorf("the shim of pod %q does not listen on %s", address, socket)
	}
	if !served {
		if err := p.launch(a, dir, socket); err != nil {
			return err
		}
	}
	if err := state.WriteFile(filepath.Join(dir, addressFile), []byte(unixScheme+socket), 0o600); err != nil {
		return fmt.Errorf("save address: %w", err)
	}
	return p.answer(params, unixScheme+socket)
}

// parameters are what containerd 2.3 and newer say on stdin; older ones say something else there.
func parameters(input []byte, a arguments) *bootstrap.BootstrapParams {
	params := &bootstrap.BootstrapParams{}
	if len(input) == 0 || proto.Unmarshal(input, params) != nil || params.InstanceID != a.id || params.Namespace != a.namespace {
		return nil
	}
	return params
}

// saveOptions keeps the runtime's options, which come with the start and with the creation of a container, for that of a
// sandbox.
func saveOptions(bundle string, input []byte, params *bootstrap.BootstrapParams) error {
	var options anypb.Any
	if params == nil {
		if err := proto.Unmarshal(input, &options); err != nil {
			return fmt.Errorf("read options: %w", err)
		}
	}
	for _, extension := range params.GetExtensions() {
		if url := extension.GetValue().GetTypeUrl(); url == typeURL(&runtimeoptions.Options{}) {
			options.TypeUrl, options.Value = url, extension.Value.Value
		}
	}
	data, err := proto.Marshal(&options)
	if err != nil {
		return fmt.Errorf("encode options: %w", err)
	}
	return state.WriteFile(filepath.Join(bundle, runtimeFile), data, 0o600)
}

// savedOptions reads what saveOptions has kept. Nothing is kept for a sandbox whose bundle has a configuration.
func savedOptions(bundle string) (*anypb.Any, error) {
	data, err := readFile(filepath.Join(bundle, runtimeFile))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("read options: %w", err)
	}
	options := &anypb.Any{}
	if err := proto.Unmarshal(data, options); err != nil {
		return nil, fmt.Errorf("read options: %w", err)
	}
	return options, nil
}

// What containerd is not to do with a root's mounts before the shim gets them: file systems that guests mount, and what names
// where those are. File systems that do not exist yet it makes itself (mkfs).
var (
	ownMounts     = []string{"erofs"}
	ownTransforms = []string{"format", "mkdir"}
)

// answer says where the shim listens in the form that the containerd which asks reads.
func (p Program) answer(params *bootstrap.BootstrapParams, address string) error {
	if params == nil {
		_, err := fmt.Fprint(p.Out, address)
		return err
	}
	result := &bootstrap.BootstrapResult{Version: 3, Address: address, Protocol: "ttrpc"}
	if err := result.AddExtension(&types.MountCapabilities{Types: ownMounts, Transforms: ownTransforms}); err != nil {
		return fmt.Errorf("tell which mounts are husk's own: %w", err)
	}
	return p.print(result)
}

// socketPath is where the shim of a container listens. Two containerds may each have one of the same name.
func socketPath(dir, containerd, namespace, id string) string {
	if dir == "" {
		dir = socketDir
	}
	sum := sha256.Sum256([]byte(filepath.Join(containerd, namespace, id)))
	return fmt.Sprintf("%s/%x", dir, sum)
}

func listening(socket string) bool {
	conn, err := net.DialTimeout("unix", socket, dialWait)
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

// launch starts the process that serves the container.
func (p Program) launch(a arguments, dir, socket string) (err error) {
	listener, err := listen(socket)
	if err != nil {
		return err
	}
	defer func() {
		listener.Close()
		if err != nil {
			os.Remove(socket)
		}
	}()
	file, err := listener.File()
	if err != nil {
		return fmt.Errorf("hand on socket: %w", err)
	}
	defer file.Close()
	// Open for reading too, so that it lasts when containerd goes and comes back. Without containerd there is none.
	log, err := os.OpenFile(filepath.Join(dir, logFile), os.O_RDWR|syscall.O_NONBLOCK, 0)
	if errors.Is(err, os.ErrNotExist) {
		log, err = os.OpenFile(os.DevNull, os.O_RDWR, 0)
	}
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	defer log.Close()

	mounts, err := os.Open("/proc/self/ns/mnt")
	if err != nil {
		return fmt.Errorf("hand on mount namespace: %w", err)
	}
	defer mounts.Close()

	args := []string{"-namespace", a.namespace, "-id", a.id, "-address", a.address, "-bundle", dir}
	if a.debug {
		args = append(args, "-debug")
	}
	cmd := exec.Command("/proc/self/exe", append(args, serveAction)...)
	cmd.Args[0] = Name
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{file, mounts}
	// Mounts of containers are the shim's own: nobody else sees them, and they go with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Cloneflags: syscall.CLONE_NEWNS}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start shim: %w", err)
	}
	return nil
}

// listen makes the shim's socket, which only its own user may connect to.
func listen(path string) (*net.UnixListener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return nil, fmt.Errorf("make directory of sockets: %w", err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) { // a dead shim's
		return nil, fmt.Errorf("replace socket: %w", err)
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	listener.SetUnlinkOnClose(false)
	if err := os.Chmod(path, 0o600); err != nil {
		listener.Close()
		return nil, fmt.Errorf("protect socket: %w", err)
	}
	return listener, nil
}

// savedSocket is the path of the socket that a bundle names.
func savedSocket(bundle string) string {
	data, err := readFile(filepath.Join(bundle, addressFile))
	if err != nil {
		return ""
	}
	path, _ := strings.CutPrefix(string(data), unixScheme)
	return path
}

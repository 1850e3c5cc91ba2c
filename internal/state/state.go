// Package state keeps what is known of each container in a directory of its own: locked, versioned,
// written atomically, readable by any process at any time.
package state

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Version of Container's form. Load refuses every other: state does not outlive an upgrade of husk that
// changes it, because containers do not outlive their owner.
const Version = 2

const (
	stateFile = "state.json"
	// maxState bounds what Load reads, in bytes. Annotations are the only part that a user sizes, and
	// a whole configuration is at most 4 MiB.
	maxState = 8 << 20
)

// Status is where a container is in its life, in the OCI's words and "paused".
type Status string

// The life of a container.
const (
	Creating Status = "creating"
	Created  Status = "created"
	Running  Status = "running"
	Paused   Status = "paused"
	Stopped  Status = "stopped"
)

// Ways in which a VM comes to run.
const (
	StartTemplate = "template"
	StartBoot     = "boot"
)

// Container is all that is kept of a container. Every field is persisted; live objects have no place
// here.
type Container struct {
	Version int    `json:"version"` // set by Save
	ID      string `json:"id"`      // set by Save: the directory's
	Bundle  string `json:"bundle"`  // absolute path
	Status  Status `json:"status"`

	// Owner is the process that owns the container's VM. Whoever creates the container puts itself here
	// first: a container whose owner is gone, or was never named, counts as stopped.
	Owner Process `json:"owner"`
	// Sandbox is the container that Owner's VM was made for, where that is another one.
	Sandbox string `json:"sandbox,omitempty"`
	// Host is the process that stands for the container's init on the host; zero without one.
	Host Process `json:"host"`
	// Helpers are the monitor, the file service and what else must be gone when the container is.
	Helpers []Process `json:"helpers,omitempty"`
	// GuestPID is the init's process id in the guest.
	GuestPID int `json:"guestPid,omitempty"`

	Created     time.Time         `json:"created"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Rootfs      string            `json:"rootfs"`              // on the host, empty for an image's
	Isolation   string            `json:"isolation,omitempty"` // hardware or emulated
	VMStart     string            `json:"vm_start,omitempty"`  // how the VM came to run: StartTemplate or StartBoot

	ExitStatus int       `json:"exitStatus"` // exit code or 128 + signal, valid with ExitedAt
	ExitedAt   time.Time `json:"exitedAt,omitzero"`
	Reason     string    `json:"reason,omitempty"` // why, where the VM and not the program ended it

	Image string   `json:"image,omitempty"` // what `husk run` was given
	Name  string   `json:"name,omitempty"`
	Args  []string `json:"args,omitempty"` // of the init, for listings

	Log string `json:"log,omitempty"` // file with its output
	// NetNS is the network namespace whose interfaces the VM has; what an owner that was killed leaves there is
	// removed with the container.
	NetNS string `json:"netns,omitempty"`
	// Cgroup is the control group of the host that the container's processes there are in, removed with the
	// container; empty without one.
	Cgroup string `json:"cgroup,omitempty"`
	// Poststart are the OCI hooks that whoever starts the container runs.
	Poststart []specs.Hook `json:"poststart,omitempty"`
	// Poststop are the OCI hooks that whoever deletes the container runs, even when its owner is gone.
	Poststop []specs.Hook `json:"poststop,omitempty"`
}

// Effective is the status as a reader must see it: stopped once the owner is gone, whatever the file
// says, because the VM dies with its owner.
func (c Container) Effective() Status {
	if c.Status != Stopped && !c.Owner.Alive() {
		return Stopped
	}
	return c.Status
}

// Load reads the container's state. It needs no lock. A directory whose state was not saved yet gives
// an error that matches fs.ErrNotExist.
func (d *Dir) Load() (Container, error) {
	data, err := readBounded(d.Path(stateFile), maxState)
	if errors.Is(err, fs.ErrNotExist) {
		if _, gone := os.Stat(d.path); gone != nil {
			return Container{}, notExist(d.id)
		}
		return Container{}, fmt.Errorf("container %q has no state: its creation goes on or was cut short: %w", d.id, fs.ErrNotExist)
	}
	if err != nil {
		return Container{}, fmt.Errorf("load state of container %q: %w", d.id, err)
	}
	return decode(d.id, data)
}

// decode checks the version before anything else, so that the error of a foreign file names the cause.
func decode(id string, data []byte) (Container, error) {
	var head struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(data, &head); err != nil {
		return Container{}, fmt.Errorf("load state of container %q: %w", id, err)
	}
	if head.Version != Version {
		return Container{}, fmt.Errorf("load state of container %q: it has version %d, this husk knows version %d", id, head.Version, Version)
	}
	var c Container
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&c); err != nil {
		return Container{}, fmt.Errorf("load state of container %q: %w", id, err)
	}
	if c.ID != id {
		return Container{}, fmt.Errorf("load state of container %q: it is that of %q", id, c.ID)
	}
	return c, nil
}

// Save replaces the container's state. It panics when d is not locked by the caller: a save without the
// lock loses somebody else's.
func (d *Dir) Save(c Container) error {
	if !d.locked.Load() {
		panic("state: Save without Lock")
	}
	c.Version, c.ID = Version, d.id
	data, err := json.Marshal(c)
	if err != nil {
		return fmt.Errorf("save state of container %q: %w", d.id, err)
	}
	if len(data) > maxState {
		return fmt.Errorf("save state of container %q: %d bytes, at most %d", d.id, len(data), maxState)
	}
	if err := WriteFile(d.Path(stateFile), data, 0o600); err != nil {
		return fmt.Errorf("save state of container %q: %w", d.id, err)
	}
	return nil
}

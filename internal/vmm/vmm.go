// Package vmm is the contract between husk and a virtual machine monitor: a plain description in, a
// running VM out, and one small interface for each further ability.
package vmm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
)

// Driver starts VMs with one virtual machine monitor.
type Driver interface {
	// Info tells what the driver can do on this machine, before any VM exists. It starts no VM.
	Info() Info
	// Start starts a VM and returns once the monitor runs it; the guest may still be booting. ctx
	// bounds the start, not the VM. Start takes ownership of Spec.Console and of the files of Spec.NICs
	// whatever it returns. On an error nothing of the VM is left.
	Start(ctx context.Context, s Spec) (VM, error)
}

// VM is a running virtual machine.
type VM interface {
	// Dial connects to a port of the agent in the guest (agentv1.PortRPC, …). It may wait, until ctx
	// ends, for the guest to boot.
	Dial(ctx context.Context, port uint32) (net.Conn, error)
	// Done is closed when the VM is gone, for whatever reason.
	Done() <-chan struct{}
	// Err says why the VM is gone: nil after Stop, else what the monitor left behind (its exit status
	// and last lines). Valid once Done is closed.
	Err() error
	// PID is the monitor's process on the host.
	PID() int
	// Stop ends the VM at once and frees all that Start made. It is idempotent and may be called from
	// several goroutines; ctx bounds the wait, not the effect.
	Stop(ctx context.Context) error
}

// Info is what a driver can do on this machine.
type Info struct {
	Name      string    // "qemu"
	Binary    string    // absolute path of the monitor, empty when it is not installed
	Version   string    // of the monitor
	Isolation Isolation // what Spec.Accel "auto" gives here
	Pmem      bool      // takes Disk.Pmem on its default machine
	Shares    bool      // takes Spec.Shares
	Hotplug   bool      // plugs devices into a running VM
}

// Isolation is the class of what keeps a guest in.
type Isolation string

// Isolation classes: Hardware is a security boundary, Emulated works anywhere and is not one.
const (
	Hardware Isolation = "hardware"
	Emulated Isolation = "emulated"
)

// Spec describes a VM. It is plain data: every path is absolute, every decision is made.
type Spec struct {
	ID      string // names the VM in messages; [a-zA-Z0-9_.+-]{1,128}
	Machine string // "microvm" (fastest cold start, no hotplug) or "q35"
	Accel   string // "kvm" or "tcg"; "" lets the driver probe

	Kernel  string // bzImage or vmlinux
	Initrd  string // the guest image
	Cmdline string // appended to what the driver itself needs
	// NoACPI says that the kernel finds its processors and devices without ACPI (husk's own does), so that a
	// machine may go without where that is faster.
	NoACPI bool

	MemoryMiB int // guest RAM
	VCPUs     int

	// From is a saved VM to continue in place of booting Kernel, which must be its kernel all the same, as
	// Initrd, Cmdline, Machine, Accel and VCPUs must be its own. Memory beyond its RAM is plugged in
	// beside it; see SavedDisks for how the guest finds that and its devices.
	From *Snapshot
	// Savable keeps the VM so that Saver can write it out. It takes no Shares; its Disks are in the places of
	// SavedDisks, and the guest must have let go of them before. It may have one of NICs, of SavedMAC and with
	// Taps, or of StreamMAC and with a Stream: the guest keeps its driver on it, and the first of the NICs that it
	// continues with takes its place.
	Savable bool

	Disks  []Disk
	Shares []Share
	// NICs are network cards; the guest finds each by its MAC address.
	NICs []NIC

	// Console takes what the guest prints on its console; nil throws it away.
	Console *os.File
	// UID and GID the monitor runs as; 0 keeps the caller's.
	UID, GID uint32
	// RunDir is an existing private directory (0700) for what the driver must keep in files.
	RunDir string
}

// Disk is a block device backed by a raw image file, or by a block device of the host.
type Disk struct {
	Serial   string // what the guest finds it by: at most 20 of [a-zA-Z0-9-]
	Path     string // raw image; opened by the caller of Start, who must have the right to
	ReadOnly bool
	// File takes the place of Path: the image itself, open for reading, and for writing too unless ReadOnly. It stays the
	// caller's, who may close it once the monitor has the disk.
	File *os.File
	// Pmem asks for virtio-pmem, which the guest maps with DAX, in place of virtio-blk. Its Path must
	// be a multiple of 2 MiB long. The guest numbers pmem devices in the order of Spec.Disks.
	Pmem bool
}

// Share is a directory that the guest sees by virtio-fs, served by a vhost-user process.
type Share struct {
	Tag    string // what the guest mounts: at most 36 of [a-zA-Z0-9-]
	Socket string // unix socket of the vhost-user-fs server, which must listen already
}

// NIC is a network card whose other end is a tap on the host, or a socket. Start takes ownership of its files, whatever it
// returns; a driver keeps none of them open in its own process, so that the tap goes with the monitor.
type NIC struct {
	Name string           // for messages
	MAC  net.HardwareAddr // 6 bytes, of no group and not zero; no two cards of a VM share one
	// Reset is the MAC address that a saved card has once the guest resets it, and that the monitor tells the network of
	// when the VM continues; nil: MAC.
	Reset net.HardwareAddr
	MTU   int // most that the guest may set it to, in bytes of a packet less Ethernet's header: 68 to 65535
	// Taps are the tap's queues, all open and attached, with IFF_VNET_HDR and IFF_NO_PI: packets begin with
	// a struct virtio_net_hdr. More than one needs IFF_MULTI_QUEUE.
	Taps []*os.File
	// Vhosts are open files of /dev/vhost-net, one for each of Taps, or none: then the monitor itself moves
	// the packets.
	Vhosts []*os.File
	// Stream takes the place of Taps: a connected stream socket that carries each frame after its length, four bytes
	// in network byte order. Such a card is there from the start or not at all.
	Stream *os.File
}

// CloseNICs closes the files of cards that no VM is started with.
func CloseNICs(nics []NIC) {
	for _, nic := range nics {
		for _, f := range append(nic.Taps[:len(nic.Taps):len(nic.Taps)], nic.Vhosts...) {
			f.Close()
		}
		if nic.Stream != nil {
			nic.Stream.Close()
		}
	}
}

// SavedDisks is how many disks a saved VM has places for: the first of Spec.Disks that are no Pmem take them, in
// order. The guest has no driver on them when it wakes up. All else it finds by looking for new devices.
const SavedDisks = 8

// VhostNet is the kernel's own back end of network cards, on hosts that have it.
const VhostNet = "/dev/vhost-net"

// SavedMAC is the MAC address of a saved VM's network card, by which the guest still knows it when it wakes up.
// It is locally administered.
var SavedMAC = net.HardwareAddr{0x06, 'h', 'u', 's', 'k', 0xff}

// StreamMAC and StreamMTU are the MAC address and the largest MTU, in bytes, of a card with a Stream that VMs are saved with.
var StreamMAC = net.HardwareAddr{0x06, 'h', 'u', 's', 'k', 0}

// StreamMTU belongs to StreamMAC.
const StreamMTU = 65520

// Card is a kind of network card that VMs are saved with. QEMU continues none of the one kind as one of the other.
type Card string

// Kinds of cards.
const (
	NoCard     Card = ""
	TapCard    Card = "tap"    // of SavedMAC, with as many Taps as the VM has queues
	StreamCard Card = "stream" // of StreamMAC, with a Stream; the guest's network is set up as the one who saves it says
)

// Snapshot is a saved VM.
type Snapshot struct {
	Memory    string // file: the guest's RAM, sparse, MemoryMiB long
	State     string // file: the state of processors and devices
	MemoryMiB int
	Card      Card // that it was saved with: the first of Spec.NICs is one of its kind
}

// Saver writes a VM of Spec.Savable out for a Snapshot. Its processors stand still from then on, and it
// can only be stopped.
type Saver interface {
	Save(ctx context.Context, memory, state *os.File) error
}

// Keyer tells what a snapshot depends on: two Specs with the same key differ in nothing that a saved VM
// of the one could not be continued as the other, on this machine and with this monitor.
type Keyer interface {
	SnapshotKey(s Spec) (string, error)
}

// Pauser stops and continues the virtual processors of a VM.
type Pauser interface {
	Pause(ctx context.Context) error
	Resume(ctx context.Context) error
}

// NICPlugger plugs network cards into and out of a running VM. A machine that has no place for a card, or none
// left, gives an error that matches ErrNotSupported.
type NICPlugger interface {
	// PlugNIC adds a card, which the guest finds in its own time. It takes ownership of the card's files,
	// whatever it returns.
	PlugNIC(ctx context.Context, nic NIC) error
	// UnplugNIC takes the card with a MAC address away, which the guest is to have let go of. Of a card that cannot go, because
	// it was there from the start or the guest holds on to it, which is an error, the monitor may keep the tap until it ends.
	UnplugNIC(ctx context.Context, mac net.HardwareAddr) error
}

// DiskPlugger plugs disks into and out of a running VM. A machine that has no place for them, or none left, gives an error that
// matches ErrNotSupported.
type DiskPlugger interface {
	// PlugDisks adds disks, none of them Pmem, that come and go together. The guest finds them in its own time. ctx does not
	// cut it short: it bounds itself. After an error the guest may have had some of them and have written to them, unless it
	// matches ErrNotSupported: then nothing was plugged in. None of them is there any more, unless it matches ErrHeld.
	PlugDisks(ctx context.Context, disks []Disk) error
	// UnplugDisks takes away the disks of one PlugDisks, of which only the serials are looked at. The guest is to have let go of
	// them; where it holds on, which is an error, they stay.
	UnplugDisks(ctx context.Context, disks []Disk) error
}

// MemoryGrower adds RAM to a running VM that has Shares, for as long as it runs. A machine that has no place for it, or
// none left, gives an error that matches ErrNotSupported.
type MemoryGrower interface {
	// GrowMemory adds mib MiB or a little more, which the guest finds in its own time.
	GrowMemory(ctx context.Context, mib int) error
}

// Isolator tells what keeps a VM's guest in. A VM without it counts as Emulated.
type Isolator interface {
	// Isolation is the class, and why it is Emulated on a host whose device for more fails, or is not the monitor's to use:
	// nil where nothing was expected that is not there.
	Isolation() (Isolation, error)
}

// ErrSnapshot is matched when Start fails because of what is in Spec.From: it fails again as long as that is so.
var ErrSnapshot = errors.New("the saved VM cannot be continued")

// ErrNotSupported is what every refusal of something that a driver or machine cannot do matches.
var ErrNotSupported = errors.New("not supported")

// ErrHeld is matched when PlugDisks fails and may have left disks in the guest.
var ErrHeld = errors.New("the guest may still have what it was to let go of")

// UnsupportedError says what a driver cannot honour and what would.
type UnsupportedError struct {
	Driver string // "qemu"
	What   string // "virtio-pmem on machine microvm"
	Needs  string // "machine q35"; may be empty
}

func (e *UnsupportedError) Error() string {
	if e.Needs == "" {
		return fmt.Sprintf("%s: %s is not supported", e.Driver, e.What)
	}
	return fmt.Sprintf("%s: %s is not supported (needs %s)", e.Driver, e.What, e.Needs)
}

// Is makes errors.Is(err, ErrNotSupported) true.
func (e *UnsupportedError) Is(target error) bool { return target == ErrNotSupported }

package qemu

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"husk.dev/husk/internal/vmm"
)

const (
	// lentRAM is a path that QEMU opens and that is no file's: see memory.
	lentRAM = "/husk/ram"
	// roomMiB is how much of a q35's address space is kept for memory that comes later.
	roomMiB = 256 << 10
	// memoryUnit is what more memory must be a multiple of, in MiB. Linux uses parts of its own memory blocks,
	// but only of blocks that the device has whole: memoryBlock.
	memoryUnit, memoryBlock = 4, 128
	// portCount is how many devices can be plugged into a running q35.
	portCount = 8
)

// agentPort is the name of the guest's virtio-serial port that carries internal/channel.
const agentPort = "husk.agent"

// facts is what the command line depends on beside the Spec: this machine and the files QEMU inherits.
type facts struct {
	arch   string // as in runtime.GOARCH
	accel  string // kvm or tcg
	amd    bool   // the processor is AMD's
	tscKHz int    // of the host's time stamp counter; 0: unknown

	console bool // QEMU's stdout takes the console
	qmp     int  // descriptors
	kernel  int
	initrd  int        // 0: none
	ram     int        // a file in memory that is the guest's RAM; 0: QEMU makes one, or lent
	lent    bool       // QEMU's open of lentRAM is answered with the saved memory
	state   int        // of the saved VM that is continued; 0: the VM boots
	agent   int        // the socket of the serial channel; 0: the channel is a vsock
	vhost   int        // /dev/vhost-vsock; 0: the channel is serial
	cid     uint32     // of the vsock
	disks   []diskFact // one for each of Spec.Disks
	shares  []int      // sockets, one for each of Spec.Shares
	nics    []nicFact  // one for each of Spec.NICs
}

type diskFact struct {
	fd     int
	size   int64 // bytes
	device bool  // a block device of the host, no regular file
}

// argv returns QEMU's arguments. It is a pure function. No path is among them: QEMU gets every file
// as an open descriptor.
func argv(s vmm.Spec, f facts) []string {
	b := &builder{spec: s, facts: f}
	b.base()
	b.machine()
	if f.arch == "amd64" && s.Machine == q35 {
		b.add("-bios", "qboot.rom") // 50 times smaller than the default, and it knows what we need
	}
	if s.From == nil {
		b.boot()
	} else {
		b.add("-incoming", "defer") // see machine.load
	}
	b.monitor()
	b.channel()
	b.entropy()
	if s.Machine == q35 {
		b.ports()
	}
	// All above, the card of a saved VM, and the places of disks, are the same in that and in one that continues it.
	// All else is not there yet when the guest wakes up, and it finds it by looking for new devices on the PCI bus.
	saved := 0
	if s.Savable && len(s.NICs) > 0 || s.From != nil && s.From.Card != vmm.NoCard {
		b.nic(0, s.NICs[0])
		saved = 1
	}
	blocks := 0
	for i, d := range s.Disks {
		if !d.Pmem {
			b.block(i, d)
			blocks++
		}
	}
	if s.Savable || s.From != nil {
		for ; blocks < vmm.SavedDisks; blocks++ {
			b.place(blocks)
		}
	}
	for i, d := range s.Disks {
		if d.Pmem {
			b.pmem(i, d)
		}
	}
	for i, share := range s.Shares {
		b.share(i, share)
	}
	for i := saved; i < len(s.NICs); i++ {
		b.nic(i, s.NICs[i])
	}
	if more := s.MemoryMiB - b.baseMiB(); more > 0 {
		b.moreMemory(more)
	}
	return b.args
}

type builder struct {
	spec  vmm.Spec
	facts facts
	args  []string
}

func (b *builder) add(args ...string) { b.args = append(b.args, args...) }

func (b *builder) addf(option, format string, args ...any) {
	b.add(option, fmt.Sprintf(format, args...))
}

// device adds a virtio device, on the bus that the machine has. Devices that predate virtio 1 have a
// variant on PCI that leaves the old protocol out.
func (b *builder) device(kind, options string, predates bool) {
	switch {
	case b.spec.Machine == microvm:
		kind += "-device"
	case predates:
		kind += "-pci-non-transitional"
	default:
		kind += "-pci"
	}
	if options != "" {
		kind += "," + options
	}
	b.add("-device", kind)
}

func (b *builder) base() {
	b.addf("-name", "guest=%s,debug-threads=on", b.spec.ID)
	b.add("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot")
	b.add("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")
}

const (
	// codeCache bounds the translated code. Without a bound it grows by up to 1 GiB that nobody planned for.
	codeCache = "tb-size=256"
	// mmioDevices is how many virtio-mmio transports a microvm without ACPI has.
	mmioDevices = 8
)

func (b *builder) machine() {
	switch {
	case b.facts.accel == "kvm":
		b.add("-accel", "kvm", "-cpu", b.hostCPU())
	case b.facts.arch == "amd64":
		b.add("-accel", "tcg,"+codeCache, "-cpu", emulatedCPU())
	default:
		b.add("-accel", "tcg,"+codeCache, "-cpu", "max")
	}
	b.add("-machine", b.machineType()+",memory-backend=ram,mem-merge=off,dump-guest-core=off")
	if b.spec.Machine == microvm {
		// QEMU's virtio-mmio speaks the protocol from before virtio 1 by default, which file services refuse.
		b.add("-global", "virtio-mmio.force-legacy=false")
	}
	b.add("-smp", strconv.Itoa(b.spec.VCPUs))
	b.add("-m", b.memory())
	b.ram()
	if b.spec.Savable {
		// That its processors stand still is no part of what is saved: whoever continues it wants them to run.
		b.add("-global", "migration.store-global-state=off")
	}
}

// baseMiB is the RAM that the guest was, or is, booted with.
func (b *builder) baseMiB() int {
	if b.spec.From != nil {
		return b.spec.From.MemoryMiB
	}
	return b.spec.MemoryMiB
}

// ram is what the guest's RAM is made of. A file service maps it, so there it must be a file: one that exists
// in memory only. A lent file is mapped copy-on-write, and shared with every VM it is lent to.
func (b *builder) ram() {
	size := b.baseMiB()
	switch {
	case b.facts.lent:
		b.addf("-object", "memory-backend-file,id=ram,size=%dM,mem-path=%s,share=off", size, lentRAM)
	case b.facts.ram != 0:
		b.addf("-object", "memory-backend-file,id=ram,size=%dM,mem-path=%s,share=on", size, descriptor(b.facts.ram))
	case len(b.spec.Shares) > 0:
		b.addf("-object", "memory-backend-memfd,id=ram,size=%dM,share=on", size)
	default:
		b.addf("-object", "memory-backend-ram,id=ram,size=%dM", size)
	}
}

// roundUp returns the least multiple of unit that is not less than n.
func roundUp(n, unit int) int { return (n + unit - 1) / unit * unit }

// moreMemory is RAM that a continued VM did not have when it was saved.
func (b *builder) moreMemory(mib int) {
	mib = roundUp(mib, memoryUnit)
	if len(b.spec.Shares) > 0 {
		b.addf("-object", "memory-backend-memfd,id=more,size=%dM,share=on", roundUp(mib, memoryBlock))
	} else {
		b.addf("-object", "memory-backend-ram,id=more,size=%dM", roundUp(mib, memoryBlock))
	}
	b.device("virtio-mem", fmt.Sprintf("memdev=more,requested-size=%dM", mib), false)
}

// hostCPU is the host's processor less what would let the guest run guests. KVM gives AMD's processors
// an MSR of Intel's that QEMU 7.2 may fail to set.
func (b *builder) hostCPU() string {
	switch {
	case b.facts.arch != "amd64":
		return "host"
	case b.facts.amd:
		return "host,-svm,-arch-capabilities"
	}
	return "host,-vmx"
}

func (b *builder) machineType() string {
	if b.facts.arch == "arm64" {
		return "virt,gic-version=max"
	}
	if b.spec.Machine == microvm {
		timers := ",pit=off,pic=off"
		if b.facts.accel == "tcg" && b.facts.tscKHz == 0 {
			timers = "" // a guest that cannot be told its clock's frequency finds it with the old timers
		}
		acpi := "on"
		if b.withoutACPI() {
			acpi = "off"
		}
		// Under KVM it has no clock chip unless it is asked for, and Linux reads the ports of one 40,000 times before it gives up.
		return "microvm,acpi=" + acpi + ",rtc=on,isa-serial=off" + timers
	}
	// The old timer stays: with ACPI tables that are not hardware-reduced Linux checks the local APIC's
	// timer against it, and without it ends up with no timer at all.
	return "q35,smbus=off,sata=off,usb=off,vmport=off,hpet=off,graphics=off"
}

// withoutACPI tells whether a microvm goes without ACPI, whose interpreter and tables cost an emulated guest a
// tenth of its boot. It then has fewer transports, and only a guest that is told its clock's frequency has timers.
func (b *builder) withoutACPI() bool {
	return b.spec.NoACPI && b.facts.accel == "tcg" && b.facts.tscKHz > 0 &&
		ownSlots+len(b.spec.Disks)+len(b.spec.Shares)+len(b.spec.NICs) <= mmioDevices
}

// memory leaves room in the address space for disks that are memory and for more RAM.
func (b *builder) memory() string {
	size := b.baseMiB()
	if b.spec.Machine != q35 {
		return fmt.Sprintf("%dM", size)
	}
	return fmt.Sprintf("%dM,slots=1,maxmem=%dM", size, size+roomMiB)
}

// ports are where devices are plugged while the VM runs.
func (b *builder) ports() {
	for i := range portCount {
		b.addf("-device", "pcie-root-port,id=port%d,chassis=%d,multifunction=on,addr=0x10.0x%x,io-reserve=0", i, i+1, i)
	}
}

func (b *builder) boot() {
	b.add("-kernel", descriptor(b.facts.kernel))
	if b.facts.initrd != 0 {
		b.add("-initrd", descriptor(b.facts.initrd))
	}
	b.add("-append", cmdline(b.spec, b.facts))
}

// descriptor names an inherited file for code in QEMU that knows no descriptors but opens paths.
func descriptor(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

func (b *builder) monitor() {
	b.addf("-chardev", "socket,id=qmp,fd=%d", b.facts.qmp)
	b.add("-qmp", "chardev:qmp") // -mon, which takes the same, warns since 11
}

func (b *builder) channel() {
	// QEMU writes to a console without waiting: what nobody reads in time is lost, the guest runs on.
	b.device("virtio-serial", "id=serial,max_ports=2", true)
	if b.facts.console {
		b.add("-chardev", "stdio,id=console,signal=off")
	} else {
		b.add("-chardev", "null,id=console")
	}
	b.add("-device", "virtconsole,bus=serial.0,chardev=console")
	if b.facts.vhost != 0 {
		b.device("vhost-vsock", fmt.Sprintf("guest-cid=%d,vhostfd=%d", b.facts.cid, b.facts.vhost), true)
		return
	}
	b.addf("-chardev", "socket,id=agent,fd=%d", b.facts.agent)
	b.add("-device", "virtserialport,bus=serial.0,chardev=agent,name="+agentPort)
}

func (b *builder) entropy() {
	b.add("-object", "rng-builtin,id=rng")
	b.device("virtio-rng", "rng=rng", true)
}

// blockdev is the part of QEMU's BlockdevOptions (qapi/block-core.json) that a raw image needs.
type blockdev struct {
	Driver   string         `json:"driver"`
	NodeName string         `json:"node-name,omitempty"`
	ReadOnly bool           `json:"read-only"`
	Discard  string         `json:"discard,omitempty"`
	Cache    *blockdevCache `json:"cache,omitempty"`
	Filename string         `json:"filename,omitempty"`
	File     *blockdev      `json:"file,omitempty"`
}

type blockdevCache struct {
	Direct  bool `json:"direct"`
	NoFlush bool `json:"no-flush"`
}

// block adds a virtio-blk disk. Reads and writes go through the host's page cache; what the guest
// flushes is on the disk, where it can write at all.
func (b *builder) block(i int, d vmm.Disk) {
	node := fmt.Sprintf("disk%d", i)
	options, err := json.Marshal(rawDisk(node, i, d.ReadOnly, b.facts.disks[i].device))
	if err != nil {
		panic(err) // a struct of strings and booleans
	}
	b.addf("-add-fd", "fd=%d,set=%d", b.facts.disks[i].fd, i)
	b.add("-blockdev", string(options))
	// The guest hears of errors. Left to itself QEMU stops a VM whose disk the host has no room for, and
	// the containers in it hang.
	b.device("virtio-blk", fmt.Sprintf("drive=%s,serial=%s,werror=report", node, d.Serial), true)
}

// rawDisk is the image of a disk whose file is in QEMU's set of descriptors of that number. device says that it is a block
// device of the host.
func rawDisk(node string, set int, readOnly, device bool) blockdev {
	file := blockdev{Driver: "file", ReadOnly: readOnly, Filename: fmt.Sprintf("/dev/fdset/%d", set)}
	if device {
		file.Driver = "host_device"
	}
	raw := blockdev{Driver: "raw", NodeName: node, ReadOnly: readOnly, Cache: &blockdevCache{NoFlush: readOnly}}
	if !readOnly {
		raw.Discard, file.Discard = "unmap", "unmap"
	}
	raw.File = &file
	return raw
}

// place adds a virtio-blk device with nothing behind it, for a disk that a saved VM may be continued with.
func (b *builder) place(i int) {
	b.addf("-blockdev", "driver=null-co,node-name=place%d,size=512", i)
	b.device("virtio-blk", fmt.Sprintf("drive=place%d", i), true)
}

// pmem adds a disk that the guest sees as memory: the host's page cache of the image itself.
func (b *builder) pmem(i int, d vmm.Disk) {
	readonly := "off"
	if d.ReadOnly {
		readonly = "on"
	}
	b.addf("-object", "memory-backend-file,id=mem%d,mem-path=%s,size=%d,share=on,readonly=%s",
		i, descriptor(b.facts.disks[i].fd), b.facts.disks[i].size, readonly)
	b.device("virtio-pmem", fmt.Sprintf("memdev=mem%d,id=%s", i, "disk"+strconv.Itoa(i)), false)
}

// share adds a virtio-fs share. QEMU continues no VM that has one, so there it is plugged in right after.
func (b *builder) share(i int, share vmm.Share) {
	b.addf("-chardev", "socket,id=share%d,fd=%d", i, b.facts.shares[i])
	if b.spec.From == nil {
		b.device("vhost-user-fs", fmt.Sprintf("chardev=share%d,tag=%s,queue-size=1024", i, share.Tag), false)
	}
}

// sharePlug is share as QMP's device_add has it, for a VM that continues.
func sharePlug(i int, share vmm.Share) map[string]any {
	return map[string]any{
		"driver": "vhost-user-fs-pci", "id": fmt.Sprintf("share%d", i), "bus": fmt.Sprintf("port%d", i),
		"chardev": fmt.Sprintf("share%d", i), "tag": share.Tag, "queue-size": 1024,
	}
}

// cmdline is the guest kernel's command line.
func cmdline(s vmm.Spec, f facts) string {
	// A kernel that panics reboots at once by a triple fault, which needs no device, and QEMU exits.
	words := []string{"quiet", "console=hvc0", "panic=-1", "rcupdate.rcu_expedited=1"}
	if f.arch == "amd64" {
		words = append(words, "reboot=t")
	}
	if f.arch == "amd64" && f.accel == "tcg" && f.tscKHz > 0 {
		// An emulated guest reads the host's counter; finding its frequency, doubting it and patching
		// locks out of the kernel costs hundreds of milliseconds.
		words = append(words, fmt.Sprintf("tsc_early_khz=%d", f.tscKHz), "tsc=reliable", "no_timer_check", "noreplace-smp")
	}
	if f.arch == "amd64" && f.accel == "tcg" {
		// What the mitigations keep apart in a processor's predictors an emulator does not keep there, but
		// patching the kernel for them, and running what they add, takes it long. Its local timer counts
		// nanoseconds, and another processor is awake at once. lapic_timer_khz and keep_initmem are of the
		// patches of husk's kernel; others ignore them.
		words = append(words, "mitigations=off", "lapic_timer_khz=1000000", "cpu_init_udelay=0", "keep_initmem")
	}
	if f.accel == "tcg" {
		// QEMU keeps its translation of a page's code until the guest writes there, and does not see what
		// virtiofsd writes: a page that held code and is used again for a file of a share would run as what it
		// was. Clearing pages when they are taken is the write that QEMU sees.
		words = append(words, "init_on_alloc=1")
	}
	if f.arch == "amd64" && s.Machine == q35 {
		// Behind no bus but the first are there others that no bridge leads to. Looking for them on all 256 is 16,000 reads of
		// ports, each of which costs a guest under KVM an exit.
		words = append(words, "pci=lastbus=0")
	}
	if f.arch == "amd64" {
		words = append(words, "virtio_net.given_mac=1") // of the same patches
	}
	if f.vhost != 0 {
		words = append(words, "husk.channel=vsock")
	} else {
		words = append(words, "husk.channel=serial")
	}
	if s.Cmdline != "" {
		words = append(words, s.Cmdline)
	}
	return strings.Join(words, " ")
}

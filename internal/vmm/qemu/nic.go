package qemu

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"husk.dev/husk/internal/vmm"
)

// queueSize is how many packets a queue of a card holds, each way: as many as QEMU takes for sending. The guest
// keeps that many buffers of a packet each ready.
const queueSize = 256

// nicFact is what QEMU inherits for a card.
type nicFact struct {
	taps   []int // descriptors, one a queue
	vhosts []int // of /dev/vhost-net, as many or none
	stream int   // in place of taps, 0 for none
}

// nic lets QEMU inherit a card's files.
func (r *resources) nic(nic vmm.NIC) nicFact {
	give := func(files []*os.File) (fds []int) {
		for _, f := range files {
			fds = append(fds, r.give(f))
		}
		return fds
	}
	if nic.Stream != nil {
		return nicFact{stream: r.give(nic.Stream)}
	}
	return nicFact{taps: give(nic.Taps), vhosts: give(nic.Vhosts)}
}

// nic adds a network card. It starts with no boot ROM, which QEMU would look for in files. Its link is always
// up: of one whose link may change Linux learns the state in its own time, up to a second after it was
// plugged in.
func (b *builder) nic(i int, nic vmm.NIC) {
	f := b.facts.nics[i]
	back := fmt.Sprintf("stream,id=net%d,server=off,addr.type=fd,addr.str=%d", i, f.stream)
	if f.stream == 0 {
		back = fmt.Sprintf("tap,id=net%d,%s", i, descriptors("fd", f.taps))
	}
	if len(f.vhosts) > 0 {
		back += ",vhost=on," + descriptors("vhostfd", f.vhosts)
	}
	b.add("-netdev", back)
	mac := nic.MAC
	if nic.Reset != nil {
		mac = nic.Reset
	}
	card := fmt.Sprintf("netdev=net%d,mac=%s,status=off,host_mtu=%d,rx_queue_size=%d,tx_queue_size=%d", i, mac, nic.MTU, queueSize, queueSize)
	if len(f.taps) > 1 {
		card += ",mq=on"
	}
	if b.spec.Machine != microvm {
		card += fmt.Sprintf(",vectors=%d,romfile=", vectors(max(len(f.taps), 1)))
	}
	b.device("virtio-net", card, true)
}

// vectors is an interrupt for each queue, the control queue and changes of the configuration.
func vectors(queues int) int { return 2*queues + 2 }

// descriptors names inherited files as -netdev has it: fd=7, and fds=7:8 where there are several.
func descriptors(key string, fds []int) string {
	if len(fds) == 1 {
		return key + "=" + strconv.Itoa(fds[0])
	}
	var all []string
	for _, fd := range fds {
		all = append(all, strconv.Itoa(fd))
	}
	return key + "s=" + strings.Join(all, ":")
}

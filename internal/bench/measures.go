package bench

import (
	"fmt"
	"strings"
)

// Measure is one kind of figure.
type Measure struct {
	Name   string `json:"name"` // unique; begins with its group
	Group  string `json:"group"`
	Title  string `json:"title"`
	Unit   string `json:"unit"`
	Higher bool   `json:"higher_is_better"`
	// Main says that it stands for its group in the chart.
	Main bool `json:"main"`
}

// places are where the work on files is done.
var places = []struct{ name, title string }{
	{"rootfs", "root directory"},
	{"bind", "bind mount"},
	{"disk", "image with disk"},
}

// fileMeasures are the figures of package load's files in each of places.
var fileMeasures = []Measure{
	{Name: "read.first", Title: "sequential read, first", Unit: "MiB/s", Main: true},
	{Name: "read.again", Title: "sequential read, again", Unit: "MiB/s"},
	{Name: "write", Title: "sequential write", Unit: "MiB/s", Main: true},
	{Name: "random.read", Title: "random read, 4 KiB", Unit: "1/s"},
	{Name: "random.write", Title: "random write, 4 KiB", Unit: "1/s"},
	{Name: "small.create", Title: "create small files", Unit: "1/s", Main: true},
	{Name: "small.stat", Title: "stat small files", Unit: "1/s"},
	{Name: "small.read", Title: "read small files", Unit: "1/s"},
	{Name: "small.unlink", Title: "unlink small files", Unit: "1/s"},
}

// idleCounts are the numbers of idle containers at which memory is measured.
func idleCounts(o Options) []int {
	var counts []int
	for _, n := range []int{1, 10, o.IdleMax} {
		if n <= o.IdleMax && (len(counts) == 0 || n > counts[len(counts)-1]) {
			counts = append(counts, n)
		}
	}
	return counts
}

func memoryMeasure(root string, containers int) string {
	return fmt.Sprintf("memory.%s.%d", root, containers)
}

// podMeasures are the figures of pods; at says how many are made at once.
func podMeasures(at string) []Measure {
	return []Measure{
		{Name: "pods.ready", Title: "pod with a container ready", Unit: "ms", Main: true},
		{Name: "pods.gone", Title: "pod stopped and removed", Unit: "ms", Main: true},
		{Name: "pods.parallel.ready", Title: "pod with a container ready" + at, Unit: "ms", Main: true},
		{Name: "pods.parallel.gone", Title: "pod stopped and removed" + at, Unit: "ms"},
		{Name: "pods.memory.shim", Title: "the shim of an idle pod", Unit: "MiB"},
		{Name: "pods.memory.all", Title: "all processes of an idle pod", Unit: "MiB", Main: true},
		{Name: "pods.idle.shim", Title: "an idle pod's shim, processor time in a second", Unit: "ms"},
		{Name: "pods.idle.all", Title: "all processes of an idle pod, processor time in a second", Unit: "ms"},
	}
}

// Measures are all figures of the groups that o names, in the order of the report.
func Measures(o Options) []Measure {
	at := fmt.Sprintf(", %d at once", o.Parallel)
	all := []Measure{
		{Name: "start.output", Title: "start to first output", Unit: "ms", Main: true},
		{Name: "start.exit", Title: "run true to exit", Unit: "ms", Main: true},
		{Name: "start.image", Title: "run true of an image to exit", Unit: "ms"},
		{Name: "start.parallel.output", Title: "start to first output" + at, Unit: "ms"},
		{Name: "start.parallel.exit", Title: "run true to exit" + at, Unit: "ms", Main: true},

		{Name: "verbs.create", Title: "create", Unit: "ms", Main: true},
		{Name: "verbs.start", Title: "start", Unit: "ms"},
		{Name: "verbs.exec", Title: "exec true", Unit: "ms", Main: true},
		{Name: "verbs.kill", Title: "kill", Unit: "ms"},
		{Name: "verbs.end", Title: "kill to exit", Unit: "ms"},
		{Name: "verbs.delete", Title: "delete", Unit: "ms"},
		{Name: "verbs.teardown", Title: "exit to everything freed", Unit: "ms", Main: true},
	}
	for _, n := range idleCounts(o) {
		all = append(all, Measure{Name: memoryMeasure(rootBundle, n), Title: fmt.Sprintf("one of %d idle containers", n), Unit: "MiB", Main: n == 10})
	}
	for _, n := range idleCounts(o) {
		all = append(all, Measure{Name: memoryMeasure(rootImage, n), Title: fmt.Sprintf("one of %d idle containers of an image", n), Unit: "MiB"})
	}
	for _, p := range places {
		for _, m := range fileMeasures {
			m.Name, m.Title, m.Higher = "io."+p.name+"."+m.Name, p.title+": "+m.Title, true
			all = append(all, m)
		}
	}
	all = append(all,
		Measure{Name: "cpu.fork", Title: "fork, exec and wait", Unit: "1/s", Higher: true, Main: true},
		Measure{Name: "cpu.syscall", Title: "system call", Unit: "ns", Main: true},
		Measure{Name: "cpu.loop", Title: "loop of integer operations", Unit: "M/s", Higher: true, Main: true},
		Measure{Name: "cpu.pipe", Title: "round trip of a byte over pipes", Unit: "us", Main: true},

		Measure{Name: "net.tcp.send", Title: "TCP to the host, a stream", Unit: "Mbit/s", Higher: true, Main: true},
		Measure{Name: "net.tcp.receive", Title: "TCP from the host, a stream", Unit: "Mbit/s", Higher: true, Main: true},
		Measure{Name: "net.tcp.send.8", Title: "TCP to the host, eight streams", Unit: "Mbit/s", Higher: true},
		Measure{Name: "net.tcp.receive.8", Title: "TCP from the host, eight streams", Unit: "Mbit/s", Higher: true},
		Measure{Name: "net.udp.send", Title: "UDP to the host, what came", Unit: "Mbit/s", Higher: true},
		Measure{Name: "net.tcp.request", Title: "TCP round trip of a byte", Unit: "1/s", Higher: true, Main: true},

		Measure{Name: "density.starts", Title: "containers run, one a processor", Unit: "1/s", Higher: true, Main: true},
		Measure{Name: "density.idle", Title: fmt.Sprintf("idle containers that fit, of %d", o.IdleMax), Unit: "", Higher: true},
	)
	all = append(all, podMeasures(at)...)
	var chosen []Measure
	for _, m := range all {
		m.Group, _, _ = strings.Cut(m.Name, ".")
		if o.has(m.Group) {
			chosen = append(chosen, m)
		}
	}
	return chosen
}

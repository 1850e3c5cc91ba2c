package e2e

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	// slower is how much longer the last of many cycles may take than the first.
	slower = 3
	// timedCycles is from how many on that is asked for: of a few, one that waited makes all the difference.
	timedCycles = 50
	// settled is how long after a request a shim has given back what it took, see the shim's settleWait.
	settled = 5 * time.Second
	// forgotten is how long a shim stays at most that containerd has not ended, see the shim's idleWait.
	forgotten = 5 * time.Minute
)

// TestPodStress makes and removes many pods, and many containers in one, by containerd's CRI plugin. HUSK_TEST_LONG says
// how many, as for TestStress.
func TestPodStress(t *testing.T) {
	begin(t)
	atOnce, sequence := counts(t)
	c := newPodCaller(newEngine(t))
	for _, part := range []struct {
		name string
		test func(t *testing.T, c *podCaller)
	}{
		{"cycles", func(t *testing.T, c *podCaller) { cyclePods(t, c, sequence) }},
		{"one pod", func(t *testing.T, c *podCaller) { cycleContainers(t, c, sequence) }},
		{"at once", func(t *testing.T, c *podCaller) { podsAtOnce(t, c, atOnce) }},
	} {
		t.Run(part.name, func(t *testing.T) {
			part.test(t, c)
			c.cleared(t)
		})
	}
}

// cyclePods leads pods through their lives, one after the other.
func cyclePods(t *testing.T, c *podCaller, count int) {
	steps := map[string][]time.Duration{}
	for i := range count {
		began := time.Now()
		took := func(step string) {
			steps[step] = append(steps[step], time.Since(began))
			began = time.Now()
		}
		p, err := c.pod()
		if err != nil {
			t.Fatal(err)
		}
		id, err := p.run("main")
		if err != nil {
			t.Fatal(err)
		}
		took("ready")
		if got, err := c.exec(id, "echo $((6 * 7)); hostname"); err != nil || got != "42\n"+p.config.Hostname+"\n" {
			t.Fatalf("exec in pod %d of %d: %q, %v", i, count, got, err)
		}
		took("exec")
		if err := p.remove(); err != nil {
			t.Fatal(err)
		}
		took("gone")
	}
	tell(t, steps)
}

// tell reports how long steps took, and whether they took longer in the end.
func tell(t *testing.T, steps map[string][]time.Duration) {
	t.Helper()
	for _, step := range slices.Sorted(maps.Keys(steps)) {
		all := steps[step]
		sorted := slices.Sorted(slices.Values(all))
		r := ratio(all)
		t.Logf("%s: %d times, median %v, p95 %v, the last tenth took %.2f times as long as the first", step, len(all),
			median(all).Round(time.Millisecond), sorted[len(sorted)*95/100].Round(time.Millisecond), r)
		if len(all) >= timedCycles && r > slower {
			t.Errorf("%s became slower: %.2f times as long in the end", step, r)
		}
	}
}

// holds is what the processes of a pod hold at one time.
type holds struct {
	files, threads, pss, own map[string]int // by program; memory in KiB
	guest                    int            // memory that the guest's kernel cannot give back, KiB
	rooms                    int            // directories of states
}

func (p *calledPod) holds(t *testing.T) holds {
	t.Helper()
	time.Sleep(settled)
	h := holds{files: map[string]int{}, threads: map[string]int{}, pss: map[string]int{}, own: map[string]int{}, rooms: len(entries(t, env.run))}
	for pid, name := range p.processes() {
		h.files[name] += openFiles(pid)
		h.threads[name] += procNumber(pid, "status", "Threads")
		h.pss[name] += pssOf(pid)
		h.own[name] += ownOf(pid)
	}
	var unreclaimed, slab int
	out := husk(t, "shell", "k8s.io."+p.id[:24]+"-"+p.suffix(t), "sh", "-c",
		`awk '/^SUnreclaim/{s=$2} /^AnonPages/{a=$2} END{print s, a}' /proc/meminfo`).ok()
	if _, err := fmt.Sscan(out, &slab, &unreclaimed); err != nil {
		t.Fatalf("the guest says of its memory %q: %v", out, err)
	}
	h.guest = slab + unreclaimed
	return h
}

// suffix is what ends the name of the pod's state.
func (p *calledPod) suffix(t *testing.T) string {
	t.Helper()
	for _, e := range entries(t, env.run) {
		if s, found := strings.CutPrefix(e.Name(), "k8s.io."+p.id[:24]+"-"); found {
			return s
		}
	}
	t.Fatalf("pod %s has no state", p.id)
	return ""
}

// cycleContainers makes and removes containers in one pod, which must not grow by that.
func cycleContainers(t *testing.T, c *podCaller, count int) {
	p, err := c.pod()
	if err != nil {
		t.Fatal(err)
	}
	steps := map[string][]time.Duration{}
	cycle := func(i int) {
		t.Helper()
		began := time.Now()
		took := func(step string) {
			steps[step] = append(steps[step], time.Since(began))
			began = time.Now()
		}
		id, err := p.run(fmt.Sprintf("member-%d", i))
		if err != nil {
			t.Fatalf("container %d of %d: %v", i, count, err)
		}
		took("container ready")
		if got, err := c.exec(id, "echo here"); err != nil || got != "here\n" {
			t.Fatalf("exec in container %d of %d: %q, %v", i, count, got, err)
		}
		took("exec")
		if err := c.drop(id); err != nil {
			t.Fatal(err)
		}
		took("container gone")
	}
	const warmup = 3
	for i := range warmup {
		cycle(i)
	}
	clear(steps)
	before := p.holds(t)
	for i := range count {
		cycle(warmup + i)
	}
	tell(t, steps)
	if count >= timedCycles {
		time.Sleep(time.Minute) // how long an exec can be asked for after its end
	}
	notGrown(t, before, p.holds(t), count)
	if err := p.remove(); err != nil {
		t.Error(err)
	}
}

// notGrown compares what a pod holds after so many containers with what it held before.
func notGrown(t *testing.T, before, after holds, count int) {
	t.Helper()
	t.Logf("after %d containers %+v, before %+v", count, after, before)
	notMore := func(what string, before, after map[string]int, spare int) {
		for name, n := range after {
			if n > before[name]+spare {
				t.Errorf("%s has %d %s, and had %d before %d containers", name, n, what, before[name], count)
			}
		}
	}
	notMore("open files", before.files, after.files, 2)
	notMore("threads", before.threads, after.threads, 8) // of Go's scheduler, which keeps what it once needed
	delete(after.own, "qemu-system-x86_64")              // the guest's memory, and its code as QEMU has translated it
	notMore("KiB of its own", before.own, after.own, 3<<10)
	if after.guest > before.guest+8<<10 {
		t.Errorf("the guest holds %d KiB, and held %d before %d containers", after.guest, before.guest, count)
	}
	expect(t, "directories of states", after.rooms, before.rooms)
}

// podsAtOnce makes pods side by side, which must all answer, and removes them side by side.
func podsAtOnce(t *testing.T, c *podCaller, count int) {
	pods, ids := make([]*calledPod, count), make([]string, count)
	var mu sync.Mutex
	each := func(step string, do func(i int) error) {
		t.Helper()
		var all sync.WaitGroup
		var each []time.Duration
		began := time.Now()
		for i := range count {
			all.Go(func() {
				err := do(i)
				mu.Lock()
				defer mu.Unlock()
				each = append(each, time.Since(began))
				if err != nil {
					t.Errorf("%s of pod %d: %v", step, i, err)
				}
			})
		}
		all.Wait()
		t.Logf("%s of %d at once: median %v, last %v", step, count, median(each).Round(time.Millisecond), time.Since(began).Round(time.Millisecond))
	}
	each("ready", func(i int) (err error) {
		if pods[i], err = c.pod(); err == nil {
			ids[i], err = pods[i].run("main")
		}
		return err
	})
	each("exec", func(i int) error {
		if ids[i] == "" {
			return nil // was told above
		}
		got, err := c.exec(ids[i], "hostname; ip -o -4 addr show eth0")
		if err == nil && (!strings.HasPrefix(got, pods[i].config.Hostname+"\n") || !strings.Contains(got, "inet 10.93.")) {
			err = fmt.Errorf("it says %q", got)
		}
		return err
	})
	time.Sleep(settled)
	weigh(t, pods)
	each("gone", func(i int) error {
		if pods[i].id == "" {
			return nil
		}
		return pods[i].remove()
	})
	if count >= timedCycles { // containerd does not wait for long for a shim to end, and forgets it then
		until(t, "the last shim has ended", forgotten, func() bool { return processOf("containerd-shim-husk-v2", c.dir) == 0 })
	}
}

// weigh reports what pods use.
func weigh(t *testing.T, pods []*calledPod) {
	t.Helper()
	memory, before := map[string]int{}, map[int]int{}
	began := time.Now()
	for _, p := range pods {
		for pid, name := range p.processes() {
			memory[name] += pssOf(pid)
			before[pid] = ticks(pid)
		}
	}
	time.Sleep(settled)
	seconds, used, total := time.Since(began).Seconds(), 0, 0
	for pid, n := range before {
		used += ticks(pid) - n
	}
	for name, kib := range memory {
		total += kib
		t.Logf("%s: %.1f MiB for each of %d pods", name, float64(kib)/1024/float64(len(pods)), len(pods))
	}
	const tick = 10 // ms
	t.Logf("a pod of %d has %.1f MiB on the host and uses %.1f ms of a processor in a second", len(pods),
		float64(total)/1024/float64(len(pods)), float64(used*tick)/seconds/float64(len(pods)))
}

// ticks are what a process has used of processors, in hundredths of a second.
func ticks(pid int) int {
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	var user, system int
	if len(fields) > 12 {
		_, _ = fmt.Sscan(fields[11]+" "+fields[12], &user, &system)
	}
	return user + system
}

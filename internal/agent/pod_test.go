package agent_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	agentv1 "husk.dev/husk/api/agent/v1"
	"husk.dev/husk/internal/agent/agenttest"
	"husk.dev/husk/internal/testenv"
)

// TestPod makes a pod that no container holds, without a user namespace and with one.
func TestPod(t *testing.T) {
	testenv.NeedRoot(t)
	if _, err := exec.LookPath("crun"); err != nil {
		t.Skip("needs crun: ", err)
	}
	for _, c := range []struct {
		name  string
		users []*agentv1.IDMapping
	}{
		{"plain", nil}, {"user namespace", []*agentv1.IDMapping{{Outer: 200000, Length: 65536}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			guest := agenttest.Start(t, map[string]string{"root": busyboxRoot(t)})
			s := greet(t, guest)
			s.root = func() *agentv1.Rootfs {
				return &agentv1.Rootfs{Path: filepath.Join(agentv1.ShareDir, "root")}
			}
			testPod(t, s, guest.PID(), &agentv1.PodRequest{
				Id: "the-pod", Sysctls: map[string]string{"kernel.shmmni": "1234"}, Uids: c.users, Gids: c.users,
			})
		})
	}
}

// TestPodOfOne makes a pod whose user namespace has nobody but root.
func TestPodOfOne(t *testing.T) {
	testenv.NeedRoot(t)
	if _, err := exec.LookPath("crun"); err != nil {
		t.Skip("needs crun: ", err)
	}
	guest := agenttest.Start(t, map[string]string{})
	s := greet(t, guest)
	one := []*agentv1.IDMapping{{Outer: 200000, Length: 1}}
	_, err := s.MakePod(t.Context(), &agentv1.PodRequest{Id: "the-pod", Uids: one, Gids: one})
	if err != nil && strings.Contains(err.Error(), "drop capabilities: "+syscall.ENOTSUP.Error()) {
		t.Skip("the test has C code in it, unlike the agent of a guest: ", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	pids := holders(t, guest.PID())
	if len(pids) != 1 {
		t.Fatalf("the processes %v hold namespaces, want one", pids)
	}
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pids[0]))
	if err != nil || len(threads) == 0 {
		t.Fatalf("its threads are %v, %v", threads, err)
	}
	for _, thread := range threads {
		text, err := os.ReadFile(thread)
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"CapInh", "CapPrm", "CapEff", "CapAmb"} {
			if !strings.Contains(string(text), want+":\t0000000000000000\n") {
				t.Errorf("%s is not empty:\n%s", want, text)
			}
		}
	}
}

func testPod(t *testing.T, s *subject, agent int, r *agentv1.PodRequest) {
	_, err := s.MakePod(t.Context(), &agentv1.PodRequest{Id: "the-pod", Uids: []*agentv1.IDMapping{{Length: 1}}})
	wantCode(t, err, codes.InvalidArgument, "mappings")
	_, err = s.MakePod(t.Context(), &agentv1.PodRequest{Id: "the-pod", Sysctls: map[string]string{"kernel..": "1"}})
	wantCode(t, err, codes.InvalidArgument, "no name of a setting")
	if _, err := s.MakePod(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	_, err = s.MakePod(t.Context(), r)
	wantCode(t, err, codes.FailedPrecondition, "already")
	if before := len(holders(t, agent)); before != 0 && r.Uids == nil {
		t.Errorf("%d processes hold namespaces that nobody has asked for", before)
	}

	joined := func(kinds ...string) map[string]any {
		all := []any{map[string]any{"type": "mount"}}
		if r.Uids != nil {
			kinds = append(kinds, "user")
		}
		for _, kind := range kinds {
			all = append(all, map[string]any{"type": kind, "path": "husk:the-pod"})
		}
		linux := map[string]any{"namespaces": all}
		if r.Uids != nil {
			ids := []any{map[string]any{"containerID": 0, "hostID": 200000, "size": 65536}}
			linux["uidMappings"], linux["gidMappings"] = ids, ids
		}
		return map[string]any{"linux": linux, "hostname": ""}
	}
	run := func(script string, kinds ...string) string {
		p := s.open(t, false)
		id := s.create(t, config(process("sh", "-c", script), joined(kinds...)), p.stdio, true)
		if status := s.exit(t, id, ""); status != 0 {
			t.Errorf("status %d: %s", status, p.err.all(t))
		}
		return p.out.all(t)
	}
	const look = "cat /proc/sys/kernel/shmmni; ls -l /proc/self/ns | grep -o -e 'ipc:.*' -e 'uts:.*' -e 'pid:.*'"
	one, two := run(look, "pid", "ipc", "uts"), run(look, "pid", "ipc", "uts")
	if one != two || !strings.HasPrefix(one, "1234\n") || strings.Count(one, "\n") != 5 {
		t.Errorf("containers of a pod see %q and %q", one, two)
	}
	sleeper := s.sleeper(t, joined("pid", "ipc", "uts"))
	if got := run("ps -o args; kill -9 1; kill -TERM 1", "pid"); !strings.Contains(got, "sleep 1000") {
		t.Errorf("in the pod's PID namespace are %q", got)
	}
	pids := holders(t, agent)
	posture(t, pids)
	s.destroy(t, sleeper)
	if r.Uids == nil {
		kill(t, pids[0])
		if got := run("ps -o args", "pid"); !strings.Contains(got, "hold-namespaces") {
			t.Errorf("after the end of what held the pod's PID namespace there are %q", got)
		}
		if again := holders(t, agent); len(again) != 1 || again[0] == pids[0] {
			t.Errorf("after the end of process %d %v hold namespaces", pids[0], again)
		}
	}
}

// kill kills a process of another's and waits until that has taken its status, and some time to make use of it.
func kill(t *testing.T, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); syscall.Kill(pid, 0) == nil; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("process %d does not end", pid)
		}
	}
	time.Sleep(100 * time.Millisecond)
}

// holders are the processes of an agent that hold namespaces.
func holders(t *testing.T, agent int) (pids []int) {
	t.Helper()
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", agent))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range lists {
		text, err := os.ReadFile(name)
		if err != nil {
			continue // the thread has ended
		}
		for _, field := range strings.Fields(string(text)) {
			line, _ := os.ReadFile("/proc/" + field + "/cmdline")
			if pid, err := strconv.Atoi(field); err == nil && strings.Contains(string(line), "hold-namespaces") {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// posture looks at what a container that shares a PID namespace with the one holder could get hold of.
func posture(t *testing.T, pids []int) {
	t.Helper()
	if len(pids) != 1 {
		t.Fatalf("the processes %v hold namespaces, want one", pids)
	}
	dir := fmt.Sprintf("/proc/%d/", pids[0])
	text, err := os.ReadFile(dir + "status")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"CapPrm:\t0000000000000000\n", "CapEff:\t0000000000000000\n", "Groups:\t \n"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("its status lacks %q:\n%s", want, text)
		}
	}
	for _, line := range strings.Split(string(text), "\n") {
		if f := strings.Fields(line); len(f) == 5 && (f[0] == "Uid:" || f[0] == "Gid:") && f[1] != "65534" && f[1] != "265534" {
			t.Errorf("it is not nobody: %q", line)
		}
	}
	info, err := os.Stat(dir + "mem")
	if err != nil {
		t.Fatal(err)
	}
	if owner := info.Sys().(*syscall.Stat_t).Uid; owner == 65534 || owner == 265534 {
		t.Error("another process of its user can trace it") // proc(5): what cannot be traced is root's
	}
	if files, err := os.ReadDir(dir + "root/"); err != nil || len(files) > 0 {
		t.Errorf("its root has %v, %v", files, err)
	}
	links, _ := filepath.Glob(dir + "fd/*")
	for _, link := range links {
		file, err := os.Readlink(link)
		// Go's own, and what the test itself was given.
		theirs, _ := os.Readlink("/proc/self/fd/" + filepath.Base(link))
		if err == nil && !strings.HasSuffix(file, "/null") && !strings.HasPrefix(file, "anon_inode:") && file != theirs {
			t.Errorf("it has %s open as %s", file, filepath.Base(link))
		}
	}
}

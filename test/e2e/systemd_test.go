package e2e

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"husk.dev/husk/internal/testenv"
)

// newSystemd is a node as newNode makes it whose first process is systemd: p has podman's cgroup manager for it.
func newSystemd(t *testing.T) *node {
	t.Helper()
	for _, program := range []string{"podman", "conmon", "dockerd", "docker"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("%v (make setup installs it)", err)
		}
	}
	n := &node{t: t, dir: t.TempDir(), enter: []string{"--pid", "--cgroup"}}
	n.programs("systemd")
	n.pid = testenv.Systemd(t)
	// Scripts are where systemd has a unit, and not outside of all that it sees.
	n.before = "mkdir -p /sys/fs/cgroup/scripts; echo $$ >/sys/fs/cgroup/scripts/cgroup.procs; "
	if r := n.run("runc", fmt.Sprintf("tar -C %s -cf $D/demo.tar . && p import -q -c 'CMD [\"sh\"]' $D/demo.tar localhost/demo", env.rootfs)); r.code != 0 {
		t.Fatalf("import an image: %s", r.stderr)
	}
	return n
}

// TestSystemd has a real systemd make the control groups of containers: of podman's with runc and then with husk, and of husk's
// own with limits.
func TestSystemd(t *testing.T) {
	begin(t)
	n := newSystemd(t)
	t.Run("podman", func(t *testing.T) {
		inside := *n
		inside.t = t
		for _, l := range systemdPodman {
			inside.like(l.name, l.want, l.script)
		}
	})
	t.Run("docker", func(t *testing.T) {
		inside := *n
		inside.t = t
		inside.dockerPrograms("systemd")
		if r := inside.run("runc", "up && d import -c 'CMD [\"sh\"]' $D/demo.tar demo"); r.code != 0 {
			t.Fatalf("start docker: %s", r.stderr)
		}
		for _, l := range systemdDocker {
			inside.like(l.name, l.want, l.script)
		}
		inside.must("runc", "kill $(cat /run/docker-test.pid)")
	})
	t.Run("scope", func(t *testing.T) {
		inside := *n
		inside.t = t
		systemdScope(t, &inside)
	})
}

var systemdPodman = []line{
	{"scope", "machine.slice yes yes active\n0 gone", `id=$(p run -d --pids-limit=-1 --name $A $N demo sleep 1000); u=libpod-$id.scope
		show() { systemctl show --value -p $1 $u; }; echo $(show Slice) $(show Delegate) $(show MemoryAccounting) $(show ActiveState)
		g=$(show ControlGroup); grep -qx $(p inspect -f '{{.State.Pid}}' $A) /sys/fs/cgroup$g/cgroup.procs; echo $? $(p rm -f -t 0 $A >/dev/null
		i=0; while [ -e /sys/fs/cgroup$g ] && [ $((i+=1)) -lt 100 ]; do sleep 0.1; done; systemctl show --value -p LoadState $u | grep -qx not-found && [ ! -e /sys/fs/cgroup$g ] && echo gone)`},
	{"life", "hi 3\n7 7\nrunning\n0", `p run -d --pids-limit=-1 --name $A $N demo sh -c 'trap "exit 7" TERM; while :; do sleep 0.1; done' >/dev/null
		a=$(p exec $A echo hi); p exec $A sh -c 'exit 3'; echo $a $?; p stop $A >/dev/null; echo $(p wait $A) $(p inspect -f '{{.State.ExitCode}}' $A)
		p start $A >/dev/null; p inspect -f '{{.State.Status}}' $A; p rm -f -t 0 $A >/dev/null; systemctl list-units --all --no-legend 'libpod-*' | grep -vc conmon`},
}

var systemdDocker = []line{
	{"scope", "system.slice yes yes active\n0 gone\n3", `id=$(d run -d --name $A demo sleep 1000); u=docker-$id.scope
		show() { systemctl show --value -p $1 $u; }; echo $(show Slice) $(show Delegate) $(show MemoryAccounting) $(show ActiveState)
		g=$(show ControlGroup); grep -qx $(d inspect -f '{{.State.Pid}}' $A) /sys/fs/cgroup$g/cgroup.procs; echo $? $(d rm -f $A >/dev/null
		i=0; while [ -e /sys/fs/cgroup$g ] && [ $((i+=1)) -lt 100 ]; do sleep 0.1; done; [ ! -e /sys/fs/cgroup$g ] && echo gone); d run --rm demo sh -c 'exit 3'; echo $?`},
}

// systemdScope checks what husk tells systemd of a container, how that changes, and what is left of it.
func systemdScope(t *testing.T, n *node) {
	b := newBundle(t, "exec sleep 1000")
	shares, quota, period, pids := uint64(512), int64(50_000), uint64(100_000), int64(700)
	b.spec.Linux.CgroupsPath = "husk-test.slice:vm:one"
	b.spec.Linux.Resources = &specs.LinuxResources{
		CPU: &specs.LinuxCPU{Shares: &shares, Quota: &quota, Period: &period}, Pids: &specs.LinuxPids{Limit: &pids},
	}
	dir := b.write()
	// The kernel of a machine that has version 1 too gives version 2 no controllers: of systemd's properties none is more than that.
	show := func(script string) string {
		return n.must("husk", script+"; systemctl show -p ActiveState,Slice,CPUWeight,CPUQuotaPerSecUSec,TasksMax vm-one.scope | sort | tr '\\n' ' '")
	}
	create := "husk --systemd-cgroup create --bundle " + dir + " scoped </dev/null >/dev/null 2>&1"
	inGroup := func() string {
		return n.must("husk", `for p in $(cat /sys/fs/cgroup/husk.slice/husk-test.slice/vm-one.scope/cgroup.procs); do tr '\0' ' ' </proc/$p/cmdline | cut -d ' ' -f 1; done | sort | tr '\n' ' '`)
	}
	expect(t, "properties", show(create), "ActiveState=active CPUQuotaPerSecUSec=500ms CPUWeight=20 Slice=husk-test.slice TasksMax=700")
	if names := inGroup(); strings.Count(names, "husk") != 2 || !strings.Contains(names, "qemu") || !strings.Contains(names, "virtiofsd") {
		t.Errorf("processes in the scope: %s", names)
	}
	expect(t, "properties after an update", show("husk update --cpu-shares 1024 --cpu-quota -1 --pids-limit 800 scoped"),
		"ActiveState=active CPUQuotaPerSecUSec=infinity CPUWeight=39 Slice=husk-test.slice TasksMax=800")
	gone := "husk delete --force scoped; systemctl is-active vm-one.scope || [ ! -e /sys/fs/cgroup/husk.slice/husk-test.slice/vm-one.scope ]"
	expect(t, "after delete", n.must("husk", gone), "inactive")
	// A second one of the same name, whose owner is killed, and a third while there is no bus.
	n.must("husk", create)
	n.must("husk", fmt.Sprintf("kill -9 %d", record(t, "scoped").Owner.PID))
	expect(t, "after its owner was killed", n.must("husk", gone), "inactive")
	n.must("husk", "systemctl stop dbus.socket dbus.service; rm -f /run/dbus/system_bus_socket")
	expect(t, "without a bus", n.must("husk", create+"; systemctl is-active vm-one.scope; "+gone), "active\ninactive")
	n.must("husk", "systemctl start dbus.socket dbus.service")
	b.spec.Linux.CgroupsPath = ""
	b.write()
	expect(t, "without a path", n.must("husk", create+"; systemctl is-active husk-scoped.scope; husk delete --force scoped"), "active")
	for _, path := range []string{"/docker/x", "no-slice:a:b", "a.slice:b:../c"} {
		b.spec.Linux.CgroupsPath = path
		b.write()
		n.refuses("husk --systemd-cgroup create --bundle "+dir+" scoped </dev/null", "systemd")
	}
}

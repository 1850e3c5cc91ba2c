package e2e

import (
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// facts is a script that prints what the process' configuration has made of it, one fact a line. It leaves
// out what the kernel decides: /dev/core is there where it has a /proc/kcore.
const facts = `grep -E '^(Cap|NoNewPrivs|Seccomp:|Groups|Uid|Gid|Umask)' /proc/self/status | tr '\t' ' ' | sed 's/ *$//'
for l in c d f l n s t; do echo "limit $l $(ulimit -S$l) $(ulimit -H$l)"; done
echo "id $(id -u) $(id -g) $(id -G)"; echo "pwd $(pwd)"; echo "hostname $(hostname)"; env | grep -v '^_=' | sort
echo "oom $(cat /proc/self/oom_score_adj)"; echo "msgmax $(cat /proc/sys/kernel/msgmax)"; echo "pid $$"
ls /proc/self/fd | wc -l; readlink /proc/self/fd/0 | cut -d: -f1; cat /proc/self/comm
grep -c . /proc/self/mounts >/dev/null; mkdir /tmp/x 2>&1; chmod 4755 /tmp 2>&1; kill -0 1 && echo kill-0
awk '{ print $2, $3 }' /proc/self/mounts | sort | grep -v -e virtiofs -e ext4 -e overlay -e /proc/ -e cgroup -e /sys/firmware
for f in /proc/kcore /proc/keys /proc/timer_list; do echo "$f $(cat $f 2>/dev/null | wc -c)"; done
sh -c "echo x >/proc/sys/kernel/hostname" 2>&1 | sed "s/.*: //"
ls /dev | sort | grep -v core | tr '\n' ' '; echo; stat -c '%n %F %t:%T %a' /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty /dev/ptmx
stat -c '%n %a %u %g' /dev/shm /dev/pts /dev/mqueue; readlink /dev/fd /dev/stdin /dev/stdout /dev/stderr`

// TestProcessLikeRunc runs the same configurations with husk and with runc, and compares what the process
// sees line by line.
func TestProcessLikeRunc(t *testing.T) {
	begin(t)
	for name, change := range map[string]func(*specs.Spec){
		"as spec writes it": func(*specs.Spec) {},
		"a user": func(s *specs.Spec) {
			umask := uint32(0o027)
			s.Process.User = specs.User{UID: 1000, GID: 1001, AdditionalGids: []uint32{5, 7}, Umask: &umask}
			s.Process.Cwd = "/etc"
			s.Process.Env = append(s.Process.Env, "A=with space", "B=ünïcode", "C=")
			s.Hostname = "named"
		},
		"privileges": func(s *specs.Spec) {
			caps := []string{"CAP_CHOWN", "CAP_NET_RAW", "CAP_SYS_ADMIN", "CAP_SETPCAP"}
			s.Process.Capabilities = &specs.LinuxCapabilities{
				Bounding: caps, Effective: caps[:3], Permitted: caps, Inheritable: caps[:2], Ambient: caps[:1],
			}
			s.Process.NoNewPrivileges = false
			s.Process.User = specs.User{UID: 33, GID: 33}
		},
		"limits": func(s *specs.Spec) {
			adj := 500
			s.Process.OOMScoreAdj = &adj
			s.Process.Rlimits = []specs.POSIXRlimit{
				{Type: "RLIMIT_NOFILE", Soft: 123, Hard: 456}, {Type: "RLIMIT_CORE", Soft: 0, Hard: 0},
				{Type: "RLIMIT_FSIZE", Soft: 1 << 30, Hard: 1 << 40}, {Type: "RLIMIT_STACK", Soft: 4 << 20, Hard: 1 << 30},
				{Type: "RLIMIT_CPU", Soft: 600, Hard: 900}, {Type: "RLIMIT_MEMLOCK", Soft: 65536, Hard: 65536},
				{Type: "RLIMIT_DATA", Soft: 1 << 33, Hard: 1 << 34},
			}
			s.Linux.Sysctl = map[string]string{"kernel.msgmax": "4096", "net.ipv4.ip_forward": "1"}
		},
		"seccomp": func(s *specs.Spec) {
			errno := uint(1)
			s.Linux.Seccomp = &specs.LinuxSeccomp{
				DefaultAction: specs.ActAllow, Architectures: []specs.Arch{specs.ArchX86_64, specs.ArchAARCH64},
				Syscalls: []specs.LinuxSyscall{{Names: []string{"mkdir", "mkdirat", "chmod", "fchmodat"}, Action: specs.ActErrno, ErrnoRet: &errno}},
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBundle(t, facts)
			b.spec.Process.Rlimits = []specs.POSIXRlimit{ // what is not set differs from host to host
				{Type: "RLIMIT_NOFILE", Soft: 1024, Hard: 1024}, {Type: "RLIMIT_CORE", Soft: 0, Hard: 0}, {Type: "RLIMIT_MEMLOCK", Soft: 65536, Hard: 65536},
			}
			// runc says HOME=/ for a user that the root does not know, the guest's runner says nothing.
			b.spec.Process.Env = append(b.spec.Process.Env, "HOME=/home")
			change(&b.spec)
			theirs := b.runc()
			ours := b.run()
			expect(t, "exit code", ours.code, theirs.code)
			if theirs.code != 0 && theirs.stdout == "" {
				t.Fatalf("runc failed: %s", theirs.stderr)
			}
			compare(t, ours.stdout, theirs.stdout)
			compare(t, ours.stderr, theirs.stderr)
		})
	}
}

// compare tells where two texts of lines differ.
func compare(t *testing.T, ours, theirs string) {
	t.Helper()
	a, b := strings.Split(ours, "\n"), strings.Split(theirs, "\n")
	for i := range max(len(a), len(b)) {
		var x, y string
		if i < len(a) {
			x = a[i]
		}
		if i < len(b) {
			y = b[i]
		}
		if x != y {
			t.Errorf("line %d: husk %q, runc %q", i+1, x, y)
		}
	}
}

// TestSeccompKills: a call that the filter kills for ends the process with SIGSYS.
func TestSeccompKills(t *testing.T) {
	begin(t)
	b := newBundle(t, "mkdir /tmp/x; echo code $?")
	b.spec.Linux.Seccomp = &specs.LinuxSeccomp{
		DefaultAction: specs.ActAllow,
		Syscalls:      []specs.LinuxSyscall{{Names: []string{"mkdir", "mkdirat"}, Action: specs.ActKillProcess}},
	}
	expect(t, "output", b.run().stdout, "code 159\n")
}

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
)

// ordinary is the id of the user of the tests without root, which exists in their mount namespace alone.
const ordinary = 61234

// newOrdinary starts a node whose scripts run as an ordinary user with subordinate ids. In them husk is found in PATH,
// p is podman, and $D is the user's home.
func newOrdinary(t *testing.T) *node {
	t.Helper()
	for _, program := range []string{"podman", "conmon", "newuidmap", "newgidmap", "setpriv", "slirp4netns"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("%v (make setup installs it)", err)
		}
	}
	dir, err := os.MkdirTemp("", "husk-ordinary-") // t.TempDir is closed to others
	if err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, dir: dir}
	etc := map[string]string{"passwd": fmt.Sprintf("husk:x:%d:%[1]d::%s:/bin/sh\n", ordinary, dir), "group": fmt.Sprintf("husk:x:%d:\n", ordinary),
		"subuid": "husk:700000:65536\n", "subgid": "husk:700000:65536\n"}
	for name, text := range etc {
		if name == "passwd" || name == "group" {
			text = content(t, "/etc/"+name) + text
		}
		if err := os.WriteFile(filepath.Join(dir, "etc-"+name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{
		"p":               "#!/bin/sh\nexec podman --storage-driver vfs --cgroup-manager cgroupfs --events-backend none --runtime $RUNTIME \"$@\"\n",
		"husk":            "#!/bin/sh\nexec /run/husk-build/bin/husk --config " + dir + "/husk.toml \"$@\"\n",
		"husk.toml":       "template = \"ready\"\n", // nothing is built in the background that would be in the way of the end
		"containers.conf": "[containers]\nlog_driver = \"k8s-file\"\ndefault_ulimits = [\"nofile=512:512\", \"nproc=512:512\"]\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command("sh", "-ec", fmt.Sprintf("cp -a %s %s/demo; chmod -R u+rwX %[2]s/demo; tar -C %[2]s/demo -cf %[2]s/demo.tar .; chown -R %d:%[3]d %[2]s; chmod 755 %[2]s",
		env.rootfs, dir, ordinary)).CombinedOutput(); err != nil {
		t.Fatalf("make a home: %v: %s", err, out)
	}
	cmd := exec.Command("unshare", "--net", "--mount", "--ipc", "--uts", "--propagation", "private", "sh", "-ec", fmt.Sprintf(
		`mount -t tmpfs -o mode=755 tmpfs /run; mkdir -p /run/lock /run/user/%[1]d /run/husk-build
		mount --bind %[2]s /run/husk-build; for f in passwd group subuid subgid; do touch /etc/$f; mount --bind %[3]s/etc-$f /etc/$f; done
		mknod -m 666 /run/tun c 10 200; mount --bind /run/tun /dev/net/tun
		chown %[1]d:%[1]d /run/user/%[1]d; chmod 700 /run/user/%[1]d; mount --make-rshared /; ip link set lo up; echo ready; exec sleep 1000`,
		ordinary, filepath.Dir(filepath.Dir(env.binary)), dir))
	begun(t, cmd).prints("ready")
	n.pid = cmd.Process.Pid
	n.as = []string{"setpriv", "--reuid", fmt.Sprint(ordinary), "--regid", fmt.Sprint(ordinary), "--clear-groups", "env",
		"HOME=" + dir, fmt.Sprintf("XDG_RUNTIME_DIR=/run/user/%d", ordinary), "PATH=" + dir + ":/run/husk-build/bin:" + os.Getenv("PATH")}
	t.Cleanup(func() {
		n.t = t
		// podman's pause process, and files of subordinate ids.
		n.run("runc", "kill $(cat $XDG_RUNTIME_DIR/libpod/tmp/pause.pid)")
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return n
}

// TestRootless runs containers as an ordinary user: husk alone, and podman on runc and on husk.
func TestRootless(t *testing.T) {
	begin(t)
	n := newOrdinary(t)
	t.Run("husk", func(t *testing.T) {
		inside := *n
		inside.t = t
		script := `exec 2>&1; husk import --cmd sh $D/demo demo >/dev/null || exit; husk template build >/dev/null 2>&1 || echo no template
			husk run --rm --network none -e H=$(uname -r) demo sh -c 'id -u; [ $(uname -r) = $H ] || echo 1; exit 3'; echo $?
			husk run -d --name a --network none -v $D/demo:/v:ro demo sh -c 'trap "exit 5" TERM; while :; do sleep 0.1; done'; husk exec a sh -c 'ls -d /v/bin; touch /v/x 2>/dev/null || echo read-only'
			echo file >$D/f; husk cp $D/f a:/f; husk cp a:/f $D/g; husk cp -a a:/f $D/h; cat $D/h; stat -c %u $D/g; husk exec a stat -c %u /f
			husk state a | grep -c running; husk stop --time -1 a; husk inspect --format '{{.State.ExitCode}}' a
			husk run -di --name b --network none demo sh -c 'read -r l; echo got $l; exit 4'; echo hi | husk attach b; echo $?; husk logs -f b; husk ps -q -f exited=4
			husk prune --force | grep -v freed; husk ps -aq; ls $XDG_RUNTIME_DIR/husk | grep -v turns`
		want := "0\n1\n3\na\n/v/bin\nread-only\nfile\n61234\n0\n1\na\n5\nb\ngot hi\n4\ngot hi\nb\ncontainer: a\ncontainer: b\n"
		got := inside.run("husk", script).stdout
		// What the user may do with the host's KVM is no matter of this test; that it is told is.
		expect(t, "output", regexp.MustCompile(`husk: warning: the VM is emulated.*/dev/kvm.*\n`).ReplaceAllString(got, ""), want)
	})
	t.Run("podman", func(t *testing.T) {
		inside := *n
		inside.t = t
		if r := inside.run("runc", "p import -q -c 'CMD [\"sh\"]' $D/demo.tar localhost/demo"); r.code != 0 {
			t.Skipf("podman cannot work without root on this machine: %s", r.stderr)
		}
		for _, l := range podmanRootless {
			inside.like(l.name, l.want, l.script)
		}
	})
	t.Run("refused", func(t *testing.T) {
		inside := *n
		inside.t = t
		inside.refuses("p run --rm --network host demo true", "host's network")
		inside.refuses("env PATH=/run/husk-build/bin husk run --rm demo true", "uidmap")
	})
}

var podmanRootless = []line{
	{"run", "0 3 126 127\nuid=1000\\(1000\\) gid=2000\\(2000\\) groups=2000\\(2000\\)\nhi\nnew", `p run --rm $N demo true; a=$?; p run --rm $N demo sh -c 'exit 3'; b=$?
		p run --rm $N demo /etc/passwd; c=$?; p run --rm $N demo no-such; echo $a $b $c $?; p run --rm $N --user 1000:2000 demo id
		mkdir -p v; echo hi >v/f; p run --rm $N -v $D/v:/v demo sh -c 'cat /v/f; echo new >/v/new; chown 5:6 /v/new'; cat v/new; p unshare rm -r v`},
	{"life", "hi 4\nin\nready\n5 5", `p run -d --name $A $N demo sh -c 'trap "exit 5" TERM; echo ready; while :; do sleep 0.1; done' >/dev/null
		a=$(p exec $A echo hi); p exec $A sh -c 'exit 4'; echo $a $?; echo in | p exec -i $A cat; p logs $A; p stop $A >/dev/null
		echo $(p wait $A) $(p inspect -f '{{.State.ExitCode}}' $A); p rm $A >/dev/null`},
	// What a container sends goes through slirp4netns to the node's loopback; what comes from there goes to its port.
	{"slirp4netns", "tap0 10.0.2.100/24 10.0.2.2 web\nweb", `mkdir -p w; echo web >w/i; busybox httpd -f -p 127.0.0.1:8090 -h $D/w >/dev/null 2>&1 & h=$!
		p run --rm --network slirp4netns:allow_host_loopback=true demo sh -c 'echo $(ls /sys/class/net | grep -v lo) $(ip -4 -o addr show dev tap0 | sed "s/.*inet \([^ ]*\).*/\1/") \
			$(ip route | sed -n "s/default via \([^ ]*\).*/\1/p") $(wget -qO- http://10.0.2.2:8090/i)'
		p run -d --name $A --network slirp4netns:port_handler=slirp4netns -p 8091:80 demo sh -c 'mkdir /w; echo web >/w/index.html; exec httpd -f -p 80 -h /w' >/dev/null
		get() { printf 'GET / HTTP/1.0\r\n\r\n' | busybox nc -w 5 127.0.0.1 8091 | tail -n1; }; i=0; until [ "$(get 2>/dev/null)" = web ] || [ $((i+=1)) = 50 ]; do sleep 0.2; done; get
		p rm -f -t 0 $A >/dev/null; kill $h`},
}

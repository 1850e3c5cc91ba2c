package e2e

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// line is one script that must do the same with runc and with husk.
type line struct{ name, want, script string }

// TestPodman runs containers with podman on runc, and then on husk, which must not differ.
func TestPodman(t *testing.T) {
	begin(t)
	n := newNode(t)
	defer noCgroups(t)()
	for _, part := range []struct {
		name  string
		lines []line
	}{{"run", podmanRun}, {"life", podmanLife}, {"network", podmanNetwork}, {"pods", podmanPods}, {"devices", podmanDevices}} {
		t.Run(part.name, func(t *testing.T) {
			inside := *n
			inside.t = t
			for _, l := range part.lines {
				inside.like(l.name, l.want, l.script)
			}
		})
		n.run("runc", "p rm -t 0 -f -a") // those of a part that failed
	}
	t.Run("host", func(t *testing.T) { podmanHost(t, n) })
	t.Run("refused", func(t *testing.T) {
		inside := *n
		inside.t = t
		inside.refuses("p run --rm --network host demo true", "host's network")
		inside.refuses("p run --rm $N --device $(losetup -f) demo true", "/dev/loop", "no medium")
		inside.refuses("p run -d --name a $N demo sleep 1000 >/dev/null; p run --rm --pid container:a demo true; c=$?; p rm -f -t 0 a >/dev/null; exit $c", "one network")
	})
	// Of podman 4.3.1 with runc the first two are false: it does not look where it has conmon make the file.
	expect(t, "out of memory", n.run("husk", outOfMemory("p", "$N")).stdout, wantOutOfMemory+"\n")
	expect(t, "containers left", n.run("husk", "p ps -aq").stdout, "")
}

var podmanRun = []line{
	{"exit codes", "0 3 126 127 125", `p run --rm $N demo true; a=$?; p run --rm $N demo sh -c 'exit 3'; b=$?
		p run --rm $N demo /etc/passwd; c=$?; p run --rm $N demo no-such; d=$?; p run --no-such demo; echo $a $b $c $d $?`},
	{"signals", "podman-init\n143 137", `p run --rm $N --init demo cat /proc/1/comm; p run -d --name $A $N --init demo sleep 1000 >/dev/null
		p stop $A >/dev/null; a=$(p wait $A); p start $A >/dev/null; p kill $A >/dev/null; echo $a $(p wait $A); p rm $A >/dev/null`},
	{"process", `uid=1000\(1000\) gid=2000\(2000\) groups=77,2000\(2000\)
/tmp b foo 100 200 5000 3072
tmpfs /t tmpfs rw,nosuid,nodev,relatime,size=1024k,mode=700(,inode64)? 0 0
CapBnd:	0000000000000001
NoNewPrivs:	1
Seccomp:	2
read-only /tmp/a`, `p run --rm $N --user 1000:2000 --group-add 77 --workdir /tmp --env A=b --hostname foo --ulimit nofile=100:200 --ulimit nproc=99 \
		--sysctl kernel.msgmax=5000 --shm-size 3m --cap-drop ALL --cap-add CHOWN --security-opt no-new-privileges \
		--tmpfs /t:size=1m,mode=700 --read-only demo sh -c 'id
		echo $PWD $A $(hostname) $(ulimit -n) $(ulimit -Hn) $(cat /proc/sys/kernel/msgmax) $(df -k /dev/shm | awk "END {print \$2}")
		grep " /t " /proc/mounts; grep -E "CapBnd|NoNewPrivs|Seccomp:" /proc/self/status
		touch /x 2>/dev/null || echo read-only $(touch /tmp/a && ls /tmp/a)'`},
	{"privileged", "Seccomp:\t0\nmounted", `p run --rm $N --privileged demo sh -c 'grep Seccomp: /proc/self/status; mount -t tmpfs x /mnt && echo mounted'`},
	{"volumes", "data\nread-only\nname\nsecret\nnew\n", `mkdir -p v r; echo data >r/f; echo secret >s; p secret create s-$(basename $RUNTIME) s >/dev/null
		p run --rm $N -v $D/r:/r:ro -v $D/v:/v -v name:/n --secret s-$(basename $RUNTIME) demo sh -c 'cat /r/f; touch /r/g 2>/dev/null || echo read-only
		echo new >/v/new; echo name >/n/f; cat /n/f /run/secrets/s-*'; cat v/new; rm -r v; p volume rm name >/dev/null`},
	{"limits", "2 137", `p run --rm $N --pids-limit 5 demo sh -c 'for i in 1 2 3 4 5 6 7 8; do sleep 1 & done 2>/dev/null; wait' 2>/dev/null; a=$?
		p run --rm $N --memory 64m --cpus 0.5 demo sh -c 'x=a; while :; do x=$x$x; done'; echo $a $?`},
	{"streams", "in\n2000000\n/dev/(pts/0|console) got yes", `echo in | p run --rm -i $N demo cat; p run --rm $N demo head -c 2000000 /dev/zero | wc -c
		echo yes | script -qec "p run --rm -it $N demo sh -c 'stty -echo; read a; echo \$(tty) got \$a'" /dev/null | tr -d '\r' | tail -1`},
}

var podmanLife = []line{
	{"exec", `hi 3 127 126
uid=5 gid=6 /tmp x
in
[^\n]*
[^\n]* got yes
made`, `p run -d --name $A $N --memory 200m --health-cmd 'test -e /tmp/ok' --health-interval disable demo \
		sh -c 'trap "echo bye; exit 7" TERM; trap "echo usr1" USR1; echo started; sleep 1000 & while :; do wait; done' >/dev/null
		a=$(p exec $A echo hi); p exec $A sh -c 'exit 3'; b=$?; p exec $A no-such; c=$?; p exec $A /etc/passwd; echo $a $b $c $?
		p exec -u 5:6 -w /tmp -e X=x $A sh -c 'echo $(id) $PWD $X'; echo in | p exec -i $A cat; p exec -d $A touch /tmp/made
		echo yes | script -qec "p exec -it $A sh -c 'stty -echo; read a; echo \$(tty) got \$a'" /dev/null | tr -d '\r' | tail -1
		sleep 0.5; p exec $A ls /tmp`},
	{"signals and pause", "running\nusr1\npaused\n255\nrunning", `p inspect -f '{{.State.Status}}' $A; p kill -s USR1 $A >/dev/null; sleep 1; p logs --tail 1 $A
		p pause $A >/dev/null; p inspect -f '{{.State.Status}}' $A; p exec $A true; echo $?; p unpause $A >/dev/null; p inspect -f '{{.State.Status}}' $A`},
	{"files", "copied\nout\nA /root/out\n[^\n]*saved out", `echo copied >in; p cp in $A:/husk-test-copied; sleep 1.5; p exec $A cat /husk-test-copied
		p exec $A sh -c 'echo out >/root/out; rm /husk-test-copied'; sleep 1.5; p cp $A:/root/out - | tar -xO; p diff $A | grep out
		p commit -q $A saved >/dev/null; echo $(echo saved; p run --rm $N saved cat /root/out); p rmi saved >/dev/null`},
	{"health, top, update", "1 0\nPID +COMMAND\n +1 sh -c [^\n]*\n[^\n]*sleep 1000\n0", `p healthcheck run $A >/dev/null; a=$?; p exec $A touch /tmp/ok; p healthcheck run $A; echo $a $?
		p top $A -o pid,args; p update --memory 300m $A >/dev/null; echo $?`},
	{"stop, start, restart", "exited 7 7\nstarted\nusr1\nbye\nout\nrunning\nnone", `p stop -t 20 $A >/dev/null; echo $(p inspect -f '{{.State.Status}} {{.State.ExitCode}}' $A) $(p wait $A); p logs $A
		p start $A >/dev/null; p exec $A cat /root/out; p restart -t 5 $A >/dev/null; p inspect -f '{{.State.Status}}' $A
		p rm -t 0 -f $A >/dev/null; p container exists $A || echo none`},
	{"attach", "abc\n0", `p create --name $A $N -i demo cat >/dev/null; echo abc | p start -ai $A; echo $?; p rm $A >/dev/null`},
}

var podmanNetwork = []line{
	{"bridge", "1.2.3.4 9.9.9.9 web web 80/tcp -> 0.0.0.0:8088 1 web", `p run -d --name $A -p 8088:80 demo sh -c 'mkdir /w; echo web >/w/index.html; exec httpd -f -p 80 -h /w' >/dev/null
		ip=$(p inspect -f '{{.NetworkSettings.IPAddress}}' $A); get() { printf 'GET / HTTP/1.0\r\n\r\n' | busybox nc -w 5 $1 $2 | tail -n1; }; i=0; until [ "$(get $ip 80 2>/dev/null)" = web ] || [ $((i+=1)) = 50 ]; do sleep 0.2; done
		b=$(p run --rm --add-host x:1.2.3.4 --dns 9.9.9.9 demo sh -c "echo \$(awk '/1.2.3.4/ {print \$1}' /etc/hosts) \$(awk '/nameserver/ {print \$2}' /etc/resolv.conf); ping -c1 $ip | grep -c '1 packets rec'; printf 'GET / HTTP/1.0\r\n\r\n' | nc -w 5 $ip 80 | tail -n1")
		set -- $b; echo $1 $2 $(get $ip 80) $(get $(ip -4 -o addr show podman0 | awk '{sub("/.*", "", $4); print $4}') 8088) $(p port $A) $3 $4; p rm -t 0 -f $A >/dev/null`},
	{"connect", "lo eth0\nlo eth0 eth1 10.44.0.5/24 1\nlo eth0", `p network create --subnet 10.44.0.0/24 --disable-dns n2 >/dev/null; p run -d --name $A demo sleep 1000 >/dev/null
		see() { i=0; until o=$(p exec $A sh -c 'echo lo $(ls /sys/class/net | grep eth) $(ip addr show dev eth1 2>/dev/null | sed -n "s/.*inet \([^ ]*\).*/\1/p")') && [ $(echo $o | wc -w) = $1 ] || [ $((i+=1)) = 50 ]; do sleep 0.2; done; echo $o; }
		see 2; p network connect --ip 10.44.0.5 n2 $A; o=$(see 4); echo $o $(busybox ping -c 1 -W 20 10.44.0.5 | grep -c '1 packets rec'); p network disconnect n2 $A; see 2
		p rm -t 0 -f $A >/dev/null; p network rm n2 >/dev/null`},
}

// podmanHost checks what the engine, and whoever looks at its host, sees of a container.
func podmanHost(t *testing.T, n *node) {
	inside := *n
	inside.t = t
	run := func(script string) string {
		t.Helper()
		r := inside.run("husk", script)
		if r.code != 0 {
			t.Fatalf("%q: exit code %d: %s", script, r.code, r.stderr)
		}
		return strings.TrimSpace(r.stdout)
	}
	run("p run -d --name a --tmpfs /t demo sleep 1000")
	defer run("p rm -t 0 -f a")
	pid := run("p inspect -f '{{.State.Pid}}' a")
	// What engines do in the namespaces of the pid must not reach the host's files.
	const stray = "/husk-test-stray"
	run("echo x >$D/x; p cp $D/x a:" + stray)
	if _, err := os.Stat(stray); err == nil {
		os.Remove(stray)
		t.Fatalf("podman cp wrote %s on the host", stray)
	}
	expect(t, "root of the pid", run("ls /proc/"+pid+"/root"+stray), "/proc/"+pid+"/root"+stray)
	if r := inside.run("husk", "p cp $D/x a:/t/x"); r.code == 0 || !strings.Contains(r.stderr, "read-only") {
		t.Errorf("copying to a tmpfs of the guest: exit code %d, %q", r.code, r.stderr)
	}
	if out := run("p top a"); strings.Contains(out, "\n") {
		t.Errorf("podman top shows the host's processes: %q", out)
	}
	expect(t, "interfaces of the pid's network", run("nsenter --net=/proc/"+pid+"/ns/net ip -o link | grep -c ': eth0'"), "1")
	// Its processes are in the control group that podman counts them in.
	cgroup := run("p inspect -f '{{.State.CgroupPath}}' a")
	if !strings.Contains(cgroup, "libpod-"+run("p inspect -f '{{.Id}}' a")) {
		t.Errorf("the control group is %q", cgroup)
	}
	dirs, _ := filepath.Glob("/sys/fs/cgroup/*" + cgroup)
	if whole, _ := filepath.Glob("/sys/fs/cgroup" + cgroup); len(whole) > 0 {
		dirs = append(dirs, whole...)
	}
	if len(dirs) == 0 {
		t.Errorf("no hierarchy has a group %s", cgroup)
	}
	for _, dir := range dirs {
		var names []string
		for _, p := range strings.Fields(content(t, filepath.Join(dir, "cgroup.procs"))) {
			names = append(names, strings.TrimSpace(content(t, "/proc/"+p+"/comm")))
		}
		if all := strings.Join(names, " "); !strings.Contains(all, "qemu") || !strings.Contains(all, "virtiofsd") || len(names) < 4 {
			t.Errorf("%s has %q", dir, all)
		}
	}
	if processes, err := strconv.Atoi(run("p stats --no-stream --format '{{.PIDs}}' a")); err != nil || processes < 4 {
		t.Errorf("podman stats counts %d processes: %v", processes, err)
	}
}

package e2e

import (
	"testing"
)

// TestDocker runs containers with Docker on runc, and then on husk, which must not differ.
func TestDocker(t *testing.T) {
	begin(t)
	n := newDocker(t)
	for _, part := range []struct {
		name  string
		lines []line
	}{{"run", dockerRun}, {"life", dockerLife}, {"network", dockerNetwork}, {"crash", dockerCrash}} {
		t.Run(part.name, func(t *testing.T) {
			inside := *n
			inside.t = t
			for _, l := range part.lines {
				inside.like(l.name, l.want, l.script)
			}
		})
		n.run("runc", "d ps -aq | xargs -r d rm -f") // those of a part that failed
	}
	t.Run("differs", func(t *testing.T) {
		inside := *n
		inside.t = t
		inside.refuses("l=$(losetup -f); d run --rm --privileged --device $l demo true; d run --rm --device $l demo true", "/dev/loop", "no medium")
		expect(t, "top", inside.run("husk", `d run -d --name $A demo sleep 1000 >/dev/null; d top $A | grep -c 'husk attend'; d rm -f $A >/dev/null`).stdout, "1\n")
	})
}

var dockerRun = []line{
	{"exit codes", "0 3 255 126 127 125", `d run --rm demo true; a=$?; d run --rm demo sh -c 'exit 3'; b=$?; d run --rm demo sh -c 'exit 255'; c=$?
		d run --rm demo /etc/passwd; e=$?; d run --rm demo no-such; f=$?; d run --no-such demo; echo $a $b $c $e $f $?`},
	{"signals", "143 137 137", `d run -d --name $A --init demo sleep 1000 >/dev/null; d stop $A >/dev/null; a=$(d wait $A); d start $A >/dev/null
		d kill $A >/dev/null; b=$(d wait $A); d rm $A >/dev/null
		d run -d --name $A demo sh -c 'trap "" TERM; while :; do sleep 0.1; done' >/dev/null; d stop -t 1 $A >/dev/null; echo $a $b $(d wait $A); d rm $A >/dev/null`},
	{"process", `uid=1000 gid=2000 groups=77,2000
/tmp b foo 100 200 5000 3072
tmpfs /t tmpfs rw,nosuid,nodev,noexec,relatime,size=1024k,mode=700 0 0
CapBnd:	0000000000000001
NoNewPrivs:	1
Seccomp:	2
read-only`, `d run --rm --user 1000:2000 --group-add 77 --workdir /tmp --env A=b --hostname foo --ulimit nofile=100:200 \
		--sysctl kernel.msgmax=5000 --shm-size 3m --cap-drop ALL --cap-add CHOWN --security-opt no-new-privileges \
		--tmpfs /t:size=1m,mode=700 --read-only demo sh -c 'id
		echo $PWD $A $(hostname) $(ulimit -n) $(ulimit -Hn) $(cat /proc/sys/kernel/msgmax) $(df -k /dev/shm | awk "END {print \$2}")
		grep " /t " /proc/mounts | sed s/,inode64//;  grep -E "CapBnd|NoNewPrivs|Seccomp:" /proc/self/status; touch /x 2>/dev/null || echo read-only'`},
	{"volumes", "data\nread-only\nname\nnew", `mkdir -p v r; echo data >r/f; d run --rm -v $D/r:/r:ro -v $D/v:/v -v name-$A:/n demo sh -c 'cat /r/f
		touch /r/g 2>/dev/null || echo read-only; echo new >/v/new; echo name >/n/f; cat /n/f'; cat v/new; rm -r v; d volume rm name-$A >/dev/null`},
	{"limits", "2 137", `d run --rm --pids-limit 5 demo sh -c 'for i in 1 2 3 4 5 6 7 8; do sleep 1 & done 2>/dev/null; wait' 2>/dev/null; a=$?
		d run --rm --memory 64m --cpus 1.5 demo sh -c 'x=a; while :; do x=$x$x; done'; echo $a $?`},
	{"out of memory", wantOutOfMemory, outOfMemory("d", "")},
	{"streams", "in\n2000000\n/dev/pts/0 got yes", `echo in | d run --rm -i demo cat; d run --rm demo head -c 2000000 /dev/zero | wc -c
		echo yes | script -qec "d run --rm -it demo sh -c 'stty -echo; read a; echo \$(tty) got \$a'" /dev/null | tr -d '\r' | tail -1`},
	{"restart", "2 7", `d run -d --name $A --restart on-failure:2 demo sh -c 'exit 7' >/dev/null; i=0
		until [ "$(d inspect -f '{{.RestartCount}} {{.State.Status}}' $A)" = '2 exited' ] || [ $((i+=1)) = 100 ]; do sleep 0.2; done
		d inspect -f '{{.RestartCount}} {{.State.ExitCode}}' $A; d rm -f $A >/dev/null`},
}

var dockerLife = []line{
	{"exec", `hi 3 0 255 126 126
uid=5 gid=6[^\n]* /tmp x
in
[^\n]* got yes
made`, `d run -d --name $A --memory 200m --health-cmd 'test -e /tmp/ok' --health-interval 1s demo \
		sh -c 'trap "echo bye; exit 7" TERM; trap "echo usr1" USR1; echo started; while :; do sleep 0.1; done' >/dev/null
		a=$(d exec $A echo hi); d exec $A sh -c 'exit 3'; b=$?; d exec $A true; c=$?; d exec $A sh -c 'exit 255'; e=$?
		d exec $A no-such >/dev/null; f=$?; d exec $A /etc/passwd >/dev/null; echo $a $b $c $e $f $?
		d exec -u 5:6 -w /tmp -e X=x $A sh -c 'echo $(id) $PWD $X'; echo in | d exec -i $A cat; d exec -d $A touch /tmp/made
		echo yes | script -qec "d exec -it $A sh -c 'stty -echo; read a; echo \$(tty) got \$a'" /dev/null | tr -d '\r' | tail -1
		sleep 0.5; d exec $A ls /tmp`},
	{"signals and pause", "usr1\npaused\nrunning\nhealthy", `d kill -s USR1 $A >/dev/null; sleep 1; d logs --tail 1 $A; d exec $A touch /tmp/ok
		d pause $A >/dev/null; d inspect -f '{{.State.Status}}' $A; d unpause $A >/dev/null; d inspect -f '{{.State.Status}}' $A; i=0
		until [ "$(d inspect -f '{{.State.Health.Status}}' $A)" = healthy ] || [ $((i+=1)) = 50 ]; do sleep 0.2; done; d inspect -f '{{.State.Health.Status}}' $A`},
	{"stats, update", "yes yes 0", `set -- $(d stats --no-stream --format '{{.PIDs}} {{.MemUsage}}' $A); [ $1 -gt 0 ] && echo -n 'yes '
		case $2 in 0B) ;; *B) echo -n 'yes ' ;; esac; d update --memory 150m --memory-swap 300m --cpus 1 --pids-limit 600 $A >/dev/null; echo $?`},
	{"files", "copied\nout\nA /root/out\nout", `echo copied >in; d cp in $A:/copied; sleep 1.2; d exec $A cat /copied; d exec $A sh -c 'echo out >/root/out'; sleep 1.2
		d cp $A:/root/out - | tar -xO; d diff $A | grep out; d commit $A saved-$A >/dev/null; d run --rm saved-$A cat /root/out; d rmi saved-$A >/dev/null`},
	{"stop, start, restart", "out\nexited 7 7\nbye\nstarted\nusr1\nrunning\ngone", `d restart -t 5 $A >/dev/null; d exec $A cat /root/out; d stop -t 20 $A >/dev/null
		echo $(d inspect -f '{{.State.Status}} {{.State.ExitCode}}' $A) $(d wait $A); d logs $A | sort -u; d rename $A $A-2; d start $A-2 >/dev/null
		d inspect -f '{{.State.Status}}' $A-2; d rm -f $A-2 >/dev/null; d inspect $A-2 >/dev/null 2>&1 || echo gone`},
	{"attach", "abc\n0", `d create --name $A -i demo cat >/dev/null; echo abc | d start -ai $A; echo $?; d rm $A >/dev/null`},
}

// Several containers on a network of their own find each other by name, as compose has it.
var dockerNetwork = []line{
	{"names and ports", "web 1 web web shared 1.2.3.4 9.9.9.9 1", `d network create net-$A >/dev/null
		d run -d --name web-$A --network net-$A --network-alias www -p 8088:80 demo sh -c 'mkdir /w; echo web >/w/index.html; exec httpd -f -p 80 -h /w' >/dev/null
		get() { printf 'GET / HTTP/1.0\r\n\r\n' | busybox nc -w 5 $1 $2 | tail -n1; }; i=0; until [ "$(get 127.0.0.1 8088 2>/dev/null)" = web ] || [ $((i+=1)) = 50 ]; do sleep 0.2; done
		a=$(get 127.0.0.1 8088); set -- $(d run --rm --network net-$A demo sh -c "ping -c1 web-$A | grep -c '1 packets rec'; wget -qO- http://web-$A/; wget -qO- http://www/")
		b=$(d run --rm --network container:web-$A demo sh -c 'wget -qO- http://127.0.0.1/ >/dev/null && echo shared')
		echo $a $1 $2 $3 $b $(d run --rm --add-host x:1.2.3.4 --dns 9.9.9.9 demo awk '/1.2.3.4/ || /nameserver/ {print /x/ ? $1 : $2}' /etc/hosts /etc/resolv.conf) $(d run --rm --network none demo ip -o link | wc -l)
		d rm -f web-$A >/dev/null; d network rm net-$A >/dev/null`},
}

// The daemon and its containerd are killed, and come back; the container runs on.
var dockerCrash = []line{
	{"live restore", "running yes same 5 gone", `d run -d --name $A demo sh -c 'trap "exit 5" TERM; while :; do sleep 0.1; done' >/dev/null; d exec $A touch /before
		kill -9 $(cat /run/docker-test.pid) $(cat /run/docker-test/containerd/containerd.pid); sleep 0.5; up
		a=$(d inspect -f '{{.State.Status}}' $A); d exec $A test -e /before && b=yes; c=$(d exec $A echo same); d stop $A >/dev/null; e=$(d wait $A)
		d rm $A >/dev/null; d inspect $A >/dev/null 2>&1 || echo $a $b $c $e gone`},
}

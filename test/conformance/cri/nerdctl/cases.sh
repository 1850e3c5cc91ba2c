# shellcheck shell=bash
# shellcheck disable=SC2154,SC2016 # variables of the script that sources this; text for shells inside
# The cases of conformance-nerdctl.sh, which sources this and sets label and work. What a case prints has to be the same with
# every runtime; it fails where a command of it does. Output whose order counts comes in one stream.

image=docker.io/library/busybox:latest

n() {
	timeout -k 5 60 "$HUSK_NERDCTL/bin/nerdctl" "$@"
}

# run FLAG... COMMAND... runs a container of the image; an @ stands for the image.
run() {
	create_or run "$@"
}

# create_or VERB FLAG... @ COMMAND...
create_or() {
	local verb=$1 arguments=() runtime=io.containerd.$label.v2
	shift
	while [ "$1" != @ ]; do arguments+=("$1") && shift; done
	shift
	n "$verb" --runtime "$runtime" "${arguments[@]}" "$image" "$@"
}

# start NAME FLAG... @ COMMAND... starts a container in the background.
start() {
	local name=$1
	shift
	run -d --name "$name" "$@" >/dev/null
}

# get is a command for shells inside, which prints what is at an address. busybox' own time limit ends with a fault.
get='timeout 20 wget -q -O -'

# limit V1 V2 is a command for shells inside, which prints a limit as the control groups of either version have it.
limit() {
	echo "cat /sys/fs/cgroup/$1 2>/dev/null || cut -d ' ' -f 1 \"/sys/fs/cgroup\$(sed -n s/^0:://p /proc/self/cgroup)/$2\""
}

# code COMMAND... prints what the command prints, and the code that it ends with.
code() {
	local status=0
	"$@" || status=$?
	echo "code $status"
}

# input COMMAND... is what the command prints, with an end that comes later: with runc nerdctl loses one that comes at once.
input() {
	sleep 2
	"$@"
	sleep 2
}

# in_terminal COMMAND... runs nerdctl's COMMAND with a terminal, and prints what comes out of it and the code.
in_terminal() {
	code timeout -k 5 60 script -qec "stty rows 33 cols 99; $HUSK_NERDCTL/bin/nerdctl $*" /dev/null | tr -d '\r' | sed 's/^^@//' | grep -v -e FATA -e ERRO
}

# errors COMMAND... prints what the command writes on its standard error, but for nerdctl's own log.
errors() {
	"$@" 3>&1 >/dev/null 2>&3 | grep -v ' level='
}

field() {
	n inspect --format "$2" "$1"
}

# becomes NAME FORMAT VALUE waits for a field of a container's.
becomes() {
	local end=$((SECONDS + 60))
	until [ "$(field "$1" "$2")" = "$3" ]; do
		[ $SECONDS -lt $end ] || { echo "$2 of $1 stays $(field "$1" "$2")" && return 1; }
		sleep 0.3
	done
}

# logged NAME TEXT waits for a line in a container's log.
logged() {
	local end=$((SECONDS + 60))
	until n logs "$1" 2>&1 | grep -q "$2"; do
		[ $SECONDS -lt $end ] || { echo "never logged: $2" && return 1; }
		sleep 0.3
	done
}

case_run() {
	run --rm @ echo hello
	code run --rm @ sh -c 'exit 7'
	code run --rm @ sh -c 'exit 200'
	run --rm @ sh -c 'echo out; echo err >&2' 2>/dev/null
	errors run --rm @ sh -c 'echo out; echo err >&2'
	input echo piped | run -i --rm @ cat
	input head -c 3000000 /dev/zero | run -i --rm @ wc -c
	run --rm @ head -c 3000000 /dev/zero | wc -c
	run --rm --entrypoint /bin/echo @ by the entrypoint
	run --rm -e A=1 -e 'B=two words' @ sh -c 'echo "$A $B"'
	run --rm -w /var/www @ pwd
	run --rm -w /made/for/it @ pwd
	n ps -aq
}

case_run_fails() {
	code run --rm @ /nonexistent 2>/dev/null
	code run --rm @ /etc/passwd 2>/dev/null
	code run --rm --user nobody-at-all @ true 2>/dev/null
	code run --rm --mount "type=bind,src=$work/absent,dst=/y" @ true 2>/dev/null
	code run --name twice @ true
	code run --name twice @ true 2>/dev/null
	n ps -a --format '{{.Names}} {{.Status}}' | sed 's/ [0-9A-Za-z]* seconds\{0,1\} ago//'
}

case_terminal() {
	in_terminal run --rm -it --runtime "io.containerd.$label.v2" $image "sh -c 'test -t 0 && tty && exit 5'"
	in_terminal run --rm -t --runtime "io.containerd.$label.v2" $image "sh -c 'test -t 1 && echo a terminal; echo \$TERM'"
	start life @ sleep 1000
	in_terminal exec -it life "sh -c 'test -t 0 && tty; exit 3'"
	(sleep 3 && printf 'echo $((20 + 1))x\nexit 4\n' && sleep 3) | in_terminal exec -it life sh | grep -e '^21x' -e ^code
	in_terminal exec -it life stty size
}

case_detached() {
	start life -l color=blue @ sh -c 'echo started; sleep 1000'
	logged life started
	field life '{{.State.Status}} {{.State.Running}} {{.State.ExitCode}}'
	n ps --format '{{.Names}} {{.Image}} {{.Command}} {{.Status}}'
	n ps -q --filter label=color=blue | wc -l
	n ps -q --filter label=color=red | wc -l
	n kill life >/dev/null
	code n wait life
	field life '{{.State.Status}} {{.State.Running}} {{.State.ExitCode}}'
	n start life >/dev/null
	field life '{{.State.Status}}'
	n rename life other
	n exec other echo in it
	n restart -t 1 other >/dev/null
	n exec other echo again
	code n rm other 2>/dev/null
	n rm -f other >/dev/null
	code n inspect other 2>/dev/null
}

case_created() {
	create_or create --name once @ sh -c 'echo ran; exit 6' >/dev/null
	field once '{{.State.Status}}'
	code n start -a once
	n logs once
	code n start -a once
	n logs once
	n rm once >/dev/null
}

case_attach() {
	start life -t @ sh -c 'while [ ! -e /go ]; do sleep 0.1; done; echo said; sleep 1; exit 9'
	(sleep 3 && n exec life touch /go) &
	in_terminal attach life | grep -e said -e code
	wait $!
	n wait life
}

case_exec() {
	start life -e FROM=run -w /var @ sleep 1000
	n exec life echo plain
	code n exec life sh -c 'exit 9'
	n exec -e MORE=exec life sh -c 'echo "$FROM $MORE"'
	n exec life pwd
	n exec -w /tmp life pwd
	n exec -u 33:33 life id
	n exec -u www-data life id
	n exec life id
	input echo piped | n exec -i life cat
	errors n exec life sh -c 'echo out; echo err >&2'
	n exec -d life sh -c 'echo kept >/tmp/kept'
	sleep 1
	n exec life cat /tmp/kept
	n exec --privileged life grep CapEff /proc/self/status | wc -l
	n exec life readlink /proc/1/exe
	code n exec life /nonexistent 2>/dev/null
	code n exec absent true 2>/dev/null
	input head -c 3000000 /dev/zero | n exec -i life wc -c
	n exec life head -c 3000000 /dev/zero | wc -c
}

case_logs() {
	start life @ sh -c 'for i in 1 2 3 4; do echo line $i; done; echo wrong >&2; sleep 1000'
	logged life wrong
	n logs life 2>/dev/null
	errors n logs life
	n logs -t life 2>/dev/null | sed 's/^[-0-9T:.]*Z /time /'
	(timeout 5 "$HUSK_NERDCTL/bin/nerdctl" logs -f life 2>/dev/null || :) | wc -l
	start big @ sh -c 'i=0; while [ $i -lt 5000 ]; do echo $i; i=$((i + 1)); done'
	n wait big
	sleep 1
	n logs big | sha256sum
	n logs --tail 2 big
	start journal --log-driver none @ echo nothing
	n wait journal
}

case_stop() {
	start trap @ sh -c 'trap "echo said; exit 5" TERM; echo ready; while :; do sleep 0.1; done'
	logged trap ready
	n stop trap
	n wait trap
	n logs trap
	start deaf @ sh -c 'trap "" TERM; echo ready; while :; do sleep 0.1; done'
	logged deaf ready
	n stop -t 2 deaf
	n wait deaf
	start usr1 --stop-signal USR1 @ sh -c 'trap "exit 11" USR1; echo ready; while :; do sleep 0.1; done'
	logged usr1 ready
	n stop usr1
	n wait usr1
	field usr1 '{{.State.Status}} {{.State.ExitCode}}'
	n stop usr1
}

case_kill() {
	start aa @ sh -c 'trap "exit 12" HUP; echo ready; while :; do sleep 0.1; done'
	logged aa ready
	n kill -s HUP aa >/dev/null
	n wait aa
	start bb @ sleep 1000
	n kill bb >/dev/null
	n wait bb
	start cc @ sleep 1000
	n kill -s WINCH cc >/dev/null
	n kill -s KILL cc >/dev/null
	n wait cc
	code n kill cc 2>/dev/null
}

case_pause() {
	start life @ sh -c 'i=0; while :; do i=$((i + 1)); echo $i >/count; sleep 0.1; done'
	sleep 1
	n pause life
	field life '{{.State.Status}}'
	n ps -a --format '{{.Names}} {{.Status}}'
	code n exec life true 2>/dev/null
	n unpause life
	field life '{{.State.Status}}'
	n exec life sh -c 'a=$(cat /count); sleep 2; [ "$(cat /count)" -gt "$a" ] && echo goes on'
	code n unpause life 2>/dev/null
	n pause life
	n rm -f life
}

case_stats() {
	start life --memory 64m @ sh -c 'dd if=/dev/zero of=/dev/null bs=1M count=200 2>/dev/null; echo done; sleep 1000'
	logged life "done"
	n stats --no-stream --format '{{.Name}} {{.MemUsage}} {{.PIDs}}' life | sed -E 's/ [0-9.]+[KM]iB/ N/; s/ 64MiB/ all/'
	n stats --no-stream --no-trunc life | tail -n 1 | grep -cE '[0-9.]+%.*MiB.*[0-9]'
}

case_top() {
	start life @ sleep 1000
	n top life | tail -n +2 | grep -c .
}

case_top_names() {
	start life @ sleep 1000
	n top life | tail -n +2 | grep -o 'sleep 100.'
}

case_inspect() {
	start life --hostname box -p 127.0.0.1:8090:80 -v "$work/files:/data:ro" -e A=b --memory 64m @ sleep 1000
	field life '{{.State.Status}} {{.State.Running}} {{.State.Paused}} {{.State.ExitCode}} {{.Path}} {{.Args}}'
	field life '{{.Config.Hostname}} {{range .Config.Env}}{{.}} {{end}}'
	field life '{{range .Mounts}}{{.Destination}} {{.RW}} {{end}}'
	field life '{{.HostConfig.Memory}}'
	n port life
	test -d "/proc/$(field life '{{.State.Pid}}')" && echo its process is there
	field life '{{.NetworkSettings.IPAddress}}' | grep -c '^10\.'
	n inspect --mode native life | grep -c '"Runtime"'
	n container prune -f
	n rm -f life
}

case_cp() {
	local files=$work/files
	start life --tmpfs /t -v "$files:/data" @ sh -c 'echo from inside >/inside; mkdir -p /dir/sub; echo a >/dir/a; echo b >/dir/sub/b; echo ready; sleep 1000'
	logged life ready
	n cp life:/inside "$files/got" && cat "$files/got"
	n cp life:/dir "$files/dir" && find "$files/dir" -type f | sort | xargs cat
	echo from outside >"$files/put"
	n cp "$files/put" life:/put
	n exec life cat /put
	n cp "$files/dir" life:/copied
	n exec life cat /copied/sub/b
	head -c 20000000 /dev/urandom >"$files/large"
	n cp "$files/large" life:/large
	[ "$(sha256sum <"$files/large")" = "$(n exec life sha256sum /large | sed 's/ .*/  -/')" ] && echo same
	n exec life sh -c 'echo x >/put; chmod 640 /put; chown 33:100 /put'
	n cp -a life:/put "$files/owned" && stat -c '%a' "$files/owned"
	code n cp life:/absent "$files/absent" 2>/dev/null
	n exec life sh -c 'echo shared >/data/shared'
	n cp life:/data/shared "$files/seen" && cat "$files/seen"
	n stop -t 1 life >/dev/null
	n cp life:/inside "$files/later" && cat "$files/later"
	n cp "$files/put" life:/put-later
	n start life >/dev/null
	n exec life cat /put-later
}

# A tmpfs, and what is mounted in the container.
case_cp_tmpfs() {
	local files=$work/files
	start life --tmpfs /t @ sh -c 'echo in memory >/t/file; echo ready; sleep 1000'
	logged life ready
	code n cp life:/t/file "$files/memory" 2>/dev/null
}

case_commit() {
	start life @ sh -c 'echo written >/written; rm /etc/group; echo ready; sleep 1000'
	logged life ready
	n commit -c 'CMD ["cat", "/written"]' -m note life "example.test/committed:$label" >/dev/null
	field life '{{.State.Status}}'
	n diff life | grep -e written -e group | sort
	local image=example.test/committed:$label
	run --rm @
	run --rm @ ls /etc
	n rmi -f "$image" >/dev/null
}

case_update() {
	start life --memory 64m --pids-limit 100 @ sleep 1000
	n update --memory 96m --cpus 0.5 --pids-limit 50 life >/dev/null
	field life '{{.HostConfig.Memory}}'
	n exec life sh -c "$(limit memory/memory.limit_in_bytes memory.max)"
	n exec life sh -c "$(limit pids/pids.max pids.max)"
	n exec life sh -c 'for i in $(seq 60); do sleep 5 & done 2>&1 | grep -c fork'
}

case_limits() {
	run --rm --memory 64m @ sh -c "$(limit memory/memory.limit_in_bytes memory.max)"
	run --rm --pids-limit 40 @ sh -c "$(limit pids/pids.max pids.max)"
	run --rm --cpus 0.5 @ sh -c "$(limit cpu/cpu.cfs_quota_us cpu.max)"
	code run --rm --memory 32m @ sh -c 'head -c 100000000 /dev/zero | tail'
	run --rm --ulimit nofile=1000:2000 @ sh -c 'ulimit -n; ulimit -Hn'
	run --rm --sysctl net.ipv4.ip_forward=1 @ cat /proc/sys/net/ipv4/ip_forward
	run --rm --oom-score-adj 200 @ cat /proc/self/oom_score_adj
	run --rm --shm-size 32m @ df -k /dev/shm | tail -n 1 | awk '{ print $2 }'
}

case_volumes() {
	local files=$work/files
	echo of the host >"$files/file"
	run --rm -v "$files:/data" @ sh -c 'cat /data/file; echo written >/data/new'
	cat "$files/new"
	run --rm -v "$files:/data:ro" @ sh -c 'cat /data/file; echo x >/data/no; echo $?' 2>/dev/null
	run --rm -v "$files/file:/etc/motd:ro" @ cat /etc/motd
	run --rm --mount "type=bind,src=$files,dst=/m,readonly" @ sh -c 'ls /m; touch /m/x; echo $?' 2>/dev/null
	n volume create "vol-$label" >/dev/null
	run --rm -v "vol-$label:/v" @ sh -c 'echo kept >/v/kept'
	run --rm -v "vol-$label:/v" @ cat /v/kept
	n volume rm "vol-$label" >/dev/null
	run --rm -v /anonymous @ sh -c 'echo x >/anonymous/x; cat /anonymous/x'
	start aa -v "$files:/data" @ sleep 1000
	run --rm --volumes-from aa @ cat /data/file
	echo seen later >"$files/later"
	n exec aa cat /data/later
}

case_filesystem() {
	run --rm --tmpfs /t:size=4m,mode=1777 @ sh -c 'df -k /t | tail -n 1 | awk "{ print \$1, \$2 }"; stat -c %a /t; touch /t/x; head -c 9000000 /dev/zero >/t/x; echo $?' 2>/dev/null
	run --rm --read-only @ sh -c 'touch /x; echo $?' 2>/dev/null
	run --rm --read-only --tmpfs /tmp @ sh -c 'touch /tmp/x && echo written'
	run --rm @ sh -c 'echo x >/x; mkdir /d; ln -s x /l; ln /x /h; chmod 4755 /x; stat -c "%a %h %F" /x /d /l'
	run --rm @ sh -c 'chown 1:2 /tmp; stat -c %u:%g /tmp; mknod /n p; stat -c %F /n'
	run --rm @ sh -c 'head -c 50000000 /dev/urandom >/big; a=$(sha256sum /big); sync; [ "$a" = "$(sha256sum /big)" ] && echo same'
	run --rm @ sh -c 'ls /dev | grep -v core | sort | tr "\n" " "'
	run --rm @ sh -c 'awk "{ print \$3, \$2 }" /proc/mounts | grep -v -e " /$" -e cgroup -e /etc/ -e /proc/ | sort'
}

case_users() {
	run --rm --user 1000:100 @ id
	run --rm --user www-data @ sh -c 'id; echo $HOME'
	run --rm --user 33 --group-add 500 @ id
	run --rm @ grep Cap /proc/self/status
	run --rm --cap-add NET_ADMIN --cap-drop CHOWN @ grep Cap /proc/self/status
	run --rm --cap-drop ALL @ grep Cap /proc/self/status
	run --rm --user 33 @ grep Cap /proc/self/status
	run --rm --security-opt no-new-privileges @ grep NoNewPrivs /proc/self/status
	run --rm @ grep Seccomp: /proc/self/status
	run --rm --security-opt seccomp=unconfined @ grep Seccomp: /proc/self/status
	run --rm --umask 077 @ sh -c 'umask'
	run --rm @ sh -c 'mount -t tmpfs x /mnt; echo $?' 2>/dev/null
	run --rm --privileged @ sh -c 'mkdir /m && mount -t tmpfs x /m && echo mounted'
}

case_names() {
	run --rm --hostname box @ sh -c 'hostname; cat /etc/hostname; grep -c "box" /etc/hosts'
	run --rm --add-host other:10.1.2.3 @ grep other /etc/hosts
	run --rm --dns 10.9.8.7 --dns-search example.test --dns-opt ndots:3 @ cat /etc/resolv.conf
	run --rm --name me @ sh -c 'hostname | wc -c'
}

case_network() {
	start web -p 127.0.0.1:8081:80 -p 8082:81/tcp @ sh -c 'mkdir /www; echo of web >/www/index.html; httpd -p 81 -h /www; echo ready; exec httpd -f -p 80 -h /www'
	logged web ready
	sleep 1
	wget -q -T 20 -O - http://127.0.0.1:8081/
	wget -q -T 20 -O - http://10.4.0.1:8082/
	n port web | sort
	n exec web ip -o -4 addr show eth0 | awk '{ print $3, $4 }' | sed 's/\.[0-9]*\//.N\//'
	n exec web ip route | sed 's/src .*//' | sort
	local address
	address=$(field web '{{.NetworkSettings.IPAddress}}')
	wget -q -T 20 -O - "http://$address/"
	run --rm @ sh -c "$get http://$address/"
	run --rm @ ping -c 1 -w 20 10.4.0.1 | grep -c '1 packets received'
	run --rm --ip 10.4.0.77 @ ip -o -4 addr show eth0 | awk '{ print $4 }'
	run --rm --mac-address 02:00:00:00:00:07 @ cat /sys/class/net/eth0/address
	run --rm --network none @ sh -c 'ls /sys/class/net'
	n exec web cat /sys/class/net/eth0/mtu
	n stop -t 1 web >/dev/null
	code wget -q -T 5 -t 1 -O - http://127.0.0.1:8081/ | grep -c 'code 0' || :
	n start web >/dev/null
	logged web ready
	sleep 1
	wget -q -T 20 -O - http://127.0.0.1:8081/
}

case_networks() {
	n network create --subnet 10.77.0.0/24 net-own >/dev/null
	n network create --subnet 10.78.0.0/24 net-two >/dev/null
	start web --net net-own @ sh -c 'mkdir /www; echo of web >/www/index.html; echo ready; exec httpd -f -p 80 -h /www'
	logged web ready
	start ask --net net-own @ sleep 1000
	n exec ask grep -cE '\sweb\b' /etc/hosts
	n exec ask sh -c "$get http://web/"
	n exec ask ip -o -4 addr show eth0 | awk '{ print $4 }' | sed 's/\.[0-9]*\//.N\//'
	start both --net net-own --net net-two @ sleep 1000
	n exec both sh -c 'ip -o -4 addr show | awk "{ print \$2, \$4 }"' | sed 's/\.[0-9]*\//.N\//' | sort
	n exec both sh -c "$get http://web/"
	run --rm --net net-two @ sh -c "$get http://10.77.0.2/ 2>/dev/null; echo \$?"
	n network inspect net-own --format '{{.Name}} {{(index .IPAM.Config 0).Subnet}}'
	code n network rm net-own 2>/dev/null
}

case_container_network() {
	start web @ sh -c 'mkdir /www; echo of web >/www/index.html; echo ready; exec httpd -f -p 80 -h /www'
	logged web ready
	code run --rm --net container:web @ sh -c "$get http://127.0.0.1/; exit 3"
	start side --net container:web @ sh -c 'sleep 1000'
	n exec side sh -c "$get http://127.0.0.1/"
	[ "$(n exec side cat /sys/class/net/eth0/address)" = "$(n exec web cat /sys/class/net/eth0/address)" ] && echo one interface
	n rm -f side >/dev/null
	n exec web echo goes on
	start late --net container:web @ sleep 1000
	n stop -t 1 web >/dev/null
	n wait web
	n exec late echo goes on too
	n rm -f web >/dev/null
	n exec late echo and on
	n stop -t 1 late >/dev/null
	n wait late
}

case_host_network() {
	code run --rm --net host @ sh -c 'hostname; ls /sys/class/net | grep -c nerdctl0' 2>/dev/null
}

case_namespaces() {
	start first @ sleep 1003
	code run --rm --net container:first --pid container:first @ sh -c 'ps | grep -c "sleep 100[3]"'
	start memory --ipc shareable @ sh -c 'echo shared >/dev/shm/file; echo ready; sleep 1000'
	logged memory ready
	code run --rm --net container:memory --ipc container:memory @ cat /dev/shm/file
	run --rm @ sh -c 'echo $$'
}

# Some namespaces of another container's, and a network of its own.
case_namespaces_apart() {
	start first @ sleep 1003
	code run --rm --pid container:first @ sh -c 'ps | grep -c "sleep 100[3]"' 2>/dev/null
}

case_restart() {
	start life --restart always @ sh -c 'echo ran; sleep 3; exit 1'
	local end=$((SECONDS + 90))
	until [ "$(n logs life | grep -c ran)" -ge 2 ]; do
		[ $SECONDS -lt $end ] || { echo "not restarted" && return 1; }
		sleep 1
	done
	echo restarted
	n update --restart no life >/dev/null
	start count --restart on-failure:1 @ sh -c 'echo ran; sleep 1; exit 3'
	sleep 35
	n logs count
	field count '{{.State.Status}} {{.State.ExitCode}} {{.RestartCount}}'
	n update --restart no count >/dev/null
}

case_health() {
	start life --health-cmd 'test -e /tmp/well' --health-retries 1 --health-interval 1h @ sh -c 'touch /tmp/well; sleep 1000'
	sleep 1
	code n container healthcheck life
	field life '{{.State.Health.Status}}'
	n exec life rm /tmp/well
	code n container healthcheck life 2>/dev/null
	field life '{{.State.Health.Status}}'
}

case_devices() {
	run --rm --device /dev/null:/dev/nothing @ sh -c 'test -c /dev/nothing && echo x >/dev/nothing && echo a device'
	code run --rm --device /nonexistent @ true 2>/dev/null
}

case_removed() {
	start life @ sh -c 'trap "" TERM; echo ready; while :; do sleep 0.1; done'
	logged life ready
	n rm -f life
	n ps -aq
	code n rm -f absent 2>/dev/null
}

# The shim is killed.
case_killed() {
	start life @ sleep 1000
	local init
	init=$(field life '{{.State.Pid}}')
	kill -KILL "$(pgrep -f "containerd-shim-[a-z]*-v2 -namespace $label -id $(n ps -q --no-trunc)" | head -n 1)"
	[ "$label" = husk ] || kill -KILL "$init" # husk's stands for one in the virtual machine, and ends with the shim
	sleep 3
	n rm -f life
	n ps -aq
	start life @ echo anew
	n wait life
}

case_five() {
	local i pids=() codes=''
	for i in 1 2 3 4 5; do
		(code run --rm --name "five$i" @ sh -c "echo of $i; exit $i" >"$work/files/$i" 2>"$work/files/$i.err") &
		pids+=($!)
	done
	wait "${pids[@]}"
	for i in 1 2 3 4 5; do
		cat "$work/files/$i.err" >&2
		codes+=" $(paste -sd' ' "$work/files/$i")"
	done
	echo "$codes"
	n ps -aq
}

# A runtime named by its program is called by runc's shim.
case_program() {
	local runtime=runc
	[ "$label" = runc ] || runtime=$top/build/bin/husk
	code n run --rm --runtime "$runtime" "$image" sh -c 'echo out; sleep 0.5; exit 7'
	n run -d --name life --runtime "$runtime" -p 127.0.0.1:8083:80 "$image" sh -c 'mkdir /www; echo of life >/www/index.html; echo ready; exec httpd -f -p 80 -h /www' >/dev/null
	logged life ready
	sleep 1
	n exec life hostname | wc -c
	wget -q -T 20 -O - http://127.0.0.1:8083/
	n stop -t 1 life
	n wait life
}

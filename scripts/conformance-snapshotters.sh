#!/bin/bash
# Runs containers and pods of containerd 2 with husk over each snapshotter whose snapshots are file systems in files
# (blockfile, erofs, with what is written in a directory and in an image), and over one whose are directories (native).
#   conformance-snapshotters.sh [SNAPSHOTTER...]
# containerd comes through Go's module proxy, checked against the go.sum below test/conformance/cri.
set -euo pipefail

top=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=scripts/cache.sh
. "$top/scripts/cache.sh"
go=$("$top/scripts/go.sh" --path)
here=$top/test/conformance/cri/containerd

say() {
	printf 'conformance-snapshotters: %s\n' "$*" >&2
}

# build_containerd DIR builds containerd and its client.
# shellcheck disable=SC2317 # cached calls it
build_containerd() {
	mkdir -p "$1/bin" || return
	(cd "$here" && CGO_ENABLED=0 "$go" build -o "$1/bin/" \
		github.com/containerd/containerd/v2/cmd/containerd github.com/containerd/containerd/v2/cmd/ctr)
}

# Outside: all that needs a network of the machine's. Inside: mounts and network are this script's own, and end with it.
if [ "${HUSK_CONFORMANCE_INSIDE:-}" != 1 ]; then
	[ "$(id -u)" = 0 ] || { say "needs root" && exit 1; }
	[ -x "$top/build/bin/husk" ] || { say "nothing built yet: make build image" && exit 1; }
	for program in busybox mkfs.erofs mkfs.ext4 losetup unshare; do
		command -v "$program" >/dev/null || { say "$program is missing: make setup" && exit 1; }
	done
	HUSK_SUITE=$(cached containerd "$({ cat "$here"/go.mod "$here"/go.sum && "$go" version; } | hash_of)" build_containerd)
	export HUSK_SUITE HUSK_CONFORMANCE_INSIDE=1
	exec unshare --net --mount --ipc --uts --propagation private "$0" "$@"
fi

work=$(mktemp -d "${TMPDIR:-/tmp}/snapshotters.XXXXXX")
loop='' containerd=''
# shellcheck disable=SC2317 # the trap calls it
finish() {
	stop_containerd
	[ -z "$loop" ] || losetup -d "$loop" || :
	rm -rf --one-file-system "$work"
}
trap finish EXIT

mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p "$work/data" /run/husk-conformance
printf 'data_dir = "%s"\nrun_dir = "/run/husk-conformance"\n' "$work/data" >"$work/husk.toml"
mount --make-rshared /
ip link set lo up
"$top/build/bin/husk" --config "$work/husk.toml" template build >/dev/null

# make_image prints nothing and writes an image of two layers, of which the second removes a file of the first.
make_image() (
	cd "$1"
	mkdir -p one/bin one/etc two/etc
	cp "$(command -v busybox)" one/bin/busybox
	for name in sh cat echo sleep true ls grep readlink dd stat sync touch head; do ln -s busybox "one/bin/$name"; done
	echo first >one/etc/first && echo gone >one/etc/gone
	echo second >two/etc/second && touch two/etc/.wh.gone
	tar -C one --owner=0 --group=0 -cf one.tar . && tar -C two --owner=0 --group=0 -cf two.tar .
	printf '{"architecture":"amd64","os":"linux","config":{"Env":["PATH=/bin"],"Cmd":["sh"]},"rootfs":{"type":"layers","diff_ids":["sha256:%s","sha256:%s"]}}' \
		"$(sha256sum <one.tar | cut -c -64)" "$(sha256sum <two.tar | cut -c -64)" >config.json
	echo '[{"Config":"config.json","RepoTags":["example.test/demo:1"],"Layers":["one.tar","two.tar"]}]' >manifest.json
	tar -cf image.tar manifest.json config.json one.tar two.tar
)

# start_containerd NAME starts a containerd with a state of its own. erofs-block is erofs with what is written in an image.
start_containerd() {
	local dir=$work/$1
	mkdir -p "$dir"
	truncate -s 64M "$dir/scratch" && mkfs.ext4 -q -F "$dir/scratch" # without it blockfile fails, and much with it
	cat >"$dir/config.toml" <<-TOML
		version = 3
		root = "$dir/root"
		state = "$dir/state"
		disabled_plugins = ["io.containerd.grpc.v1.cri"]
		[grpc]
		  address = "$dir/sock"
		[ttrpc]
		  address = "$dir/sock.ttrpc"
		[plugins.'io.containerd.snapshotter.v1.blockfile']
		  scratch_file = "$dir/scratch"
		  recreate_scratch = false
		[plugins.'io.containerd.service.v1.diff-service']
		  default = ["walking"]
	TOML
	[ "$1" != erofs-block ] || printf "[plugins.'io.containerd.snapshotter.v1.erofs']\n  default_size = \"64MiB\"\n" >>"$dir/config.toml"
	PATH=$top/build/bin:$HUSK_SUITE/bin:$PATH "$HUSK_SUITE/bin/containerd" --config "$dir/config.toml" >"$dir/log" 2>&1 &
	containerd=$!
	timeout 60 sh -c "until '$HUSK_SUITE/bin/ctr' -a '$dir/sock' version >/dev/null 2>&1; do sleep 0.1; done"
}

stop_containerd() {
	[ -z "$containerd" ] || { kill "$containerd" && wait "$containerd"; } || :
	containerd=
}

export CONTAINERD_NAMESPACE=snapshotters
snapshotter='' kind='' failed=0
ctr() {
	timeout 120 "$HUSK_SUITE/bin/ctr" -a "$work/$snapshotter/sock" "$@"
}

# run FLAG... ID COMMAND... runs a container.
run() {
	ctr run --runtime io.containerd.husk.v2 --runtime-config-path "$work/husk.toml" --snapshotter "$kind" "$@"
}

# in_pod FLAG... IMAGE ID COMMAND... adds a container to the pod p1.
in_pod() {
	run -d --annotation io.kubernetes.cri.container-type=container --annotation io.kubernetes.cri.sandbox-id=p1 "$@"
}

# exec_in ID COMMAND... runs a command in a container.
exec_in() {
	local id=$1
	shift
	ctr task exec --exec-id "x$RANDOM" "$id" "$@"
}

remove() {
	local id
	for id in "$@"; do
		ctr task rm -f "$id" >/dev/null 2>&1 || :
		ctr container rm "$id" >/dev/null || wrong "container $id stays"
	done
}

wrong() {
	say "$snapshotter: $*"
	failed=1
}

# expect WHAT WANT GOT
expect() {
	[ "$2" = "$3" ] || wrong "$1: got '$3', want '$2'"
}

# on_disks ID tells by the mount of its root whether a container's root is made of the guest's disks.
on_disks() {
	exec_in "$1" sh -c 'grep " / " /proc/mounts | head -n 1' | { read -r _ _ type _ && case $type in ext4 | overlay) echo yes ;; *) echo no ;; esac; }
}

# monitor prints the process id of the virtual machine of a container.
monitor() {
	pgrep -f "guest=$CONTAINERD_NAMESPACE.$1," | head -n 1
}

image=example.test/demo:1

single() {
	local status=0
	run --rm "$image" code sh -c 'cat /etc/first /etc/second; ls /etc/gone 2>/dev/null; exit 7' >"$work/out" || status=$?
	expect "what a container printed" "first second" "$(paste -sd' ' "$work/out")"
	expect "its exit code" 7 "$status"
	run -d "$image" life sleep 1000
	expect "a command in it" "in exec" "$(exec_in life echo in exec)"
	expect "whether its root is on disks" "$on_disk" "$(on_disks life)"
	exec_in life sh -c 'echo kept >/kept; echo changed >/etc/first; dd if=/dev/zero of=/big bs=64k count=64 2>/dev/null'
	ctr task kill -s KILL life
	timeout 30 sh -c "until '$HUSK_SUITE/bin/ctr' -a '$work/$snapshotter/sock' task ls | grep -q 'life.*STOPPED'; do sleep 0.1; done"
	ctr task rm life >/dev/null 2>&1 || :
	ctr task start -d life
	expect "what it wrote before it was started again" "kept changed 4194304" "$(exec_in life sh -c 'cat /kept /etc/first; stat -c %s /big' | paste -sd' ')"
	remove life
}

# A pod whose virtual machine has its disks plugged in, and later has no place for more.
pod() {
	local i ids=() qemu
	run -d --annotation io.kubernetes.cri.container-type=sandbox --annotation io.kubernetes.cri.sandbox-id=p1 "$image" p1 sleep 1000
	in_pod "$image" a sleep 1000
	in_pod "$image" b sleep 1000
	for i in p1 a b; do
		exec_in "$i" sh -c "cat /etc/second; echo $i >/own" >/dev/null
		expect "whether the root of $i is on disks" "$on_disk" "$(on_disks "$i")"
	done
	for i in p1 a b; do expect "the file of $i" "$i" "$(exec_in "$i" cat /own)"; done
	qemu=$(monitor p1)
	local before after
	before=$(find "/proc/$qemu/fd" -lname "$work/$snapshotter/root/*" | wc -l)
	remove a
	after=$(find "/proc/$qemu/fd" -lname "$work/$snapshotter/root/*" | wc -l)
	[ "$on_disk" = no ] || [ "$after" -lt "$before" ] || wrong "the monitor has $after files open, and had $before with one container more"
	for i in 1 2 3 4 5 6 7 8 9 10; do
		in_pod "$image" "n$i" sleep 1000 || wrong "container $i of ten was refused"
		ids+=("n$i")
	done
	for i in "${ids[@]}"; do
		expect "what $i reads and writes" "second $i" "$(exec_in "$i" sh -c "echo $i >/own; cat /etc/second /own" | paste -sd' ')"
	done
	say "$snapshotter: of ten more containers of a pod $(for i in "${ids[@]}"; do on_disks "$i"; done | grep -c yes || :) are on disks"
	remove "${ids[@]}" b p1
}

# The shim of a pod is killed, and all of it with it.
killed() {
	local qemu
	run -d --annotation io.kubernetes.cri.container-type=sandbox --annotation io.kubernetes.cri.sandbox-id=p1 "$image" p1 sleep 1000
	in_pod "$image" a sleep 1000
	qemu=$(monitor p1)
	kill -KILL "$(pgrep -f "containerd-shim-husk-v2.*-id p1 .*$work/$snapshotter/")"
	timeout 60 sh -c "while test -d /proc/$qemu; do sleep 0.1; done" || wrong "the virtual machine outlives its shim"
	timeout 60 sh -c "until [ -z \"\$('$HUSK_SUITE/bin/ctr' -a '$work/$snapshotter/sock' task ls -q)\" ]; do sleep 0.1; done" || wrong "containerd has tasks without a shim"
	remove a p1
}

# Block devices of the host: at the start, for a further container of a pod, and read-only.
devices() {
	local number
	truncate -s 8M "$work/volume"
	printf 'a volume' | dd of="$work/volume" conv=notrunc 2>/dev/null
	loop=$(losetup -f --show "$work/volume")
	expect "a block device" "a volume" "$(run --rm --device "$loop" "$image" dev head -c 8 "$loop")"
	run -d --annotation io.kubernetes.cri.container-type=sandbox --annotation io.kubernetes.cri.sandbox-id=p1 "$image" p1 sleep 1000
	in_pod --device "$loop" "$image" a sleep 1000
	expect "a block device of a pod" "a volume" "$(exec_in a head -c 8 "$loop")"
	exec_in a sh -c "printf 'written' | dd of=$loop bs=512 seek=1 2>/dev/null"
	number=$(exec_in a stat -c %t "$loop")
	[ "$number" != 7 ] || wrong "the device has the host's number"
	remove a
	expect "what the container wrote" written "$(dd if="$loop" bs=512 skip=1 count=1 2>/dev/null | head -c 7)"
	expect "who has the device open" 0 "$(find /proc/[0-9]*/fd -lname "$loop" 2>/dev/null | wc -l)"
	remove p1
	losetup -d "$loop"
	loop=''
}

left() {
	local what
	what=$(pgrep -fa "containerd-shim-husk-v2.*$work/$snapshotter/" || :)
	expect "shims left" "" "$what"
	expect "mounts left" "" "$(grep -e "$work/$snapshotter/.*rootfs" -e "$work/$snapshotter/.*husk" /proc/mounts || :)"
	expect "loop devices left" "" "$(losetup -a | grep "$work" || :)"
	expect "control files left" "" "$(ls -A /run/husk-conformance)"
	expect "snapshots left that nobody uses" "" "$(ctr snapshot --snapshotter "$kind" ls | grep Active || :)"
}

mkdir "$work/image"
make_image "$work/image"
[ $# -gt 0 ] || set -- native blockfile erofs erofs-block
for snapshotter in "$@"; do
	kind=${snapshotter%-block} on_disk=yes
	[ "$snapshotter" != native ] || on_disk=no
	start_containerd "$snapshotter"
	ctr image import --local --snapshotter "$kind" "$work/image/image.tar" >/dev/null
	# What fails in one is told by what follows from it.
	single || :
	left
	pod || :
	left
	killed || :
	left
	[ "$snapshotter" != blockfile ] || devices || :
	left
	[ $failed = 0 ] || tail -n 30 "$work/$snapshotter/log" >&2
	stop_containerd
	say "$snapshotter: done"
done
exit $failed

#!/bin/bash
# Installs the packages of `make dist` in fresh trees of Debian and uses them there: containers by husk and by podman, an
# upgrade while they run, removal and purge, after which nothing is left.
#   dist-test.sh [-k] [RELEASE...]     bookworm and trixie by default; -k keeps what this makes for the next call
# Needs root, the network that packages come from, and some minutes a release. Base systems are kept in the cache.
# shellcheck disable=SC2317 # expect calls functions by their names
set -euo pipefail

top=$(cd "$(dirname "$0")/.." && pwd)

say() {
	printf 'dist-test: %s\n' "$*" >&2
}

# --- Inside: a tree of Debian with a network of its own.

failures=0

# expect NAME PATTERN COMMAND... runs COMMAND, which must exit with 0 and print a line that matches PATTERN.
expect() {
	local name=$1 pattern=$2 printed
	shift 2
	if printed=$("$@" 2>&1) && grep -qE -- "$pattern" <<<"$printed"; then
		say "ok: $name"
	else
		printf '%s\n' "$printed" | tail -n 20 >&2
		say "FAILED: $name: wanted $pattern of: $*"
		failures=$((failures + 1))
	fi
}

# nothing NAME COMMAND... runs COMMAND, which must print nothing.
nothing() {
	local name=$1 printed
	shift
	printed=$("$@" 2>&1) || true
	if [ -z "$printed" ]; then
		say "ok: $name"
	else
		printf '%s\n' "$printed" | tail -n 20 >&2
		say "FAILED: $name: all of the above is there"
		failures=$((failures + 1))
	fi
}

# left prints what is there of husk beside what dpkg, podman and this test have of it.
left() {
	find / -xdev \( -path /proc -o -path /dist -o -path /var/lib/dpkg -o -path /var/lib/containers -o -path /var/log \
		-o -path /var/lib/apt -o -path /var/cache \) -prune -o -name '*husk*' -print
	find /run -name '*husk*'
}

left_on_a_line() {
	left | sort | tr '\n' ' '
}

# processes prints the processes that husk and its virtual machines have.
processes() {
	pgrep -af '^[^ ]*(husk|qemu-system-[^ ]*|virtiofsd)( |$)' || true
}

podman_husk() {
	podman --cgroup-manager cgroupfs --events-backend none --runtime husk "$@"
}

use() {
	expect "husk version" 'husk, kernel 6' husk version
	expect "husk check" '' husk check
	expect "manual pages" 'husk.1' ls /usr/share/man/man1/husk.1.gz
	expect "completions" '_husk' ls /usr/share/zsh/vendor-completions
	expect "podman's file is as husk install writes it" 'nothing to change' husk install podman
	expect "husk import" '' husk import --cmd /bin/sh /dist/demo husk-demo
	expect "husk run" '^6\..*' husk run --rm husk-demo uname -r
	expect "podman import" '' podman_husk import -q /dist/demo.tar localhost/demo
	expect "podman run" "^$(husk version --json | sed -n 's/.*"guest_kernel": "\(.*\)",/\1/p')$" \
		podman_husk run --rm --network none localhost/demo uname -r
	expect "podman run with a network" '^6\.' podman_husk run --rm localhost/demo uname -r
}

# upgrade installs the next version while containers run.
upgrade() {
	local old
	expect "a container before the upgrade" '' husk run -d --name before husk-demo sh -c 'echo hello; exec sleep 10000'
	expect "podman's before the upgrade" '' podman_husk run -d --name pbefore --network none localhost/demo sleep 10000
	old=$(husk --version)
	expect "dpkg -i of the next version" 'husk' dpkg -i /dist/next/husk_*.deb /dist/next/husk-guest_*.deb
	expect "the version is another" '' test "$(husk --version)" != "$old"
	expect "owners have the old program" '^/usr/bin/husk.* \(deleted\)$' sh -c 'readlink /proc/[0-9]*/exe; true'
	expect "exec in a container of the old husk's" '^6\.' husk exec before uname -r
	expect "exec with a terminal" '/dev/pts' script -qec 'husk exec -it before tty' /dev/null
	expect "podman exec" '^6\.' podman_husk exec pbefore uname -r
	expect "logs" 'hello' husk logs before
	expect "ps" 'before' husk ps
	expect "stats" 'before' husk events --stats before
	expect "pause" '' husk pause before
	expect "resume" '' husk resume before
	expect "a container of the new husk's" '^6\.' husk run --rm husk-demo uname -r
	expect "podman stop" '' podman_husk stop -t 0 pbefore
	expect "podman start" '' podman_husk start pbefore
	expect "podman exec after a restart" '^6\.' podman_husk exec pbefore uname -r
	expect "podman rm" '' podman_husk rm -f -t 0 pbefore
	expect "delete" '' husk delete --force before
}

remove() {
	expect "a container before the removal" '' husk run -d --name last husk-demo sleep 10000
	# The next container has a template built in the background, which is still at it when husk goes.
	husk template rm --all >/dev/null
	expect "a container with no template" '' husk run --rm husk-demo true
	husk install docker >/dev/null
	expect "a process to be ended is seen" 'husk owner' processes
	expect "removal" 'ending the container last' dpkg --remove husk husk-guest
	nothing "no process is left" processes
	expect "no program and no state is left, but images" '^/etc/containers/containers.conf.d/husk.conf /etc/husk /var/lib/husk $' \
		left_on_a_line
	nothing "docker has forgotten husk" grep -s husk /etc/docker/daemon.json
	expect "images are kept" '\.json$' grep -rl husk-demo /var/lib/husk/images/images
	expect "purge" '' dpkg --purge husk husk-guest
	nothing "nothing is left" left
}

inside() {
	mount -t tmpfs -o mode=755 tmpfs /run
	mkdir -p /run/lock /run/netns
	ip link set lo up
	export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
	cd /
	use
	upgrade
	remove
	[ $failures = 0 ] || { say "$failures failures" && exit 1; }
}

# enter TREE makes TREE the root and goes on there.
enter() {
	local tree=$1
	mount --bind "$tree" "$tree"
	mount --make-rprivate "$tree"
	mount -t proc proc "$tree/proc"
	mount --rbind /sys "$tree/sys"
	mount --rbind /dev "$tree/dev"
	mkdir -p "$tree/old"
	cd "$tree"
	pivot_root . old
	exec chroot . /bin/bash -c 'umount -l /old && rmdir /old && exec /dist/dist-test.sh --inside'
}

case ${1:-} in
--inside)
	inside
	exit
	;;
--enter)
	enter "$2"
	;;
esac

# --- Outside.

# shellcheck source=scripts/cache.sh
. "$top/scripts/cache.sh"
keep=''
while getopts k flag; do
	case $flag in
	k) keep=1 ;;
	*) sed -n '2,5s/^# *//p' "$0" >&2 && exit 2 ;;
	esac
done
shift $((OPTIND - 1))
releases=("$@")
[ $# -gt 0 ] || releases=(bookworm trixie)
[ "$(id -u)" = 0 ] || { say "needs root" && exit 1; }
command -v debootstrap >/dev/null || { say "needs debootstrap: apt-get install debootstrap" && exit 1; }
work=$top/build/dist-test
mkdir -p "$work"
trap '[ -n "$keep" ] || rm -rf "$work"' EXIT

# next makes the packages of a later version: the program, the agent and so the image are others.
next() {
	[ ! -d "$work/next" ] || return 0
	make -s -C "$top" dist VERSION=99.0 DIST="$work/next" LDFLAGS='-s -w -buildid=next'
}

# base_system RELEASE DIR is a system with nothing but what every Debian has.
# shellcheck disable=SC2317 # cached calls it
base_system() {
	debootstrap --variant=minbase --include=ca-certificates "$1" "$2" >"$work/debootstrap.log" || {
		tail -n 20 "$work/debootstrap.log" >&2
		return 1
	}
}

# prepare TREE RELEASE makes TREE a system with the packages installed, as apt does it with all that they depend on.
prepare() {
	local tree=$1 base
	base=$(cached "debian-$2" 1 base_system "$2")
	rm -rf "$tree"
	cp -a --reflink=auto "$base" "$tree"
	mkdir -p "$tree/dist"
	printf '#!/bin/sh\nexit 101\n' >"$tree/usr/sbin/policy-rc.d" # services stay off
	chmod 755 "$tree/usr/sbin/policy-rc.d"
	cp "$0" "$tree/dist/dist-test.sh"
	cp "$top"/build/dist/*.deb "$tree/dist/"
	cp -r "$work/next" "$tree/dist/next"
	"$top/guest/demo/build.sh" "$tree/dist/demo"
	tar -C "$tree/dist/demo" -cf "$tree/dist/demo.tar" .
	cp /etc/resolv.conf "$tree/etc/resolv.conf"
	# shellcheck disable=SC2016 # the shell inside expands it
	unshare --mount --propagation private chroot "$tree" sh -ec '
		export DEBIAN_FRONTEND=noninteractive
		mount -t proc proc /proc
		apt-get update -q
		apt-get install -y -q --no-install-recommends /dist/husk_*.deb /dist/husk-guest_*.deb \
			busybox-static passt podman netavark iptables nftables procps
		apt-get clean' >"$work/apt-$2.log" 2>&1 </dev/null || {
		tail -n 20 "$work/apt-$2.log" >&2
		return 1
	}
}

failed=0
make -s -C "$top" dist VERSION=1.0
next
for release in "${releases[@]}"; do
	say "$release"
	prepare "$work/$release" "$release"
	unshare --mount --net --pid --ipc --uts --fork --kill-child --propagation private "$0" --enter "$work/$release" || failed=1
	[ -n "$keep" ] || rm -rf "${work:?}/$release"
done
exit $failed

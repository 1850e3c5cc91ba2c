#!/bin/bash
# Puts the guest's files into an install tree, building what the cache lacks.
#   guest.sh kernel             builds the kernel alone
#   guest.sh image OUTDIR AGENT builds kernel and image and fills OUTDIR with kernel, initrd.img, guest.json
# KERNEL=husk (default) takes husk's own kernel, KERNEL=distro the distribution's cloud kernel.
# ARCH (default: this machine's) names the architecture of the kernel.
set -euo pipefail

top=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=scripts/cache.sh
. "$top/scripts/cache.sh"

arch=${ARCH:-$(uname -m)}
arch=${arch/aarch64/arm64}
kind=${KERNEL:-husk}

say() {
	printf 'guest: %s\n' "$*" >&2
}

# kernel_dir prints the cache directory of the kernel that was asked for.
kernel_dir() {
	local builder key
	case $kind in
	husk) builder=$top/guest/kernel/build.sh ;;
	distro) builder=$top/guest/kernel/distro.sh ;;
	*)
		echo "guest.sh: KERNEL=$kind: must be husk or distro" >&2
		return 1
		;;
	esac
	key=$("$builder" --key "$arch" | hash_of)
	cached "kernel-$kind-$arch" "$key" "$builder" "$arch"
}

# crun_dir prints the cache directory of the static crun, or nothing where it cannot be built.
crun_dir() {
	local builder=$top/guest/image/crun.sh
	cached "crun-$arch" "$("$builder" --key | hash_of)" "$builder" && return
	say "cannot build crun from source (above); taking the package's binary, which starts slower"
}

# image_dir KERNELDIR AGENT CRUN prints the cache directory of the image for that kernel and agent.
image_dir() {
	local key crun=$3 builder=$top/guest/image/build.sh
	key=$({
		"$builder" --key "$2" "$crun"
		if [ -d "$1/modules" ]; then basename "$1"; fi
	} | hash_of)
	cached "image-$arch" "$key" "$builder" "$2" "$crun" "$1"
}

# crun_version CRUNDIR prints the version of the crun that goes into the image.
crun_version() {
	local crun=/usr/bin/crun
	[ -z "$1" ] || crun=$1/crun
	"$crun" --version | sed -n '1s/^crun version //p'
}

# describe KERNELDIR KERNELFILE OUTDIR AGENT CRUNDIR writes guest.json, which the husk binary reads.
describe() {
	local key crun compiler='' no_acpi=false
	# See guest/kernel/additions.sh: without its timer's frequency a kernel without ACPI may wait for ever.
	[ "$kind" != husk ] || ! grep -qa lapic_timer_khz "$3/$2" || no_acpi=true
	[ ! -f "$3/seccomp-filter" ] || compiler=seccomp-filter
	key=$(cat "$3/$2" "$3/initrd.img" | hash_of)
	crun=$(crun_version "$5")
	cat >"$3/guest.json" <<-JSON
		{
		  "arch": "$arch",
		  "kind": "$kind",
		  "kernel": "$2",
		  "kernel_version": "$(cat "$1/VERSION")",
		  "kernel_source": "$(cat "$1/SOURCE")",
		  "initrd": "initrd.img",
		  "agent": "$(hash_of <"$4")",
		  "crun": "$crun",
		  "filter_compiler": "$compiler",
		  "no_acpi": $no_acpi,
		  "key": "$key"
		}
	JSON
}

# exchange DIR OUTDIR lets both change their names in one step (renameat2, RENAME_EXCHANGE), so that whoever starts a container
# meanwhile finds one of them. Perl is in every Debian and has the call by its number.
exchange() {
	local number=316
	[ "$(uname -m)" = x86_64 ] || number=276
	[ -d "$2" ] && perl -e 'exit(syscall($ARGV[0] + 0, -100, $ARGV[1], -100, $ARGV[2], 2) == 0 ? 0 : 1)' "$number" "$1" "$2" && return
	rm -rf "$2"
	mv -T "$1" "$2"
}

# fill OUTDIR AGENT replaces OUTDIR in one step, so that nobody sees a kernel beside another's image.
fill() {
	local out=$1 agent=$2 kernel image crun file boot=
	kernel=$(kernel_dir)
	crun=$(crun_dir)
	image=$(image_dir "$kernel" "$agent" "$crun")
	rm -rf "$out.partial"
	mkdir -p "$out.partial"
	for file in vmlinux bzImage Image vmlinuz; do
		[ -f "$kernel/$file" ] || continue
		cp "$kernel/$file" "$out.partial/"
		boot=${boot:-$file}
	done
	cp "$kernel/SOURCE" "$image/initrd.img" "$image/MANIFEST" "$out.partial/"
	[ ! -f "$crun/seccomp-filter" ] || cp "$crun/seccomp-filter" "$out.partial/"
	describe "$kernel" "$boot" "$out.partial" "$agent" "$crun"
	# The same files stay in place, for whoever reads them now.
	if ! diff -rq "$out.partial" "$out" >/dev/null 2>&1; then
		exchange "$out.partial" "$out"
	fi
	rm -rf "$out.partial"
	say "kernel $(cat "$kernel/VERSION"), image of $(($(stat -c %s "$out/initrd.img") / 1024)) KiB in $out"
}

case ${1:-} in
kernel) say "kernel in $(kernel_dir)" ;;
image) fill "$2" "$3" ;;
*)
	sed -n '2,6s/^# *//p' "$0" >&2
	exit 2
	;;
esac

#!/bin/bash
# Builds the guest image: an initramfs with the agent as /init, crun, and modules for a kernel that needs
# them. The same inputs give the same bytes, whoever builds them and wherever.
#   build.sh --key AGENT CRUN               prints what the result depends on beside the kernel
#   build.sh AGENT CRUN KERNELDIR OUTDIR
# AGENT is the agent's static binary. CRUN is a directory as crun.sh makes it, or empty: then the
# distribution's crun goes in with its libraries. KERNELDIR/modules, where it is, becomes /lib/modules.
# OUTDIR gets initrd.img and MANIFEST, which lists what is in it and from which Debian packages it came.
#
# The image is not compressed: unpacking costs an emulated guest more than reading the larger file does.
set -euo pipefail
export LC_ALL=C TZ=UTC
umask 022

packaged=/usr/bin/crun

# libraries BINARY prints the paths of the loader and the libraries that it is linked to.
libraries() {
	ldd "$1" | awk '$2 == "=>" && $3 ~ /^\// { print $3 } $1 ~ /^\// && $2 != "=>" { print $1 }'
}

# owner FILE prints the package of a library, whose record may name it below / or below /usr.
owner() {
	local path
	path=$(readlink -f "$1")
	{ dpkg-query -S "$path" || dpkg-query -S "${path#/usr}"; } 2>/dev/null | cut -d : -f 1
}

if [ "${1:-}" = --key ]; then
	agent=$2 crun=$3
	sha256sum "$agent" "${BASH_SOURCE[0]}" | cut -d ' ' -f 1
	if [ -n "$crun" ]; then
		sha256sum "$crun"/* | cut -d ' ' -f 1
	else
		libraries "$packaged" | xargs sha256sum "$packaged"
	fi
	exit
fi

agent=$1 crun=$2 kernel=$3 out=$4
work=$(mktemp -d "${TMPDIR:-/var/tmp}/husk-image.XXXXXX")
trap 'rm -rf "$work"' EXIT
root=$work/root

# Directories that the agent mounts on or writes to.
mkdir -p "$root"/{dev,proc,sys,run,tmp,mnt,etc,usr/bin}
chmod 1777 "$root/tmp"
install -m 755 "$agent" "$root/init"

if [ -n "$crun" ]; then
	install -m 755 "$crun/crun" "$root/usr/bin/crun"
	cp "$crun/SOURCES" "$work/sources"
else
	install -m 755 "$packaged" "$root/usr/bin/crun"
	echo crun >"$work/packages"
	# The loader is wanted at the path that crun names; it finds the libraries in its built-in paths.
	libraries "$packaged" | while read -r library; do
		install -D -m 755 "$(readlink -f "$library")" "$root$library"
		owner "$library" >>"$work/packages"
	done
	while read -r package; do
		dpkg-query -W -f '${source:Package} ${source:Version}\n' "$package"
	done <"$work/packages" >"$work/sources"
fi
# The agent tells crun's version from here: asking crun would cost every boot a process.
"$root/usr/bin/crun" --version | head -n 1 >"$root/etc/husk-runner"
if [ -d "$kernel/modules" ]; then
	mkdir -p "$root/lib"
	cp -R "$kernel/modules" "$root/lib/modules"
fi

# device NAME MODE MAJOR MINOR prints an archive of one device node (cpio's "newc", as the kernel's
# Documentation/driver-api/early-userspace/buffer-format.rst has it): making a real one would need root.
device() {
	local entry name
	for name in "$1" 'TRAILER!!!'; do
		printf '070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X' \
			0 "$2" 0 0 1 0 0 0 0 "$3" "$4" $((${#name} + 1)) 0
		entry=$((110 + ${#name} + 1))
		printf '%s\0' "$name"
		head -c $(((4 - entry % 4) % 4)) /dev/zero
		set -- "$1" 0 0 0
	done
}

mkdir -p "$out"
find "$root" -exec touch -h -d @0 {} +
(cd "$root" && find . -mindepth 1 -printf '%P\n' | sort |
	cpio --create --format=newc --reproducible --owner=0:0 --quiet) >"$out/initrd.img"
# Where the console is a module, init starts with no open file, and Go's runtime then wants /dev/null.
device dev/null $((8#020666)) 1 3 >>"$out/initrd.img"
{
	echo "# bytes  file"
	(cd "$root" && find . -type f -printf '%8s  /%P\n' | sort -k 2)
	echo "# made from the Debian source packages"
	sort -u "$work/sources"
} >"$out/MANIFEST"

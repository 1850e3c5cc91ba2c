#!/bin/bash
# Builds the guest image: an initramfs with the agent as /init, crun with its libraries and, for a kernel
# that needs them, modules. The same inputs give the same bytes, whoever builds them and wherever.
#   build.sh --key AGENT               prints everything but the kernel's modules that the result depends on
#   build.sh AGENT KERNELDIR OUTDIR
# AGENT is the agent's static binary. KERNELDIR/modules, where it is, goes to /lib/modules.
# OUTDIR gets initrd.img and MANIFEST, which lists what is in it with sizes and Debian packages.
set -euo pipefail
export LC_ALL=C TZ=UTC
umask 022

crun=$(command -v crun) || {
	echo "build.sh: no crun: apt-get install crun" >&2
	exit 1
}

# libraries prints the paths of the loader and the libraries that crun is linked to.
libraries() {
	ldd "$crun" | awk '$2 == "=>" && $3 ~ /^\// { print $3 } $1 ~ /^\// && $2 != "=>" { print $1 }'
}

if [ "${1:-}" = --key ]; then
	libraries | xargs sha256sum "$crun" "${BASH_SOURCE[0]}" "$2" | cut -d ' ' -f 1
	exit
fi

agent=$1 kernel=$2 out=$3
work=$(mktemp -d "${TMPDIR:-/var/tmp}/husk-image.XXXXXX")
trap 'rm -rf "$work"' EXIT
root=$work/root

# Directories that the agent mounts on or writes to.
mkdir -p "$root"/{dev,proc,sys,run,tmp,etc,usr/bin,usr/lib}
chmod 1777 "$root/tmp"
install -m 755 "$agent" "$root/init"
install -m 755 "$crun" "$root/usr/bin/crun"

# The loader is wanted at the path written in crun; the libraries are found in its built-in path.
libraries | while read -r lib; do
	install -D -m 755 "$(readlink -f "$lib")" "$root$lib"
done

if [ -d "$kernel/modules" ]; then
	cp -R "$kernel/modules" "$root/lib/modules"
fi

mkdir -p "$out"
find "$root" -exec touch -h -d @0 {} +
(cd "$root" && find . -mindepth 1 -printf '%P\n' | sort |
	cpio --create --format=newc --reproducible --owner=0:0 --quiet) >"$work/initrd.cpio"
cp "$work/initrd.cpio" "$out/initrd.img"
(cd "$root" && find . -type f -printf '%s\t%P\n' | sort -k 2) >"$out/MANIFEST"

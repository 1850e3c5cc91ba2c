#!/bin/bash
# Builds crun statically from the source package of the distribution's crun.
#   crun.sh --key      prints everything that the result depends on
#   crun.sh OUTDIR     OUTDIR gets crun, seccomp-filter and SOURCES, the Debian packages that they are made from
# seccomp-filter runs on the host: it compiles a seccomp filter as this crun would do, for an emulated guest
# 20 times faster.
# Why not the package's binary: crun starts itself twice for every command, and each start of the dynamic
# one loads and relocates ten libraries, most of them for systemd, which a guest has not. Under emulation
# that is more than half of the time that "crun run true" takes.
# Not position independent for the same reason: relocating itself costs as much as all else it does. It
# reads files of the owner and the agent alone; what separates tenants is the VM.
set -euo pipefail
export LC_ALL=C TZ=UTC
umask 022

here=$(cd "$(dirname "$0")" && pwd)
libraries=(libseccomp-dev libcap-dev libyajl-dev libc6-dev)
source=$(dpkg-query -W -f '${source:Package}' crun)
version=$(dpkg-query -W -f '${source:Version}' crun)

# built_from prints the source packages whose code the binary carries.
built_from() {
	printf '%s %s\n' "$source" "$version"
	dpkg-query -W -f '${source:Package} ${source:Version}\n' "${libraries[@]}"
}

if [ "${1:-}" = --key ]; then
	built_from
	gcc --version | head -n 1
	cat "${BASH_SOURCE[0]}" "$here/filter/filter.c"
	exit
fi

out=$1
work=$(mktemp -d "${TMPDIR:-/var/tmp}/husk-crun.XXXXXX")

# fetch downloads the source package, which apt checks, from where the machine gets its packages. The
# machine's own list of sources stays as it is.
fetch() {
	local file apt=(apt-get -q -o "Dir::Etc::sourcelist=/dev/null" -o "Dir::Etc::sourceparts=$work/parts"
		-o "Dir::State::lists=$work/lists" -o "Dir::Cache=$work/cache" -o APT::Sandbox::User=)
	mkdir -p "$work"/{parts,lists/partial,cache/archives/partial,download}
	for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources; do
		if [ -f "$file" ]; then
			sed -E 's/^Types:.*\<deb\>.*/Types: deb-src/; s/^deb[ \t]/deb-src /' "$file" \
				>"$work/parts/$(basename "$file" | sed 's/^sources\.list$/sources-list.list/')"
		fi
	done
	# One of several sources may fail to answer; what matters is that the package comes.
	"${apt[@]}" update || true
	(cd "$work/download" && "${apt[@]}" source --download-only "$source=$version")
}

# unpack DIR unpacks the source package and applies the distribution's changes.
unpack() {
	local patch
	mkdir "$1"
	tar -C "$1" --strip-components=1 -xf "$(find "$work/download" -name '*.orig.tar.*[a-z2]' ! -name '*.asc')"
	tar -C "$1" -xf "$(find "$work/download" -name '*.debian.tar.*')"
	sed 's/[ \t]*#.*//; /^$/d' "$1/debian/patches/series" | while read -r patch; do
		patch -d "$1" -p1 -s <"$1/debian/patches/$patch"
	done
}

# compile DIR builds there. libyajl's static library has a name that configure does not look for, and
# libgcrypt, which crun takes where it is installed, would be a library more.
compile() {
	cd "$1"
	mkdir static
	ln -s "$(gcc -print-file-name=libyajl_s.a)" static/libyajl.a
	local cflags=(-O2 -fstack-protector-strong -D_FORTIFY_SOURCE=2 -Wformat -Werror=format-security
		"-ffile-prefix-map=$PWD=." -fno-pie)
	./configure -q --disable-systemd --disable-criu --disable-dl --disable-shared --enable-static \
		ac_cv_search_gcry_check_version=no CFLAGS="${cflags[*]}" LDFLAGS="-no-pie -L$PWD/static"
	make -s git-version.h
	make -s -j"$(nproc)" crun_LDFLAGS='-all-static -Wl,--build-id=none' crun
	gcc "${cflags[@]}" -I. -Isrc -Ilibocispec/src -static -no-pie "-L$PWD/static" -Wl,--build-id=none -o seccomp-filter \
		"$here/filter/filter.c" .libs/libcrun.a libocispec/.libs/libocispec.a -lseccomp -lcap -lyajl
	strip -s crun seccomp-filter
}

# The log is long and says nothing when all is well.
log=$work/log
show_log() {
	tail -n 20 "$log" >&2
	rm -rf "$work"
}
trap show_log EXIT
{
	fetch
	unpack "$work/crun"
	(compile "$work/crun")
} >"$log" 2>&1
trap 'rm -rf "$work"' EXIT

# It must run, and have what containers need of it.
"$work/crun/crun" --version | grep -q '+CAP +SECCOMP +EBPF' || {
	echo "crun.sh: the built crun lacks capabilities, seccomp or eBPF:" >&2
	"$work/crun/crun" --version >&2
	exit 1
}
mkdir -p "$out"
cp "$work/crun/crun" "$work/crun/seccomp-filter" "$out/"
built_from >"$out/SOURCES"

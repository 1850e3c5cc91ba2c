# shellcheck shell=bash
# The QEMU and the virtiofsd of another release of Debian than the machine's own, unpacked beside it. Sourced, after cache.sh and
# debian.sh.

# qemu_unpack RELEASE DIR fetches the programs of a release and unpacks them and all that they need into DIR.
# shellcheck disable=SC2317 # cached calls it
qemu_unpack() {
	local work=$2.work package
	debian_apt "$1" "$work" || return
	# shellcheck disable=SC2154 # debian_apt sets it
	apt-get "${debian_apt[@]}" -qq install -y --no-install-recommends --download-only -o Debug::NoLocking=1 \
		qemu-system-x86 qemu-system-data virtiofsd || return
	mkdir -p "$2" || return
	for package in "$work"/cache/archives/*.deb; do
		dpkg-deb -x "$package" "$2" || return
	done
	[ -e "$2/lib64" ] || ln -s usr/lib64 "$2/lib64" || return
	rm -rf "$work" "$2"/usr/share/{doc,man,locale}
}

# qemu_fetched RELEASE prints the directory that holds the programs of a release, those of this month.
qemu_fetched() {
	cached "qemu-$1" "$({ date +%Y%m && cat "${BASH_SOURCE[0]}" "${BASH_SOURCE[0]%/*}/debian.sh"; } | hash_of)" qemu_unpack "$1"
}

# qemu_place FROM DIR copies a release's programs to where husk's user for monitors may run them, and has them use their own loader
# and libraries, by their paths there.
qemu_place() {
	local program
	cp -a --reflink=auto "$1" "$2" || return
	chmod 755 "$2" || return
	for program in "$2/usr/bin/qemu-system-x86_64" "$2/usr/libexec/virtiofsd"; do
		patchelf --set-interpreter "$2/lib64/ld-linux-x86-64.so.2" --force-rpath --set-rpath "$2/usr/lib/x86_64-linux-gnu" "$program" || return
	done
}

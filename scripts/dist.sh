#!/bin/bash
# Makes what a release has from what was built: a tarball, the Debian packages husk and husk-guest, and SHA256SUMS.
#   dist.sh OUTDIR            replaces OUTDIR
#   dist.sh --package-version prints the version that packages of VERSION have
# The same tree gives the same bytes: files are sorted, belong to root, and are as old as the commit (SOURCE_DATE_EPOCH
# where that is set). VERSION is husk's, MAINTAINER who makes the packages.
set -euo pipefail
export LC_ALL=C TZ=UTC
umask 022

top=$(cd "$(dirname "$0")/.." && pwd)
go=$("$top/scripts/go.sh" --path)
deploy=$top/deploy/debian
version=${VERSION:?dist.sh: set VERSION, as make dist does}
commit=${COMMIT:-unknown}
maintainer=${MAINTAINER:-The husk maintainers <maintainers@husk.dev>}
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git -C "$top" log -1 --format=%ct 2>/dev/null || echo 0)}
# Threads decide how xz divides its input.
export SOURCE_DATE_EPOCH DPKG_DEB_THREADS_MAX=1
machine=$(uname -m)
case $machine in
x86_64) debarch=amd64 qemu=qemu-system-x86 ;;
aarch64) machine=arm64 debarch=arm64 qemu=qemu-system-arm ;;
*)
	echo "dist.sh: husk runs on x86_64 and arm64, not on $machine" >&2
	exit 1
	;;
esac

# debian_version prints the version as dpkg orders them: v1.2 and 1.2 are 1.2, five commits later is 1.2+5.gHASH, and a
# commit of a tree without a release is older than any, and the newer the later it was made.
debian_version() {
	local v=${version#v}
	v=${v//-dirty/+dirty}
	if [[ $v =~ ^[0-9]+\. ]]; then
		v=${v/-/+}
		v=${v//-/.}
	else
		v="0.0~$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y%m%d.%H%M%S).$v"
	fi
	if ! [[ $v =~ ^[0-9][A-Za-z0-9.+~]*$ ]]; then
		echo "dist.sh: VERSION=$version: no version of a package can be made of it" >&2
		return 1
	fi
	printf '%s\n' "$v"
}

# filled FILE prints a template with its values; those of several lines are not for it.
filled() {
	sed -e "s|@VERSION@|$deb|; s|@ARCH@|$debarch|; s|@QEMU@|$qemu|; s|@MAINTAINER@|$maintainer|" "$1"
}

# third_party PACKAGE prints the licences of all that a program of husk's is made from beside husk, in full.
third_party() {
	local name=Go modversion dir file
	modversion=$("$go" env GOVERSION)
	dir=$("$go" env GOROOT)
	{
		printf '%s %s %s\n' "$name" "$modversion" "$dir"
		(cd "$top" && "$go" list -deps -f '{{with .Module}}{{if not .Main}}{{.Path}} {{.Version}} {{.Dir}}{{end}}{{end}}' "$1" | sort -u)
	} | while read -r name modversion dir; do
		for file in "$dir"/LICENSE* "$dir"/LICENCE* "$dir"/COPYING* "$dir"/NOTICE*; do
			[ -f "$file" ] || continue
			printf '==== %s %s: %s\n\n' "$name" "$modversion" "$(basename "$file")"
			cat "$file"
			echo
		done
	done
}

# source_text prints what the guest is built from.
source_text() {
	local text guest=$1
	text=$(filled "$deploy/SOURCE.in")
	text=${text//@KERNEL@/$(cat "$guest/SOURCE")}
	text=${text//@CRUN@/$(sed -n '/^#.*Debian source packages/,$s/^[^#]/  &/p' "$guest/MANIFEST")}
	printf '%s\n' "${text//@COMMIT@/$commit}"
}

# notices prints what the Debian packages that the guest is made from say of their copyright. The distribution's kernel
# is not installed.
notices() {
	local file package
	for package in linux-source-6.1 crun libseccomp-dev libcap-dev libyajl-dev libc6-dev; do
		file=/usr/share/doc/$package/copyright
		[ -f "$file" ] || continue
		printf '==== %s\n\n' "$package"
		cat "$file"
		echo
	done
}

# settle DIR gives all files below DIR the modes and the time that they have whoever makes them.
settle() {
	find "$1" -type d -exec chmod 755 {} +
	find "$1" -type f -perm /111 -exec chmod 755 {} +
	find "$1" -type f ! -perm /111 -exec chmod 644 {} +
	find "$1" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
}

# documents DIR puts there what is told of husk.
documents() {
	mkdir -p "$1"
	cp "$top/README.md" "$top/LICENSE" "$1/"
	cp -r "$top/docs" "$1/docs"
	rm -f "$1"/docs/*.go
	third_party ./cmd/husk >"$1/third-party-licences"
}

# guest_documents DIR puts there what the guest is made from.
guest_documents() {
	mkdir -p "$1/build"
	source_text "$tree/lib/husk/guest" >"$1/SOURCE"
	notices >"$1/notices"
	third_party ./cmd/husk-agent >"$1/third-party-licences"
	cp -r "$top"/guest/{kernel,image} "$1/build/"
	find "$1/build" -name '*_test.go' -delete
}

# tarball makes the archive, which is unpacked below a prefix: tar -C /usr/local --strip-components=1 -xf FILE
tarball() {
	local name=husk-${version#v}-linux-$machine
	cp -r "$tree" "$work/$name"
	documents "$work/$name/share/doc/husk"
	guest_documents "$work/$name/share/doc/husk-guest"
	settle "$work/$name"
	tar -C "$work" --sort=name --format=gnu --owner=0 --group=0 --numeric-owner -cf - "$name" |
		gzip -9n >"$out/$name.tar.gz"
}

# package NAME makes a package of work/NAME.
package() {
	local name=$1 root=$work/$1 doc=$work/$1/usr/share/doc/$1 size
	mkdir -p "$doc" "$root/DEBIAN" "$root/usr/share/lintian/overrides"
	cp "$deploy/$name.lintian" "$root/usr/share/lintian/overrides/$name"
	cp "$deploy/$name.copyright" "$doc/copyright"
	{
		printf '%s (%s) unstable; urgency=medium\n\n  * Built from commit %s.\n\n' "$name" "$deb" "$commit"
		printf -- ' -- %s  %s\n' "$maintainer" "$(date -u -R -d "@$SOURCE_DATE_EPOCH")"
	} | gzip -9n >"$doc/changelog.gz"
	settle "$root"
	(cd "$root" && find . -path ./DEBIAN -prune -o -path ./etc -prune -o -type f -printf '%P\0' | sort -z |
		xargs -0 md5sum) >"$root/DEBIAN/md5sums"
	size=$(find "$root" -path "$root/DEBIAN" -prune -o -type f -printf '%s\n' | awk '{ n += int(($1 + 1023) / 1024) } END { print n }')
	filled "$deploy/$name.control" | sed "s|@SIZE@|$size|" >"$root/DEBIAN/control"
	for script in prerm postrm; do
		[ ! -f "$deploy/$name.$script" ] || install -m 755 "$deploy/$name.$script" "$root/DEBIAN/$script"
	done
	[ ! -d "$root/etc" ] || (cd "$root" && find etc -type f -printf '/%p\n' | sort) >"$root/DEBIAN/conffiles"
	find "$root" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
	dpkg-deb --root-owner-group -Zxz --build "$root" "$out/${name}_${deb}_$debarch.deb" >/dev/null
}

# husk_root lays out the package husk.
husk_root() {
	local usr=$work/husk/usr doc=$work/husk/usr/share/doc/husk etc=$work/husk/etc
	mkdir -p "$usr" "$etc/husk" "$etc/containers/containers.conf.d"
	cp -r "$tree/bin" "$tree/share" "$usr/"
	# Debian's zsh looks elsewhere.
	mkdir "$usr/share/zsh/vendor-completions"
	mv "$usr/share/zsh/site-functions/_husk" "$usr/share/zsh/vendor-completions/"
	rmdir "$usr/share/zsh/site-functions"
	find "$usr/share/man" -type f -exec gzip -9n {} +
	ln -s husk.1.gz "$usr/share/man/man1/containerd-shim-husk-v2.1.gz"
	documents "$doc"
	rm "$doc/LICENSE" # copyright names it
	gzip -9n "$doc/third-party-licences"
	cp "$deploy/config.toml" "$etc/husk/config.toml"
	cp "$deploy/podman.conf" "$etc/containers/containers.conf.d/husk.conf"
}

# guest_root lays out the package husk-guest.
guest_root() {
	local usr=$work/husk-guest/usr
	mkdir -p "$usr/lib"
	cp -r "$tree/lib/husk" "$usr/lib/"
	guest_documents "$usr/share/doc/husk-guest"
	gzip -9n "$usr/share/doc/husk-guest"/{notices,third-party-licences}
}

deb=$(debian_version)
if [ "${1:-}" = --package-version ]; then
	printf '%s\n' "$deb"
	exit
fi
work=$(mktemp -d "${TMPDIR:-/var/tmp}/husk-dist.XXXXXX")
trap 'rm -rf "$work"' EXIT

out=${1:?dist.sh: name a directory to fill}
tree=$work/tree/usr
make -s -C "$top" install DESTDIR="$work/tree" PREFIX=/usr >/dev/null
rm -rf "$out.partial"
mkdir -p "$out.partial"
final=$out out=$(realpath "$out.partial")

tarball
husk_root && package husk
guest_root && package husk-guest
(cd "$out" && sha256sum ./* | sed 's|\./||' >"$work/SHA256SUMS" && mv "$work/SHA256SUMS" .)
rm -rf "$final"
mv -T "$out" "$final"
echo "dist: husk $version (packages: $deb) in $final" >&2

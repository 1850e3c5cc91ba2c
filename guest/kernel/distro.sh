#!/bin/bash
# Takes the distribution's kernel for virtual machines as a guest kernel. Nothing is installed.
#   distro.sh --key ARCH      prints everything that the result depends on
#   distro.sh ARCH OUTDIR     ARCH: x86_64 or arm64
# OUTDIR gets vmlinuz, its config, VERSION (as uname -r says it), SOURCE, and modules/: what husk's guest
# needs, uncompressed, with modules/husk-modules that names them in the order of loading.
set -euo pipefail
export LC_ALL=C

# The first group must be there, as modules or built in; the second is taken where it is.
needed=(virtio_mmio virtio_pci virtio_console virtio_blk virtio_net virtio_balloon
	fuse virtiofs overlay ext4 erofs)
wanted=(virtio_rng virtio_mem virtio_pmem nd_pmem vsock vmw_vsock_virtio_transport
	crc32c_intel crc32c_generic crc32c_arm64 af_packet configfs loop)

mode=build
if [ "${1:-}" = --key ]; then mode=key && shift; fi
case ${1:?distro.sh: name an architecture} in
x86_64) debarch=amd64 ;;
arm64) debarch=arm64 ;;
*)
	echo "distro.sh: no distribution kernel for $1 (there is x86_64 and arm64)" >&2
	exit 1
	;;
esac
if [ "$debarch" != "$(dpkg --print-architecture)" ]; then
	echo "distro.sh: apt-get is set up for $(dpkg --print-architecture), not for $debarch" >&2
	exit 1
fi

# Ubuntu's kernel for virtual machines has another name, and its modules are a package of their own.
meta=linux-image-cloud-$debarch
! grep -Eqs '^ID(_LIKE)?=.*ubuntu' "${OS_RELEASE:-/etc/os-release}" || meta=linux-image-virtual

# kernel_package prints the package that the metapackage stands for today.
kernel_package() {
	apt-cache depends "$meta" 2>/dev/null | awk '$1 == "Depends:" && $2 ~ /^linux-image-[0-9]/ { print $2; exit }'
}

package=$(kernel_package)
if [ -z "$package" ]; then
	apt-get update -q >&2
	package=$(kernel_package)
fi
if [ -z "$package" ]; then
	echo "distro.sh: no package $meta" >&2
	exit 1
fi
version=$(apt-cache show --no-all-versions "$package" | sed -n 's/^Version: //p')

if [ "$mode" = key ]; then
	echo "$package $version"
	cat "${BASH_SOURCE[0]}"
	exit
fi

out=${2:?distro.sh: name a directory to fill}
work=$(mktemp -d "${TMPDIR:-/var/tmp}/husk-distro.XXXXXX")
trap 'rm -rf "$work"' EXIT
echo "guest kernel: fetching $package $version" >&2
names=("$package=$version")
modules=${package/-image-/-modules-}
[ "$meta" != linux-image-virtual ] || names+=("$modules=$version")
(cd "$work" && apt-get download -q -o APT::Sandbox::User= "${names[@]}") >&2
for file in "$work"/*.deb; do
	dpkg-deb -x "$file" "$work/root"
done
release=$(basename "$(find "$work/root/boot" -name 'vmlinuz-*')" | sed 's/^vmlinuz-//')
# Packages have /lib or /usr/lib.
[ -d "$work/root/lib/modules" ] || ln -s usr/lib "$work/root/lib"

mkdir -p "$out/modules"
cp "$work/root/boot/vmlinuz-$release" "$out/vmlinuz"
cp "$work/root/boot/config-$release" "$out/config"
echo "$release" >"$out/VERSION"
echo "Linux, GPL-2.0-only, as in the Debian package $package version $version" >"$out/SOURCE"

# load_order MODULE... prints the files to load, each after those it needs.
load_order() {
	local module
	for module; do
		modprobe -d "$work/root" -S "$release" --show-depends "$module"
	done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }'
}

depmod -b "$work/root" "$release"
load_order "${needed[@]}" >"$work/order"
load_order "${wanted[@]}" 2>/dev/null >>"$work/order" || true
awk '!seen[$0]++' "$work/order" | while read -r file; do
	name=$(basename "$file" | sed 's/\.ko.*/.ko/')
	case $file in
	*.xz) xz -dc "$file" ;;
	*.zst) zstd -qdc "$file" ;;
	*) cat "$file" ;;
	esac >"$out/modules/$name"
	echo "/lib/modules/$name" >>"$out/modules/husk-modules"
done
echo "guest kernel: $release with $(wc -l <"$out/modules/husk-modules") modules" >&2

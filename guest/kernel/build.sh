#!/bin/bash
# Builds the guest kernel from the distribution's kernel source package.
#   build.sh OUTDIR [ARCH]     ARCH: x86_64 (default: this machine's) or arm64
# OUTDIR gets bzImage and vmlinux (arm64: Image and vmlinux), the full config, and SOURCE, which names
# the source package. The kernel is GPL-2.0-only: whoever passes the binary on owes that source.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
out=$1
arch=${2:-$(uname -m)}
case $arch in
x86_64) karch=x86 image=arch/x86/boot/bzImage targets=bzImage cross=x86_64-linux-gnu- ;;
arm64 | aarch64) arch=arm64 karch=arm64 image=arch/arm64/boot/Image targets=Image cross=aarch64-linux-gnu- ;;
*) echo "build.sh: no guest kernel config for $arch (there is x86_64 and arm64)" >&2; exit 1 ;;
esac
[ "$(uname -m)" != "${arch/arm64/aarch64}" ] || cross=

tarball=$(find /usr/src -maxdepth 1 -name 'linux-source-6.*.tar.xz' | sort -V | tail -n 1)
if [ -z "$tarball" ]; then
	echo "build.sh: no kernel source in /usr/src: apt-get install linux-source-6.1" >&2
	exit 1
fi
package=$(dpkg-query -S "$tarball" | cut -d: -f1)
version=$(dpkg-query -W -f '${Version}' "$package")

work=$(mktemp -d "${TMPDIR:-/var/tmp}/husk-kernel.XXXXXX")
trap 'rm -rf "$work"' EXIT
echo "guest kernel: unpacking $package $version" >&2
tar -C "$work" --strip-components=1 -xf "$tarball"

cat "$here/common.config" "$here/$arch.config" >"$work/husk.config"
# A fixed user, host and time make two builds of one source the same bytes.
kmake() {
	make -C "$work" ARCH=$karch CROSS_COMPILE="$cross" KBUILD_BUILD_USER=husk KBUILD_BUILD_HOST=husk \
		KBUILD_BUILD_TIMESTAMP='Thu Jan  1 00:00:00 UTC 1970' KBUILD_BUILD_VERSION=1 "$@"
}
kmake KCONFIG_ALLCONFIG=husk.config allnoconfig >"$work/log" 2>&1 || { tail -n 20 "$work/log" >&2; exit 1; }

# An option that Kconfig dropped is a mistake in our config, not a matter of taste.
missing=$(grep -E '^CONFIG_[A-Z0-9_]+=' "$work/husk.config" | grep -vxFf "$work/.config" || true)
if [ -n "$missing" ]; then
	printf 'build.sh: the kernel does not know or will not set:\n%s\n' "$missing" >&2
	exit 1
fi

# About this many object files make the kernel; only the progress line depends on it.
expected=1710
echo "guest kernel: compiling for $arch (some minutes)" >&2
kmake -j"$(nproc)" "$targets" vmlinux 2>"$work/err" | tee -a "$work/log" | awk -v all=$expected '
	/^  (CC|AS)/ { n++; p = int(n * 100 / all); if (p > 99) p = 99
		if (p != last) { printf "\rguest kernel: %3d %%", p > "/dev/stderr"; fflush("/dev/stderr"); last = p } }
	END { printf "\rguest kernel: %d files compiled\n", n > "/dev/stderr" }' ||
	{ tail -n 30 "$work/err" >&2; exit 1; }

mkdir -p "$out.tmp"
cp "$work/$image" "$work/.config" "$out.tmp/"
${cross}objcopy --strip-debug "$work/vmlinux" "$out.tmp/vmlinux"
mv "$out.tmp/.config" "$out.tmp/config"
printf 'Linux, GPL-2.0-only, built from the Debian package %s version %s with husk'"'"'s config\n' \
	"$package" "$version" >"$out.tmp/SOURCE"
rm -rf "$out"
mv "$out.tmp" "$out"
ls -l "$out" >&2

#!/bin/bash
# Builds husk's guest kernel from Debian's source package of a kernel that is maintained for years, see source.sh.
#   build.sh --key ARCH      prints everything that the result depends on
#   build.sh --check ARCH    only configures, and fails where Kconfig refuses an option of ours
#   build.sh ARCH OUTDIR     ARCH: x86_64 or arm64
# OUTDIR gets vmlinux and bzImage (arm64: Image), the full config, VERSION (as uname -r says it) and SOURCE,
# which names the source package. The kernel is GPL-2.0-only: whoever passes the binary on owes that source.
set -euo pipefail
export LC_ALL=C

here=$(cd "$(dirname "$0")" && pwd)
mode=build
case ${1:-} in
--key | --check) mode=${1#--} && shift ;;
esac
arch=${1:?build.sh: name an architecture}
case $arch in
x86_64)
	karch=x86 image=arch/x86/boot/bzImage target=bzImage cross=x86_64-linux-gnu-
	# Calls in place of inline string instructions, which an emulator runs one step at a time.
	flags='-mmemcpy-strategy=unrolled_loop:256:noalign,libcall:-1:noalign -mmemset-strategy=unrolled_loop:256:noalign,libcall:-1:noalign'
	;;
arm64) flags='' karch=arm64 image=arch/arm64/boot/Image target=Image cross=aarch64-linux-gnu- ;;
*)
	echo "build.sh: no guest kernel config for $arch (there is x86_64 and arm64)" >&2
	exit 1
	;;
esac
[ "$(uname -m)" != "${arch/arm64/aarch64}" ] || cross=
if ! command -v "${cross}gcc" >/dev/null; then
	echo "build.sh: no ${cross}gcc: apt-get install gcc${cross:+-${cross%-}} ${cross:+(it builds for $arch)}" >&2
	exit 1
fi

found=$("$here/source.sh")
read -r package version tarball <<<"$found"

if [ "$mode" = key ]; then
	echo "$package $version $arch"
	"${cross}gcc" --version | head -n 1
	"${cross}ld" --version | head -n 1
	cat "$here/build.sh" "$here/common.config" "$here/$arch.config" "$here/additions.sh"
	exit
fi

work=$(mktemp -d "${TMPDIR:-/var/tmp}/husk-kernel.XXXXXX")
trap 'rm -rf "$work"' EXIT
echo "guest kernel: unpacking $package $version" >&2
tar -C "$work" --strip-components=1 -xf "$tarball"

[ "$arch" != x86_64 ] || "$here/additions.sh" "$work"

cat "$here/common.config" "$here/$arch.config" >"$work/husk.config"
# A fixed user, host and time make two builds of one source the same bytes.
kmake() {
	make -C "$work" ARCH=$karch CROSS_COMPILE="$cross" KBUILD_BUILD_USER=husk KBUILD_BUILD_HOST=husk \
		KBUILD_BUILD_TIMESTAMP='Thu Jan  1 00:00:00 UTC 1970' KBUILD_BUILD_VERSION=1 KCFLAGS="$flags" "$@"
}
kmake KCONFIG_ALLCONFIG=husk.config allnoconfig >"$work/log" 2>&1 || {
	tail -n 20 "$work/log" >&2
	exit 1
}

# An option that Kconfig dropped is a mistake in our config, not a matter of taste.
missing=$(grep -E '^CONFIG_[A-Z0-9_]+=' "$work/husk.config" | grep -vxFf "$work/.config" || true)
if [ -n "$missing" ]; then
	printf 'build.sh: the kernel does not know or will not set:\n%s\n' "$missing" >&2
	exit 1
fi
if [ "$mode" = check ]; then
	echo "guest kernel: $package $version takes every option for $arch" >&2
	exit
fi

out=${2:?build.sh: name a directory to fill}
# About this many object files make the kernel; only the progress line depends on it. A terminal sees
# every percent on one line, a log every tenth.
expected=1930 step=10 before='' after='\n'
if [ -t 2 ]; then step=1 before='\r' after=''; fi
echo "guest kernel: compiling for $arch (some minutes)" >&2
kmake -j"$(nproc)" "$target" vmlinux 2>"$work/err" | tee -a "$work/log" |
	awk -v all=$expected -v step=$step -v before="$before" -v after="$after" '
	/^  (CC|AS)/ {
		n++; p = int(n * 100 / all); if (p > 99) p = 99; p -= p % step
		if (p != last) { printf before "guest kernel: %3d %%" after, p > "/dev/stderr"; fflush("/dev/stderr"); last = p }
	}
	END { printf before "guest kernel: %d files compiled\n", n > "/dev/stderr" }' || {
	tail -n 30 "$work/err" >&2
	exit 1
}

mkdir -p "$out"
cp "$work/$image" "$out/"
cp "$work/.config" "$out/config"
# QEMU would read and sort the symbols at every start; the kernel has its own for messages.
"${cross}objcopy" --strip-all "$work/vmlinux" "$out/vmlinux"
kmake -s kernelrelease >"$out/VERSION"
printf "Linux, GPL-2.0-only, built from the Debian package %s version %s with husk's config and additions\n" \
	"$package" "$version" >"$out/SOURCE"

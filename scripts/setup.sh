#!/bin/bash
# Installs what is missing on Debian 12 and 13 and on Ubuntu: packages by apt-get, and Go.
#   setup.sh [GROUP...]           run (sandboxes), build (programs and guest image), kernel (husk's own guest kernel),
#                                 test; all of them where none is named
#   setup.sh --list [GROUP...]    prints the packages
#   setup.sh --unsupported        where packages do not come by apt-get: says in one line what is missing, and exits with 1
# OS_RELEASE (default /etc/os-release) names the file that tells what system this is.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
machine=${MACHINE:-$(uname -m)}
# shellcheck source=/dev/null
system=$(. "${OS_RELEASE:-/etc/os-release}" && echo "${ID:-unknown} ${VERSION_ID:-0} ${ID_LIKE:-none}")
read -r id version like <<<"$system"

case $machine in
x86_64) monitor=qemu-system-x86 emulator=qemu-system-x86_64 ;;
aarch64) monitor=qemu-system-arm emulator=qemu-system-aarch64 ;;
*) echo "setup.sh: husk runs on x86_64 and arm64, not on $machine" >&2 && exit 1 ;;
esac

# since DEBIAN UBUNTU tells whether this system is of at least that version. A system made from one of them counts as new.
since() {
	local least
	case $id in
	debian) least=$1 ;;
	ubuntu) least=$2 ;;
	*) return 0 ;;
	esac
	printf '%s\n' "$least" "$version" | sort -V -C
}

# packages_of GROUP prints its packages, those that this system has under that name.
packages_of() {
	case $1 in
	run)
		# the VMM, the file service, tools that make disks, user-mode networking
		echo "$monitor" qemu-system-data qemu-system-common erofs-utils e2fsprogs iproute2
		since 13 24.04 && echo virtiofsd # before that QEMU had one of its own
		since 12 23.04 && echo passt
		;;
	build)
		# the programs; crun, which goes into the guest image; what packs that; what unpacks the distribution's kernel
		echo make git ca-certificates gcc libc6-dev crun busybox-static patch libseccomp-dev libcap-dev libyajl-dev cpio kmod \
			xz-utils zstd
		# An older Go can fetch the newer one that husk wants.
		[ "$("$here/go.sh" --path)" != go ] || echo golang-go
		;;
	kernel) echo make gcc libc6-dev xz-utils lz4 flex bison bc libelf-dev libssl-dev ;;
	test)
		echo git gcc libc6-dev runc shellcheck protobuf-compiler ca-certificates podman catatonit iptables uidmap containerd \
			containernetworking-plugins docker.io nftables slirp4netns systemd dbus patchelf
		since 12 22.10 && echo netavark
		;;
	*) echo "setup.sh: no group $1: there are run, build, kernel and test" >&2 && return 2 ;;
	esac
	return 0
}

# unsupported says what is missing on a system whose packages do not come by apt-get, with the command that installs it.
unsupported() {
	local program package install missing=()
	case " $id $like " in
	*' fedora '* | *' rhel '*) install='dnf install' ;;
	*' suse '* | *' opensuse '*) install='zypper install' ;;
	*' arch '*) install='pacman -S' ;;
	*' alpine '*) install='apk add' ;;
	*) install='install' ;;
	esac
	while read -r program package; do
		PATH=$PATH:/usr/libexec:/usr/lib command -v "$program" >/dev/null || missing+=("$package")
	done <<-LIST
		$emulator ${emulator/qemu-system-x86_64/qemu-system-x86}
		virtiofsd virtiofsd
		mkfs.erofs erofs-utils
		mkfs.ext4 e2fsprogs
		ip iproute2
		passt passt
	LIST
	printf 'husk cannot be built on %s: its guest is made of packages of Debian or Ubuntu. Build it there and copy build/ to this machine%s\n' \
		"$id $version" "${missing:+, where it needs: sudo $install ${missing[*]}}" >&2
	exit 1
}

case " $id $like " in
*' debian '* | *' ubuntu '*) apt=1 ;;
*) apt='' ;;
esac
if [ "${1:-}" = --unsupported ]; then
	[ -n "$apt" ] || unsupported
	exit 0
fi
list=''
if [ "${1:-}" = --list ]; then list=1 && shift; fi
[ $# -gt 0 ] || set -- run build kernel test
[ -n "$apt" ] || unsupported

packages=$(for group; do packages_of "$group"; done | tr ' ' '\n' | awk 'NF && !seen[$0]++')
if [ -n "$list" ]; then
	printf '%s\n' "$packages"
	exit
fi
missing=()
for package in $packages; do
	[ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
	if [ "$(id -u)" != 0 ]; then
		echo "setup.sh: packages are missing: sudo apt-get install --no-install-recommends ${missing[*]}" >&2
		exit 1
	fi
	echo "setup: installing ${missing[*]}" >&2
	export DEBIAN_FRONTEND=noninteractive
	apt-get update -q >&2
	apt-get install -y -q --no-install-recommends "${missing[@]}" </dev/null >&2
fi
case " $* " in *' build '*) "$here/go.sh" --fetch ;; esac

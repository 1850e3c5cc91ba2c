#!/bin/bash
# Installs what is missing to build, run and test husk on Debian 12: packages by apt-get, and Go.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
machine=$(uname -m)

packages=(
	# runs sandboxes: the VMM, the file service, tools that make disks
	qemu-system-data erofs-utils e2fsprogs iproute2 passt
	# goes into the guest image
	crun busybox-static
	# builds crun for the guest, packs the guest image
	gcc libc6-dev patch libseccomp-dev libcap-dev libyajl-dev cpio kmod
	# builds the guest kernel
	make linux-source-6.1 xz-utils lz4 flex bison bc libelf-dev libssl-dev
	# tests
	git runc shellcheck protobuf-compiler ca-certificates podman netavark catatonit iptables uidmap
	containerd containernetworking-plugins docker.io nftables slirp4netns systemd dbus
)
case $machine in
x86_64) packages+=(qemu-system-x86) ;;
aarch64) packages+=(qemu-system-arm) ;;
*) echo "setup.sh: husk runs on x86_64 and arm64, not on $machine" >&2 && exit 1 ;;
esac
# Debian's own Go is too old to build husk, but it can fetch a newer one.
[ "$("$here/go.sh" --path)" != go ] || packages+=(golang-go)

missing=()
for package in "${packages[@]}"; do
	[ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
	echo "setup: installing ${missing[*]}" >&2
	if [ "$(id -u)" != 0 ]; then
		echo "setup.sh: run as root, or install the packages above" >&2
		exit 1
	fi
	export DEBIAN_FRONTEND=noninteractive
	apt-get update -q >&2
	apt-get install -y -q --no-install-recommends "${missing[@]}" </dev/null >&2
fi
"$here/go.sh" --fetch

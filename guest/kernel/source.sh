#!/bin/bash
# Finds the source of the guest's kernel: Debian's package linux-source-6.12, as it is in Debian 13.
#   source.sh    prints the package's name, its version and the path of its tarball
# One that is installed is taken as it is. Elsewhere it is downloaded and unpacked into the cache, and nothing is installed:
# with sources, lists and a status file of their own, made of the machine's own sources of Debian packages with Debian 13 in
# place of the machine's release. apt checks the signatures, as it does for everything. The archive is asked once a month,
# so that a machine without a network goes on with what it has.
set -euo pipefail
export LC_ALL=C

top=$(cd "$(dirname "$0")/../.." && pwd)
# shellcheck source=scripts/cache.sh
. "$top/scripts/cache.sh"
# shellcheck source=scripts/debian.sh
. "$top/scripts/debian.sh"

package=linux-source-6.12
release=trixie

if [ -f "/usr/src/$package.tar.xz" ]; then
	echo "$package $(dpkg-query -W -f '${Version}' "$package") /usr/src/$package.tar.xz"
	exit
fi

# fetch_source DIR downloads the package and makes DIR of its tarball and version.
fetch_source() {
	local work=$1.work
	mkdir -p "$1" || return
	debian_apt "$release" "$work" || return
	(cd "$work" && apt-get "${debian_apt[@]}" download "$package") || return
	dpkg-deb -f "$work/$package"_*.deb Version >"$1/version" || return
	dpkg-deb --fsys-tarfile "$work/$package"_*.deb | tar -xO "./usr/src/$package.tar.xz" >"$1/$package.tar.xz" || return
	rm -rf "$work"
}

# The newest that is there serves where the archive cannot be asked.
# shellcheck disable=SC2012,SC2034 # the names are ours; cached uses cache_keep
dir=$(cache_keep=2 cached linux-source "6.12-$(date +%Y%m)" fetch_source) ||
	dir=$(ls -dt "$cache_root"/linux-source-6.12-* 2>/dev/null | head -n 1)
if [ -z "$dir" ]; then
	echo "source.sh: no $package: apt-get install $package, or take this system's kernel: KERNEL=distro" >&2
	exit 1
fi
echo "$package $(cat "$dir/version") $dir/$package.tar.xz"

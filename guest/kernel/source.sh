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

package=linux-source-6.12
release=trixie

if [ -f "/usr/src/$package.tar.xz" ]; then
	echo "$package $(dpkg-query -W -f '${Version}' "$package") /usr/src/$package.tar.xz"
	exit
fi

# debian_sources DIR fills DIR with the machine's sources of Debian packages, changed to the release. What is not of that
# release's name, such as archives of others, is left out: nothing else is needed.
debian_sources() {
	local file codename id
	id=$(sed -n 's/^ID=//p' /etc/os-release)
	codename=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
	if [ "$id" != debian ]; then
		echo "source.sh: $package is Debian's; put its .tar.xz into /usr/src, or take this system's kernel: KERNEL=distro" >&2
		return 1
	fi
	for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources; do
		[ -f "$file" ] || continue
		case $file in
		*.sources) # stanzas, of which those stay that name the release
			awk -v RS= -v ORS='\n\n' -v suite="\n(Suites|suites):[^\n]*[ \t]$codename([ \t\n-]|$)" '("\n" $0 "\n") ~ suite' "$file" |
				sed -E "/^[Ss]uites:/s/([ \t])$codename\>/\1$release/g" >"$1/$(basename "$file")"
			;;
		*)
			{ grep -E "^deb .*[ \t]$codename([ \t-]|\$)" "$file" || true; } |
				sed -E "s/([ \t])$codename\>/\1$release/" >"$1/$(basename "$file" .list).list"
			;;
		esac
	done
}

# fetch_source DIR downloads the package and makes DIR of its tarball and version.
fetch_source() {
	local work=$1.work apt
	mkdir -p "$work"/{parts,lists/partial,cache/archives/partial} "$1" || return
	: >"$work/status"
	debian_sources "$work/parts" || return
	apt=(-q -o Dir::Etc::SourceList=/dev/null -o "Dir::Etc::SourceParts=$work/parts" -o "Dir::State::Lists=$work/lists"
		-o "Dir::State::status=$work/status" -o "Dir::Cache=$work/cache" -o APT::Sandbox::User= -o Acquire::Languages=none
		-o Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled=false -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false
		-o APT::Update::Post-Invoke-Success::= -o APT::Update::Post-Invoke::=)
	# One of several sources may not have the release; what matters is that the package comes.
	apt-get "${apt[@]}" update || true
	(cd "$work" && apt-get "${apt[@]}" download "$package") || return
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

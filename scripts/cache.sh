# shellcheck shell=bash
# The build cache: results of slow builds, each in a directory named by a hash of what it was made from.
# Sourced by the scripts that build the guest.

cache_root=${HUSK_CACHE:-${XDG_CACHE_HOME:-${HOME:-/var/tmp}/.cache}/husk}

# How many results of one kind are kept; older ones go when a new one is made.
cache_keep=6

# hash_of prints a short hash of its standard input.
hash_of() {
	sha256sum | cut -c 1-16
}

# cached KIND KEY COMMAND... prints the directory that holds the result of COMMAND for KEY. Where there is
# none yet it runs COMMAND with one more argument, the directory to fill. Two builds of one kind never
# run at a time, and a build that fails or is killed leaves nothing that counts as a result.
cached() {
	local kind=$1 key=$2 dir
	shift 2
	dir=$cache_root/$kind-$key
	# Every step checks itself: a caller that tests the outcome switches errexit off.
	mkdir -p "$cache_root" || return
	(
		flock 9 || exit
		if [ ! -d "$dir" ]; then
			# Only the holder of the lock builds, so what lies here is of a build that died.
			rm -rf "$cache_root/$kind".partial.*
			partial=$(mktemp -d "$cache_root/$kind.partial.XXXXXX") || exit
			trap 'rm -rf "$partial"' EXIT
			TMPDIR=$partial "$@" "$partial/out" 9>&- >&2 || exit
			mv -T "$partial/out" "$dir" || exit
			# shellcheck disable=SC2012 # the names are ours: no blanks, no line ends
			ls -dt "$cache_root/$kind"-* | tail -n +$((cache_keep + 1)) | xargs -r rm -rf
		fi
		touch "$dir"
	) 9>"$cache_root/$kind.lock" || return
	printf '%s\n' "$dir"
}

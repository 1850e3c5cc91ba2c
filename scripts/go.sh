#!/bin/bash
# Finds or fetches the Go toolchain that go.mod asks for.
#   go.sh --path     prints the path of a go command that is new enough, or "go" where there is none
#   go.sh --fetch    where there is none, lets an older go (the distribution's) fetch one from the module proxy
set -euo pipefail

top=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=scripts/cache.sh
. "$top/scripts/cache.sh"

want=$(awk '$1 == "go" { print $2; exit }' "$top/go.mod")
fetched=$cache_root/go-$want

# new_enough GO tells whether that command runs and is at least the version of go.mod.
new_enough() {
	local have
	# GOTOOLCHAIN=local: what counts is the toolchain that is here, not one that it could fetch.
	have=$(cd / && GOTOOLCHAIN=local "$1" env GOVERSION 2>/dev/null) || return
	have=${have#go}
	have=${have%% *}
	[ -n "$have" ] && printf '%s\n%s\n' "$want" "$have" | sort -V -C
}

# find_go prints the first go command that is new enough.
find_go() {
	local go
	for go in "$(command -v go || true)" /usr/local/go/bin/go "$fetched/bin/go"; do
		if [ -n "$go" ] && new_enough "$go"; then
			printf '%s\n' "$go"
			return
		fi
	done
	return 1
}

# fetch_toolchain OLDGO DIR makes DIR a Go toolchain. Toolchains are modules; a go command since 1.21 unpacks
# them by itself, an older one can fetch them (and checks their sum), but leaves out two finishing touches.
fetch_toolchain() {
	local arch dir
	arch=$("$1" env GOARCH)
	dir=$(cd / && GOFLAGS=-modcacherw GOMODCACHE=$2.mod "$1" mod download -json \
		"golang.org/toolchain@v0.0.1-go$want.linux-$arch" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p')
	[ -d "$dir" ] || return
	chmod +x "$dir"/bin/* "$dir"/pkg/tool/*/* &&
		find "$dir" -name _go.mod -execdir mv _go.mod go.mod \; &&
		mv "$dir" "$2" &&
		rm -rf "$2.mod"
}

case ${1:-} in
--path) find_go || echo go ;;
--fetch)
	if go=$(find_go); then
		echo "go: $go ($(cd / && "$go" env GOVERSION))" >&2
		exit
	fi
	old=$(command -v go || true)
	if [ -z "$old" ]; then
		echo "go.sh: husk needs Go $want or newer: put its go command into PATH or /usr/local/go/bin" >&2
		exit 1
	fi
	echo "go: fetching $want with $old" >&2
	cached go "$want" fetch_toolchain "$old" >/dev/null
	find_go >/dev/null || {
		echo "go.sh: the fetched toolchain in $fetched does not run" >&2
		exit 1
	}
	;;
*)
	sed -n '2,4s/^# *//p' "$0" >&2
	exit 2
	;;
esac

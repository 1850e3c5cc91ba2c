#!/bin/bash
# The test host: a Debian in an emulated machine that has hardware virtualisation (CONTRIBUTING.md, "The test host").
#   host.sh image HOST                  makes it, and saves it once it is up; both are cached. HOST: debian12, debian13 or sid
#   host.sh test HOST [-run RE] SUITE...    runs suites of this tree's tests in it
#   host.sh shell HOST SCRIPT           runs bash -c SCRIPT in it, in this tree
# The emulator is that of Debian 13 where the machine has an older one, with which hosts panic and stand still;
# HOST_QEMU names another. HOST_SAVED=no boots the host each time.
set -euo pipefail

cd "$(dirname "$0")/.."
# shellcheck source=scripts/cache.sh
. scripts/cache.sh
# shellcheck source=scripts/debian.sh
. scripts/debian.sh
# shellcheck source=scripts/qemu.sh
. scripts/qemu.sh
# Images are large.
# shellcheck disable=SC2034 # cached uses it
cache_keep=2

# emulator sets qemu to the program that emulates the host.
emulator() {
	local major unpacked
	qemu=$(command -v "${HOST_QEMU:-qemu-system-x86_64}")
	major=$("$qemu" --version | sed -n 's/^QEMU emulator version \([0-9]*\).*/\1/p')
	[ -z "${HOST_QEMU:-}" ] && [ "$major" -lt 10 ] || return 0
	unpacked=$(qemu_fetched trixie)
	rm -rf build/test-host/qemu
	mkdir -p build/test-host
	qemu_place "$unpacked" "$PWD/build/test-host/qemu"
	qemu=$PWD/build/test-host/qemu/usr/bin/qemu-system-x86_64
}

# make_ready makes the host that $1 names, where the cache lacks it, and sets image and saved to its directories.
make_ready() {
	local key
	if ! command -v mmdebstrap patchelf >/dev/null; then
		apt-get update -q >&2
		DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends mmdebstrap patchelf </dev/null >&2
	fi
	emulator
	PATH=$(dirname "$(scripts/go.sh --path)"):$PATH
	CGO_ENABLED=0 go build -o build/test-host/testhost ./test/host/testhost
	key=$(build/test-host/testhost key "$1")
	image=$(cached "host-$1" "$(hash_of <<<"$key")" build/test-host/testhost image "$1")
	saved=
	[ "${HOST_SAVED:-}" = no ] || saved=$(cached "hostsaved-$1" \
		"$({ "$qemu" --version && sha256sum test/host/watch.go && basename "$image"; } | hash_of)" \
		build/test-host/testhost save -qemu "$qemu" "$image")
}

case ${1:-} in
image)
	make_ready "$2"
	printf 'host: %s is in %s, saved in %s\n' "$2" "$image" "${saved:-no place}" >&2
	;;
test)
	make_ready "$2"
	shift 2
	flags=()
	while [[ ${1:-} == -* ]]; do
		flags+=("$1" "$2")
		shift 2
	done
	exec build/test-host/testhost test -qemu "$qemu" -saved "$saved" "${flags[@]}" "$image" "$@"
	;;
shell)
	make_ready "$2"
	exec build/test-host/testhost shell -qemu "$qemu" -saved "$saved" "$image" "$3"
	;;
*)
	sed -n '2,6s/^# *//p' "$0" >&2
	exit 2
	;;
esac

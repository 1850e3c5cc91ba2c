#!/bin/bash
# Runs the suite of the QEMU driver and the core of the end-to-end tests with the QEMU and the virtiofsd of other releases of
# Debian than the machine's own, emulated. They are unpacked into the cache beside the machine's own and called as they are.
#   qemu-versions.sh [RELEASE...]    default: trixie (Debian 13) and sid
# Exits with 75 where the packages cannot be fetched.
set -euo pipefail

top=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=scripts/cache.sh
. "$top/scripts/cache.sh"
# shellcheck source=scripts/debian.sh
. "$top/scripts/debian.sh"
# shellcheck source=scripts/qemu.sh
. "$top/scripts/qemu.sh"
cd "$top"
go=$(scripts/go.sh --path)

# The end-to-end tests that meet QEMU most: each way to start a VM, what is plugged, saved and killed, volumes and networks.
core='^(TestRunPrintsAndExits|TestExec|TestBindMounts|TestTemplateStarts|TestTemplateCard|TestTemplateMissingSize|TestPod|TestPodMemory|TestPodMonitorKilled|TestNetworkFollows|TestNetworkUser|TestOOM|TestImageOnQ35|TestFaultEndsContainer)$'

# try RELEASE DIR runs the tests with what is in DIR.
try() {
	export HUSK_TEST_QEMU=$2/usr/bin/qemu-system-x86_64 HUSK_TEST_VIRTIOFSD=$2/usr/libexec/virtiofsd
	echo "$("$HUSK_TEST_QEMU" --version | head -n 1) and $("$HUSK_TEST_VIRTIOFSD" --version), of Debian's $1" >&2
	{
		"$go" test -json -p 1 -count 1 -timeout 30m ./internal/vmm/qemu ./internal/storage/virtiofs || true
		"$go" test -json -count 1 -timeout 30m -run "$core" ./test/e2e || true
	} | "$work/testreport" -skips test/allowed-skips
}

[ "$(uname -m)" = x86_64 ] || { echo "qemu-versions.sh: there are only programs for x86_64" >&2 && exit 75; }
[ $# -gt 0 ] || set -- trixie sid
export HUSK_TEST_VM=1 CGO_ENABLED=0
work=$(mktemp -d "${TMPDIR:-/tmp}/husk-qemu.XXXXXX")
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
"$go" build -o "$work/testreport" ./internal/testenv/testreport
status=0
for release; do
	unpacked=$(qemu_fetched "$release") || {
		echo "qemu-versions.sh: the packages of Debian's $release cannot be fetched" >&2
		[ $status != 0 ] || status=75 # which must not hide that the tests failed with another
		continue
	}
	qemu_place "$unpacked" "$work/$release"
	try "$release" "$work/$release" || status=1
	rm -rf "${work:?}/$release"
done
exit $status

#!/bin/bash
# Runs the tests and sums them up; the last line is "N passed, N failed, N skipped".
#   test.sh unit    those that need neither root nor a VM, with the race detector
#   test.sh all     lint, then all: first without VMs, then those that boot VMs, one package at a time, then the core
#                   of the end-to-end tests with the distribution's kernel
# Arguments that follow go to go test. A test may be skipped only if test/allowed-skips says why.
set -euo pipefail

cd "$(dirname "$0")/.."
mode=${1:-unit}
shift || true
go=$(scripts/go.sh --path)
work=$(mktemp -d "${TMPDIR:-/tmp}/husk-test.XXXXXX")
trap 'rm -rf "$work"' EXIT
CGO_ENABLED=0 "$go" build -o "$work/testreport" ./internal/testenv/testreport

# Packages that boot VMs are those whose tests ask testenv for one.
vm_packages() {
	git ls-files --cached --others --exclude-standard '*_test.go' | xargs grep -l 'testenv\.NeedVM' |
		xargs -r dirname | sort -u | sed 's|^|./|'
}
all_packages() {
	"$go" list -f '{{.Dir}}' ./... | sed "s|^$PWD|.|"
}
vm_packages >"$work/vm"
all_packages | grep -vxFf "$work/vm" >"$work/plain"

# plain runs what needs no VM, with the race detector (which needs cgo).
plain() {
	xargs -a "$work/plain" env CGO_ENABLED=1 "$go" test -json -race -timeout 10m "$@"
}

# other runs the core of the end-to-end tests with the distribution's kernel, where the others had husk's own.
other() {
	local guest=$PWD/build/distro
	[ "${KERNEL:-husk}" = husk ] || return 0
	KERNEL=distro scripts/guest.sh image "$guest" build/husk-agent || return
	HUSK_TEST_GUEST=$guest "$go" test -json -count 1 -timeout 20m -run "^($core)\$" ./test/e2e
}
core='TestRunPrintsAndExits|TestExitCodes|TestExec|TestLimits|TestPod|TestNetworkTraffic|TestTemplateClonesDiffer'

case $mode in
unit)
	plain "$@" | "$work/testreport"
	;;
all)
	lint=0
	scripts/lint.sh || lint=$?
	export HUSK_TEST_VM=1 CGO_ENABLED=0
	# One package at a time: this is sized for two processors, and VMs take both.
	{
		plain "$@" || true
		xargs -r -a "$work/vm" "$go" test -json -p 1 -count 1 -timeout 60m "$@" || true
		other || echo '{"Action":"fail","Package":"the core of test/e2e with the distribution'"'"'s kernel"}'
	} | "$work/testreport" -skips test/allowed-skips -complete
	exit $lint
	;;
*)
	sed -n '2,7s/^# *//p' "$0" >&2
	exit 2
	;;
esac

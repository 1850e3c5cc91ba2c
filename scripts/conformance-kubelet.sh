#!/bin/bash
# Runs a cluster of one node: etcd, the Kubernetes API server and a kubelet, with containerd. Each case of
# test/conformance/kubelet/cases.sh runs with runc first and then with husk, by its RuntimeClass, and has to print the same.
#   conformance-kubelet.sh [-o OUTDIR] [-f FOCUS]    OUTDIR keeps what was printed, FOCUS (a regular expression) chooses cases
# The programs come through Go's module proxy, checked against test/conformance/kubelet/go.sum.
set -euo pipefail

top=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=scripts/node.sh
. "$top/scripts/node.sh"
here=$top/test/conformance/kubelet

if [ "${HUSK_CONFORMANCE_INSIDE:-}" != 1 ]; then
	node_outside runc jq openssl
	version=$(sed -n 's/^\tk8s.io\/kubernetes //p' "$here/go.mod")
	HUSK_KUBERNETES=$(cached kubernetes "$(programs_key "$here")" build_named "$here" \
		-ldflags "-s -w -X k8s.io/component-base/version.gitVersion=$version")
	export HUSK_KUBERNETES
	node_enter "$0" "$@"
fi

node_options "$@"
# shellcheck source=test/conformance/kubelet/cluster.sh
. "$here/cluster.sh"
# shellcheck source=test/conformance/kubelet/cases.sh
. "$here/cases.sh"
mapfile -t cases < <(cases_of "$here/cases.sh" "$focus")

# case_end NAME CODE removes the pods.
# shellcheck disable=SC2317 # run_case calls it
case_end() {
	[ "$2" = 0 ] || k describe pods >"$out/$label/$1.pods" 2>&1
	k delete pods --all --wait --timeout=300s >/dev/null 2>&1 || echo "pods were not removed"
}

node_up
cluster_up
for runtime in runc husk; do
	label=$runtime
	namespace_up
	for name in "${cases[@]}"; do
		run_case "$name"
	done
done
wrong=0
cases_verdict "$here/differences" "${cases[@]}" || wrong=1
cluster_leaks || wrong=1
exit $wrong

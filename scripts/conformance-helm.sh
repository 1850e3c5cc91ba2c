#!/bin/bash
# Renders the chart deploy/helm/husk with helm, and compares what it makes with the plain files in deploy: they say the same.
#   conformance-helm.sh
# helm comes through Go's module proxy, checked against test/conformance/helm/go.sum.
set -euo pipefail

top=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=scripts/node.sh
. "$top/scripts/node.sh"
here=$top/test/conformance/helm
chart=$top/deploy/helm/husk
helm=$(cached helm "$(programs_key "$here")" build_named "$here" -ldflags '-s -w')/bin/helm
work=$(mktemp -d "${TMPDIR:-/tmp}/conformance.XXXXXX")
trap 'rm -rf "$work"' EXIT
export HELM_CACHE_HOME=$work HELM_CONFIG_HOME=$work HELM_DATA_HOME=$work
wrong=0

# render ARGUMENT... prints what the chart makes, without the lines that name its files.
render() {
	"$helm" template husk "$chart" --namespace kube-system "$@" | grep -v '^---$\|^# Source: '
}

# expect NAME WANTED FOUND compares two files.
expect() {
	diff -u --label "$1" --label rendered "$2" "$3" || { say "the chart does not say what it should: $1" && wrong=1; }
}

"$helm" lint --strict "$chart" >"$work/lint" || { cat "$work/lint" && wrong=1; }
for name in runtimeclass daemonset; do
	sed '/^#/d' "$top/deploy/$name.yaml" >"$work/plain"
	render --show-only "templates/$name.yaml" >"$work/rendered"
	expect "deploy/$name.yaml" "$work/plain" "$work/rendered"
done

# Each value changes what it is for, and nothing else.
sed -n '/^#/!p' "$top/deploy/runtimeclass.yaml" | sed 's/^  name: husk/  name: vm/; s/160Mi/200Mi/; s/husk.dev.runtime: "true"/pool: vms/' >"$work/plain"
render --set runtimeClass.name=vm --set runtimeClass.overhead.memory=200Mi --set 'nodeSelector.husk\.dev/runtime=null' \
	--set nodeSelector.pool=vms --set install=false >"$work/rendered"
expect "a RuntimeClass of other values, and no DaemonSet" "$work/plain" "$work/rendered"
sed '/^#/d; s|image: husk-install|image: registry.example/husk:1|' "$top/deploy/daemonset.yaml" >"$work/plain"
render --set image=registry.example/husk:1 --set runtimeClass.create=false >"$work/rendered"
expect "another image, and no RuntimeClass" "$work/plain" "$work/rendered"
exit $wrong

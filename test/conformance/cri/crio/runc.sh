#!/bin/bash
# runc for a machine that has nobody lower a process's oom_score_adj: a bundle's is never less than the machine's own. The
# containerd of the suite does the same (restrict_oom_score_adj), CRI-O has no setting for it.
set -euo pipefail

last=''
for argument; do
	if [ "$last" = --bundle ] || [ "$last" = -b ]; then
		least=$(cat /proc/self/oom_score_adj)
		config=$(jq --argjson least "$least" '(.process.oomScoreAdj // empty) |= ([., $least] | max)' "$argument/config.json")
		printf '%s\n' "$config" >"$argument/config.json"
	fi
	last=$argument
done
exec /usr/sbin/runc "$@"

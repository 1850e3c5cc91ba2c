#!/bin/bash
# Starts and removes 50 containers side by side and 500 one after the other, some of which are killed for want of memory,
# by husk, podman and Docker, and as many pods of containerd's; HUSK_TEST_LONG="N M" makes it others. Nothing may be left, nothing may grow,
# and every exit code must be right.
set -euo pipefail

cd "$(dirname "$0")/.."
go=$(scripts/go.sh --path)
export HUSK_TEST_VM=1 HUSK_TEST_LONG="${HUSK_TEST_LONG:-1}" CGO_ENABLED=0
exec "$go" test ./test/e2e -run '^(TestStress|TestPodmanStress|TestDockerStress|TestPodStress)$' -count 1 -timeout 180m -v

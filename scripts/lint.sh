#!/bin/bash
# Checks the tree without running it: formatting, vet, staticcheck, shellcheck, generated code, and that the
# programs build for arm64 too. Says only what is wrong.
set -euo pipefail

cd "$(dirname "$0")/.."
go=$(scripts/go.sh --path)
export CGO_ENABLED=0
failed=0

# check NAME COMMAND... runs COMMAND; what it prints, or a bad exit, is a finding.
check() {
	local name=$1 found
	shift
	if ! found=$("$@" 2>&1) || [ -n "$found" ]; then
		printf 'lint: %s:\n%s\n' "$name" "${found:-failed}" >&2
		failed=1
	fi
}

# shellcheck disable=SC2317 # called by name
shell_files() {
	git ls-files -z --cached --others --exclude-standard '*.sh' .ci/run | xargs -0 -r shellcheck -x
}

check gofmt "$("$go" env GOROOT)/bin/gofmt" -l .
check vet "$go" vet ./...
check staticcheck "$go" tool staticcheck ./...
check shellcheck shell_files
check "generated code" scripts/generate.sh --check
check "build for arm64" env GOARCH=arm64 "$go" build -o /dev/null ./cmd/...
exit $failed

#!/bin/bash
# Generates the protocols' Go code from their .proto files (go:generate lines name the packages).
#   generate.sh            writes it
#   generate.sh --check    writes nothing, and prints the files that would change
set -euo pipefail

cd "$(dirname "$0")/.."
go=$(scripts/go.sh --path)
if ! command -v protoc >/dev/null; then
	echo "generate.sh: no protoc: apt-get install protobuf-compiler" >&2
	exit 1
fi
work=$(mktemp -d "${TMPDIR:-/tmp}/husk-generate.XXXXXX")
trap 'rm -rf "$work"' EXIT

# The plugins are pinned in go.mod; protoc finds them in PATH.
mkdir "$work/bin"
CGO_ENABLED=0 "$go" build -o "$work/bin/" \
	google.golang.org/protobuf/cmd/protoc-gen-go github.com/containerd/ttrpc/cmd/protoc-gen-go-ttrpc
export PATH=$work/bin:$PATH

if [ "${1:-}" != --check ]; then
	"$go" generate ./api/...
	exit
fi
# The check works on a copy. The line that names protoc's own version may differ.
cp -R go.mod go.sum api "$work/"
(cd "$work" && "$go" generate ./api/...)
find api -name '*.pb.go' | while read -r file; do
	diff -q -I '^// .*protoc ' "$file" "$work/$file" >/dev/null || echo "$file is not what make generate makes"
done

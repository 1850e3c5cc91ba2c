#!/bin/bash
# Runs the validation programs of opencontainers/runtime-tools with runc, and then with husk. What runc passes husk
# must pass, but for the programs that test/conformance/oci/differences names; those must not pass.
#   conformance-oci.sh [-o OUTDIR] [PROGRAM...]    all programs by default; OUTDIR keeps what they printed
# The sources come through Go's module proxy, checked against test/conformance/oci/go.sum.
set -euo pipefail

top=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=scripts/cache.sh
. "$top/scripts/cache.sh"
go=$("$top/scripts/go.sh" --path)
module=github.com/opencontainers/runtime-tools
here=$top/test/conformance/oci

say() {
	printf 'conformance-oci: %s\n' "$*" >&2
}

[ "$(id -u)" = 0 ] || { say "needs root" && exit 1; }
[ -x "$top/build/bin/husk" ] || { say "nothing built yet: make build image" && exit 1; }
work=$(mktemp -d "${TMPDIR:-/tmp}/conformance.XXXXXX")
trap 'rm -rf "$work"' EXIT
out=$work/out
while getopts o: flag; do
	case $flag in
	o) out=$(realpath -m "$OPTARG") ;;
	*) sed -n '2,5s/^# *//p' "$0" >&2 && exit 2 ;;
	esac
done
shift $((OPTIND - 1))

# build_programs DIR fills DIR with the programs, what runs inside the container (static), and its root.
build_programs() {
	local source
	mkdir -p "$1/programs" || return
	(
		cd "$here" || exit
		"$go" build -o "$1/programs/" "$module/validation/..." || exit
		CGO_ENABLED=0 "$go" build -o "$1/" "$module/cmd/runtimetest" || exit
		source=$("$go" list -m -f '{{.Dir}}' "$module") || exit
		install -m 644 "$source/rootfs-amd64.tar.gz" "$1/" || exit
	)
}

suite=$(cached runtime-tools "$({ cat "$here/go.mod" "$here/go.sum" && "$go" version; } | hash_of)" build_programs)

cat >"$work/config.toml" <<-TOML
	run_dir = "$work/run"
	data_dir = "$work/data"
	template = "ready"
TOML
cat >"$work/husk" <<-SH
	#!/bin/sh
	exec "$top/build/bin/husk" --config "$work/config.toml" "\$@"
SH
chmod 755 "$work/husk"
mkdir -p "$work/run" "$work/data"
"$work/husk" template build >/dev/null

# validate NAME RUNTIME runs the programs and writes "pass|fail PROGRAM OK NOT-OK" lines to OUT/NAME/summary.
# A program that counts no test and reports an error has failed too; it exits with 0 nevertheless.
validate() {
	local name=$1 runtime=$2 program rc ok bad verdict
	mkdir -p "$out/$name"
	: >"$out/$name/summary"
	for program in "${programs[@]}"; do
		rc=0
		(cd "$suite" && RUNTIME=$runtime timeout 90 "programs/$program") >"$out/$name/$program.tap" 2>"$out/$name/$program.err" </dev/null || rc=$?
		ok=$(grep -c '^ *ok ' "$out/$name/$program.tap" || true)
		bad=$(grep -c '^ *not ok ' "$out/$name/$program.tap" || true)
		verdict=pass
		if [ $rc != 0 ] || [ "$bad" != 0 ]; then verdict=fail; fi
		if [ "$ok" = 0 ] && grep -q '"error": "[^"]' "$out/$name/$program.tap"; then verdict=fail; fi
		printf '%s %s %s %s\n' "$verdict" "$program" "$ok" "$bad" >>"$out/$name/summary"
	done
}

mapfile -t programs < <(if [ $# -gt 0 ]; then printf '%s\n' "$@"; else ls "$suite/programs"; fi)
validate runc runc
validate husk "$work/husk"

# The verdict: what each program did with either, and why where husk does not do what runc does.
awk -v differences="$here/differences" '
	BEGIN {
		while ((getline line < differences) > 0)
			if (line !~ /^#/ && (i = index(line, ": "))) why[substr(line, 1, i - 1)] = substr(line, i + 2)
	}
	FILENAME == ARGV[1] { runc[$2] = $1; if ($1 == "pass") passed_runc++; ok_runc += $3; bad_runc += $4; next }
	{
		if ($1 == "pass") passed++
		ok += $3; bad += $4; programs++
		note = ""
		if ($1 == "fail" && runc[$2] == "pass" && !($2 in why)) { note = "  <- WRONG"; wrong++ }
		else if ($1 == "fail" && runc[$2] == "pass") { note = "  (" why[$2] ")"; named++ }
		else if ($1 == "pass" && $2 in why) { note = "  <- WRONG: it passes, take it out of the differences"; wrong++ }
		printf "%-36s runc %s  husk %s%s\n", $2, runc[$2], $1, note
	}
	END {
		printf "runc: %d of %d programs passed (%d ok, %d not ok)\n", passed_runc, programs, ok_runc, bad_runc
		printf "husk: %d of %d programs passed (%d ok, %d not ok); %d that runc passes do not, for the reasons given; %d wrong\n",
			passed, programs, ok, bad, named, wrong
		exit wrong > 0
	}
' "$out/runc/summary" "$out/husk/summary"

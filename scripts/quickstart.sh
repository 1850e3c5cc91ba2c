#!/bin/bash
# Runs a container of the demonstration image and shows where it ran. `make quickstart` builds all it needs.
set -euo pipefail

cd "$(dirname "$0")/.."
husk=build/bin/husk

line() {
	printf '  %-14s %s\n' "$1" "$2"
}

# The container says what it sees; the host says what it is.
started=$(date +%s%N)
# shellcheck disable=SC2016 # the container's shell expands these
seen=$("$husk" run --rm husk-demo sh -c '
	echo "kernel=$(uname -sr)"
	echo "system=$(. /etc/os-release; echo "$PRETTY_NAME")"
	echo "cpus=$(nproc)"
	echo "memory=$(awk "/^MemTotal/ { print int(\$2 / 1024) }" /proc/meminfo) MiB"
	echo "processes=$(ps -o comm | tail -n +2 | head -n 1) is process 1"')
took=$((($(date +%s%N) - started) / 1000000))
isolation=$("$husk" check | awk '$1 == "isolation" { print $3 }' || true)

value() {
	sed -n "s/^$1=//p" <<<"$seen"
}

echo
echo "A container has run in a virtual machine of its own."
echo
line "guest kernel" "$(value kernel)"
line "host kernel" "$(uname -sr)"
line "container" "$(value system), $(value cpus) CPU, $(value memory), $(value processes)"
line "isolation" "$isolation ($husk check says why)"
line "took" "$took ms, from the command to its end"
cat <<END

Next:
  $husk run --rm -it husk-demo sh    a shell in a VM
  $husk run --rm alpine uname -a     an image from a registry
  $husk --help                       everything else
  make install                                install below /usr/local
END

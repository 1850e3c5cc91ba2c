#!/bin/bash
# From nothing to a container in a VM of its own, and says how long each step took. The first container's guest runs the
# distribution's kernel, which is only downloaded; husk's own, which takes minutes to compile, is built in the background.
#   quickstart.sh           all of it
#   quickstart.sh --own     builds husk's own kernel and puts it in place, as the background does
# KERNEL, where it is set, names the kernel, and nothing is built in the background.
set -euo pipefail

cd "$(dirname "$0")/.."
husk=build/bin/husk
log=build/kernel.log
guest=build/lib/husk/guest

if [ "${1:-}" = --own ]; then
	mkdir -p build
	exec 8>build/kernel.lock
	flock -n 8 || exit 0 # another one is at it
	scripts/setup.sh kernel
	KERNEL=husk scripts/guest.sh image "$guest" build/husk-agent
	echo "quickstart: husk's own kernel is in place: the next container has it"
	exit
fi

scripts/setup.sh --unsupported
own=''
if [ -z "${KERNEL:-}" ]; then
	KERNEL=distro
	if grep -qs '"kind": "husk"' "$guest/guest.json"; then KERNEL=husk; else own=1; fi
fi
export KERNEL

line() {
	printf '  %-14s %s\n' "$1" "$2"
}

steps=()
# step NAME COMMAND... runs COMMAND and notes how long it took.
step() {
	local name=$1 began=$SECONDS
	shift
	"$@"
	steps+=("$name $((SECONDS - began)) s")
}

groups=(run build)
[ "$KERNEL" = distro ] || groups+=(kernel)
step packages scripts/setup.sh "${groups[@]}"
step build make build agent
step "kernel, image" make image
step demonstration make demo

# The container says what it sees; the host says what it is.
began=$(date +%s%N)
# shellcheck disable=SC2016 # the container's shell expands these
seen=$("$husk" run --rm husk-demo sh -c '
	echo "kernel=$(uname -sr)"
	echo "system=$(. /etc/os-release; echo "$PRETTY_NAME")"
	echo "cpus=$(nproc)"
	echo "memory=$(awk "/^MemTotal/ { print int(\$2 / 1024) }" /proc/meminfo) MiB"
	echo "processes=$(ps -o comm | tail -n +2 | head -n 1) is process 1"')
took=$((($(date +%s%N) - began) / 1000000))
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
line "steps" "$(printf "%s, " "${steps[@]}")$SECONDS s in all"
cat <<END

Next:
  $husk run --rm -it husk-demo sh    a shell in a VM
  $husk run --rm alpine uname -a     an image from a registry
  $husk --help                       everything else
  make install                                install below /usr/local
END
if [ -n "$own" ]; then
	# A session of its own: it goes on when the terminal is closed. A build that is killed leaves nothing half-made.
	setsid nice -n 15 scripts/quickstart.sh --own </dev/null >"$log" 2>&1 &
	cat <<-END

		This VM had the distribution's kernel. husk's own, with which an emulated VM boots many times faster, is being built in the
		background (some 10 minutes; log: $log), also when this terminal is closed, and is then put in place.
		\`make setup image\` does the same in the foreground.
	END
fi

#!/bin/bash
# Records docs/recording.session, which README.md shows: real commands, on namespaces of their own.
#   recording.sh SVG
set -euo pipefail

cd "$(dirname "$0")/.."
svg=${1:?recording.sh: name the picture to write}
[ "$(id -u)" = 0 ] || { echo "recording.sh: needs root" >&2 && exit 1; }

if [ -z "${HUSK_RECORDING_INSIDE:-}" ]; then
	work=$(mktemp -d "${TMPDIR:-/var/tmp}/husk-recording.XXXXXX")
	trap 'rm -rf "$work"' EXIT
	CGO_ENABLED=0 "$(scripts/go.sh --path)" build -o "$work/recording" ./internal/recording
	guest/demo/build.sh "$work/demo"
	tar -C "$work/demo" -cf "$work/demo.tar" .
	# podman of a machine of its own, where husk is named as `husk install podman` does it.
	cat >"$work/containers.conf" <<-END
		[containers]
		default_ulimits = ["nofile=512:512", "nproc=512:512"]
		[engine]
		cgroup_manager = "cgroupfs"
		events_logger = "none"
		[engine.runtimes]
		husk = ["$PWD/build/bin/husk"]
	END
	printf '[storage]\ndriver = "overlay"\ngraphroot = "%s"\nrunroot = "/run/podman-recording"\n' "$work/storage" >"$work/storage.conf"
	export HUSK_RECORDING_INSIDE=$work CONTAINERS_CONF=$work/containers.conf CONTAINERS_STORAGE_CONF=$work/storage.conf
	unshare --net --mount --ipc --uts --pid --fork --kill-child --mount-proc --propagation private "$0" "$svg"
	exit
fi

mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/lock /run/netns
ip link set lo up
hostname laptop
podman import -q -c 'CMD ["sh"]' "$HUSK_RECORDING_INSIDE/demo.tar" localhost/demo >/dev/null
export PATH=$PWD/build/bin:$PATH
# The templates are there, as on any machine after its first containers.
husk template build >&2
"$HUSK_RECORDING_INSIDE/recording" docs/recording.session "$svg"

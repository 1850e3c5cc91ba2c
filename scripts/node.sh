# shellcheck shell=bash
# shellcheck disable=SC2154 # variables of the script that sources this
# A node of its own for suites of others: namespaces with a registry of images made here, and containerd, all of which end
# with the script that sources this and has set top to the tree.

# shellcheck source=scripts/cache.sh
. "$top/scripts/cache.sh"
go=$("$top/scripts/go.sh" --path)
node_cri=$top/test/conformance/cri
registry=127.0.0.1:5000
children=()

say() {
	printf '%s: %s\n' "$(basename "$0" .sh)" "$*" >&2
}

# programs_key DIR prints what the programs that the module in DIR names are cached by.
programs_key() {
	{ cat "$1/go.mod" "$1/go.sum" "$1/programs.go" && "$go" version; } | hash_of
}

# build_named MODULE-DIR [FLAG...] DIR builds the programs that the module in MODULE-DIR names, into DIR/bin.
# shellcheck disable=SC2317 # cached calls it
build_named() {
	local module=$1 dir=${*: -1} flags=("${@:2:$#-2}")
	mkdir -p "$dir/bin" || return
	(
		cd "$module" || exit
		sed -n 's/^\t_ "\(.*\)"$/\1/p' programs.go | CGO_ENABLED=0 xargs "$go" build "${flags[@]}" -o "$dir/bin/"
	)
}

# unpack_busybox DIR unpacks Debian's busybox package, which cannot be installed beside the static one.
# shellcheck disable=SC2317 # cached calls it
unpack_busybox() {
	(mkdir -p "$1" && cd "$1" && apt-get download -q busybox && dpkg-deb -x busybox_*.deb .)
}

# install_missing PACKAGE... installs those of the distribution's packages that are not there.
install_missing() {
	local package missing=()
	for package in "$@"; do
		[ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
	done
	[ ${#missing[@]} = 0 ] && return
	apt-get update -q >&2
	DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}" </dev/null >&2
}

# node_outside PACKAGE... does all that needs a network of the machine's, for the node and for what PACKAGE... are for.
node_outside() {
	[ "$(id -u)" = 0 ] || { say "needs root" && exit 1; }
	[ -x "$top/build/bin/husk" ] || { say "nothing built yet: make build image" && exit 1; }
	install_missing containernetworking-plugins nginx-light busybox-static gcc libc6-dev util-linux procps iptables "$@"
	HUSK_CONTAINERD=$(cached containerd "$(programs_key "$node_cri/containerd")" build_named "$node_cri/containerd")
	HUSK_BUSYBOX=$(cached busybox "$(dpkg-query -W busybox-static | hash_of)" unpack_busybox)
	mkdir -p "$top/build"
	(cd "$top" && CGO_ENABLED=0 "$go" build -o build/conformance-images ./test/conformance/cri/images)
	export HUSK_CONTAINERD HUSK_BUSYBOX HUSK_CONFORMANCE_INSIDE=1
}

# node_enter COMMAND... goes on with COMMAND inside: mounts, network and host name are the node's own, and end with it.
node_enter() {
	exec unshare --net --mount --ipc --uts --propagation private "$@"
}

# node_options ARGUMENT... takes -o OUTDIR and -f FOCUS, a regular expression, into out and focus; OPTIND is where what
# follows them begins. Of anything else it prints what the script says of itself, and ends it.
# shellcheck disable=SC2034 # the script uses focus
node_options() {
	local flag
	out='' focus=. OPTIND=1
	while getopts o:f: flag; do
		case $flag in
		o) out=$(realpath -m "$OPTARG") ;;
		f) focus=$OPTARG ;;
		*) sed -n '2,/^[^#]/s/^# *//p' "$0" >&2 && exit 2 ;;
		esac
	done
}

# node_finish ends what this script has started, and removes what it made.
# shellcheck disable=SC2317 # the trap calls it
node_finish() {
	[ ${#children[@]} = 0 ] || kill "${children[@]}" 2>/dev/null || :
	wait
	awk -v dir="$work/" 'index($2, dir) == 1 { print $2 }' /proc/mounts | sort -r | xargs -r umount -l 2>/dev/null || :
	rm -rf --one-file-system "$work"
}

# node_up gives the node its directories, and husk its settings. The caller may have set out before.
node_up() {
	work=$(mktemp -d "${TMPDIR:-/tmp}/conformance.XXXXXX")
	trap node_finish EXIT
	out=${out:-$work/out}
	mkdir -p "$out" "$work/data"
	mount -t tmpfs -o mode=755 tmpfs /run
	mkdir -p /run/lock /run/netns /run/husk-conformance
	# husk's own place for its settings: a runtime of containerd's that is given a file cannot have user namespaces.
	mkdir -p /run/etc/upper /run/etc/work
	mount -t overlay -o lowerdir=/etc,upperdir=/run/etc/upper,workdir=/run/etc/work overlay /etc
	mkdir -p /etc/husk
	printf 'data_dir = "%s"\nrun_dir = "/run/husk-conformance"\n' "$work/data" >/etc/husk/config.toml
	mount --make-rshared /
	ip link set lo up
	echo 1 >/proc/sys/net/ipv4/ip_forward
	hostname node
	"$top/build/bin/husk" template build >/dev/null
}

# until_true SECONDS COMMAND... waits for COMMAND to succeed.
until_true() {
	local end=$((SECONDS + $1))
	shift
	until "$@" >/dev/null 2>&1; do
		[ $SECONDS -lt $end ] || { say "waited in vain for: $*" && return 1; }
		sleep 0.2
	done
}

# node_registry PATTERN [CERTIFICATE HOST...] makes the images whose names the regular expression finds, and serves them.
node_registry() {
	"$node_cri/images.sh" "$work/trees" "$HUSK_BUSYBOX/bin/busybox" | grep -E "$1" >"$work/list"
	"$top/build/conformance-images" "$registry" "$work/list" "${@:2}" >"$out/images.log" 2>&1 &
	children+=($!)
	until_true 600 grep -q serving "$out/images.log"
}

# node_config writes the configuration of a containerd with husk and runc, on the socket $work/sock.
node_config() {
	{
		"$node_cri/config.sh" "$work" "$registry"
		printf "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]\n  runtime_type = 'io.containerd.runc.v2'\n"
	} >"$work/config.toml"
}

# node_containerd starts it.
node_containerd() {
	node_config
	PATH=$top/build/bin:$HUSK_CONTAINERD/bin:$PATH "$HUSK_CONTAINERD/bin/containerd" --config "$work/config.toml" >"$out/containerd.log" 2>&1 &
	children+=($!)
	until_true 300 "$HUSK_CONTAINERD/bin/ctr" -a "$work/sock" version
}

# run_case NAME runs the function case_NAME for $runtime, keeps what it prints in $out/$label, and calls case_end NAME CODE,
# which prints what the case has left.
run_case() {
	local name=$1 start=$SECONDS code dir
	dir=$out/$label
	mkdir -p "$dir"
	set +e
	(
		set -e
		"case_$name"
	) >"$dir/$name" 2>"$dir/$name.err"
	code=$?
	[ $code = 0 ] || echo "failed with $code" >>"$dir/$name"
	case_end "$name" $code >>"$dir/$name"
	set -e
	say "$label $name: $code, $((SECONDS - start)) s"
}

# cases_of FILE FOCUS prints the names of the file's cases that the regular expression FOCUS chooses.
cases_of() {
	sed -n 's/^case_\(.*\)() {$/\1/p' "$1" | grep -E "$2"
}

# cases_verdict DIFFERENCES CASE... fails when a case that the file DIFFERENCES does not name failed with runc or printed
# something else with husk.
cases_verdict() {
	local name differences=$1 same=0 wrong=0
	shift
	for name; do
		if ! grep -q '^failed with' "$out/runc/$name" && diff -u "$out/runc/$name" "$out/husk/$name" >"$out/$name.diff" 2>&1; then
			same=$((same + 1))
		elif ! grep -q "^$name " "$differences"; then
			say "not as with runc: $name" && wrong=1
			tail -n 30 "$out/$name.diff" "$out"/*/"$name.err" >&2
		fi
	done
	echo "$same of $# cases are as with runc"
	return $wrong
}

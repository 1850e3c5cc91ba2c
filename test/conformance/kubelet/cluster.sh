# shellcheck shell=bash
# shellcheck disable=SC2154 # variables of the script that sources this
# A cluster of one node for conformance-kubelet.sh, which sources this: etcd, an API server and a kubelet. There is no scheduler
# (pods name their node), no controller and no proxy for services.

programs=${HUSK_KUBERNETES:-}/bin
address=10.99.0.1
apiserver_pid=''

k() {
	"$programs/kubectl" --kubeconfig "$work/kubeconfig" -n "$runtime" "$@"
}

# tunables of the host's kernel that a kubelet sets.
tunables=(vm.overcommit_memory vm.panic_on_oom kernel.panic kernel.panic_on_oops kernel.keys.root_maxkeys kernel.keys.root_maxbytes)

cluster_down() {
	kubelet_stop 2>/dev/null || :
	# It would wait for an etcd that is gone.
	[ -z "$apiserver_pid" ] || { kill -9 "$apiserver_pid" && wait "$apiserver_pid"; } 2>/dev/null || :
	node_finish
	find /sys/fs/cgroup/*/kubepods -depth -type d -exec rmdir {} + 2>/dev/null || :
	sysctl -q -w "${host_tunables[@]}" || :
}

# cluster_files writes the keys, tokens and settings.
cluster_files() {
	local token
	token=$(head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \n')
	echo "$token,admin,admin,system:masters" >"$work/tokens"
	openssl genrsa -out "$work/accounts.key" 2048 2>/dev/null
	: >"$work/resolv.conf"
	: >/etc/resolv.conf # the node's own: there is nobody to ask
	echo "$address node" >>/etc/hosts
	cat >"$work/kubeconfig" <<-YAML
		apiVersion: v1
		kind: Config
		clusters: [{name: one, cluster: {server: "https://$address:6443", insecure-skip-tls-verify: true}}]
		users: [{name: admin, user: {token: $token}}]
		contexts: [{name: one, context: {cluster: one, user: admin}}]
		current-context: one
	YAML
	# The limits on disks are of what else the machine has; the crash loop is short.
	cat >"$work/kubelet.yaml" <<-YAML
		apiVersion: kubelet.config.k8s.io/v1beta1
		kind: KubeletConfiguration
		containerRuntimeEndpoint: unix://$work/sock
		failSwapOn: false
		failCgroupV1: false
		cgroupDriver: cgroupfs
		authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
		authorization: {mode: AlwaysAllow}
		resolvConf: $work/resolv.conf
		clusterDNS: [10.96.0.10]
		clusterDomain: cluster.local
		syncFrequency: 5s
		evictionHard: {memory.available: 1Mi, nodefs.available: 0.01%, nodefs.inodesFree: 0.01%, imagefs.available: 0.01%}
		imageGCHighThresholdPercent: 100
		crashLoopBackOff: {maxContainerRestartPeriod: 2s}
	YAML
}

kubelet_start() {
	PATH=$PATH "$programs/kubelet" --config "$work/kubelet.yaml" --kubeconfig "$work/kubeconfig" --root-dir "$work/kubelet" \
		--hostname-override node --node-ip "$address" --node-labels husk.dev/runtime=true >>"$out/kubelet.log" 2>&1 &
	echo $! >"$work/kubelet.pid" # a case in a shell of its own may start another one
}

kubelet_stop() {
	local pid
	pid=$(cat "$work/kubelet.pid")
	kill "$pid"
	until_true 30 sh -c "! kill -0 $pid"
}

node_is_ready() {
	runtime=default k wait --for=condition=Ready node/node --timeout=2s
}

cluster_up() {
	mapfile -t host_tunables < <(sysctl "${tunables[@]}" | tr -d ' ')
	trap cluster_down EXIT
	mount -t tmpfs tmpfs /var/log
	ip link add node type bridge
	ip address add "$address/24" dev node
	ip link set node up
	ip route add default dev node
	cluster_files
	node_registry '^(pause:3.10.1|library/)'
	node_containerd
	"$programs/server" --data-dir "$work/etcd" --unsafe-no-fsync --log-level error >"$out/etcd.log" 2>&1 &
	children+=($!)
	"$programs/kube-apiserver" --etcd-servers http://127.0.0.1:2379 --service-cluster-ip-range 10.96.0.0/16 \
		--advertise-address "$address" --cert-dir "$work/api" --token-auth-file "$work/tokens" --authorization-mode AlwaysAllow \
		--service-account-issuer https://kubernetes.default.svc --service-account-key-file "$work/accounts.key" \
		--service-account-signing-key-file "$work/accounts.key" --allow-privileged \
		--kubelet-preferred-address-types InternalIP >"$out/apiserver.log" 2>&1 &
	apiserver_pid=$!
	runtime=default
	until_true 600 k get --raw /readyz
	kubelet_start
	until_true 600 node_is_ready
	k apply -f "$top/deploy/runtimeclass.yaml" >/dev/null
	runtime=kube-system k apply --dry-run=server -f "$top/deploy/daemonset.yaml" >/dev/null
	k apply -f - >/dev/null <<-YAML
		{apiVersion: node.k8s.io/v1, kind: RuntimeClass, metadata: {name: runc}, handler: runc}
	YAML
}

# namespace_up makes the namespace of the runtime, with what a controller would have put there.
namespace_up() {
	mkdir -p "$work/host/$runtime"
	k create namespace "$runtime" >/dev/null
	k create serviceaccount default >/dev/null
	k create configmap kube-root-ca.crt --from-file=ca.crt="$work/api/apiserver.crt" >/dev/null
}

# cluster_leaks looks for what pods have left on the node.
cluster_leaks() {
	local left
	left=$(find /sys/fs/cgroup/*/kubepods -type d -name 'pod*' 2>/dev/null
		find /run/husk-conformance -mindepth 2 2>/dev/null
		awk -v dir="$work/kubelet/pods" 'index($2, dir) == 1 { print $2 }' /proc/mounts
		pgrep -a -f "$work/data" || :)
	[ -z "$left" ] || { say "left of the pods: $left" && return 1; }
}

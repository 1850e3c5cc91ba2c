#!/bin/bash
# Prints the configuration of a containerd that keeps all in DIR and pulls every image from REGISTRY.
#   config.sh DIR REGISTRY [SANDBOXER]
set -euo pipefail

dir=$1 registry=$2 sandboxer=${3:-podsandbox}
mkdir -p "$dir/cni"
cat >"$dir/cni/10-bridge.conflist" <<-CNI
	{"cniVersion":"1.0.0","name":"pods","plugins":[
	  {"type":"bridge","bridge":"cni0","isGateway":true,"ipMasq":true,"hairpinMode":true,
	   "ipam":{"type":"host-local","ranges":[[{"subnet":"10.88.0.0/16"}]],"routes":[{"dst":"0.0.0.0/0"}]}},
	  {"type":"portmap","capabilities":{"portMappings":true}}]}
CNI
for host in registry.k8s.io k8s.gcr.io gcr.io docker.io; do
	mkdir -p "$dir/hosts/$host"
	printf 'server = "http://%s"\n[host."http://%s"]\n  capabilities = ["pull", "resolve"]\n' "$registry" "$registry" >"$dir/hosts/$host/hosts.toml"
done
cat <<-TOML
	version = 3
	root = "$dir/root"
	state = "$dir/state"
	[grpc]
	  address = "$dir/sock"
	[plugins.'io.containerd.cri.v1.images'.registry]
	  config_path = "$dir/hosts"
	[plugins.'io.containerd.cri.v1.images'.pinned_images]
	  sandbox = "registry.k8s.io/pause:3.10.1"
	[plugins.'io.containerd.cri.v1.runtime']
	  restrict_oom_score_adj = true
	  disable_apparmor = true
	  drain_exec_sync_io_timeout = "10s"
	[plugins.'io.containerd.cri.v1.runtime'.cni]
	  bin_dirs = ["/usr/lib/cni"]
	  conf_dir = "$dir/cni"
	[plugins.'io.containerd.cri.v1.runtime'.containerd]
	  default_runtime_name = "husk"
	[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.husk]
	  runtime_type = "io.containerd.husk.v2"
	  pod_annotations = ["dev.husk.*"]
	  sandboxer = "$sandboxer"
TOML
[ "$sandboxer" != shim ] || echo "  disable_pause_image_pull = true"

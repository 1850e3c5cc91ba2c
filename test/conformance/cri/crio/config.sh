#!/bin/bash
# Prints the configuration of a CRI-O that keeps all in DIR, pulls every image from REGISTRY by DIR/registries.conf, and has
# runc beside what the drop-in files name.
#   config.sh DIR REGISTRY PROGRAMS SHIM    PROGRAMS is the directory with pinns, SHIM husk's, for the type "vm"
set -euo pipefail

dir=$1 registry=$2 programs=$3 shim=$4
echo '{"default": [{"type": "insecureAcceptAnything"}]}' >"$dir/policy.json"
{
	printf 'unqualified-search-registries = ["docker.io"]\nshort-name-mode = "disabled"\n'
	for host in registry.k8s.io k8s.gcr.io gcr.io docker.io; do
		printf '[[registry]]\nprefix = "%s"\nlocation = "%s"\ninsecure = true\n' "$host" "$registry"
	done
} >"$dir/registries.conf"
cat <<-TOML
	[crio]
	  root = "$dir/storage"
	  runroot = "$dir/run"
	  storage_driver = "overlay"
	  log_dir = "$dir/logs"
	  version_file_persist = "$dir/version"
	  clean_shutdown_file = "$dir/clean"
	[crio.api]
	  listen = "$dir/sock"
	[crio.image]
	  signature_policy = "$dir/policy.json"
	  pause_image = "registry.k8s.io/pause:3.10.1"
	[crio.network]
	  network_dir = "$dir/cni"
	  plugin_dirs = ["/usr/lib/cni"]
	[crio.nri]
	  enable_nri = false
	[crio.runtime]
	  default_runtime = "runc"
	  cgroup_manager = "cgroupfs"
	  conmon_cgroup = "pod"
	  pinns_path = "$programs/pinns"
	  drop_infra_ctr = false
	  enable_criu_support = false
	[crio.runtime.runtimes.runc]
	  runtime_path = "$(dirname "$(realpath "$0")")/runc.sh"
	  runtime_type = "oci"
	  runtime_root = "/run/runc"
	[crio.runtime.runtimes.husk-vm]
	  runtime_path = "$shim"
	  runtime_type = "vm"
	  runtime_root = "/run/vc"
TOML

//go:build programs

// Package kubelet names the programs of a cluster of one node, so that go.sum holds their checksums.
package kubelet

import (
	_ "go.etcd.io/etcd/server/v3"
	_ "k8s.io/kubernetes/cmd/kube-apiserver"
	_ "k8s.io/kubernetes/cmd/kubectl"
	_ "k8s.io/kubernetes/cmd/kubelet"
)

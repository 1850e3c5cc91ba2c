// Package criv1 has the part of a Kubernetes pod's configuration that husk reads, in the CRI's wire form. The CRI's own
// package would put a description of the whole CRI into the memory of each shim.
package criv1

//go:generate protoc -I ../../.. --go_out=../../.. --go_opt=paths=source_relative api/cri/v1/pod.proto

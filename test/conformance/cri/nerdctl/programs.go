//go:build programs

// Package nerdctl names the program of nerdctl's that the cases run, so that go.sum holds its checksums.
package nerdctl

import (
	_ "github.com/containerd/nerdctl/v2/cmd/nerdctl"
)

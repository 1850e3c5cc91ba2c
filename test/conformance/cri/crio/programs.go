//go:build programs

// Package crio names the program of CRI-O's that the suite runs with, so that go.sum holds its checksums.
package crio

import _ "github.com/cri-o/cri-o/cmd/crio"

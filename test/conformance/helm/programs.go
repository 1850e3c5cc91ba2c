//go:build programs

// Package helm names the program that renders husk's chart, so that go.sum holds its checksums.
package helm

import (
	_ "helm.sh/helm/v3/cmd/helm"
)

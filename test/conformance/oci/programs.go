//go:build programs

// Package oci names what the OCI's validation programs need to be built, so that go.sum holds their checksums.
package oci

import (
	_ "github.com/opencontainers/runtime-tools/generate/seccomp"
	_ "github.com/opencontainers/runtime-tools/validate"
	_ "github.com/opencontainers/runtime-tools/validation/util"
)

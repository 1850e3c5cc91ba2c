package cli

import (
	"fmt"

	"github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"husk.dev/husk/internal/ocispec"
)

// defaultCapabilities are what docker run gives a container.
var defaultCapabilities = []string{
	"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD",
	"CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
}

// defaultSpec is what run starts from: the configuration of husk spec with docker's capabilities and the
// usual seccomp filter, which the guest applies.
func defaultSpec() (specs.Spec, error) {
	spec := ocispec.Example(false, 0, 0)
	spec.Process.Capabilities = &specs.LinuxCapabilities{
		Bounding: defaultCapabilities, Effective: defaultCapabilities, Permitted: defaultCapabilities,
	}
	spec.Process.NoNewPrivileges = false // as docker has it: set-user-ID programs of the image work
	filter, err := seccomp.GetDefaultProfile(&spec)
	if err != nil {
		return spec, fmt.Errorf("make seccomp filter: %w", err)
	}
	spec.Linux.Seccomp = filter
	return spec, nil
}

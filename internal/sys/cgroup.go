package sys

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// UnifiedCgroups tells whether this machine has control groups of version 2 alone.
func UnifiedCgroups() (bool, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs("/sys/fs/cgroup", &fs); err != nil {
		return false, fmt.Errorf("look at control groups: %w", err)
	}
	return fs.Type == unix.CGROUP2_SUPER_MAGIC, nil
}

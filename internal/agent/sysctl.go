package agent

import (
	"fmt"
	"io/fs"
	"os"
	"strings"
)

// setSysctl sets a kernel setting, named with dots as in sysctl(8), in this process' namespaces.
func setSysctl(key, value string) error {
	name := "net/" + strings.ReplaceAll(strings.TrimPrefix(key, "net."), ".", "/")
	if !fs.ValidPath(name) {
		return fmt.Errorf("%q is no name of a setting", key)
	}
	if err := os.WriteFile("/proc/sys/"+name, []byte(value), 0); err != nil {
		return fmt.Errorf("set %s: %w", key, err)
	}
	return nil
}

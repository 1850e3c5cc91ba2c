package mnt

import (
	"path/filepath"
	"strings"

	agentv1 "husk.dev/husk/api/agent/v1"
	"husk.dev/husk/internal/sys"
)

// maxReturned bounds how many mounts are told of.
const maxReturned = 1024

// Returned lists what containers have mounted below parts of shares and what of shares it is, by their paths below the directory
// of shares. Mounts of file systems that are the guest's own are left out: the host has nothing to show for them. What
// containers mount on what they propagate (mount_namespaces(7)) shows in the agent's own mounts, as shares do there.
func (t *Table) Returned() ([]*agentv1.Mounted, error) {
	table, err := sys.MountTable()
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return returned(table, t.share, func(path string) bool { return t.holds[path] > 0 || t.shares[filepath.Base(path)] }), nil
}

// returned finds in a table of mounts those below parts of what is mounted in dir. Each part that the host lent is a file system
// of its own, and so is what the host has mounted below it.
func returned(table []sys.MountPoint, dir string, isPart func(path string) bool) (all []*agentv1.Mounted) {
	parts := map[string]string{} // path by device
	for _, m := range table {
		if _, found := parts[m.Device]; !found && m.Root == "/" && strings.HasPrefix(m.Path, dir+"/") && isPart(m.Path) {
			parts[m.Device] = m.Path
		}
	}
	for _, m := range table {
		target, below := strings.CutPrefix(m.Path, dir+"/")
		part, known := parts[m.Device]
		if !below || !known || isPart(m.Path) || len(all) == maxReturned {
			continue
		}
		source, err := filepath.Rel(dir, filepath.Join(part, m.Root))
		if err != nil {
			continue
		}
		all = append(all, &agentv1.Mounted{Target: target, Source: source})
	}
	return all
}

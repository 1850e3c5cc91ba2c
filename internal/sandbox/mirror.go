package sandbox

import (
	"encoding/json"
	"fmt"
	"strings"

	agentv1 "husk.dev/husk/api/agent/v1"
	"husk.dev/husk/internal/state"
	"husk.dev/husk/internal/storage"
)

// MountsFile is the file in the state directory of a VM that has what its guest has mounted on the host, for
// storage.Unmirror.
const MountsFile = "mounts.json"

// mirror has the host see what containers have mounted where that is to come back. The guest's processes that have done so are
// told of as ended after it.
func (s *Sandbox) mirror(mounts *agentv1.Mounts) {
	s.mu.Lock()
	tree := s.pod.tree
	s.mu.Unlock()
	if tree == nil {
		return // a guest that names what was never lent
	}
	var all []storage.Mounted
	for _, m := range mounts.GetAll() {
		target, ofTree := strings.CutPrefix(m.Target, storage.ShareTag+"/")
		source, known := strings.CutPrefix(m.Source, storage.ShareTag+"/")
		if ofTree && known {
			all = append(all, storage.Mounted{Target: target, Source: source})
		}
	}
	tree.Mirror(all)
}

// mountsHost is where the host sees what containers mount.
func (s *Sandbox) mountsHost() storage.Host {
	return storage.Host{Mounts: s.options.HostMounts, Record: s.recordMounts, Warn: s.grumble}
}

// recordMounts writes down what the guest has mounted on the host, where the directory of the VM is by now.
func (s *Sandbox) recordMounts(all []storage.Mirrored) error {
	data, err := json.Marshal(all)
	if err != nil {
		return fmt.Errorf("record mounts of the guest: %w", err)
	}
	s.mu.Lock() // which who renames the directory has
	defer s.mu.Unlock()
	if err := state.WriteFile(s.pod.dir.Path(MountsFile), data, 0o600); err != nil {
		return fmt.Errorf("record mounts of the guest: %w", err)
	}
	return nil
}

// maxGrumbles is how often a guest can make the owner write to its log by what it mounts.
const maxGrumbles = 100

// grumble logs what a guest has caused, up to a limit.
func (s *Sandbox) grumble(err error) {
	if s.grumbles.Add(1) <= maxGrumbles {
		s.log.Warn("mounts of the guest on the host", "error", printable(err.Error()))
	}
}

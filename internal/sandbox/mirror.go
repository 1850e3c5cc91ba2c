package sandbox

import (
	"encoding/json"
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
	tree, dir := s.pod.tree, s.pod.dir
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
	now, err := tree.Mirror(all)
	if err != nil {
		s.grumble("mounts of the guest on the host", err)
	}
	data, err := json.Marshal(now)
	if err == nil {
		err = state.WriteFile(dir.Path(MountsFile), data, 0o600)
	}
	if err != nil {
		s.grumble("keep a list of the guest's mounts on the host", err)
	}
}

// maxGrumbles is how often a guest can make the owner write to its log by what it mounts.
const maxGrumbles = 100

// grumble logs what a guest has caused, up to a limit. Only the reader of its events calls it.
func (s *Sandbox) grumble(what string, err error) {
	if s.grumbles < maxGrumbles {
		s.grumbles++
		s.log.Warn(what, "error", printable(err.Error()))
	}
}

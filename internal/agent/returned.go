package agent

import (
	"sync"

	"google.golang.org/protobuf/proto"

	agentv1 "husk.dev/husk/api/agent/v1"
	"husk.dev/husk/internal/sys"
)

// returned tells the owner what containers mount for the host to see.
type returned struct {
	begin sync.Once

	mu   sync.Mutex
	on   bool            // guarded by mu
	told *agentv1.Mounts // guarded by mu
}

// reportMounts begins to tell, once.
func (a *Agent) reportMounts() {
	a.returned.begin.Do(func() {
		a.returned.mu.Lock()
		a.returned.on, a.returned.told = true, &agentv1.Mounts{}
		a.returned.mu.Unlock()
		if _, err := sys.FollowMounts(a.tellMounts); err != nil {
			a.log.Warn("mounts of containers are told of when a process ends only", "error", err)
		}
	})
}

// tellMounts tells what has changed since the last time.
func (a *Agent) tellMounts() {
	a.returned.mu.Lock()
	defer a.returned.mu.Unlock()
	if !a.returned.on {
		return
	}
	all, err := a.mounts.Returned()
	if err != nil {
		a.log.Warn("look for mounts of containers", "error", err)
		return
	}
	now := &agentv1.Mounts{All: all}
	if !proto.Equal(now, a.returned.told) {
		a.returned.told = now
		a.events.push(&agentv1.Event{Event: &agentv1.Event_Mounts{Mounts: now}})
	}
}

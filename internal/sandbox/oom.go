package sandbox

import "time"

// Engine is how the engine that had a container made is told what it would see on the host, if the container's processes
// were there.
type Engine struct {
	OOMFiles  []string // empty files that are made when a process was killed for want of memory
	Events    string   // containerd's socket for the events of shims
	Namespace string   // containerd's, that the container is in
}

// oomEvery is how often it is told at most that a container had no memory: a guest can say so as often as it likes.
const oomEvery = time.Second

// oomWait bounds for how long the end of a container waits for the engine to hear of it.
const oomWait = time.Second

// outOfMemory takes the news that the guest's kernel killed a process of the container for want of memory.
func (c *container) outOfMemory() {
	now, tell := time.Now(), c.sandbox.options.OutOfMemory
	c.mu.Lock()
	defer c.mu.Unlock()
	if now.Sub(c.told) < oomEvery {
		return
	}
	c.told = now
	c.publishLocked(Event{Kind: OOM, Time: now})
	if tell == nil {
		return
	}
	select {
	case <-c.telling:
	default:
		if c.telling != nil {
			return // an engine that hangs has no use for more of the same
		}
	}
	telling := make(chan struct{})
	c.telling = telling
	go func() {
		defer close(telling)
		tell(c.id, c.engine)
	}()
}

// awaitTold waits until the engine has heard of what outOfMemory took, for as long as one may that does not hang.
func (c *container) awaitTold() {
	c.mu.Lock()
	telling := c.telling
	c.mu.Unlock()
	if telling == nil {
		return
	}
	select {
	case <-telling:
	case <-time.After(oomWait):
	}
}

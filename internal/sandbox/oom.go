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

// outOfMemory takes the news that the guest's kernel killed a process of the container for want of memory.
func (c *container) outOfMemory() {
	now := time.Now()
	c.mu.Lock()
	tell := now.Sub(c.told) >= oomEvery
	if tell {
		c.told = now
		c.publishLocked(Event{Kind: OOM, Time: now})
	}
	c.mu.Unlock()
	if f := c.sandbox.options.OutOfMemory; tell && f != nil {
		f(c.id, c.engine)
	}
}

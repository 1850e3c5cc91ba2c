package agent

import "sync"

// maxFilters bounds the filters that are kept. A guest has as many as there are kinds of containers in it.
const maxFilters = 16

// filters keeps the seccomp filters that the runner has compiled, by what it compiled them from. Compiling
// docker's default takes more than half of the time that creating a container takes.
type filters struct {
	mu       sync.Mutex
	compiled map[string][]byte // guarded by mu
}

func newFilters() *filters { return &filters{compiled: map[string][]byte{}} }

// get returns the filter for linux.seccomp in the form of spec.Seccomp, or nil.
func (f *filters) get(section []byte) []byte {
	if section == nil {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.compiled[string(section)]
}

// put keeps a filter.
func (f *filters) put(section, filter []byte) {
	if section == nil || filter == nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.compiled) >= maxFilters {
		clear(f.compiled)
	}
	f.compiled[string(section)] = filter
}

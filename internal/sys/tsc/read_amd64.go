package tsc

// read returns the time stamp counter.
func read() uint64

package sys

import (
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// OwnThread runs f, without waiting for it, on a thread that no other goroutine ever runs on and that ends with f: what
// f does to the thread stays with it. It is never the first thread of the process, which Go cannot end and whose
// namespaces are those that /proc shows as the process'.
func OwnThread(f func()) {
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if unix.Gettid() != os.Getpid() {
			f()
			return
		}
		defer runtime.UnlockOSThread()
		done := make(chan struct{})
		OwnThread(func() { defer close(done); f() })
		<-done // held for as long, so that the next one is another
	}()
}

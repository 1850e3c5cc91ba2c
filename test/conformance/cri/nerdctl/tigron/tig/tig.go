// Package tig stands in for the package of nerdctl's tests that its program is linked with, and never calls: the module that
// has it is not published.
package tig

// T is what a test is told by.
type T interface {
	Helper()
	Log(...any)
	FailNow()
	TempDir() string
}

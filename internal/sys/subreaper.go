package sys

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// BecomeSubreaper has orphans among this process' descendants become its children
// (PR_SET_CHILD_SUBREAPER, prctl(2)), so that none of them can be lost sight of.
func BecomeSubreaper() error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become a subreaper: %w", err)
	}
	return nil
}

// Package cleanup is an undo stack: what a function has made is freed in reverse order unless the
// function gets to its end and releases it.
package cleanup

import "errors"

// Stack holds the undo steps of what was made so far. The zero value is empty.
type Stack struct{ steps []func() error }

// Add pushes a step that undoes what the caller just made.
func (s *Stack) Add(undo func() error) { s.steps = append(s.steps, undo) }

// Clean runs the steps, the last added first, each whatever the others return, and empties the stack.
// After Release it does nothing, so it can be deferred.
func (s *Stack) Clean() error {
	var errs []error
	for i := len(s.steps) - 1; i >= 0; i-- {
		errs = append(errs, s.steps[i]())
	}
	s.steps = nil
	return errors.Join(errs...)
}

// Release hands the steps to a new stack and empties this one: what was made is to live on, and the
// caller keeps the returned stack to undo it later.
func (s *Stack) Release() *Stack {
	kept := &Stack{steps: s.steps}
	s.steps = nil
	return kept
}

package agent

import (
	"fmt"

	"google.golang.org/grpc/codes"
)

// state is where a container is in its life.
type state int

const (
	creating state = iota
	created
	running
	paused
	stopped
)

func (s state) String() string {
	return [...]string{"being created", "created", "running", "paused", "stopped"}[s]
}

// moves are the ways from one state to the next.
var moves = map[state][]state{
	creating: {created, stopped},
	created:  {running, stopped},
	running:  {paused, stopped},
	paused:   {running, stopped},
}

// can tells whether a container may go from one state to another.
func (s state) can(next state) bool {
	for _, to := range moves[s] {
		if to == next {
			return true
		}
	}
	return false
}

// wrongState says that a container cannot be done something to.
func wrongState(verb, id string, is state) error {
	return fail(codes.FailedPrecondition, "cannot %s container %q: it is %s", verb, id, is)
}

// move is can as an error that names what was to be done.
func (s state) move(verb, id string, next state) error {
	if s.can(next) {
		return nil
	}
	return fmt.Errorf("%w", wrongState(verb, id, s))
}

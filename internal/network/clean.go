package network

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"
	"time"

	"husk.dev/husk/internal/sys"
	"husk.dev/husk/internal/sys/rtnl"
)

const (
	// dyingWait bounds the wait for a tap to go whose monitor is being killed.
	dyingWait  = 500 * time.Millisecond
	dyingCheck = 10 * time.Millisecond
)

// Clean takes back what a VM that is gone has left in the namespace at path. It needs to know nothing of that
// VM, leaves alone what belongs to one that runs, and may be called at any time. A namespace that is
// gone has nothing left.
func Clean(path string) error {
	err := inSpace(path, func(conn *rtnl.Conn) error {
		for end := time.Now().Add(dyingWait); ; time.Sleep(dyingCheck) {
			living, err := clean(conn)
			if err != nil || !living || time.Now().After(end) {
				return err
			}
		}
	})
	// Where a namespace was mounted its file may be left, of another kind; a process in one may be gone.
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.EINVAL) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("clean up network namespace %s: %w", path, err)
	}
	return nil
}

// inSpace calls f with a connection to the namespace at path, on a thread in it.
func inSpace(path string, f func(*rtnl.Conn) error) error {
	return sys.InNetwork(path, func() error {
		conn, err := rtnl.Open()
		if err != nil {
			return err
		}
		defer conn.Close()
		return f(conn)
	})
}

// clean removes the filters whose taps are gone, and the qdiscs that were made for them. It tells whether there
// is a tap still.
func clean(conn *rtnl.Conn) (living bool, err error) {
	links, err := conn.Links()
	if err != nil {
		return false, err
	}
	for _, l := range links {
		switch {
		case !isTap(l):
		case l.Carrier:
			living = true
		default: // a monitor that was broken into can have its tap outlive it
			if err := unlessGone(conn.DeleteLink(l.Index)); err != nil {
				return living, fmt.Errorf("remove tap %s: %w", l.Name, err)
			}
		}
	}
	qdiscs, err := conn.Qdiscs()
	if err != nil {
		return living, err
	}
	for _, q := range qdiscs {
		if !q.Ingress {
			continue
		}
		if err := unlessGone(cleanOne(conn, q, living)); err != nil {
			return living, err
		}
	}
	return living, nil
}

// cleanOne cleans one interface.
func cleanOne(conn *rtnl.Conn, q rtnl.Qdisc, living bool) error {
	filters, err := conn.Filters(q.Index)
	if err != nil {
		return err
	}
	mark, others := judge(filters)
	if mark == "" && (living || len(filters) > 0) {
		return nil
	}
	if err := conn.DeleteFilters(q.Index, priority); err != nil {
		return fmt.Errorf("remove filter: %w", err)
	}
	// One without filters does nothing: an owner may have been killed before it added its own.
	if q.Kind == "ingress" && !others {
		if err := conn.DeleteIngress(q.Index); err != nil {
			return fmt.Errorf("remove ingress qdisc: %w", err)
		}
	}
	if err := restore(conn, q.Index, mark); err != nil {
		return fmt.Errorf("restore interface: %w", err)
	}
	return nil
}

// judge returns the mark of that of an interface's filters which is ours and has lost its tap, "" without one, and
// whether there are filters of others.
func judge(filters []rtnl.Filter) (mark string, others bool) {
	for _, f := range filters {
		switch {
		case f.Priority != priority:
			others = true
		case strings.HasPrefix(f.Cookie, cookie) && f.Target == 0:
			mark = f.Cookie
		}
	}
	return mark, others
}

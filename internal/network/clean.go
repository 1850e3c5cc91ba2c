package network

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"

	"husk.dev/husk/internal/sys"
	"husk.dev/husk/internal/sys/rtnl"
)

// Clean takes back what a VM that is gone has left in the namespace at path. It needs to know nothing of that
// VM, leaves alone what belongs to one that runs, and may be called at any time. A namespace that is
// gone has nothing left.
func Clean(path string) error {
	err := sys.InNetwork(path, func() error {
		conn, err := rtnl.Open()
		if err != nil {
			return err
		}
		defer conn.Close()
		return clean(conn)
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

// clean removes the filters whose taps are gone, and the qdiscs that were made for them.
func clean(conn *rtnl.Conn) error {
	qdiscs, err := conn.Qdiscs()
	if err != nil {
		return err
	}
	for _, q := range qdiscs {
		if !q.Ingress {
			continue
		}
		filters, err := conn.Filters(q.Index)
		if err != nil {
			return err
		}
		dead, all, others := judge(filters)
		if !dead {
			continue
		}
		if err := unlessGone(conn.DeleteFilters(q.Index, priority)); err != nil {
			return fmt.Errorf("remove filter: %w", err)
		}
		if all {
			if err := unlessGone(conn.SetLink(q.Index, rtnl.Change{Clear: syscall.IFF_ALLMULTI})); err != nil {
				return fmt.Errorf("take multicast back: %w", err)
			}
		}
		if q.Kind == "ingress" && !others {
			if err := unlessGone(conn.DeleteIngress(q.Index)); err != nil {
				return fmt.Errorf("remove ingress qdisc: %w", err)
			}
		}
	}
	return nil
}

// judge says of an interface's filters whether one of ours has lost its tap, whether the interface was told to
// take all multicast for it, and whether there are filters of others.
func judge(filters []rtnl.Filter) (dead, all, others bool) {
	for _, f := range filters {
		ours := f.Cookie == cookie || f.Cookie == cookieAll
		switch {
		case f.Priority != priority:
			others = true
		case ours && f.Target == 0:
			dead, all = true, f.Cookie == cookieAll
		}
	}
	return dead, all, others
}

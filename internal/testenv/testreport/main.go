// Command testreport reads what `go test -json` writes and prints what a person wants of it: a line for
// each package, the whole log of every test that failed, which skips are not accounted for, and the counts.
//
//	go test -json ./... | testreport -skips test/allowed-skips
//
// The last line is "N passed, N failed, N skipped". The exit status is 0 when nothing failed, something ran,
// and every skip is on the list.
package main

import (
	"flag"
	"fmt"
	"io"
	"os"
)

func main() {
	skips := flag.String("skips", "", "file of the tests that may be skipped, lines of \"TestName: reason\" (none: all may)")
	complete := flag.Bool("complete", false, "the run is of all tests: a test on the list that is not in it is a mistake")
	slow := flag.Int("slow", 5, "how many of the slowest tests to name")
	flag.Parse()
	ok, err := run(os.Stdin, os.Stdout, *skips, *complete, *slow)
	if err != nil {
		fmt.Fprintln(os.Stderr, "testreport:", err)
		os.Exit(2)
	}
	if !ok {
		os.Exit(1)
	}
}

// run reports the events of in to out and tells whether the run counts as good.
func run(in io.Reader, out io.Writer, skipFile string, complete bool, slow int) (bool, error) {
	allowed, err := readSkips(skipFile)
	if err != nil {
		return false, err
	}
	r := newReport(out, allowed)
	if err := r.read(in); err != nil {
		return false, fmt.Errorf("read test events: %w", err)
	}
	return r.finish(slow, complete), nil
}

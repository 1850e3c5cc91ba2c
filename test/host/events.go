package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
)

// event is one of go test -json (go doc test2json).
type event struct {
	Action  string
	Package string
	Test    string
	Output  string
	Elapsed float64
}

// events follows the tests of a suite over all the hosts that it takes. What a test has said counts once the test has finished:
// a host that is lost takes the rest with it.
type events struct {
	package_ string
	out      io.Writer
	say      io.Writer

	done                    map[string]bool // tests, not their parts
	passed, failed, skipped int             // tests and parts, as testreport counts
	pending                 map[string][]json.RawMessage
	text                    map[string]string // what tests have printed
	last                    []string          // lines of the package's own
}

// begin returns a writer for what the compiled tests print. finish ends it: a whole run's last events are kept.
func (e *events) begin(ctx context.Context) (w io.Writer, finish func(whole bool) error, err error) {
	e.pending, e.text = map[string][]json.RawMessage{}, map[string]string{}
	cmd := exec.CommandContext(ctx, "go", "tool", "test2json", "-t", "-p", e.package_)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, nil, fmt.Errorf("start go tool test2json: %w", err)
	}
	read := make(chan error, 1)
	var own []json.RawMessage // the package's events
	go func() {
		decoder := json.NewDecoder(out)
		for {
			var raw json.RawMessage
			var ev event
			err := decoder.Decode(&raw)
			if err == nil {
				err = json.Unmarshal(raw, &ev)
			}
			if err != nil {
				_, _ = io.Copy(io.Discard, out)
				read <- err
				return
			}
			if ev.Test == "" {
				own = append(own, raw)
				e.last = append(e.last, ev.Output)
				continue
			}
			e.take(ev, raw)
		}
	}()
	return in, func(whole bool) error {
		_ = in.Close()
		err := <-read
		_ = cmd.Wait()
		if errors.Is(err, io.EOF) {
			err = nil
		}
		if whole && err == nil {
			err = e.write(own)
		}
		return err
	}, nil
}

// take notes an event of a test.
func (e *events) take(ev event, raw json.RawMessage) {
	top, _, part := strings.Cut(ev.Test, "/")
	e.pending[top] = append(e.pending[top], raw)
	e.text[top] += ev.Output
	switch ev.Action {
	case "pass", "fail", "skip":
	default:
		return
	}
	if part {
		return
	}
	e.done[top] = true
	for _, raw := range e.pending[top] {
		var one event
		_ = json.Unmarshal(raw, &one) // it has been decoded once
		switch one.Action {
		case "pass":
			e.passed++
		case "fail":
			e.failed++
		case "skip":
			e.skipped++
		}
	}
	fmt.Fprintf(e.say, "%s %s (%.1f s)\n", ev.Action, ev.Test, ev.Elapsed)
	if ev.Action != "pass" {
		fmt.Fprintln(e.say, strings.TrimRight(e.text[top], "\n"))
	}
	_ = e.write(e.pending[top])
	delete(e.pending, top)
	delete(e.text, top)
}

func (e *events) write(raw []json.RawMessage) error {
	for _, line := range raw {
		if _, err := fmt.Fprintf(e.out, "%s\n", line); err != nil {
			return fmt.Errorf("keep events: %w", err)
		}
	}
	return nil
}

// tail is what the package printed outside of tests, and tests that did not finish, at the end.
func (e *events) tail() string {
	text := strings.Join(e.last, "")
	for _, t := range e.text {
		text += t
	}
	return text[max(0, len(text)-4096):]
}

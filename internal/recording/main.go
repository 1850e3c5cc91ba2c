// Command recording runs the commands of a session in a pseudo terminal and writes what they print, in the time that it
// took them, as an animated SVG. README.md shows what `make recording` makes of docs/recording.session.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	"husk.dev/husk/internal/sys"
)

const usage = `usage: recording SESSION SVG

Each line of SESSION begins with what is done with it:
  $ COMMAND    is typed, run by sh, and its output recorded
  ! COMMAND    is run unseen, before or after; it must not fail
  # TEXT       is shown as a remark
Other lines must be empty.
`

// size of the terminal that commands see; the picture is as high as what they print.
var size = sys.Winsize{Rows: 40, Columns: 92}

// How people type and read: between keys, before the first key, and after the last output.
const (
	perKey    = 30 * time.Millisecond
	toThink   = 400 * time.Millisecond
	toRead    = 900 * time.Millisecond
	toTheEnd  = 4 * time.Second
	oneScreen = 40 * time.Millisecond // output that comes this close together is one event
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	}
	if err := record(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "recording:", err)
		os.Exit(1)
	}
}

// record runs the session in the file from and writes the picture to the file to, which is replaced only by a whole one.
func record(from, to string) error {
	text, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	steps, err := parse(string(text))
	if err != nil {
		return fmt.Errorf("%s: %w", from, err)
	}
	film, err := perform(steps)
	if err != nil {
		return err
	}
	if err := os.WriteFile(to+".partial", film.svg(), 0o644); err != nil {
		return err
	}
	return os.Rename(to+".partial", to)
}

// step is a line of a session.
type step struct {
	kind byte // '$', '!' or '#'
	text string
}

func parse(session string) ([]step, error) {
	var steps []step
	for i, line := range strings.Split(session, "\n") {
		switch {
		case line == "":
		case len(line) > 2 && strings.IndexByte("$!#", line[0]) >= 0 && line[1] == ' ':
			steps = append(steps, step{line[0], line[2:]})
		default:
			return nil, fmt.Errorf("line %d: begins with neither %q, %q nor %q", i+1, "$ ", "! ", "# ")
		}
	}
	return steps, nil
}

// perform runs the steps and films what is seen of them.
func perform(steps []step) (*film, error) {
	f := &film{}
	for _, s := range steps {
		switch s.kind {
		case '!':
			cmd := exec.Command("sh", "-c", s.text)
			cmd.Stderr = os.Stderr
			if err := cmd.Run(); err != nil {
				return nil, fmt.Errorf("run %q: %w", s.text, err)
			}
		case '#':
			f.remark(s.text)
		default:
			f.typed(s.text)
			events, err := run(s.text)
			if err != nil {
				return nil, err
			}
			f.printed(events)
		}
	}
	f.length = f.now + toTheEnd
	return f, nil
}

// event is output that came after some time since the start of its command.
type event struct {
	at   time.Duration
	text string
}

// run runs a command with a terminal. A command that fails fails the recording.
func run(command string) ([]event, error) {
	master, slave, err := sys.PollablePTY()
	if err != nil {
		return nil, err
	}
	defer master.Close()
	if err := sys.ResizePTY(master, size); err != nil {
		slave.Close()
		return nil, err
	}
	cmd := exec.Command("setsid", "--ctty", "--wait", "sh", "-c", command)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.Env = append(os.Environ(), "TERM=xterm-256color")
	began := time.Now()
	err = cmd.Start()
	slave.Close()
	if err != nil {
		return nil, fmt.Errorf("start %q: %w", command, err)
	}
	// Processes that stay in the background keep the terminal open: the end of the command is the end of reading.
	ended := make(chan error, 1)
	go func() {
		ended <- cmd.Wait()
		_ = master.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	}()
	events := read(master, began)
	if err := <-ended; err != nil {
		var all strings.Builder
		for _, e := range events {
			all.WriteString(e.text)
		}
		return nil, fmt.Errorf("run %q: %w: %s", command, err, strings.TrimSpace(all.String()))
	}
	return append(events, event{at: time.Since(began)}), nil
}

// read takes output until the terminal is closed or its deadline has passed, both of which are its end.
func read(master *os.File, began time.Time) []event {
	var events []event
	buffer := make([]byte, 32<<10)
	for {
		n, err := master.Read(buffer)
		if n > 0 {
			at, text := time.Since(began), string(buffer[:n])
			if last := len(events) - 1; last >= 0 && at-events[last].at < oneScreen {
				events[last].text += text
			} else {
				events = append(events, event{at, text})
			}
		}
		if errors.Is(err, io.EOF) || err != nil {
			return events
		}
	}
}

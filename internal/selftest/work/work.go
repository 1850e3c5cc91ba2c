// Package work is what the self-test does inside its containers.
package work

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Verb is the hidden verb of husk that calls Main.
const Verb = "selftest-work"

// Facts is what a container says of itself when it is up, as one line of JSON.
type Facts struct {
	Kernel string `json:"kernel"` // the guest's release
	PID    int    `json:"pid"`    // of the program, as it sees itself
}

// askLimit ends a connection to nobody.
const askLimit = 20 * time.Second

var jobs = map[string]struct {
	args int
	do   func(args []string, in io.Reader, out io.Writer) error
}{
	"hold":  {0, func(_ []string, _ io.Reader, out io.Writer) error { return hold(out) }},
	"echo":  {0, func(_ []string, in io.Reader, out io.Writer) error { _, err := io.Copy(out, in); return err }},
	"files": {2, func(args []string, _ io.Reader, out io.Writer) error { return files(args[0], args[1], out) }},
	"read":  {1, func(args []string, _ io.Reader, out io.Writer) error { return read(args[0], out) }},
	"eat":   {1, func(args []string, _ io.Reader, _ io.Writer) error { return eat(args[0]) }},
	"serve": {1, func(args []string, _ io.Reader, out io.Writer) error { return serve(args[0], out) }},
	"ask":   {2, func(args []string, _ io.Reader, out io.Writer) error { return ask(args[0], args[1], out) }},
	"fail":  {1, func(args []string, _ io.Reader, _ io.Writer) error { return fail(args[0]) }},
}

// ExitError asks for an exit code.
type ExitError int

func (e ExitError) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// Main does the job that args name.
func Main(args []string, in io.Reader, out io.Writer) error {
	if len(args) == 0 {
		return errors.New("which job")
	}
	job, found := jobs[args[0]]
	if !found || len(args)-1 != job.args {
		return fmt.Errorf("no job %q", args)
	}
	return job.do(args[1:], in, out)
}

// hold says that the container is up and waits for its end.
func hold(out io.Writer) error {
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return err
	}
	if err := json.NewEncoder(out).Encode(Facts{Kernel: strings.TrimSpace(string(release)), PID: os.Getpid()}); err != nil {
		return err
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	<-signals
	return nil
}

// The names of files in a volume, and what is in them.
const (
	FromHost, FromGuest = "from-host", "from-guest"
	Text                = "the self-test's\n"
)

// files reads and writes a volume, and tries to write to one that is read-only.
func files(volume, readOnly string, out io.Writer) error {
	for _, dir := range []string{volume, readOnly} {
		data, err := os.ReadFile(filepath.Join(dir, FromHost))
		if err != nil {
			return err
		}
		if string(data) != Text {
			return fmt.Errorf("%s holds %q, the host wrote %q", filepath.Join(dir, FromHost), data, Text)
		}
	}
	if err := os.WriteFile(filepath.Join(volume, FromGuest), []byte(Text), 0o644); err != nil {
		return err
	}
	err := os.WriteFile(filepath.Join(readOnly, FromGuest), []byte(Text), 0o644)
	if !errors.Is(err, syscall.EROFS) {
		return fmt.Errorf("write to a read-only volume: %v, want %w", err, syscall.EROFS)
	}
	return hold(out)
}

func read(name string, out io.Writer) error {
	data, err := os.ReadFile(name)
	if err == nil {
		_, err = out.Write(data)
	}
	return err
}

// eat takes memory, in MiB, and keeps it.
func eat(mib string) error {
	n, err := strconv.Atoi(mib)
	if err != nil {
		return err
	}
	var all [][]byte
	for range n {
		piece := make([]byte, 1<<20)
		for i := 0; i < len(piece); i += 512 {
			piece[i] = byte(i>>9) | 1
		}
		all = append(all, piece)
	}
	return fmt.Errorf("%d MiB were there to take", len(all))
}

// serve sends back what connections bring.
func serve(address string, out io.Writer) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	defer l.Close()
	if _, err := fmt.Fprintln(out, "serving"); err != nil {
		return err
	}
	return Answer(l)
}

// Answer sends back what each connection of l brings, until l is closed.
func Answer(l net.Listener) error {
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(askLimit))
			_, _ = io.Copy(conn, conn) // the other side notices
		}()
	}
}

// ask sends a text to who serves, and prints the answer.
func ask(address, text string, out io.Writer) error {
	answer, err := Ask(address, text)
	if err == nil {
		_, err = fmt.Fprintln(out, answer)
	}
	return err
}

// Ask sends a text to who serves at a TCP address, which is a number, and returns what comes back.
func Ask(address, text string) (answer string, err error) {
	conn, err := net.DialTimeout("tcp", address, askLimit)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(askLimit)); err != nil {
		return "", err
	}
	if _, err := io.WriteString(conn, text); err != nil {
		return "", err
	}
	back := make([]byte, len(text))
	n, err := io.ReadFull(conn, back)
	if err != nil {
		return "", fmt.Errorf("%s answered %q: %w", address, back[:n], err)
	}
	return string(back), nil
}

func fail(code string) error {
	n, err := strconv.Atoi(code)
	if err != nil {
		return err
	}
	return ExitError(n)
}

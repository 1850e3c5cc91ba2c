package runner

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// Classes of crun's errors, for errors.Is.
var (
	ErrNoCommand  = errors.New("command does not exist")
	ErrNotAllowed = errors.New("command cannot be executed")
	ErrNoCwd      = errors.New("working directory cannot be entered")
)

// Error is what crun said, in one line.
type Error struct {
	Text  string
	class error // nil: no class of its own
}

func (e *Error) Error() string { return e.Text }

// Is makes the classes match.
func (e *Error) Is(target error) bool { return e.class != nil && e.class == target }

// classify makes an error of crun's log, lines of JSON objects of which the last error counts. The texts
// are those of crun 1.8.
func classify(log []byte, code uint32) error {
	text := lastError(log)
	quoted := func() string { // crun quotes names as `name`
		_, rest, _ := strings.Cut(text, "`")
		name, _, _ := strings.Cut(rest, "`")
		return name
	}
	switch {
	case text == "":
		return &Error{Text: fmt.Sprintf("crun failed with status %d and said nothing", code)}
	case strings.HasPrefix(text, "executable file `") && strings.Contains(quoted(), "/"):
		return &Error{Text: fmt.Sprintf("exec %q: no such file or directory", quoted()), class: ErrNoCommand}
	case strings.HasPrefix(text, "executable file `"):
		return &Error{Text: fmt.Sprintf("exec %q: executable file not found in $PATH", quoted()), class: ErrNoCommand}
	case strings.HasPrefix(text, "open executable: No such file"):
		return &Error{Text: "exec: no such file or directory", class: ErrNoCommand}
	case strings.HasPrefix(text, "open executable:"):
		return &Error{Text: "exec: permission denied", class: ErrNotAllowed}
	case strings.HasPrefix(text, "exec:"):
		return &Error{Text: strings.ToLower(text), class: ErrNotAllowed}
	case strings.HasPrefix(text, "chdir `"):
		_, reason, _ := strings.Cut(text, "`: ")
		return &Error{Text: fmt.Sprintf("working directory %q: %s", quoted(), strings.ToLower(reason)), class: ErrNoCwd}
	default:
		return &Error{Text: text}
	}
}

// lastError returns the message of the last line that is one.
func lastError(log []byte) string {
	var last string
	for line := range bytes.Lines(log) {
		var entry struct{ Msg, Level string }
		if json.Unmarshal(line, &entry) == nil && entry.Level == "error" && entry.Msg != "" {
			last = entry.Msg
		}
	}
	return strings.ToValidUTF8(last, "?")
}

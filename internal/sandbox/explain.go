package sandbox

import (
	"fmt"
	"strings"
	"unicode"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"husk.dev/husk/internal/guest"
)

// guestError is what a guest's agent answered: its words, which may be anything, and their class.
type guestError struct {
	message string
	code    codes.Code
	lost    bool // it is of the connection, which broke
}

// maxMessage bounds how much of a guest's words goes into an error, in bytes.
const maxMessage = 1024

func (e *guestError) Error() string { return e.message }

// GRPCStatus keeps the class for whoever turns the error into an exit code: NotFound and PermissionDenied
// are a program that does not exist and one that cannot be executed.
func (e *guestError) GRPCStatus() *status.Status { return status.New(e.code, e.message) }

// explain wraps what a call of the agent returned; nil stays nil.
func explain(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	message, code := guest.Reason(err)
	return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), &guestError{message: printable(message), code: code, lost: lost(err)})
}

// explainProgram is explain for a call that runs a command, which the guest's runner does not always name.
func explainProgram(err error, command []string, format string, args ...any) error {
	if err == nil {
		return nil
	}
	message, code := guest.Reason(err)
	if reason, nameless := strings.CutPrefix(message, "exec: "); nameless && len(command) > 0 {
		err = status.Error(code, fmt.Sprintf("exec %q: %s", command[0], reason))
	}
	return explain(err, format, args...)
}

// printable makes a guest's words fit for a log or an error: one line, bounded, without control characters.
func printable(message string) string {
	if len(message) > maxMessage {
		message = message[:maxMessage] + "…"
	}
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return ' '
		case unicode.IsControl(r):
			return -1
		}
		return r
	}, strings.TrimSpace(message))
}

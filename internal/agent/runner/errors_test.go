package runner

import (
	"errors"
	"testing"
)

// The messages are those that crun 1.8.1 was seen to give.
func TestClassify(t *testing.T) {
	for _, c := range []struct {
		name, msg, want string
		class           error
	}{
		{"no such path", "executable file `/nope` not found in $PATH: No such file or directory", `exec "/nope": no such file or directory`, ErrNoCommand},
		{"no such command", "executable file `nope` not found in $PATH: No such file or directory", `exec "nope": executable file not found in $PATH`, ErrNoCommand},
		{"not executable", "open executable: Permission denied", "exec: permission denied", ErrNotAllowed},
		{"directory", "open executable: Operation not permitted", "exec: permission denied", ErrNotAllowed},
		{"format", "exec: Exec format error", "exec: exec format error", ErrNotAllowed},
		{"cwd", "chdir `/nodir`: No such file or directory", `working directory "/nodir": no such file or directory`, ErrNoCwd},
		{"other", "mount `proc` to `proc`: Invalid argument", "mount `proc` to `proc`: Invalid argument", nil},
	} {
		log := `{"msg":"earlier","level":"error","time":"2026-11-22T07:39:48.855078Z"}` + "\n" +
			`{"msg":"` + c.msg + `","level":"error","time":"2026-11-22T07:39:48.855078Z"}` + "\n" +
			`{"msg":"not one","level":"warning"}` + "\nnoise\n"
		err := classify([]byte(log), 1)
		if err.Error() != c.want {
			t.Errorf("%s: %q, want %q", c.name, err, c.want)
		}
		for _, class := range []error{ErrNoCommand, ErrNotAllowed, ErrNoCwd} {
			if errors.Is(err, class) != (class == c.class) {
				t.Errorf("%s: is %v: %v", c.name, class, errors.Is(err, class))
			}
		}
	}
	for _, log := range []string{"", "noise", `{"msg":1}`, `{"msg":"","level":"error"}`} {
		if got := classify([]byte(log), 3).Error(); got != "crun failed with status 3 and said nothing" {
			t.Errorf("%q: %q", log, got)
		}
	}
}

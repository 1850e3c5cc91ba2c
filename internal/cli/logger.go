package cli

import (
	"encoding/json"
	"fmt"
	"os"
	"time"
)

// logger writes the log that engines read: runc's form, one line an entry with level, msg and time.
type logger struct {
	file   *os.File // nil: no log was asked for
	format string
	debug  bool
}

func openLogger(path, format string, debug bool) (*logger, error) {
	l := &logger{format: format, debug: debug}
	if path == "" {
		return l, nil
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	l.file = f
	return l, nil
}

// write appends an entry where a log was asked for.
func (l *logger) write(level, message string) {
	if l.file == nil || level == "debug" && !l.debug {
		return
	}
	now := time.Now().Format(time.RFC3339)
	if l.format == "json" {
		line, err := json.Marshal(map[string]string{"level": level, "msg": message, "time": now})
		if err == nil {
			fmt.Fprintf(l.file, "%s\n", line)
		}
		return
	}
	fmt.Fprintf(l.file, "time=%q level=%s msg=%q\n", now, level, message)
}

// warn tells people and engines what is accepted but not as it was written.
func (a *App) warn(format string, args ...any) {
	message := fmt.Sprintf(format, args...)
	a.log.write("warning", message)
	fmt.Fprintln(a.err, "husk: warning: "+message)
}

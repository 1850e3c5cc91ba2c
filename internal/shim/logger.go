package shim

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

const (
	// binaryScheme names a program that takes a process' output (containerd, core/runtime/v2/README.md, "Logging").
	binaryScheme = "binary"
	// loggerWait bounds the time that such a program may take to be ready.
	loggerWait = 10 * time.Second
)

// startLogger starts the program that a name like "binary:///usr/bin/logger?flag=value" gives and returns what its two
// inputs read. It ends when both are closed.
func startLogger(u *url.URL, namespace, id string, log *slog.Logger) (out, errs *os.File, err error) {
	var open []*os.File // what is not handed to the caller
	defer func() {
		for _, f := range open {
			f.Close()
		}
	}()
	pipe := func() (r, w *os.File) {
		if err == nil {
			if r, w, err = os.Pipe(); err == nil {
				open = append(open, r, w)
			}
		}
		return r, w
	}
	outR, outW := pipe()
	errR, errW := pipe()
	readyR, readyW := pipe()
	if err != nil {
		return nil, nil, fmt.Errorf("make pipe: %w", err)
	}
	var args []string
	for key, values := range u.Query() {
		args = append(args, key)
		if len(values) > 0 {
			args = append(args, values[0])
		}
	}
	cmd := exec.Command(filepath.Clean(u.Path), args...)
	cmd.Env = append(os.Environ(), "CONTAINER_ID="+id, "CONTAINER_NAMESPACE="+namespace)
	cmd.ExtraFiles = []*os.File{outR, errR, readyW}
	if err := cmd.Start(); err != nil {
		return nil, nil, fmt.Errorf("start logger: %w", err)
	}
	go func() {
		if err := cmd.Wait(); err != nil {
			log.Warn("logger", "program", u.Path, "error", err)
		}
	}()
	readyW.Close() // else its end could not be seen
	_ = readyR.SetReadDeadline(time.Now().Add(loggerWait))
	if _, err := readyR.Read(make([]byte, 1)); err != nil && !errors.Is(err, io.EOF) {
		_ = cmd.Process.Kill()
		return nil, nil, fmt.Errorf("wait for logger %s: %w", u.Path, err)
	}
	open = []*os.File{outR, errR, readyR}
	return outW, errW, nil
}

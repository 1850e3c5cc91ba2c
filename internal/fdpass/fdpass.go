// Package fdpass hands open files to another process over a unix socket (SCM_RIGHTS, unix(7)).
package fdpass

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
)

// MaxToken bounds the token that travels with the files, in bytes.
const MaxToken = 64

// Send sends a token and files over c in one message. The files stay the caller's.
func Send(c *net.UnixConn, token string, files ...*os.File) error {
	if token == "" || len(token) > MaxToken || strings.ContainsRune(token, '\n') {
		return fmt.Errorf("send files: token must be 1 to %d bytes on one line", MaxToken)
	}
	fds := make([]int, len(files))
	for i, f := range files {
		fds[i] = int(f.Fd())
	}
	n, oobn, err := c.WriteMsgUnix([]byte(token+"\n"), syscall.UnixRights(fds...), nil)
	if err != nil {
		return fmt.Errorf("send files: %w", err)
	}
	if n != len(token)+1 || oobn == 0 {
		return errors.New("send files: short write")
	}
	return nil
}

// Receive receives one message of Send with exactly count files, which are the caller's from then on. It
// closes whatever arrived in a message that it refuses.
func Receive(c *net.UnixConn, count int) (token string, files []*os.File, err error) {
	data := make([]byte, MaxToken+1)
	oob := make([]byte, syscall.CmsgSpace(4*16))
	n, oobn, flags, _, err := c.ReadMsgUnix(data, oob)
	if err != nil {
		return "", nil, fmt.Errorf("receive files: %w", err)
	}
	files, err = parse(oob[:oobn])
	if err == nil {
		switch {
		case flags&(syscall.MSG_CTRUNC|syscall.MSG_TRUNC) != 0:
			err = errors.New("message is too long")
		case n < 2 || data[n-1] != '\n':
			err = errors.New("message has no token")
		case len(files) != count:
			err = fmt.Errorf("message has %d files, want %d", len(files), count)
		}
	}
	if err != nil {
		for _, f := range files {
			f.Close()
		}
		return "", nil, fmt.Errorf("receive files: %w", err)
	}
	return string(data[:n-1]), files, nil
}

func parse(oob []byte) ([]*os.File, error) {
	messages, err := syscall.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var files []*os.File
	for i := range messages {
		fds, err := syscall.ParseUnixRights(&messages[i])
		if err != nil {
			continue // credentials or the like: no descriptor in it
		}
		for _, fd := range fds {
			syscall.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return files, nil
}

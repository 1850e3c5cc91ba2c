package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

const greeting = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""}, "capabilities": ["oob"]}}`

// monitor plays QEMU's side: each command that arrives is answered with what answer returns.
func monitor(t *testing.T, answer func(c command) string) *qmpClient {
	t.Helper()
	ours, theirs := net.Pipe()
	t.Cleanup(func() { theirs.Close() })
	go func() {
		fmt.Fprintln(theirs, greeting)
		for lines := bufio.NewScanner(theirs); lines.Scan(); {
			var c command
			if json.Unmarshal(lines.Bytes(), &c) != nil {
				theirs.Close()
				return
			}
			fmt.Fprintln(theirs, answer(c))
		}
	}()
	c := newQMP(ours)
	t.Cleanup(func() { c.Close() })
	return c
}

func ctx(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func ok(c command) string { return fmt.Sprintf(`{"return": {"was": %q}, "id": %d}`, c.Execute, c.ID) }

func TestQMPConversation(t *testing.T) {
	c := monitor(t, func(c command) string {
		if c.Execute == "nonsense" {
			return fmt.Sprintf(`{"id": %d, "error": {"class": "CommandNotFound", "desc": "The command nonsense has not been found"}}`, c.ID)
		}
		return `{"event": "RESUME", "timestamp": {"seconds": 1, "microseconds": 2}}` + "\r\n" + ok(c)
	})
	if err := c.handshake(ctx(t)); err != nil {
		t.Fatal(err)
	}
	var result struct{ Was string }
	if err := c.execute(ctx(t), "query-status", nil, &result); err != nil || result.Was != "query-status" {
		t.Errorf("query-status: %+v, %v", result, err)
	}
	var refused *qmpError
	err := c.execute(ctx(t), "nonsense", nil, nil)
	if !errors.As(err, &refused) || refused.Class != "CommandNotFound" || !strings.Contains(err.Error(), "execute nonsense") {
		t.Errorf("nonsense: %v", err)
	}
	if err := c.execute(ctx(t), "stop", nil, nil); err != nil {
		t.Errorf("after a refused command: %v", err)
	}
}

func TestQMPRepliesFindTheirCommands(t *testing.T) {
	var held string
	c := monitor(t, func(c command) string {
		switch c.Execute {
		case "slow":
			held = ok(c)
			return ""
		case "fast":
			return ok(c) + "\n" + held
		}
		return ok(c)
	})
	if err := c.handshake(ctx(t)); err != nil {
		t.Fatal(err)
	}
	slow := make(chan error, 1)
	var result struct{ Was string }
	go func() { slow <- c.execute(ctx(t), "slow", nil, &result) }()
	for {
		c.mu.Lock()
		n := len(c.pending)
		c.mu.Unlock()
		if n == 1 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	var fast struct{ Was string }
	if err := c.execute(ctx(t), "fast", nil, &fast); err != nil || fast.Was != "fast" {
		t.Errorf("fast: %+v, %v", fast, err)
	}
	if err := <-slow; err != nil || result.Was != "slow" {
		t.Errorf("slow: %+v, %v", result, err)
	}
}

func TestQMPDropsALateReply(t *testing.T) {
	release := make(chan struct{})
	c := monitor(t, func(c command) string {
		if c.Execute == "late" {
			<-release
		}
		return ok(c)
	})
	if err := c.handshake(ctx(t)); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := c.execute(short, "late", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("late: %v", err)
	}
	close(release)
	var result struct{ Was string }
	if err := c.execute(ctx(t), "next", nil, &result); err != nil || result.Was != "next" {
		t.Errorf("next: %+v, %v", result, err)
	}
}

func TestQMPEndsWithABrokenMonitor(t *testing.T) {
	for _, c := range []struct{ name, says, want string }{
		{"nothing", "", "EOF"},
		{"no JSON", "hello\n", "decode QMP"},
		{"endless line", strings.Repeat("a", maxLine+10), "too long"},
		{"two greetings", greeting + "\n" + greeting + "\n", "mid-conversation"},
		{"reply to nobody", `{"return": {}}` + "\n", "without id"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ours, theirs := net.Pipe()
			client := newQMP(ours)
			go func() {
				_, _ = io.WriteString(theirs, c.says) // it fails when the client has had enough
				theirs.Close()
			}()
			select {
			case <-client.done:
			case <-time.After(10 * time.Second):
				t.Fatal("the client still listens")
			}
			if err := client.err(); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("ended with %v, want %s", err, c.want)
			}
			if err := client.execute(ctx(t), "stop", nil, nil); err == nil {
				t.Error("a command to a broken monitor succeeds")
			}
		})
	}
}

func TestQMPRemembersWhyTheGuestEnds(t *testing.T) {
	c := monitor(t, func(c command) string {
		return `{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown"}}` + "\n" + ok(c)
	})
	if err := c.handshake(ctx(t)); err != nil {
		t.Fatal(err)
	}
	if got := c.endReason(); got != "the guest powered off" {
		t.Errorf("reason %q", got)
	}
}

func FuzzDecode(f *testing.F) {
	for _, seed := range []string{
		greeting, `{"return": {}, "id": 1}`, `{"return": null, "id": 0}`, `{"error": {"class": "a", "desc": "b"}, "id": 2}`,
		`{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-reset"}}`, `{"event": "X", "data": []}`,
		`{"id": -1}`, `[]`, `null`, `{"return": 1, "error": {}}`, `{"QMP": 1, "event": "a"}`, "\x00", `{"event": 1}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		m, err := decode(line)
		if err != nil {
			if m.Event != "" || m.ID != nil || m.Return != nil {
				t.Errorf("an error and %+v", m)
			}
			return
		}
		reply := m.Return != nil || m.Error != nil
		if reply && m.ID == nil {
			t.Error("a reply without an id was taken")
		}
		if reply == (m.Greeting != nil || m.Event != "") {
			t.Errorf("not exactly one kind: %+v", m)
		}
		if m.Error != nil && len(m.Error.Error()) > 4*(512+64)+8 {
			t.Errorf("an error of %d bytes", len(m.Error.Error()))
		}
		if len(endReason(m)) > 512 {
			t.Errorf("a reason of %d bytes", len(endReason(m)))
		}
	})
}

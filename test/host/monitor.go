package host

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"time"
)

// monitorWait bounds one answer of QEMU's monitor.
const monitorWait = 2 * time.Minute

// monitor is QEMU's, by QMP (QEMU Machine Protocol).
type monitor struct {
	conn net.Conn
	in   *bufio.Reader
}

// openMonitor says hello on the socket.
func openMonitor(conn net.Conn) (*monitor, error) {
	m := &monitor{conn: conn, in: bufio.NewReader(conn)}
	if err := conn.SetDeadline(time.Now().Add(monitorWait)); err != nil {
		return nil, err
	}
	if _, err := m.in.ReadBytes('\n'); err != nil {
		return nil, fmt.Errorf("read QEMU's greeting: %w", err)
	}
	return m, m.do("qmp_capabilities", nil, nil)
}

// do executes one command and decodes its answer into answer, which may be nil.
func (m *monitor) do(command string, arguments map[string]any, answer any) error {
	if err := m.conn.SetDeadline(time.Now().Add(monitorWait)); err != nil {
		return err
	}
	request := map[string]any{"execute": command}
	if arguments != nil {
		request["arguments"] = arguments
	}
	if err := json.NewEncoder(m.conn).Encode(request); err != nil {
		return fmt.Errorf("ask QEMU for %s: %w", command, err)
	}
	for {
		line, err := m.in.ReadBytes('\n')
		if err != nil {
			return fmt.Errorf("await QEMU's answer to %s: %w", command, err)
		}
		var got struct {
			Return json.RawMessage `json:"return"`
			Error  *struct {
				Desc string `json:"desc"`
			} `json:"error"`
		}
		if err := json.Unmarshal(line, &got); err != nil {
			return fmt.Errorf("decode QEMU's answer to %s: %w", command, err)
		}
		switch {
		case got.Error != nil:
			return fmt.Errorf("QEMU: %s: %s", command, got.Error.Desc)
		case got.Return == nil: // an event
		case answer == nil:
			return nil
		default:
			return json.Unmarshal(got.Return, answer)
		}
	}
}

// migrate saves the machine to a file, or continues it from one: command is "migrate" or "migrate-incoming".
func (m *monitor) migrate(command, uri string) error {
	// The memory is a file of its own.
	shared := map[string]any{"capabilities": []any{map[string]any{"capability": "x-ignore-shared", "state": true}}}
	if err := m.do("migrate-set-capabilities", shared, nil); err != nil {
		return err
	}
	if err := m.do(command, map[string]any{"uri": uri}, nil); err != nil {
		return err
	}
	for end := time.Now().Add(monitorWait); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		var state struct {
			Status string `json:"status"`
			Why    string `json:"error-desc"`
		}
		if err := m.do("query-migrate", nil, &state); err != nil {
			return err
		}
		switch state.Status {
		case "completed":
			return nil
		case "failed", "cancelled":
			return fmt.Errorf("QEMU: %s: %s: %s", command, state.Status, state.Why)
		}
	}
	return fmt.Errorf("QEMU: %s: not done after %v", command, monitorWait)
}

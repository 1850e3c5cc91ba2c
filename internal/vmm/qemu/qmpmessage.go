package qemu

import (
	"encoding/json"
	"errors"
	"fmt"
)

// maxLine bounds one message of QEMU's: one is a line of JSON.
const maxLine = 1 << 20

// command is what we send, after QEMU's docs/interop/qmp-spec.txt.
type command struct {
	Execute   string `json:"execute"`
	Arguments any    `json:"arguments,omitempty"`
	ID        uint64 `json:"id"`
}

// message is what QEMU sends: a greeting, a reply or an event. Exactly one of Greeting, Return, Error
// and Event is set.
type message struct {
	Greeting json.RawMessage `json:"QMP"`
	Return   json.RawMessage `json:"return"`
	Error    *qmpError       `json:"error"`
	Event    string          `json:"event"`
	Data     json.RawMessage `json:"data"`
	ID       *uint64         `json:"id"`
}

// qmpError is a command that QEMU refused.
type qmpError struct {
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

func (e *qmpError) Error() string { return fmt.Sprintf("%.512s (%.64s)", e.Desc, e.Class) }

// decode reads one line. A reply without an id answers something that was no command of ours, and is
// as wrong as no message at all.
func decode(line []byte) (message, error) {
	var m message
	if len(line) > maxLine {
		return m, fmt.Errorf("decode QMP message: %d bytes, at most %d", len(line), maxLine)
	}
	if err := json.Unmarshal(line, &m); err != nil {
		return message{}, fmt.Errorf("decode QMP message: %w", err)
	}
	kinds := 0
	for _, set := range []bool{m.Greeting != nil, m.Return != nil, m.Error != nil, m.Event != ""} {
		if set {
			kinds++
		}
	}
	if kinds != 1 {
		return message{}, errors.New("decode QMP message: not one of greeting, reply and event")
	}
	if (m.Return != nil || m.Error != nil) && m.ID == nil {
		return message{}, errors.New("decode QMP message: reply without id")
	}
	return m, nil
}

// ending is the data of the events that tell why a guest ends.
type ending struct {
	Guest  bool   `json:"guest"`
	Reason string `json:"reason"`
	Action string `json:"action"`
}

// endReason puts an event into words: why the VM is about to end, or nothing for every other event.
func endReason(m message) string {
	var e ending
	if len(m.Data) > 0 && json.Unmarshal(m.Data, &e) != nil {
		return ""
	}
	switch m.Event {
	case "GUEST_PANICKED":
		return "the guest's kernel panicked"
	case "SHUTDOWN", "RESET":
		switch e.Reason {
		case "guest-shutdown":
			return "the guest powered off"
		case "guest-reset":
			return "the guest rebooted, or its kernel panicked"
		case "guest-panic":
			return "the guest's kernel panicked"
		case "host-signal":
			return "a signal asked QEMU to end"
		}
		return fmt.Sprintf("shutdown (%.32q)", e.Reason)
	}
	return ""
}

// deletedDevice is the id of the device that an event says is gone, empty for every other event.
func deletedDevice(m message) string {
	var data struct {
		Device string `json:"device"`
	}
	if m.Event != "DEVICE_DELETED" || json.Unmarshal(m.Data, &data) != nil {
		return ""
	}
	return data.Device
}

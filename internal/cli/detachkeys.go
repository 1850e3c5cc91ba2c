package cli

import (
	"bytes"
	"fmt"
	"strings"
)

// defaultDetachKeys are docker's.
const defaultDetachKeys = "ctrl-p,ctrl-q"

// parseKeys takes keys as docker does: characters, and ctrl- with one of a to z and @[\]^_, separated by commas. Nothing is no
// keys.
func parseKeys(s string) (keys []byte, err error) {
	if s == "" {
		return nil, nil
	}
	for _, key := range strings.Split(s, ",") {
		name, ctrl := strings.CutPrefix(strings.ToLower(key), "ctrl-")
		switch {
		case !ctrl && len(key) == 1:
			keys = append(keys, key[0])
		case strings.EqualFold(key, "del"):
			keys = append(keys, 127)
		case ctrl && len(name) == 1 && (name[0] >= 'a' && name[0] <= 'z' || strings.Contains("@[\\]^_", name)):
			keys = append(keys, name[0]&0x1f) // as terminals make it
		default:
			return nil, fmt.Errorf("--detach-keys %q: %q must be a character, DEL, or ctrl- and one of a to z and @[\\]^_", s, key)
		}
	}
	return keys, nil
}

// keyFilter looks for keys in what is typed.
type keyFilter struct {
	keys  []byte
	typed []byte // of keys, so far
}

// pass returns what of p is for the container, and whether the keys were typed; then the rest of p is nobody's.
func (k *keyFilter) pass(p []byte) (rest []byte, typed bool) {
	if len(k.keys) == 0 {
		return p, false
	}
	for _, b := range p {
		k.typed = append(k.typed, b)
		for !bytes.HasPrefix(k.keys, k.typed) {
			rest = append(rest, k.typed[0])
			k.typed = k.typed[1:]
		}
		if len(k.typed) == len(k.keys) {
			return rest, true
		}
	}
	return rest, false
}

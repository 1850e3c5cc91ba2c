package cli

import "testing"

func TestDetachKeys(t *testing.T) {
	for keys, want := range map[string]string{
		"ctrl-p,ctrl-q": "\x10\x11", "a": "a", "CTRL-A,D": "\x01D", "ctrl-@": "\x00", "ctrl-[,ctrl-\\,ctrl-],ctrl-^,ctrl-_": "\x1b\x1c\x1d\x1e\x1f",
		"DEL": "\x7f", "": "",
	} {
		if got, err := parseKeys(keys); err != nil || string(got) != want {
			t.Errorf("parseKeys(%q) = %q, %v, want %q", keys, got, err, want)
		}
	}
	for _, keys := range []string{"ab", "ctrl-", "ctrl-1", "ctrl-pq", "a,", ",", "shift-a"} {
		if got, err := parseKeys(keys); err == nil {
			t.Errorf("parseKeys(%q) = %q, want an error", keys, got)
		}
	}
	for _, c := range []struct {
		keys, typed, rest string
		detach            bool
	}{
		{"pq", "hello", "hello", false},
		{"pq", "xpqy", "x", true},
		{"pq", "pxq", "pxq", false},
		{"pq", "ppq", "p", true},
		{"aab", "aaab", "a", true},
		{"pq", "xp", "x", false}, // which waits for the next key
		{"", "pq", "pq", false},
		{"p", "p", "", true},
	} {
		whole := &keyFilter{keys: []byte(c.keys)}
		rest, detach := whole.pass([]byte(c.typed))
		if string(rest) != c.rest || detach != c.detach {
			t.Errorf("%q of %q at once: %q, %v, want %q, %v", c.typed, c.keys, rest, detach, c.rest, c.detach)
		}
		single := &keyFilter{keys: []byte(c.keys)}
		var all []byte
		for i := range c.typed {
			if rest, detach = single.pass([]byte{c.typed[i]}); rest != nil {
				all = append(all, rest...)
			}
			if detach {
				break
			}
		}
		if string(all) != c.rest || detach != c.detach {
			t.Errorf("%q of %q one by one: %q, %v, want %q, %v", c.typed, c.keys, all, detach, c.rest, c.detach)
		}
	}
}

package sys

import "testing"

func TestUnescape(t *testing.T) {
	if got := Unescape(`/a\040b\134\011`); got != "/a b\\\t" {
		t.Errorf("Unescape = %q", got)
	}
}

package main

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// shown are the lines that a film ends with.
func shown(f *film) []string {
	var lines []string
	for _, l := range f.lines {
		var text strings.Builder
		for _, p := range l.pieces {
			text.WriteString(p.text)
		}
		lines = append(lines, text.String())
	}
	return lines
}

func TestPerform(t *testing.T) {
	unseen := filepath.Join(t.TempDir(), "unseen")
	steps, err := parse("# a remark\n\n$ printf 'one\\ntwo'; sleep 0.3; printf ' more\\n'\n! touch " + unseen + "\n$ tty; stty size\n")
	if err != nil {
		t.Fatal(err)
	}
	f, err := perform(steps)
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Join(shown(f), "\n")
	want := regexp.MustCompile(`^# a remark\n\$ printf .*\none\ntwo more\n\$ tty; stty size\n/dev/pts/\d+\n40 92$`)
	if !want.MatchString(got) {
		t.Errorf("the film ends with\n%s", got)
	}
	if _, err := os.Stat(unseen); err != nil {
		t.Errorf("what is not shown did not run: %v", err)
	}
	pieces := f.lines[3].pieces
	if wait := pieces[1].at - pieces[0].at; wait < 250*time.Millisecond {
		t.Errorf("what was printed 300 ms later is shown %v later", wait)
	}
	for i := 1; i < len(f.lines); i++ {
		if f.lines[i].pieces[0].at < f.lines[i-1].pieces[0].at {
			t.Errorf("line %d is shown before the line above", i)
		}
	}
}

func TestFailures(t *testing.T) {
	for session, want := range map[string]string{
		"$ echo said; exit 3": `run "echo said; exit 3": exit status 3: said`,
		"! exit 4":            `run "exit 4": exit status 4`,
		"echo":                "line 1: begins with neither",
	} {
		dir := t.TempDir()
		from, to := filepath.Join(dir, "session"), filepath.Join(dir, "svg")
		if err := os.WriteFile(from, []byte(session), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := record(from, to); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, want %q", session, err, want)
		}
		if _, err := os.Stat(to); err == nil {
			t.Errorf("%q: a picture was written", session)
		}
	}
}

func TestWriter(t *testing.T) {
	long := strings.Repeat("x", int(size.Columns)) + "yz"
	for output, want := range map[string]string{
		"a\r\nb\r\n":                     "a\nb",
		"\r\n\r\nc":                      "\n\nc",
		"\x1b[1mbold\x1b[0m plain":       "bold plain",
		"\x1b[31;1mred\x1b[m\x1b]0":      "red0",
		"\x1b[2K\x1b[?25lwithout cursor": "without cursor",
		long:                             long[:len(long)-2] + "\nyz",
	} {
		f := &film{}
		w := writer{film: f}
		for _, b := range []byte(output) { // sequences may be cut anywhere
			w.write(string(b))
		}
		if got := strings.Join(shown(f), "\n"); got != want {
			t.Errorf("%q is shown as %q, want %q", output, got, want)
		}
	}
	f := &film{}
	w := writer{film: f}
	w.write("\x1b[1mbold\x1b[0m plain")
	if p := f.lines[0].pieces; p[0].style != bold || p[1].style != plain {
		t.Errorf("styles are %q, %q", p[0].style, p[1].style)
	}
}

// TestSVG checks that the picture is XML, keeps what it shows apart from what it is, and has no script.
func TestSVG(t *testing.T) {
	f := &film{}
	f.remark("a <b> & \"c\"")
	f.typed("echo '<script>'")
	f.printed([]event{{time.Second, "<script>alert(1)</script>\r\n"}, {at: 2 * time.Second}})
	f.length = f.now + toTheEnd
	picture := f.svg()
	var texts []string
	d := xml.NewDecoder(bytes.NewReader(picture))
	inText := false
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("%v in\n%s", err, picture)
		}
		switch token := token.(type) {
		case xml.StartElement:
			if name := token.Name.Local; name == "script" || name == "foreignObject" || name == "image" {
				t.Errorf("the picture has a %s", name)
			}
			inText = token.Name.Local == "text"
		case xml.EndElement:
			inText = false
		case xml.CharData:
			if inText {
				texts = append(texts, string(token))
			}
		}
	}
	want := []string{"# a <b> & \"c\"", "$ ", "echo '<script>'", "<script>alert(1)</script>"}
	if strings.Join(texts, "|") != strings.Join(want, "|") {
		t.Errorf("the picture shows %q, want %q", texts, want)
	}
	for _, m := range regexp.MustCompile(`([\d.]+)%\{`).FindAllSubmatch(picture, -1) {
		if len(m[1]) > 7 {
			t.Errorf("a time is %s %%", m[1])
		}
	}
}

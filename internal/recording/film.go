package main

import (
	"strings"
	"time"
	"unicode/utf8"
)

// film is all that is seen, line by line: nothing that was printed goes away again, so what a line shows at its end says
// all. Lines that are longer than the window go on in the next.
type film struct {
	lines  []line
	now    time.Duration // of the last thing that happened
	length time.Duration // of the whole
}

// line is one row of the window.
type line struct {
	pieces []piece
	// typed says how long the keys of a command take, 0 where the line was printed.
	typed time.Duration
}

// piece is text of one look that appears at once, or with the keys of its line.
type piece struct {
	at     time.Duration
	column int
	text   string
	style  style
}

// style is how a piece looks.
type style string

const (
	plain   style = ""
	bold    style = "b"
	remark  style = "r"
	prompt  style = "p"
	command style = "c"
)

// remark shows a line that nobody typed.
func (f *film) remark(text string) {
	if len(f.lines) > 0 {
		f.lines = append(f.lines, line{})
		f.now += toRead
	}
	f.lines = append(f.lines, line{pieces: []piece{{at: f.now, text: "# " + text, style: remark}}})
}

// typed shows a prompt and the keys of a command.
func (f *film) typed(text string) {
	keys := time.Duration(utf8.RuneCountInString(text)) * perKey
	f.lines = append(f.lines, line{typed: keys, pieces: []piece{
		{at: f.now, text: "$ ", style: prompt},
		{at: f.now + toThink, column: 2, text: text, style: command},
	}})
	f.now += toThink + keys
}

// printed shows the output of a command that was typed just now.
func (f *film) printed(events []event) {
	began := f.now
	w := writer{film: f}
	for _, e := range events {
		f.now = began + e.at
		w.write(e.text)
	}
	f.now += toRead
}

// writer puts output into lines. Of a terminal's control sequences it knows bold and its end; it leaves out all others,
// colours among them.
type writer struct {
	film    *film
	open    bool // the last line of the film takes more
	column  int
	style   style
	control string // a control sequence that is not whole yet
}

func (w *writer) write(text string) {
	text = w.control + text
	w.control = ""
	for text != "" {
		end := strings.IndexAny(text, "\r\n\x1b")
		switch {
		case end < 0:
			w.put(text)
			return
		case end > 0:
			w.put(text[:end])
			text = text[end:]
		case text[0] == '\n':
			if !w.open {
				w.film.lines = append(w.film.lines, line{})
			}
			w.open, w.column, text = false, 0, text[1:]
		case text[0] == '\r':
			w.column, text = 0, text[1:]
		default:
			rest, whole := w.escape(text)
			if !whole {
				w.control = text
				return
			}
			text = rest
		}
	}
}

// escape takes the control sequence (ECMA-48, 5.4) that text begins with, if it is whole.
func (w *writer) escape(text string) (rest string, whole bool) {
	if len(text) < 2 {
		return text, false
	}
	if text[1] != '[' {
		return text[2:], true
	}
	end := strings.IndexFunc(text[2:], func(r rune) bool { return r >= '@' && r <= '~' })
	if end < 0 {
		return text, false
	}
	parameters, final := text[2:2+end], text[2+end]
	if final == 'm' {
		w.style = plain
		if parameters == "1" {
			w.style = bold
		}
	}
	return text[2+end+1:], true
}

// put shows text without control characters.
func (w *writer) put(text string) {
	text = strings.ReplaceAll(strings.ReplaceAll(text, "\t", "        "), "\b", "")
	for text != "" {
		if !w.open {
			w.film.lines = append(w.film.lines, line{})
			w.open, w.column = true, 0
		}
		room := int(size.Columns) - w.column
		if room == 0 {
			w.open = false
			continue
		}
		runes := []rune(text)
		part := runes[:min(room, len(runes))]
		last := &w.film.lines[len(w.film.lines)-1]
		last.pieces = append(last.pieces, piece{at: w.film.now, column: w.column, text: string(part), style: w.style})
		w.column += len(part)
		text = string(runes[len(part):])
	}
}

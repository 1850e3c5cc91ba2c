package main

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"time"
	"unicode/utf8"
)

// Measures of the picture, in its own units: a README is some 900 wide.
const (
	charWidth  = 9.0
	lineHeight = 21.0
	fontSize   = 15
	margin     = 18.0
	titleBar   = 34.0
)

// look is the style sheet: a dark terminal, in a window so that its edge is seen on a dark page too. What asks for no
// motion, or knows no animation, shows the last picture.
const look = `text{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono","Liberation Mono",monospace;font-size:%dpx;fill:#d6deeb;white-space:pre}
.b{font-weight:700}.r{fill:#7f8ea3}.p{fill:#7fdbca;font-weight:700}.c{fill:#fff}
.a{animation-duration:%.2fs;animation-iteration-count:infinite;animation-timing-function:step-end}
@media(prefers-reduced-motion:reduce){.a{animation-name:none!important}}
`

// svg draws the film: what appears at one time has one animation, which hides it until then.
func (f *film) svg() []byte {
	width := 2*margin + charWidth*float64(size.Columns)
	height := titleBar + 2*margin + lineHeight*float64(len(f.lines))
	var style, body bytes.Buffer
	fmt.Fprintf(&style, look, fontSize, f.length.Seconds())
	names := map[time.Duration]string{}
	for row, l := range f.lines {
		y := titleBar + margin + lineHeight*(float64(row)+0.75)
		for _, p := range l.pieces {
			name := ""
			switch {
			case p.style == command && l.typed > 0:
				name = fmt.Sprintf("k%d", row)
				f.keys(&style, name, p, l.typed)
			case p.at > 0:
				if name = names[p.at]; name == "" {
					name = fmt.Sprintf("t%d", len(names))
					names[p.at] = name
					fmt.Fprintf(&style, "@keyframes %s{0%%{visibility:hidden}%s{visibility:visible}}\n", name, f.percent(p.at))
				}
			}
			text(&body, p, y, name)
		}
	}
	var out bytes.Buffer
	fmt.Fprintf(&out, `<svg xmlns="http://www.w3.org/2000/svg" width="%.0f" height="%.0f" viewBox="0 0 %[1]f %[2]f" role="img" aria-label="A terminal in which husk runs containers">`+"\n", width, height)
	fmt.Fprintf(&out, "<style>\n%s</style>\n", style.Bytes())
	fmt.Fprintf(&out, `<rect x="0.5" y="0.5" width="%f" height="%f" rx="8" fill="#0d1520" stroke="#3a4657"/>`+"\n", width-1, height-1)
	for i, colour := range []string{"#ff5f57", "#febc2e", "#28c840"} {
		fmt.Fprintf(&out, `<circle cx="%d" cy="17" r="5.5" fill="%s"/>`+"\n", 20+18*i, colour)
	}
	out.Write(body.Bytes())
	out.WriteString("</svg>\n")
	return out.Bytes()
}

// keys animates a command that is typed: it is uncovered letter by letter.
func (f *film) keys(style *bytes.Buffer, name string, p piece, typed time.Duration) {
	fmt.Fprintf(style, "@keyframes %s{0%%{clip-path:inset(-5px 100%% -5px 0)}%s{clip-path:inset(-5px 100%% -5px 0);animation-timing-function:steps(%d,end)}%s{clip-path:inset(-5px 0 -5px 0)}}\n",
		name, f.percent(p.at), utf8.RuneCountInString(p.text), f.percent(p.at+typed))
}

// percent is a time as a part of the film.
func (f *film) percent(at time.Duration) string {
	return fmt.Sprintf("%.3f%%", 100*at.Seconds()/f.length.Seconds())
}

// text draws a piece as wide as its characters, whatever font there is.
func text(out *bytes.Buffer, p piece, y float64, animation string) {
	count := utf8.RuneCountInString(p.text)
	fmt.Fprintf(out, `<text x="%.1f" y="%.1f" textLength="%.1f" lengthAdjust="spacingAndGlyphs" xml:space="preserve"`,
		margin+charWidth*float64(p.column), y, charWidth*float64(count))
	class := string(p.style)
	if animation != "" {
		class = trim(class + " a")
		fmt.Fprintf(out, ` style="animation-name:%s"`, animation)
	}
	if class != "" {
		fmt.Fprintf(out, ` class="%s"`, class)
	}
	out.WriteByte('>')
	_ = xml.EscapeText(out, []byte(p.text)) // a buffer takes all
	out.WriteString("</text>\n")
}

func trim(class string) string {
	if class[0] == ' ' {
		return class[1:]
	}
	return class
}

package bench

import (
	"encoding/xml"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
)

// Measures of the chart, in pixels.
const (
	chartWidth  = 860
	chartLeft   = 300 // where bars begin
	chartRight  = 150 // room for a bar's text
	barHeight   = 14
	barStep     = 18
	chartHeader = 74
)

// colours of runtimes in the order of the report, readable on white and told apart without colour vision.
var colours = []string{"#0072b2", "#56b4e9", "#d55e00", "#e69f00", "#009e73", "#cc79a7", "#666666"}

// Chart writes the ratios of a finished report's main measures as an SVG image: a bar for each runtime, to
// the right of the base's line where it is worse, to the left where it is better, on a logarithmic scale.
func (r *Report) Chart(out io.Writer) error {
	low, high := 0.5, 2.0
	var main []Measure
	bars := 0
	for _, m := range r.Measures {
		results := r.charted(m)
		if len(results) == 0 {
			continue
		}
		main = append(main, m)
		bars += len(results)
		for _, res := range results {
			low, high = min(low, res.Ratio), max(high, res.Ratio)
		}
	}
	if len(main) == 0 {
		return fmt.Errorf("nothing to draw: no main measure has a ratio")
	}
	scale := func(ratio float64) float64 {
		part := (math.Log(ratio) - math.Log(low)) / (math.Log(high) - math.Log(low))
		return chartLeft + part*(chartWidth-chartLeft-chartRight)
	}
	height := chartHeader + bars*barStep + len(main)*10 + 30
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %[1]d %[2]d" font-family="sans-serif" font-size="12">`+"\n", chartWidth, height)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="#fff"/>`+"\n", chartWidth, height)
	text(&b, 16, 24, "start", "16", "How much worse than the base (1 x), medians, logarithmic")
	r.key(&b)
	fmt.Fprintf(&b, `<line x1="%.1f" y1="%d" x2="%[1]f" y2="%d" stroke="#000"/>`+"\n", scale(1), chartHeader-6, height-24)
	y := chartHeader
	for _, m := range main {
		for i, res := range r.charted(m) {
			if i == 0 {
				text(&b, chartLeft-12, y+barHeight-3, "end", "12", m.Title)
			}
			r.bar(&b, res, scale, y, m.Unit)
			y += barStep
		}
		y += 10
	}
	b.WriteString("</svg>\n")
	_, err := io.WriteString(out, b.String())
	return err
}

// charted are the results of a measure that have a bar.
func (r *Report) charted(m Measure) (results []Result) {
	compared := false
	for _, res := range r.Results {
		if m.Main && res.Measure == m.Name && res.Ratio > 0 {
			results = append(results, res)
			compared = compared || res.Base != res.Runtime
		}
	}
	if !compared {
		return nil
	}
	return results
}

// bar draws one result.
func (r *Report) bar(b *strings.Builder, res Result, scale func(float64) float64, y int, unit string) {
	from, to := min(scale(1), scale(res.Ratio)), max(scale(1), scale(res.Ratio))
	fmt.Fprintf(b, `<rect x="%.1f" y="%d" width="%.1f" height="%d" fill="%s"/>`+"\n", from, y, max(to-from, 1), barHeight, r.colour(res.Runtime))
	label := fmt.Sprintf("%s x (%s %s)", number(res.Ratio), number(res.P50), unit)
	if res.Base == res.Runtime {
		label = fmt.Sprintf("base: %s %s", number(res.P50), unit)
	}
	text(b, to+6, y+barHeight-3, "start", "11", strings.TrimSpace(label))
}

// key names the colours.
func (r *Report) key(b *strings.Builder) {
	x := 16
	for _, name := range r.coloured() {
		fmt.Fprintf(b, `<rect x="%d" y="38" width="12" height="12" fill="%s"/>`+"\n", x, r.colour(name))
		text(b, float64(x+17), 48, "start", "12", name)
		x += 40 + 7*len(name)
	}
}

func (r *Report) coloured() []string { return append(names(r.Runtimes), native) }

func (r *Report) colour(name string) string {
	return colours[max(0, slices.Index(r.coloured(), name))%len(colours)]
}

func text[N int | float64](b *strings.Builder, x N, y int, anchor, size, s string) {
	fmt.Fprintf(b, `<text x="%.1f" y="%d" text-anchor="%s" font-size="%s">`, float64(x), y, anchor, size)
	_ = xml.EscapeText(b, []byte(s)) // a Builder takes everything
	b.WriteString("</text>\n")
}

package bench

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
)

// section is a group's table.
type section struct {
	title string
	rows  [][]string
}

var header = []string{"MEASURE", "UNIT", "RUNTIME", "N", "P50", "P95", "P99", "RATIO"}

// sections are the tables of a finished report.
func (r *Report) sections() (list []section) {
	for _, g := range groups {
		sec := section{title: g.title}
		last := ""
		for _, m := range r.Measures {
			if m.Group != g.name {
				continue
			}
			for _, res := range r.Results {
				if res.Measure != m.Name {
					continue
				}
				title, unit := m.Title, m.Unit
				if m.Name == last {
					title, unit = "", ""
				}
				last = m.Name
				sec.rows = append(sec.rows, []string{
					title, unit, res.Runtime, strconv.Itoa(res.N), number(res.P50), number(res.P95), number(res.P99), ratio(res),
				})
			}
		}
		if len(sec.rows) > 0 {
			list = append(list, sec)
		}
	}
	return list
}

// number has three digits that count.
func number(v float64) string {
	switch {
	case v >= 100 || v == float64(int64(v)):
		return strconv.FormatFloat(v, 'f', 0, 64)
	case v >= 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	case v >= 1:
		return strconv.FormatFloat(v, 'f', 2, 64)
	}
	return strconv.FormatFloat(v, 'g', 3, 64)
}

func ratio(res Result) string {
	switch {
	case res.Base == res.Runtime:
		return "base"
	case res.Base == "" || res.Ratio == 0:
		return "-"
	}
	return number(res.Ratio) + " x"
}

// legend explains the tables.
const legend = "RATIO says how much worse than the base the median is: twice as long or half as many is 2 x, less than 1 x is better."

// Text writes a finished report for people.
func (r *Report) Text(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 1, 3, ' ', 0)
	for _, f := range r.Machine {
		fmt.Fprintf(w, "%s\t%s\n", f.Name, f.Value)
	}
	for _, rt := range r.Runtimes {
		fmt.Fprintf(w, "%s\t%s (%s)\n", rt.Name, strings.Join(rt.Command, " "), rt.Version)
	}
	for _, sec := range r.sections() {
		fmt.Fprintf(w, "\n%s\n", sec.title)
		for _, row := range append([][]string{header}, sec.rows...) {
			fmt.Fprintln(w, strings.Join(row, "\t"))
		}
	}
	fmt.Fprintf(w, "\n%s\n", legend)
	for _, f := range r.Failures {
		fmt.Fprintf(w, "%s: %s failed: %s\n", f.Group, f.Runtime, f.Reason)
	}
	return w.Flush()
}

// Markdown writes a finished report as a part of a page.
func (r *Report) Markdown(out io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "Measured on %s, in %s, with:\n\n```\n%s\n```\n\n", r.Began.UTC().Format("2006-01-02 15:04 MST"), r.Took, r.Command)
	table(&b, []string{"machine", ""}, func(row func(...string)) {
		for _, f := range r.Machine {
			row(f.Name, f.Value)
		}
	})
	table(&b, []string{"runtime", "command", "version"}, func(row func(...string)) {
		for _, rt := range r.Runtimes {
			row(rt.Name, "`"+strings.Join(rt.Command, " ")+"`", rt.Version)
		}
	})
	fmt.Fprintf(&b, "%s\n\n", legend)
	for _, sec := range r.sections() {
		fmt.Fprintf(&b, "## %s\n\n", sec.title)
		var lower []string
		for _, h := range header {
			lower = append(lower, strings.ToLower(h))
		}
		table(&b, lower, func(row func(...string)) {
			for _, cells := range sec.rows {
				row(cells...)
			}
		})
	}
	if len(r.Failures) > 0 {
		b.WriteString("## Failures\n\n")
		table(&b, []string{"group", "runtime", "reason"}, func(row func(...string)) {
			for _, f := range r.Failures {
				row(f.Group, f.Runtime, f.Reason)
			}
		})
	}
	_, err := io.WriteString(out, strings.TrimRight(b.String(), "\n")+"\n")
	return err
}

// table writes a table and an empty line.
func table(b *strings.Builder, header []string, fill func(row func(...string))) {
	row := func(cells ...string) {
		for _, cell := range cells {
			cell = strings.NewReplacer("|", `\|`, "\n", " ").Replace(cell)
			b.WriteString(strings.TrimRight("| "+cell, " ") + " ")
		}
		b.WriteString("|\n")
	}
	row(header...)
	b.WriteString(strings.Repeat("| --- ", len(header)) + "|\n")
	fill(row)
	b.WriteString("\n")
}

package check

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// Print writes the report for people: a table, then what is not right with what mends it, then the
// verdict. It is plain ASCII.
func (r Report) Print(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 1, 3, ' ', 0)
	fmt.Fprintln(w, "CHECK\tSTATUS\tVALUE")
	for _, item := range r.Items {
		fmt.Fprintf(w, "%s\t%s\t%s\n", item.Name, item.Status, item.Value)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	var b strings.Builder
	for _, item := range r.Items {
		if item.Status == OK {
			continue
		}
		fmt.Fprintf(&b, "\n%s: %s: %s.\n", item.Status, item.Name, item.Why)
		if item.Fix != "" {
			fmt.Fprintf(&b, "    %s\n", item.Fix)
		}
	}
	b.WriteString("\n" + r.verdict() + "\n")
	_, err := io.WriteString(out, b.String())
	return err
}

func (r Report) verdict() string {
	if r.Ready {
		return "Containers can run here; isolation: " + string(r.Isolation) + "."
	}
	var missing []string
	for _, item := range r.Items {
		if item.Status == Missing {
			missing = append(missing, item.Name)
		}
	}
	return "Containers cannot run here: " + strings.Join(missing, ", ") + "."
}

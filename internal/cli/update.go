package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	controlv1 "husk.dev/husk/api/control/v1"
	"husk.dev/husk/internal/control"
)

// maxResources bounds the file that update reads, in bytes.
const maxResources = 1 << 20

func (a *App) updateCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "update ID",
		Short: "Change a container's limits while it runs",
		Long:  "Update changes cgroup limits inside the guest, and on the host how the virtual machine shares the processors. It keeps its size: a limit beyond it has no effect.",
		Example: "  husk update --memory 100m --pids-limit 50 web\n" +
			"  echo '{\"pids\":{\"limit\":50}}' | husk update --resources - web",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			resources, err := updated(cmd.Flags(), file, a.in)
			if err != nil {
				return err
			}
			data, err := json.Marshal(resources)
			if err != nil {
				return fmt.Errorf("encode resources: %w", err)
			}
			return a.call(cmd.Context(), args[0], "update", func(ctx context.Context, c *control.Client) error {
				_, err := c.Update(ctx, &controlv1.UpdateRequest{Id: args[0], Resources: data})
				return err
			})
		},
	}
	f := cmd.Flags()
	f.StringVarP(&file, "resources", "r", "", "`FILE` with the OCI linux.resources, - for stdin")
	f.String("memory", "", "memory limit, such as 100m")
	f.String("memory-reservation", "", "memory that is protected first")
	f.String("memory-swap", "", "memory and swap together, -1 for no limit")
	f.Uint64("cpu-shares", 0, "relative CPU weight, 2 to 262144")
	f.Int64("cpu-quota", 0, "microseconds of CPU in each period")
	f.Uint64("cpu-period", 0, "length of a period in microseconds")
	f.Int64("pids-limit", 0, "most processes, -1 for no limit")
	f.String("cpuset-cpus", "", "the host's processors to run on")
	f.String("cpuset-mems", "", "the host's memory nodes to use")
	for _, name := range []string{"blkio-weight", "kernel-memory", "kernel-memory-tcp", "cpu-rt-period", "cpu-rt-runtime"} {
		f.String(name, "", "accepted; the guest has no such limit")
	}
	// As runc has it.
	f.SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		if name == "cpu-share" {
			name = "cpu-shares"
		}
		return pflag.NormalizedName(name)
	})
	return cmd
}

// updated is what update changes: the file's, and then the flags that were given.
func updated(f *pflag.FlagSet, file string, stdin io.Reader) (*specs.LinuxResources, error) {
	r := &specs.LinuxResources{}
	if file != "" {
		in := stdin
		if file != "-" {
			opened, err := os.Open(file)
			if err != nil {
				return nil, fmt.Errorf("read resources: %w", err)
			}
			defer opened.Close()
			in = opened
		}
		if err := json.NewDecoder(io.LimitReader(in, maxResources)).Decode(r); err != nil {
			return nil, fmt.Errorf("read resources: %w", err)
		}
	}
	if r.Memory == nil {
		r.Memory = &specs.LinuxMemory{}
	}
	if r.CPU == nil {
		r.CPU = &specs.LinuxCPU{}
	}
	for name, to := range map[string]**int64{
		"memory": &r.Memory.Limit, "memory-reservation": &r.Memory.Reservation, "memory-swap": &r.Memory.Swap,
	} {
		if !f.Changed(name) {
			continue
		}
		text, _ := f.GetString(name) // defined above
		n, err := parseBytes(text)
		if err != nil {
			return nil, fmt.Errorf("--%s: %w", name, err)
		}
		*to = &n
	}
	if f.Changed("cpu-shares") {
		n, _ := f.GetUint64("cpu-shares")
		r.CPU.Shares = &n
	}
	if f.Changed("cpu-quota") {
		n, _ := f.GetInt64("cpu-quota")
		r.CPU.Quota = &n
	}
	if f.Changed("cpu-period") {
		n, _ := f.GetUint64("cpu-period")
		r.CPU.Period = &n
	}
	if f.Changed("cpuset-cpus") {
		r.CPU.Cpus, _ = f.GetString("cpuset-cpus")
	}
	if f.Changed("cpuset-mems") {
		r.CPU.Mems, _ = f.GetString("cpuset-mems")
	}
	if f.Changed("pids-limit") {
		n, _ := f.GetInt64("pids-limit")
		r.Pids = &specs.LinuxPids{Limit: &n}
	}
	return r, nil
}

// parseBytes takes a number of bytes with an optional unit of 1024: b, k, m, g, t; or -1.
func parseBytes(s string) (int64, error) {
	if s == "-1" {
		return -1, nil
	}
	digits := strings.TrimRight(strings.TrimSuffix(strings.TrimSuffix(strings.ToLower(s), "b"), "i"), "kmgt")
	unit := strings.TrimPrefix(strings.ToLower(s), digits)
	shift, known := units[strings.TrimSuffix(strings.TrimSuffix(unit, "b"), "i")]
	n, err := strconv.ParseFloat(digits, 64)
	if err != nil || !known || n <= 0 || n*math.Pow(2, float64(shift)) >= math.MaxInt64 {
		return 0, fmt.Errorf("%q is not a size such as 512m or 1.5g", s)
	}
	return int64(n * math.Pow(2, float64(shift))), nil
}

// units are powers of two.
var units = map[string]int{"": 0, "k": 10, "m": 20, "g": 30, "t": 40}

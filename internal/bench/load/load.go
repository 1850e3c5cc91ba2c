// Package load is the work that `husk bench` measures inside containers: files, processes, computing. It
// measures itself and prints what it found, so neither its own start nor the runtime's counts.
package load

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// Sample is one figure.
type Sample struct {
	// Name is what was measured; package bench knows its unit.
	Name  string  `json:"name"`
	Value float64 `json:"value"`
}

// Main runs what args name and prints its samples to out as one line of JSON:
//
//	files DIR DATA   files in a new directory below DIR, and reads of DATA, made by MakeData
//	cpu BUSYBOX      processes, system calls, computing; BUSYBOX is forked
//	net ADDRESS      TCP and UDP to and from a server at HOST:PORT
//	net-serve ADDR   that server; it prints a line and serves until it is killed
//	echo             the other end of the pipes of cpu: returns every byte it reads
func Main(args []string, out io.Writer) error {
	var samples []Sample
	var err error
	switch {
	case len(args) == 3 && args[0] == "files":
		samples, err = files(args[1], args[2])
	case len(args) == 2 && args[0] == "cpu":
		samples, err = cpu(args[1])
	case len(args) == 2 && args[0] == "net":
		samples, err = network(args[1])
	case len(args) == 2 && args[0] == "net-serve":
		return serve(args[1], out)
	case len(args) == 1 && args[0] == "echo":
		return echo()
	default:
		return errors.New("bench-load takes files DIR DATA, cpu BUSYBOX, net ADDRESS, net-serve ADDRESS, or echo")
	}
	if err != nil {
		return err
	}
	line, err := json.Marshal(samples)
	if err != nil {
		return fmt.Errorf("encode samples: %w", err)
	}
	_, err = fmt.Fprintf(out, "%s\n", line)
	return err
}

// budget is how long a repeated operation is repeated.
const budget = 300 * time.Millisecond

// repeat calls step until budget is over, and at least twice, and returns how often and how long. A call of
// step does batch operations, so that looking at the clock costs little beside them.
func repeat(batch int, step func() error) (count int, took time.Duration, err error) {
	began := time.Now()
	for count < 2*batch || took < budget {
		if err := step(); err != nil {
			return 0, 0, err
		}
		count += batch
		took = time.Since(began)
	}
	return count, took, nil
}

// perSecond is a rate.
func perSecond(count float64, took time.Duration) float64 { return count / took.Seconds() }

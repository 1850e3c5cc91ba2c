package boot

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	agentv1 "husk.dev/husk/api/agent/v1"
	"husk.dev/husk/internal/agent"
)

const (
	// gcPercent keeps the agent's heap small; it allocates little, and a guest may have little memory.
	gcPercent = 40
	// startPercent keeps the collector away from a container's start, for startTime after the agent's own or after the
	// guest was saved: that it runs for the first time takes an emulated guest as long as a network.
	startPercent = 400
	startTime    = 10 * time.Second
	// startHeap is more than what the agent takes from its heap in that time, in bytes.
	startHeap = 8 << 20
	// memoryLimit is where the collector works harder, in bytes.
	memoryLimit = 48 << 20
	// syncWait bounds how long the end of the VM waits for data to be written.
	syncWait = 2 * time.Second
)

// Cmdline is the kernel's command line.
type Cmdline string

// Value returns what the command line gives a key, the last time that it does, or a default.
func (c Cmdline) Value(key, value string) string {
	for _, word := range strings.Fields(string(c)) {
		if k, v, found := strings.Cut(word, "="); found && k == key {
			value = v
		}
	}
	return value
}

// Main is PID 1. It does not return: when the host is gone or something fatal happens the VM ends.
func Main(version string) {
	agent.Hold()
	agent.CopyFiles()
	debug.SetGCPercent(startPercent)
	started := time.AfterFunc(startTime, func() { debug.SetGCPercent(gcPercent) })
	debug.SetMemoryLimit(memoryLimit)
	end := func() { powerOff("reboot") }
	if os.Getpid() != 1 {
		end = func() { os.Exit(1) } // started by hand, by mistake: not our machine
		fmt.Fprintln(os.Stderr, "husk-agent: not PID 1: this program is the init of a husk guest")
		end()
	}
	// Go ends a program on these, also one that is PID 1 and that the kernel would spare. Ignored they would
	// be ignored in shells too; so they are taken, and nobody looks at them.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM)
	if err := Guest(); err != nil {
		fmt.Fprintf(os.Stderr, "husk-agent: fatal: %v\n", err)
		end()
	}
	text, err := os.ReadFile("/proc/cmdline")
	cmdline := Cmdline(text)
	if err == nil {
		err = serve(cmdline, version, started)
	}
	fmt.Fprintf(os.Stderr, "husk-agent: fatal: %v\n", err)
	powerOff(cmdline.Value("husk.end", "reboot"))
}

// serve runs the agent until the host is gone. started ends the time of a start.
func serve(cmdline Cmdline, version string, started *time.Timer) error {
	ctx := context.Background()
	finished := make(chan error, 1)
	go func() { finished <- Finish() }()
	ch, err := OpenChannel(ctx, cmdline)
	if err != nil {
		return err
	}
	if err := <-finished; err != nil {
		return err
	}
	config := agent.GuestConfig()
	config.Version = version
	config.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	entered := make(chan struct{})
	go func() {
		defer close(entered)
		if err := enterCgroup(); err != nil {
			config.Log.Warn("the agent has no cgroup of its own", "error", err)
		}
	}()
	ended := make(chan error, 1)
	served := agent.New(config)
	go func() { ended <- served.Serve(ctx, ch.RPC, ch.IO) }()
	go func() {
		<-served.Resting()
		<-entered
		for ch.Streams != nil && ch.Streams() > 0 {
			time.Sleep(pause)
		}
		debug.SetGCPercent(startPercent)
		started.Reset(startTime) // of every guest that goes on from here
		// The heap reaches for what a container's start takes, which that then need not do. It is no memory once the
		// collector has run.
		runtime.KeepAlive(make([]byte, startHeap))
		debug.FreeOSMemory()
		fmt.Fprintln(os.Stderr, agentv1.Rested)
	}()
	select {
	case err := <-ended:
		return fmt.Errorf("the channel to the host has ended: %w", err)
	case <-ch.Done:
		return fmt.Errorf("the host has closed the channel")
	}
}

// powerOff ends the VM. A reboot ends it on monitors that are told not to (QEMU's -no-reboot) and on
// Firecracker; others want a power-off.
func powerOff(how string) {
	synced := make(chan struct{})
	go func() { syscall.Sync(); close(synced) }()
	select {
	case <-synced:
	case <-time.After(syncWait): // a share whose host is gone keeps it for ever
	}
	cmd := syscall.LINUX_REBOOT_CMD_RESTART
	if how == "poweroff" {
		cmd = syscall.LINUX_REBOOT_CMD_POWER_OFF
	}
	err := syscall.Reboot(cmd)
	fmt.Fprintf(os.Stderr, "husk-agent: end the VM: %v\n", err)
	os.Exit(1) // the kernel panics without PID 1, and the VM ends all the same
}

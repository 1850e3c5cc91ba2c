// Command testhost makes test hosts and runs suites in them; scripts/host.sh calls it.
//
//	testhost key HOST                what an image is made from, for the cache
//	testhost image HOST DIR          make the image of a host
//	testhost save [-qemu Q] IMAGE DIR     boot a host and save it
//	testhost test [-qemu Q] [-saved DIR] [-run RE] [-out DIR] IMAGE SUITE...
//	testhost shell [-qemu Q] [-saved DIR] [-out DIR] IMAGE SCRIPT    run bash -c SCRIPT in a host, in the tree
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"husk.dev/husk/test/host"
	"husk.dev/husk/test/host/wire"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := command(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "testhost:", err)
		stop()
		os.Exit(1)
	}
}

var errUsage = errors.New("usage: testhost key|image|save|test|shell|suites ... (go doc says more)")

func command(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errUsage
	}
	flags := flag.NewFlagSet(args[0], flag.ContinueOnError)
	var m host.Machine
	flags.StringVar(&m.QEMU, "qemu", "qemu-system-x86_64", "the emulator")
	flags.StringVar(&m.Saved, "saved", "", "directory of a saved host to continue")
	run := flags.String("run", "", "regular expression of the tests, instead of the suites' own")
	out := flags.String("out", "build/test-host/out", "directory for what comes back")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	rest := flags.Args()
	switch {
	case args[0] == "suites":
		for _, s := range host.Suites {
			fmt.Printf("%-14s %s\n", s.Name, s.About)
		}
		return nil
	case args[0] == "key" && len(rest) == 1:
		key, err := host.Key(rest[0])
		if err == nil {
			fmt.Println(key)
		}
		return err
	case args[0] == "image" && len(rest) == 2:
		return host.MakeImage(ctx, rest[0], rest[1])
	case args[0] == "save" && len(rest) == 2:
		m.Image = rest[0]
		return save(ctx, m, rest[1])
	case args[0] == "test" && len(rest) >= 2:
		m.Image = rest[0]
		return test(ctx, m, rest[1:], *run, *out)
	case args[0] == "shell" && len(rest) == 2:
		m.Image = rest[0]
		return shell(ctx, m, rest[1], *out)
	}
	return errUsage
}

// save tries it again where the host is lost on its way.
func save(ctx context.Context, m host.Machine, dir string) error {
	for again := 1; ; again++ {
		err := host.Save(ctx, m, dir)
		var lost *host.LostError
		if !errors.As(err, &lost) || again == 3 {
			return err
		}
		fmt.Fprintf(os.Stderr, "host: %v; starting it anew\n", lost)
	}
}

func test(ctx context.Context, m host.Machine, names []string, run, out string) error {
	suites, err := host.Choose(names, run)
	if err != nil {
		return err
	}
	start := time.Now()
	if err := bring(ctx, &m, suites, out); err != nil {
		return err
	}
	top, err := filepath.Abs(".") // programs run in other directories
	if err != nil {
		return err
	}
	r := &host.Runner{Machine: m, Top: top, Out: out, Say: os.Stdout}
	defer r.Close()
	failed := 0
	for _, s := range suites {
		ok, err := r.Suite(ctx, s)
		if err != nil {
			return fmt.Errorf("suite %s: %w", s.Name, err)
		}
		if !ok {
			failed++
		}
	}
	fmt.Printf("host: %d of %d suites failed, in %.0f s; what came back is in %s\n", failed, len(suites), time.Since(start).Seconds(), out)
	if failed > 0 {
		return fmt.Errorf("%d of %d suites failed", failed, len(suites))
	}
	return nil
}

// bring makes the disk with the tree and what the suites need, below out.
func bring(ctx context.Context, m *host.Machine, suites []host.Suite, out string) error {
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	start := time.Now()
	m.Tree = filepath.Join(out, "tree.img")
	if err := host.MakeTree(ctx, ".", m.Tree, suites); err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "host: made the tree in %.1f s\n", time.Since(start).Seconds())
	return nil
}

// shell runs a script in a host, and prints what it prints.
func shell(ctx context.Context, m host.Machine, script, out string) error {
	if err := bring(ctx, &m, nil, out); err != nil {
		return err
	}
	m.Log = filepath.Join(out, "console-shell.log")
	h, err := host.Start(ctx, m)
	if err != nil {
		return err
	}
	defer h.Close()
	code, err := h.Run(ctx, host.Command{Args: []string{"/bin/bash", "-c", script}, Dir: wire.Source}, os.Stdout)
	if err == nil && code != 0 {
		err = fmt.Errorf("the script ended with %d", code)
	}
	return err
}

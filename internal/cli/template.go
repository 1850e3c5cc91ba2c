package cli

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"husk.dev/husk/internal/assets"
	"husk.dev/husk/internal/network"
	"husk.dev/husk/internal/sys"
	"husk.dev/husk/internal/template"
	"husk.dev/husk/internal/vmm"
)

// buildNiceness lets a build in the background yield to everything else on the machine.
const buildNiceness = 19

// templates opens the store of templates.
func (a *App) templates() *template.Store {
	return template.Open(filepath.Join(a.config.DataDir, "templates"))
}

func (a *App) templateCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "template", Short: "Manage the saved virtual machines that others start from",
		Long: "A template is a virtual machine that was booted and saved. Starting from it takes a fraction of a boot, and\n" +
			"all that start from it share its memory until they write to it. Husk builds templates by itself when it needs\n" +
			"one that is not there, in the background; template = \"ready\" in the configuration keeps it from that, and\n" +
			"template = \"off\" from using any.",
		Args: cobra.NoArgs, // else a verb that does not exist is no error
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.templateBuildCommand(), a.templateListCommand(), a.templateVerifyCommand(), a.templateRemoveCommand())
	return cmd
}

func (a *App) templateBuildCommand() *cobra.Command {
	var memory, vcpus int
	var kind string
	var background bool
	cmd := &cobra.Command{
		Use: "build", Short: "Build templates ahead of their first use",
		Long: "Build makes the templates for virtual machines without a network, with the interfaces of a network namespace\n" +
			"and with user-mode networking, and prints their keys.",
		Example: "  husk template build\n  husk template build --vcpus 2\n  husk template build --card no",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if memory == 0 {
				memory = a.config.MemoryMiB
			}
			if vcpus == 0 {
				vcpus = a.config.VCPUs
			}
			size := a.config
			size.MemoryMiB, size.VCPUs = memory, vcpus
			if err := size.Check(); err != nil && !background { // a container's size was checked when it started
				return err
			}
			cards, ok := cardKinds[kind]
			if !ok {
				return fmt.Errorf("--card %s: must be no, tap, user or all", kind)
			}
			for _, card := range cards {
				if card == vmm.TapCard && len(cards) > 1 && !a.canMakeCards() {
					continue
				}
				if err := a.buildTemplate(cmd.Context(), memory, vcpus, card, background); err != nil {
					return err
				}
			}
			return nil
		},
	}
	cmd.Flags().IntVar(&memory, "memory", 0, "memory of the virtual machines it is for, in MiB (default: the configuration's)")
	cmd.Flags().IntVar(&vcpus, "vcpus", 0, "virtual processors of the virtual machines it is for (default: the configuration's)")
	cmd.Flags().StringVar(&kind, "card", "all", "`KIND`: no for virtual machines without a network, tap for those with interfaces, user for user-mode networking, or all")
	cmd.Flags().BoolVar(&background, "background", false, "yield to everything else, and leave it where another process builds")
	return cmd
}

// canMakeCards tells whether a template with a network card can be built here, and says why not.
func (a *App) canMakeCards() bool {
	taps, vhosts, err := network.Unconnected(1)
	for _, f := range append(taps, vhosts...) {
		f.Close()
	}
	if err != nil {
		fmt.Fprintf(a.err, "husk: warning: no template with a network card: %v\n", err)
	}
	return err == nil
}

// cardKinds are what --card stands for.
var cardKinds = map[string][]vmm.Card{
	"all": {vmm.NoCard, vmm.TapCard, vmm.StreamCard}, "no": {vmm.NoCard}, "tap": {vmm.TapCard}, "user": {vmm.StreamCard},
}

// cardName is what --card names one kind by.
func cardName(card vmm.Card) string {
	switch card {
	case vmm.TapCard:
		return "tap"
	case vmm.StreamCard:
		return "user"
	}
	return "no"
}

func (a *App) buildTemplate(ctx context.Context, memory, vcpus int, card vmm.Card, background bool) error {
	if background {
		if err := syscall.Setpriority(syscall.PRIO_PGRP, 0, buildNiceness); err != nil {
			return fmt.Errorf("yield to other processes: %w", err)
		}
	}
	guest, err := assets.Find(a.config.GuestDir)
	if err != nil {
		return err
	}
	driver, err := a.driver()
	if err != nil {
		return err
	}
	spec := vmm.Spec{
		ID: "template", Machine: "q35", Kernel: guest.Kernel, Initrd: guest.Initrd,
		Cmdline: assets.Cmdline, MemoryMiB: memory, VCPUs: vcpus, UID: sys.MonitorID(), GID: sys.MonitorID(),
	}
	if a.config.Accel != "auto" {
		spec.Accel = a.config.Accel
	}
	limited, cancel := context.WithTimeout(ctx, time.Duration(a.config.StartTimeoutSeconds)*time.Second)
	defer cancel()
	started := time.Now()
	o := template.BuildOptions{
		Driver: driver, Spec: spec, KernelVersion: guest.KernelVersion, Wait: !background,
		Rehearse: a.rehearsal,
		Phase: func(phase string) {
			if !background {
				fmt.Fprintf(a.err, "%s (%.1f s)\n", phase, time.Since(started).Seconds())
			}
		},
	}
	switch card {
	case vmm.TapCard:
		o.Card = &template.Card{Kind: card, Open: func(queues int) (nic vmm.NIC, err error) {
			nic.Taps, nic.Vhosts, err = network.Unconnected(queues)
			return nic, err
		}}
	case vmm.StreamCard:
		nic, end, err := network.UnconnectedUser()
		if err != nil {
			return err
		}
		defer end()
		o.Card = &template.Card{Kind: card, Network: network.UserGuest(), Open: func(int) (vmm.NIC, error) { return nic, nil }}
	}
	key, err := a.templates().Build(limited, o)
	if background && errors.Is(err, template.ErrBusy) {
		return nil
	}
	if err != nil {
		return err
	}
	return a.printf("%s\n", key)
}

func (a *App) templateListCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List templates, the last used first",
		Example: "  husk template ls\n  husk template ls --json", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			list, err := a.templates().List()
			if err != nil {
				return err
			}
			if asJSON {
				return a.printJSON(append([]*template.Template{}, list...)) // none is a list, too
			}
			w := table(a.out)
			fmt.Fprintln(w, "KEY\tMEMORY\tVCPUS\tCARD\tKERNEL\tON DISK\tUSED")
			for _, t := range list {
				fmt.Fprintf(w, "%s\t%d MiB\t%d\t%s\t%s\t%d MiB\t%s ago\n", t.Key, t.MemoryMiB, t.VCPUs, cardName(t.Card), t.KernelVersion,
					t.DiskBytes>>20, since(t.Used))
			}
			return w.Flush()
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (a *App) templateVerifyCommand() *cobra.Command {
	return &cobra.Command{
		Use: "verify [KEY...]", Short: "Read templates whole and compare them with what was saved",
		Long: "Verify reads every file of the templates, all of them where no key is given. A damaged one is named on\n" +
			"stderr and makes it exit with 1; 'husk template rm' removes it, and husk builds it anew when it needs it.",
		RunE: func(_ *cobra.Command, keys []string) error {
			return a.eachTemplate(keys, len(keys) == 0, func(store *template.Store, key string) error {
				if err := store.Verify(key); err != nil {
					return err
				}
				return a.printf("%s: whole\n", key)
			})
		},
	}
}

func (a *App) templateRemoveCommand() *cobra.Command {
	var every bool
	cmd := &cobra.Command{
		Use: "rm KEY...", Short: "Remove templates",
		Long:    "Remove deletes templates from the disk. Virtual machines that started from one are not touched.",
		Example: "  husk template rm --all",
		RunE: func(_ *cobra.Command, keys []string) error {
			if (len(keys) == 0) != every {
				return errors.New("name the templates to remove ('husk template ls' lists them), or give --all")
			}
			return a.eachTemplate(keys, every, func(store *template.Store, key string) error {
				if err := store.Remove(key); err != nil {
					return err
				}
				return a.printf("removed: %s\n", key)
			})
		},
	}
	cmd.Flags().BoolVar(&every, "all", false, "remove every template")
	return cmd
}

// eachTemplate does something with the templates of keys, or with every one, and goes on after a failure.
func (a *App) eachTemplate(keys []string, every bool, do func(*template.Store, string) error) error {
	store := a.templates()
	if every {
		var err error
		if keys, err = store.Keys(); err != nil {
			return err
		}
	}
	var errs []error
	for _, key := range keys {
		errs = append(errs, do(store, key))
	}
	return errors.Join(errs...)
}

func (a *App) printf(format string, args ...any) error {
	_, err := fmt.Fprintf(a.out, format, args...)
	return err
}

// buildTemplateLater starts a process that builds the template for VMs of a size and is nobody's child to wait
// for: the container that asked for it does not.
func (a *App) buildTemplateLater(memoryMiB, vcpus int, card vmm.Card) error {
	cmd := exec.Command("/proc/self/exe", a.hidden("template", "build", "--background",
		"--memory", strconv.Itoa(memoryMiB), "--vcpus", strconv.Itoa(vcpus), "--card", cardName(card))...)
	cmd.Args[0] = "husk"
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the building of a template: %w", err)
	}
	go func() { _ = cmd.Wait() }() // it has written down why it failed
	return nil
}

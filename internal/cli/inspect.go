package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/template"
	"time"

	"github.com/spf13/cobra"

	ociv1 "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"husk.dev/husk/internal/image"
	"husk.dev/husk/internal/ocispec"
	"husk.dev/husk/internal/state"
)

func (a *App) inspectCommand() *cobra.Command {
	var format, kind string
	cmd := &cobra.Command{
		Use:   "inspect [flags] ID|IMAGE...",
		Short: "Print what is known of containers and images as JSON",
		Long: "Inspect prints an array with an object for each name, under docker's keys. A name that is a container's is that of\n" +
			"the container, and else that of an image.",
		Example: "  husk inspect web\n  husk inspect --format '{{.State.Status}} {{.State.ExitCode}}' web\n" +
			"  husk inspect --type image --format '{{json .Config.Env}}' alpine",
		Args: cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			switch kind {
			case "", "container", "image":
			default:
				return fmt.Errorf("--type %q: must be container or image", kind)
			}
			print, err := a.printer(format)
			if err != nil {
				return err
			}
			var errs []error
			found := []any{}
			for _, name := range args {
				v, err := a.inspect(name, kind)
				if err != nil {
					errs = append(errs, err)
					continue
				}
				found = append(found, v)
			}
			if format == "" || format == "json" {
				return errors.Join(append(errs, a.printJSON(found))...)
			}
			for _, v := range found {
				errs = append(errs, print(v))
			}
			return errors.Join(errs...)
		},
	}
	cmd.Flags().StringVarP(&format, "format", "f", "", "Go `TEMPLATE` for each, or json")
	cmd.Flags().StringVar(&kind, "type", "", "`KIND` of what is named: container or image (default: either)")
	return cmd
}

// templateFuncs are docker's functions in templates.
var templateFuncs = template.FuncMap{
	"json": func(v any) (string, error) {
		data, err := json.Marshal(v)
		return string(data), err
	},
	"join": join, "lower": strings.ToLower, "upper": strings.ToUpper, "split": strings.Split,
	"title":    func(s string) string { return strings.ToUpper(s[:min(1, len(s))]) + s[min(1, len(s)):] },
	"truncate": func(s string, n int) string { return s[:max(0, min(n, len(s)))] },
	"println":  fmt.Sprintln,
}

// printer prints values by a Go template, one a line.
func (a *App) printer(format string) (func(v any) error, error) {
	return templatePrinter(a.out, format)
}

func templatePrinter(to io.Writer, format string) (func(v any) error, error) {
	t, err := template.New("format").Option("missingkey=error").Funcs(templateFuncs).Parse(strings.NewReplacer(`\t`, "\t", `\n`, "\n").Replace(format))
	if err != nil {
		return nil, fmt.Errorf("--format: %w", err)
	}
	return func(v any) error {
		named, err := byKeys(v)
		if err != nil {
			return err
		}
		var line strings.Builder // so that no half of one is printed
		if err := t.Execute(&line, named); err != nil {
			return fmt.Errorf("--format: %w", err)
		}
		_, err = fmt.Fprintln(to, line.String())
		return err
	}, nil
}

// byKeys is v as its JSON has it: templates name what inspect prints.
func byKeys(v any) (named any, err error) {
	data, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode result: %w", err)
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.UseNumber()
	if err := decoder.Decode(&named); err != nil {
		return nil, fmt.Errorf("encode result: %w", err)
	}
	return named, nil
}

// join puts the parts of a list together. As JSON has it a list is of anything.
func join(list []any, between string) string {
	parts := make([]string, len(list))
	for i, part := range list {
		parts[i] = fmt.Sprint(part)
	}
	return strings.Join(parts, between)
}

// inspect finds a container or an image.
func (a *App) inspect(name, kind string) (any, error) {
	if kind != "image" {
		dir, err := a.open(name)
		if err == nil {
			return a.inspectContainer(dir)
		}
		if kind == "container" {
			return nil, err
		}
	}
	store, err := a.store()
	if err != nil {
		return nil, err
	}
	img, err := store.Get(name)
	if errors.Is(err, image.ErrNotFound) && kind == "" {
		return nil, fmt.Errorf("there is neither a container nor an image %q", name)
	}
	if err != nil {
		return nil, err
	}
	return inspectImage(img), nil
}

// inspected is a container as inspect prints it: docker's keys, and Husk for what docker has no word for.
type inspected struct {
	ID           string `json:"Id"`
	Name         string
	Created      time.Time
	Path         string
	Args         []string
	State        inspectedState
	Image        string
	ImageName    string
	LogPath      string
	RestartCount int
	Config       inspectedConfig
	HostConfig   inspectedHost
	Mounts       []inspectedMount
	Husk         inspectedHusk
}

type inspectedState struct {
	Status     string // created, running, paused, exited; and creating
	Running    bool
	Paused     bool
	Restarting bool
	Dead       bool
	Pid        int
	ExitCode   int
	Error      string
	StartedAt  time.Time // zero where husk has not started it
	FinishedAt time.Time
}

type inspectedConfig struct {
	Hostname    string
	User        string
	Tty         bool
	OpenStdin   bool
	Env         []string
	Cmd         []string
	Image       string
	WorkingDir  string
	StopSignal  string
	StopTimeout *int `json:",omitempty"`
	Labels      map[string]string
}

type inspectedHost struct {
	AutoRemove     bool
	ReadonlyRootfs bool
	Memory         int64 // bytes, 0 without a limit
	NanoCpus       int64
	PidsLimit      int64
	NetworkMode    string
	PortBindings   []string
}

type inspectedMount struct {
	Type, Source, Destination string
	RW                        bool
}

// inspectedHusk is what docker does not know of.
type inspectedHusk struct {
	Bundle      string
	Rootfs      string // directory of the host that is the root, empty for an image
	Sandbox     string // container whose virtual machine it is in
	Isolation   string // hardware or emulated
	VMStart     string // template or boot
	Owner       int    // process id, 0 for none
	Monitor     int    // process id, 0 for none
	Annotations map[string]string
}

func (a *App) inspectContainer(dir *state.Dir) (*inspected, error) {
	record, err := dir.Load()
	if err != nil {
		return nil, err
	}
	m, err := loadMade(dir)
	if err != nil {
		return nil, err
	}
	spec, err := savedSpec(dir)
	if err != nil {
		return nil, fmt.Errorf("inspect container %q: %w", record.ID, err)
	}
	i := &inspected{
		ID: record.ID, Name: record.Name, Created: record.Created.UTC(), ImageName: record.Image, LogPath: record.Log,
		State: stateOf(record, m), Config: configOf(spec, record), HostConfig: hostOf(spec, m), Mounts: []inspectedMount{},
		Husk: inspectedHusk{
			Bundle: record.Bundle, Rootfs: record.Rootfs, Sandbox: record.Sandbox, Isolation: record.Isolation, VMStart: record.VMStart,
			Annotations: record.Annotations,
		},
	}
	if i.Name == "" {
		i.Name = record.ID
	}
	if len(record.Args) > 0 {
		i.Path, i.Args = record.Args[0], record.Args[1:]
	}
	if m != nil {
		i.Image = m.ImageID
		i.Config.Tty, i.Config.OpenStdin, i.Config.StopSignal, i.Config.StopTimeout = m.TTY, m.Interactive, m.StopSignal, m.StopTimeout
	}
	if record.Owner.Alive() {
		i.Husk.Owner = record.Owner.PID
	}
	for _, p := range record.Helpers {
		if p.Name == "vmm" && p.Alive() {
			i.Husk.Monitor = p.PID
		}
	}
	for _, mount := range spec.Mounts {
		if mount.Type == "bind" {
			i.Mounts = append(i.Mounts, inspectedMount{"bind", mount.Source, mount.Destination, writable(mount.Options)})
		}
	}
	return i, nil
}

// writable tells what the last of the options ro and rw says.
func writable(options []string) bool {
	yes := true
	for _, o := range options {
		if o == "ro" || o == "rw" {
			yes = o == "rw"
		}
	}
	return yes
}

func stateOf(record state.Container, m *made) inspectedState {
	now := record.Effective()
	s := inspectedState{
		Status: string(now), Running: now == state.Running || now == state.Paused, Paused: now == state.Paused, Error: record.Reason,
		FinishedAt: record.ExitedAt.UTC(),
	}
	if m != nil {
		s.StartedAt = m.Started.UTC()
	}
	if now == state.Stopped {
		s.Status, s.ExitCode = "exited", recordedCode(record)
	} else {
		s.Pid = record.Host.PID
	}
	return s
}

func configOf(spec *specs.Spec, record state.Container) inspectedConfig {
	c := inspectedConfig{Hostname: spec.Hostname, Cmd: record.Args, Image: record.Image, Labels: map[string]string{}}
	if p := spec.Process; p != nil {
		c.User, c.Env, c.WorkingDir, c.Tty = fmt.Sprintf("%d:%d", p.User.UID, p.User.GID), p.Env, p.Cwd, p.Terminal
	}
	return c
}

func hostOf(spec *specs.Spec, m *made) inspectedHost {
	h := inspectedHost{NetworkMode: "none", PortBindings: []string{}}
	if spec.Root != nil {
		h.ReadonlyRootfs = spec.Root.Readonly
	}
	if ns := ocispec.Namespace(spec, specs.NetworkNamespace); ns != nil && ns.Path != "" {
		h.NetworkMode = "ns:" + ns.Path
	}
	if m != nil {
		h.AutoRemove = m.AutoRemove
		h.PortBindings = append(h.PortBindings, m.Publish...)
		if m.UserNetwork {
			h.NetworkMode = "user"
		}
	}
	if spec.Linux == nil || spec.Linux.Resources == nil {
		return h
	}
	r := spec.Linux.Resources
	if r.Memory != nil && r.Memory.Limit != nil {
		h.Memory = *r.Memory.Limit
	}
	if r.CPU != nil && r.CPU.Quota != nil && r.CPU.Period != nil && *r.CPU.Period > 0 {
		h.NanoCpus = *r.CPU.Quota * 1_000_000_000 / int64(*r.CPU.Period)
	}
	if r.Pids != nil && r.Pids.Limit != nil {
		h.PidsLimit = *r.Pids.Limit
	}
	return h
}

// inspectedImage is an image as inspect prints it, with docker's keys.
type inspectedImage struct {
	ID           string `json:"Id"`
	RepoTags     []string
	RepoDigests  []string
	Created      time.Time
	Pulled       time.Time
	Os           string
	Architecture string
	Variant      string `json:",omitempty"`
	Config       ociv1.ImageConfig
	Size         int64 // bytes on this disk
	RootFS       inspectedLayers
}

type inspectedLayers struct {
	Type   string
	Layers []string // files
}

func inspectImage(img image.Image) *inspectedImage {
	i := &inspectedImage{
		ID: img.ID, RepoTags: []string{}, RepoDigests: []string{}, Created: img.Created.UTC(), Pulled: img.Pulled.UTC(), Config: img.Config,
		Size: img.Size, RootFS: inspectedLayers{Type: "erofs", Layers: img.Layers},
	}
	platform := append(strings.SplitN(img.Platform, "/", 3), "", "", "")
	i.Os, i.Architecture, i.Variant = platform[0], platform[1], platform[2]
	for _, name := range img.Names {
		i.RepoTags = append(i.RepoTags, image.Familiar(name))
		if img.Digest != "" {
			repository, _, _ := strings.Cut(name, "@")
			if colon := strings.LastIndexByte(repository, ':'); colon > strings.LastIndexByte(repository, '/') {
				repository = repository[:colon]
			}
			i.RepoDigests = append(i.RepoDigests, image.Familiar(repository)+"@"+img.Digest)
		}
	}
	return i
}

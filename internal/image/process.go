package image

import (
	"bytes"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/moby/sys/user"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// Run says what of an image's configuration is to be other when a container of it is run. The zero value
// changes nothing.
type Run struct {
	// Args replace the image's Cmd where there are any.
	Args []string
	// Entrypoint replaces the image's where it is not nil, and then its Cmd is dropped too. Empty but not
	// nil, it takes the image's away.
	Entrypoint []string
	// Env is "KEY=value" to set and "KEY" to remove.
	Env []string
	// User is "user[:group]", names or numbers, in place of the image's.
	User string
	// Groups are further groups, names or numbers.
	Groups []string
	// Cwd is an absolute path in the container, in place of the image's.
	Cwd string
	// TTY gives the process a terminal.
	TTY bool
}

// defaultPath is the PATH of a container whose image sets none: docker's.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// ProcessSpec says how to run a container of img: Terminal, User, Args, Env and Cwd. It leaves the rest
// (capabilities, rlimits, seccomp) to the caller. Users and groups are looked up in the image as it was
// pulled. The error matches ErrNoCommand or ErrNoUser where that is what is wrong.
func ProcessSpec(img Image, run Run) (*specs.Process, error) {
	args, err := commandOf(img, run)
	if err != nil {
		return nil, err
	}
	u, home, err := userOf(img, run)
	if err != nil {
		return nil, err
	}
	cwd := run.Cwd
	switch {
	case cwd == "":
		cwd = path.Join("/", img.Config.WorkingDir)
	case !path.IsAbs(cwd):
		return nil, fmt.Errorf("working directory %q: must be an absolute path", cwd)
	}
	env, err := environmentOf(img, run, home)
	if err != nil {
		return nil, err
	}
	return &specs.Process{Terminal: run.TTY, User: u, Args: args, Env: env, Cwd: cwd}, nil
}

// commandOf joins entrypoint and command as docker does.
func commandOf(img Image, run Run) ([]string, error) {
	entrypoint, cmd := img.Config.Entrypoint, img.Config.Cmd
	if run.Entrypoint != nil {
		entrypoint, cmd = run.Entrypoint, nil
	}
	if len(run.Args) > 0 {
		cmd = run.Args
	}
	args := slices.Concat(entrypoint, cmd)
	if len(args) == 0 || args[0] == "" {
		return nil, fmt.Errorf("%w: give one after the image's name", ErrNoCommand)
	}
	return args, nil
}

// userOf resolves who the process runs as, and that user's home directory.
func userOf(img Image, run Run) (specs.User, string, error) {
	who := run.User
	if who == "" {
		who = img.Config.User
	}
	defaults := &user.ExecUser{Uid: 0, Gid: 0, Home: "/"}
	u, err := user.GetExecUser(who, defaults, bytes.NewReader(img.Passwd), bytes.NewReader(img.Group))
	if err != nil {
		if errors.Is(err, user.ErrNoPasswdEntries) || errors.Is(err, user.ErrNoGroupEntries) {
			return specs.User{}, "", fmt.Errorf("%w: %q", ErrNoUser, who)
		}
		return specs.User{}, "", fmt.Errorf("%w: %q: %w", ErrNoUser, who, err)
	}
	extra, err := user.GetAdditionalGroups(run.Groups, bytes.NewReader(img.Group))
	if err != nil {
		return specs.User{}, "", fmt.Errorf("%w: %w", ErrNoUser, err)
	}
	slices.Sort(extra)
	spec := specs.User{UID: uint32(u.Uid), GID: uint32(u.Gid)}
	for _, gid := range append(u.Sgids, extra...) {
		if g := uint32(gid); g != spec.GID && !slices.Contains(spec.AdditionalGids, g) {
			spec.AdditionalGids = append(spec.AdditionalGids, g)
		}
	}
	return spec, u.Home, nil
}

// environmentOf is the image's environment with that of run over it, and what every process has.
func environmentOf(img Image, run Run, home string) ([]string, error) {
	env := []string{"PATH=" + defaultPath}
	if run.TTY {
		env = append(env, "TERM=xterm")
	}
	if home != "" {
		env = append(env, "HOME="+home)
	}
	for _, e := range img.Config.Env {
		if key, _, ok := strings.Cut(e, "="); ok && key != "" {
			env = setEnv(env, key, e)
		}
	}
	for _, e := range run.Env {
		key, _, set := strings.Cut(e, "=")
		switch {
		case key == "":
			return nil, fmt.Errorf("environment %q: the name is missing", e)
		case set:
			env = setEnv(env, key, e)
		default:
			env = slices.DeleteFunc(env, func(old string) bool { return strings.HasPrefix(old, key+"=") })
		}
	}
	return env, nil
}

// setEnv puts entry in the place of the one for key, or at the end.
func setEnv(env []string, key, entry string) []string {
	for i, old := range env {
		if strings.HasPrefix(old, key+"=") {
			env[i] = entry
			return env
		}
	}
	return append(env, entry)
}

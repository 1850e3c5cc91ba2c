package image

import (
	"errors"
	"slices"
	"strings"
	"testing"

	ociv1 "github.com/opencontainers/image-spec/specs-go/v1"
)

var processImage = Image{
	Config: ociv1.ImageConfig{
		Entrypoint: []string{"/entry"}, Cmd: []string{"cmd"},
		Env: []string{"A=1", "B=2", "PATH=/only"}, User: "web", WorkingDir: "/srv",
	},
	Passwd: []byte("root:x:0:0::/root:/bin/sh\nweb:x:33:44::/var/www:/bin/sh\n"),
	Group:  []byte("root:x:0:\nweb:x:44:\nextra:x:55:web,other\nmore:x:66:\n"),
}

func TestProcessCommand(t *testing.T) {
	for _, c := range []struct {
		run  Run
		want []string
	}{
		{Run{}, []string{"/entry", "cmd"}},
		{Run{Args: []string{"x", "y"}}, []string{"/entry", "x", "y"}},
		{Run{Entrypoint: []string{"/e"}}, []string{"/e"}},
		{Run{Entrypoint: []string{"/e"}, Args: []string{"x"}}, []string{"/e", "x"}},
		{Run{Entrypoint: []string{}, Args: []string{"x"}}, []string{"x"}},
		{Run{Entrypoint: []string{}}, nil},
	} {
		p, err := ProcessSpec(processImage, c.run)
		if c.want == nil {
			if !errors.Is(err, ErrNoCommand) {
				t.Errorf("%+v: %v, want ErrNoCommand", c.run, err)
			}
			continue
		}
		if err != nil || !slices.Equal(p.Args, c.want) {
			t.Errorf("%+v: %q, %v; want %q", c.run, p.Args, err, c.want)
		}
	}
}

func TestProcessUser(t *testing.T) {
	for _, c := range []struct {
		user   string
		groups []string
		uid    uint32
		gid    uint32
		extra  []uint32
		home   string
	}{
		{"", nil, 33, 44, []uint32{55}, "/var/www"},
		{"root", nil, 0, 0, nil, "/root"},
		{"0", nil, 0, 0, nil, "/root"},
		{"33", nil, 33, 44, []uint32{55}, "/var/www"},
		{"web:more", nil, 33, 66, nil, "/var/www"},
		{"12345", nil, 12345, 0, nil, "/"},
		{"12345:678", nil, 12345, 678, nil, "/"},
		{"root", []string{"more", "777"}, 0, 0, []uint32{66, 777}, "/root"},
	} {
		p, err := ProcessSpec(processImage, Run{User: c.user, Groups: c.groups})
		if err != nil {
			t.Errorf("user %q: %v", c.user, err)
			continue
		}
		if p.User.UID != c.uid || p.User.GID != c.gid || !slices.Equal(p.User.AdditionalGids, c.extra) || !slices.Contains(p.Env, "HOME="+c.home) {
			t.Errorf("user %q groups %q: %+v, environment %q; want %+v", c.user, c.groups, p.User, p.Env, c)
		}
	}
	for _, r := range []Run{{User: "nobody"}, {User: "web:nogroup"}, {User: "-1"}, {User: "4294967296"}, {Groups: []string{"nogroup"}}} {
		if _, err := ProcessSpec(processImage, r); !errors.Is(err, ErrNoUser) {
			t.Errorf("%+v: %v, want ErrNoUser", r, err)
		}
	}
}

func TestProcessEnvironment(t *testing.T) {
	p, err := ProcessSpec(processImage, Run{Env: []string{"B=", "C=3", "A", "A=again", "HOME=/h"}, TTY: true})
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"PATH=/only", "TERM=xterm", "HOME=/h", "B=", "C=3", "A=again"}; !slices.Equal(p.Env, want) {
		t.Errorf("environment %q, want %q", p.Env, want)
	}
	if !p.Terminal || p.Cwd != "/srv" {
		t.Errorf("terminal %v, working directory %q", p.Terminal, p.Cwd)
	}
	if _, err := ProcessSpec(processImage, Run{Env: []string{"=x"}}); err == nil {
		t.Error("an environment entry without a name passes")
	}
	if _, err := ProcessSpec(processImage, Run{Cwd: "relative"}); err == nil || !strings.Contains(err.Error(), "absolute") {
		t.Errorf("relative working directory: %v", err)
	}
	bare, err := ProcessSpec(Image{}, Run{Args: []string{"x"}})
	if err != nil || bare.Cwd != "/" || bare.User.UID != 0 || !slices.Contains(bare.Env, "PATH="+defaultPath) {
		t.Errorf("an image without configuration: %+v, %v", bare, err)
	}
}

package e2e

import (
	"strings"
	"testing"
)

// TestBadUsage: arguments that are wrong, without a container.
func TestBadUsage(t *testing.T) {
	begin(t)
	for args, says := range map[string]string{
		"no-such-verb":                  "no-such-verb",
		"--no-such-flag list":           "--no-such-flag",
		"list --no-such-flag":           "--no-such-flag",
		"list extra":                    "extra",
		"start":                         "arg",
		"kill":                          "arg",
		"kill a KILL more":              "kill takes an id and a signal",
		"delete":                        "arg",
		"exec":                          "container id",
		"events --interval never x":     "never",
		"update --pids-limit many x":    "many",
		"create --preserve-fds many x":  "many",
		"list --format nice":            "nice",
		"ps --format nice":              "nice",
		"run --bundle /tmp":             "id",
		"run --bundle /tmp --nonsense":  "nonsense",
		"logs":                          "arg",
		"shell":                         "arg",
		"version extra":                 "extra",
		"features extra":                "extra",
		"images extra":                  "extra",
		"--log-format nice list":        "nice",
		"--root /dev/null/x state some": "some",
	} {
		husk(t, strings.Fields(args)...).fails(1, says)
	}
	if out := husk(t).ok(); !strings.Contains(out, "run") || !strings.Contains(out, "create") {
		t.Errorf("husk alone printed %q", out)
	}
	for _, verb := range []string{"run", "create", "exec", "kill", "update"} {
		if out := husk(t, verb, "--help").ok(); !strings.Contains(out, "husk "+verb) {
			t.Errorf("husk %s --help printed %q", verb, out)
		}
	}
}

// TestBadRun: what `husk run IMAGE` itself fails at is 125, as with docker, and leaves nothing.
func TestBadRun(t *testing.T) {
	begin(t)
	for args, says := range map[string]string{
		"":                                                 "image",
		"--no-such-flag IMAGE":                             "--no-such-flag",
		"--pull never no-such-image":                       "no-such-image",
		"127.0.0.1:1/no/such:image":                        "127.0.0.1:1",
		"--pull sometimes IMAGE":                           "sometimes",
		"UPPER/Case":                                       "UPPER/Case",
		"oci:/no/such/layout":                              "/no/such/layout",
		"--rootfs /no/such/root true":                      "/no/such/root",
		"--rootfs /etc/passwd true":                        "/etc/passwd",
		"--memory lots IMAGE":                              "lots",
		"--memory -5 IMAGE":                                "-5",
		"--memory 100t IMAGE":                              "memory",
		"--cpus none IMAGE":                                "none",
		"--cpus -1 IMAGE":                                  "-1",
		"--pids-limit few IMAGE":                           "few",
		"--storage-size huge IMAGE":                        "huge",
		"--volume /no/such/dir:/mnt IMAGE":                 "/no/such/dir",
		"--volume /tmp IMAGE":                              "HOST:CONTAINER",
		"--volume /tmp:relative IMAGE":                     "relative",
		"--volume /tmp:/mnt:sometimes IMAGE":               "sometimes",
		"--user nosuchuser IMAGE":                          "nosuchuser",
		"--user root:nosuchgroup IMAGE":                    "nosuchgroup",
		"--name a/b IMAGE":                                 "a/b",
		"--workdir relative IMAGE true":                    "relative",
		"--console-socket /no/such IMAGE":                  "console-socket",
		"--hostname " + strings.Repeat("h", 65) + " IMAGE": "hostname",
		"--env =value IMAGE":                               "=value",
	} {
		t.Run(strings.Map(plainRune, args)[:min(30, len(strings.Map(plainRune, args)))], func(t *testing.T) {
			husk(t, append([]string{"run", "--rm"}, strings.Fields(strings.ReplaceAll(args, "IMAGE", demo))...)...).fails(125, says)
		})
	}
	expect(t, "containers", husk(t, "ps", "--all", "--format", "json").ok(), "[]\n")
}

// TestBadRunInGuest: what fails once the virtual machine is there.
func TestBadRunInGuest(t *testing.T) {
	begin(t)
	husk(t, "run", "--rm", "--entrypoint", "/no/such/entry", demo).fails(127, "/no/such/entry")
	husk(t, "run", "--rm", demo, "no-such-program").fails(127, "no-such-program", "$PATH")
	husk(t, "run", "--rm", demo, "/etc").fails(126, "/etc")
	husk(t, "run", "--rm", "--volume", "/etc/passwd:/etc", demo, "true").fails(125, "Not a directory")
	husk(t, "run", "-d", "--name", "taken", demo, "sleep", "1000").ok()
	t.Cleanup(func() { husk(t, "delete", "--force", "taken").ok() })
	husk(t, "run", "-d", "--name", "taken", demo, "true").fails(125, "taken", "in use")
	expect(t, "status of who has the name", status(t, "taken"), "running")
}

// TestLittleMemory: the least memory that can be asked for works or is refused in one line.
func TestLittleMemory(t *testing.T) {
	begin(t)
	husk(t, "run", "--rm", "--memory", "1", demo, "true").fails(125, "memory")
	expect(t, "output with 8 MiB", husk(t, "run", "--rm", "--memory", "8m", demo, "echo", "fits").ok(), "fits\n")
}

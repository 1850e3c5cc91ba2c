package config

import (
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestAnnotated(t *testing.T) {
	c := Default()
	c.Annotations = []string{"template", "memory_mib", "qemu"}
	for name, a := range map[string]struct {
		annotations map[string]string
		change      func(*Config)
	}{
		"none":     {nil, func(*Config) {}},
		"others'":  {map[string]string{"template": "off", "io.husk.template": "x", "dev.huskish": "y"}, func(*Config) {}},
		"word":     {map[string]string{"dev.husk.template": "off"}, func(c *Config) { c.Template = "off" }},
		"quoted":   {map[string]string{"dev.husk.template": `"off"`}, func(c *Config) { c.Template = "off" }},
		"number":   {map[string]string{"dev.husk.memory_mib": "777"}, func(c *Config) { c.MemoryMiB = 777 }},
		"path":     {map[string]string{"dev.husk.qemu": "/a b/c"}, func(c *Config) { c.QEMU = "/a b/c" }},
		"two keys": {map[string]string{"dev.husk.template": "ready", "dev.husk.memory_mib": "128"}, func(c *Config) { c.Template, c.MemoryMiB = "ready", 128 }},
	} {
		t.Run(name, func(t *testing.T) {
			want := c
			a.change(&want)
			got, err := c.Annotated(a.annotations)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("got %+v, want %+v", got, want)
			}
		})
	}
}

// TestAnnotatedRefuses: whoever writes annotations sets what the configuration lets him set, and nothing else.
func TestAnnotatedRefuses(t *testing.T) {
	c := Default()
	c.Annotations = []string{"template", "memory_mib", "qemu", "no_such_key"}
	for name, a := range map[string]struct{ key, value, want string }{
		"not allowed":              {"machine", "q35", "not allowed"},
		"allows itself":            {"annotations", `["machine"]`, "not allowed"},
		"not ours":                 {"isolation", "hardware", "not allowed"},
		"no key":                   {"", "off", "not allowed"},
		"two keys in one":          {"template\nmachine", "q35", "not allowed"},
		"unknown":                  {"no_such_key", "1", "no key"},
		"bad word":                 {"template", "sometimes", "must be"},
		"bad kind":                 {"memory_mib", "much", "another kind"},
		"out of range":             {"memory_mib", "1", "memory_mib"},
		"table":                    {"template", `{ on = 1 }`, "must be"},
		"injected key":             {"template", "\"off\"\nmachine = \"q35\"", "more than"},
		"injected key, unquoted":   {"template", "off\nmachine = \"q35\"", "template"},
		"injected key of a number": {"memory_mib", "512\nqemu = \"/tmp/evil\"", "more than"},
		"injected list":            {"template", "\"off\"\nannotations = [\"qemu\", \"qemu\", \"qemu\", \"qemu\"]", "more than"},
		"injected table":           {"template", "\"off\"\n[a]\nb = 1", "more than"},
		"injected twice":           {"template", "\"off\"\ntemplate = \"on\"", "must be"},
	} {
		t.Run(name, func(t *testing.T) {
			want := c
			want.Annotations = slices.Clone(c.Annotations)
			got, err := c.Annotated(map[string]string{"dev.husk." + a.key: a.value})
			if err == nil {
				t.Fatalf("taken: %+v", got)
			}
			if !strings.Contains(err.Error(), a.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("error %q, want one line with %s", err, a.want)
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("the error comes with settings that were changed: %+v", got)
			}
		})
	}
}

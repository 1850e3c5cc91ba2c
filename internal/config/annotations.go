package config

import (
	"fmt"
	"slices"
	"sort"
	"strings"

	"github.com/BurntSushi/toml"
)

// annotationPrefix is what the names of husk's annotations begin with.
const annotationPrefix = "dev.husk."

// Annotated returns the settings for one container: c, overlaid with the annotations "dev.husk.<key>" of keys
// that c.Annotations lists. Husk's own other annotations, and values that cannot be, are errors, and come with c as
// it was.
func (c Config) Annotated(annotations map[string]string) (Config, error) {
	var names []string
	for name := range annotations {
		if strings.HasPrefix(name, annotationPrefix) {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return c, nil
	}
	sort.Strings(names)
	changed := c
	changed.Annotations = slices.Clone(c.Annotations) // a decoder may write to what it is given
	for _, name := range names {
		key, value := strings.TrimPrefix(name, annotationPrefix), annotations[name]
		if !slices.Contains(c.Annotations, key) {
			return c, fmt.Errorf("annotation %q: not allowed (the configuration's annotations list names those that are)", name)
		}
		if err := changed.set(key, value); err != nil {
			return c, fmt.Errorf("annotation %s: %w", name, err)
		}
	}
	if err := changed.Check(); err != nil {
		return c, err
	}
	return changed, nil
}

// set sets a key as the configuration file would: as a number or a truth value where the key is one, else as
// the text it is.
func (c *Config) set(key, value string) error {
	meta, err := toml.Decode(fmt.Sprintf("%s = %s", key, value), c)
	if err != nil {
		meta, err = toml.Decode(fmt.Sprintf("%s = %q", key, value), c)
	}
	if err != nil {
		return fmt.Errorf("%s = %q: it is of another kind", key, value)
	}
	if len(meta.Keys()) > 1 {
		return fmt.Errorf("%s = %q: more than a value", key, value)
	}
	if len(meta.Undecoded()) > 0 {
		return fmt.Errorf("%q is no key of the configuration", key)
	}
	return nil
}

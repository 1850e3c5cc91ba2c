package spec

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
)

// Number names a device.
type Number struct{ Major, Minor int64 }

// device is an element of linux.devices.
type device struct {
	Path  string `json:"path"`
	Type  string `json:"type"`
	Major int64  `json:"major"`
	Minor int64  `json:"minor"`
}

// rule is an element of linux.resources.devices.
type rule struct {
	Allow bool   `json:"allow"`
	Type  string `json:"type"`
	Major *int64 `json:"major"`
	Minor *int64 `json:"minor"`
}

// The majors of character devices that are the same on every Linux (the kernel's admin-guide/devices.txt): memory
// devices, terminals, misc, and pseudo terminals.
var common = map[int64]bool{1: true, 5: true, 10: true, 136: true}

// setDevices gives block devices that are disks the guest's numbers, and refuses nodes of the guest's own devices. Whoever wrote
// the configuration meant one of the host's, and a number that is none there may be a disk here.
func setDevices(linux object, disks map[Number]Number) error {
	var all []object
	if err := linux.get("devices", &all); err != nil {
		return fmt.Errorf("linux: %w", err)
	}
	for _, o := range all {
		d, err := read[device](o)
		if err != nil {
			return fmt.Errorf("linux.devices: %w", err)
		}
		number, isDisk := disks[Number{d.Major, d.Minor}]
		if d.Type == "b" && isDisk {
			if err := errors.Join(o.set("major", number.Major), o.set("minor", number.Minor)); err != nil {
				return err
			}
			continue
		}
		if err := d.check(); err != nil {
			return err
		}
	}
	if len(disks) > 0 {
		if err := linux.set("devices", all); err != nil {
			return err
		}
	}
	return setRules(linux, disks)
}

// check refuses a node of one of the guest's own devices.
func (d device) check() error {
	kind := map[string]string{"b": "block", "c": "char", "u": "char"}[d.Type]
	if kind == "" || kind == "char" && common[d.Major] {
		return nil
	}
	_, err := os.Stat(fmt.Sprintf("/sys/dev/%s/%d:%d", kind, d.Major, d.Minor))
	if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: the device %s (%d:%d) would be the guest's own", ErrInvalid, d.Path, d.Major, d.Minor)
	}
	return nil
}

// setRules gives rules about disks the guest's numbers. What is about other block devices of the host, by their numbers, is left
// out: here they may be the disks of another container.
func setRules(linux object, disks map[Number]Number) error {
	resources := object{}
	if err := linux.get("resources", &resources); err != nil {
		return fmt.Errorf("linux: %w", err)
	}
	var all, kept []object
	if err := resources.get("devices", &all); err != nil {
		return fmt.Errorf("linux.resources: %w", err)
	}
	if len(all) == 0 {
		return nil
	}
	for _, o := range all {
		r, err := read[rule](o)
		if err != nil {
			return fmt.Errorf("linux.resources.devices: %w", err)
		}
		if r.Type != "b" || anyNumber(r.Major) {
			kept = append(kept, o)
			continue
		}
		for from, to := range disks {
			if from.Major != *r.Major || !anyNumber(r.Minor) && from.Minor != *r.Minor {
				continue
			}
			one := maps.Clone(o)
			if err := errors.Join(one.set("major", to.Major), one.set("minor", to.Minor)); err != nil {
				return err
			}
			kept = append(kept, one)
		}
	}
	if err := resources.set("devices", kept); err != nil {
		return err
	}
	return linux.set("resources", resources)
}

// anyNumber tells whether a rule is for all numbers.
func anyNumber(n *int64) bool { return n == nil || *n == -1 }

// read decodes the fields of o that T has.
func read[T any](o object) (v T, err error) {
	data, err := json.Marshal(o)
	if err == nil {
		err = json.Unmarshal(data, &v)
	}
	return v, err
}

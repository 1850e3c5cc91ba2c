package bench

import (
	"context"
	"encoding/json"
	"fmt"

	"husk.dev/husk/internal/bench/load"
)

// stepFiles works on files in each of places.
func stepFiles(ctx context.Context, s *session, rt Runtime, note add) error {
	for _, place := range places {
		var o output
		var err error
		switch {
		case rt.Name == native:
			o, err = s.nativeFiles(ctx, place.name)
		case place.name != "disk":
			o, err = s.container(rt).run(ctx, place.name)
		case rt.Image != "":
			o, err = s.container(rt).runImage(ctx, bundles["rootfs"]...)
		default:
			continue // it has no disks
		}
		if err != nil {
			return fmt.Errorf("%s: %w", place.title, err)
		}
		if err := noteLoad(o, "io."+place.name+".", note); err != nil {
			return err
		}
	}
	return nil
}

// nativeFiles works on what a container would see as place. A disk's counterpart is the file system that
// holds it.
func (s *session) nativeFiles(ctx context.Context, place string) (output, error) {
	dir, data := s.path("bind"), s.path("bind/data")
	if place == "rootfs" {
		dir, data = s.path("rootfs", scratch), s.path("rootfs", loadData)
	}
	return s.foreground(ctx, []string{s.setting.Binary, "bench-load", "files", dir, data})
}

// stepCPU starts processes and computes.
func stepCPU(ctx context.Context, s *session, rt Runtime, note add) error {
	var o output
	var err error
	if rt.Name == native {
		o, err = s.foreground(ctx, []string{s.setting.Binary, "bench-load", "cpu", s.path("rootfs/bin/busybox")})
	} else {
		o, err = s.container(rt).run(ctx, "cpu")
	}
	if err != nil {
		return err
	}
	return noteLoad(o, "cpu.", note)
}

// noteLoad takes what bench-load printed. A container is not believed more than that it prints figures of
// the measures that there are.
func noteLoad(o output, prefix string, note add) error {
	var samples []load.Sample
	if err := json.Unmarshal([]byte(o.text), &samples); err != nil {
		return fmt.Errorf("read figures of %.200q: %w", o.text, err)
	}
	for _, sample := range samples {
		note(prefix+sample.Name, sample.Value)
	}
	return nil
}

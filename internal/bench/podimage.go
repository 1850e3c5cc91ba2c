package bench

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"runtime"
)

// writePodImage writes an archive of podImage, in the form of `docker save`: busybox in one layer.
func writePodImage(name, busybox string) error {
	program, err := os.ReadFile(busybox)
	if err != nil {
		return err
	}
	layer, err := archive(
		tarFile{name: "bin/", mode: 0o755},
		tarFile{name: "bin/busybox", mode: 0o755, data: program},
		tarFile{name: "bin/sleep", link: "busybox"},
		tarFile{name: "etc/", mode: 0o755},
		tarFile{name: "etc/passwd", mode: 0o644, data: []byte("root:x:0:0:root:/:/bin/sh\n")},
	)
	if err != nil {
		return err
	}
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux",
		// The pod's own container runs this, the others what they are told to.
		"config": map[string]any{"Env": []string{"PATH=/bin"}, "Cmd": []string{"sleep", "1000000"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{fmt.Sprintf("sha256:%x", sha256.Sum256(layer))}},
	})
	if err != nil {
		return err
	}
	manifest, err := json.Marshal([]map[string]any{{"Config": "config.json", "RepoTags": []string{podImage}, "Layers": []string{"layer.tar"}}})
	if err != nil {
		return err
	}
	image, err := archive(
		tarFile{name: "manifest.json", mode: 0o644, data: manifest},
		tarFile{name: "config.json", mode: 0o644, data: config},
		tarFile{name: "layer.tar", mode: 0o644, data: layer},
	)
	if err != nil {
		return err
	}
	return os.WriteFile(name, image, 0o600)
}

// tarFile is a file, a directory (its name ends in a slash), or a symbolic link.
type tarFile struct {
	name, link string
	mode       int64
	data       []byte
}

func archive(files ...tarFile) ([]byte, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Mode: f.mode, Size: int64(len(f.data)), Typeflag: tar.TypeReg}
		switch {
		case f.link != "":
			h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, f.link, 0o777
		case f.name[len(f.name)-1] == '/':
			h.Typeflag = tar.TypeDir
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.data); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

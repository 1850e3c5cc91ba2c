// Command images serves a registry of images that it makes of directories: the CRI's suite pulls its images from there, with
// no network.
//
//	images ADDRESS LIST
//
// Each line of the file LIST is NAME, tab, DIRECTORY for each layer with commas between, tab, the image's configuration as
// JSON. It prints "serving" once all images are there.
package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: images ADDRESS LIST")
		os.Exit(2)
	}
	if err := serve(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "images:", err)
		os.Exit(1)
	}
}

func serve(address, list string) error {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	server := &http.Server{
		Handler: registry.New(registry.Logger(log.New(io.Discard, "", 0))), ReadHeaderTimeout: time.Minute,
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(listener) }()
	file, err := os.Open(list)
	if err != nil {
		return err
	}
	defer file.Close()
	layers := map[string]v1.Layer{}
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		if err := push(address, lines.Text(), layers); err != nil {
			return fmt.Errorf("image %q: %w", lines.Text(), err)
		}
	}
	if err := lines.Err(); err != nil {
		return err
	}
	fmt.Println("serving")
	return <-done
}

// push makes the image of one line and puts it into the registry.
func push(address, line string, layers map[string]v1.Layer) error {
	fields := strings.Split(line, "\t")
	if len(fields) != 3 {
		return fmt.Errorf("%d fields, want 3", len(fields))
	}
	config := v1.Config{Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}}
	if err := json.Unmarshal([]byte(fields[2]), &config); err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	image := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	for _, dir := range strings.Split(fields[1], ",") {
		if layers[dir] == nil {
			data, err := pack(dir)
			if err != nil {
				return err
			}
			open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }
			if layers[dir], err = tarball.LayerFromOpener(open, tarball.WithMediaType(types.OCILayer)); err != nil {
				return err
			}
		}
		var err error
		if image, err = mutate.AppendLayers(image, layers[dir]); err != nil {
			return err
		}
	}
	about, err := image.ConfigFile()
	if err != nil {
		return err
	}
	about = about.DeepCopy()
	about.OS, about.Architecture, about.Config = "linux", runtime.GOARCH, config
	if image, err = mutate.ConfigFile(image, about); err != nil {
		return err
	}
	ref, err := name.ParseReference(address+"/"+fields[0], name.Insecure)
	if err != nil {
		return err
	}
	return remote.Write(ref, image)
}

// pack is a directory as a tar, owned by root, the same whenever it is made.
func pack(dir string) ([]byte, error) {
	var all bytes.Buffer
	w := tar.NewWriter(&all)
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		target := ""
		if info.Mode()&fs.ModeSymlink != 0 {
			if target, err = os.Readlink(path); err != nil {
				return err
			}
		}
		header, err := tar.FileInfoHeader(info, target)
		if err != nil {
			return err
		}
		header.Name, header.ModTime = strings.TrimPrefix(path, dir+"/"), time.Unix(1, 0)
		header.Uid, header.Gid, header.Uname, header.Gname = 0, 0, "", ""
		if err := w.WriteHeader(header); err != nil || !info.Mode().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		_, err = w.Write(data)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("pack %s: %w", dir, err)
	}
	return all.Bytes(), w.Close()
}

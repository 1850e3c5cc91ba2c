// Command images serves a registry of images that it makes of directories: the CRI's suite pulls its images from there, with
// no network.
//
//	images ADDRESS LIST [CERTIFICATE HOST...]
//
// Each line of the file LIST is NAME, tab, DIRECTORY for each layer with commas between, tab, the image's configuration as
// JSON. It prints each one's name and digest, and "serving" once all images are there. For
// clients that know the images by the names of other registries it also is these HOSTs, on the port for HTTPS, with a
// certificate of its own, which it writes to the file CERTIFICATE.
package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"io/fs"
	"log"
	"math/big"
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
	if len(os.Args) < 3 || len(os.Args) == 4 {
		fmt.Fprintln(os.Stderr, "usage: images ADDRESS LIST [CERTIFICATE HOST...]")
		os.Exit(2)
	}
	if err := serve(os.Args[1], os.Args[2], os.Args[3:]); err != nil {
		fmt.Fprintln(os.Stderr, "images:", err)
		os.Exit(1)
	}
}

func serve(address, list string, others []string) error {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	server := &http.Server{
		Handler: registry.New(registry.Logger(log.New(io.Discard, "", 0))), ReadHeaderTimeout: time.Minute,
	}
	done := make(chan error, 2)
	go func() { done <- server.Serve(listener) }()
	if len(others) > 0 {
		host, _, err := net.SplitHostPort(address)
		if err != nil {
			return err
		}
		secure, err := net.Listen("tcp", net.JoinHostPort(host, "443"))
		if err != nil {
			return err
		}
		certificate, err := certify(others[0], others[1:])
		if err != nil {
			return fmt.Errorf("make a certificate: %w", err)
		}
		go func() {
			done <- server.Serve(tls.NewListener(secure, &tls.Config{Certificates: []tls.Certificate{certificate}, NextProtos: []string{"http/1.1"}}))
		}()
	}
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

// certify makes a certificate for hosts, valid for a day, and writes it to a file.
func certify(file string, hosts []string) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: hosts, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	data, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, err
	}
	err = os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: data}), 0o644)
	return tls.Certificate{Certificate: [][]byte{data}, PrivateKey: key}, err
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
	digest, err := image.Digest()
	if err != nil {
		return err
	}
	fmt.Println(fields[0], digest)
	return remote.Write(ref, image)
}

// pack is a directory as a tar, the same whenever it is made.
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
		header.Uname, header.Gname = "", ""
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

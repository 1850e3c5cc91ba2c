package image

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"husk.dev/husk/internal/testenv"
)

// pullerEnv makes the test binary a process that pulls: "DIR REF".
const pullerEnv = "HUSK_TEST_PULLER"

func TestMain(m *testing.M) {
	if job := os.Getenv(pullerEnv); job != "" {
		os.Exit(pullerMain(job))
	}
	os.Exit(m.Run())
}

// pullerMain pulls, and prints each phase that a layer enters.
func pullerMain(job string) int {
	dir, ref, _ := strings.Cut(job, " ")
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	s, err := Open(dir)
	if err == nil {
		_, err = s.Pull(ctx, ref, PullOptions{Progress: func(p Progress) { fmt.Printf("%d %s\n", p.Layer, p.Phase) }})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// startPuller starts a process that pulls, and returns its output.
func startPuller(t *testing.T, s *Store, ref string, env ...string) (*exec.Cmd, *bufio.Scanner) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), pullerEnv+"="+s.Dir()+" "+ref)
	cmd.Env = append(cmd.Env, env...)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return cmd, bufio.NewScanner(out)
}

func waitFor(t *testing.T, lines *bufio.Scanner, want string) {
	t.Helper()
	for lines.Scan() {
		if lines.Text() == want {
			return
		}
	}
	t.Fatalf("the other process ended before it said %q", want)
}

// TestKilledInDownload kills a pull whose first layer is complete and whose second is on its way.
func TestKilledInDownload(t *testing.T) {
	s := newStore(t)
	b, addr := newBlobServer(t)
	img := smallImage(t, "x")
	push(t, addr+"/app", img)
	layers, _ := img.Layers()
	digest, _ := layers[1].Digest()
	release := make(chan struct{})
	var once sync.Once
	defer once.Do(func() { close(release) })
	b.set(digest.String(), func(w http.ResponseWriter, blob []byte) {
		w.Header().Set("Content-Length", strconv.Itoa(len(blob)))
		_, _ = w.Write(blob[:len(blob)/2])
		w.(http.Flusher).Flush()
		<-release
		_, _ = w.Write(blob[len(blob)/2:])
	})
	cmd, lines := startPuller(t, s, addr+"/app")
	waitFor(t, lines, "1 done")
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	once.Do(func() { close(release) })
	if got := leftovers(t, s); len(got) == 0 {
		t.Fatal("nothing is left over: the pull was not killed in the middle")
	}
	if _, err := s.Get(addr + "/app"); !errors.Is(err, ErrNotFound) {
		t.Errorf("Get after a killed pull: %v, want ErrNotFound", err)
	}
	if _, err := Open(s.Dir()); err != nil {
		t.Fatal(err)
	}
	if got := leftovers(t, s); len(got) > 0 {
		t.Errorf("left over after Open: %q", got)
	}
	var phases []string
	pulled := pull(t, s, addr+"/app", PullOptions{Progress: func(p Progress) { phases = append(phases, fmt.Sprint(p.Layer, " ", p.Phase)) }})
	if !slices.Contains(phases, "1 cached") || content(t, pulled, "marker") != "x" {
		t.Errorf("progress %q, marker %q; want layer 1 cached, x", phases, content(t, pulled, "marker"))
	}
	if got := leftovers(t, s); len(got) > 0 {
		t.Errorf("left over: %q", got)
	}
}

// TestKilledInConversion kills a pull while mkfs.erofs runs, which must not outlive it.
func TestKilledInConversion(t *testing.T) {
	s, addr := newStore(t), newRegistry(t)
	push(t, addr+"/app", smallImage(t, "x"))
	bin := t.TempDir()
	pidFile := filepath.Join(bin, "pid")
	script := "#!/bin/sh\necho $$ >" + pidFile + ".new; mv " + pidFile + ".new " + pidFile + "; exec sleep 50\n"
	if err := os.WriteFile(filepath.Join(bin, "mkfs.erofs"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	cmd, lines := startPuller(t, s, addr+"/app", "PATH="+bin+":"+os.Getenv("PATH"))
	waitFor(t, lines, "1 converting")
	until(t, "mkfs.erofs runs", func() bool { _, err := os.Stat(pidFile); return err == nil })
	pid, err := strconv.Atoi(strings.TrimSpace(mustRead(t, pidFile)))
	if err != nil {
		t.Fatal(err)
	}
	// A live owner's work is not swept.
	if _, err := Open(s.Dir()); err != nil {
		t.Fatal(err)
	}
	if got, _ := filepath.Glob(s.Dir() + "/tmp/*"); len(got) != 1 {
		t.Errorf("temporary directories %q while a pull runs, want one", got)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	until(t, "mkfs.erofs is gone", func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		return err != nil || strings.Contains(string(stat), ") Z ")
	})
	if got := content(t, pull(t, s, addr+"/app", PullOptions{}), "marker"); got != "x" {
		t.Errorf("marker %q", got)
	}
	if got := leftovers(t, s); len(got) > 0 {
		t.Errorf("left over: %q", got)
	}
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("gave up waiting until %s", what)
		}
	}
}

// TestConcurrentPulls pulls one image from several goroutines and processes: each layer is fetched once.
func TestConcurrentPulls(t *testing.T) {
	s := newStore(t)
	b, addr := newBlobServer(t)
	push(t, addr+"/app", imageFrom(t, v1.Config{}, overlayLayers(t)...))
	b.gets.Store(0)
	var wg sync.WaitGroup
	for range 3 {
		cmd, lines := startPuller(t, s, addr+"/app")
		wg.Go(func() {
			for lines.Scan() {
			}
			if err := cmd.Wait(); err != nil {
				t.Errorf("pulling process: %v", err)
			}
		})
		wg.Go(func() {
			if _, err := s.Pull(t.Context(), addr+"/app", PullOptions{}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	// Each of the six reads the configuration; each of the three layers is fetched by one of them.
	if got := b.gets.Load(); got != 6+3 {
		t.Errorf("%d blobs were fetched, want 9", got)
	}
	if got := layerFiles(t, s); len(got) != 3 {
		t.Errorf("layers %q, want 3", got)
	}
	if got := leftovers(t, s); len(got) > 0 {
		t.Errorf("left over: %q", got)
	}
}

// TestCancel ends a pull by its context while a layer is on its way.
func TestCancel(t *testing.T) {
	s := newStore(t)
	b, addr := newBlobServer(t)
	img := smallImage(t, "x")
	push(t, addr+"/app", img)
	layers, _ := img.Layers()
	digest, _ := layers[0].Digest()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	defer close(ended)
	b.set(digest.String(), func(w http.ResponseWriter, blob []byte) {
		w.Header().Set("Content-Length", strconv.Itoa(len(blob)))
		w.WriteHeader(http.StatusOK)
		w.(http.Flusher).Flush()
		cancel()
		<-ended
	})
	if _, err := s.Pull(ctx, addr+"/app", PullOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want context.Canceled", err)
	}
	if got := append(leftovers(t, s), layerFiles(t, s)...); len(got) > 0 {
		t.Errorf("left over: %q", got)
	}
}

// TestDiskFull pulls onto a small file system.
func TestDiskFull(t *testing.T) {
	if !testenv.PrivateMounts(t) {
		return
	}
	addr := newRegistry(t)
	push(t, addr+"/app", imageFrom(t, v1.Config{}, gzipLayer(t, file("zeros", strings.Repeat("\x00", 10<<20)))))
	for what, size := range map[string]string{"unpacking": "4m", "converting": "15m"} {
		t.Run(what, func(t *testing.T) {
			at := t.TempDir()
			mount(t, "-t", "tmpfs", "-o", "size="+size, "tmpfs", at)
			s, err := Open(filepath.Join(at, "images"))
			if err != nil {
				t.Fatal(err)
			}
			_, err = s.Pull(t.Context(), addr+"/app", PullOptions{})
			var full *NoSpaceError
			if !errors.Is(err, ErrNoSpace) || !errors.As(err, &full) || full.Free > 6<<20 {
				t.Errorf("%v; want ErrNoSpace with what was free then", err)
			}
			t.Log(err)
			if got := append(leftovers(t, s), layerFiles(t, s)...); len(got) > 0 {
				t.Errorf("left over: %q", got)
			}
		})
	}
	t.Run("known before", func(t *testing.T) {
		at := t.TempDir()
		mount(t, "-t", "tmpfs", "-o", "size=1m", "tmpfs", at)
		s, err := Open(filepath.Join(at, "images"))
		if err != nil {
			t.Fatal(err)
		}
		random := make([]byte, 2<<20)
		seed := uint32(1)
		for i := range random {
			seed = seed*1664525 + 1013904223
			random[i] = byte(seed >> 24)
		}
		push(t, addr+"/random", imageFrom(t, v1.Config{}, gzipLayer(t, file("random", string(random)))))
		_, err = s.Pull(t.Context(), addr+"/random", PullOptions{})
		if !errors.Is(err, ErrNoSpace) || !strings.Contains(err.Error(), "need at least") {
			t.Errorf("%v; want ErrNoSpace with what is needed", err)
		}
	})
}

package sys

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// reseedBytes is what Reseed takes. A virtual machine that is a copy of another may have some 64 bytes
	// of the other's in the driver already.
	reseedBytes = 256
	// reseedWait bounds how long the generator may take to give them.
	reseedWait = 2 * time.Second
)

// Reseed mixes numbers of the machine's random number generator (/dev/hwrng) into the kernel's and has it
// start anew from them at once (random(4)). A machine without one is no error.
func Reseed(ctx context.Context) error {
	source, err := os.Open("/dev/hwrng")
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reseed random numbers: %w", err)
	}
	done := make(chan error, 1)
	go func() {
		defer source.Close()
		done <- mix(source)
	}()
	select {
	case err = <-done:
	case <-time.After(reseedWait):
		err = errors.New("the generator does not answer")
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("reseed random numbers: %w", err)
	}
	return nil
}

func mix(source io.Reader) error {
	fresh := make([]byte, reseedBytes)
	if _, err := io.ReadFull(source, fresh); err != nil {
		return err
	}
	pool, err := os.OpenFile("/dev/urandom", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer pool.Close()
	if _, err := pool.Write(fresh); err != nil {
		return err
	}
	return unix.IoctlSetInt(int(pool.Fd()), unix.RNDRESEEDCRNG, 0)
}

package sys

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Reseed mixes fresh random bytes into the kernel's pool and has its generator start anew from that at once
// (random(4)), so that a virtual machine no longer shares its random numbers with one it is a copy of.
func Reseed(fresh []byte) error {
	pool, err := os.OpenFile("/dev/urandom", os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("reseed random numbers: %w", err)
	}
	defer pool.Close()
	if _, err := pool.Write(fresh); err != nil {
		return fmt.Errorf("reseed random numbers: %w", err)
	}
	if err := unix.IoctlSetInt(int(pool.Fd()), unix.RNDRESEEDCRNG, 0); err != nil {
		return fmt.Errorf("reseed random numbers: %w", err)
	}
	return nil
}

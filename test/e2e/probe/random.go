package main

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"os"
	"strings"
)

const (
	atRandom     = 25 // AT_RANDOM of getauxval(3)
	atRandomSize = 16 // bytes
)

// random prints name and value of random numbers, one a line.
func random() error {
	auxv, err := os.ReadFile("/proc/self/auxv")
	if err != nil {
		return err
	}
	for ; len(auxv) >= 16; auxv = auxv[16:] {
		if binary.NativeEndian.Uint64(auxv) != atRandom {
			continue
		}
		memory, err := os.Open("/proc/self/mem")
		if err != nil {
			return err
		}
		defer memory.Close()
		value := make([]byte, atRandomSize)
		if _, err := memory.ReadAt(value, int64(binary.NativeEndian.Uint64(auxv[8:]))); err != nil {
			return fmt.Errorf("read AT_RANDOM: %w", err)
		}
		fmt.Printf("at_random %x\n", value)
	}
	value := make([]byte, 32)
	if _, err := rand.Read(value); err != nil {
		return err
	}
	fmt.Printf("getrandom %x\n", value)
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(maps)) {
		fields := strings.Fields(line)
		if name := fields[len(fields)-1]; name == "[stack]" || name == "[vdso]" {
			fmt.Println(strings.Trim(name, "[]"), fields[0])
		}
	}
	return nil
}

// Command husk runs containers, each in a virtual machine of its own.
package main

import (
	"os"
	"path/filepath"

	"husk.dev/husk/internal/cli"
	"husk.dev/husk/internal/vmm/all"
)

// version is set when husk is built (-ldflags -X).
var version = "dev"

func main() {
	if filepath.Base(os.Args[0]) == cli.ShimName {
		os.Exit(cli.Shim(os.Args[1:], version, all.Drivers))
	}
	os.Exit(cli.Main(os.Args[1:], version, all.Drivers))
}

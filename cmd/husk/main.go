// Command husk runs containers, each in a virtual machine of its own.
package main

import (
	"os"

	"husk.dev/husk/internal/cli"
	"husk.dev/husk/internal/vmm/all"
)

// version is set when husk is built (-ldflags -X).
var version = "dev"

func main() {
	os.Exit(cli.Main(os.Args[1:], version, all.Drivers))
}

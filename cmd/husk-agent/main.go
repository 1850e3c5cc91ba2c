// Command husk-agent is PID 1 of a husk guest: it sets the guest up and runs containers for the host.
package main

import (
	"husk.dev/husk/internal/agent"
	"husk.dev/husk/internal/agent/boot"
)

// version is set by the build.
var version string

func main() { boot.Main(agent.BuildVersion(version)) }

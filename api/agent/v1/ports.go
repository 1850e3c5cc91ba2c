// Package agentv1 is the protocol between the sandbox owner on the host and the agent in the guest.
package agentv1

//go:generate protoc -I ../../.. --go_out=../../.. --go_opt=paths=source_relative --go-ttrpc_out=../../.. --go-ttrpc_opt=paths=source_relative api/agent/v1/agent.proto

// Version of the protocol. The owner refuses an agent that answers another.
const Version = 1

// Ports of the guest's channel.
const (
	PortRPC = 1024 // ttrpc, service Agent
	PortIO  = 1025 // stdio streams, each opened with its token of 8 bytes, big endian
)

// Places in the guest that owner and agent agree on.
const (
	// ShareDir holds one directory for each virtio-fs share, named by its tag.
	ShareDir = "/run/husk/share"
	// MemoryDir holds the file systems in memory that containers share.
	MemoryDir = "/run/husk/memory"
	// FilesDir holds the directories that PutFiles makes.
	FilesDir = "/run/husk/files"
	// OwnDir holds a directory for each container that has files of its own, named by its id.
	OwnDir = "/run/husk/own"
)

// Rested is the line on the console by which the agent says that the guest may be saved.
const Rested = "husk-agent: at rest"

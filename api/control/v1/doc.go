// Package controlv1 is the protocol between the command line and a sandbox owner.
package controlv1

//go:generate protoc -I ../../.. --go_out=../../.. --go_opt=paths=source_relative --go-ttrpc_out=../../.. --go-ttrpc_opt=paths=source_relative api/control/v1/control.proto

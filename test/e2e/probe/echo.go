package main

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"time"
)

// patience bounds one exchange.
const patience = time.Minute

// serve echoes on a port of every address.
func serve(port string) error {
	listener, err := net.Listen("tcp", ":"+port)
	if err != nil {
		return err
	}
	packets, err := net.ListenPacket("udp", ":"+port)
	if err != nil {
		return err
	}
	fmt.Println("serving")
	go func() {
		buffer := make([]byte, 64<<10)
		for {
			n, from, err := packets.ReadFrom(buffer)
			if err == nil {
				_, err = packets.WriteTo(buffer[:n], from)
			}
			if err != nil {
				fmt.Fprintln(os.Stderr, "probe:", err)
			}
		}
	}()
	for {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			_, _ = io.Copy(conn, conn) // the other side sees what is missing
		}()
	}
}

// exchange sends bytes and wants them back.
func exchange(network, address, count string) error {
	size, err := strconv.Atoi(count)
	if err != nil {
		return err
	}
	sent := make([]byte, size)
	if _, err := rand.Read(sent); err != nil {
		return err
	}
	conn, err := net.DialTimeout(network, address, patience)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	got := make([]byte, size)
	if network == "udp" {
		err = datagram(conn, sent, got)
	} else {
		written := make(chan error, 1)
		go func() { _, err := conn.Write(sent); written <- err }()
		_, err = io.ReadFull(conn, got)
		err = errors.Join(err, <-written)
	}
	if err != nil {
		return fmt.Errorf("exchange %d bytes with %s by %s: %w", size, address, network, err)
	}
	if !bytes.Equal(got, sent) {
		return fmt.Errorf("exchange %d bytes with %s by %s: others came back", size, address, network)
	}
	fmt.Println("same", network, size)
	return nil
}

// datagram sends one until its answer comes: the first may be lost while the address is looked for.
func datagram(conn net.Conn, sent, got []byte) error {
	for end := time.Now().Add(patience); ; {
		if _, err := conn.Write(sent); err != nil {
			return err
		}
		if err := conn.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
			return err
		}
		n, err := conn.Read(got)
		if err == nil && n == len(sent) {
			return nil
		}
		if time.Now().After(end) {
			return errors.Join(errors.New("no answer"), err)
		}
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			time.Sleep(100 * time.Millisecond) // refused: the server has not begun yet
		}
	}
}

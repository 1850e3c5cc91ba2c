// Package names asks the name server on a loopback address of a container's network namespace for the guest, which
// cannot reach it: Docker has one in the namespace of each container on a user's network.
package names

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	agentv1 "husk.dev/husk/api/agent/v1"
	"husk.dev/husk/internal/sys"
)

const (
	port = 53
	// maxAsking bounds the queries that are asked at a time: a guest that sends more waits.
	maxAsking = 32
	// patience bounds one query.
	patience = 10 * time.Second
	ownSpace = "/proc/self/ns/net"
)

// Serve answers the queries that come from the guest until the stream ends. Queries go to the name server at address,
// from the network namespace at netns, "" for that of this process. What cannot be answered is not: who asked asks again.
func Serve(stream io.ReadWriter, netns string, address netip.Addr) error {
	return serve(stream, netns, netip.AddrPortFrom(address, port).String())
}

func serve(stream io.ReadWriter, netns, server string) error {
	if netns == "" {
		netns = ownSpace
	}
	// What its path names may be another namespace later: that of a process that is gone, whose number another has.
	space, err := os.Open(netns)
	if err != nil {
		return fmt.Errorf("open network namespace: %w", err)
	}
	var asking sync.WaitGroup
	defer func() {
		go func() {
			asking.Wait()
			space.Close()
		}()
	}()
	if netns != ownSpace { // which takes rights that nobody needs to be where he is
		netns = fmt.Sprintf("/proc/self/fd/%d", space.Fd())
	}
	var mu sync.Mutex // held over writes to the stream
	turns := make(chan struct{}, maxAsking)
	for {
		query, err := agentv1.ReadName(stream)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read query of the guest: %w", err)
		}
		turns <- struct{}{}
		asking.Go(func() {
			defer func() { <-turns }()
			data, err := ask(netns, server, query)
			if err != nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			_ = agentv1.WriteName(stream, agentv1.NameMessage{ID: query.ID, Data: data}) // the next read fails
		})
	}
}

// ask sends one query and waits for its answer.
func ask(netns, server string, query agentv1.NameMessage) ([]byte, error) {
	kind := "udp4"
	if query.Stream {
		kind = "tcp4"
	}
	var conn net.Conn
	dial := func() (err error) {
		conn, err = net.DialTimeout(kind, server, patience)
		return err
	}
	err := error(nil)
	if netns == ownSpace {
		err = dial()
	} else {
		err = sys.InNetwork(netns, dial)
	}
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return nil, err
	}
	if !query.Stream {
		if _, err := conn.Write(query.Data); err != nil {
			return nil, err
		}
		answer := make([]byte, 0xffff)
		n, err := conn.Read(answer)
		return answer[:n], err
	}
	framed := append(binary.BigEndian.AppendUint16(nil, uint16(len(query.Data))), query.Data...)
	if _, err := conn.Write(framed); err != nil {
		return nil, err
	}
	var length [2]byte
	if _, err := io.ReadFull(conn, length[:]); err != nil {
		return nil, err
	}
	answer := make([]byte, binary.BigEndian.Uint16(length[:]))
	_, err = io.ReadFull(conn, answer)
	return answer, err
}

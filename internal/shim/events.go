package shim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	events "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

const (
	// maxEvents bounds those that wait for containerd; the shim goes on without the ones beyond it.
	maxEvents = 2048
	// forwardWait bounds one try to hand over an event.
	forwardWait = 5 * time.Second
	// retryEvery is the time between two tries, and forwardTries their number: containerd may be started anew.
	retryEvery   = time.Second
	forwardTries = 60
	// flushWait bounds the wait for the last events at the end.
	flushWait = 5 * time.Second
)

// publisher hands events to containerd, one after another in the order in which they happened.
type publisher struct {
	address, namespace string
	log                *slog.Logger
	queue              chan *types.Envelope
	end                chan struct{} // closed when no more come
	done               chan struct{} // closed when all have been handed over, or given up
	client             *ttrpc.Client // of run alone
}

// newPublisher starts to publish to the socket at address; without one events are logged only.
func newPublisher(address, namespace string, log *slog.Logger) *publisher {
	p := &publisher{
		address: address, namespace: namespace, log: log,
		queue: make(chan *types.Envelope, maxEvents), end: make(chan struct{}), done: make(chan struct{}),
	}
	go p.run()
	return p
}

// publish queues an event.
func (p *publisher) publish(topic string, event proto.Message) {
	e, err := envelope(p.namespace, topic, event)
	if err != nil {
		p.log.Error("encode event", "topic", topic, "error", err)
		return
	}
	select {
	case p.queue <- e:
	default:
		p.log.Error("too many events wait for containerd, one is lost", "topic", topic)
	}
}

func envelope(namespace, topic string, event proto.Message) (*types.Envelope, error) {
	value, err := proto.Marshal(event)
	if err != nil {
		return nil, err
	}
	return &types.Envelope{
		Timestamp: timestamppb.Now(), Namespace: namespace, Topic: topic,
		// containerd names types without the prefix that protobuf gives them.
		Event: &anypb.Any{TypeUrl: typeURL(event), Value: value},
	}, nil
}

func typeURL(m proto.Message) string { return string(m.ProtoReflect().Descriptor().FullName()) }

func (p *publisher) run() {
	defer close(p.done)
	for {
		select {
		case e := <-p.queue:
			p.forward(e)
		case <-p.end:
			for len(p.queue) > 0 {
				p.forward(<-p.queue)
			}
			if p.client != nil {
				p.client.Close()
			}
			return
		}
	}
}

// forward hands over one event, and tries again for as long as containerd may take to come back.
func (p *publisher) forward(e *types.Envelope) {
	p.log.Debug("event", "topic", e.Topic)
	if p.address == "" {
		return
	}
	var err error
	for try := range forwardTries {
		if try > 0 {
			select {
			case <-time.After(retryEvery):
			case <-p.end:
				try = forwardTries // the last one
			}
		}
		if err = p.try(e); err == nil {
			return
		}
		if try >= forwardTries {
			break
		}
	}
	p.log.Error("containerd does not take an event", "topic", e.Topic, "error", err)
}

func (p *publisher) try(e *types.Envelope) error {
	if p.client == nil {
		conn, err := net.DialTimeout("unix", p.address, forwardWait)
		if err != nil {
			return fmt.Errorf("connect to containerd: %w", err)
		}
		p.client = ttrpc.NewClient(conn)
	}
	ctx, cancel := context.WithTimeout(context.Background(), forwardWait)
	defer cancel()
	_, err := events.NewTTRPCEventsClient(p.client).Forward(ctx, &events.ForwardRequest{Envelope: e})
	if err != nil {
		p.client.Close()
		p.client = nil
	}
	return err
}

// close waits until the events that wait have been handed over.
func (p *publisher) close() error {
	close(p.end)
	select {
	case <-p.done:
		return nil
	case <-time.After(flushWait):
		return errors.New("containerd did not take the last events")
	}
}

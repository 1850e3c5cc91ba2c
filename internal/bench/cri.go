package bench

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"

	"google.golang.org/protobuf/encoding/protowire"
)

// criClient calls containerd's CRI plugin: gRPC by the standard library's HTTP/2. The five calls that are needed do not
// justify the API's own package, which would be in the memory of every husk process.
type criClient struct {
	http *http.Client
}

const (
	criService = "/runtime.v1.RuntimeService/"
	// grpcFrame is what precedes a message: whether it is compressed, and its length.
	grpcFrame = 5
	// criAnswer bounds an answer.
	criAnswer = 1 << 20
)

func newCRIClient(socket string) *criClient {
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
		Protocols: new(http.Protocols),
	}
	transport.Protocols.SetUnencryptedHTTP2(true)
	return &criClient{http: &http.Client{Transport: transport}}
}

func (c *criClient) close() { c.http.CloseIdleConnections() }

// call makes a request and returns the first field of the answer, which is an id where it has one.
func (c *criClient) call(ctx context.Context, method string, request message) (id string, err error) {
	answer, err := c.post(ctx, method, request)
	if err != nil {
		return "", fmt.Errorf("%s: %w", method, err)
	}
	if len(answer) == 0 {
		return "", nil
	}
	number, kind, n := protowire.ConsumeTag(answer)
	if n < 0 || number != 1 || kind != protowire.BytesType {
		return "", fmt.Errorf("%s: the answer has no id", method)
	}
	value, n := protowire.ConsumeBytes(answer[n:])
	if n < 0 {
		return "", fmt.Errorf("%s: the answer is cut off", method)
	}
	return string(value), nil
}

// post sends a request and returns the answer, both as protobuf has them.
func (c *criClient) post(ctx context.Context, method string, request message) ([]byte, error) {
	frame := binary.BigEndian.AppendUint32([]byte{0}, uint32(len(request)))
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://containerd"+criService+method, bytes.NewReader(append(frame, request...)))
	if err != nil {
		return nil, err
	}
	r.Header.Set("Content-Type", "application/grpc")
	r.Header.Set("TE", "trailers")
	answer, err := c.http.Do(r)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(io.LimitReader(answer.Body, criAnswer)) // the status comes after it
	if err != nil {
		return nil, err
	}
	status := answer.Trailer
	if status.Get("Grpc-Status") == "" {
		status = answer.Header
	}
	if code := status.Get("Grpc-Status"); code != "0" {
		said := status.Get("Grpc-Message")
		if plain, err := url.PathUnescape(said); err == nil {
			said = plain
		}
		return nil, fmt.Errorf("HTTP status %d, gRPC status %q: %s", answer.StatusCode, code, said)
	}
	if len(body) < grpcFrame || body[0] != 0 || int(binary.BigEndian.Uint32(body[1:])) != len(body)-grpcFrame {
		return nil, fmt.Errorf("an answer of %d bytes that is no message", len(body))
	}
	return body[grpcFrame:], nil
}

// message is one of the CRI's in its wire form; the numbers of fields are those of the API's api.proto.
type message []byte

func (m message) text(number protowire.Number, text string) message {
	return protowire.AppendString(protowire.AppendTag(m, number, protowire.BytesType), text)
}

func (m message) embed(number protowire.Number, other message) message {
	return protowire.AppendBytes(protowire.AppendTag(m, number, protowire.BytesType), other)
}

// sandboxConfig is PodSandboxConfig of a pod whose control groups are below parent.
func sandboxConfig(name, parent string) message {
	metadata := message(nil).text(1, name).text(2, name).text(3, "husk-bench")
	return message(nil).embed(1, metadata).text(2, name).embed(8, message(nil).text(1, parent))
}

// runPodRequest is RunPodSandboxRequest.
func runPodRequest(config message, handler string) message {
	return message(nil).embed(1, config).text(2, handler)
}

// createRequest is CreateContainerRequest of a container that runs command.
func createRequest(pod string, sandbox message, name, image string, command ...string) message {
	config := message(nil).embed(1, message(nil).text(1, name)).embed(2, message(nil).text(1, image))
	for _, word := range command {
		config = config.text(3, word)
	}
	return message(nil).text(1, pod).embed(2, config.embed(15, nil)).embed(3, sandbox)
}

// idRequest is a request that only names a pod or a container.
func idRequest(id string) message { return message(nil).text(1, id) }

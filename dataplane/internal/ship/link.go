package ship

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"connectrpc.com/connect"
	"github.com/quic-go/quic-go"
	"google.golang.org/protobuf/proto"

	usagev1 "bailiwick/proto/gen/bailiwick/usage/v1"
	"bailiwick/proto/gen/bailiwick/usage/v1/usagev1connect"
)

// maxAnswer bounds one message of the ledger: they are small.
const maxAnswer = 64 << 10

// link carries the protocol's messages. Send and Receive each belong to one
// goroutine; Abort ends both, from any; it must be called in the end.
type link interface {
	Send(*usagev1.UploadRequest) error
	Receive() (*usagev1.UploadResponse, error)
	Abort()
	Transport() string
}

func (s *Shipper) dialQUIC(ctx context.Context, addr string) (link, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Patience)
	defer cancel()
	conf := s.cfg.QUICTLS().Clone()
	conf.NextProtos = []string{ALPN}
	// No 0-RTT: what is sent in it can be replayed. The peer opens no streams.
	c, err := quic.DialAddr(ctx, addr, conf, &quic.Config{
		HandshakeIdleTimeout:       s.cfg.Patience,
		KeepAlivePeriod:            10 * time.Second,
		MaxIdleTimeout:             30 * time.Second,
		MaxIncomingStreams:         -1,
		MaxIncomingUniStreams:      -1,
		MaxStreamReceiveWindow:     1 << 20,
		MaxConnectionReceiveWindow: 1 << 20,
	})
	if err != nil {
		return nil, fmt.Errorf("dial usage ingest by QUIC: %w", err)
	}
	st, err := c.OpenStreamSync(ctx)
	if err != nil {
		c.CloseWithError(0, "")
		return nil, fmt.Errorf("open usage stream: %w", err)
	}
	return &quicLink{c: c, st: st, in: bufio.NewReader(st)}, nil
}

// quicLink frames messages on a stream: uvarint length, message.
type quicLink struct {
	c   *quic.Conn
	st  *quic.Stream
	in  *bufio.Reader
	out []byte
}

func (l *quicLink) Transport() string { return "quic" }

func (l *quicLink) Send(m *usagev1.UploadRequest) (err error) {
	l.out = binary.AppendUvarint(l.out[:0], uint64(proto.Size(m)))
	if l.out, err = (proto.MarshalOptions{}).MarshalAppend(l.out, m); err != nil {
		return err
	}
	_, err = l.st.Write(l.out)
	return err
}

func (l *quicLink) Receive() (*usagev1.UploadResponse, error) {
	n, err := binary.ReadUvarint(l.in)
	if err != nil {
		return nil, err
	}
	if n > maxAnswer {
		return nil, fmt.Errorf("the ledger's answer holds %d bytes, at most %d are allowed", n, maxAnswer)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(l.in, b); err != nil {
		return nil, err
	}
	m := new(usagev1.UploadResponse)
	if err := proto.Unmarshal(b, m); err != nil {
		return nil, fmt.Errorf("decode the ledger's answer: %w", err)
	}
	return m, nil
}

func (l *quicLink) Abort() { l.c.CloseWithError(0, "") }

// dialConnect opens the stream; the connection itself is made by the first Send.
func (s *Shipper) dialConnect(ctx context.Context, addr string) (link, error) {
	ctx, cancel := context.WithCancel(ctx)
	l := &connectLink{client: s.cfg.HTTPClient, cancel: cancel}
	c := usagev1connect.NewIngestServiceClient(l, "https://"+addr, connect.WithReadMaxBytes(maxAnswer))
	st, err := c.Upload(ctx)
	if err != nil {
		cancel()
		return nil, fmt.Errorf("open usage upload: %w", err)
	}
	l.st = st
	return l, nil
}

// connectLink keeps hold of the response's body, because net/http's HTTP/2
// client does not look at a request's context while it waits for more of the
// request's body, nor for room to send it: only closing what it waits on ends
// the stream. (Go 1.26.)
type connectLink struct {
	client *http.Client
	cancel context.CancelFunc
	st     *connect.BidiStreamForClientSimple[usagev1.UploadRequest, usagev1.UploadResponse]

	mu      sync.Mutex // covers what follows
	body    io.Closer
	aborted bool
}

// Do is connect.HTTPClient.
func (l *connectLink) Do(r *http.Request) (*http.Response, error) {
	resp, err := l.client.Do(r)
	if err != nil {
		return resp, err
	}
	l.mu.Lock()
	l.body = resp.Body
	aborted := l.aborted
	l.mu.Unlock()
	if aborted {
		resp.Body.Close()
	}
	return resp, nil
}

func (l *connectLink) Transport() string { return "connect" }

func (l *connectLink) Send(m *usagev1.UploadRequest) error {
	err := l.st.Send(m)
	if errors.Is(err, io.EOF) { // the stream is over; why, Receive says
		return errors.New("the ledger ended the upload")
	}
	return err
}

func (l *connectLink) Receive() (*usagev1.UploadResponse, error) { return l.st.Receive() }

func (l *connectLink) Abort() {
	l.cancel()
	l.mu.Lock()
	l.aborted = true
	body := l.body
	l.mu.Unlock()
	_ = l.st.CloseRequest()
	if body != nil {
		_ = body.Close()
	}
}

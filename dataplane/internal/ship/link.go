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

// link carries the messages of one stream. Send and Receive each belong to one
// goroutine; Abort ends both, from any; it must be called in the end.
type link[Q, A any] interface {
	Send(*Q) error
	Receive() (*A, error)
	Abort()
	Transport() string
}

type (
	ledgerLink = link[usagev1.UploadRequest, usagev1.UploadResponse]
	detailLink = link[usagev1.UploadDetailRequest, usagev1.UploadDetailResponse]
)

// line is a way to one control node: the ledger's stream, with which it ends,
// and how to open detail's beside it.
type line struct {
	ledgerLink
	openDetail func(context.Context) (detailLink, error)
}

func (s *Shipper) dialQUIC(ctx context.Context, addr string) (*line, error) {
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
	l := &line{ledgerLink: &quicLink[usagev1.UploadRequest, usagev1.UploadResponse, *usagev1.UploadRequest, *usagev1.UploadResponse]{
		st: st, in: bufio.NewReader(st), abort: func() { c.CloseWithError(0, "") }}}
	l.openDetail = func(ctx context.Context) (detailLink, error) {
		st, err := c.OpenStreamSync(ctx)
		if err != nil {
			return nil, fmt.Errorf("open detail stream: %w", err)
		}
		return &quicLink[usagev1.UploadDetailRequest, usagev1.UploadDetailResponse, *usagev1.UploadDetailRequest, *usagev1.UploadDetailResponse]{
			st: st, in: bufio.NewReader(st), yield: func() { s.gate.wait(ctx) }, abort: func() {
				st.CancelRead(0)
				st.CancelWrite(0)
			}}, nil
	}
	return l, nil
}

// message is the pointer to a generated type.
type message[T any] interface {
	*T
	proto.Message
}

// quicLink frames messages on a stream: uvarint length, message.
type quicLink[Q, A any, PQ message[Q], PA message[A]] struct {
	st    *quic.Stream
	in    *bufio.Reader
	out   []byte
	yield func() // before each chunk; nil: messages go at once
	abort func()
}

func (l *quicLink[Q, A, PQ, PA]) Transport() string { return "quic" }

func (l *quicLink[Q, A, PQ, PA]) Send(m *Q) (err error) {
	l.out = binary.AppendUvarint(l.out[:0], uint64(proto.Size(PQ(m))))
	if l.out, err = (proto.MarshalOptions{}).MarshalAppend(l.out, PQ(m)); err != nil {
		return err
	}
	for rest := l.out; len(rest) > 0 && err == nil; {
		n := len(rest)
		if l.yield != nil {
			l.yield()
			n = min(n, detailChunk)
		}
		_, err = l.st.Write(rest[:n])
		rest = rest[n:]
	}
	return err
}

func (l *quicLink[Q, A, PQ, PA]) Receive() (*A, error) {
	n, err := binary.ReadUvarint(l.in)
	if err != nil {
		return nil, err
	}
	if n > maxAnswer {
		return nil, fmt.Errorf("the control node's answer holds %d bytes, at most %d are allowed", n, maxAnswer)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(l.in, b); err != nil {
		return nil, err
	}
	m := new(A)
	if err := proto.Unmarshal(b, PA(m)); err != nil {
		return nil, fmt.Errorf("decode the control node's answer: %w", err)
	}
	return m, nil
}

func (l *quicLink[Q, A, PQ, PA]) Abort() { l.abort() }

// dialConnect opens the stream; the connection itself is made by the first Send.
func (s *Shipper) dialConnect(ctx context.Context, addr string) (*line, error) {
	ledger, err := openConnect(ctx, s.cfg.HTTPClient, addr, func(ctx context.Context, c usagev1connect.IngestServiceClient) (connectStream[usagev1.UploadRequest, usagev1.UploadResponse], error) {
		return c.Upload(ctx)
	})
	if err != nil {
		return nil, err
	}
	return &line{ledgerLink: ledger, openDetail: func(ctx context.Context) (detailLink, error) {
		l, err := openConnect(ctx, s.cfg.HTTPClient, addr, func(ctx context.Context, c usagev1connect.IngestServiceClient) (connectStream[usagev1.UploadDetailRequest, usagev1.UploadDetailResponse], error) {
			return c.UploadDetail(ctx)
		})
		if err != nil {
			return nil, err
		}
		l.yield = func() { s.gate.wait(ctx) }
		return l, nil
	}}, nil
}

// connectStream is a *connect.BidiStreamForClientSimple.
type connectStream[Q, A any] interface {
	Send(*Q) error
	Receive() (*A, error)
	CloseRequest() error
}

func openConnect[Q, A any](ctx context.Context, client *http.Client, addr string, open func(context.Context, usagev1connect.IngestServiceClient) (connectStream[Q, A], error)) (*connectLink[Q, A], error) {
	ctx, cancel := context.WithCancel(ctx)
	l := &connectLink[Q, A]{body: &responseBody{client: client}, cancel: cancel}
	st, err := open(ctx, usagev1connect.NewIngestServiceClient(l.body, "https://"+addr, connect.WithReadMaxBytes(maxAnswer)))
	if err != nil {
		cancel()
		return nil, fmt.Errorf("open usage upload: %w", err)
	}
	l.st = st
	return l, nil
}

type connectLink[Q, A any] struct {
	body   *responseBody
	cancel context.CancelFunc
	st     connectStream[Q, A]
	yield  func() // before each message; nil: they go at once. HTTP/2 divides the connection itself.
}

func (l *connectLink[Q, A]) Transport() string { return "connect" }

func (l *connectLink[Q, A]) Send(m *Q) error {
	if l.yield != nil {
		l.yield()
	}
	err := l.st.Send(m)
	if errors.Is(err, io.EOF) { // the stream is over; why, Receive says
		return errors.New("the control node ended the upload")
	}
	return err
}

func (l *connectLink[Q, A]) Receive() (*A, error) { return l.st.Receive() }

func (l *connectLink[Q, A]) Abort() {
	l.cancel()
	body := l.body.abort()
	_ = l.st.CloseRequest()
	if body != nil {
		_ = body.Close()
	}
}

// responseBody keeps hold of the response's body, because net/http's HTTP/2
// client does not look at a request's context while it waits for more of the
// request's body, nor for room to send it: only closing what it waits on ends
// the stream. (Go 1.26.)
type responseBody struct {
	client *http.Client

	mu      sync.Mutex // covers what follows
	body    io.Closer
	aborted bool
}

// Do is connect.HTTPClient.
func (b *responseBody) Do(r *http.Request) (*http.Response, error) {
	resp, err := b.client.Do(r)
	if err != nil {
		return resp, err
	}
	b.mu.Lock()
	b.body = resp.Body
	aborted := b.aborted
	b.mu.Unlock()
	if aborted {
		resp.Body.Close()
	}
	return resp, nil
}

func (b *responseBody) abort() io.Closer {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.aborted = true
	return b.body
}

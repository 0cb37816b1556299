package ingest_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/quic-go/quic-go"
	"google.golang.org/protobuf/proto"

	"bailiwick/controlplane/internal/ingest"
	usagev1 "bailiwick/proto/gen/bailiwick/usage/v1"
	"bailiwick/proto/gen/bailiwick/usage/v1/usagev1connect"
	"bailiwick/shared/fault"
	"bailiwick/shared/usage"
)

// line is an edge's side of a session on some transport.
type line interface {
	send(t *testing.T, m *usagev1.UploadRequest)
	receive() (*usagev1.UploadResponse, error)
	finish() // ends the edge's side in order
	drop()   // goes away without a word
}

// transport opens lines to a world.
type transport struct {
	name  string
	world func(*testing.T) *world
	dial  func(*testing.T, *world, string) line // by certificate name "edge/region"
}

var transports = []transport{
	{"quic", quicWorld, dialQUIC},
	{"connect", connectWorld, dialConnect},
}

func quicWorld(t *testing.T) *world {
	return newWorld(t, func(c *ingest.Config) {
		pc, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		c.Conn = pc
	})
}

type quicLine struct {
	conn *quic.Conn
	st   *quic.Stream
	in   *bufio.Reader
}

func openQUIC(t *testing.T, w *world, cert tls.Certificate, alpn string) (*quic.Conn, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	c, err := quic.DialAddr(ctx, w.addr, &tls.Config{MinVersion: tls.VersionTLS13, ServerName: "control", RootCAs: w.ca.pool,
		Certificates: []tls.Certificate{cert}, NextProtos: []string{alpn}}, nil)
	if err == nil {
		t.Cleanup(func() { c.CloseWithError(0, "") })
	}
	return c, err
}

func dialQUIC(t *testing.T, w *world, name string) line {
	t.Helper()
	c, err := openQUIC(t, w, w.ca.issue(t, name), ingest.ALPN)
	if err != nil {
		t.Fatalf("dial as %s: %v", name, err)
	}
	st, err := c.OpenStreamSync(t.Context())
	if err != nil {
		t.Fatalf("open stream as %s: %v", name, err)
	}
	st.SetReadDeadline(time.Now().Add(10 * time.Second))
	return &quicLine{c, st, bufio.NewReader(st)}
}

func frame(m proto.Message) []byte {
	b, err := proto.Marshal(m)
	if err != nil {
		panic(err)
	}
	return append(binary.AppendUvarint(nil, uint64(len(b))), b...)
}

func (l *quicLine) send(t *testing.T, m *usagev1.UploadRequest) {
	t.Helper()
	if _, err := l.st.Write(frame(m)); err != nil {
		t.Fatalf("send: %v", err)
	}
}

func (l *quicLine) receive() (*usagev1.UploadResponse, error) {
	n, err := binary.ReadUvarint(l.in)
	if err != nil {
		return nil, err
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(l.in, b); err != nil {
		return nil, err
	}
	m := new(usagev1.UploadResponse)
	return m, proto.Unmarshal(b, m)
}

func (l *quicLine) finish() { l.st.Close() }
func (l *quicLine) drop()   { l.conn.CloseWithError(0, "") }

func connectWorld(t *testing.T) *world {
	return newWorld(t, func(c *ingest.Config) {
		c.PeerFromContext = func(ctx context.Context) (string, string, error) {
			cs, ok := ctx.Value(peerKey{}).(*tls.ConnectionState)
			if !ok {
				return "", "", fault.New(fault.Unauthenticated, "NO_CERTIFICATE", "no certificate")
			}
			return peer(*cs)
		}
	})
}

type peerKey struct{}

type connectLine struct {
	st     *connect.BidiStreamForClientSimple[usagev1.UploadRequest, usagev1.UploadResponse]
	cancel context.CancelFunc
}

func connectURL(t *testing.T, w *world) (url string, client func(tls.Certificate) *http.Client) {
	path, h := w.server.Handler()
	mux := http.NewServeMux()
	mux.Handle(path, h)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		mux.ServeHTTP(rw, r.WithContext(context.WithValue(r.Context(), peerKey{}, r.TLS)))
	}))
	srv.EnableHTTP2 = true
	srv.Config.HTTP2 = &http.HTTP2Config{MaxReceiveBufferPerConnection: 8 << 20, MaxReceiveBufferPerStream: 1 << 20} // as the peer port has them
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{w.ca.issue(t, "control")}, ClientCAs: w.ca.pool, ClientAuth: tls.RequireAndVerifyClientCert}
	srv.StartTLS()
	t.Cleanup(srv.Close)
	return srv.URL, func(cert tls.Certificate) *http.Client {
		tr := &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{ServerName: "control", RootCAs: w.ca.pool, Certificates: []tls.Certificate{cert}}}
		t.Cleanup(tr.CloseIdleConnections)
		return &http.Client{Transport: tr}
	}
}

func dialConnect(t *testing.T, w *world, name string) line {
	t.Helper()
	url, client := connectURL(t, w)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	st, err := usagev1connect.NewIngestServiceClient(client(w.ca.issue(t, name)), url).Upload(ctx)
	if err != nil {
		t.Fatalf("upload as %s: %v", name, err)
	}
	l := &connectLine{st, cancel}
	t.Cleanup(l.drop)
	return l
}

func (l *connectLine) send(t *testing.T, m *usagev1.UploadRequest) {
	t.Helper()
	if err := l.st.Send(m); err != nil {
		t.Fatalf("send: %v", err)
	}
}
func (l *connectLine) receive() (*usagev1.UploadResponse, error) { return l.st.Receive() }
func (l *connectLine) finish()                                   { l.st.CloseRequest() }

// drop closes both sides too: net/http's client does not notice a context that
// ends while it waits for more of the request's body.
func (l *connectLine) drop() {
	l.cancel()
	l.st.CloseResponse()
	l.st.CloseRequest()
}

func hello(epoch, oldest, sealed uint64, head []byte) *usagev1.UploadRequest {
	return &usagev1.UploadRequest{Message: &usagev1.UploadRequest_Hello{Hello: &usagev1.Hello{Epoch: epoch, OldestSeq: oldest, SealedSeq: sealed, Head: head}}}
}

func carry(b usage.Block) *usagev1.UploadRequest {
	return &usagev1.UploadRequest{Message: &usagev1.UploadRequest_Block{Block: &usagev1.Block{Epoch: b.Epoch, Seq: b.Seq, Prev: b.Prev[:], Payload: b.Payload, Hash: b.Hash[:]}}}
}

func through(epoch, seq uint64, ms int64) *usagev1.UploadRequest {
	return &usagev1.UploadRequest{Message: &usagev1.UploadRequest_SealedThrough{SealedThrough: &usagev1.SealedThrough{Epoch: epoch, Seq: seq, UnixMs: ms}}}
}

func wantMark(t *testing.T, l line, epoch, applied uint64) *usagev1.Watermark {
	t.Helper()
	for {
		m, err := l.receive()
		if err != nil {
			t.Fatalf("receive: %v, want watermark %d/%d", err, epoch, applied)
		}
		w := m.GetWatermark()
		if w == nil {
			t.Fatalf("got refusal %v, want watermark %d/%d", m.GetRefusal(), epoch, applied)
		}
		if w.Epoch == epoch && w.AppliedSeq < applied {
			continue // blocks may be acknowledged one by one or together
		}
		if w.Epoch != epoch || w.AppliedSeq != applied {
			t.Fatalf("watermark: got %d/%d, want %d/%d", w.Epoch, w.AppliedSeq, epoch, applied)
		}
		return w
	}
}

func wantRefusal(t *testing.T, l line, reason string, epoch, seq uint64) *usagev1.Refusal {
	t.Helper()
	m, err := l.receive()
	if err != nil {
		t.Fatalf("receive: %v, want refusal %s", err, describe(reason, epoch, seq))
	}
	r := m.GetRefusal()
	if r == nil {
		t.Fatalf("got watermark %v, want refusal %s", m.GetWatermark(), describe(reason, epoch, seq))
	}
	if r.Reason != reason || r.Epoch != epoch || r.Seq != seq || r.Detail == "" {
		t.Fatalf("refusal: got %s (%q), want %s with a detail", describe(r.Reason, r.Epoch, r.Seq), r.Detail, describe(reason, epoch, seq))
	}
	return r
}

// wantFirstWord opens the stream, whose end may already be on its way.
func wantFirstWord(t *testing.T, l line) {
	t.Helper()
	switch l := l.(type) {
	case *quicLine:
		l.st.Write(frame(hello(1, 1, 0, nil)))
	case *connectLine:
		l.st.Send(hello(1, 1, 0, nil))
	}
}

func wantEnd(t *testing.T, l line) error {
	t.Helper()
	for range 100 {
		if _, err := l.receive(); err != nil {
			return err
		}
	}
	t.Fatal("the session goes on, want its end")
	return nil
}

func onBoth(t *testing.T, f func(*testing.T, transport, *world)) {
	for _, tr := range transports {
		t.Run(tr.name, func(t *testing.T) { f(t, tr, tr.world(t)) })
	}
}

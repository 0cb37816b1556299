package ship_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/quic-go/quic-go"
	"google.golang.org/protobuf/proto"

	"bailiwick/dataplane/internal/ship"
	usagev1 "bailiwick/proto/gen/bailiwick/usage/v1"
	"bailiwick/proto/gen/bailiwick/usage/v1/usagev1connect"
	"bailiwick/shared/lifecycle/porttest"
	"bailiwick/shared/usage"
)

type pki struct{ server, client *tls.Config }

func (p *pki) quic() *tls.Config { return p.client }

func newPKI(t testing.TB) *pki {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	cert := tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	return &pki{
		server: &tls.Config{Certificates: []tls.Certificate{cert}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS13},
		client: &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: pool, MinVersion: tls.VersionTLS13},
	}
}

// ledger is the zone's, with the rule that makes usage count once.
type ledger struct {
	disputed uint64 // the block of which an edge said that it has another one, under mu
	mu       sync.Mutex
	applied  map[uint64]uint64
	heads    map[uint64][32]byte
	customer map[string]int64
	applies  []uint64
	sealed   map[uint64]time.Time

	cutAfterApply int    // so many times
	dropSeq       uint64 // once
	refuseSeq     uint64
	refuseReason  string
	foreign       string
}

func newLedger() *ledger {
	return &ledger{applied: map[uint64]uint64{}, heads: map[uint64][32]byte{}, customer: map[string]int64{}, sealed: map[uint64]time.Time{}}
}

func (l *ledger) set(f func()) { l.mu.Lock(); defer l.mu.Unlock(); f() }

func (l *ledger) rows(customer string) (n int64) {
	l.set(func() { n = l.customer[customer] })
	return n
}

func (l *ledger) order() (o []uint64) {
	l.set(func() { o = append(o, l.applies...) })
	return o
}

func (l *ledger) through(epoch uint64) (at time.Time) {
	l.set(func() { at = l.sealed[epoch] })
	return at
}

func (l *ledger) preload(epoch, seq uint64, head [32]byte) {
	l.set(func() { l.applied[epoch], l.heads[epoch] = seq, head })
}

func (l *ledger) watermark(epoch uint64) *usagev1.UploadResponse {
	h := l.heads[epoch]
	return &usagev1.UploadResponse{Message: &usagev1.UploadResponse_Watermark{Watermark: &usagev1.Watermark{Epoch: epoch, AppliedSeq: l.applied[epoch], Head: h[:]}}}
}

func (l *ledger) refusal(epoch, seq uint64, reason string) *usagev1.UploadResponse {
	return &usagev1.UploadResponse{Message: &usagev1.UploadResponse_Refusal{Refusal: &usagev1.Refusal{Epoch: epoch, Seq: seq, Reason: reason, ExpectedSeq: l.applied[epoch] + 1}}}
}

var errCut = errors.New("cut")

// take answers one message; nil, nil is no answer.
func (l *ledger) take(m *usagev1.UploadRequest) (*usagev1.UploadResponse, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if h := m.GetHello(); h != nil {
		if n := l.applied[h.Epoch]; h.SealedSeq == n && n > 0 && len(h.Head) == 32 && [32]byte(h.Head) != l.heads[h.Epoch] {
			l.disputed = n
		}
		return l.watermark(h.Epoch), nil
	}
	if s := m.GetSealedThrough(); s != nil {
		if s.Seq <= l.applied[s.Epoch] {
			l.sealed[s.Epoch] = time.UnixMilli(s.UnixMs)
		}
		return nil, nil
	}
	b := m.GetBlock()
	cells, err := usage.DecodePayload(b.Payload)
	if err != nil || usage.HashBlock(edge, b.Epoch, b.Seq, [32]byte(b.Prev), b.Payload) != [32]byte(b.Hash) {
		return l.refusal(b.Epoch, b.Seq, ship.ReasonWrongChain), nil
	}
	for c := range cells {
		if l.foreign != "" && c.Customer == l.foreign {
			return l.refusal(b.Epoch, b.Seq, ship.ReasonForeign), nil
		}
	}
	switch {
	case b.Seq <= l.applied[b.Epoch]:
		return l.watermark(b.Epoch), nil
	case l.refuseSeq != 0 && b.Seq >= l.refuseSeq:
		return l.refusal(b.Epoch, b.Seq, l.refuseReason), nil
	case l.dropSeq != 0 && b.Seq == l.dropSeq:
		l.dropSeq = 0
		return nil, nil
	case b.Seq != l.applied[b.Epoch]+1:
		return l.refusal(b.Epoch, b.Seq, ship.ReasonGap), nil
	case [32]byte(b.Prev) != l.heads[b.Epoch]:
		return l.refusal(b.Epoch, b.Seq, ship.ReasonWrongChain), nil
	}
	for c, s := range cells {
		l.customer[c.Customer] += s.Requests
	}
	l.applied[b.Epoch], l.heads[b.Epoch] = b.Seq, [32]byte(b.Hash)
	l.applies = append(l.applies, b.Epoch)
	if l.cutAfterApply > 0 {
		l.cutAfterApply--
		return nil, errCut
	}
	return l.watermark(b.Epoch), nil
}

// node is a control node's peer port: TCP and UDP of the same number.
type node struct {
	usagev1connect.UnimplementedIngestServiceHandler
	addr string
	p    *pki
	led  *ledger

	store *store // of detail; nil: this node does not know such streams

	mute, refusing, withdrawn atomic.Bool
	sessions                  atomic.Int64

	mu    sync.Mutex
	conns map[*quic.Conn]bool
	lis   *quic.Listener
	wg    sync.WaitGroup
}

func newNode(t testing.TB, p *pki, led *ledger, udp, tcp bool) *node {
	t.Helper()
	n := &node{p: p, led: led, conns: map[*quic.Conn]bool{}}
	t.Cleanup(n.wg.Wait)                            // runs last
	lis, err := net.Listen("tcp", porttest.Addr(t)) // the same for UDP
	if err != nil {
		t.Fatal(err)
	}
	n.addr = lis.Addr().String()
	if !tcp {
		lis.Close()
	} else {
		mux := http.NewServeMux()
		mux.Handle(usagev1connect.NewIngestServiceHandler(n))
		srv := &http.Server{Handler: mux, TLSConfig: p.server.Clone()}
		n.wg.Go(func() { srv.ServeTLS(lis, "", "") })
		t.Cleanup(func() { srv.Close() })
	}
	if udp {
		n.serveQUIC(t)
	}
	return n
}

func (n *node) serveQUIC(t testing.TB) {
	t.Helper()
	udp, err := net.ListenPacket("udp", n.addr)
	if err != nil {
		t.Fatal(err)
	}
	n.serveQUICOn(t, udp)
}

func (n *node) serveQUICOn(t testing.TB, udp net.PacketConn) {
	t.Helper()
	conf := n.p.server.Clone()
	conf.NextProtos = []string{ship.ALPN}
	lis, err := quic.Listen(udp, conf, &quic.Config{InitialStreamReceiveWindow: 32 << 10, MaxStreamReceiveWindow: 32 << 10}) // small, so that a stream that is not read stands still at once
	if err != nil {
		t.Fatal(err)
	}
	n.lis = lis
	n.wg.Go(func() {
		for {
			c, err := lis.Accept(context.Background())
			if err != nil {
				return
			}
			n.mu.Lock()
			n.conns[c] = true
			n.mu.Unlock()
			n.wg.Go(func() {
				st, err := c.AcceptStream(context.Background())
				if err != nil {
					return
				}
				if n.store != nil {
					n.wg.Go(func() {
						for {
							st, err := c.AcceptStream(context.Background())
							if err != nil {
								return
							}
							in := bufio.NewReader(st)
							n.wg.Go(func() {
								err := n.store.serve(func() (*usagev1.UploadDetailRequest, error) {
									m := new(usagev1.UploadDetailRequest)
									return m, read(in, m)
								}, func(m *usagev1.UploadDetailResponse) error { return write(st, m) }, c.Context())
								_ = err
								st.Close()
								st.CancelRead(1)
							})
						}
					})
				}
				in := bufio.NewReader(st)
				err = n.serve(func() (*usagev1.UploadRequest, error) {
					m := new(usagev1.UploadRequest)
					return m, read(in, m)
				}, func(m *usagev1.UploadResponse) error { return write(st, m) })
				if errors.Is(err, errWithdrawn) {
					time.Sleep(20 * time.Millisecond) // closing would overtake the answer
				}
				c.CloseWithError(3, "")
			})
		}
	})
	t.Cleanup(func() { n.cut(); lis.Close(); udp.Close() })
}

func read(in *bufio.Reader, m proto.Message) error {
	size, err := binary.ReadUvarint(in)
	if err != nil {
		return err
	}
	b := make([]byte, size)
	if _, err := io.ReadFull(in, b); err != nil {
		return err
	}
	return proto.Unmarshal(b, m)
}

func write(w io.Writer, m proto.Message) error {
	b, _ := proto.Marshal(m)
	_, err := w.Write(append(binary.AppendUvarint(nil, uint64(len(b))), b...))
	return err
}

func (n *node) cut() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for c := range n.conns {
		c.CloseWithError(3, "cut")
	}
	clear(n.conns)
}

var errWithdrawn = errors.New("withdrawn")

func (n *node) serve(receive func() (*usagev1.UploadRequest, error), send func(*usagev1.UploadResponse) error) error {
	n.sessions.Add(1)
	for {
		m, err := receive()
		if err != nil {
			return err
		}
		switch {
		case n.refusing.Load():
			return errCut
		case n.mute.Load():
			continue
		case n.withdrawn.Load():
			return errors.Join(errWithdrawn, send(&usagev1.UploadResponse{Message: &usagev1.UploadResponse_Refusal{Refusal: &usagev1.Refusal{Reason: ship.ReasonWithdrawn}}}))
		}
		answer, err := n.led.take(m)
		if err != nil {
			return err
		}
		if answer != nil {
			if err := send(answer); err != nil {
				return err
			}
		}
	}
}

// Upload is the Connect door.
func (n *node) Upload(_ context.Context, st *connect.BidiStream[usagev1.UploadRequest, usagev1.UploadResponse]) error {
	return n.serve(st.Receive, st.Send)
}

// UploadDetail is the Connect door.
func (n *node) UploadDetail(ctx context.Context, st *connect.BidiStream[usagev1.UploadDetailRequest, usagev1.UploadDetailResponse]) error {
	return n.store.serve(st.Receive, st.Send, ctx)
}

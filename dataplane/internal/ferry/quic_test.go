package ferry_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/qlog"
	"github.com/quic-go/quic-go/qlogwriter"
	"golang.org/x/net/ipv4"

	"bailiwick/dataplane/internal/ferry"
)

func TestMain(m *testing.M) {
	os.Setenv("QUIC_GO_DISABLE_RECEIVE_BUFFER_WARNING", "true")
	os.Exit(m.Run())
}

// ids are a Conn's connection IDs as quic-go asks for them.
type ids struct{ c *ferry.Conn }

func (i ids) ConnectionIDLen() int { return ferry.IDLen }

func (i ids) GenerateConnectionID() (quic.ConnectionID, error) {
	id := i.c.ID()
	return quic.ConnectionIDFromBytes(id[:]), nil
}

var key = quic.StatelessResetKey{1}

var certificate = sync.OnceValue(func() tls.Certificate {
	s := httptest.NewUnstartedServer(nil)
	s.StartTLS()
	defer s.Close()
	return s.TLS.Certificates[0]
})

// side is a process that speaks QUIC over a Conn. Of each stream it reads a letter: n: answers its name; d: size bytes; u: reads to
// the end, and answers their sum; s: waits until it is let go, and answers its name.
type side struct {
	*ferry.Conn
	name    string
	other   atomic.Uint32 // the mark of the other side
	wrong   atomic.Int64  // packets with it
	several atomic.Int64  // writes of several packets at once
	bare    atomic.Int64  // packets of which the system said nothing
	tr      *quic.Transport
	l       *quic.Listener
	strange atomic.Int64 // packets that were of no connection
	conns   atomic.Int64
	letGo   chan struct{}
}

const size = 20 << 20

var content = sync.OnceValue(func() []byte {
	b := make([]byte, size)
	for i := range b {
		b[i] = byte(i * 7 >> 3)
	}
	return b
})

// ReadBatch looks at what QUIC gets.
func (s *side) ReadBatch(ms []ipv4.Message, flags int) (int, error) {
	n, err := s.Conn.ReadBatch(ms, flags)
	for _, m := range ms[:n] {
		if mark, _, ok := ferry.MarkOf(m.Buffers[0][:m.N]); ok && mark == ferry.Mark(s.other.Load()) {
			s.wrong.Add(1)
		}
		if m.NN == 0 {
			s.bare.Add(1)
		}
	}
	return n, err
}

func (s *side) WriteMsgUDP(b, oob []byte, to *net.UDPAddr) (n, oobn int, err error) {
	if len(b) > 1500 {
		s.several.Add(1)
	}
	return s.Conn.WriteMsgUDP(b, oob, to)
}

// RecordEvent makes a side its own recorder.
func (s recorder) RecordEvent(e qlogwriter.Event) {
	if d, ok := e.(qlog.PacketDropped); ok && d.Trigger == qlog.PacketDropUnknownConnectionID {
		s.strange.Add(1)
	}
}

type recorder struct{ *side }

func (recorder) Close() error { return nil }

// serve has a side begin; resets: it answers what is of none of its connections, and so counts only what it could not answer.
func serve(t testing.TB, name string, conn *ferry.Conn, resets bool, change func(*quic.Transport)) *side {
	t.Helper()
	s := &side{Conn: conn, name: name, letGo: make(chan struct{})}
	s.tr = &quic.Transport{Conn: s, Tracer: recorder{s}, ConnectionIDGenerator: ids{conn}}
	if resets {
		s.tr.StatelessResetKey = &key
	}
	if change != nil {
		change(s.tr)
	}
	var err error
	s.l, err = s.tr.Listen(&tls.Config{Certificates: []tls.Certificate{certificate()}, NextProtos: []string{"x"}},
		&quic.Config{InitialStreamReceiveWindow: 4 << 20, MaxIdleTimeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			q, err := s.l.Accept(context.Background())
			if err != nil {
				return
			}
			s.conns.Add(1)
			wg.Go(func() {
				for {
					st, err := q.AcceptStream(context.Background())
					if err != nil {
						return
					}
					wg.Go(func() { s.answer(st) })
				}
			})
		}
	})
	t.Cleanup(func() { s.end(); wg.Wait() })
	return s
}

func (s *side) end() {
	s.l.Close()
	s.tr.Close()
	s.Close()
}

func (s *side) answer(st *quic.Stream) {
	defer st.Close()
	var what [1]byte
	if _, err := io.ReadFull(st, what[:]); err != nil {
		return
	}
	switch what[0] {
	case 's':
		<-s.letGo
		fallthrough
	case 'n':
		io.WriteString(st, s.name)
	case 'd':
		st.Write(content())
	case 'u':
		h := sha256.New()
		io.Copy(h, st)
		st.Write(h.Sum(nil))
	case 'e':
		io.Copy(st, st)
	}
}

// dial opens a connection from a socket of its own.
func dial(t testing.TB, to net.Addr) (*quic.Conn, *quic.Transport) {
	t.Helper()
	u, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	tr := &quic.Transport{Conn: u}
	t.Cleanup(func() { tr.Close(); u.Close() })
	q, err := over(t, tr, to)
	if err != nil {
		t.Fatal(err)
	}
	return q, tr
}

func over(t testing.TB, tr *quic.Transport, to net.Addr) (*quic.Conn, error) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	return tr.Dial(ctx, to, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"x"}}, &quic.Config{MaxIdleTimeout: time.Minute, HandshakeIdleTimeout: 20 * time.Second})
}

// ask opens a stream and sends its letter.
func ask(q *quic.Conn, what byte) (*quic.Stream, error) {
	st, err := q.OpenStreamSync(q.Context())
	if err == nil {
		st.SetDeadline(time.Now().Add(time.Minute))
		_, err = st.Write([]byte{what})
	}
	return st, err
}

// say asks and reads the whole answer.
func say(q *quic.Conn, what byte) (string, error) {
	st, err := ask(q, what)
	if err != nil {
		return "", err
	}
	st.Close()
	b, err := io.ReadAll(st)
	return string(b), err
}

func is(t testing.TB, q *quic.Conn, want string) {
	t.Helper()
	if got, err := say(q, 'n'); got != want || err != nil {
		t.Fatalf("got %q, %v, want %q", got, err, want)
	}
}

// takeover has after serve instead of before, which goes on with its connections.
func takeover(t testing.TB, before *side, after *ferry.Conn, resets bool) *side {
	t.Helper()
	old := before.Conn
	if err := old.Detach(); err != nil {
		t.Fatal(err)
	}
	after.Divert(old.Mark(), func(frame []byte) {
		if err := old.Deliver(frame); err != nil {
			t.Error(err)
		}
	})
	s := serve(t, "after", after, resets, nil)
	s.other.Store(uint32(old.Mark()))
	before.other.Store(uint32(after.Mark()))
	return s
}

// What is under way at a process goes on when another serves all that is new on the same socket, both ways and slow answers, and
// neither sees a packet of the other's.
func TestQUIC_GoesOnWhileAnotherServes(t *testing.T) {
	one, two := two(t, "127.0.0.1:0")
	before := serve(t, "before", one, false, nil)
	q, _ := dial(t, one.LocalAddr())
	down, err := ask(q, 'd')
	if err != nil {
		t.Fatal(err)
	}
	down.Close()
	up, err := ask(q, 'u')
	if err != nil {
		t.Fatal(err)
	}
	slow, err := ask(q, 's')
	if err != nil {
		t.Fatal(err)
	}
	slow.Close()
	part := make([]byte, size/4)
	if _, err := io.ReadFull(down, part); err != nil {
		t.Fatal(err)
	}
	if _, err := up.Write(content()[:size/4]); err != nil {
		t.Fatal(err)
	}
	segments := before.several.Swap(0) > 0
	after := takeover(t, before, two, false)
	var busy sync.WaitGroup
	stop := make(chan struct{})
	for range 2 { // others ask meanwhile
		busy.Go(func() {
			for {
				n, _ := dial(t, two.LocalAddr())
				if got, err := say(n, 'n'); got != "after" || err != nil {
					t.Errorf("a new connection: %q, %v", got, err)
				}
				n.CloseWithError(0, "")
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	busy.Go(func() {
		defer close(stop)
		rest, err := io.ReadAll(down)
		if err != nil || !bytes.Equal(append(part, rest...), content()) {
			t.Errorf("a download: %d bytes more, %v", len(rest), err)
		}
	})
	if _, err := up.Write(content()[size/4:]); err != nil {
		t.Fatal(err)
	}
	up.Close()
	sum := sha256.Sum256(content())
	if got, err := io.ReadAll(up); err != nil || !bytes.Equal(got, sum[:]) {
		t.Errorf("an upload: %x, %v", got, err)
	}
	busy.Wait()
	is(t, q, "before")
	close(before.letGo)
	if got, err := io.ReadAll(slow); string(got) != "before" || err != nil {
		t.Errorf("a slow answer: %q, %v", got, err)
	}
	if a, b := before.wrong.Load(), after.wrong.Load(); a+b > 0 {
		t.Errorf("%d and %d packets were the other's", a, b)
	}
	if n := before.strange.Load(); n > 0 {
		t.Errorf("%d packets are of no connection", n)
	}
	if segments != (before.several.Load() > 0) {
		t.Errorf("it writes several packets at once: %v, and then %v", segments, !segments)
	}
	if a, b := before.bare.Load(), after.bare.Load(); a+b > 0 { // QUIC asks for ECN
		t.Errorf("of %d and %d packets the system has said nothing", a, b)
	}
	if before.conns.Load() != 1 || after.conns.Load() == 0 {
		t.Errorf("%d and %d connections", before.conns.Load(), after.conns.Load())
	}
	one.Close() // nothing is delivered any more
	before.tr.Close()
	after.end()
	c := one.Counts()
	t.Logf("%d packets were handed on, %d of them lost; %d connections meanwhile", two.Counts().Diverted, c.Dropped, after.conns.Load())
	if c.Delivered == 0 || c.Delivered != two.Counts().Diverted {
		t.Errorf("%+v and %+v", c, two.Counts())
	}
}

// While connections of the one before live no reset is sent for them; once it is gone each packet is answered with one, by which a
// client knows at once.
func TestQUIC_ResetOnceItIsGone(t *testing.T) {
	one, two := two(t, "127.0.0.1:0")
	before := serve(t, "before", one, true, nil)
	q, _ := dial(t, one.LocalAddr())
	is(t, q, "before")
	takeover(t, before, two, true)
	for range 100 {
		is(t, q, "before")
	}
	n, _ := dial(t, two.LocalAddr())
	is(t, n, "after")
	one.Close() // the process ends, and says nothing
	two.Divert(one.Mark(), nil)
	began := time.Now()
	st, err := q.OpenStreamSync(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	st.Write(bytes.Repeat([]byte("n"), 100)) // what is no longer than a reset is not answered with one
	_, err = io.ReadAll(st)
	var reset *quic.StatelessResetError
	if !errors.As(err, &reset) || time.Since(began) > 5*time.Second {
		t.Errorf("got %v after %v, want a stateless reset", err, time.Since(began))
	}
	is(t, n, "after")
}

// forwarder is a NAT: clients speak to it, and the far side sees another port. It may change that port, and look at what passes.
type forwarder struct {
	near   *net.UDPConn
	client atomic.Pointer[net.UDPAddr]
	far    atomic.Pointer[net.UDPConn]
	hold   atomic.Pointer[func(packet []byte) bool] // true: it has it
	to     *net.UDPAddr
	wg     sync.WaitGroup
}

func newForwarder(t testing.TB, to net.Addr) *forwarder {
	t.Helper()
	near, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	f := &forwarder{near: near, to: to.(*net.UDPAddr)}
	f.rebind(t)
	f.wg.Go(func() {
		b := make([]byte, 2048)
		for {
			n, from, err := near.ReadFromUDP(b)
			if err != nil {
				return
			}
			f.client.Store(from)
			if hold := f.hold.Load(); hold != nil && (*hold)(bytes.Clone(b[:n])) {
				continue
			}
			f.far.Load().Write(b[:n])
		}
	})
	t.Cleanup(func() { near.Close(); f.far.Load().Close(); f.wg.Wait() })
	return f
}

// rebind has the client come from another port from now on.
func (f *forwarder) rebind(t testing.TB) {
	t.Helper()
	far, err := net.DialUDP("udp", nil, f.to)
	if err != nil {
		t.Fatal(err)
	}
	if old := f.far.Swap(far); old != nil {
		old.Close()
	}
	f.wg.Go(func() {
		b := make([]byte, 2048)
		for {
			n, err := far.Read(b)
			if err != nil {
				return
			}
			if to := f.client.Load(); to != nil {
				f.near.WriteToUDP(b[:n], to)
			}
		}
	})
}

// A client whose port changes, by its own doing or a NAT's, stays with its process.
func TestQUIC_ClientsMove(t *testing.T) {
	one, two := two(t, "127.0.0.1:0")
	before := serve(t, "before", one, true, nil)
	nat := newForwarder(t, one.LocalAddr())
	behind, _ := dial(t, nat.near.LocalAddr())
	is(t, behind, "before")
	moving, _ := dial(t, one.LocalAddr())
	is(t, moving, "before")
	down, err := ask(behind, 'd')
	if err != nil {
		t.Fatal(err)
	}
	down.Close()
	part := make([]byte, size/4)
	if _, err := io.ReadFull(down, part); err != nil {
		t.Fatal(err)
	}
	takeover(t, before, two, true)
	nat.rebind(t)
	is(t, behind, "before")
	rest, err := io.ReadAll(down)
	if err != nil || !bytes.Equal(append(part, rest...), content()) {
		t.Errorf("a download: %d bytes more, %v", len(rest), err)
	}
	u, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	elsewhere := &quic.Transport{Conn: u}
	defer u.Close()
	defer elsewhere.Close()
	path, err := moving.AddPath(elsewhere)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := path.Probe(ctx); err != nil {
		t.Fatal(err)
	}
	if err := path.Switch(); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		is(t, moving, "before")
	}
}

// A handshake that has begun ends where it began, also where the client had to prove its address first.
func TestQUIC_HandshakesUnderWayEnd(t *testing.T) {
	for _, proves := range []bool{false, true} {
		t.Run(fmt.Sprint(proves), func(t *testing.T) {
			one, two := two(t, "127.0.0.1:0")
			before := serve(t, "before", one, true, func(tr *quic.Transport) {
				tr.VerifySourceAddress = func(net.Addr) bool { return proves }
			})
			nat := newForwarder(t, one.LocalAddr())
			var mu sync.Mutex
			var held [][]byte
			has := make(chan struct{}, 100)
			hold := func(packet []byte) bool { // all that is for an ID of the process's
				if mark, _, ok := ferry.MarkOf(packet); !ok || mark != one.Mark() {
					return false
				}
				mu.Lock()
				defer mu.Unlock()
				held = append(held, packet)
				has <- struct{}{}
				return true
			}
			nat.hold.Store(&hold)
			type dialed struct {
				q   *quic.Conn
				err error
			}
			ended := make(chan dialed, 1)
			u, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
			if err != nil {
				t.Fatal(err)
			}
			tr := &quic.Transport{Conn: u}
			t.Cleanup(func() { tr.Close(); u.Close() })
			go func() { q, err := over(t, tr, nat.near.LocalAddr()); ended <- dialed{q, err} }()
			<-has
			after := takeover(t, before, two, true)
			nat.hold.Store(nil)
			mu.Lock()
			for _, p := range held {
				nat.far.Load().Write(p)
			}
			mu.Unlock()
			d := <-ended
			if d.err != nil {
				t.Fatal(d.err)
			}
			is(t, d.q, "before")
			if n := after.conns.Load(); n > 0 {
				t.Errorf("%d connections at the other", n)
			}
		})
	}
}

// An Initial that carries the mark of the process before begins a connection at this process, once the other can have no handshake
// under way. Both have clients prove their addresses here, and so answer an Initial that nobody could read.
func TestQUIC_AnInitialWithItsMark(t *testing.T) {
	one, two := two(t, "127.0.0.1:0")
	proves := func(tr *quic.Transport) { tr.VerifySourceAddress = func(net.Addr) bool { return true } }
	before := serve(t, "before", one, true, proves)
	if err := one.Detach(); err != nil {
		t.Fatal(err)
	}
	two.Divert(one.Mark(), func(frame []byte) { one.Deliver(frame) })
	serve(t, "after", two, true, proves)
	u := client(t, two)
	answers := func(what string, want *ferry.Conn) {
		t.Helper()
		id := one.ID()
		b := append(long(1, 0, id[:])[:6+ferry.IDLen], 0, 0, 0x44, 0xb0) // no source ID, no token, 1,200 bytes
		b = append(b, make([]byte, 1200)...)
		u.SetReadDeadline(time.Now().Add(time.Minute))
		if _, err := u.Write(b); err != nil {
			t.Fatal(err)
		}
		n, err := u.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		if len(b[:n]) < 7+ferry.IDLen || b[0]>>4 != 0xf || b[5] != 0 || b[6] != ferry.IDLen {
			t.Fatalf("%s: no Retry: %x", what, b[:n])
		}
		if mark := ferry.Mark(binary.BigEndian.Uint32(b[7:])); mark != want.Mark() {
			t.Errorf("%s: %x answers, want %x", what, mark, want.Mark())
		}
	}
	answers("while handshakes may be under way", one)
	two.Late()
	answers("later", two)
	before.l.Close()
	answers("when the one before takes none", two)
}

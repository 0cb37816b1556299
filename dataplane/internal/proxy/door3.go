package proxy

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"

	"bailiwick/dataplane/internal/ferry"
	"bailiwick/dataplane/internal/http3"
)

// Door3 takes connections that speak HTTP/3. Serve may be called once.
type Door3 struct {
	Handler http.Handler // of what is not common; set it and what follows before Serve
	TLS     *tls.Config
	QUIC    *quic.Config

	fast     *Proxy // of what is; nil: nothing is
	log      *log.Logger
	works    sync.Pool
	three    *http3.Server
	guests   *guests // all doors'
	quics    *guests // those of them that come over QUIC
	resetKey *quic.StatelessResetKey
	unproven int

	shut context.Context // ends when it takes no more connections
	stop context.CancelFunc
	cut  context.Context // ends when it ends those it has
	end  context.CancelFunc
	wg   sync.WaitGroup

	knocking atomic.Int64 // handshakes under way

	mu      sync.Mutex // covers the rest
	conns   map[*conn3]struct{}
	serves  bool // Serve runs
	refuses bool // it takes none any more, but whose handshake was under way when another process took the socket
}

// conn3 is a client's connection over QUIC.
type conn3 struct {
	door   *Door3
	q      *quic.Conn
	three  *http3.Conn
	sni    string
	client string // address of the client when it came, with which it is counted
	now    atomic.Pointer[place3]
}

// place3 is where a client is. It may move (RFC 9000, 9): once QUIC has seen that it is there, that is what limits, claims and logs
// have of its next requests. Its connection stays counted where it came from.
type place3 struct {
	at             net.Addr
	remote, client string // host:port, and without the port
}

func (c *conn3) from() *place3 {
	at := c.q.RemoteAddr()
	p := c.now.Load()
	if p == nil || p.at != at {
		remote := at.String()
		p = &place3{at, remote, addressOf(remote)}
		c.now.Store(p)
	}
	return p
}

// lateTime is how long handshakes may take that were under way when another process took the socket: QUIC gives each twice
// headTimeout.
const lateTime = 20 * time.Second

// tokenAge is how long QUIC takes a client's word for its address. A token opens nothing but the limit on what
// is sent to an address not proven yet, and names no host; it does not outlive a grant all the same.
const tokenAge = 30 * time.Second

var (
	errNoH3    = errors.New("HTTP/3 is turned off")
	errCrowded = errors.New("there are too many connections")
)

// crowd counts unproven handshakes. The zero crowd is empty; it may be used by all at once.
type crowd struct {
	second, count atomic.Int64
}

// tooMany says whether one more, now, has to prove its address. Counts around the turn of a second may be off by
// those that come in that very moment.
func (c *crowd) tooMany(now time.Duration, most int) bool {
	if s := int64(now / time.Second); c.second.Swap(s) != s {
		c.count.Store(0)
	}
	return c.count.Add(1) > int64(most)
}

// transport is what QUIC is told of limits.
func transport() *quic.Config {
	return &quic.Config{
		Allow0RTT: false, HandshakeIdleTimeout: headTimeout,
		MaxIdleTimeout: http3.IdleTimeout, KeepAlivePeriod: http3.IdleTimeout / 3, // a stream may be silent for long; what asks nothing http3 ends
		MaxIncomingStreams: http3.MaxStreams, MaxIncomingUniStreams: http3.MaxControl, RequireStreamCreditRelease: true,
		InitialStreamReceiveWindow: http3.StreamWindow, MaxStreamReceiveWindow: http3.StreamWindow,
		InitialConnectionReceiveWindow: http3.ConnWindow, MaxConnectionReceiveWindow: http3.ConnWindow,
	}
}

// speaking3 is a policy whose connections agree on HTTP/3 and nothing else.
func speaking3(t *tls.Config) *tls.Config {
	t.DecryptTicket(nil, tls.ConnectionState{}) // copies of one that has no ticket keys yet would draw their own
	t = t.Clone()
	t.NextProtos = []string{"h3"}
	if choose := t.GetConfigForClient; choose != nil {
		t.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			chosen, err := choose(hello)
			if chosen != nil && err == nil {
				chosen = speaking3(chosen)
			}
			return chosen, err
		}
	}
	return t
}

// announce has answers over TCP say where HTTP/3 is; nil: nowhere.
func (p *Proxy) announce(at net.Addr) {
	alt := ""
	if a, ok := at.(*net.UDPAddr); ok {
		alt = fmt.Sprintf(`h3=":%d"; ma=3600`, a.Port)
	}
	p.alt.Store(&alt)
}

// knock is a handshake under way. It is in its connection's context, under the type.
type knock struct {
	counted bool // among clients' connections: its address is proven
	over    sync.Once
}

// ids draws connection IDs that tell whose they are of two processes that share a socket.
type ids struct{ *ferry.Conn }

func (ids) ConnectionIDLen() int { return ferry.IDLen }

func (i ids) GenerateConnectionID() (quic.ConnectionID, error) {
	id := i.ID()
	return quic.ConnectionIDFromBytes(id[:]), nil
}

// Serve takes HTTP/3 from conn until the door is shut. The key of address tokens is drawn anew each time and leaves
// the process in nothing: a token of another edge, of another region's above all, is noise here. Connections
// are taken when their handshake is done, never early. It leaves conn open for those that still drain: close it
// after Shutdown, which ends the rest.
//
// A ferry.Conn may go to another process, which takes new connections from then on: detach it, and then shut the door. What is
// under way goes on, handshakes too; whose they are is served what it asks before it hears that it should go elsewhere.
func (d *Door3) Serve(conn net.PacketConn) error {
	d.mu.Lock()
	d.serves = true
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		d.serves = false
		d.mu.Unlock()
	}()
	var token quic.TokenGeneratorKey
	rand.Read(token[:]) // never fails
	var unproven crowd
	start := time.Now()
	tr := &quic.Transport{Conn: conn, TokenGeneratorKey: &token, MaxTokenAge: tokenAge, StatelessResetKey: d.resetKey, ConnContext: d.knocks,
		VerifySourceAddress: func(net.Addr) bool { return unproven.tooMany(time.Since(start), d.unproven) }}
	shared, _ := conn.(*ferry.Conn)
	if shared != nil {
		tr.ConnectionIDGenerator = ids{shared}
	}
	l, err := tr.Listen(d.TLS, d.QUIC)
	if err != nil {
		return fmt.Errorf("listen for QUIC: %w", err)
	}
	defer l.Close()
	if d.fast != nil {
		d.fast.announce(conn.LocalAddr())
		defer d.fast.announce(nil) // clients of a door that is shut would ask in vain
	}
	for {
		q, err := l.Accept(d.shut)
		if err != nil {
			if d.shut.Err() != nil || errors.Is(err, quic.ErrServerClosed) {
				err = http.ErrServerClosed
			}
			if d.shut.Err() != nil && shared != nil && shared.Detached() {
				d.takeLate(l)
			}
			return err
		}
		d.take(q, false)
	}
}

// takeLate takes those whose handshakes were under way when another process took the socket: nobody else can, and a listener that
// closes refuses them.
func (d *Door3) takeLate(l *quic.Listener) {
	ctx, cancel := context.WithTimeout(d.cut, lateTime)
	defer cancel()
	for d.knocking.Load() > 0 && ctx.Err() == nil {
		soon, cancel := context.WithTimeout(ctx, 10*time.Millisecond) // a handshake that fails says nothing here
		if q, err := l.Accept(soon); err == nil {
			d.take(q, true)
		}
		cancel()
	}
}

// knocks looks at a handshake that begins. Whose address is proven is counted from here on; for others whoever forges an address
// would use up its owner's places.
func (d *Door3) knocks(ctx context.Context, info *quic.ClientInfo) (context.Context, error) {
	client, k := addressOf(info.RemoteAddr.String()), &knock{counted: info.AddrVerified}
	if k.counted && !d.receive(client) {
		return nil, errCrowded
	}
	d.knocking.Add(1)
	context.AfterFunc(ctx, func() {
		d.heard(k)
		if k.counted {
			d.leave(client)
		}
	})
	return context.WithValue(ctx, knock{}, k), nil
}

// heard is the end of a handshake, by a connection or otherwise.
func (d *Door3) heard(k *knock) { k.over.Do(func() { d.knocking.Add(-1) }) }

// receive counts a client's connection in: among those over QUIC, and among all.
func (d *Door3) receive(client string) bool {
	if !d.quics.receive(client, d.makeRoom) {
		return false
	}
	if !d.guests.receive(client, d.makeRoom) {
		d.quics.leave(client)
		return false
	}
	return true
}

func (d *Door3) leave(client string) {
	d.guests.leave(client)
	d.quics.leave(client)
}

// makeRoom lets a connection go that asks nothing.
func (d *Door3) makeRoom() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := 0
	for c := range d.conns {
		if n++; n > lookedAt {
			break
		}
		if c.three.Yield() {
			return true
		}
	}
	return false
}

// take has a connection served; late: it is served what it asks before it hears that it should go elsewhere.
func (d *Door3) take(q *quic.Conn, late bool) {
	state := q.ConnectionState().TLS
	c := &conn3{door: d, q: q, sni: state.ServerName}
	c.client = c.from().client
	before := false
	if k, ok := q.Context().Value(knock{}).(*knock); ok {
		before = k.counted
		defer d.heard(k)
	}
	if !before && !d.receive(c.client) {
		q.CloseWithError(quic.ApplicationErrorCode(http3.ExcessiveLoad), "")
		return
	}
	c.three = d.three.NewConn(q, http3.Peer{Remote: func() string { return c.from().remote }, TLS: &state}, c.stream)
	d.mu.Lock()
	if d.refuses && !late || d.cut.Err() != nil {
		d.mu.Unlock()
		if !before {
			d.leave(c.client)
		}
		c.three.Close()
		return
	}
	d.conns[c] = struct{}{}
	if late {
		c.three.Drain()
	}
	d.wg.Go(func() {
		c.three.Run()
		if !before {
			d.leave(c.client)
		}
		d.mu.Lock()
		delete(d.conns, c)
		d.mu.Unlock()
	})
	d.mu.Unlock()
}

// Busy says whether there are connections, or handshakes that may become some.
func (d *Door3) Busy() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.conns) > 0 || d.knocking.Load() > 0
}

// Shutdown takes no more connections and, once clients have heard of it, no more requests, and waits for those under way until
// ctx ends. It ends none: they go on, and another Shutdown, or End, waits for them again, also at the same time.
func (d *Door3) Shutdown(ctx context.Context) error {
	d.stop()
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		d.mu.Lock()
		d.refuses = true
		for c := range d.conns {
			c.three.Drain()
		}
		left := len(d.conns) > 0 || d.serves
		d.mu.Unlock()
		if !left {
			break
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
	d.three.Close()
	d.wg.Wait()
	return nil
}

// End is Shutdown, and Close where ctx ends before; then it waits for what was broken off to be counted, for a moment.
func (d *Door3) End(ctx context.Context) {
	if d.Shutdown(ctx) == nil {
		return
	}
	d.Close()
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), endWait)
	defer cancel()
	d.Shutdown(last)
}

// Close ends everything at once.
func (d *Door3) Close() error {
	d.stop()
	d.mu.Lock()
	d.refuses = true
	d.end()
	for c := range d.conns {
		d.wg.Go(c.three.Close)
	}
	d.mu.Unlock()
	d.three.Close()
	return nil
}

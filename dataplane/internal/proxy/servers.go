package proxy

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"bailiwick/dataplane/internal/http2"
)

// ServersConfig of NewServers. Handler, TLS and Logger are required.
type ServersConfig struct {
	Handler http.Handler
	TLS     *tls.Config // one policy for TCP and QUIC: certificates, versions, tickets
	NoH3    func() bool // new QUIC connections are refused while it says so; nil: never
	Logger  *slog.Logger

	// UnprovenASecond is how many QUIC handshakes from addresses that nobody has proven are taken in a second without
	// more ado; 0: 200. Beyond it each has to prove its address first (a Retry: one more round trip, and no state
	// here), so that a flood of forged senders costs neither memory nor signatures.
	UnprovenASecond int

	MaxConnections int // of clients over TCP at once; 0: three quarters of the files that the process may open
	MaxPerAddress  int // of one address, or one /64 of IPv6; 0: an eighth of them. This machine's own are not bounded apart

	MaxHeaderBytes int    // 0: 64 KiB; beyond it 431
	ResetKey       []byte // 32 bytes, of this edge alone and the same after a restart; nil: QUIC clients find out by silence
}

// Servers are the three doors of an edge: one handler, so one decision.
type Servers struct {
	HTTPS *Door         // HTTP/1.1 and HTTP/2
	HTTP  *Door         // cleartext HTTP/1.1
	H3    *http3.Server // ServeH3

	resetKey *quic.StatelessResetKey
	unproven int
}

var errNoH3 = errors.New("HTTP/3 is turned off")

// tokenAge is how long QUIC takes a client's word for its address. A token opens nothing but the limit on what
// is sent to an address not proven yet, and names no host; it does not outlive a grant all the same.
const tokenAge = 30 * time.Second

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

// NewServers makes the doors, none of them open yet. There is no read or write timeout: an upload or a
// stream may take long, and the request path has its own limits. 0-RTT is off everywhere, since a replayed
// request would be counted and acted on twice.
func NewServers(cfg ServersConfig) Servers {
	if cfg.MaxHeaderBytes <= 0 {
		cfg.MaxHeaderBytes = 64 << 10
	}
	errorLog := log.New(withheld{cfg.Logger.Handler()}, "", 0)
	fast, _ := cfg.Handler.(*Proxy)
	all := newGuests(cfg.MaxConnections, cfg.MaxPerAddress)
	door := func() *Door {
		d := &Door{Handler: cfg.Handler, fast: fast, log: errorLog, maxHeader: cfg.MaxHeaderBytes, guests: all, whole: idleWhole, going: make(chan struct{}), conns: map[*conn]struct{}{}, works: sync.Pool{New: newWork}}
		d.two = http2.New(http2.Config{MaxHead: cfg.MaxHeaderBytes, Go: d.wg.Go, Panicked: d.panicked})
		return d
	}
	if cfg.UnprovenASecond <= 0 {
		cfg.UnprovenASecond = 200
	}
	s := Servers{HTTPS: door(), HTTP: door(), unproven: cfg.UnprovenASecond}
	tcp := cfg.TLS.Clone()
	tcp.NextProtos = append([]string{"h2", "http/1.1"}, tcp.NextProtos...) // whatever an ACME solver added stays
	if fast != nil {
		tcp.GetConfigForClient = fast.whole(tcp)
	}
	s.HTTPS.Others = &http.Server{Handler: cfg.Handler, ErrorLog: errorLog, TLSConfig: tcp}
	udp := cfg.TLS.Clone()
	udp.MinVersion = tls.VersionTLS13
	if refuse := cfg.NoH3; refuse != nil {
		choose := udp.GetConfigForClient
		udp.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			if refuse() {
				return nil, errNoH3
			}
			if choose == nil {
				return nil, nil
			}
			return choose(hello)
		}
	}
	s.H3 = &http3.Server{
		Handler: cfg.Handler, TLSConfig: http3.ConfigureTLSConfig(udp), MaxHeaderBytes: cfg.MaxHeaderBytes, IdleTimeout: 90 * time.Second,
		QUICConfig: &quic.Config{Allow0RTT: false, MaxIdleTimeout: 90 * time.Second, MaxIncomingStreams: 250, HandshakeIdleTimeout: 10 * time.Second},
		Logger:     slog.New(brief{cfg.Logger.Handler()}),
	}
	if len(cfg.ResetKey) == len(quic.StatelessResetKey{}) {
		s.resetKey = (*quic.StatelessResetKey)(cfg.ResetKey)
	}
	return s
}

// brief keeps what http3 says of every request, its host and path, out of the log at any level.
type brief struct{ slog.Handler }

func (h brief) Enabled(ctx context.Context, l slog.Level) bool {
	return l >= slog.LevelInfo && h.Handler.Enabled(ctx, l)
}
func (h brief) WithAttrs(attrs []slog.Attr) slog.Handler { return brief{h.Handler.WithAttrs(attrs)} }
func (h brief) WithGroup(name string) slog.Handler       { return brief{h.Handler.WithGroup(name)} }

// withheld is where net/http writes what it has to say. Of a panic it keeps where in the code it was, and not the value,
// which may quote the request; a panic is an error of ours, all else is for whoever looks closely.
type withheld struct{ slog.Handler }

func (w withheld) Write(line []byte) (int, error) {
	level, said := slog.LevelDebug, string(line)
	if strings.HasPrefix(said, "http: panic serving ") || strings.HasPrefix(said, "http2: panic serving ") {
		level = slog.LevelError
		said = "panic serving a request" + said[max(0, strings.LastIndex(said, "\ngoroutine ")):]
		if !strings.Contains(said, "\ngoroutine ") {
			said = "panic serving a request"
		}
	}
	slog.NewLogLogger(w.Handler, level).Print(said)
	return len(line), nil
}

// ServeH3 takes HTTP/3 from conn until H3 is shut. The key of address tokens is drawn anew each time and leaves
// the process in nothing: a token of another edge, of another region's above all, is noise here. Connections
// are taken when their handshake is done, never early. It leaves conn open for those that still drain: close it
// after H3.Shutdown, which ends the rest.
func (s *Servers) ServeH3(conn net.PacketConn) error {
	var token quic.TokenGeneratorKey
	rand.Read(token[:]) // never fails
	var unproven crowd
	start := time.Now()
	tr := &quic.Transport{Conn: conn, TokenGeneratorKey: &token, MaxTokenAge: tokenAge, StatelessResetKey: s.resetKey,
		VerifySourceAddress: func(net.Addr) bool { return unproven.tooMany(time.Since(start), s.unproven) }}
	l, err := tr.Listen(s.H3.TLSConfig, s.H3.QUICConfig)
	if err != nil {
		return fmt.Errorf("listen for QUIC: %w", err)
	}
	defer l.Close()
	return s.H3.ServeListener(l)
}

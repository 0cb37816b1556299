package proxy

import (
	"context"
	"crypto/tls"
	"log"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/quic-go/quic-go"

	"bailiwick/dataplane/internal/http2"
	"bailiwick/dataplane/internal/http3"
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

	MaxConnections int // of clients, over TCP and QUIC, at once; 0: three quarters of the files that the process may open. Over QUIC no more than 16,384 of them
	MaxPerAddress  int // of one address, or one /64 of IPv6; 0: an eighth of them. This machine's own are not bounded apart

	BusyPoll       time.Duration // for which loops look for an answer before they sleep; 0: not at all
	MaxHeaderBytes int           // 0: 64 KiB; beyond it 431
	ResetKey       []byte        // 32 bytes, of this edge alone and the same after a restart; nil: QUIC clients find out by silence
}

// Servers are the three doors of an edge: one handler, so one decision.
type Servers struct {
	HTTPS *Door // HTTP/1.1 and HTTP/2
	HTTP  *Door // cleartext HTTP/1.1
	H3    *Door3
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
		d := &Door{Handler: cfg.Handler, fast: fast, log: errorLog, busyPoll: cfg.BusyPoll, maxHeader: cfg.MaxHeaderBytes, guests: all, going: make(chan struct{}), conns: map[*conn]struct{}{}, works: sync.Pool{New: newWork}}
		d.two = http2.New(http2.Config{MaxHead: cfg.MaxHeaderBytes, Go: d.wg.Go, Panicked: d.panicked})
		return d
	}
	if cfg.UnprovenASecond <= 0 {
		cfg.UnprovenASecond = 200
	}
	s := Servers{HTTPS: door(), HTTP: door()}
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
	shut, stop := context.WithCancel(context.Background())
	cut, end := context.WithCancel(context.Background())
	d := &Door3{Handler: cfg.Handler, TLS: speaking3(udp), QUIC: transport(), fast: fast, log: errorLog, guests: all, quics: newGuests(quicConnections, 0), unproven: cfg.UnprovenASecond,
		works: sync.Pool{New: newWork}, shut: shut, stop: stop, cut: cut, end: end, conns: map[*conn3]struct{}{}}
	d.three = http3.New(http3.Config{MaxHead: cfg.MaxHeaderBytes, Go: d.wg.Go, Panicked: s.HTTPS.panicked})
	if len(cfg.ResetKey) == len(quic.StatelessResetKey{}) {
		d.resetKey = (*quic.StatelessResetKey)(cfg.ResetKey)
	}
	s.H3 = d
	all.doors = []func() bool{s.HTTPS.makeRoom, s.HTTP.makeRoom, d.makeRoom}
	return s
}

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

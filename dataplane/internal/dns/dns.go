// Package dns owns the authoritative DNS server of an edge: it answers for the host names of its own zone's APIs
// with the addresses of that zone's edges, and for nothing else. Whom an answer names is decided by package
// answer alone, from the edge's table and the verdict of package observe.
//
// It never answers recursively, never transfers a zone, never names an edge of another zone or a region where the
// API is not deployed, and never stores or logs a client's address or subnet: the limiter keeps counters under a
// salted hash and no address. An answer permits nothing and its lifetime is a wish. Nothing survives a crash.
// Serve is called once; Handle may be called by any number of goroutines at once. See DESIGN.md.
package dns

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	mdns "github.com/miekg/dns"

	"bailiwick/dataplane/internal/observe"
	"bailiwick/dataplane/internal/policy"
)

// Config of a Server.
type Config struct {
	Zone    string                  // required: the edge's zone
	Tables  *policy.Holder          // required
	Outlook func() *observe.Outlook // required
	Logger  *slog.Logger            // required

	// Apexes are domains delegated to the zone's edges as a whole. A host below none of them is its own apex.
	Apexes []string
	CAA    string // certification authority that may issue for the hosts; "": none is named

	TTL         time.Duration // of addresses; 0: 20 s; at most MaxTTL
	NegativeTTL time.Duration // of "there is none"; 0: 30 s; at most 5 min

	RatePerSecond int // UDP answers to one client prefix (/24, /56); 0: 100
	Burst         int // before that rate holds; 0: 200
	Workers       int // UDP queries handled at once; 0: 4
	Conns         int // TCP connections at once; 0: 128; a client prefix gets an eighth
}

// What a Config has that does not say.
const (
	defaultRate    = 100
	defaultBurst   = 200
	defaultWorkers = 4
	defaultConns   = 128
)

// MaxTTL is the life of a grant: an answer must not outlive what edges may do for each other.
const MaxTTL = 30 * time.Second

// Validate fills in defaults.
func (c Config) Validate() (Config, error) {
	if c.Zone == "" || c.Tables == nil || c.Outlook == nil || c.Logger == nil {
		return c, errors.New("dns config: Zone, Tables, Outlook and Logger are required")
	}
	if c.TTL == 0 {
		c.TTL = 20 * time.Second
	}
	if c.NegativeTTL == 0 {
		c.NegativeTTL = 30 * time.Second
	}
	if c.TTL < time.Second || c.TTL > MaxTTL {
		return c, fmt.Errorf("dns config: a TTL of %v; want from 1s to %v, which is as long as a grant lasts", c.TTL, MaxTTL)
	}
	if c.NegativeTTL < time.Second || c.NegativeTTL > 5*time.Minute {
		return c, fmt.Errorf("dns config: a negative TTL of %v; want from 1s to 5m", c.NegativeTTL)
	}
	for i, apex := range c.Apexes {
		if _, ok := mdns.IsDomainName(apex); !ok || apex == "" || apex == "." {
			return c, fmt.Errorf("dns config: %q is no domain that could be delegated", apex)
		}
		c.Apexes[i] = canonical(apex)
	}
	for n, def := range map[*int]int{&c.RatePerSecond: defaultRate, &c.Burst: defaultBurst, &c.Workers: defaultWorkers, &c.Conns: defaultConns} {
		if *n < 0 {
			return c, errors.New("dns config: a limit is negative")
		}
		if *n == 0 {
			*n = def
		}
	}
	return c, nil
}

// Stats are counts since the start, for metrics. None says who asked.
type Stats struct {
	Answered  atomic.Int64
	Refused   atomic.Int64 // names that are not this zone's, transfers, classes
	Malformed atomic.Int64 // answered with an error
	Dropped   atomic.Int64 // not answered: no query, or over the rate
	Slipped   atomic.Int64 // over the rate, told to come back over TCP
	Truncated atomic.Int64 // too large for UDP, likewise
	Desperate atomic.Int64 // answers that name regions which look dead, since none is well
	Conns     atomic.Int64 // TCP connections taken
	ConnsOver atomic.Int64 // closed at once: too many
}

// Server answers DNS.
type Server struct {
	cfg   Config
	stats Stats
	names atomic.Pointer[names] // of the table they were made from
	limit *limiter
	spin  atomic.Uint32
}

// New makes a server without sockets.
func New(cfg Config) (*Server, error) {
	cfg, err := cfg.Validate()
	if err != nil {
		return nil, err
	}
	seed := maphash.MakeSeed()
	return &Server{cfg: cfg, limit: newLimiter(seed, cfg.RatePerSecond, cfg.Burst)}, nil
}

// Sockets opens listening sockets, or has them from elsewhere.
type Sockets interface {
	Listen(name, address string) (net.Listener, error)
	ListenPacket(name, address string) (net.PacketConn, error)
}

// Listen opens the two sockets of one address.
func Listen(s Sockets, address string) (net.PacketConn, net.Listener, error) {
	udp, err := s.ListenPacket("dns-udp", address)
	if err != nil {
		return nil, nil, fmt.Errorf("listen for DNS: %w", err)
	}
	tcp, err := s.Listen("dns-tcp", udp.LocalAddr().String())
	if err != nil {
		udp.Close()
		return nil, nil, fmt.Errorf("listen for DNS over TCP: %w", err)
	}
	return udp, tcp, nil
}

// Stats are live counters.
func (s *Server) Stats() *Stats { return &s.stats }

// Serve answers until ctx ends, and closes both sockets.
func (s *Server) Serve(ctx context.Context, udp net.PacketConn, tcp net.Listener) error {
	shut := func() { udp.Close(); tcp.Close() }
	stop := context.AfterFunc(ctx, shut)
	defer stop()
	errs := make(chan error, s.cfg.Workers+1)
	var wg sync.WaitGroup
	for range s.cfg.Workers {
		wg.Go(func() { errs <- s.serveUDP(udp) })
	}
	wg.Go(func() { errs <- s.serveTCP(ctx, tcp) })
	err := <-errs
	shut()
	wg.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("serve DNS: %w", err)
}

// maxQuery is the longest query that is read. A question with every option we know takes a quarter of it.
const maxQuery = 1232

// serveUDP is one of a fixed number of workers: what they cannot keep up with waits in the socket's buffer, and is
// lost there.
func (s *Server) serveUDP(conn net.PacketConn) error {
	buf := make([]byte, maxQuery+1)
	for {
		n, from, err := conn.ReadFrom(buf)
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return err
			}
			continue // an ICMP answer to something we sent
		}
		client, ok := from.(*net.UDPAddr)
		if !ok {
			continue
		}
		if out := s.Handle(buf[:n], client.AddrPort().Addr(), false); out != nil {
			_, _ = conn.WriteTo(out, from) // who did not get it asks again
		}
	}
}

// canonical is a name in lower case without the final dot.
func canonical(name string) string {
	b := []byte(name)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	if n := len(b); n > 0 && b[n-1] == '.' {
		b = b[:n-1]
	}
	return string(b)
}

// prefix is what a client shares with its neighbours: limits hold for all of them together, since an address
// costs nothing to forge and little to change.
func prefix(a netip.Addr) netip.Prefix {
	a = a.Unmap()
	bits := 56
	if a.Is4() {
		bits = 24
	}
	p, _ := a.Prefix(bits)
	return p
}

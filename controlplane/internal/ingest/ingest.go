// Package ingest owns the door through which edges bring their usage: one
// protocol, over a QUIC stream or, where UDP is blocked, over Connect.
//
// An edge's name and region come from its verified certificate only. It decides
// nothing about chains and watermarks (the ledger does) nor about whose customer
// a row names (Allow does), and acknowledges nothing that a quorum has not
// committed. It keeps nothing on disk: an edge repeats what was not
// acknowledged. Every exported method may be called at once.
package ingest

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"sync"
	"time"

	"bailiwick/controlplane/internal/detail"
	"bailiwick/controlplane/internal/ledger"
	"bailiwick/shared/usage"
)

// ALPN names the protocol on QUIC.
const ALPN = "bailiwick-usage/1"

// MaxMessage bounds one message: a block of usage.MaxPayload with room around it.
const MaxMessage = 5 << 20

// The reasons of refusals made here; the ledger's own are in its package.
const (
	ReasonForeignCustomer = "FOREIGN_CUSTOMER"
	ReasonWithdrawn       = "WITHDRAWN"
)

// Ledger is what sessions need of *ledger.Ledger.
type Ledger interface {
	Append(ctx context.Context, blocks ...ledger.Block) ([]ledger.Ack, error)
	Watermark(ctx context.Context, edge string, epoch uint64) (ledger.Watermark, error)
	NoteSealed(edge string, epoch, sealed, seq uint64, at time.Time)
	NoteRefused(edge string, epoch, seq uint64, reason, detail string, at time.Time)
	NoteFork(ctx context.Context, edge string, epoch, seq uint64, hash [32]byte) error
}

// Detail is what sessions need of *detail.Store.
type Detail interface {
	Mark(edge string, epoch uint64) uint64
	Append(ctx context.Context, edge string, epoch uint64, entries ...detail.Entry) ([]detail.Answer, error)
}

// Config describes a Server.
type Config struct {
	Ledger Ledger // required

	// Allow judges an edge and what it says its customers used: a reason such
	// as WITHDRAWN or FOREIGN_CUSTOMER refuses; an error says that it cannot be
	// judged now, and the edge tries again later. cells is nil when only the
	// edge is asked about. Called from every session at once.
	Allow func(edge, region string, epoch uint64, cells map[usage.Cell]usage.Sums) (reason, detail string, err error) // required

	// Detail is where rows of single requests go, and AllowDetail judges an edge and
	// the customers that its rows name, as Allow does. Both or none: without them
	// detail is refused.
	Detail      Detail
	AllowDetail func(edge, region string, customers []string) (reason string, err error)

	// QUIC. All three or none: then only Handler works.
	Conn net.PacketConn // Run closes it
	TLS  *tls.Config    // requires and verifies client certificates
	// Peer names a verified peer, or says why it is refused; the text is sent to it.
	Peer func(tls.ConnectionState) (edge, region string, err error)

	// PeerFromContext names the verified peer of a Connect request. nil: no Handler.
	PeerFromContext func(context.Context) (edge, region string, err error)

	// ResetKey lets a restarted node tell edges at once that their connections
	// are gone; it must outlive restarts. Zero: they notice after Idle.
	ResetKey [32]byte

	Idle   time.Duration    // a silent connection is dropped after it; 0: 30 s
	Quiet  time.Duration    // so is a session that brings no message, heartbeats included; 0: 60 s
	Future time.Duration    // how far ahead of Now a row may lie; 0: 1 h
	Now    func() time.Time // nil: time.Now
	Logger *slog.Logger
}

// Validate says what is missing.
func (c Config) Validate() error {
	switch quic := c.Conn != nil; {
	case c.Ledger == nil || c.Allow == nil:
		return errors.New("ingest config: Ledger and Allow are required")
	case (c.Detail == nil) != (c.AllowDetail == nil):
		return errors.New("ingest config: Detail and AllowDetail come together")
	case quic && (c.TLS == nil || c.Peer == nil):
		return errors.New("ingest config: Conn needs TLS and Peer")
	case quic && c.TLS.GetConfigForClient == nil && c.TLS.ClientAuth < tls.RequireAnyClientCert:
		return errors.New("ingest config: TLS must require a client certificate")
	case !quic && c.PeerFromContext == nil:
		return errors.New("ingest config: neither QUIC nor Connect is configured")
	}
	return nil
}

// Server takes usage from edges.
type Server struct {
	cfg  Config
	stop chan struct{} // closed when Run ends: no session begins after it

	mu       sync.Mutex // covers the rest
	sessions map[sessionKey]*open
	stats    Stats
}

// One edge has one session of each kind on each transport: a second one is the
// edge come back before we noticed that it had gone, and ends the first.
type sessionKey struct {
	transport, edge string
	detail          bool
}

// open is a session as the server knows it.
type open struct {
	region string
	cancel context.CancelCauseFunc
}

// end ends the session for a reason, at once.
func (o *open) end(why error) { o.cancel(why) }

// Stats counts since the start.
type Stats struct {
	Sessions int               // open now, those of detail included
	Blocks   uint64            // acknowledged, repeats included
	Pieces   uint64            // of detail, acknowledged, repeats included
	Refused  map[string]uint64 // by reason
}

// New returns a Server; Run serves QUIC, Handler serves Connect.
func New(cfg Config) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&cfg.Idle, 30*time.Second)
	def(&cfg.Quiet, time.Minute)
	def(&cfg.Future, time.Hour)
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Server{cfg: cfg, stop: make(chan struct{}), sessions: make(map[sessionKey]*open),
		stats: Stats{Refused: make(map[string]uint64)}}, nil
}

// Run serves until ctx ends, then ends every session. Call it once.
func (s *Server) Run(ctx context.Context) (err error) {
	if s.cfg.Conn == nil {
		<-ctx.Done()
	} else if err = s.serveQUIC(ctx); err != nil {
		err = fmt.Errorf("serve usage ingest: %w", err)
	}
	close(s.stop) // first: a session that begins now sees it, or is among those cut
	s.cut(func(sessionKey) bool { return true }, errStopping)
	return err
}

// Disconnect ends the sessions of an edge at once: it was withdrawn.
func (s *Server) Disconnect(edge string) {
	s.cut(func(k sessionKey) bool { return k.edge == edge }, errCut)
}

// Recheck asks Allow about every connected edge and ends the sessions of those
// it refuses: for when the registry has changed.
func (s *Server) Recheck() {
	s.mu.Lock()
	sessions := maps.Clone(s.sessions)
	s.mu.Unlock()
	for k, e := range sessions {
		if reason, _, err := s.cfg.Allow(k.edge, e.region, 0, nil); err == nil && reason != "" {
			s.cfg.Logger.Info("edge may no longer bring usage", "edge", k.edge, "reason", reason)
			e.end(errCut)
		}
	}
}

func (s *Server) cut(which func(sessionKey) bool, why error) {
	s.mu.Lock()
	var ends []*open
	for k, e := range s.sessions {
		if which(k) {
			ends = append(ends, e)
		}
	}
	s.mu.Unlock()
	for _, e := range ends {
		e.end(why)
	}
}

// Stats is a copy of the counters.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.stats
	out.Sessions, out.Refused = len(s.sessions), maps.Clone(s.stats.Refused)
	return out
}

func (s *Server) count(f func(*Stats)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(&s.stats)
}

func (s *Server) admit(k sessionKey, e *open) {
	s.mu.Lock()
	old := s.sessions[k]
	s.sessions[k] = e
	s.mu.Unlock()
	if old != nil {
		old.end(errReplaced)
	}
}

func (s *Server) dismiss(k sessionKey, e *open) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sessions[k] == e {
		delete(s.sessions, k)
	}
}

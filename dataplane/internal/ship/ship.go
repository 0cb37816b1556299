// Package ship owns the carrying of sealed usage from the spool to the zone
// ledger, over QUIC or over a Connect stream where UDP is blocked, and of detail
// to the same control node on a stream beside it, which waits for the ledger's.
//
// It never discards: a block is let go only by an acknowledgement whose hash is
// the block's own, and what the ledger refuses stays in the spool, loudly. It
// keeps nothing on disk; after a crash the ledger's watermark says where to go
// on, and repeats are harmless. Run runs once; the other methods may be called
// at any time.
package ship

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"time"

	"bailiwick/dataplane/internal/beat"
	"bailiwick/dataplane/internal/detail"
	"bailiwick/dataplane/internal/spool"
)

// ALPN names the protocol on QUIC.
const ALPN = "bailiwick-usage/1"

// Reasons of refusals, as in usage.v1 Refusal.
const (
	ReasonWrongChain  = "WRONG_CHAIN"
	ReasonGap         = "GAP"
	ReasonForeign     = "FOREIGN_CUSTOMER"
	ReasonWithdrawn   = "WITHDRAWN"
	ReasonMalformed   = "MALFORMED"
	ReasonFork        = "FORK"
	ReasonEpochClosed = "EPOCH_CLOSED"
	ReasonRegion      = "FOREIGN_REGION"
	ReasonAPI         = "FOREIGN_API"
	ReasonImplausible = "IMPLAUSIBLE"
	ReasonQuarantined = "QUARANTINED" // two spools speak for the epoch; it is kept whole until an operator closes it
)

// Config describes a Shipper. Zero values mean the default in the comment.
type Config struct {
	Spool  *spool.Spool    // required
	Detail *detail.Spool   // goes on a stream of its own, behind the ledger's blocks; nil: there is none
	Addrs  func() []string // required: peer addresses of the zone's control nodes, host:port

	QUICTLS    func() *tls.Config // required: asked before each dial, so that a renewed certificate is used
	HTTPClient *http.Client       // required: HTTP/2 over mutual TLS, for the fallback; without a Timeout

	Patience     time.Duration // to connect, and to be answered; 0: 3 s
	Heartbeat    time.Duration // how often the ledger hears how far usage is sealed; 0: 1 s
	RetryQUIC    time.Duration // while on the fallback; 0: 30 s
	RetryRefused time.Duration // an epoch the ledger refused is offered again, and a withdrawn edge asks again; 0: 10 min
	RetryHome    time.Duration // a session with another node than the first ends after it, so that the first is tried again; 0: 5 min
	Backoff      time.Duration // the first one; it doubles up to 5 s; 0: 200 ms
	Window       int           // blocks on their way; 0: 32
	WindowBytes  int           // 0: 8 MiB
	Drain        time.Duration // once Run's ctx has ended, how long an open session may take the rest along; 0: ends at once

	Beat   *beat.Beat   // nil: its own
	Logger *slog.Logger // nil: none
}

// Validate says what is missing.
func (c Config) Validate() error {
	switch {
	case c.Spool == nil || c.Addrs == nil || c.QUICTLS == nil || c.HTTPClient == nil:
		return errors.New("ship config: Spool, Addrs, QUICTLS and HTTPClient are required")
	case c.Patience < 0 || c.Heartbeat < 0 || c.RetryQUIC < 0 || c.RetryRefused < 0 || c.RetryHome < 0 || c.Backoff < 0 || c.Window < 0 || c.WindowBytes < 0 || c.Drain < 0:
		return errors.New("ship config: a duration or limit is negative")
	}
	return nil
}

func (c Config) withDefaults() Config {
	c.Patience = or(c.Patience, 3*time.Second)
	c.Heartbeat = or(c.Heartbeat, time.Second)
	c.RetryQUIC = or(c.RetryQUIC, 30*time.Second)
	c.RetryRefused = or(c.RetryRefused, 10*time.Minute)
	c.RetryHome = or(c.RetryHome, 5*time.Minute)
	c.Backoff = or(c.Backoff, 200*time.Millisecond)
	c.Window = or(c.Window, 32)
	c.WindowBytes = or(c.WindowBytes, 8<<20)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

func or[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}

// Refusal is why an epoch is not shipped.
type Refusal struct {
	Epoch, Seq     uint64
	Reason, Detail string
	At             time.Time
	Final          bool // not tried again by this process
}

// Stats are counters since New and the state now.
type Stats struct {
	Transport string // "quic" or "connect"; "" while there is no session that was answered
	Addr      string
	Err       string    // why there is none, or why the last one ended; "" while all is well
	Withdrawn bool      // the ledger said that this edge may not bring usage: shipping rests for RetryRefused
	Refused   []Refusal // epochs that are not shipped

	Sessions     int64 // answered ones
	BlocksSent   int64
	BytesSent    int64 // payloads
	BlocksResent int64 // sent more than once by this process
	Acks         int64
	Refusals     int64
	LastAck      time.Time

	PiecesSent      int64  // of detail
	DetailBytesSent int64  // payloads
	DetailErr       string // why detail does not arrive, as far as known; "" while all is well
}

// Shipper carries blocks. New makes one.
type Shipper struct {
	cfg Config
	bye chan struct{} // closed when Run's ctx ends: a session says its last heartbeat

	mu      sync.Mutex // covers what follows
	stats   Stats
	refused map[uint64]refused

	next    int               // index of the address to try; Run's
	highest map[uint64]uint64 // per epoch, the last number sent; Run's
	gate    gate
	offered [2]uint64 // epoch and number of a piece of detail that was refused once; details'
}

type refused struct {
	Refusal
	retry time.Time // zero: never, this process
	hold  bool      // newer epochs wait for it: see session.pump
}

// New checks the configuration.
func New(cfg Config) (*Shipper, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Shipper{cfg: cfg.withDefaults(), bye: make(chan struct{}), refused: map[uint64]refused{}, highest: map[uint64]uint64{}}, nil
}

// Stats may be called at any time.
func (s *Shipper) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.stats
	for _, r := range s.refused {
		out.Refused = append(out.Refused, r.Refusal)
	}
	return out
}

// Err says why usage does not reach the ledger as it should; nil: it does.
func (s *Shipper) Err() error {
	st := s.Stats()
	switch {
	case st.Withdrawn:
		return errWithdrawn
	case len(st.Refused) > 0:
		r := st.Refused[0]
		return fmt.Errorf("the ledger refuses usage block %d/%d: %s: %s", r.Epoch, r.Seq, r.Reason, r.Detail)
	case st.Err != "":
		return errors.New(st.Err)
	}
	return nil
}

// Stuck says why nothing that the edge serves now will be counted, however well the ledger is reached: its epoch,
// or one that must go before it, is refused. nil: usage is on its way.
func (s *Shipper) Stuck() error {
	r, stuck := s.StuckBy()
	switch {
	case !stuck:
		return nil
	case r.Reason == ReasonWithdrawn:
		return errWithdrawn
	}
	how, then := "", fmt.Sprintf("until that is repaired; it is tried again every %s", s.cfg.RetryRefused)
	if r.Final {
		how, then = " for good", "until it is restarted, which begins a new epoch"
	}
	return fmt.Errorf("the ledger refuses epoch %d%s (%s: %s): what this edge serves is kept and not counted %s", r.Epoch, how, r.Reason, r.Detail, then)
}

// StuckBy is the refusal behind Stuck; of an edge that is withdrawn it names no epoch.
func (s *Shipper) StuckBy() (Refusal, bool) {
	current := s.cfg.Spool.Stats().Epoch
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stats.Withdrawn {
		return Refusal{Reason: ReasonWithdrawn}, true
	}
	for _, epoch := range slices.Sorted(maps.Keys(s.refused)) {
		if r := s.refused[epoch]; epoch == current || r.hold {
			return r.Refusal, true
		}
	}
	return Refusal{}, false
}

var (
	errWithdrawn = errors.New("the ledger takes no usage from this edge: it is withdrawn")
	errStalled   = errors.New("the ledger does not answer")
	errHome      = errors.New("a nearer control node is tried again")
	errNoAddress = errors.New("no control node's address is known")
)

// Run ships until ctx ends and, if a session is open then, until all is taken or Drain is over. It returns nil.
func (s *Shipper) Run(ctx context.Context) error {
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	wg.Go(func() {
		<-ctx.Done()
		close(s.bye)
		s.drain()
		cancel()
	})
	s.run(work)
	wg.Wait()
	return nil
}

// drain waits until the ledger has all that it takes, as long as somebody talks to it.
func (s *Shipper) drain() {
	limit := time.NewTimer(s.cfg.Drain)
	defer limit.Stop()
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	for range 2 { // once more after all is taken: the last heartbeat is under way
		for first := true; first || s.waits(); first = false {
			if s.cfg.Drain == 0 || s.Stats().Transport == "" {
				return
			}
			select {
			case <-limit.C:
				return
			case <-look.C:
			}
		}
	}
}

func (s *Shipper) waits() bool {
	for _, ep := range s.cfg.Spool.Epochs() {
		if !ep.Parked && ep.Oldest <= ep.Sealed {
			return true
		}
	}
	return false
}

func (s *Shipper) run(ctx context.Context) {
	quicFailed, attempt := 0, 0
	for ctx.Err() == nil {
		if s.withdrawn() { // whoever removed the edge may take it back
			select {
			case <-ctx.Done():
				return
			case <-time.After(s.cfg.RetryRefused):
			}
			s.count(func(st *Stats) { st.Withdrawn = false })
		}
		answered := false
		if quicFailed < 2 {
			if answered = s.round(ctx, s.dialQUIC); answered {
				quicFailed = 0
			} else if quicFailed++; quicFailed == 2 {
				s.cfg.Logger.Warn("usage goes over the Connect stream: QUIC does not get through", "error", s.Stats().Err)
			}
		} else {
			var quic bool
			if answered, quic = s.fallback(ctx); quic {
				quicFailed = 0
			}
		}
		if answered {
			attempt = 0
		}
		s.pause(ctx, attempt)
		attempt++
	}
}

// pause waits with full jitter over the upper half.
func (s *Shipper) pause(ctx context.Context, attempt int) {
	d := min(s.cfg.Backoff<<min(attempt, 10), 5*time.Second)
	d = d/2 + rand.N(d/2+1)
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// round tries the addresses in turn until one session was answered and ended,
// or all failed.
func (s *Shipper) round(ctx context.Context, dial func(context.Context, string) (*line, error)) (answered bool) {
	addrs := s.cfg.Addrs()
	if len(addrs) == 0 {
		s.fail("", errNoAddress)
	}
	for range addrs {
		if ctx.Err() != nil || s.withdrawn() {
			return false
		}
		addr := addrs[s.next%len(addrs)]
		l, err := dial(ctx, addr)
		if err == nil {
			answered, err = s.session(ctx, addr, l)
		}
		if ctx.Err() != nil {
			return answered
		}
		if errors.Is(err, errHome) {
			s.next = 0
			return answered
		}
		s.next++ // whatever ended it, the next node may do better
		s.fail(addr, err)
		if answered {
			return true
		}
	}
	return false
}

// fallback is one round over Connect, while QUIC is tried beside it. The QUIC
// connection that comes through takes over.
func (s *Shipper) fallback(ctx context.Context) (answered, quic bool) {
	type found struct {
		addr string
		link *line
	}
	cctx, cancel := context.WithCancel(ctx)
	took := make(chan found, 1)
	var wg sync.WaitGroup
	wg.Go(func() {
		t := time.NewTicker(s.cfg.RetryQUIC)
		defer t.Stop()
		for {
			select {
			case <-cctx.Done():
				return
			case <-t.C:
			}
			for _, addr := range s.cfg.Addrs() {
				if l, err := s.dialQUIC(cctx, addr); err == nil {
					took <- found{addr, l}
					cancel()
					return
				}
			}
		}
	})
	answered = s.round(cctx, s.dialConnect)
	cancel()
	wg.Wait()
	select {
	case f := <-took:
		s.cfg.Logger.Info("usage goes over QUIC again", "addr", f.addr)
		ok, err := s.session(ctx, f.addr, f.link)
		if ctx.Err() == nil {
			s.fail(f.addr, err)
		}
		return answered || ok, ok
	default:
	}
	if !answered && ctx.Err() == nil { // neither: perhaps the nodes were away, and UDP is fine
		ok := s.round(ctx, s.dialQUIC)
		return ok, ok
	}
	return answered, false
}

func (s *Shipper) withdrawn() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stats.Withdrawn
}

// fail records why a session is over, and logs it when it is news.
func (s *Shipper) fail(addr string, err error) {
	if err == nil {
		err = errors.New("the ledger ended the session")
	}
	text := err.Error()
	s.mu.Lock()
	news := s.stats.Err != text
	s.stats.Err, s.stats.Transport, s.stats.Addr = text, "", ""
	s.mu.Unlock()
	if news {
		s.cfg.Logger.Warn("usage session", "addr", addr, "error", err)
	}
}

// refuse parks an epoch.
func (s *Shipper) refuse(r Refusal, hold, final bool) {
	r.At, r.Final = time.Now(), final
	e := refused{Refusal: r, hold: hold}
	if !final {
		e.retry = r.At.Add(s.cfg.RetryRefused)
	}
	s.cfg.Spool.Park(r.Epoch, true)
	s.mu.Lock()
	s.refused[r.Epoch] = e
	s.mu.Unlock()
	s.cfg.Logger.Error("the ledger refuses usage: it stays in the spool, unbilled, until somebody looks", "epoch", r.Epoch, "seq", r.Seq, "reason", r.Reason, "detail", r.Detail)
}

// standing is the refusal that an epoch is under, if it is not time to try again.
func (s *Shipper) standing(epoch uint64) (refused, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok := s.refused[epoch]
	return r, ok && (r.retry.IsZero() || time.Now().Before(r.retry))
}

// pardon lifts a refusal after the ledger has taken a block of the epoch.
func (s *Shipper) pardon(epoch uint64) {
	s.mu.Lock()
	_, was := s.refused[epoch]
	delete(s.refused, epoch)
	s.mu.Unlock()
	if was {
		s.cfg.Spool.Park(epoch, false)
		s.cfg.Logger.Info("the ledger takes the epoch again", "epoch", epoch)
	}
}

func (s *Shipper) count(f func(*Stats)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(&s.stats)
}

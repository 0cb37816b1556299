package relay

import (
	"context"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"bailiwick/dataplane/internal/beat"
	"bailiwick/dataplane/internal/failover"
	"bailiwick/dataplane/internal/gate"
	"bailiwick/dataplane/internal/policy"
	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"
	"bailiwick/regions/grant"
	"bailiwick/shared/fault"
	"bailiwick/shared/identity"
)

// Inbound is a relay that both ends permit.
type Inbound struct {
	API       *policy.API
	Route     *policy.Route // nil if the table does not know the other zone's routes
	From      string        // the home region, from the peer's certificate
	GrantID   string
	RequestID string
	Class     string          // as in Forward
	Stream    string          // likewise
	Ending    <-chan struct{} // closed when streams are to end, since this edge does; nil: it stays
	LetGo     func()          // is called once nothing works on the request any more, also behind its answer's end; nil: nobody asks
}

// Local sends a relayed request to this region's own upstream, and nowhere else. Internal headers are already
// gone from r; its answer carries HeaderServed, or HeaderUnsent if no upstream got a byte.
type Local interface {
	ServeRelayed(w http.ResponseWriter, r *http.Request, in Inbound)
}

// Leave says whether this edge may take a relay under a grant now, by what its own zone's leader told it.
type Leave interface {
	Takes(g *grant.Grant) bool
}

// ServerConfig of a Server. All fields are required.
type ServerConfig struct {
	Identity *identity.Source
	Tables   *policy.Holder
	Leave    Leave
	Local    Local
	Evidence Evidence
	Sentinel Arrivals
	Logger   *slog.Logger
	Beat     *beat.Beat // nil: its own
}

// Arrivals is a second, independent opinion on what arrives: see package sentinel.
type Arrivals interface {
	Now() time.Time // its own reading, taken after the check here and handed back with what was checked
	Arrives(peer *x509.Certificate, grant []byte, apiZone, api string, checked time.Time) error
}

// Server takes relays from other regions' edges.
type Server struct {
	cfg     ServerConfig
	self    identity.Name
	log     *ledger
	ages    ages
	waits   waits
	leaving chan struct{} // closed once no relay is taken any more
	ending  chan struct{} // and once those that last are to end
	open    atomic.Int64  // connections

	mu      sync.Mutex // covers all below; held for no I/O
	left    bool       // leaving is closed: no flight is entered after it
	ends    bool       // ending is
	flights map[*flight]struct{}
	conns   map[net.Conn]identity.Name
}

// NewServer makes a server; Serve it.
func NewServer(cfg ServerConfig) (*Server, error) {
	if cfg.Identity == nil || cfg.Tables == nil || cfg.Leave == nil || cfg.Local == nil || cfg.Evidence == nil || cfg.Sentinel == nil || cfg.Logger == nil {
		return nil, errors.New("relay: a server needs Identity, Tables, Leave, Local, Evidence, Sentinel and Logger")
	}
	return &Server{cfg: cfg, self: cfg.Identity.Name(), log: newLedger(cfg.Evidence), leaving: make(chan struct{}), ending: make(chan struct{}), flights: map[*flight]struct{}{}, conns: map[net.Conn]identity.Name{}}, nil
}

type connKey struct{}

// endTime is how long what was cut, or not drained, has to end.
const endTime = 2 * time.Second

// Serve takes relays from l until it is drained or ctx ends, and returns when ctx has: what is left then is cut after endTime.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	var protocols http.Protocols
	protocols.SetHTTP2(true)
	srv := &http.Server{
		Handler:   s,
		Protocols: &protocols,
		TLSConfig: s.cfg.Identity.ServerTLS([]string{"h2"}, s.allow),
		HTTP2: &http.HTTP2Config{MaxConcurrentStreams: streamsMost, SendPingTimeout: 15 * time.Second, PingTimeout: 5 * time.Second, WriteByteTimeout: 20 * time.Second,
			MaxReceiveBufferPerStream: window, MaxReceiveBufferPerConnection: windows},
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, c)
		},
		ConnState: func(c net.Conn, state http.ConnState) {
			if state == http.StateNew {
				s.open.Add(1)
			}
			if state == http.StateClosed {
				s.open.Add(-1)
				s.mu.Lock()
				delete(s.conns, c)
				s.mu.Unlock()
			}
		},
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       10 * time.Minute, // sessions are kept warm on purpose
		MaxHeaderBytes:    headMost,
		ErrorLog:          slog.NewLogLogger(s.cfg.Logger.Handler(), slog.LevelDebug),
	}
	var wg sync.WaitGroup
	wg.Go(func() { s.enforceUntil(ctx) })
	wg.Go(func() {
		select {
		case <-s.leaving: // sessions stay, so that whoever asks over one is told
			l.Close()
			<-ctx.Done()
		case <-ctx.Done():
		}
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTime)
		defer cancel()
		if srv.Shutdown(grace) != nil {
			srv.Close()
		}
	})
	err := srv.ServeTLS(l, "", "")
	select {
	case <-s.leaving:
		<-ctx.Done()
	default:
	}
	if ctx.Err() != nil {
		wg.Wait()
		return nil
	}
	return err
}

// Leave takes no more relays: whoever asks hears that no upstream got it, and that this edge leaves; who dials finds nobody, or
// the next process. What is under way goes on.
func (s *Server) Leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.left {
		s.left = true
		close(s.leaving)
	}
}

// Drain is Leave, and returns when those under way have ended, of which streams are told to. It cuts what has not when ctx ends. Serve
// goes on until its own ctx ends.
func (s *Server) Drain(ctx context.Context) {
	s.Leave()
	s.mu.Lock()
	if !s.ends {
		s.ends = true
		close(s.ending)
	}
	s.mu.Unlock()
	if !s.empties(ctx) {
		s.mu.Lock()
		cut := slices.Collect(maps.Keys(s.flights))
		s.mu.Unlock()
		for _, f := range cut {
			f.cut()
		}
	}
}

// Outlast is Drain of a server that has left: streams are told when ctx ends, and have endTime then, as all has.
func (s *Server) Outlast(ctx context.Context) {
	s.Leave()
	if s.empties(ctx) {
		return
	}
	soon, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTime)
	defer cancel()
	s.Drain(soon)
}

// empties waits until nothing is under way; false: ctx has ended before.
func (s *Server) empties(ctx context.Context) bool {
	for wait := time.Millisecond; s.InFlight() > 0; wait = min(2*wait, 100*time.Millisecond) {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(wait):
		}
	}
	return true
}

// Sessions is how many connections peers have.
func (s *Server) Sessions() int { return int(s.open.Load()) }

// leaves tells a peer that no relay is taken any more.
func (s *Server) leaves(w http.ResponseWriter) {
	h := w.Header()
	h.Set(HeaderLeaving, "1")
	h.Set(HeaderUnsent, "1")
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusServiceUnavailable)
}

// allow is asked in the handshake: a stranger does not even get to speak HTTP.
func (s *Server) allow(n identity.Name) error {
	if rule := s.registered(s.cfg.Tables.Load(), n); rule != "" {
		s.log.refuse(rule, n.Region, s.self.Region, "")
		return fault.New(fault.Denied, identity.ReasonWrongPeer, "peer %s may not relay here: %s", n, rule)
	}
	return nil
}

func (s *Server) registered(t *policy.Table, n identity.Name) (rule string) {
	if n.Kind != identity.Edge {
		return RuleKind
	}
	node := t.Node(n.Node)
	if node == nil || node.Region != n.Region || node.Zone != n.Zone {
		return RuleNode
	}
	return ""
}

func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	peer, err := identity.PeerName(*r.TLS)
	if err != nil { // TLS has verified it: this cannot happen unless the server was wired without it
		s.refuse(w, r, RuleKind, identity.Name{}, err)
		return
	}
	t := s.cfg.Tables.Load()
	if rule := s.registered(t, peer); rule != "" {
		s.refuse(w, r, rule, peer, nil)
		return
	}
	conn, _ := r.Context().Value(connKey{}).(net.Conn)
	s.mu.Lock()
	s.conns[conn] = peer
	s.mu.Unlock()
	if r.Header.Get(HeaderPing) != "" {
		if id := r.Header.Get(HeaderAwait); id != "" {
			s.waits.await(r.Context(), waitKey{peer.Node, id, attemptOf(r.Header)})
		} else if s.gone() {
			s.leaves(w)
			return
		}
		w.WriteHeader(http.StatusNoContent)
		return
	}
	in, g, policyName, rule, err := s.admit(t, peer, r)
	in.Ending = s.ending
	if rule != "" {
		s.refuse(w, r, rule, peer, err)
		return
	}
	checked := s.cfg.Sentinel.Now()

	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	rc := http.NewResponseController(w)
	var ending sync.Mutex // covers over; a response may not be touched once its handler has returned
	over := false
	f := &flight{Flight: grant.Flight{Zone: in.API.Zone, API: in.API.Name, Policy: policyName, From: peer.Region, To: s.self.Region, Peer: peer.Node}, grant: g, cut: func() {
		ending.Lock()
		defer ending.Unlock()
		if over { // it ended by itself while the sweep went on
			return
		}
		cancel(errCut)
		// A handler that waits for the peer's window would not notice its context.
		past := time.Unix(1, 0)
		rc.SetWriteDeadline(past)
		rc.SetReadDeadline(past)
	}}
	s.mu.Lock()
	if s.left {
		s.mu.Unlock()
		s.leaves(w)
		return
	}
	s.flights[f] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.flights, f)
		s.mu.Unlock()
		ending.Lock()
		over = true
		ending.Unlock()
	}()
	// Once more, now that a sweep would find the flight.
	if t := s.cfg.Tables.Load(); !f.Stands(rules{t}) || !s.cfg.Leave.Takes(g) || s.registered(t, peer) != "" {
		s.refuse(w, r, RulePair, peer, nil)
		return
	}
	signed, err := base64.StdEncoding.DecodeString(r.Header.Get(HeaderGrant))
	if err == nil {
		err = s.cfg.Sentinel.Arrives(r.TLS.PeerCertificates[0], signed, in.API.Zone, in.API.Name, checked)
	}
	if err != nil {
		s.refuse(w, r, RuleSentinel, peer, err)
		return
	}
	if r.Header.Get(HeaderBounded) != "" {
		over := s.waits.begin(waitKey{peer.Node, in.RequestID, attemptOf(r.Header)})
		in.LetGo = func() { over(ctx.Err() != nil) }
	}
	for name := range r.Header {
		if len(name) >= len(Prefix) && name[:len(Prefix)] == Prefix && !(peer.Zone == s.self.Zone && slices.Contains(Identity[:], name)) {
			delete(r.Header, name)
		}
	}
	s.cfg.Local.ServeRelayed(w, r.WithContext(ctx), in)
}

// admit is the receiver's half of the decision, from the peer's certificate, its grant and the own table. It
// reads headers only.
func (s *Server) admit(t *policy.Table, peer identity.Name, r *http.Request) (in Inbound, g *grant.Grant, policyName, rule string, err error) {
	if r.Header.Get(HeaderHome) != peer.Region {
		return in, nil, "", RuleHop, nil
	}
	raw, err := base64.StdEncoding.DecodeString(r.Header.Get(HeaderGrant))
	if err != nil || len(raw) == 0 || len(raw) > 64<<10 {
		return in, nil, "", grant.Malformed, err
	}
	var signed syncv1.SignedGrant
	if err := proto.Unmarshal(raw, &signed); err != nil {
		return in, nil, "", grant.Malformed, err
	}
	if g, err = failover.Verify(t, &signed); err != nil {
		return in, nil, "", fault.ReasonOf(err), err
	}
	shown := grant.Party{Zone: peer.Zone, Region: peer.Region, Process: grant.Process{Edge: peer.Node, Incarnation: r.Header.Get(HeaderIncarnation)}}
	here := grant.Party{Zone: s.self.Zone, Region: s.self.Region}
	if _, rule := grant.Admit(g, r.Header.Get(HeaderAPI), shown, here, rules{t}); rule != "" {
		return in, nil, "", rule, nil
	}
	api := t.APIOf(g.Zone, r.Header.Get(HeaderAPI))
	if !s.cfg.Leave.Takes(g) {
		return in, nil, "", grant.NoLeave, nil
	}
	if !s.ages.fresh(g) {
		return in, nil, "", grant.Expired, nil
	}
	route, match := api.Route(r.Method, r.URL.Path)
	if match != policy.RouteFound && !api.Foreign {
		return in, nil, "", RuleAPI, nil
	}
	id := r.Header.Get(HeaderRequestID)
	if len(id) > 64 {
		return in, nil, "", RuleMalformed, nil
	}
	stream := r.Header.Get(HeaderStream)
	if stream != "" && stream != StreamWebSocket && stream != StreamTCP {
		return in, nil, "", RuleMalformed, nil
	}
	if !api.Foreign && ((stream == StreamTCP) != (api.TCP != nil) || stream == StreamWebSocket && route.WebSocket == nil) {
		return in, nil, "", RuleAPI, nil // nor a stream where this zone's own API has none
	}
	return Inbound{API: api, Route: route, From: peer.Region, GrantID: g.ID, RequestID: id, Class: r.Header.Get(HeaderClass), Stream: stream}, g, api.Policy, "", nil
}

func (s *Server) refuse(w http.ResponseWriter, r *http.Request, rule string, peer identity.Name, err error) {
	s.log.refuse(rule, peer.Region, s.self.Region, r.Header.Get(HeaderRequestID))
	s.cfg.Logger.Debug("relay refused", "rule", rule, "peer", peer.String(), "error", err)
	p := gate.NewProblem(http.StatusForbidden, gate.ReasonResidency, "This region does not take the request from that one.")
	body := p.JSON(r.Header.Get(HeaderRequestID))
	h := w.Header()
	h.Set(HeaderRefused, rule)
	h.Set(HeaderUnsent, "1")
	h.Set("Content-Type", gate.ProblemType)
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusForbidden)
	w.Write(body)
}

// Enforce cuts at once what the newest table and the own leave do not permit: flights, then sessions of peers that may
// relay nothing any more. Run calls it; whoever acknowledges a table calls it before.
func (s *Server) Enforce() {
	var cut []*flight
	var gone []net.Conn
	s.mu.Lock()
	t := s.cfg.Tables.Load() // behind the lock, as at the sender
	in := inbound(t)
	regions := map[string]bool{}
	for p := range in {
		regions[p.from] = true
	}
	known := func(node, region string) bool {
		n := t.Node(node)
		return n != nil && n.Region == region && regions[region]
	}
	for f := range s.flights {
		if !f.Stands(rules{t}) || !known(f.Peer, f.From) || !s.cfg.Leave.Takes(f.grant) {
			cut = append(cut, f)
		}
	}
	for c, peer := range s.conns {
		if !known(peer.Node, peer.Region) {
			gone = append(gone, c)
			delete(s.conns, c)
		}
	}
	s.mu.Unlock()
	for _, f := range cut {
		f.cut()
	}
	for _, c := range gone {
		// In its own time: closing a TLS connection may wait for a lock that a blocked write holds.
		if tc, ok := c.(interface{ NetConn() net.Conn }); ok {
			tc.NetConn().Close()
		} else {
			c.Close()
		}
	}
	if len(cut)+len(gone) > 0 {
		s.cfg.Logger.Info("relays cut", "flights", len(cut), "sessions", len(gone))
	}
	s.ages.forget(func(edge string) bool { return t.Node(edge) != nil })
	s.log.now(in)
}

func (s *Server) enforceUntil(ctx context.Context) {
	tick := s.cfg.Beat.Ticker(500 * time.Millisecond) // a swap wakes it at once; the leave to take relays ends by time
	defer tick.Stop()
	for {
		changed := s.cfg.Tables.Changed()
		s.Enforce()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			tick.Again()
		case <-changed:
		}
	}
}

// CutPairs are the pairs cut since the last call, "from>to".
func (s *Server) CutPairs() []string { return s.log.takeCuts() }

// Refusals is how many there were since the start.
func (s *Server) Refusals() int64 { return s.log.refused.Load() }

func (s *Server) gone() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.left
}

// InFlight is how many relays are under way.
func (s *Server) InFlight() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.flights)
}

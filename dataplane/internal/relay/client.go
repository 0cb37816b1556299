package relay

import (
	"context"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"bailiwick/dataplane/internal/beat"
	"bailiwick/dataplane/internal/failover"
	"bailiwick/dataplane/internal/policy"
	"bailiwick/regions/grant"
	"bailiwick/shared/identity"
	"bailiwick/shared/table"
)

// Sentinel is a second, independent opinion on what leaves: see package sentinel.
type Sentinel interface {
	Now() time.Time // its own reading, taken after the check here and handed back with what was checked
	Dialled(peer *x509.Certificate, checked time.Time) error
	Leaves(peer *x509.Certificate, grant []byte, api, home string, checked time.Time) error
}

// ClientConfig of a Client. All but Incarnation, Dial and the durations are required.
type ClientConfig struct {
	Identity    *identity.Source
	Incarnation string // which run of the edge this is; "": a test's
	Tables      *policy.Holder
	Grants      *failover.Grants
	Evidence    Evidence
	Sentinel    Sentinel
	Logger      *slog.Logger
	Beat        *beat.Beat // nil: its own

	Dial func(ctx context.Context, network, addr string) (net.Conn, error) // nil: a net.Dialer's; TLS and the checks come on top

	DialTimeout time.Duration // 0: 500 ms, for connecting and the handshake
	PingWait    time.Duration // 0: 500 ms; what a request that must not be repeated waits for a sign of life
	ProofFor    time.Duration // 0: 20 ms; how old a sign of life may be for one
}

// Client sends requests to other regions' edges.
type Client struct {
	cfg  ClientConfig
	born time.Time
	from string
	log  *ledger

	answers  answers
	mu       sync.Mutex // covers the rest; held for no I/O
	sessions map[sessionKey]*session
	flights  map[*flight]struct{}
	ended    bool // nothing more is relayed: Retire, or Run has returned
}

// flight is one relay under way, at either end.
type flight struct {
	grant.Flight
	grant *grant.Grant // at the receiver: the one that it came under
	cut   func()
}

// rules is a table as package grant asks it.
type rules struct{ *policy.Table }

func (r rules) At() grant.At { return grant.At{Catalog: r.Catalog(), Store: r.Zone()} }

func (r rules) PolicyOf(zone, api string) (string, bool) {
	if a := r.APIOf(zone, api); a != nil {
		return a.Policy, true
	}
	return "", false
}

// NewClient makes a client; Run it.
func NewClient(cfg ClientConfig) (*Client, error) {
	if cfg.Identity == nil || cfg.Tables == nil || cfg.Grants == nil || cfg.Evidence == nil || cfg.Sentinel == nil || cfg.Logger == nil {
		return nil, errors.New("relay: a client needs Identity, Tables, Grants, Evidence, Sentinel and Logger")
	}
	if cfg.Dial == nil {
		cfg.Dial = dial
	}
	if cfg.DialTimeout <= 0 {
		cfg.DialTimeout = 500 * time.Millisecond
	}
	if cfg.PingWait <= 0 {
		cfg.PingWait = 500 * time.Millisecond
	}
	if cfg.ProofFor <= 0 {
		cfg.ProofFor = 20 * time.Millisecond
	}
	return &Client{cfg: cfg, born: time.Now(), from: cfg.Identity.Name().Region, log: newLedger(cfg.Evidence), sessions: map[sessionKey]*session{}, flights: map[*flight]struct{}{}}, nil
}

// Forward is a request to relay.
type Forward struct {
	API           *policy.API
	Route         *policy.Route
	To            string
	RequestID     string
	Once          bool // must not be sent twice: a sign of life of the peer first
	Method        string
	URL           *url.URL // path and query as received
	Host          string
	Header        http.Header // without credentials, hop-by-hop and internal headers; not written to
	Body          io.Reader   // nil: none
	ContentLength int64       // -1: unknown
	Trailer       http.Header // its keys are announced, its values read when Body has ended; nil: there is none
	Bounded       bool        // Error.LetGo will be asked where it is taken back
	Class         string      // priority class of the plan; "": the usual one
	Stream        string      // what Body and the answer's are in place of an exchange: StreamWebSocket; "": one
}

var errCut = errors.New("the pair is not permitted any more")

// Do relays one request and returns the answer of the other region's upstream. Every error is an *Error. The
// permission is asked for here, of the newest table and grants, whatever the caller found before. Closing the
// body ends the flight.
func (c *Client) Do(ctx context.Context, f Forward) (*http.Response, error) {
	policyName := f.API.Policy
	refuse := func(rule string, err error) (*http.Response, error) {
		c.log.refuse(rule, c.from, f.To, f.RequestID)
		return nil, &Error{Rule: rule, To: f.To, Err: err}
	}
	grant, rule := c.permitted(f.API, f.To)
	if rule != "" {
		return refuse(rule, nil)
	}
	s, err := c.session(ctx, policyName, grant, f.Once)
	if err != nil {
		return nil, &Error{To: f.To, Unreachable: ctx.Err() == nil && !errors.Is(err, errSessionClosed), Err: err}
	}
	if err := c.cfg.Evidence.Relay(f.RequestID, grant.ID, c.from, f.To); err != nil {
		return refuse(RuleEvidence, err)
	}

	ctx, cancel := context.WithCancelCause(ctx)
	fl := &flight{Flight: flightOf(f.API, c.from, f.To), cut: func() { cancel(errCut) }}
	fl.Peer = s.key.node
	end := func() {
		c.mu.Lock()
		delete(c.flights, fl)
		c.mu.Unlock()
		cancel(nil)
	}
	c.mu.Lock()
	ended := c.ended
	if !ended {
		c.flights[fl] = struct{}{}
	}
	c.mu.Unlock()
	if ended {
		cancel(nil)
		return nil, &Error{To: f.To, Err: errSessionClosed}
	}
	// Once more, now that a sweep would find the flight: between the question above and this line the pair
	// may have been closed, a dial and an fsync lie between them.
	recorded := grant.ID
	if grant, rule = c.permitted(f.API, f.To); rule != "" {
		end()
		return refuse(rule, nil)
	}
	checked := c.cfg.Sentinel.Now()
	if grant.ID != recorded { // renewed meanwhile: the record names the grant that the relay carries
		if err := c.cfg.Evidence.Relay(f.RequestID, grant.ID, c.from, f.To); err != nil {
			end()
			return refuse(RuleEvidence, err)
		}
	}

	req := c.request(ctx, f, grant)
	if body, ok := f.Body.(io.ReadCloser); ok && f.Stream != "" {
		// Whoever reads it waits for what is said next, and would not notice that the flight was cut.
		req.Body = body
		context.AfterFunc(ctx, func() { body.Close() })
	} else if f.Body != nil && f.ContentLength != 0 {
		req.Body = plainBody{f.Body}
	} else {
		req.ContentLength = 0
	}
	resp, conn, mute, err := s.send(c.cfg.Sentinel, req, checked)
	if errors.Is(err, errSentinel) {
		end()
		return refuse(RuleSentinel, err)
	}
	if err != nil {
		cause := context.Cause(ctx) // before end, which gives it one
		end()
		e := &Error{To: f.To, Sent: true, Err: err}
		if f.Bounded {
			e.back = &takenBack{conn, f.RequestID, req.Header.Get(HeaderBounded)}
		}
		if errors.Is(cause, errCut) {
			c.log.refuse(RuleCut, c.from, f.To, f.RequestID)
			e.Rule = RuleCut
		} else if cause == nil {
			e.Unreachable = mute
		}
		return nil, e
	}
	if resp.Header.Get(HeaderUnsent) != "" {
		rule := ruleOf(resp.Header.Get(HeaderRefused))
		// A rule that refuses one request refuses the next one of its API too, unless it is about the request's own form.
		down := resp.StatusCode == http.StatusServiceUnavailable && resp.Header.Get(HeaderBlameless) == "" || rule != "" && rule != RuleMalformed
		leaving := resp.Header.Get(HeaderLeaving) != ""
		if leaving {
			s.leave(conn)
		}
		resp.Body.Close()
		end()
		if rule != "" {
			c.log.refuse(rule, c.from, f.To, f.RequestID)
			c.cfg.Logger.Warn("peer refused a relay", "rule", rule, "to", f.To, "grant", grant.ID)
		}
		return nil, &Error{Rule: rule, To: f.To, Down: down && !leaving, Leaving: leaving, Err: errors.New("peer sent it to no upstream")}
	}
	if resp.Header.Get(HeaderServed) == "" { // the peer's own answer: its upstream got the request and gave none
		blameless := resp.Header.Get(HeaderBlameless) != "" || resp.StatusCode < 500
		resp.Body.Close()
		end()
		return nil, &Error{To: f.To, Sent: true, Down: !blameless, Err: errors.New("peer got no answer from its upstream")}
	}
	// A region speaks for itself only: who answered is what its certificate says, not what its header says.
	resp.Header.Set(HeaderServed, f.To)
	// The transport looks at ctx only between two pieces of the request's body: where a client sends nothing just now, whoever
	// waits for the answer would wait on, whatever was cut.
	body := resp.Body
	stop := context.AfterFunc(ctx, func() { body.Close() })
	resp.Body = &flightBody{ReadCloser: body, end: sync.OnceFunc(func() { stop(); end() })}
	return resp, nil
}

// permitted is the sender's half of the decision: the newest table has the API under that policy and the pair,
// and a live grant covers it.
func (c *Client) permitted(api *policy.API, to string) (*grant.Grant, string) {
	now := time.Since(c.born) // the monotonic clock alone costs half of both
	t := c.cfg.Tables.Load()
	return c.answers.leave(t, c.cfg.Grants.Now(), api, c.from, to, c.born, now)
}

// within says whether a region is one of the own zone.
func (c *Client) within(region string) bool {
	return slices.ContainsFunc(c.cfg.Tables.Load().Regions(), func(r table.Region) bool { return r.Name == region })
}

func flightOf(api *policy.API, from, to string) grant.Flight {
	return grant.Flight{Zone: api.Zone, API: api.Name, Policy: api.Policy, From: from, To: to}
}

func (c *Client) request(ctx context.Context, f Forward, grant *grant.Grant) *http.Request {
	header := f.Header.Clone()
	if !c.within(f.To) {
		for _, name := range Identity {
			delete(header, name)
		}
		for _, name := range Trace {
			delete(header, name)
		}
	}
	header.Set(HeaderAPI, f.API.Name)
	if f.Route != nil {
		header.Set(HeaderRoute, f.Route.Name)
	}
	header.Set(HeaderGrant, base64.StdEncoding.EncodeToString(grant.Signed))
	header.Set(HeaderIncarnation, c.cfg.Incarnation)
	header.Set(HeaderRequestID, f.RequestID)
	header.Set(HeaderHome, c.from)
	if f.Class != "" {
		header.Set(HeaderClass, f.Class)
	}
	if f.Stream != "" {
		header.Set(HeaderStream, f.Stream)
	}
	if f.Bounded {
		header.Set(HeaderBounded, newAttempt())
	}
	u := *f.URL
	u.Scheme, u.Host = "https", f.Host
	if _, ok := header["User-Agent"]; !ok {
		header["User-Agent"] = nil // else the library would invent one
	}
	req := &http.Request{Method: f.Method, URL: &u, Host: f.Host, Header: header, ContentLength: f.ContentLength, Trailer: f.Trailer, Proto: "HTTP/2.0", ProtoMajor: 2}
	return req.WithContext(ctx)
}

// plainBody has no effect on Close: the library must not close the client's body.
type plainBody struct{ io.Reader }

func (plainBody) Close() error { return nil }

type flightBody struct {
	io.ReadCloser
	end func()
}

func (b *flightBody) Close() error {
	err := b.ReadCloser.Close()
	b.end()
	return err
}

// Enforce cuts at once what the newest table and the newest live grants do not permit: flights, then sessions.
// A peer that the newest grant does not name has left the registry. When
// it has returned, no byte of such a pair moves. Run calls it; whoever acknowledges a table calls it before.
func (c *Client) Enforce() {
	var cut []*flight
	var gone []*session
	c.mu.Lock()
	// Read behind the lock: what is in the maps was permitted by nothing newer, or a sweep that had read before a pair opened
	// would cut the first relays over it.
	t, held, now := c.cfg.Tables.Load(), c.cfg.Grants.Now(), time.Now()
	peers := map[sessionKey]bool{}
	for _, had := range c.cfg.Grants.Held() {
		for _, policyName := range had.Policies {
			if grant := c.cfg.Grants.Live(t, policyName, had.To); grant != nil && t.Permits(policyName, c.from, had.To) {
				for _, p := range grant.Peers {
					peers[sessionKey{grant.To, p.Edge, p.Addr}] = true
				}
			}
		}
	}
	for f := range c.flights {
		if !held.Keep(f.Flight, rules{t}, now) {
			cut = append(cut, f)
		}
	}
	for key, s := range c.sessions {
		if !peers[key] { // no address and no session without a grant: nothing to get wrong in a retry
			delete(c.sessions, key)
			gone = append(gone, s)
		}
	}
	c.mu.Unlock()
	for _, f := range cut {
		f.cut()
	}
	for _, s := range gone {
		s.close()
		c.cfg.Logger.Info("relay session closed", "to", s.key.to, "peer", s.key.node)
	}
	if len(cut) > 0 {
		c.cfg.Logger.Info("relays cut", "count", len(cut))
	}
	c.answers.drop(t.Mark(), held, now.Sub(c.born))
	c.log.now(outbound(t, c.from))
}

// Retire has nothing more leave: another process takes this one's place, and grants are given to that one. What is under way
// goes on for as long as Grants, and the table, let it.
func (c *Client) Retire() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
}

func (c *Client) retired() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ended
}

// Run keeps sessions to granted peers warm and enforces until ctx ends, then closes all. Nothing is relayed after it: nobody would
// enforce it.
func (c *Client) Run(ctx context.Context) error {
	tick := c.cfg.Beat.Ticker(200 * time.Millisecond) // grants end by time, which tells nobody
	defer tick.Stop()
	defer c.shut()
	for {
		tables, grants := c.cfg.Tables.Changed(), c.cfg.Grants.Changed()
		c.Enforce()
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			tick.Again()
		case <-tables:
		case <-grants:
			if !c.retired() {
				c.warm(ctx)
			}
		}
	}
}

func (c *Client) shut() {
	c.mu.Lock()
	c.ended = true
	sessions := c.sessions
	c.sessions = map[sessionKey]*session{}
	c.mu.Unlock()
	for _, s := range sessions {
		s.close()
	}
}

// warm dials what will be needed when an upstream dies: the first failover should not pay for a handshake.
func (c *Client) warm(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, grant := range c.cfg.Grants.Held() {
		if t := c.cfg.Tables.Load(); len(grant.Policies) > 0 && t.Permits(grant.Policies[0], grant.From, grant.To) {
			wg.Go(func() { c.session(ctx, grant.Policies[0], grant, false) })
		}
	}
}

// CutPairs are the pairs cut since the last call, "from>to".
func (c *Client) CutPairs() []string { return c.log.takeCuts() }

// Refusals is how many there were since the start.
func (c *Client) Refusals() int64 { return c.log.refused.Load() }

// InFlight is how many relays are under way.
func (c *Client) InFlight() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.flights)
}

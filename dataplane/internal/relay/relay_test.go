package relay_test

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	"bailiwick/dataplane/internal/failover"
	"bailiwick/dataplane/internal/policy"
	"bailiwick/dataplane/internal/relay"
	"bailiwick/dataplane/internal/sentinel"
	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"
	"bailiwick/regions/grant"
	"bailiwick/shared/identity"
	"bailiwick/shared/identity/identitytest"
	"bailiwick/shared/revision"
	"bailiwick/shared/table"
)

var (
	emeaKey = ed25519.NewKeyFromSeed(make([]byte, 32))
	usKey   = ed25519.NewKeyFromSeed(append(make([]byte, 31), 1))
)

// view is the table of one region: the pairs it knows, by "from>to", and the edges that may relay to it.
func view(t testing.TB, region string, pairs []string, nodes []table.Node) *policy.Table {
	t.Helper()
	var objects []table.Object
	add := func(kind table.Kind, id string, v any) {
		o, err := table.Encode(kind, id, v)
		if err != nil {
			t.Fatal(err)
		}
		objects = append(objects, o)
	}
	add(table.KindSettings, table.SettingsID, table.Settings{Zone: "emea", Region: region})
	add(table.KindAPI, "orders", table.API{Name: "orders", Zone: "emea", Hosts: []string{"orders.test"}, Policy: "gdpr", Targets: []string{"http://127.0.0.1:9"}})
	add(table.KindZoneKey, "emea", table.ZoneKey{Zone: "emea", PublicKey: emeaKey.Public().(ed25519.PublicKey)})
	for _, p := range pairs {
		from, to, _ := strings.Cut(p, ">")
		add(table.KindPair, table.PairID("gdpr", from, to), table.Pair{Policy: "gdpr", From: from, To: to, FromZone: "emea", ToZone: "emea"})
	}
	for _, n := range nodes {
		add(table.KindNode, n.Name, n)
	}
	c, z := revision.Revision{Epoch: 1, Index: 1}, revision.Revision{Epoch: 1, Index: 1}
	for _, o := range objects {
		if o.Kind.Scope() == table.ScopeZone {
			z.Sum = z.Sum.Add(o.Sum())
		} else {
			c.Sum = c.Sum.Add(o.Sum())
		}
	}
	tab, err := policy.NewTable(objects, c, z)
	if err != nil {
		t.Fatal(err)
	}
	return tab
}

// eventually polls: what is awaited happens on another goroutine or another connection.
func eventually(t testing.TB, within time.Duration, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(within); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %v", what, within)
		}
	}
}

type evidence struct {
	mu   sync.Mutex
	rows []string
	err  error
	turn func() // once, after the first row

	refusals map[[3]string]int // by rule, from, to
	sample   string
}

func (e *evidence) Refuse(rule, from, to, id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.refusals == nil {
		e.refusals = map[[3]string]int{}
	}
	e.refusals[[3]string{rule, from, to}]++
	e.sample = id
}

func (e *evidence) Relay(id, grant, from, to string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.rows = append(e.rows, id+" "+grant+" "+from+">"+to)
	if turn := e.turn; turn != nil {
		e.turn = nil
		turn()
	}
	return e.err
}

// local is the receiving region's upstream.
type local struct {
	mu   sync.Mutex
	seen []relay.Inbound
	body strings.Builder
	says string        // by which rule it refuses, in its own words; "": it serves
	wait chan struct{} // if set: answer the headers, then wait for it or for the end of the request
	mum  bool          // wait before the headers
	late time.Duration // work for so long before the headers
	cut  chan error
}

func (l *local) ServeRelayed(w http.ResponseWriter, r *http.Request, in relay.Inbound) {
	l.mu.Lock()
	l.seen = append(l.seen, in)
	wait, says, mum, late := l.wait, l.says, l.mum, l.late
	l.mu.Unlock()
	if says != "" {
		w.Header().Set(relay.HeaderUnsent, "1")
		w.Header().Set(relay.HeaderRefused, says)
		w.WriteHeader(http.StatusForbidden)
		return
	}
	for name := range r.Header {
		if strings.HasPrefix(name, relay.Prefix) || slices.Contains(relay.Trace[:], name) {
			w.Header().Set(relay.HeaderUnsent, "1") // fails the test: internal headers reached the upstream, or another zone
		}
	}
	data, _ := io.ReadAll(r.Body)
	l.mu.Lock()
	l.body.Write(data)
	l.mu.Unlock()
	if mum {
		<-r.Context().Done()
		l.cut <- context.Cause(r.Context())
		panic(http.ErrAbortHandler)
	}
	select {
	case <-time.After(late):
	case <-r.Context().Done():
		l.cut <- context.Cause(r.Context())
		panic(http.ErrAbortHandler)
	}
	w.Header().Set(relay.HeaderServed, "us-east") // it says so; the client goes by its certificate
	w.WriteHeader(200)
	fmt.Fprintf(w, "%s %s %s", r.Method, r.Host, r.URL)
	if wait != nil {
		http.NewResponseController(w).Flush()
		select {
		case <-wait:
		case <-r.Context().Done():
			l.cut <- context.Cause(r.Context())
			panic(http.ErrAbortHandler)
		}
	}
}

func (l *local) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.seen)
}

// border is eu-west's client and eu-central's server, with a control plane that grants what mint says.
type border struct {
	t                testing.TB
	in               *identitytest.Installation
	west, central    *policy.Holder
	client           *relay.Client
	grants           *failover.Grants
	sentinel         *sentinel.Sentinel
	arrivals         *sentinel.Sentinel // of the receiver
	server           *relay.Server
	there            relay.ServerConfig // the server's
	local            *local
	evidence         *evidence
	refused          *evidence // of the receiver
	addr             string
	mu               sync.Mutex
	mint             func() []*syncv1.SignedGrant
	deny             error
	noLeave          bool
	taking           func() // once, after leave was given
	westEdge, centre *identity.Source
	said             said   // by the sentinel
	end              func() // the client's Run
}

type said struct {
	mu sync.Mutex
	strings.Builder
}

func (s *said) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.Builder.Write(p)
}

func (b *border) RequestGrants(context.Context, *syncv1.RequestGrantsRequest) (*syncv1.RequestGrantsResponse, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.deny != nil {
		return nil, b.deny
	}
	asked, grants := time.Now(), b.mint()
	var signed [][]byte
	for _, g := range grants {
		raw, _ := proto.Marshal(g)
		signed = append(signed, raw)
	}
	b.sentinel.Answered(asked, signed)
	return &syncv1.RequestGrantsResponse{Grants: grants}, nil
}

// Takes is eu-central's leave, which it has as long as the control plane does not deny it.
func (b *border) Takes(*grant.Grant) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	leave := !b.noLeave
	if f := b.taking; f != nil {
		b.taking = nil
		f()
	}
	return leave
}

func (b *border) grant() *syncv1.Grant {
	return &syncv1.Grant{Id: fmt.Sprint("g", time.Now().UnixNano()), Zone: "emea", Edge: "eu-west-edge-1", From: "eu-west", To: "eu-central", Policies: []string{"gdpr"},
		CatalogEpoch: 1, ZoneEpoch: 1, GrantedUnixMs: time.Now().UnixMilli(), TtlMs: 30_000, Peers: []*syncv1.Peer{{Edge: "eu-central-edge-1", RelayAddr: b.addr}}}
}

func sign(t testing.TB, key ed25519.PrivateKey, g *syncv1.Grant) *syncv1.SignedGrant {
	t.Helper()
	payload, err := proto.Marshal(g)
	if err != nil {
		t.Fatal(err)
	}
	return &syncv1.SignedGrant{Payload: payload, Signature: ed25519.Sign(key, append([]byte(failover.SignaturePrefix), payload...))}
}

var westNode = table.Node{Name: "eu-west-edge-1", Zone: "emea", Region: "eu-west"}

func newBorder(t testing.TB) *border {
	t.Helper()
	b := newBorderWith(t, nil, nil)
	b.trueTo(t)
	return b
}

// trueTo has t fail if a sentinel had to stop what the first check let pass.
func (b *border) trueTo(t testing.TB) {
	t.Cleanup(func() {
		if n := b.sentinel.Violations() + b.arrivals.Violations(); n != 0 {
			t.Errorf("the sentinel stopped %d relays that the first check let pass: %s", n, b.said.String())
		}
	})
}

// newBorderWith has sentinels that read truth at the sender and at the receiver; nil: what client and server read.
func newBorderWith(t testing.TB, truth, truthThere *policy.Holder) *border {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return newBorderOver(t, truth, truthThere, l, nil)
}

func newBorderOver(t testing.TB, truth, truthThere *policy.Holder, l net.Listener, dial func(ctx context.Context, network, addr string) (net.Conn, error)) *border {
	t.Helper()
	b := &border{t: t, in: identitytest.New(t, "test.example", "emea", "us"), west: &policy.Holder{}, central: &policy.Holder{},
		local: &local{cut: make(chan error, 16)}, evidence: &evidence{}, refused: &evidence{}}
	b.westEdge = b.in.Source(t, "emea", "eu-west", identity.Edge, "eu-west-edge-1")
	b.centre = b.in.Source(t, "emea", "eu-central", identity.Edge, "eu-central-edge-1")
	b.west.Swap(view(t, "eu-west", []string{"eu-west>eu-central"}, nil))
	b.central.Swap(view(t, "eu-central", []string{"eu-west>eu-central"}, []table.Node{westNode}))
	if truth == nil {
		truth = b.west
	}
	if truthThere == nil {
		truthThere = b.central
	}
	b.addr = l.Addr().String()
	b.mint = func() []*syncv1.SignedGrant { return []*syncv1.SignedGrant{sign(t, emeaKey, b.grant())} }
	log := slog.New(slog.DiscardHandler)
	var err error
	if b.arrivals, err = sentinel.New(sentinel.Config{Tables: truthThere, Zone: "emea", Region: "eu-central", Edge: "eu-central-edge-1", Logger: slog.New(slog.NewTextHandler(&b.said, nil))}); err != nil {
		t.Fatal(err)
	}
	b.there = relay.ServerConfig{Identity: b.centre, Tables: b.central, Leave: b, Local: b.local, Evidence: b.refused, Sentinel: b.arrivals, Logger: log}
	if b.server, err = relay.NewServer(b.there); err != nil {
		t.Fatal(err)
	}
	grants, err := failover.NewGrants(failover.GrantsConfig{Requester: b, Tables: b.west, Self: b.westEdge.Name(), Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	b.grants = grants
	// Its own table where a test misleads the first check, see sentinel_test.go.
	if b.sentinel, err = sentinel.New(sentinel.Config{Tables: truth, Zone: "emea", Region: "eu-west", Edge: "eu-west-edge-1", Logger: slog.New(slog.NewTextHandler(&b.said, nil))}); err != nil {
		t.Fatal(err)
	}
	if b.client, err = relay.NewClient(relay.ClientConfig{Identity: b.westEdge, Tables: b.west, Grants: grants, Evidence: b.evidence, Sentinel: b.sentinel, Logger: log, Dial: dial}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { b.server.Serve(ctx, l) })
	wg.Go(func() { grants.Run(ctx) })
	clients, end := context.WithCancel(ctx)
	var client sync.WaitGroup
	client.Go(func() { b.client.Run(clients) })
	b.end = func() { end(); client.Wait() }
	t.Cleanup(func() { cancel(); wg.Wait(); b.end() })
	eventually(t, 5*time.Second, "first grants", func() bool { return len(grants.Held()) > 0 })
	return b
}

func (b *border) do(ctx context.Context, body io.Reader) (*http.Response, error) {
	length := int64(0)
	if body != nil {
		length = -1
	}
	return b.client.Do(ctx, b.forward(body, length))
}

func (b *border) forward(body io.Reader, length int64) relay.Forward {
	return relay.Forward{API: b.west.Load().API("orders.test"), To: "eu-central", RequestID: "id-1", Method: "POST", Once: true,
		URL: &url.URL{Path: "/v1/x", RawQuery: "a=b"}, Host: "orders.test", Header: http.Header{"X-Mine": {"1"}}, Body: body, ContentLength: length}
}

func rule(err error) string {
	if e, ok := errors.AsType[*relay.Error](err); ok {
		return e.Rule
	}
	return ""
}

func TestRelay_CarriesARequestOverAPermittedPair(t *testing.T) {
	b := newBorder(t)
	for range 3 {
		resp, err := b.do(t.Context(), strings.NewReader("hello"))
		if err != nil {
			t.Fatal(err)
		}
		got, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if string(got) != "POST orders.test /v1/x?a=b" || resp.Header.Get(relay.HeaderServed) != "eu-central" {
			t.Errorf("got %q served by %q", got, resp.Header.Get(relay.HeaderServed))
		}
	}
	if got := b.local.body.String(); got != "hellohellohello" {
		t.Errorf("upstream got %q", got)
	}
	in := b.local.seen[0]
	if in.From != "eu-west" || in.API.Name != "orders" || in.RequestID != "id-1" || in.GrantID == "" {
		t.Errorf("got %+v", in)
	}
	if n := len(b.evidence.rows); n != 3 || !strings.HasSuffix(b.evidence.rows[0], "eu-west>eu-central") {
		t.Errorf("got evidence %v, want a row a relay", b.evidence.rows)
	}
	if b.client.InFlight() != 0 {
		t.Errorf("got %d flights left", b.client.InFlight())
	}
	b.evidence.mu.Lock()
	b.evidence.err = errors.New("disk full")
	b.evidence.mu.Unlock()
	if _, err := b.do(t.Context(), nil); rule(err) != relay.RuleEvidence || b.local.count() != 3 {
		t.Errorf("without evidence: got %v and %d served, want refused", err, b.local.count())
	}
}

// What the receiver refuses although the sender believes to hold a good grant, and what the sender refuses: by its rule, once
// the sweep that the change woke is over. That it is over is known in virtual time alone.
func TestRelay_Refuses(t *testing.T) {
	for _, c := range closings {
		bubble(t, c.name, func(t *testing.T) {
			b := newVirtualBorder(t)
			c.given(b)
			synctest.Wait()
			_, err := b.do(t.Context(), strings.NewReader("secret"))
			if e, ok := errors.AsType[*relay.Error](err); !ok || e.Rule != relay.RulePair || e.Sent {
				t.Fatalf("got %v, want rule %s and nothing sent", err, relay.RulePair)
			}
			if b.local.count() != 0 || b.local.body.Len() != 0 {
				t.Error("an upstream got something")
			}
		})
	}
}

// The sweep of a receiver ends the sessions of a region that may relay nothing any more, also while it refuses a request of
// it. The sender cannot know then what became of that one; what holds at every moment is that no upstream gets any of it.
func TestRelay_ASweepWhileARequestIsRefused(t *testing.T) {
	for _, c := range closings {
		t.Run(c.name, func(t *testing.T) {
			b := newBorder(t)
			for i := range 5 {
				c.given(b)
				_, err := b.do(t.Context(), strings.NewReader("secret"))
				e, ok := errors.AsType[*relay.Error](err)
				if !ok || e.Rule != "" && (e.Rule != relay.RulePair || e.Sent) {
					t.Fatalf("request %d: got %v, want rule %s and nothing sent, or a session that ended", i, err, relay.RulePair)
				}
			}
			if b.local.count() != 0 || b.local.body.Len() != 0 {
				t.Error("an upstream got something")
			}
		})
	}
}

// closings are what may close the pair, at either end.
var closings = []struct {
	name  string
	given func(b *border)
}{
	{"sender's table has no pair", func(b *border) { b.west.Swap(view(b.t, "eu-west", nil, nil)) }},
	{"receiver's table has no pair", func(b *border) {
		b.central.Swap(view(b.t, "eu-central", []string{"eu-north>eu-central"}, []table.Node{westNode}))
	}},
	{"receiver permits the other direction only", func(b *border) {
		b.central.Swap(view(b.t, "eu-central", []string{"eu-central>eu-west"}, []table.Node{westNode}))
	}},
}

// raw speaks to the relay port as a given node would, with headers of its choice.
func (b *border) raw(t *testing.T, who *identity.Source, header http.Header) (*http.Response, error) {
	t.Helper()
	var p http.Protocols
	p.SetHTTP2(true)
	tr := &http.Transport{Protocols: &p, TLSClientConfig: who.ClientTLS([]string{"h2"}, nil)}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequest("POST", "https://"+b.addr+"/v1/x", strings.NewReader("secret"))
	if err != nil {
		t.Fatal(err)
	}
	req.Host = "orders.test"
	req.Header = header
	return tr.RoundTrip(req)
}

func TestServer_RefusesAtItsEnd(t *testing.T) {
	b := newBorder(t)
	nodes := []table.Node{westNode, {Name: "eu-north-edge-1", Zone: "emea", Region: "eu-north"}, {Name: "us-edge-1", Zone: "us", Region: "us-east"}}
	b.central.Swap(view(t, "eu-central", []string{"eu-west>eu-central", "eu-north>eu-central"}, nodes))
	north := b.in.Source(t, "emea", "eu-north", identity.Edge, "eu-north-edge-1")
	us := b.in.Source(t, "us", "us-east", identity.Edge, "us-edge-1")
	moved := b.in.Source(t, "emea", "eu-south", identity.Edge, "eu-west-edge-1") // a registered name in another region
	stranger := b.in.Source(t, "emea", "eu-west", identity.Edge, "eu-west-edge-9")
	control := b.in.Source(t, "emea", "eu-west", identity.Control, "eu-west-edge-1")

	headers := func(home string, g *syncv1.SignedGrant) http.Header {
		data, err := proto.Marshal(g)
		if err != nil {
			t.Fatal(err)
		}
		return http.Header{relay.HeaderAPI: {"orders"}, relay.HeaderHome: {home}, relay.HeaderGrant: {b64(data)}, relay.HeaderRequestID: {"id"}}
	}
	with := func(f func(g *syncv1.Grant)) *syncv1.SignedGrant {
		g := b.grant()
		f(g)
		return sign(t, emeaKey, g)
	}
	good := with(func(*syncv1.Grant) {})
	for _, c := range []struct {
		name   string
		who    *identity.Source
		header http.Header
		rule   string // "handshake": not even HTTP
	}{
		{"the control: a good one", b.westEdge, headers("eu-west", good), ""},
		{"no grant", b.westEdge, http.Header{relay.HeaderAPI: {"orders"}, relay.HeaderHome: {"eu-west"}}, grant.Malformed},
		{"noise for a grant", b.westEdge, http.Header{relay.HeaderHome: {"eu-west"}, relay.HeaderGrant: {"AAAA"}}, grant.Malformed},
		{"forged signature", b.westEdge, headers("eu-west", sign(t, usKey, b.grant())), grant.Signature},
		{"zone whose key is not here", b.westEdge, headers("eu-west", with(func(g *syncv1.Grant) { g.Zone = "us" })), grant.Zone},
		{"grant of another edge", b.westEdge, headers("eu-west", with(func(g *syncv1.Grant) { g.Edge = "eu-north-edge-1" })), grant.Edge},
		{"shown by another edge", north, headers("eu-north", good), grant.Edge},
		{"grant from another region", b.westEdge, headers("eu-west", with(func(g *syncv1.Grant) { g.From = "eu-north" })), grant.From},
		{"grant to another region", b.westEdge, headers("eu-west", with(func(g *syncv1.Grant) { g.To = "eu-south" })), grant.To},
		{"grant for another policy", b.westEdge, headers("eu-west", with(func(g *syncv1.Grant) { g.Policies = []string{"open"} })), grant.Policy},
		{"grant of an old epoch", b.westEdge, headers("eu-west", with(func(g *syncv1.Grant) { g.ZoneEpoch = 0 })), grant.Epoch},
		{"zone's grant shown by a foreign edge", us, headers("us-east", with(func(g *syncv1.Grant) { g.Edge, g.From = "us-edge-1", "us-east" })), grant.Zone},
		{"second hop", b.westEdge, headers("eu-north", good), relay.RuleHop},
		{"no home", b.westEdge, headers("", good), relay.RuleHop},
		{"unknown API", b.westEdge, func() http.Header { h := headers("eu-west", good); h.Set(relay.HeaderAPI, "x"); return h }(), relay.RuleAPI},
		{"bytes to what is HTTP", b.westEdge, func() http.Header {
			h := headers("eu-west", good)
			h.Set(relay.HeaderStream, relay.StreamTCP)
			return h
		}(), relay.RuleAPI},
		{"a WebSocket where none is opened", b.westEdge, func() http.Header {
			h := headers("eu-west", good)
			h.Set(relay.HeaderStream, relay.StreamWebSocket)
			return h
		}(), relay.RuleAPI},
		{"a stream of another kind", b.westEdge, func() http.Header { h := headers("eu-west", good); h.Set(relay.HeaderStream, "x"); return h }(), relay.RuleMalformed},
		{"right name, wrong region", moved, headers("eu-south", good), "handshake"},
		{"not in the registry", stranger, headers("eu-west", good), "handshake"},
		{"a control node", control, headers("eu-west", good), "handshake"},
	} {
		before := b.local.count()
		resp, err := b.raw(t, c.who, c.header)
		switch {
		case c.rule == "handshake":
			if err == nil {
				t.Errorf("%s: got %d, want the handshake refused", c.name, resp.StatusCode)
			}
		case err != nil:
			t.Errorf("%s: got %v", c.name, err)
		case c.rule == "":
			if resp.StatusCode != 200 || b.local.count() != before+1 {
				t.Errorf("%s: got %d by rule %q, want 200", c.name, resp.StatusCode, resp.Header.Get(relay.HeaderRefused))
			}
			before++
		default:
			body, _ := io.ReadAll(resp.Body)
			if resp.StatusCode != 403 || resp.Header.Get(relay.HeaderRefused) != c.rule || resp.Header.Get(relay.HeaderUnsent) == "" || !strings.Contains(string(body), `"residency"`) {
				t.Errorf("%s: got %d by rule %q: %s; want 403 by %s", c.name, resp.StatusCode, resp.Header.Get(relay.HeaderRefused), body, c.rule)
			}
		}
		if resp != nil {
			resp.Body.Close()
		}
		if b.local.count() != before {
			t.Errorf("%s: an upstream got the request", c.name)
		}
	}
	if got := b.refused.refusals[[3]string{relay.RuleHop, "eu-west", "eu-central"}]; got != 2 || b.server.Refusals() < 2 {
		t.Errorf("got %d second hops counted of %d refusals, want 2", got, b.server.Refusals())
	}
	if strings.Contains(b.local.body.String(), "secretsecret") {
		t.Error("a refused body was read")
	}
}

func TestServer_RefusesAGrantThatIsOver(t *testing.T) {
	b := newBorder(t)
	shown := func(id string, at, ttl int64) string {
		g := b.grant()
		g.Id, g.ZoneIndex, g.TtlMs = id, uint64(at), ttl
		data, _ := proto.Marshal(sign(t, emeaKey, g))
		resp, err := b.raw(t, b.westEdge, http.Header{relay.HeaderAPI: {"orders"}, relay.HeaderHome: {"eu-west"}, relay.HeaderGrant: {b64(data)}})
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		return resp.Header.Get(relay.HeaderRefused)
	}
	if got := shown("a", 1000, 50); got != "" {
		t.Fatalf("a new grant: got refused by %s", got)
	}
	eventually(t, 5*time.Second, "the grant's end", func() bool { return shown("a", 1000, 50) == grant.Expired })
	if got := shown("b", 2000, 60_000); got != "" {
		t.Errorf("the next grant: got refused by %s", got)
	}
	for i := range 100 { // enough to push everything out of a bounded memory
		shown(fmt.Sprint("c", i), 3000+int64(i), 1)
	}
	if got := shown("a", 1000, 50); got != grant.Expired {
		t.Errorf("the first, long forgotten: got %q, want %s", got, grant.Expired)
	}
}

func TestRelay_CutsWithinASecond(t *testing.T) {
	for _, c := range []struct {
		name  string
		close func(b *border)
	}{
		{"sender's table", func(b *border) { b.west.Swap(view(b.t, "eu-west", nil, nil)) }},
		{"receiver's table", func(b *border) { b.central.Swap(view(b.t, "eu-central", nil, []table.Node{westNode})) }},
		{"edge removed from the receiver's registry", func(b *border) {
			b.central.Swap(view(b.t, "eu-central", []string{"eu-west>eu-central"}, nil))
		}},
		{"the receiver's leave to take relays ended", func(b *border) {
			b.mu.Lock()
			b.noLeave = true
			b.mu.Unlock()
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBorder(t)
			b.local.mu.Lock()
			b.local.wait = make(chan struct{})
			b.local.mu.Unlock()
			pr, pw := io.Pipe()
			pw.Close()
			resp, err := b.do(t.Context(), pr)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			began := time.Now()
			c.close(b)
			broken := make(chan error, 1)
			go func() { _, err := io.ReadAll(resp.Body); broken <- err }()
			for _, end := range []chan error{broken, b.local.cut} {
				select {
				case err := <-end:
					if err == nil {
						t.Error("the answer ended cleanly, want it broken off")
					}
				case <-time.After(30 * time.Second): // it would flow for as long as the service speaks
					t.Fatal("still flowing after 30 s")
				}
			}
			t.Logf("cut after %v", time.Since(began))
			if strings.HasSuffix(c.name, "'s table") {
				eventually(t, 30*time.Second, "the cut in the status", func() bool {
					return slices.Contains(append(b.client.CutPairs(), b.server.CutPairs()...), "eu-west>eu-central")
				})
			}
			if _, err := b.do(t.Context(), nil); err == nil {
				t.Error("the next relay went through")
			}
		})
	}
}

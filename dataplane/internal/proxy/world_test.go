package proxy_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"bailiwick/dataplane/internal/failover"
	"bailiwick/dataplane/internal/gate"
	"bailiwick/dataplane/internal/limit"
	"bailiwick/dataplane/internal/policy"
	"bailiwick/dataplane/internal/proxy"
	"bailiwick/dataplane/internal/relay"
	"bailiwick/dataplane/internal/sentinel"
	reach "bailiwick/dataplane/internal/upstream"
	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"
	"bailiwick/shared/apikey"
	"bailiwick/shared/identity"
	"bailiwick/shared/identity/identitytest"
	"bailiwick/shared/lifecycle/porttest"
	"bailiwick/shared/revision"
	"bailiwick/shared/table"
	"bailiwick/shared/usage"
)

var (
	pepper  = make([]byte, apikey.PepperLen)
	zoneKey = ed25519.NewKeyFromSeed(make([]byte, 32))
)

// upstream is a service that can be paused (it accepts and never answers), killed, and told what to answer.
type upstream struct {
	region string
	addr   string
	server *http.Server

	mu      sync.Mutex
	paused  chan struct{} // not nil: wait for it
	status  int
	bodies  map[string]int // by body text: how often it came whole
	headers http.Header    // of the last request
	uri     string
	handle  http.HandlerFunc // instead of the usual answer
	state   func(net.Conn, http.ConnState)
	reads   bool // handle reads the body itself
	count   atomic.Int64
	probes  atomic.Int64
}

// patience takes the place of the 50 ms for which a request waits for a sign of life: everything here shares one
// processor with other tests, where a healthy peer may be silent for longer.
const patience = time.Second

func newUpstream(t testing.TB, region string) *upstream {
	u := &upstream{region: region, bodies: map[string]int{}}
	u.start(t, porttest.Addr(t)) // of its own, since it may be killed and come back
	t.Cleanup(func() { u.resume(); u.server.Close() })
	return u
}

func (u *upstream) start(t testing.TB, addr string) {
	t.Helper()
	var l net.Listener
	var err error
	for range 100 { // the old socket may linger
		if l, err = net.Listen("tcp", addr); err == nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err != nil {
		t.Fatal(err)
	}
	u.addr = l.Addr().String()
	u.server = &http.Server{Handler: u, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0), ConnState: func(c net.Conn, s http.ConnState) {
		u.mu.Lock()
		hear := u.state
		u.mu.Unlock()
		if hear != nil {
			hear(c, s)
		}
	}}
	go u.server.Serve(l)
}

func (u *upstream) kill() { u.server.Close() }

func (u *upstream) pause() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.paused = make(chan struct{})
}

func (u *upstream) resume() {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.paused != nil {
		close(u.paused)
		u.paused = nil
	}
}

func (u *upstream) answer(status int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.status = status
}

// does sets what answers from now on.
func (u *upstream) does(h http.HandlerFunc) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.handle = h
}

// last is what came last.
func (u *upstream) last() (http.Header, string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.headers, u.uri
}

func (u *upstream) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	wait := func() bool {
		u.mu.Lock()
		p := u.paused
		u.mu.Unlock()
		if p != nil {
			select {
			case <-p:
			case <-r.Context().Done():
			}
			return true
		}
		return false
	}
	u.mu.Lock()
	status, handle := u.status, u.handle
	u.mu.Unlock()
	if strings.HasPrefix(r.UserAgent(), "bailiwick-probe") {
		u.probes.Add(1)
		wait()
		if status == 0 {
			status = 200
		}
		w.WriteHeader(status)
		return
	}
	if u.reads {
		u.count.Add(1)
		handle(w, r)
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // half a request is none
	}
	u.mu.Lock()
	if len(body) > 0 {
		u.bodies[string(body)]++
	}
	u.headers, u.uri = r.Header.Clone(), r.RequestURI
	u.mu.Unlock()
	if wait() {
		return
	}
	u.count.Add(1)
	if handle != nil {
		handle(w, r)
		return
	}
	if status == 0 {
		status = 200
	}
	w.Header().Set("Content-Type", "text/plain")
	w.Header().Set(relay.HeaderServed, "forged")
	w.WriteHeader(status)
	fmt.Fprint(w, u.region, " ", r.Method, " ", r.URL.Path)
}

// meter keeps rows in memory.
type meter struct {
	mu      sync.Mutex
	rows    []usage.Row
	err     error
	healthy error
	panics  atomic.Bool                   // once, while a request is decided
	stalls  atomic.Pointer[chan struct{}] // it is not ready, and the next row waits for its end
	after   atomic.Pointer[func()]        // is called behind each row; nil: nothing is
}

func (m *meter) Append(r *usage.Row) error {
	if until := m.stalls.Swap(nil); until != nil {
		<-*until
	}
	err := m.keep(r)
	if do := m.after.Load(); do != nil {
		(*do)()
	}
	return err
}

func (m *meter) keep(r *usage.Row) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		return m.err
	}
	if err := r.Check(); err != nil {
		return err
	}
	m.rows = append(m.rows, *r)
	return nil
}

func (m *meter) Ready() bool { return m.stalls.Load() == nil }

func (m *meter) Healthy() error {
	if m.panics.CompareAndSwap(true, false) {
		panic("for a test")
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.healthy
}

// finals counts final rows by outcome, and says whether an id came twice.
func (m *meter) finals(t testing.TB) map[usage.Outcome]int {
	m.mu.Lock()
	defer m.mu.Unlock()
	ids, out := map[[16]byte]bool{}, map[usage.Outcome]int{}
	for _, r := range m.rows {
		if r.Requests == 0 {
			continue
		}
		if ids[r.RequestID] {
			t.Errorf("request %x has two final rows", r.RequestID)
		}
		ids[r.RequestID] = true
		out[r.Outcome]++
	}
	return out
}

// since are the rows from the n-th on.
func (m *meter) since(n int) []usage.Row {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]usage.Row(nil), m.rows[n:]...)
}

func (m *meter) len() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.rows)
}

func (m *meter) last() usage.Row {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.rows) == 0 {
		return usage.Row{}
	}
	return m.rows[len(m.rows)-1]
}

type evidence struct{ n atomic.Int64 }

func (e *evidence) Relay(id, grant, from, to string) error { e.n.Add(1); return nil }
func (e *evidence) Refuse(rule, from, to, id string)       {}

// region is one edge with its upstream.
type region struct {
	name     string
	up       *upstream
	tables   *policy.Holder
	proxy    *proxy.Proxy
	client   *relay.Client
	inbound  *relay.Server
	succeed  func() // has another process take the place of the one that takes relays here, once that is drained
	meter    *meter
	evidence *evidence
	server   *front
	addr     string
	opening  atomic.Pointer[func()] // is called for each connection to its upstream; nil: nothing is
	plan     func(*table.Plan)
	orders   func(*table.API) // what is said of the API here besides the usual
}

// world is two regions that may relay to each other, and a key.
type world struct {
	t             testing.TB
	west, central *region
	key           string
	free          string
	objects       []table.Object
}

// leader grants one pair to one edge.
type leader struct {
	edge     string
	from, to string
	addr     func() string
	n        atomic.Int64
	sentinel *sentinel.Sentinel
}

func (l *leader) RequestGrants(ctx context.Context, r *syncv1.RequestGrantsRequest) (*syncv1.RequestGrantsResponse, error) {
	g := &syncv1.Grant{Id: fmt.Sprint("g", l.n.Add(1)), Zone: "emea", Edge: l.edge, From: l.from, To: l.to, Policies: []string{"gdpr"}, CatalogEpoch: 1, ZoneEpoch: 1,
		GrantedUnixMs: time.Now().UnixMilli(), TtlMs: 30_000, Peers: []*syncv1.Peer{{Edge: l.to + "-edge-1", RelayAddr: l.addr()}}}
	payload, err := proto.Marshal(g)
	if err != nil {
		return nil, err
	}
	signed := &syncv1.SignedGrant{Payload: payload, Signature: ed25519.Sign(zoneKey, append([]byte(failover.SignaturePrefix), payload...))}
	raw, err := proto.Marshal(signed)
	if err != nil {
		return nil, err
	}
	l.sentinel.Answered(time.Now(), [][]byte{raw})
	return &syncv1.RequestGrantsResponse{Grants: []*syncv1.SignedGrant{signed}, TakesMs: 30_000}, nil
}

func mint(t testing.TB, plan string) (string, table.Object) {
	id, text, err := apikey.Mint("emea", rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	d := apikey.Sum(pepper, text.Reveal())
	o, err := table.Encode(table.KindKey, id, table.Key{ID: id, DigestHex: hex.EncodeToString(d[:]), Customer: "acme", Subscription: "main", Plan: plan})
	if err != nil {
		t.Fatal(err)
	}
	return text.Reveal(), o
}

// view is a region's table.
func (w *world) view(r *region, paired bool) *policy.Table {
	objects := append([]table.Object(nil), w.objects...)
	add := func(kind table.Kind, id string, v any) {
		o, err := table.Encode(kind, id, v)
		if err != nil {
			w.t.Fatal(err)
		}
		objects = append(objects, o)
	}
	add(table.KindSettings, table.SettingsID, table.Settings{Zone: "emea", Region: r.name})
	orders := table.API{Name: "orders", Zone: "emea", Hosts: []string{"orders.test", "orders2.test"}, Policy: "gdpr", Targets: []string{"http://" + r.up.addr},
		Regions: []string{"eu-west", "eu-central"}, Routes: []table.Route{{Name: "all"}, {Name: "small", PathPrefix: "/small", MaxRequestBytes: 10}, {Name: "quick", PathPrefix: "/quick", Timeout: 300 * time.Millisecond},
			{Name: "scoped", PathPrefix: "/scoped", Scope: "orders:read"}, {Name: "short", PathPrefix: "/short", MaxResponseBytes: 100}, {Name: "brief", PathPrefix: "/brief", Deadline: 300 * time.Millisecond},
			{Name: "priced", PathPrefix: "/priced", Units: &table.Units{Header: "X-Units", Most: 50}}, {Name: "weighed", PathPrefix: "/weighed", Units: &table.Units{PerBytes: 100, Most: 5}},
			{Name: "gratis", PathPrefix: "/gratis", Free: true}}}
	if r.orders != nil {
		r.orders(&orders)
	}
	add(table.KindAPI, "orders", orders)
	add(table.KindAPI, "tight", table.API{Name: "tight", Zone: "emea", Hosts: []string{"tight.test"}, Targets: []string{"http://" + r.up.addr}, Concurrency: &table.Concurrency{Min: 4, Max: 4}})
	add(table.KindAPI, "callers", table.API{Name: "callers", Zone: "emea", Hosts: []string{"callers.test"}, Policy: "gdpr", Targets: []string{"http://" + r.up.addr}, Regions: []string{"eu-west", "eu-central"},
		Routes: []table.Route{{Name: "all"}, {Name: "scoped", PathPrefix: "/scoped", Scope: "orders:read"}},
		Auth:   &table.Auth{KeyHeader: "X-Partner-Key", KeyQuery: "partner_key", Certificates: true, Issuers: []table.Issuer{{Issuer: "https://id.test"}}}})
	add(table.KindAPI, "silent", table.API{Name: "silent", Zone: "emea", Hosts: []string{"silent.test"}, Targets: []string{"http://" + r.up.addr}, Auth: &table.Auth{Anonymous: true}})
	add(table.KindPlan, "callers", table.Plan{Name: "callers", APIs: map[string]string{"callers": "core", "silent": "core"}})
	for _, n := range []string{"eu-west", "eu-central"} {
		add(table.KindRegion, n, table.Region{Name: n, Zone: "emea"})
	}
	add(table.KindPlan, "free-class", table.Plan{Name: "free-class", APIs: map[string]string{"orders": "core", "tight": "core"}, Class: "free"})
	add(table.KindPlan, "platinum-class", table.Plan{Name: "platinum-class", APIs: map[string]string{"orders": "core", "tight": "core"}, Class: "platinum"})
	add(table.KindPlan, "priced", table.Plan{Name: "priced", APIs: map[string]string{"orders": "core"}, QuotaMode: "strict"})
	add(table.KindAPI, "reports", table.API{Name: "reports", Zone: "emea", Hosts: []string{"reports.test"}, Targets: []string{"http://" + r.up.addr}})
	gold := table.Plan{Name: "gold", Rev: 7, APIs: map[string]string{"orders": "core"}}
	if r.plan != nil {
		r.plan(&gold)
	}
	add(table.KindPlan, "gold", gold)
	add(table.KindPlan, "free", table.Plan{Name: "free", Rev: 3, APIs: map[string]string{"orders": "core"}, RequestsPerSecond: 5, Burst: 5})
	add(table.KindPlan, "narrow", table.Plan{Name: "narrow", Rev: 4, APIs: map[string]string{"orders": "core"}, Windows: []table.Window{{Requests: 4, Per: time.Hour}}, MaxConcurrent: 1})
	add(table.KindZoneKey, "emea", table.ZoneKey{Zone: "emea", PublicKey: zoneKey.Public().(ed25519.PublicKey)})
	add(table.KindDirectory, table.DirectoryID("us", "orders"), table.Directory{API: "orders", Zone: "us", Hosts: []string{"orders.us.test"}})
	if paired {
		for _, p := range [][2]string{{"eu-west", "eu-central"}, {"eu-central", "eu-west"}} {
			add(table.KindPair, table.PairID("gdpr", p[0], p[1]), table.Pair{Policy: "gdpr", From: p[0], To: p[1], FromZone: "emea", ToZone: "emea"})
		}
	}
	for _, n := range []string{"eu-west", "eu-central"} {
		if n != r.name {
			add(table.KindNode, n+"-edge-1", table.Node{Name: n + "-edge-1", Zone: "emea", Region: n})
		}
	}
	c, z := revision.Revision{Epoch: 1, Index: 1}, revision.Revision{Epoch: 1, Index: 1}
	for _, o := range objects {
		if o.Kind.Scope() == table.ScopeZone {
			z.Sum = z.Sum.Add(o.Sum())
		} else {
			c.Sum = c.Sum.Add(o.Sum())
		}
	}
	t, err := policy.NewTable(objects, c, z)
	if err != nil {
		w.t.Fatal(err)
	}
	return t
}

func newWorld(t testing.TB, mod func(*proxy.Config)) *world {
	t.Helper()
	w := &world{t: t}
	var o table.Object
	w.key, o = mint(t, "gold")
	w.objects = append(w.objects, o)
	w.free, o = mint(t, "free")
	w.objects = append(w.objects, o)
	in := identitytest.New(t, "test.example", "emea")
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	t.Cleanup(func() { cancel(); wg.Wait() })
	make := func(name, other string) (*region, *leader, func(l *leader)) {
		r := &region{name: name, up: newUpstream(t, name), tables: &policy.Holder{}, meter: &meter{}, evidence: &evidence{}}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		r.addr = l.Addr().String()
		r.tables.Swap(w.view(r, true))
		log := slog.New(slog.DiscardHandler)
		source := in.Source(t, "emea", name, identity.Edge, name+"-edge-1")
		guard, err := sentinel.New(sentinel.Config{Tables: r.tables, Zone: "emea", Region: name, Edge: name + "-edge-1", Logger: log})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if n := guard.Violations(); n != 0 {
				t.Errorf("%s: the sentinel stopped %d times what the first check let pass", name, n)
			}
		})
		ups := proxy.NewUpstreams(proxy.UpstreamConfig{Dialer: reach.NewDialer(reach.Config{Allow: reach.Loopback(), AllowForeign: reach.Loopback(), Permit: func(addr string) error {
			if do := r.opening.Load(); do != nil {
				(*do)()
			}
			return guard.Upstream(addr)
		}})})
		mon, err := failover.New(failover.Config{Tables: r.tables, Prober: ups, Logger: log, LivenessWait: patience, ProbeTimeout: 2 * patience})
		if err != nil {
			t.Fatal(err)
		}
		lead := &leader{edge: name + "-edge-1", from: name, to: other, sentinel: guard}
		return r, lead, func(lead *leader) {
			grants, err := failover.NewGrants(failover.GrantsConfig{Requester: lead, Tables: r.tables, Self: source.Name(), Logger: log})
			if err != nil {
				t.Fatal(err)
			}
			r.client, err = relay.NewClient(relay.ClientConfig{Identity: source, Tables: r.tables, Grants: grants, Evidence: r.evidence, Sentinel: guard, Logger: log, PingWait: patience, DialTimeout: 2 * patience})
			if err != nil {
				t.Fatal(err)
			}
			cfg := proxy.Config{Region: name, Tables: r.tables, Gate: &gate.Gate{Hasher: apikey.NewHasher(pepper), Limits: limit.NewMap()}, Monitor: mon,
				Grants: grants, Relay: r.client, Upstreams: ups, Meter: r.meter, Logger: log}
			if mod != nil {
				mod(&cfg)
			}
			if r.proxy, err = proxy.New(cfg); err != nil {
				t.Fatal(err)
			}
			inbound := relay.ServerConfig{Identity: source, Tables: r.tables, Leave: grants, Local: r.proxy, Evidence: r.evidence, Sentinel: guard, Logger: log}
			if r.inbound, err = relay.NewServer(inbound); err != nil {
				t.Fatal(err)
			}
			r.succeed = func() {
				srv, err := relay.NewServer(inbound)
				if err != nil {
					t.Fatal(err)
				}
				l, err := net.Listen("tcp", r.addr)
				if err != nil {
					t.Fatal(err)
				}
				wg.Go(func() { srv.Serve(ctx, l) })
			}
			wg.Go(func() { mon.Run(ctx) })
			wg.Go(func() { grants.Run(ctx) })
			wg.Go(func() { r.client.Run(ctx) })
			wg.Go(func() { r.inbound.Serve(ctx, l) })
			r.server = newFront(t, r.proxy)
			t.Cleanup(r.server.Close)
			t.Cleanup(ups.CloseIdle)
			eventually(t, 5*time.Second, "a grant", func() bool { return len(grants.Held()) > 0 })
		}
	}
	west, lw, startWest := make("eu-west", "eu-central")
	central, lc, startCentral := make("eu-central", "eu-west")
	lw.addr, lc.addr = func() string { return central.addr }, func() string { return west.addr }
	w.west, w.central = west, central
	startWest(lw)
	startCentral(lc)
	return w
}

// front is the cleartext door of an edge, and a client of it.
type front struct {
	URL      string
	Listener net.Listener
	door     *proxy.Door
	client   *http.Client
	ended    chan error
}

func newFront(t testing.TB, p *proxy.Proxy) *front { return newFrontOf(t, p, func(*proxy.Door) {}) }

func newFrontOf(t testing.TB, p *proxy.Proxy, set func(*proxy.Door)) *front {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &front{URL: "http://" + l.Addr().String(), Listener: l, client: &http.Client{Transport: &http.Transport{ExpectContinueTimeout: time.Minute}}, ended: make(chan error, 1),
		door: proxy.NewServers(proxy.ServersConfig{Handler: p, TLS: &tls.Config{}, Logger: slog.New(slog.DiscardHandler)}).HTTP}
	f.door.UseLoops(64) // all, so that they meet
	set(f.door)
	go func() { f.ended <- f.door.Serve(l) }()
	return f
}

func (f *front) Client() *http.Client { return f.client }

func (f *front) Close() {
	f.client.CloseIdleConnections()
	f.door.Close()
	<-f.ended
}

func eventually(t testing.TB, within time.Duration, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(within); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %v", what, within)
		}
	}
}

// answer is what a client saw.
type answer struct {
	status int
	served string
	header http.Header
	body   string
	err    error
	took   time.Duration
}

func (w *world) send(method, path, body string, header ...string) answer {
	began := time.Now()
	var rd io.Reader
	if body != "" {
		rd = strings.NewReader(body)
	}
	req, err := http.NewRequest(method, w.west.server.URL+path, rd)
	if err != nil {
		w.t.Fatal(err)
	}
	req.Host = "orders.test"
	req.Header.Set("X-Api-Key", w.key)
	for i := 0; i+1 < len(header); i += 2 {
		switch {
		case header[i] == "Host":
			req.Host = header[i+1]
		case header[i+1] == "":
			req.Header.Del(header[i])
		default:
			req.Header[header[i]] = append(req.Header[header[i]], header[i+1])
		}
	}
	resp, err := w.west.server.Client().Do(req)
	if err != nil {
		return answer{err: err, took: time.Since(began)}
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header.Get("Bailiwick-Served"), resp.Header, string(data), err, time.Since(began)}
}

package borderfuzz

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"bailiwick/dataplane/internal/failover"
	"bailiwick/dataplane/internal/gate"
	"bailiwick/dataplane/internal/limit"
	"bailiwick/dataplane/internal/policy"
	"bailiwick/dataplane/internal/proxy"
	"bailiwick/dataplane/internal/relay"
	"bailiwick/dataplane/internal/sentinel"
	reach "bailiwick/dataplane/internal/upstream"
	"bailiwick/regions"
	"bailiwick/shared/apikey"
	"bailiwick/shared/identity"
	"bailiwick/shared/identity/identitytest"
	"bailiwick/shared/revision"
	"bailiwick/shared/table"
	"bailiwick/shared/usage"
)

// edge is a data plane put together as package dataplane does, less the disk.
type edge struct {
	place
	name   string
	world  *world
	leader *leader
	source *identity.Source

	tables    *policy.Holder
	sentinel  *sentinel.Sentinel
	grants    *failover.Grants
	client    *relay.Client
	server    *relay.Server
	proxy     *proxy.Proxy
	doors     pipes
	relayAddr string
	keys      []string // of its zone
	has       uint64   // index of the rules it holds; the driver's alone
}

// meter takes every row that is one, and reads what is in it: usage leaves for the control plane.
type meter struct {
	rows  atomic.Int64
	judge *judge
}

func (m *meter) Append(r *usage.Row) error {
	m.rows.Add(r.Requests)
	m.judge.search("a row of usage", strings.Join([]string{r.Customer, r.Subscription, r.Plan, r.Product, r.API, r.Route, r.ServedRegion, r.KeyID, string(r.RequestID[:])}, " "))
	return r.Check()
}
func (m *meter) Ready() bool    { return true }
func (m *meter) Healthy() error { return nil }

// zone is what the edges of one zone share.
type zone struct {
	pepper  []byte
	signing ed25519.PrivateKey
	keys    []string
	objects []table.Object // of the keys
}

func newZone(t testing.TB, name string) *zone {
	z := &zone{pepper: make([]byte, apikey.PepperLen)}
	rand.Read(z.pepper)
	_, z.signing, _ = ed25519.GenerateKey(nil)
	for range 4 {
		id, text, err := apikey.Mint(name, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		d := apikey.Sum(z.pepper, text.Reveal())
		o, err := table.Encode(table.KindKey, id, table.Key{ID: id, DigestHex: hex.EncodeToString(d[:]), Customer: "acme", Subscription: "main", Plan: "gold"})
		if err != nil {
			t.Fatal(err)
		}
		z.keys, z.objects = append(z.keys, text.Reveal()), append(z.objects, o)
	}
	return z
}

func (w *world) newEdge(t testing.TB, in *identitytest.Installation, p place) (*edge, net.Listener) {
	z := w.zones[p.zone]
	e := &edge{place: p, name: p.region + "-edge-1", world: w, tables: &policy.Holder{}, keys: z.keys, doors: pipes{conns: make(chan net.Conn), done: make(chan struct{})}}
	e.leader = &leader{edge: e, key: z.signing, book: map[string]given{}, ends: map[string]time.Time{}}
	e.source = in.Source(t, p.zone, p.region, identity.Edge, e.name)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	e.relayAddr = l.Addr().String()
	return e, l
}

// patience takes the place of the 50 ms for which a request waits for a sign of life: everything here shares one
// processor, where a healthy peer may be silent for longer.
const patience = time.Second

// run starts the edge, which has a table by now.
func (e *edge) run(ctx context.Context, t testing.TB, wg *sync.WaitGroup, l net.Listener) {
	log := slog.New(slog.NewTextHandler(leaks{e.world.judge}, &slog.HandlerOptions{Level: slog.LevelDebug}))
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	var err error
	e.sentinel, err = sentinel.New(sentinel.Config{Tables: e.tables, Zone: e.zone, Region: e.region, Edge: e.name, Logger: slog.New(slog.NewTextHandler(e.world, nil))})
	must(err)
	ups := proxy.NewUpstreams(proxy.UpstreamConfig{Dialer: reach.NewDialer(reach.Config{Allow: reach.Loopback(), AllowForeign: reach.Loopback(), Permit: e.sentinel.Upstream})})
	monitor, err := failover.New(failover.Config{Tables: e.tables, Prober: ups, Logger: log, GoodFor: 300 * time.Millisecond, Ramp: 100 * time.Millisecond, ProbeInterval: 500 * time.Millisecond, LivenessWait: patience, ProbeTimeout: 2 * patience})
	must(err)
	e.grants, err = failover.NewGrants(failover.GrantsConfig{Requester: e.leader, Tables: e.tables, Self: e.source.Name(), Logger: log})
	must(err)
	e.client, err = relay.NewClient(relay.ClientConfig{Identity: e.source, Tables: e.tables, Grants: e.grants, Evidence: e.world.judge, Sentinel: e.sentinel, Logger: log, PingWait: patience, DialTimeout: 2 * patience})
	must(err)
	e.proxy, err = proxy.New(proxy.Config{Region: e.region, Tables: e.tables, Gate: &gate.Gate{Hasher: apikey.NewHasher(e.world.zones[e.zone].pepper), Limits: limit.NewMap()},
		Monitor: monitor, Grants: e.grants, Relay: e.client, Upstreams: ups, Meter: &e.world.meter, Logger: log, Timeout: 2 * time.Second})
	must(err)
	e.server, err = relay.NewServer(relay.ServerConfig{Identity: e.source, Tables: e.tables, Leave: e.grants, Local: e.proxy, Evidence: e.world.judge, Sentinel: e.sentinel, Logger: log})
	must(err)
	servers := proxy.NewServers(proxy.ServersConfig{Handler: e.proxy, TLS: &tls.Config{}, Logger: log})
	for _, run := range []func(context.Context) error{monitor.Run, e.grants.Run, e.client.Run,
		func(ctx context.Context) error { return e.server.Serve(ctx, l) }} {
		wg.Go(func() { run(ctx) })
	}
	wg.Go(func() { servers.HTTP.Serve(&e.doors) })
	t.Cleanup(func() { servers.HTTP.Close(); ups.CloseIdle() })
}

// pipes is a listener in memory.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
	close sync.Once
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}
func (p *pipes) Close() error   { p.close.Do(func() { close(p.done) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.UnixAddr{} }

// wire is a client's connection to an edge.
type wire struct {
	conn net.Conn
	in   *bufio.Reader
}

func (p *pipes) dial() *wire {
	client, server := net.Pipe()
	select {
	case p.conns <- server:
	case <-p.done:
	}
	return &wire{client, bufio.NewReaderSize(client, 2048)}
}

// table is what a control node would send the edge under the rules: package view's answer, put together by its
// documented rule from the pairs of package regions.
func (e *edge) table(r *rules, pairs []regions.Permitted) (*policy.Table, error) {
	z := e.world.zones[e.zone]
	objects := append([]table.Object(nil), z.objects...)
	var failed error
	add := func(kind table.Kind, id string, v any) {
		o, err := table.Encode(kind, id, v)
		if err != nil {
			failed = err
		}
		objects = append(objects, o)
	}
	add(table.KindSettings, table.SettingsID, table.Settings{Zone: e.zone, Region: e.region})
	into, senders, signers := map[[2]string]bool{}, map[string]bool{}, map[string]bool{e.zone: true}
	for _, p := range pairs {
		if p.From != e.region && p.To != e.region {
			continue
		}
		pair := table.Pair{Policy: p.Policy, From: p.From, To: p.To, FromZone: zoneOf(p.From), ToZone: zoneOf(p.To), Basis: p.Basis, Classes: p.Classes, Priority: p.Priority}
		add(table.KindPair, table.PairID(p.Policy, p.From, p.To), pair)
		if p.To == e.region {
			into[[2]string{p.Policy, pair.FromZone}], senders[p.From], signers[pair.FromZone] = true, true, true
		}
	}
	plan := table.Plan{Name: "gold", Rev: 1, APIs: map[string]string{}}
	for _, s := range services {
		api := table.API{Name: s.name, Zone: s.zone, Policy: r.policy[s], HealthInterval: 500 * time.Millisecond, Routes: []table.Route{{Name: "all", PathPrefix: "/"}},
			Targets: []string{"http://" + e.world.upstream(s, e.region).addr}}
		if s.zone != e.zone {
			add(table.KindDirectory, table.DirectoryID(s.zone, s.name), table.Directory{API: s.name, Zone: s.zone, Hosts: []string{s.host}})
			if !into[[2]string{api.Policy, s.zone}] {
				continue
			}
			api.Foreign, api.Regions = true, []string{e.region}
		} else {
			api.Hosts = []string{s.host}
			plan.APIs[s.name] = "core"
			for _, p := range places {
				api.Regions = append(api.Regions, p.region)
			}
		}
		add(table.KindAPI, table.APIID(&api), api)
	}
	add(table.KindPlan, plan.Name, plan)
	for _, other := range e.world.edges {
		if senders[other.region] && !r.gone[other.region] {
			add(table.KindNode, other.name, table.Node{Name: other.name, Zone: other.zone, Region: other.region})
		}
	}
	for name := range signers {
		add(table.KindZoneKey, name, table.ZoneKey{Zone: name, PublicKey: e.world.zones[name].signing.Public().(ed25519.PublicKey)})
	}
	if failed != nil {
		return nil, failed
	}
	at := [2]revision.Revision{{Epoch: r.epoch, Index: r.index}, {Epoch: r.epoch, Index: r.index}}
	for _, o := range objects {
		at[o.Kind.Scope()].Sum = at[o.Kind.Scope()].Sum.Add(o.Sum())
	}
	return policy.NewTable(objects, at[table.ScopeCatalog], at[table.ScopeZone])
}

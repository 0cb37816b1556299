package subscribe_test

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"bailiwick/dataplane/internal/policy"
	"bailiwick/dataplane/internal/subscribe"
	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"
	"bailiwick/proto/gen/bailiwick/sync/v1/syncv1connect"
	"bailiwick/shared/durable"
	"bailiwick/shared/durable/durabletest"
	"bailiwick/shared/revision"
	"bailiwick/shared/table"
)

// source is a zone that signs updates for one edge.
type source struct {
	t        testing.TB
	priv     ed25519.PrivateKey
	edge     string
	region   string
	whole    bool // it signs as programs from before do
	objects  map[table.ObjectKey]table.Object
	cat, zon revision.Revision
}

func newSource(t testing.TB) *source {
	_, priv, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	s := &source{t: t, priv: priv, edge: "w1", region: "eu-west", objects: map[table.ObjectKey]table.Object{},
		cat: revision.Revision{Epoch: 1, Index: 10}, zon: revision.Revision{Epoch: 1, Index: 10}}
	s.delta([]table.Object{s.object(table.KindSettings, "settings", table.Settings{Zone: "emea", Region: "eu-west"}),
		s.object(table.KindAPI, "orders", table.API{Name: "orders", Zone: "emea", Hosts: []string{"orders.test"}}), s.key("k1", "gold")})
	return s
}

func (s *source) object(kind table.Kind, id string, v any) table.Object {
	o, err := table.Encode(kind, id, v)
	if err != nil {
		s.t.Fatal(err)
	}
	return o
}

func (s *source) key(id, plan string) table.Object {
	return s.object(table.KindKey, id, table.Key{ID: id, DigestHex: fmt.Sprintf("%064x", len(id)), Customer: "acme", Subscription: "main", Plan: plan})
}

func pos(r revision.Revision) *syncv1.Position {
	return &syncv1.Position{Epoch: r.Epoch, Index: r.Index, Sum: r.Sum[:]}
}

func (s *source) sign(u *syncv1.TableUpdate) *syncv1.Signed {
	u.Region, u.Zone = s.region, "emea"
	if s.whole {
		u.Edge = s.edge
	}
	payload, err := proto.Marshal(u)
	if err != nil {
		s.t.Fatal(err)
	}
	if s.whole {
		return &syncv1.Signed{Payload: payload, Signature: ed25519.Sign(s.priv, table.SignedWhole(s.edge, payload))}
	}
	return &syncv1.Signed{Payload: payload, Signature: ed25519.Sign(s.priv, table.SignedBytes(s.edge, sha256.Sum256(payload))), Hashed: true}
}

func (s *source) snapshot() *syncv1.Signed { return s.parts(1)[0] }

// parts is the snapshot in n messages.
func (s *source) parts(n int) (out []*syncv1.Signed) {
	keys := slices.SortedFunc(maps.Keys(s.objects), func(a, b table.ObjectKey) int { return int(a.Kind) - int(b.Kind) })
	for i := range n {
		u := &syncv1.TableUpdate{Snapshot: true, CatalogTo: pos(s.cat), ZoneTo: pos(s.zon), More: i < n-1}
		for _, k := range keys[i*len(keys)/n : (i+1)*len(keys)/n] {
			o := s.objects[k]
			u.Upserts = append(u.Upserts, &syncv1.Object{Kind: uint32(o.Kind), Id: o.ID, Data: o.Data})
		}
		out = append(out, s.sign(u))
	}
	return out
}

// behind is the snapshot in n messages, behind so many objects that the edge has.
func (s *source) behind(skipped, n int) (out []*syncv1.Signed) {
	keys := slices.SortedFunc(maps.Keys(s.objects), func(a, b table.ObjectKey) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.ID, b.ID))
	})[skipped:]
	for i := range n {
		u := &syncv1.TableUpdate{Snapshot: true, CatalogTo: pos(s.cat), ZoneTo: pos(s.zon), More: i < n-1}
		if i == 0 {
			u.Skipped = uint64(skipped)
		}
		for _, k := range keys[i*len(keys)/n : (i+1)*len(keys)/n] {
			o := s.objects[k]
			u.Upserts = append(u.Upserts, &syncv1.Object{Kind: uint32(o.Kind), Id: o.ID, Data: o.Data})
		}
		out = append(out, s.sign(u))
	}
	return out
}

// delta changes objects, moves both positions on, and gives the update.
func (s *source) delta(upserts []table.Object, removals ...table.ObjectKey) *syncv1.Signed {
	u := &syncv1.TableUpdate{CatalogFrom: pos(s.cat), ZoneFrom: pos(s.zon)}
	sum := map[table.Scope]*revision.Sum{table.ScopeCatalog: &s.cat.Sum, table.ScopeZone: &s.zon.Sum}
	drop := func(k table.ObjectKey) {
		if old, ok := s.objects[k]; ok {
			*sum[k.Kind.Scope()] = sum[k.Kind.Scope()].Sub(old.Sum())
			delete(s.objects, k)
		}
	}
	for _, o := range upserts {
		drop(o.Key())
		s.objects[o.Key()] = o
		*sum[o.Kind.Scope()] = sum[o.Kind.Scope()].Add(o.Sum())
		u.Upserts = append(u.Upserts, &syncv1.Object{Kind: uint32(o.Kind), Id: o.ID, Data: o.Data})
	}
	for _, k := range removals {
		drop(k)
		u.Removals = append(u.Removals, &syncv1.ObjectKey{Kind: uint32(k.Kind), Id: k.ID})
	}
	s.cat.Index++
	s.zon.Index++
	u.CatalogTo, u.ZoneTo = pos(s.cat), pos(s.zon)
	return s.sign(u)
}

func (s *source) beat() *syncv1.SubscribeResponse {
	return &syncv1.SubscribeResponse{Message: &syncv1.SubscribeResponse_Heartbeat{Heartbeat: &syncv1.Heartbeat{Catalog: pos(s.cat), Zone: pos(s.zon)}}}
}

// node is a control node whose streams the test drives by hand.
type node struct {
	syncv1connect.UnimplementedSyncServiceHandler
	t       testing.TB
	http    *httptest.Server
	streams chan *stream
}

type stream struct {
	t    testing.TB
	down chan *syncv1.SubscribeResponse
	done chan struct{}
	up   chan *syncv1.SubscribeRequest // without status; closed when the edge is gone
	once sync.Once
	over chan struct{}
}

func newNode(t testing.TB) *node {
	n := &node{t: t, streams: make(chan *stream)}
	_, h := syncv1connect.NewSyncServiceHandler(n)
	n.http = httptest.NewUnstartedServer(h)
	n.http.EnableHTTP2 = true
	n.http.StartTLS()
	t.Cleanup(n.http.Close)
	return n
}

func (n *node) Subscribe(ctx context.Context, st *connect.BidiStream[syncv1.SubscribeRequest, syncv1.SubscribeResponse]) error {
	s := &stream{t: n.t, down: make(chan *syncv1.SubscribeResponse), done: make(chan struct{}), up: make(chan *syncv1.SubscribeRequest, 1024), over: make(chan struct{})}
	select {
	case n.streams <- s:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer close(s.done)
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		defer close(s.up)
		for {
			m, err := st.Receive()
			if err != nil {
				return
			}
			if m.GetStatus() == nil {
				s.up <- m
			}
		}
	}()
	for {
		select {
		case m := <-s.down:
			st.Send(m)
		case <-s.over:
			return nil
		case <-gone:
			return nil
		}
	}
}

func (n *node) next() *stream {
	n.t.Helper()
	select {
	case s := <-n.streams:
		return s
	case <-time.After(10 * time.Second):
		n.t.Fatal("edge does not connect within 10 s")
		return nil
	}
}

func (s *stream) end() { s.once.Do(func() { close(s.over) }) }

func (s *stream) send(tables ...*syncv1.Signed) {
	for _, m := range tables {
		s.put(&syncv1.SubscribeResponse{Message: &syncv1.SubscribeResponse_Table{Table: m}})
	}
}

// put sends through the handler's goroutine: nothing may be written once it returned.
func (s *stream) put(m *syncv1.SubscribeResponse) {
	select {
	case s.down <- m:
	case <-s.done:
	}
}

// recv is the next message from the edge, nil when the stream is over.
func (s *stream) recv() *syncv1.SubscribeRequest {
	s.t.Helper()
	select {
	case m := <-s.up:
		return m
	case <-time.After(10 * time.Second):
		s.t.Fatal("edge says nothing within 10 s")
		return nil
	}
}

func (s *stream) ack(src *source) {
	s.t.Helper()
	if m := s.recv(); !proto.Equal(m.GetAck(), &syncv1.Ack{Catalog: pos(src.cat), Zone: pos(src.zon)}) {
		s.t.Fatalf("got %v, want the ack of %s and %s", m, src.cat, src.zon)
	}
}

func (s *stream) nack(reason string, snapshot bool) {
	s.t.Helper()
	if m := s.recv().GetNack(); m.GetReason() != reason || m.GetWantSnapshot() != snapshot {
		s.t.Fatalf("got %v, want a nack for %s, snapshot %v", m, reason, snapshot)
	}
}

// edge is a client under test with its disk.
type edge struct {
	t      testing.TB
	client *subscribe.Client
	holder *policy.Holder
	stop   func() error
	gone   chan string
}

func run(t testing.TB, src *source, n *node, fs durable.FS, change func(*subscribe.Config)) *edge {
	t.Helper()
	e := &edge{t: t, holder: new(policy.Holder), gone: make(chan string, 8)}
	cfg := subscribe.Config{Dir: "/table", Edge: "w1", Region: "eu-west", Zone: "emea", SigningKey: src.priv.Public().(ed25519.PublicKey), Holder: e.holder,
		Addrs: func() []string { return nil }, HTTPClient: func(string) *http.Client { return n.http.Client() }, FS: fs,
		Status:      func() *syncv1.Status { return &syncv1.Status{Ready: true} },
		OnWithdrawn: func(r string) { e.gone <- r }, Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
		BackoffMin: time.Millisecond, BackoffMax: 5 * time.Millisecond, Version: "1.0"}
	if n != nil {
		cfg.Addrs = func() []string { return []string{n.http.URL} }
	}
	if change != nil {
		change(&cfg)
	}
	var err error
	if e.client, err = subscribe.New(cfg); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- e.client.Run(ctx) }()
	e.stop = sync.OnceValue(func() error { cancel(); return <-ran })
	t.Cleanup(func() { e.stop() })
	return e
}

// loaded starts a client without control nodes and gives what it serves from disk.
func loaded(t testing.TB, src *source, fs durable.FS) *policy.Table {
	t.Helper()
	holder := new(policy.Holder)
	c, err := subscribe.New(subscribe.Config{Dir: "/table", Edge: "w1", Region: "eu-west", Zone: "emea", SigningKey: src.priv.Public().(ed25519.PublicKey), Holder: holder,
		Addrs: func() []string { return nil }, HTTPClient: func(string) *http.Client { return nil }, FS: fs, Logger: slog.New(slog.NewTextHandler(io.Discard, nil)), Version: "1.0"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := c.Run(ctx); err != nil {
		t.Fatal(err)
	}
	ready := false
	select {
	case <-c.Ready():
		ready = true
	default:
	}
	if ready != (holder.Load() != nil) {
		t.Errorf("ready is %v, a table is in force: %v", ready, holder.Load() != nil)
	}
	return holder.Load()
}

func at(t *policy.Table, s *source) bool { return t.Catalog() == s.cat && t.Zone() == s.zon }

func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if f() {
			return
		}
	}
	t.Fatalf("not seen within a minute: %s", what)
}

func memory(t testing.TB) *durabletest.FS {
	t.Helper()
	return durabletest.New()
}

package syncserver_test

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
	"bailiwick/controlplane/internal/syncserver"
	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"
	"bailiwick/proto/gen/bailiwick/sync/v1/syncv1connect"
	"bailiwick/shared/fault"
	"bailiwick/shared/fault/rpcfault"
	"bailiwick/shared/revision"
	"bailiwick/shared/table"
)

// store is a fake group: one copy, no quorum but the one a test takes away.
type store struct {
	name string

	mu     sync.Mutex
	rev    group.Revision
	kvs    map[string]group.KV
	given  bool // a snapshot has kvs: it is copied before it changes
	events []group.Event
	first  uint64 // oldest index remembered
	grown  chan struct{}
	down   bool
}

func newStore(name string) *store {
	return &store{name: name, kvs: map[string]group.KV{}, grown: make(chan struct{}), first: 1}
}

type snapshot struct {
	rev group.Revision
	kvs map[string]group.KV
}

func (s snapshot) Revision() group.Revision        { return s.rev }
func (s snapshot) Len() int                        { return len(s.kvs) }
func (s snapshot) Get(key string) (group.KV, bool) { kv, ok := s.kvs[key]; return kv, ok }
func (s snapshot) List(prefix string) iter.Seq[group.KV] {
	return func(yield func(group.KV) bool) {
		for _, k := range slices.Sorted(maps.Keys(s.kvs)) {
			if strings.HasPrefix(k, prefix) && !yield(s.kvs[k]) {
				return
			}
		}
	}
}

// put writes pairs of key and value; a nil value deletes.
func (s *store) put(pairs ...any) group.Revision {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.given {
		s.kvs, s.given = maps.Clone(s.kvs), false
	}
	kvs := s.kvs
	s.rev = group.Revision{Epoch: max(1, s.rev.Epoch), Index: s.rev.Index + 1}
	for i := 0; i < len(pairs); i += 2 {
		kv := group.KV{Key: pairs[i].(string), ModIndex: s.rev.Index}
		if pairs[i+1] == nil {
			delete(kvs, kv.Key)
			s.events = append(s.events, group.Event{Index: s.rev.Index, Delete: true, KV: kv})
			continue
		}
		kv.Value = model.Encode(pairs[i+1])
		kvs[kv.Key] = kv
		s.events = append(s.events, group.Event{Index: s.rev.Index, KV: kv})
	}
	close(s.grown)
	s.grown = make(chan struct{})
	return s.rev
}

// compact forgets history, as a restore does.
func (s *store) compact() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.first, s.events = s.rev.Index+2, nil
	s.rev.Index++
	close(s.grown)
	s.grown = make(chan struct{})
}

func (s *store) setDown(down bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = down
}

func (s *store) Name() string { return s.name }
func (s *store) Local() group.Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.given = true
	return snapshot{s.rev, s.kvs}
}
func (s *store) Sync(ctx context.Context) (group.Snapshot, error) {
	s.mu.Lock()
	down := s.down
	s.mu.Unlock()
	if down {
		<-ctx.Done()
		return nil, fault.New(fault.Unavailable, group.ReasonNoLeader, "no leader")
	}
	return s.Local(), nil
}
func (s *store) Leader() (string, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down {
		return "", false
	}
	return "n1", true
}
func (s *store) Watch(from uint64, prefix string) (group.Watch, error) {
	return &watch{s: s, next: max(from, 1), prefix: prefix}, nil
}

var errUnused = errors.New("not used by the sync server")

func (s *store) Get(context.Context, string) (group.KV, bool, group.Revision, error) {
	return group.KV{}, false, group.Revision{}, errUnused
}
func (s *store) List(context.Context, string) ([]group.KV, group.Revision, error) {
	return nil, group.Revision{}, errUnused
}
func (s *store) Txn(context.Context, group.Txn) (group.Result, error) {
	return group.Result{}, errUnused
}
func (s *store) WaitFor(context.Context, uint64) error { return errUnused }
func (s *store) VerifyLeader(context.Context) error    { return errUnused }
func (s *store) RunLeader(context.Context, func(context.Context)) error {
	return errUnused
}

type watch struct {
	s      *store
	next   uint64
	prefix string
}

func (w *watch) Close() {}
func (w *watch) Next(ctx context.Context) ([]group.Event, group.Revision, error) {
	for {
		w.s.mu.Lock()
		if w.next < w.s.first && w.next <= w.s.rev.Index {
			w.s.mu.Unlock()
			return nil, group.Revision{}, group.ErrCompacted(w.s.name, w.next, w.s.first)
		}
		rev, grown := w.s.rev, w.s.grown
		i, _ := slices.BinarySearchFunc(w.s.events, w.next, func(e group.Event, n uint64) int { return int(e.Index) - int(n) })
		events := slices.Clone(w.s.events[i:])
		w.s.mu.Unlock()
		w.next = rev.Index + 1
		if len(events) > 0 {
			return events, rev, nil
		}
		select {
		case <-grown:
		case <-ctx.Done():
			return nil, group.Revision{}, ctx.Err()
		}
	}
}

// world is a server with two stores and a zone of two regions.
type world struct {
	t             *testing.T
	catalog, zone *store
	server        *syncserver.Server
	http          *httptest.Server
	pub           ed25519.PublicKey
	stop          func()
}

type peerKey struct{}

func newWorld(t *testing.T, change func(*syncserver.Config)) *world {
	t.Helper()
	pub, priv, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, catalog: newStore("catalog"), zone: newStore("store/emea"), pub: pub}
	regions := []model.Region{{Name: "eu-west", Zone: "emea"}, {Name: "eu-central", Zone: "emea"}}
	w.catalog.put("regions/eu-west", regions[0], "regions/eu-central", regions[1], "zones/emea", model.Zone{Name: "emea", SigningKey: pub},
		"nodes/w1", model.Node{Name: "w1", Kind: "edge", Region: "eu-west", Zone: "emea"},
		"nodes/w2", model.Node{Name: "w2", Kind: "edge", Region: "eu-west", Zone: "emea"},
		"apis/orders", model.API{Name: "orders", Zone: "emea", Hosts: []string{"orders.test"}, Policy: "gdpr",
			Upstreams: []model.Upstream{{Region: "eu-west", URL: "http://w"}, {Region: "eu-central", URL: "http://c"}}})
	w.zone.put(model.KeyAdopted, model.Adopted{Regions: regions, Bases: []model.LegalBasis{{Name: "law", Kind: "same-law", Status: "active"}},
		Policies: []model.Policy{{Name: "gdpr", Zone: "emea", WithinZone: &model.WithinZone{Basis: "law"}}}},
		"customers/acme", model.Customer{Name: "acme", Zone: "emea"})
	cfg := syncserver.Config{Node: "emea-1", ZoneName: "emea", Catalog: w.catalog, Zone: w.zone, Signer: priv,
		Heartbeat: 50 * time.Millisecond, SyncTimeout: 400 * time.Millisecond, Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
		Peer: func(ctx context.Context) (node, region, zone, kind string, err error) {
			p := strings.Split(ctx.Value(peerKey{}).(string), "/")
			if len(p) != 4 {
				return "", "", "", "", errors.New("no certificate")
			}
			return p[3], p[1], p[0], p[2], nil
		}}
	if change != nil {
		change(&cfg)
	}
	if w.server, err = syncserver.New(cfg); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- w.server.Run(ctx) }()
	_, h := w.server.Handler()
	w.http = httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		h.ServeHTTP(rw, r.WithContext(context.WithValue(r.Context(), peerKey{}, r.Header.Get("X-Peer"))))
	}))
	w.http.EnableHTTP2 = true
	w.http.StartTLS()
	var once sync.Once
	w.stop = func() {
		once.Do(func() {
			cancel()
			if err := <-ran; err != nil {
				t.Errorf("run: got %v, want nil", err)
			}
			w.http.Close()
		})
	}
	t.Cleanup(w.stop)
	return w
}

func (w *world) key(id, status string) {
	w.zone.put("keys/"+id, model.Key{ID: id, DigestHex: fmt.Sprintf("%064x", len(id)), Customer: "acme", Subscription: "main", Plan: "gold", Status: status})
}

type peered struct {
	peer string
	rt   http.RoundTripper
}

func (p peered) RoundTrip(r *http.Request) (*http.Response, error) {
	r.Header.Set("X-Peer", p.peer)
	return p.rt.RoundTrip(r)
}

func (w *world) client(peer string) syncv1connect.SyncServiceClient {
	return syncv1connect.NewSyncServiceClient(&http.Client{Transport: peered{peer, w.http.Client().Transport}}, w.http.URL,
		connect.WithInterceptors(rpcfault.Client()))
}

// edge is a model of the other end: it holds objects, checks everything, and does what the protocol asks.
type edge struct {
	w      *world
	name   string
	peer   string
	before bool // a program of the release before

	mu            sync.Mutex
	objects       map[table.ObjectKey]string
	catalog, zone *syncv1.Position
	snapshots     int
	deltas        int
	withdrawn     time.Time
	ended         error
	refuse        string // answer updates with this reason
	breakAt       int    // leave once so many objects of a snapshot came; 0: never
	resume        *syncv1.Resume
	skipped       uint64
	part          []*syncv1.Object
	lose          func() bool
	asked         chan *syncv1.RowsWanted // questions for rows; nil: none is expected
	cancel        func()
	done          chan struct{}
}

func (w *world) edge(name string) *edge {
	return &edge{w: w, name: name, peer: "emea/eu-west/edge/" + name, objects: map[table.ObjectKey]string{}}
}

func (e *edge) connect() *edge {
	ctx, cancel := context.WithCancel(context.Background())
	e.mu.Lock()
	e.cancel, e.done = cancel, make(chan struct{})
	done := e.done
	e.mu.Unlock()
	go func() {
		defer close(done)
		err := e.follow(ctx)
		e.mu.Lock()
		e.ended = err
		e.mu.Unlock()
	}()
	e.w.t.Cleanup(e.disconnect)
	return e
}

func (e *edge) disconnect() {
	e.cancel()
	<-e.done
}

var errBroken = errors.New("the test breaks the stream")

func (e *edge) follow(ctx context.Context) error {
	st, err := e.w.client(e.peer).Subscribe(ctx)
	if err != nil {
		return err
	}
	defer st.CloseResponse()
	defer st.CloseRequest()
	// net/http does not look at the context while the body waits for a Send.
	defer context.AfterFunc(ctx, func() { st.CloseRequest() })()
	e.mu.Lock()
	hello := &syncv1.Hello{Protocol: 1, Hashed: !e.before, Version: "test", Catalog: e.catalog, Zone: e.zone, Resume: e.resume}
	up := e.part
	e.part = nil
	e.mu.Unlock()
	// A refusal may arrive before Hello has left; Receive says what it is.
	if err := st.Send(&syncv1.SubscribeRequest{Message: &syncv1.SubscribeRequest_Hello{Hello: hello}}); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	var rm []*syncv1.ObjectKey
	first := true
	for {
		m, err := st.Receive()
		if err != nil {
			return err
		}
		e.mu.Lock()
		var answer *syncv1.SubscribeRequest
		nack := func(reason string, want bool) {
			answer = &syncv1.SubscribeRequest{Message: &syncv1.SubscribeRequest_Nack{Nack: &syncv1.Nack{Reason: reason, WantSnapshot: want}}}
		}
		switch m := m.Message.(type) {
		case *syncv1.SubscribeResponse_Withdrawn:
			e.withdrawn = time.Now()
		case *syncv1.SubscribeResponse_RowsWanted:
			e.asked <- m.RowsWanted
		case *syncv1.SubscribeResponse_Heartbeat:
			if h := m.Heartbeat; h.Catalog != nil && !(proto.Equal(h.Catalog, e.catalog) && proto.Equal(h.Zone, e.zone)) {
				nack("UPDATE_LOST", true)
			}
		case *syncv1.SubscribeResponse_Table:
			u := e.verify(m.Table)
			if first && int(u.Skipped) != len(up) {
				up = nil // it begins anew
			}
			first = false
			e.skipped = max(e.skipped, u.Skipped)
			up, rm = append(up, u.Upserts...), append(rm, u.Removals...)
			switch {
			case u.More && e.breakAt > 0 && len(up) >= e.breakAt:
				last := up[len(up)-1]
				e.part, e.resume = up, &syncv1.Resume{Catalog: u.CatalogTo, Zone: u.ZoneTo, Objects: uint64(len(up)), LastKind: last.Kind, LastId: last.Id}
				e.mu.Unlock()
				return errBroken
			case u.More:
			case e.refuse != "":
				nack(e.refuse, false)
			case e.lose != nil && e.lose():
				nack("LOST_HERE", false)
			case !u.Snapshot && !(proto.Equal(u.CatalogFrom, e.catalog) && proto.Equal(u.ZoneFrom, e.zone)):
				nack("POSITION_MISMATCH", true)
			default:
				if e.apply(u, up, rm) {
					answer = &syncv1.SubscribeRequest{Message: &syncv1.SubscribeRequest_Ack{Ack: &syncv1.Ack{Catalog: e.catalog, Zone: e.zone}}}
				} else {
					nack("SUM_MISMATCH", true)
				}
			}
			if !u.More {
				up, rm = nil, nil
			}
		}
		e.mu.Unlock()
		if answer != nil {
			// The node may have ended the stream; what it said last is still to be received.
			if err := st.Send(answer); err != nil && !errors.Is(err, io.EOF) {
				return err
			}
		}
	}
}

func (e *edge) verify(s *syncv1.Signed) *syncv1.TableUpdate {
	covered, name := table.SignedBytes(e.name, sha256.Sum256(s.Payload)), ""
	if e.before {
		covered, name = table.SignedWhole(e.name, s.Payload), e.name
	}
	if s.Hashed == e.before || !ed25519.Verify(e.w.pub, covered, s.Signature) {
		e.w.t.Errorf("edge %s: bad signature", e.name)
	}
	u := new(syncv1.TableUpdate)
	if err := proto.Unmarshal(s.Payload, u); err != nil || u.Edge != name || u.Region != "eu-west" || u.Zone != "emea" {
		e.w.t.Errorf("edge %s: got an update for %s of %s in %s (%v)", e.name, u.Edge, u.Region, u.Zone, err)
	}
	return u
}

func (e *edge) apply(u *syncv1.TableUpdate, up []*syncv1.Object, rm []*syncv1.ObjectKey) bool {
	next := maps.Clone(e.objects)
	if u.Snapshot {
		clear(next)
	}
	for _, o := range up {
		next[table.ObjectKey{Kind: table.Kind(o.Kind), ID: o.Id}] = string(o.Data)
	}
	for _, k := range rm {
		delete(next, table.ObjectKey{Kind: table.Kind(k.Kind), ID: k.Id})
	}
	var sums [2]revision.Sum
	for k, data := range next {
		o := table.Object{Kind: k.Kind, ID: k.ID, Data: []byte(data)}
		sums[k.Kind.Scope()] = sums[k.Kind.Scope()].Add(o.Sum())
	}
	if string(sums[table.ScopeCatalog][:]) != string(u.CatalogTo.Sum) || string(sums[table.ScopeZone][:]) != string(u.ZoneTo.Sum) {
		return false
	}
	if e.zone != nil && (u.ZoneTo.Index < e.zone.Index || u.CatalogTo.Index < e.catalog.Index) {
		e.w.t.Errorf("edge %s: position goes back from %v to %v", e.name, e.zone, u.ZoneTo)
	}
	e.objects, e.catalog, e.zone = next, u.CatalogTo, u.ZoneTo
	if u.Snapshot {
		e.snapshots++
	} else {
		e.deltas++
	}
	return true
}

func (e *edge) has(kind table.Kind, id string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	_, ok := e.objects[table.ObjectKey{Kind: kind, ID: id}]
	return ok
}

func (e *edge) counts() (snapshots, deltas int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.snapshots, e.deltas
}

// at says whether the edge stands at the newest revision of both stores.
func (e *edge) at() bool {
	c, z := e.w.catalog.Local().Revision(), e.w.zone.Local().Revision()
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.zone != nil && e.zone.Index == z.Index && e.catalog.Index == c.Index
}

func (e *edge) err() error {
	<-e.done
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.ended
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if f() {
			return
		}
	}
	t.Fatalf("not seen within a minute: %s", what)
}

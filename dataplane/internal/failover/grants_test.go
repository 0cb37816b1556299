package failover_test

import (
	"context"
	"crypto/ed25519"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	"bailiwick/dataplane/internal/failover"
	"bailiwick/dataplane/internal/policy"
	"bailiwick/dataplane/internal/upstream"
	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"
	"bailiwick/shared/fault"
	"bailiwick/shared/identity"
	"bailiwick/shared/revision"
	"bailiwick/shared/table"
)

var (
	signer = ed25519.NewKeyFromSeed(make([]byte, 32))
	self   = identity.Name{Zone: "emea", Installation: "test.example", Region: "eu-west", Kind: identity.Edge, Node: "eu-west-edge-1"}
)

func obj(t testing.TB, kind table.Kind, id string, v any) table.Object {
	t.Helper()
	o, err := table.Encode(kind, id, v)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// edgeTable is a table of eu-west; pairs are the targets of policy gdpr.
func edgeTable(t testing.TB, epoch uint64, upstreams []string, pairs ...string) *policy.Table {
	t.Helper()
	return apiTable(t, epoch, table.API{Targets: upstreams}, pairs...)
}

// apiTable is the same with what more is said of the API.
func apiTable(t testing.TB, epoch uint64, api table.API, pairs ...string) *policy.Table {
	t.Helper()
	api.Name, api.Zone, api.Hosts, api.Policy = "orders", "emea", []string{"orders.test"}, "gdpr"
	objects := []table.Object{
		obj(t, table.KindSettings, table.SettingsID, table.Settings{Zone: "emea", Region: "eu-west"}),
		obj(t, table.KindAPI, "orders", api),
		obj(t, table.KindZoneKey, "emea", table.ZoneKey{Zone: "emea", PublicKey: signer.Public().(ed25519.PublicKey)}),
	}
	for i, to := range pairs {
		objects = append(objects, obj(t, table.KindPair, table.PairID("gdpr", "eu-west", to),
			table.Pair{Policy: "gdpr", From: "eu-west", To: to, FromZone: "emea", ToZone: "emea", Priority: i}))
	}
	c, z := revision.Revision{Epoch: epoch, Index: 5}, revision.Revision{Epoch: epoch, Index: 7}
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

func sign(t testing.TB, g *syncv1.Grant) *syncv1.SignedGrant {
	t.Helper()
	payload, err := proto.Marshal(g)
	if err != nil {
		t.Fatal(err)
	}
	return &syncv1.SignedGrant{Payload: payload, Signature: ed25519.Sign(signer, append([]byte(failover.SignaturePrefix), payload...))}
}

func grantTo(to string) *syncv1.Grant {
	return &syncv1.Grant{Id: "g-" + to, Zone: "emea", Edge: self.Node, From: self.Region, To: to, Policies: []string{"gdpr"},
		CatalogEpoch: 1, CatalogIndex: 5, ZoneEpoch: 1, ZoneIndex: 7, TtlMs: 30_000, OfflineTtlMs: 3_600_000,
		Peers: []*syncv1.Peer{{Edge: to + "-edge-1", RelayAddr: "127.0.0.1:1"}}}
}

// leader is a control plane: it answers, or fails, after a while.
type leader struct {
	mu     sync.Mutex
	asked  int
	slow   time.Duration
	err    error
	grants []*syncv1.SignedGrant
}

func (l *leader) RequestGrants(ctx context.Context, _ *syncv1.RequestGrantsRequest) (*syncv1.RequestGrantsResponse, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asked++
	time.Sleep(l.slow)
	if l.err != nil {
		return nil, l.err
	}
	return &syncv1.RequestGrantsResponse{Grants: l.grants}, ctx.Err()
}

func (l *leader) set(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f()
}

func start(t *testing.T, l *leader, h *policy.Holder) *failover.Grants {
	t.Helper()
	g, err := failover.NewGrants(failover.GrantsConfig{Requester: l, Tables: h, Self: self, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); g.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return g
}

// A leader that has not caught up yet gives nothing for a pair that was closed and is open again. The grant of before may end before
// the next question, so it is asked again soon.
func TestGrants_WhatTheNewestAnswerLacksIsAskedForSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &leader{grants: []*syncv1.SignedGrant{sign(t, grantTo("eu-central"))}}
		h := &policy.Holder{}
		h.Swap(edgeTable(t, 1, nil, "eu-central"))
		start(t, l, h)
		count := func() (n int) { l.set(func() { n = l.asked }); return n }
		time.Sleep(time.Second)
		given := l.grants
		l.set(func() { l.grants = nil })
		time.Sleep(10 * time.Second) // it asks every 10 s
		lacking := count()
		time.Sleep(1500 * time.Millisecond)
		if got := count(); got <= lacking {
			t.Error("it does not ask again soon")
		}
		l.set(func() { l.grants = given })
		time.Sleep(1500 * time.Millisecond)
		whole := count()
		time.Sleep(5 * time.Second)
		if got := count(); got != whole {
			t.Errorf("it asks %d times although it has all", got-whole)
		}
	})
}

func TestGrants_CountFromTheQuestionAndOutliveAnAbsentControlPlane(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &leader{grants: []*syncv1.SignedGrant{sign(t, grantTo("eu-central"))}, slow: 200 * time.Millisecond}
		h := &policy.Holder{}
		h.Swap(edgeTable(t, 1, nil, "eu-central"))
		g := start(t, l, h)
		live := func() bool { return g.Live(h.Load(), "gdpr", "eu-central") != nil }
		time.Sleep(time.Second)
		if !live() || g.Live(h.Load(), "other", "eu-central") != nil || g.Live(h.Load(), "gdpr", "eu-north") != nil {
			t.Fatal("after a grant: want it live for its policy and region, and for nothing else")
		}
		time.Sleep(5 * time.Minute)
		if !live() {
			t.Fatal("renewed grant: want it live")
		}
		if n := l.asked; n < 25 || n > 40 {
			t.Errorf("asked %d times in 5 minutes, want three times a lifetime", n)
		}
		asked := time.Now()
		l.set(func() { l.err = fault.New(fault.Unavailable, "NO_LEADER", "no leader") })
		time.Sleep(59 * time.Minute)
		if !live() {
			t.Error("control plane away for 59 minutes: want the grant live by its offline lifetime of an hour")
		}
		time.Sleep(time.Until(asked.Add(time.Hour)) + time.Millisecond)
		if live() {
			t.Error("an hour after the last question that was answered: want the grant over")
		}
		l.set(func() { l.err = nil })
		time.Sleep(2 * time.Second)
		if !live() {
			t.Error("control plane back: want a grant within 2 s")
		}
		// An answer that does not renew is not silence: the ordinary lifetime counts.
		l.set(func() { l.grants = nil })
		time.Sleep(27 * time.Second)
		if !live() {
			t.Error("not renewed: want it live until its ordinary end")
		}
		time.Sleep(11 * time.Second)
		if live() {
			t.Error("not renewed for 40 s: want it over")
		}
	})
}

// The leader gave it at some time between question and answer: only the question is surely not later.
func TestGrants_ASlowAnswerLengthensNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		given := grantTo("eu-central")
		given.OfflineTtlMs = given.TtlMs
		l := &leader{grants: []*syncv1.SignedGrant{sign(t, given)}, slow: 200 * time.Millisecond}
		h := &policy.Holder{}
		h.Swap(edgeTable(t, 1, nil, "eu-central"))
		asked := time.Now()
		g := start(t, l, h)
		live := func() bool { return g.Live(h.Load(), "gdpr", "eu-central") != nil }
		time.Sleep(time.Second)
		l.set(func() { l.err = fault.New(fault.Unavailable, "NO_LEADER", "no leader") })
		for _, c := range []struct {
			at   time.Duration
			want bool
		}{{30*time.Second - time.Millisecond, true}, {30 * time.Second, false}} {
			time.Sleep(time.Until(asked.Add(c.at)))
			if live() != c.want {
				t.Errorf("%v after the question: live is %t, want %t", c.at, !c.want, c.want)
			}
		}
	})
}

func TestGrants_EndWithADenialAndARecovery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &leader{grants: []*syncv1.SignedGrant{sign(t, grantTo("eu-central"))}}
		h := &policy.Holder{}
		g := start(t, l, h)
		time.Sleep(time.Minute)
		if l.asked != 0 {
			t.Errorf("asked %d times without a pair to ask for", l.asked)
		}
		h.Swap(edgeTable(t, 1, nil, "eu-central"))
		time.Sleep(time.Millisecond)
		if g.Live(h.Load(), "gdpr", "eu-central") == nil {
			t.Fatal("a new pair: want it asked for at once")
		}
		if g.Live(edgeTable(t, 2, nil, "eu-central"), "gdpr", "eu-central") != nil {
			t.Error("under a table of a later epoch: want no grant")
		}
		l.set(func() { l.err = fault.New(fault.Denied, "NODE_REMOVED", "removed") })
		time.Sleep(11 * time.Second)
		if g.Live(h.Load(), "gdpr", "eu-central") != nil {
			t.Error("denied: want the grant gone at once, not after its offline lifetime")
		}
	})
}

func TestGrants_RefuseWhatIsNotTheirs(t *testing.T) {
	other := ed25519.NewKeyFromSeed(append(make([]byte, 31), 1))
	for name, spoil := range map[string]func(g *syncv1.Grant, s *syncv1.SignedGrant) *syncv1.SignedGrant{
		"another edge": func(g *syncv1.Grant, s *syncv1.SignedGrant) *syncv1.SignedGrant {
			g.Edge = "eu-west-edge-2"
			return nil
		},
		"another region": func(g *syncv1.Grant, s *syncv1.SignedGrant) *syncv1.SignedGrant { g.From = "eu-north"; return nil },
		"another zone":   func(g *syncv1.Grant, s *syncv1.SignedGrant) *syncv1.SignedGrant { g.Zone = "us"; return nil },
		"an old epoch":   func(g *syncv1.Grant, s *syncv1.SignedGrant) *syncv1.SignedGrant { g.ZoneEpoch = 0; return nil },
		"no lifetime":    func(g *syncv1.Grant, s *syncv1.SignedGrant) *syncv1.SignedGrant { g.TtlMs = 0; return nil },
		"a self pair":    func(g *syncv1.Grant, s *syncv1.SignedGrant) *syncv1.SignedGrant { g.To = g.From; return nil },
		"another key": func(g *syncv1.Grant, s *syncv1.SignedGrant) *syncv1.SignedGrant {
			s.Signature = ed25519.Sign(other, append([]byte(failover.SignaturePrefix), s.Payload...))
			return s
		},
		"another purpose": func(g *syncv1.Grant, s *syncv1.SignedGrant) *syncv1.SignedGrant {
			s.Signature = ed25519.Sign(signer, append([]byte("bailiwick-table/1\n"), s.Payload...))
			return s
		},
		"a flipped byte": func(g *syncv1.Grant, s *syncv1.SignedGrant) *syncv1.SignedGrant { s.Payload[3] ^= 1; return s },
		"noise": func(g *syncv1.Grant, s *syncv1.SignedGrant) *syncv1.SignedGrant {
			return &syncv1.SignedGrant{Payload: []byte("noise")}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := grantTo("eu-central")
				s := spoil(g, sign(t, grantTo("eu-central")))
				if s == nil {
					s = sign(t, g)
				}
				h := &policy.Holder{}
				h.Swap(edgeTable(t, 1, nil, "eu-central"))
				grants := start(t, &leader{grants: []*syncv1.SignedGrant{s}}, h)
				time.Sleep(time.Second)
				if n := len(grants.Held()); n != 0 {
					t.Errorf("got %d grants held, want none", n)
				}
			})
		})
	}
}

// prober is a health page.
type prober struct {
	mu    sync.Mutex
	err   error
	hang  bool
	after time.Duration // its time is over it says so, where it hangs
	slow  time.Duration // it takes, whatever its time
	asked int
}

func (p *prober) Probe(ctx context.Context, _ upstream.Place, url string) error {
	p.mu.Lock()
	p.asked++
	hang, err, after, slow := p.hang, p.err, p.after, p.slow
	p.mu.Unlock()
	time.Sleep(slow)
	if hang {
		<-ctx.Done()
		time.Sleep(after)
		return ctx.Err()
	}
	return err
}

func (p *prober) set(err error, hang bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.err, p.hang = err, hang
}

func TestRouter_GoesAwayAndComesHome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &policy.Holder{}
		h.Swap(edgeTable(t, 1, []string{"http://home"}, "eu-central", "eu-north"))
		p := &prober{}
		m, err := failover.New(failover.Config{Tables: h, Prober: p, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { defer close(done); m.Run(ctx) }()
		defer func() { cancel(); <-done }()
		g := start(t, &leader{grants: []*syncv1.SignedGrant{sign(t, grantTo("eu-central"))}}, h)
		r := failover.NewRouter(m, g, "eu-west")
		api := h.Load().API("orders.test")
		time.Sleep(1500 * time.Millisecond) // between two probes
		next := func(once bool) (string, *failover.Target) {
			a := r.Start(api, nil, once)
			c, ok := a.Next(ctx)
			switch {
			case !ok:
				return "nowhere", nil
			case c.Home():
				return "home", c.Target
			}
			return c.To, nil
		}
		where, target := next(false)
		if where != "home" {
			t.Fatalf("all well: got %s, want home", where)
		}
		// Paused: a request hangs. The next ones find out in 50 ms and go to the pair, those after at once.
		p.set(nil, true)
		hanging := target.Begin()
		time.Sleep(100 * time.Millisecond)
		began := time.Now()
		if where, _ := next(false); where != "eu-central" || time.Since(began) != 50*time.Millisecond {
			t.Errorf("silent for 100 ms: got %s after %v, want eu-central after 50 ms", where, time.Since(began))
		}
		began = time.Now()
		if where, _ := next(true); where != "eu-central" || time.Since(began) != 0 {
			t.Errorf("suspect: got %s after %v, want eu-central at once", where, time.Since(began))
		}
		hanging.End(failover.Failed)
		time.Sleep(5 * time.Second)
		// No grant for eu-north, though the table has the pair; a bad eu-central leaves nowhere.
		r.PeerBad("eu-central", nil, time.Second)
		if where, _ := next(false); where != "nowhere" {
			t.Errorf("home down and the only granted pair bad: got %s, want nowhere", where)
		}
		time.Sleep(2 * time.Second)
		// Back up: home again within 15 s, not before 10 s.
		p.set(nil, false)
		back := time.Now()
		for where, _ = next(false); where != "home"; where, _ = next(false) {
			time.Sleep(10 * time.Millisecond)
		}
		if d := time.Since(back); d < 10*time.Second {
			t.Errorf("first request home after %v, want 10 s of good probes first", d)
		}
		time.Sleep(time.Until(back.Add(15 * time.Second)))
		for range 100 {
			if where, _ := next(false); where != "home" {
				t.Fatalf("15 s after recovery: got %s, want home", where)
			}
		}
		// The pair is closed in the table: the grant alone opens nothing.
		h.Swap(edgeTable(t, 1, []string{"http://home"}))
		p.set(errors.New("down"), false)
		target.Begin().End(failover.Failed) // which asks its health page at once
		time.Sleep(time.Second)
		if where, _ := next(false); where != "nowhere" {
			t.Errorf("pair closed and home down: got %s, want nowhere", where)
		}
	})
}

func TestRouter_AsksForLifeBeforeWhatCannotBeRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &policy.Holder{}
		h.Swap(edgeTable(t, 1, []string{"http://home"}, "eu-central"))
		p := &prober{}
		m, err := failover.New(failover.Config{Tables: h, Prober: p, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		g := start(t, &leader{grants: []*syncv1.SignedGrant{sign(t, grantTo("eu-central"))}}, h)
		time.Sleep(time.Second)
		r := failover.NewRouter(m, g, "eu-west")
		api := h.Load().API("orders.test")
		a := r.Start(api, nil, true)
		c, ok := a.Next(t.Context())
		if !ok || !c.Home() || p.asked != 1 {
			t.Fatalf("first POST: got home %v after %d probes, want home after one", c.Home(), p.asked)
		}
		s := c.Target.Begin()
		time.Sleep(time.Millisecond)
		s.End(failover.Answered)
		a = r.Start(api, nil, true)
		if a.Next(t.Context()); p.asked != 1 {
			t.Errorf("POST right after an answer: got %d probes, want none more", p.asked)
		}
		// Something sent 5 ms ago is unanswered where 1 ms is usual.
		s = c.Target.Begin()
		time.Sleep(5 * time.Millisecond)
		p.set(nil, true)
		a = r.Start(api, nil, true)
		if c, ok := a.Next(t.Context()); !ok || c.Home() {
			t.Errorf("POST to a silent target: got home %v, want the pair", c.Home())
		}
		s.End(failover.Tick)
		time.Sleep(time.Second)
	})
}

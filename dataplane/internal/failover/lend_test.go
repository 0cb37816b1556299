package failover_test

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"bailiwick/dataplane/internal/failover"
	"bailiwick/dataplane/internal/policy"
	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"
	"bailiwick/regions/grant"
	"bailiwick/shared/fault"
)

// zone is a control plane that notes when it was asked, and which runs were named dead.
type zone struct {
	leader
	began time.Time
	times []time.Duration
	dead  []string
}

func (z *zone) RequestGrants(ctx context.Context, req *syncv1.RequestGrantsRequest) (*syncv1.RequestGrantsResponse, error) {
	z.set(func() {
		z.times, z.dead = append(z.times, time.Since(z.began)), append(z.dead, fmt.Sprint(req.GetDead()))
	})
	return z.leader.RequestGrants(ctx, req)
}

func (z *zone) since() (times []time.Duration, dead []string) {
	z.set(func() { times, dead, z.times, z.dead = z.times, z.dead, nil, nil })
	return times, dead
}

func startWith(t *testing.T, z *zone, h *policy.Holder, change func(*failover.GrantsConfig)) *failover.Grants {
	t.Helper()
	z.began = time.Now()
	cfg := failover.GrantsConfig{Requester: z, Tables: h, Self: self, Logger: slog.New(slog.DiscardHandler)}
	if change != nil {
		change(&cfg)
	}
	g, err := failover.NewGrants(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); g.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return g
}

func holding(t *testing.T, pairs ...string) *policy.Holder {
	h := &policy.Holder{}
	h.Swap(edgeTable(t, 1, nil, pairs...))
	return h
}

// What no leader has said is not lent: the process before has grants of its own, and would lose them. What one has is, also if it is
// nothing.
func TestGrants_LendsWhatALeaderSaid(t *testing.T) {
	for _, c := range []struct {
		name  string
		err   error
		lends bool
		pairs int
	}{
		{"it gives", nil, true, 1},
		{"it denies", fault.New(fault.Denied, "NODE_REMOVED", "removed"), true, 0},
		{"it is silent", fault.New(fault.Unavailable, "NO_LEADER", "no leader"), false, 0},
		{"the table is to be newer first", fault.New(fault.Unavailable, "STALE_TABLE", "apply the newest table first"), false, 0},
		{"another machine speaks", fault.New(fault.Unavailable, "TWIN", "it runs twice"), false, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				z := &zone{leader: leader{grants: []*syncv1.SignedGrant{sign(t, grantTo("eu-central"))}, err: c.err, slow: 100 * time.Millisecond}}
				g := startWith(t, z, holding(t, "eu-central"), nil)
				synctest.Wait()
				if l, ok := g.Lend(time.Now(), 3*time.Second); ok || len(l.Pairs) != 0 {
					t.Errorf("before an answer it lends %+v: %v", l, ok)
				}
				time.Sleep(150 * time.Millisecond)
				l, ok := g.Lend(time.Now(), 3*time.Second)
				if ok != c.lends || len(l.Pairs) != c.pairs || ok && c.pairs > 0 && (l.Pairs[0].To != "eu-central" || l.Pairs[0].Lasts != 3*time.Second) {
					t.Errorf("it lends %+v: %v, want %d pairs: %v", l, ok, c.pairs, c.lends)
				}
			})
		})
	}
}

// A denial takes back what was lent before; and what a recovery ended is not lent.
func TestGrants_LendsNoMoreThanItHolds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z := &zone{leader: leader{grants: []*syncv1.SignedGrant{sign(t, grantTo("eu-central"))}}}
		h := holding(t, "eu-central")
		g := startWith(t, z, h, nil)
		lends := func() int {
			l, ok := g.Lend(time.Now(), time.Second)
			if !ok {
				t.Error("it lends nothing yet")
			}
			return len(l.Pairs)
		}
		time.Sleep(time.Second)
		if lends() != 1 {
			t.Errorf("it lends %d pairs, want the one", lends())
		}
		h.Swap(edgeTable(t, 2, nil, "eu-central"))
		if lends() != 0 {
			t.Error("under the table of a recovery it lends what was before")
		}
		h.Swap(edgeTable(t, 1, nil, "eu-central"))
		z.set(func() { z.err = fault.New(fault.Denied, "NODE_REMOVED", "removed") })
		time.Sleep(11 * time.Second)
		if lends() != 0 {
			t.Error("denied, it lends still")
		}
	})
}

// A process whose place was taken goes by what it is lent, and by nothing else; it lends that on.
func TestGrants_Borrow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := holding(t, "eu-central", "eu-north")
		g, err := failover.NewGrants(failover.GrantsConfig{Requester: &leader{}, Tables: h, Self: self, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		lent := grant.Lent{Pairs: []grant.LentPair{{To: "eu-central", Policies: []string{"gdpr"}, Catalog: 1, Store: 1, Lasts: 3 * time.Second}}, TakeLasts: 2 * time.Second}
		changed, asked := g.Changed(), time.Now()
		g.Borrow(lent.Held(asked))
		select {
		case <-changed:
		default:
			t.Error("nobody is told")
		}
		takes := func() bool { return g.Takes(&grant.Grant{OfflineTTL: time.Hour}) }
		if g.Live(h.Load(), "gdpr", "eu-central") == nil || g.Live(h.Load(), "gdpr", "eu-north") != nil || !takes() {
			t.Error("it does not go by what it was lent")
		}
		time.Sleep(time.Second)
		if l, ok := g.Lend(time.Now(), time.Minute); !ok || len(l.Pairs) != 1 || l.Pairs[0].Lasts != 2*time.Second || l.TakeLasts-l.TakeAge != time.Second {
			t.Errorf("a second later it lends %+v: %v, want what is left", l, ok)
		}
		time.Sleep(time.Second)
		if takes() {
			t.Error("after its leave it takes relays")
		}
		time.Sleep(time.Second)
		if g.Live(h.Load(), "gdpr", "eu-central") != nil {
			t.Error("after what was lent it relays")
		}
		g.Borrow(lent.Held(time.Now()))
		g.Borrow(&grant.Held{})
		if g.Live(h.Load(), "gdpr", "eu-central") != nil || takes() {
			t.Error("with nothing lent it relays")
		}
	})
}

// That an earlier run has ended is said at once, whether there is anything to ask for or not, and until it is heard.
func TestGrants_Again(t *testing.T) {
	for _, pairs := range [][]string{nil, {"eu-central"}} {
		t.Run(fmt.Sprint(len(pairs), " pairs"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				z := &zone{}
				if len(pairs) > 0 {
					z.grants = []*syncv1.SignedGrant{sign(t, grantTo("eu-central"))}
				}
				var dead []string
				g := startWith(t, z, holding(t, pairs...), func(c *failover.GrantsConfig) { c.Dead = func() []string { return dead } })
				time.Sleep(time.Second)
				z.since()
				dead = []string{"0a"}
				began := time.Since(z.began)
				g.Again()
				synctest.Wait()
				if times, named := z.since(); len(times) != 1 || times[0] != began || named[0] != "[0a]" {
					t.Errorf("asked at %v, naming %v, want at once and of 0a", times, named)
				}
				time.Sleep(9 * time.Second)
				if times, _ := z.since(); len(times) != 0 {
					t.Errorf("answered, it asks again at %v", times)
				}
			})
		})
	}
	t.Run("without an answer", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			z := &zone{leader: leader{err: fault.New(fault.Unavailable, "NO_LEADER", "no leader")}}
			g := startWith(t, z, holding(t), nil)
			synctest.Wait()
			g.Again()
			time.Sleep(3500 * time.Millisecond)
			z.set(func() { z.err = nil })
			if times, _ := z.since(); fmt.Sprint(times) != "[0s 1s 2s 3s]" {
				t.Errorf("it asks at %v, want each second", times)
			}
			time.Sleep(time.Minute)
			if times, _ := z.since(); fmt.Sprint(times) != "[4s]" {
				t.Errorf("then at %v, want once more", times)
			}
		})
	})
	t.Run("while it asks", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			z := &zone{leader: leader{slow: 100 * time.Millisecond}}
			g := startWith(t, z, holding(t), nil)
			synctest.Wait()
			g.Again()
			time.Sleep(50 * time.Millisecond)
			g.Again() // too late for the first
			time.Sleep(time.Minute)
			if times, _ := z.since(); fmt.Sprint(times) != "[0s 100ms]" {
				t.Errorf("it asks at %v, want once more as soon as it may", times)
			}
		})
	})
}

// The elder may be the process before this one, which is about to be found out: it is asked again soon, for as long as that may be.
func TestGrants_Twin(t *testing.T) {
	for _, c := range []struct {
		name   string
		reason string
		twin   func(time.Duration) bool
		want   string
	}{
		{"it may be the process before", "TWIN", func(time.Duration) bool { return true }, "[0s 200ms 400ms 600ms 800ms 1s]"},
		{"it is not any more", "TWIN", func(since time.Duration) bool { return since < 300*time.Millisecond }, "[0s 200ms 400ms]"},
		{"it is not", "TWIN", func(time.Duration) bool { return false }, "[0s 1s]"},
		{"there is none", "TWIN", nil, "[0s 1s]"},
		{"another answer", "STALE_TABLE", func(time.Duration) bool { return true }, "[0s 1s]"},
		{"no answer", "NO_LEADER", func(time.Duration) bool { return true }, "[0s 1s]"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				z := &zone{leader: leader{err: fault.New(fault.Unavailable, c.reason, "not now")}}
				var mu sync.Mutex
				told := 0
				startWith(t, z, holding(t, "eu-central"), func(cfg *failover.GrantsConfig) {
					if c.twin != nil {
						began := time.Now()
						cfg.Twin = func() bool { mu.Lock(); defer mu.Unlock(); told++; return c.twin(time.Since(began)) }
					}
				})
				time.Sleep(1100 * time.Millisecond)
				if times, _ := z.since(); fmt.Sprint(times) != c.want {
					t.Errorf("it asks at %v, want %s", times, c.want)
				}
				mu.Lock()
				defer mu.Unlock()
				if c.reason != "TWIN" && told != 0 {
					t.Errorf("told %d times of a twin", told)
				}
			})
		})
	}
}

// A question that ends with the process is no silence of the zone: its grants go on for their ordinary lifetimes, and not for those of
// an edge that nobody answers.
func TestGrants_TheEndIsNoSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &leader{grants: []*syncv1.SignedGrant{sign(t, grantTo("eu-central"))}}
		h := holding(t, "eu-central")
		g, err := failover.NewGrants(failover.GrantsConfig{Requester: l, Tables: h, Self: self, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); g.Run(ctx) }()
		time.Sleep(time.Second)
		l.set(func() { l.slow = 2 * time.Second })
		time.Sleep(10 * time.Second) // it asks
		cancel()
		<-done
		if g.Now().Away() {
			t.Error("the zone is taken for silent")
		}
		time.Sleep(30 * time.Second)
		if g.Live(h.Load(), "gdpr", "eu-central") != nil {
			t.Error("a grant goes on past its ordinary end")
		}
	})
}

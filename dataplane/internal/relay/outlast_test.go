package relay_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"bailiwick/dataplane/internal/relay"
	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"
	"bailiwick/regions/grant"
	"bailiwick/shared/table"
)

// What is under way when another process takes this one's place goes on; nothing more leaves, and nothing is said of the region.
func TestClient_Retire(t *testing.T) {
	bubble(t, "what is under way goes on", func(t *testing.T) {
		b := newVirtualBorder(t)
		over := b.begin(t, 5*time.Second)
		b.client.Retire()
		b.client.Retire() // is no harm
		before, rows, sessions := b.local.count(), len(b.evidence.rows), b.client.Sessions()
		for _, once := range []bool{false, true} {
			f := b.forward(nil, 0)
			f.Once = once
			_, err := b.client.Do(t.Context(), f)
			if e, ok := errors.AsType[*relay.Error](err); !ok || e.Sent || e.Down || e.Unreachable || e.Leaving || e.Rule != "" {
				t.Errorf("a new relay: %+v, want it unsent, and no word on its region", err)
			}
		}
		if n := b.local.count() - before; n != 0 || len(b.evidence.rows) != rows || b.client.Sessions() != sessions {
			t.Errorf("%d reached the upstream, %d rows say that they were relayed, %d sessions are open and were %d", n, len(b.evidence.rows)-rows, b.client.Sessions(), sessions)
		}
		if b.client.InFlight() != 1 {
			t.Errorf("%d are under way, want the one", b.client.InFlight())
		}
		if took, err := over(); err != nil || took != 5*time.Second {
			t.Errorf("the one under way: %v after %s, want its answer after 5s", err, took)
		}
		if b.client.InFlight() != 0 {
			t.Errorf("then %d are under way", b.client.InFlight())
		}
	})
	for name, forbid := range map[string]func(b *border){
		"its grant goes": func(b *border) { b.grants.Borrow(&grant.Held{}) },
		"its pair goes":  func(b *border) { b.west.Swap(view(b.t, "eu-west", nil, nil)) },
		"its peer leaves the registry": func(b *border) {
			b.grants.Borrow(grant.Lent{Pairs: []grant.LentPair{{To: "eu-central", Policies: []string{"gdpr"}, Peers: []grant.Peer{{Edge: "another", Addr: b.addr}}, Catalog: 1, Store: 1, Lasts: time.Minute}}}.Held(time.Now()))
		},
	} {
		bubble(t, "what is under way is cut when "+name, func(t *testing.T) {
			b := newVirtualBorder(t)
			over := b.begin(t, time.Minute)
			b.client.Retire()
			time.Sleep(time.Second)
			forbid(b)
			took, err := over()
			if e, ok := errors.AsType[*relay.Error](err); !ok || e.Rule != relay.RuleCut || took < time.Second || took > 1200*time.Millisecond {
				t.Errorf("it ends with %v after %s, want it cut at once", err, took)
			}
		})
	}
	bubble(t, "what is under way goes on by what is lent, and no longer", func(t *testing.T) {
		b := newVirtualBorder(t)
		over := b.begin(t, time.Minute)
		b.client.Retire()
		lent := b.grants.Now().Lend(grant.At{}, time.Now(), 3*time.Second)
		b.grants.Borrow(lent.Held(time.Now()))
		took, err := over()
		if rule(err) != relay.RuleCut || took < 3*time.Second || took > 3200*time.Millisecond {
			t.Errorf("it ends with %v after %s, want it cut after 3s", err, took)
		}
	})
}

// Sessions are kept warm for relays that may come: none does.
func TestClient_DialsNobodyOnceItIsRetired(t *testing.T) {
	for _, retired := range []bool{false, true} {
		bubble(t, fmt.Sprint("retired: ", retired), func(t *testing.T) {
			var dialled atomic.Int64
			network := &memory{conns: make(chan net.Conn), done: make(chan struct{})}
			b := newBorderOver(t, nil, nil, network, func(ctx context.Context, n, addr string) (net.Conn, error) {
				if addr == "192.0.2.2:443" {
					dialled.Add(1)
				}
				return network.dial(ctx, n, addr)
			})
			if retired {
				b.client.Retire()
			}
			b.mu.Lock()
			b.mint = func() []*syncv1.SignedGrant {
				g := b.grant()
				g.Peers = []*syncv1.Peer{{Edge: "eu-central-edge-1", RelayAddr: "192.0.2.2:443"}}
				return []*syncv1.SignedGrant{sign(t, emeaKey, g)}
			}
			b.mu.Unlock()
			time.Sleep(time.Minute) // some questions later
			if (dialled.Load() == 0) != retired {
				t.Errorf("a peer that is new was dialled %d times", dialled.Load())
			}
		})
	}
}

// ending says whether streams of the first relay that came are told to end.
func (b *border) ending(t *testing.T) bool {
	t.Helper()
	b.local.mu.Lock()
	defer b.local.mu.Unlock()
	if b.local.seen[0].Ending == nil {
		t.Fatal("streams are never told")
	}
	select {
	case <-b.local.seen[0].Ending:
		return true
	default:
		return false
	}
}

// A receiver whose place another process takes takes nothing, and has what is under way go on: streams too, which nobody tells to end.
func TestServer_LeaveKeepsWhatIsUnderWay(t *testing.T) {
	bubble(t, "to its end", func(t *testing.T) {
		b := newVirtualBorder(t)
		over := b.begin(t, time.Hour)
		if b.ending(t) {
			t.Error("streams are to end while the edge stays")
		}
		b.server.Leave()
		b.server.Leave() // is no harm
		before := b.local.count()
		_, err := b.do(t.Context(), nil)
		if e, ok := errors.AsType[*relay.Error](err); !ok || e.Sent || e.Down || b.local.count() != before {
			t.Errorf("a relay that comes: %v, %d reached the upstream; want it unsent, and no word on its API", err, b.local.count()-before)
		}
		time.Sleep(59 * time.Minute)
		if b.ending(t) || b.server.InFlight() != 1 {
			t.Errorf("59 minutes later streams are to end: %v, %d are under way", b.ending(t), b.server.InFlight())
		}
		if took, err := over(); err != nil || took != time.Hour {
			t.Errorf("the relay under way: %v after %s, want its answer after an hour", err, took)
		}
	})
	for name, forbid := range map[string]func(b *border){
		"the leave goes": func(b *border) { b.mu.Lock(); b.noLeave = true; b.mu.Unlock() },
		"the pair goes": func(b *border) {
			b.central.Swap(view(b.t, "eu-central", nil, []table.Node{westNode}))
		},
	} {
		bubble(t, "until "+name, func(t *testing.T) {
			b := newVirtualBorder(t)
			over := b.begin(t, time.Minute)
			b.server.Leave()
			time.Sleep(time.Second)
			forbid(b)
			if took, err := over(); err == nil || took > 1600*time.Millisecond {
				t.Errorf("the relay under way: %v after %s, want it cut", err, took)
			}
			<-b.local.cut
		})
	}
}

// Who has left waits for what is under way as long as it may; then streams are told, and all has the time of the end.
func TestServer_Outlast(t *testing.T) {
	const long = 10 * time.Second
	for _, c := range []struct {
		name     string
		works    time.Duration
		answered bool
		tells    bool
		lasts    time.Duration
	}{
		{"one that ends by itself", 3 * time.Second, true, false, 3 * time.Second},
		{"one that ends once it is told", long + time.Second, true, true, long + time.Second},
		{"one that does not", time.Hour, false, true, long + 2*time.Second},
	} {
		for _, left := range []bool{false, true} {
			bubble(t, fmt.Sprint(c.name, ", left before: ", left), func(t *testing.T) {
				b := newVirtualBorder(t)
				over := b.begin(t, c.works)
				if left {
					b.server.Leave()
				}
				began := time.Now()
				ctx, cancel := context.WithTimeout(context.Background(), long)
				defer cancel()
				outlasted := make(chan time.Duration, 1)
				go func() { b.server.Outlast(ctx); outlasted <- time.Since(began) }()
				time.Sleep(min(c.works, long) - time.Millisecond)
				if b.ending(t) {
					t.Error("streams are told before their time")
				}
				if before := b.local.count(); true {
					if _, err := b.do(t.Context(), nil); err == nil || b.local.count() != before {
						t.Errorf("a relay that comes meanwhile: %v", err)
					}
				}
				time.Sleep(2 * time.Millisecond)
				synctest.Wait()
				if b.ending(t) != c.tells {
					t.Errorf("streams are told: %v, want %v", b.ending(t), c.tells)
				}
				if _, err := over(); (err == nil) != c.answered {
					t.Errorf("the relay under way: %v, answered is to be %v", err, c.answered)
				}
				if took := <-outlasted; took < c.lasts-10*time.Millisecond || took > c.lasts+200*time.Millisecond {
					t.Errorf("outlasted after %s, want %s", took, c.lasts)
				}
			})
		}
	}
	bubble(t, "nobody has to wait where there is none", func(t *testing.T) {
		b := newVirtualBorder(t)
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		began := time.Now()
		b.server.Outlast(ctx)
		if took := time.Since(began); took != 0 {
			t.Errorf("outlasted after %s", took)
		}
	})
}

// An edge that stops tells streams at once.
func TestServer_DrainTellsStreams(t *testing.T) {
	bubble(t, "", func(t *testing.T) {
		b := newVirtualBorder(t)
		over := b.begin(t, time.Second)
		go b.server.Drain(t.Context())
		synctest.Wait()
		if !b.ending(t) {
			t.Error("streams are not told")
		}
		if _, err := over(); err != nil {
			t.Error(err)
		}
	})
}

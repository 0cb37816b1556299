package failover_test

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"bailiwick/dataplane/internal/failover"
	"bailiwick/dataplane/internal/policy"
	"bailiwick/dataplane/internal/upstream"
	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"
)

// pages are the health pages of several upstreams.
type pages struct {
	mu   sync.Mutex
	down map[string]bool
	n    int
}

// asked is how often any of them was.
func (p *pages) asked() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.n
}

func (p *pages) Probe(_ context.Context, _ upstream.Place, url string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.n++
	if p.down[url] {
		return errors.New("503")
	}
	return nil
}

// Ejection says which of this region's upstreams is bad. It is never a reason to go where the rules do not lead: however
// bad they are, an attempt is one of them, or a region that the newest table pairs with this one, for which a grant is
// held, where the API is deployed and which was not tried before. Regions of everywhere are well and granted all the
// while, or paired without a grant: none is a way out.
func TestRouter_EjectionOpensNothing(t *testing.T) {
	homes := []string{"http://home-1", "http://home-2"}
	elsewhere := []string{"eu-central", "eu-north", "us-east", "ap-south"}
	var relayed, ejected, nowhere, tempted int
	for seed := range uint64(60) {
		synctest.Test(t, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 5))
			some := func(of []string) (out []string) {
				for _, r := range of {
					if rnd.IntN(2) == 0 {
						out = append(out, r)
					}
				}
				return out
			}
			granted := some(elsewhere)
			var signed []*syncv1.SignedGrant
			for _, to := range granted {
				signed = append(signed, sign(t, grantTo(to)))
			}
			paired := some(elsewhere)
			h := &policy.Holder{}
			h.Swap(edgeTable(t, 1, homes, paired...))
			p := &pages{down: map[string]bool{}}
			m, err := failover.New(failover.Config{Tables: h, Prober: p, Logger: slog.New(slog.DiscardHandler)})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(context.Background())
			done := make(chan struct{})
			go func() { defer close(done); m.Run(ctx) }()
			defer func() { cancel(); <-done }()
			r := failover.NewRouter(m, start(t, &leader{grants: signed}, h), "eu-west")
			time.Sleep(1500 * time.Millisecond)
			deployed := append(some(elsewhere), "eu-west")
			bad := map[string]time.Time{}
			for range 60 {
				switch rnd.IntN(5) {
				case 0: // each upstream is well or not; most often all are not
					p.mu.Lock()
					for _, url := range homes {
						p.down[url] = rnd.IntN(3) > 0
					}
					p.mu.Unlock()
				case 1: // rules change
					paired = some(elsewhere)
					h.Swap(edgeTable(t, 1, homes, paired...))
				case 2:
					to := elsewhere[rnd.IntN(len(elsewhere))]
					r.PeerBad(to, nil, 2*time.Second)
					bad[to] = time.Now().Add(2 * time.Second)
				}
				time.Sleep(time.Duration(rnd.IntN(3000)) * time.Millisecond)
				api := *h.Load().API("orders.test")
				api.API.Regions = deployed
				a := r.Start(&api, nil, rnd.IntN(2) == 0)
				var tried []string
				for {
					c, ok := a.Next(ctx)
					if rnd.IntN(4) == 0 && ok {
						c, ok = a.Hedge()
					}
					if !ok {
						if len(tried) == 0 {
							nowhere++
						}
						break
					}
					if c.Home() {
						if c.Target.State().Phase == failover.Ejected {
							ejected++ // as the last resort, by its own word that it lives
						}
						outcome := failover.Answered
						if rnd.IntN(3) > 0 {
							outcome = failover.Failed
						}
						c.Target.Begin().End(outcome)
						continue
					}
					switch {
					case !slices.Contains(paired, c.To):
						t.Fatalf("seed %d: %s is tried, and the table pairs eu-west with %v", seed, c.To, paired)
					case !slices.Contains(granted, c.To) || c.Grant == nil || c.Grant.To != c.To:
						t.Fatalf("seed %d: %s is tried with the grant %+v; granted are %v", seed, c.To, c.Grant, granted)
					case !slices.Contains(deployed, c.To):
						t.Fatalf("seed %d: %s is tried, and the API is deployed in %v", seed, c.To, deployed)
					case slices.Contains(tried, c.To):
						t.Fatalf("seed %d: %s is tried twice", seed, c.To)
					case time.Now().Before(bad[c.To]):
						t.Fatalf("seed %d: %s is tried, and was bad a moment ago", seed, c.To)
					}
					tried = append(tried, c.To)
					relayed++
				}
				for _, to := range granted {
					if !slices.Contains(paired, to) {
						tempted++ // well and granted, and closed by the table
					}
				}
			}
		})
	}
	t.Logf("%d relays, %d answers of ejected upstreams, %d times nowhere, %d times a granted region was closed", relayed, ejected, nowhere, tempted)
	if relayed < 1000 || nowhere < 100 || tempted < 1000 {
		t.Errorf("too tame: %d relays, %d times nowhere, %d times a granted region was closed", relayed, nowhere, tempted)
	}
}

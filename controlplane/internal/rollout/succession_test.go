package rollout_test

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"bailiwick/controlplane/internal/adminapi/apitest"
	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
	"bailiwick/controlplane/internal/rollout"
)

// watched is a store whose watches tell nothing, so that its followers look whenever they poll; and that takes no write while
// it has no quorum.
type watched struct {
	*apitest.Store
	mu   sync.Mutex
	away bool
}

type silence struct{}

func (silence) Next(ctx context.Context) ([]group.Event, group.Revision, error) {
	<-ctx.Done()
	return nil, group.Revision{}, ctx.Err()
}
func (silence) Close() {}

func (*watched) Watch(uint64, string) (group.Watch, error) { return silence{}, nil }

func (s *watched) Txn(ctx context.Context, t group.Txn) (group.Result, error) {
	s.mu.Lock()
	away := s.away
	s.mu.Unlock()
	if away {
		return group.Result{}, errors.New("no quorum")
	}
	return s.Store.Txn(ctx, t)
}

func (s *watched) setAway(away bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.away = away
}

// Leaders of the zone and of the catalog that begin while a change fails take it back at their first looks, by what edges tell
// from then on: nobody waits for the end of the soak, whatever those before them had found and could not write.
func TestSuccession_TakesBackAtTheFirstLook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &watched{Store: installation(t)}
		change(t, s.Store, rollout.Order{Soak: time.Hour}, op(model.APIKey("emea", "orders"), orders("/bad")))
		conduct := func(ctx context.Context) {
			c := &rollout.Conductor{Catalog: s, Soak: soak, Logger: slog.New(slog.DiscardHandler)}
			_ = c.Run(ctx)
		}
		// The canary's numbers: a fifth fails, at 75 requests a second, since it holds the change.
		var since time.Time
		reports := func() ([]rollout.EdgeReport, error) {
			o := rollout.Outcome{API: "orders", BeforeRequests: 100}
			r, under := current(t, s.Store)
			holds := under && r.Reaches(model.Node{Name: "eu-west-1", Region: "eu-west", Zone: "emea"})
			if holds && since.IsZero() {
				since = time.Now()
			}
			if holds {
				o.Requests = int64(75 * time.Since(since).Seconds())
				o.Failed = o.Requests / 5
			}
			return []rollout.EdgeReport{{Report: rollout.Report{Edge: "eu-west-1", Region: "eu-west", Connected: true, Ready: true, Judged: holds, Outcomes: []rollout.Outcome{o}},
				Newest: true, Epoch: s.Local().Revision().Epoch, Index: 1 << 40}}, nil
		}
		zone := func(ctx context.Context) {
			w := &rollout.Watch{Zone: "emea", Catalog: s, Store: s, Reports: reports, Soak: soak, Logger: slog.New(slog.DiscardHandler)}
			_ = w.Run(ctx)
		}
		lead := func() (end func()) {
			ctx, cancel := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			wg.Go(func() { conduct(ctx) })
			wg.Go(func() { zone(ctx) })
			return func() { cancel(); wg.Wait() }
		}
		kill := lead()
		for since.IsZero() {
			time.Sleep(100 * time.Millisecond)
			synctest.Wait()
		}
		s.setAway(true) // before anything fails: what those leaders find goes with them
		time.Sleep(8 * time.Second)
		kill()
		if _, under := current(t, s.Store); !under {
			t.Fatal("taken back without a quorum")
		}
		s.setAway(false)
		began := time.Now()
		end := lead()
		defer end()
		for {
			r, under := current(t, s.Store)
			if !under {
				break
			}
			if took := time.Since(began); took > 3*time.Second { // two polls, and the conductor's
				t.Fatalf("after %v it is %+v", took, r)
			}
			time.Sleep(100 * time.Millisecond)
			synctest.Wait()
		}
	})
}

package failover_test

import (
	"context"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"bailiwick/dataplane/internal/failover"
	"bailiwick/dataplane/internal/policy"
)

// A service whose health page is well and that answers 503 to all that is new may still finish what it had: answers to
// what was sent before it was ejected do not bring it home at once, those of the last resort do.
func TestTarget_ComesHomeByAnswersOfTheLastResortAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &policy.Holder{}
		h.Swap(edgeTable(t, 1, []string{"http://home"}))
		m, err := failover.New(failover.Config{Tables: h, Prober: &prober{}, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { defer close(done); m.Run(ctx) }()
		defer func() { cancel(); <-done }()
		r := failover.NewRouter(m, start(t, &leader{}, h), "eu-west")
		a := r.Start(h.Load().API("orders.test"), nil, false)
		c, ok := a.Next(ctx)
		if !ok || !c.Home() {
			t.Fatalf("all well: got %v, %v, want home", c, ok)
		}
		var slow []failover.Sent
		for range 20 {
			slow = append(slow, c.Target.Begin())
		}
		time.Sleep(10 * time.Millisecond)
		for range 3 {
			c.Target.Begin().End(failover.Unavailable)
		}
		for _, s := range slow {
			time.Sleep(100 * time.Millisecond)
			s.End(failover.Answered)
		}
		if s := c.Target.State(); s.Phase != failover.Ejected || !s.Good {
			t.Fatalf("2 s after three 503, with the health page well: %v, want it ejected, and good enough for a last resort", s.Phase)
		}
		for range 15 {
			sent := c.Target.Begin()
			time.Sleep(100 * time.Millisecond)
			sent.End(failover.Answered)
		}
		if s := c.Target.State(); s.Phase != failover.Healthy {
			t.Errorf("after fifteen answers of the last resort: %v, want it healthy", s.Phase)
		}
	})
}

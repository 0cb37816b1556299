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

// crowded is a target whose health page can hang.
func crowded(t *testing.T) (*prober, *failover.Target) {
	p, target, _ := crowdedWalks(t)
	return p, target
}

// crowdedWalks is crowded, and begins walks that end there or nowhere.
func crowdedWalks(t *testing.T) (*prober, *failover.Target, func(once bool) bool) {
	p, m, h := crowdedMonitor(t)
	walk := walksOf(t, failover.NewRouter(m, start(t, &leader{}, h), "eu-west"), h)
	target, _ := walk(false)
	if target == nil {
		t.Fatal("there is no target")
	}
	return p, target, func(once bool) bool {
		target, _ := walk(once)
		return target != nil
	}
}

// crowdedMonitor has an API with one target, and pairs with other regions.
func crowdedMonitor(t *testing.T, to ...string) (*prober, *failover.Monitor, *policy.Holder) {
	return placedMonitor(t, 0, to...)
}

// placedMonitor is crowdedMonitor's at an edge with so many places; 0: as many as there are by default.
func placedMonitor(t *testing.T, places int, to ...string) (*prober, *failover.Monitor, *policy.Holder) {
	h := &policy.Holder{}
	h.Swap(edgeTable(t, 1, []string{"http://home"}, to...))
	p := &prober{}
	m, err := failover.New(failover.Config{Tables: h, Prober: p, Places: places, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); m.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return p, m, h
}

// walksOf begins walks, and says where they come to first: a target, a region or nowhere.
func walksOf(t *testing.T, router *failover.Router, h *policy.Holder) func(once bool) (*failover.Target, string) {
	return func(once bool) (*failover.Target, string) {
		a := router.Start(h.Load().API("orders.test"), nil, once)
		c, _ := a.Next(t.Context())
		return c.Target, c.To
	}
}

// One in doubt whose health page hangs serves while it answers others, what may be sent again; one that answers nobody does not.
func TestAttempts_AnswersAreItsWordTooInDoubt(t *testing.T) {
	doubt := func(target *failover.Target) {
		for target.State().Phase == failover.Healthy {
			target.Begin().End(failover.Failed)
		}
	}
	for _, c := range []struct{ once, answers, want bool }{{false, true, true}, {true, true, false}, {false, false, false}, {true, false, false}} {
		synctest.Test(t, func(t *testing.T) {
			p, target, walk := crowdedWalks(t)
			answers(target, time.Second)
			p.set(nil, true)
			doubt(target)
			if c.answers {
				go answers(target, time.Second)
			}
			if got := walk(c.once); got != c.want {
				t.Errorf("must not be lost %v, others are answered %v: served %v, want %v", c.once, c.answers, got, c.want)
			}
			time.Sleep(2 * time.Second)
		})
	}
}

// answers has requests answered for so long, a hundred a second.
func answers(target *failover.Target, long time.Duration) {
	for range long / (10 * time.Millisecond) {
		time.Sleep(10 * time.Millisecond)
		target.Begin().End(failover.Answered)
	}
}

func (p *prober) times() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.asked
}

// While requests are answered the prober asks often enough that its connection is kept by servers that close idle ones after 5 s,
// and what comes of it is nothing to go by.
func TestMonitor_KeepsTheProbersConnectionBesideTraffic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, target := crowded(t)
		answers(target, time.Second)
		for range 20 {
			before := p.times()
			answers(target, 5*time.Second)
			if n := p.times() - before; n < 1 || n > 2 {
				t.Errorf("asked %d times in 5 s beside traffic, want one or two", n)
			}
		}
		p.set(context.DeadlineExceeded, true)
		answers(target, time.Minute)
		if got := target.State().Phase; got != failover.Healthy {
			t.Errorf("a health page that hangs beside traffic makes it %s", got)
		}
	})
}

// A probe that runs out of time takes no target that answers others; one that answers nobody it takes as fast as ever, and one
// that says that it is not well too.
func TestMonitor_AProbeThatIsLateBesideAnswersEjectsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, target := crowded(t)
		answers(target, time.Second)
		p.set(nil, true)
		for range 20 {
			go target.Alive(t.Context()) // somebody wants to know
			answers(target, 2*time.Second)
			if got := target.State().Phase; got == failover.Ejected {
				t.Fatal("it is ejected while it answers")
			}
		}
		target.Begin().End(failover.Failed) // in doubt: its probes are not for warmth alone
		answers(target, 10*time.Millisecond)
		time.Sleep(time.Second) // and nothing any more
		go target.Alive(t.Context())
		time.Sleep(510 * time.Millisecond)
		if got := target.State().Phase; got != failover.Ejected {
			t.Errorf("one that answers nobody is %s", got)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		p, target := crowded(t)
		answers(target, time.Second)
		p.set(errUnwell{}, false)
		go target.Alive(t.Context())
		answers(target, 100*time.Millisecond)
		if got := target.State().Phase; got != failover.Ejected {
			t.Errorf("one whose health page says that it is not well is %s", got)
		}
	})
}

type errUnwell struct{}

func (errUnwell) Error() string { return "status 500" }

package failover_test

import (
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"bailiwick/dataplane/internal/failover"
	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"
)

// Who has nowhere else to go waits for an upstream that has fallen silent a moment ago, and is served when it speaks again; where it
// refuses, or has been silent for long, he is told at once, and sent into silence he never is.
func TestAttempts_WaitForOneThatHasFallenSilent(t *testing.T) {
	const ms = time.Millisecond
	for name, c := range map[string]struct {
		page    error         // what it says where it is not silent
		silent  time.Duration // since it was last heard, when the walk begins
		more    time.Duration // it stays silent
		once    bool
		served  bool
		atLeast time.Duration
		atMost  time.Duration
	}{
		"it speaks again":                           {silent: 700 * ms, more: 1300 * ms, served: true, atLeast: 1300 * ms, atMost: 1800 * ms},
		"so does what must not be lost":             {silent: 700 * ms, more: 1300 * ms, once: true, served: true, atLeast: 1300 * ms, atMost: 1800 * ms},
		"it speaks again while it is only in doubt": {silent: 0, more: 2000 * ms, served: true, atLeast: 2000 * ms, atMost: 2500 * ms},
		"it never does":                             {silent: 700 * ms, more: time.Hour, atLeast: 4000 * ms, atMost: 4800 * ms},
		"it has not for long":                       {silent: 6000 * ms, more: time.Hour, atMost: ms},
		"it speaks, and refuses":                    {silent: 700 * ms, more: 100 * ms, page: errUnwell{}, atMost: 700 * ms},
	} {
		synctest.Test(t, func(t *testing.T) {
			p, target, walk := crowdedWalks(t)
			answers(target, time.Second)
			p.set(nil, true)
			target.Begin().End(failover.Failed)
			hung := target.Begin()
			defer hung.End(failover.Tick)
			time.Sleep(c.silent)
			if got := target.State().Phase == failover.Ejected; got != (c.silent > 500*ms) {
				t.Fatalf("%s: ejected %v after %v", name, got, c.silent)
			}
			time.AfterFunc(c.more, func() { p.set(c.page, false) })
			began := time.Now()
			got := walk(c.once)
			if took := time.Since(began); got != c.served || took < c.atLeast || took > c.atMost {
				t.Errorf("%s: served %v after %v, want %v after %v to %v", name, got, took, c.served, c.atLeast, c.atMost)
			}
			time.Sleep(time.Second)
		})
	}
}

// Requests that failed have no word about the page: who has nowhere else to go asks it at once, and is served if it is well. Before,
// everybody was refused until it was asked in its turn. If it is not, he is told so.
func TestAttempts_AskThePageOfOneThatFailed(t *testing.T) {
	for _, page := range []error{nil, errUnwell{}} {
		synctest.Test(t, func(t *testing.T) {
			p, target, walk := crowdedWalks(t)
			answers(target, time.Second)
			fail := func(n int) {
				t.Helper()
				for range n {
					target.Begin().End(failover.Failed)
				}
				if s := target.State(); s.Phase != failover.Ejected || s.Good {
					t.Fatalf("after %d that failed it is %v, good %v", n, s.Phase, s.Good)
				}
			}
			fail(3)
			p.set(page, false)
			if began := time.Now(); walk(false) != (page == nil) || time.Since(began) > time.Millisecond {
				t.Errorf("page %v: served %v after %v", page, page != nil, time.Since(began))
			}
			if page == nil { // and again, as the last resort
				fail(1)
				if !walk(false) {
					t.Error("one more that failed, and nobody is served though the page is well")
				}
			}
			time.Sleep(time.Second)
		})
	}
}

// Not more than so many wait for a silent upstream at a time, and of one customer no more than leave as many free: the others are told
// at once, and those who have waited leave their places.
func TestAttempts_FewWaitForASilentOne(t *testing.T) {
	one := func(int) string { return "one" }
	fewWait(t, "one customer's crowd", 0, 512, 600, one)
	fewWait(t, "two thousand customers", 0, 1024, 2000, func(i int) string { return fmt.Sprint(i) })
	fewWait(t, "one customer's crowd, and behind it another's hundreds", 0, 512+256, 600+300, func(i int) string {
		if i < 600 {
			return one(i)
		}
		return "another"
	})
	for places, few := range map[int]int{1 << 20: 512, 4096: 128, 64: 2, 1: 1} { // of an edge that has so many, a sixteenth
		fewWait(t, fmt.Sprintf("one customer's crowd at an edge with %d places", places), places, few, 600, one)
	}
}

func fewWait(t *testing.T, name string, places, few, more int, customer func(i int) string) {
	synctest.Test(t, func(t *testing.T) {
		p, m, h := placedMonitor(t, places)
		router := failover.NewRouter(m, start(t, &leader{}, h), "eu-west")
		walk := func(customer string) bool {
			a := router.Start(h.Load().API("orders.test"), nil, false)
			a.For(customer)
			_, ok := a.Next(t.Context())
			return ok
		}
		target, _ := walksOf(t, router, h)(false)
		answers(target, time.Second)
		p.set(nil, true)
		target.Begin().End(failover.Failed)
		hung := target.Begin()
		defer hung.End(failover.Tick)
		time.Sleep(700 * time.Millisecond)
		for round := range 2 {
			var waited, told atomic.Int32
			for i := range more {
				if i > 0 && customer(i) != customer(i-1) {
					synctest.Wait()
				}
				go func() {
					began := time.Now()
					served := walk(customer(i))
					switch took := time.Since(began); {
					case served && took > 100*time.Millisecond:
						waited.Add(1)
					case !served && took < time.Millisecond:
						told.Add(1)
					}
				}()
			}
			time.Sleep(time.Second)
			p.set(nil, false)
			time.Sleep(time.Second)
			if int(waited.Load()) != few || int(told.Load()) != more-few {
				t.Fatalf("%s, round %d: of %d %d have waited and were served, and %d were told at once; want %d and %d", name, round, more, waited.Load(), told.Load(), few, more-few)
			}
			p.set(nil, true)
			time.Sleep(1600 * time.Millisecond) // a probe has run out of time
		}
	})
}

// Who asks in the name of another region is told at once: it has others to ask.
func TestAttempts_ForOtherRegionsWaitForNobodySilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, m, h := crowdedMonitor(t)
		walk := walksOf(t, failover.NewRouter(m, nil, "eu-west"), h)
		target, _ := walk(false)
		answers(target, time.Second)
		p.set(nil, true)
		target.Begin().End(failover.Failed)
		time.Sleep(700 * time.Millisecond)
		began := time.Now()
		if to, _ := walk(false); to != nil || time.Since(began) > time.Millisecond {
			t.Errorf("sent into silence %v, after %v", to != nil, time.Since(began))
		}
		time.Sleep(time.Second)
	})
}

// Who waits for a silent one goes to another region as soon as there is one, by what is known and granted then.
func TestAttempts_WhoWaitsTakesARegionThatIsWellAgain(t *testing.T) {
	for _, granted := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			p, m, h := crowdedMonitor(t, "eu-central")
			l := &leader{}
			if granted {
				l.grants = []*syncv1.SignedGrant{sign(t, grantTo("eu-central"))}
			}
			router := failover.NewRouter(m, start(t, l, h), "eu-west")
			walk := walksOf(t, router, h)
			time.Sleep(1500 * time.Millisecond)
			target, _ := walk(false)
			answers(target, time.Second)
			p.set(nil, true)
			target.Begin().End(failover.Failed)
			time.Sleep(700 * time.Millisecond)
			router.PeerBad("eu-central", nil, time.Second)
			began := time.Now()
			to, region := walk(false)
			if took := time.Since(began); to != nil || granted != (region == "eu-central") || granted && took > 1600*time.Millisecond {
				t.Errorf("granted %v: went to %v, %q after %v", granted, to, region, took)
			}
			time.Sleep(time.Second)
		})
	}
}

// One that serves as the last resort goes on while this edge is so late that it hears nothing in time: that is no word against it.
func TestAttempts_AnEdgeThatIsLateKeepsItsLastResort(t *testing.T) {
	for _, c := range []struct {
		after  time.Duration
		served bool
	}{{0, false}, {300 * time.Millisecond, true}} {
		synctest.Test(t, func(t *testing.T) {
			p, target, walk := crowdedWalks(t)
			answers(target, time.Second)
			for range 3 {
				target.Begin().End(failover.Unavailable)
			}
			time.Sleep(7 * time.Second)
			if s := target.State(); s.Phase != failover.Ejected || !s.Good {
				t.Fatalf("with its health page well it is %v, %v", s.Phase, s.Good)
			}
			p.drags(0, c.after)
			p.set(nil, true)
			time.Sleep(3 * time.Second)
			if got := walk(false); got != c.served {
				t.Errorf("probes whose time is over, of which it hears %v late: served %v, want %v", c.after, got, c.served)
			}
			time.Sleep(2 * time.Second)
		})
	}
}

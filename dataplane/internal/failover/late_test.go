package failover_test

import (
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"bailiwick/dataplane/internal/failover"
)

// spared has walks begin a hundred times a second beside a request that is never answered, for so long, while others are answered
// every so often. It says how many walks there were, and how many ended nowhere.
func spared(target *failover.Target, walk func(once bool) bool, every, long time.Duration) (walks, refused int64) {
	hung := target.Begin() // so that silence is one
	defer hung.End(failover.Tick)
	var wg, answers sync.WaitGroup
	var lost atomic.Int64
	var over atomic.Bool
	answers.Go(func() {
		for !over.Load() {
			time.Sleep(every)
			target.Begin().End(failover.Answered)
		}
	})
	for range long / (10 * time.Millisecond) {
		time.Sleep(10 * time.Millisecond)
		walks++
		wg.Go(func() {
			if !walk(false) {
				lost.Add(1)
			}
		})
	}
	wg.Wait()
	over.Store(true)
	answers.Wait()
	return walks, lost.Load()
}

// In a crowd an upstream's health page is late, and its answers come now and then. Whoever asks for a sign of life has time of his
// own to see one, however long ago somebody else asked first: one who comes at the end of that question is not refused for it.
func TestAttempts_WhoJoinsALateQuestionHasTimeOfHisOwn(t *testing.T) {
	for _, every := range []time.Duration{60, 120, 200, 240} {
		synctest.Test(t, func(t *testing.T) {
			p, target, walk := crowdedWalks(t)
			answers(target, time.Second)
			p.set(nil, true)
			if n, refused := spared(target, walk, every*time.Millisecond, 5*time.Second); refused > 0 {
				t.Errorf("an answer every %d ms, and no health page: %d of %d were refused, want none", every, refused, n)
			}
			time.Sleep(2 * time.Second)
		})
	}
}

// drags has each probe take so long before it begins, and so long after its time is over.
func (p *prober) drags(slow, after time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.slow, p.after = slow, after
}

// A health page that was there in its time is heard, however late an edge that is busy comes to hear it.
func TestAttempts_WaitUntilThePageHasSpoken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, target, walk := crowdedWalks(t)
		answers(target, time.Second)
		p.drags(520*time.Millisecond, 0)
		target.Begin().End(failover.Failed)
		for _, once := range []bool{false, true} {
			if began := time.Now(); !walk(once) {
				t.Errorf("must not be lost %v: it was refused after %v, and the page had spoken after 520 ms", once, time.Since(began))
			}
		}
		time.Sleep(2 * time.Second)
	})
}

// An edge that has more to do than it can hears everything late. What it has not heard then is no word against a target: by how
// late its own clock is it knows.
func TestMonitor_AnEdgeThatIsLateItselfEjectsNobody(t *testing.T) {
	for _, c := range []struct {
		after time.Duration
		want  bool
	}{{0, true}, {20 * time.Millisecond, true}, {60 * time.Millisecond, false}, {300 * time.Millisecond, false}} {
		synctest.Test(t, func(t *testing.T) {
			p, target := crowded(t)
			answers(target, time.Second)
			p.drags(0, c.after)
			p.set(nil, true)
			target.Begin().End(failover.Failed)
			time.Sleep(3 * time.Second)
			if got := target.State().Phase == failover.Ejected; got != c.want {
				t.Errorf("probes whose time is over, of which it hears %v late: ejected %v, want %v", c.after, got, c.want)
			}
			time.Sleep(2 * time.Second)
		})
	}
}

// What must not be lost is sent on the health page's word alone, and is given the time for it as well.
func TestAttempts_WhatMustNotBeLostWaitsForAQuestionOfItsOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, target, walk := crowdedWalks(t)
		answers(target, time.Second)
		p.set(nil, true)
		target.Begin().End(failover.Failed)
		go target.Alive(t.Context()) // puts the question that is late, after 500 ms
		go answers(target, time.Second)
		time.Sleep(400 * time.Millisecond)
		target.Begin().End(failover.Failed)
		time.AfterFunc(50*time.Millisecond, func() { p.set(nil, false) })
		began := time.Now()
		if !walk(true) {
			t.Errorf("it was refused after %v, while others were answered and before its own 500 ms were over", time.Since(began))
		}
		time.Sleep(2 * time.Second)
	})
}

// An answer that somebody else gets ends the wait for a sign of life: else everybody waits for a page that is late.
func TestAttempts_AnAnswerEndsTheWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, target, walk := crowdedWalks(t)
		answers(target, time.Second)
		p.set(nil, true)
		target.Begin().End(failover.Failed)
		time.AfterFunc(30*time.Millisecond, func() { target.Begin().End(failover.Answered) })
		began := time.Now()
		if took := time.Duration(0); !walk(false) {
			t.Error("it was refused")
		} else if took = time.Since(began); took > 31*time.Millisecond {
			t.Errorf("it waited %v, want until the answer after 30 ms", took)
		}
		time.Sleep(2 * time.Second)
	})
}

// What a target answers between the moment that it was found silent and the question is its word: who asks then could wait in vain for
// the answer after it, and doubt it. Where that must not be lost it is none.
func TestTarget_AnAnswerBeforeTheQuestionIsASignOfLife(t *testing.T) {
	for _, c := range []struct {
		ago  time.Duration
		once bool
		want bool
	}{{2 * time.Millisecond, false, true}, {time.Millisecond, false, true}, {time.Millisecond - 1, false, false}, {2 * time.Millisecond, true, false}} {
		synctest.Test(t, func(t *testing.T) {
			p, target, _ := crowdedWalks(t)
			answers(target, time.Second)
			p.set(nil, true)
			target.Begin().End(failover.Answered)
			time.Sleep(time.Millisecond)
			began := time.Now()
			if got := target.AliveSince(t.Context(), c.ago, c.once); got != c.want || got && time.Since(began) > 0 {
				t.Errorf("found silent %v ago, answered 1 ms ago, must not be lost %v: alive %v after %v, want %v", c.ago, c.once, got, time.Since(began), c.want)
			}
			if doubted := target.State().Phase != failover.Healthy; doubted == c.want {
				t.Errorf("found silent %v ago, must not be lost %v: in doubt %v", c.ago, c.once, doubted)
			}
			time.Sleep(2 * time.Second)
		})
	}
}

// A sign of life is one also where the health page gives none in its 50 ms: who asks makes nobody's target one in doubt while it
// answers others.
func TestTarget_IsInNoDoubtWhileItAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, target, walk := crowdedWalks(t)
		answers(target, time.Second)
		p.set(nil, true)
		stop := make(chan struct{})
		seen := 0
		var wg sync.WaitGroup
		wg.Go(func() {
			for last := failover.Healthy; ; {
				select {
				case <-stop:
					return
				case <-time.After(time.Millisecond):
				}
				if now := target.State().Phase; now != last {
					last = now
					seen++
				}
			}
		})
		_, refused := spared(target, walk, 80*time.Millisecond, 3*time.Second)
		close(stop)
		wg.Wait()
		if seen > 0 || refused > 0 {
			t.Errorf("with an answer every 80 ms its phase changed %d times, and %d were refused, want neither", seen, refused)
		}
		time.Sleep(2 * time.Second)
	})
}

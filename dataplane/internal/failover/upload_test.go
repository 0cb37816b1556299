package failover_test

import (
	"testing"
	"testing/synctest"
	"time"

	"bailiwick/dataplane/internal/failover"
	"bailiwick/shared/table"
)

// While a client is waited for nothing is asked of the target: it is neither silent nor slow for it.
func TestUpload_WhoStopsBlamesNoTarget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, table.API{Targets: []string{"http://a"}, HealthInterval: time.Hour}, nil)
		_, c := r.next(nil)
		c.Target.Begin().End(failover.Answered)
		u := c.Target.Begin().Upload()
		u.Wait()
		time.Sleep(20 * time.Second) // the client does nothing
		probes := r.pages.asked()
		if where, next := r.next(nil); where != "http://a" {
			t.Errorf("another's request goes to %s", where)
		} else {
			r.answer(next, failover.Answered)
		}
		if n := r.pages.asked() - probes; n != 0 {
			t.Errorf("the target was asked %d times for a sign of life because a client is slow", n)
		}
		u.Go()
		time.Sleep(10 * time.Millisecond)
		u.End(failover.Answered)
		if after := c.Target.StallAfter(0); after > time.Second {
			t.Errorf("an answer is awaited for %v: the client's time was taken for the target's", after)
		}
		c.Leave()

		// One that has all it needs and is silent looks so.
		_, c = r.next(nil)
		u = c.Target.Begin().Upload()
		u.Wait()
		u.Go()
		time.Sleep(20 * time.Second)
		probes = r.pages.asked()
		r.next(nil)
		if r.pages.asked() == probes {
			t.Error("nobody asks a silent target for a sign of life")
		}
		u.End(failover.Answered)
	})
}

// An answer that does not come in its time is slow work, as long as others get theirs.
func TestSent_SlowWorkTakesATargetFromNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, table.API{Targets: []string{"http://a"}, HealthInterval: time.Hour}, nil)
		_, c := r.next(nil)
		for range 10 {
			slow := c.Target.Begin()
			time.Sleep(10 * time.Second)
			c.Target.Begin().End(failover.Answered)
			slow.End(failover.Late)
			if got := c.Target.State(); got.Phase != failover.Healthy || got.Fails != 0 {
				t.Fatalf("one slow request among others makes it %s", got.Phase)
			}
		}
		slow := c.Target.Begin()
		time.Sleep(10 * time.Second)
		r.pages.mu.Lock() // its health page, which is asked at once, says that it is well
		slow.End(failover.Late)
		got := c.Target.State()
		r.pages.mu.Unlock()
		if got.Phase != failover.Suspect {
			t.Errorf("one that answers nobody is %s", got.Phase)
		}
	})
}

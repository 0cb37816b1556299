package sentinel_test

import (
	"testing"
	"testing/synctest"
	"time"
)

// Between the first check and this one the rules may change twice: a recovery, and what somebody opens after it.
// The check read a table that was in force a moment ago, and is not to blame.
func TestSentinel_RemembersEveryChangeOfTheLastMoment(t *testing.T) {
	reopened := func(epoch uint64) world {
		w := good
		w.pairs, w.epoch = append([]string{"eu-west>eu-north/emea"}, w.pairs...), epoch
		return w
	}
	recovered := good
	recovered.epoch = 2
	t.Run("sender", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s, tables := open(t, good)
			raw := signed(t, emeaKey, grant())
			s.Answered(time.Now(), [][]byte{raw})
			time.Sleep(5 * time.Second)
			for _, w := range []world{recovered, reopened(2)} {
				tables.Swap(w.table(t)) // it looks at each, whoever runs between
			}
			if err := s.Leaves(certificate(central), raw, "orders", "eu-west", s.Now()); err == nil || s.Violations() != 0 || s.Late() != 1 {
				t.Errorf("at once: got %v, %d violations, %d late; want it stopped and late", err, s.Violations(), s.Late())
			}
			time.Sleep(900 * time.Millisecond)
			tables.Swap(recovered.table(t))
			time.Sleep(200 * time.Millisecond) // the newest change is of just now, what permitted it is not
			if err := s.Leaves(certificate(central), raw, "orders", "eu-west", s.Now()); err == nil || s.Violations() != 1 || s.Late() != 1 {
				t.Errorf("1.1 s on: got %v, %d violations, %d late; want it stopped and wrong", err, s.Violations(), s.Late())
			}
		})
	})
	t.Run("receiver", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s, tables := receiver(t, receiving(t, nil, 1))
			raw := signed(t, emeaKey, arriving())
			for epoch := uint64(1); epoch < 4; epoch++ {
				tables.Swap(receiving(t, nil, epoch))
			}
			if err := s.Arrives(certificate(westCert), raw, "emea", "reports", s.Now()); err == nil || s.Violations() != 0 || s.Late() != 1 {
				t.Errorf("at once: got %v, %d violations, %d late; want it stopped and late", err, s.Violations(), s.Late())
			}
		})
	})
	t.Run("no more than so many", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s, tables := open(t, good)
			raw := signed(t, emeaKey, grant())
			s.Answered(time.Now(), [][]byte{raw})
			for epoch := uint64(2); epoch < 2+33; epoch++ {
				tables.Swap(reopened(epoch).table(t))
				s.Upstream("orders.internal:80")
			}
			if err := s.Leaves(certificate(central), raw, "orders", "eu-west", s.Now()); err == nil || s.Violations() != 1 {
				t.Errorf("got %v, %d violations; want it stopped, and the 33rd reading back forgotten", err, s.Violations())
			}
		})
	})
}

// The moment of grace that an answer leaves is one: answers that come faster do not string them together.
func TestSentinel_GraceDoesNotAddUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := open(t, good)
		raw := signed(t, emeaKey, grant())
		s.Answered(time.Now(), [][]byte{raw})
		for range 70 {
			time.Sleep(500 * time.Millisecond)
			s.Answered(time.Now(), nil)
		}
		if s.Leaves(certificate(central), raw, "orders", "eu-west", s.Now()) == nil {
			t.Error("a grant of 30 s that was not renewed leaves after 35 s")
		}
	})
}

// An upstream that was in force between two changes is no stranger, although nothing was judged while it was.
func TestSentinel_MissesNoTable(t *testing.T) {
	s, tables := open(t, good)
	between := good
	between.target = "http://brief.internal"
	tables.Swap(between.table(t))
	tables.Swap(good.table(t))
	if err := s.Upstream("brief.internal:80"); err != nil || s.Violations() != 0 {
		t.Errorf("got %v, %d violations; want it to pass", err, s.Violations())
	}
	if err := s.Upstream("never.internal:80"); err == nil || s.Violations() != 1 {
		t.Errorf("one that was in no table: got %v, %d violations; want it stopped", err, s.Violations())
	}
}

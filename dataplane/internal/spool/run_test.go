package spool_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"bailiwick/dataplane/internal/beat"
	"bailiwick/dataplane/internal/spool"
	"bailiwick/shared/usage"
)

func contextRun(t testing.TB, s *spool.Spool) (context.Context, func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	var once sync.Once
	stop := func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("run: %v", err)
			}
		})
	}
	t.Cleanup(stop)
	return ctx, stop
}

// A pause begins a commit that is due soon, and no other.
func TestSpool_APauseCommits(t *testing.T) {
	const window = time.Hour
	b := beat.New()
	s := open(t, spool.Config{Dir: t.TempDir(), GroupCommit: window, SealEvery: 24 * time.Hour, Beat: b})
	in := func(d time.Duration) time.Time { return time.Now().Add(d) }
	if b.Pause(in(2 * window)) {
		t.Fatal("something waits for a pause before Run")
	}
	_, stop := contextRun(t, s)
	defer stop()
	until := func(what string, is func() bool) {
		t.Helper()
		for began := time.Now(); !is(); time.Sleep(time.Millisecond) {
			if time.Since(began) > 30*time.Second {
				t.Fatalf("waited 30 s for %s", what)
			}
		}
	}
	for n := range int64(3) {
		until("the next window", func() bool { return b.Pause(in(window)) })
		r := row("acme")
		if err := s.Append(&r); err != nil {
			t.Fatal(err)
		}
		early := in(window*4/5 - time.Minute)
		if b.Pause(early) {
			t.Fatalf("a pause more than a minute before the last fifth of %v begins a commit", window)
		}
		if b.Begin(early); !b.Pause(in(window)) {
			t.Fatal("a pause that came too early began a commit")
		}
		b.Begin(in(window * 4 / 5))
		until("a commit", func() bool { return s.Stats().GroupCommits == n+1 })
	}
}

// Appends from several goroutines beside Run and acks: each row is in exactly one block.
func TestSpool_ConcurrentAppendsAreEachCountedOnce(t *testing.T) {
	s := open(t, spool.Config{Dir: t.TempDir(), SealEvery: 2 * time.Millisecond, GroupCommit: time.Millisecond, MaxUnacked: 4})
	_, stop := contextRun(t, s)
	const writers, each = 4, 5000
	total := map[string]int64{}
	collect := func() {
		for _, b := range pending(t, s) {
			cells := requests(t, []usage.Block{b})
			for c, n := range cells {
				total[c] += n
			}
			if err := s.Ack(b.Epoch, b.Seq, b.Hash); err != nil {
				t.Error(err)
			}
		}
	}
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for range each {
				r := row("acme")
				if err := s.Append(&r); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	for running := true; running; {
		select {
		case <-done:
			running = false
		case <-s.Changed():
			collect()
		}
	}
	stop()
	collect()
	if err := s.Seal(); err != nil {
		t.Fatal(err)
	}
	collect()
	if total["acme"] != writers*each {
		t.Errorf("counted %d rows, want %d", total["acme"], writers*each)
	}
	if st := s.Stats(); st.GroupCommits == 0 || st.Unacked != 0 {
		t.Errorf("stats %+v: want group commits, and nothing waiting", st)
	}
}

// Whoever must not wait for the disk is told before a row would: from when little room is made ready and none stands behind it, in
// the segment or in a spare one.
func TestSpool_SaysWhetherARowWaits(t *testing.T) {
	for _, size := range []int{64 << 10, 2 << 20} { // all of it is ready from the start, or a part
		s := open(t, spool.Config{Dir: t.TempDir(), SegmentBytes: size})
		prepared := s.Prepared()
		for n := 0; s.Ready(); n++ {
			if add(t, s, "acme", 1); n > 20_000 {
				t.Fatal("it is ready for ever")
			}
		}
		add(t, s, "acme", 16) // of whoever has asked before
		if got := s.Prepared(); got != prepared {
			t.Errorf("segments of %d bytes: a row has waited: %d bytes are ready, %d were", size, got, prepared)
		}
		if err := s.Provide(); err != nil {
			t.Fatal(err)
		}
		if got := s.Prepared(); !s.Ready() || got <= prepared {
			t.Errorf("segments of %d bytes: %d bytes are ready, %d were, and it is ready: %v", size, got, prepared, s.Ready())
		}
	}
}

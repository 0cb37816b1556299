package linger_test

import (
	"net"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"bailiwick/dataplane/internal/linger"
	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"
	"bailiwick/regions/grant"
	"bailiwick/shared/usage"
)

// told is one call of LinkConfig.Lent.
type told struct {
	lent      grant.Lent
	asked, at time.Time
}

// lends joins a Link that has one relay to a Keeper that lends it a pair.
func lends(t *testing.T, table func(*syncv1.Signed) error, lend func(time.Time) (grant.Lent, bool)) (k *linger.Keeper, calls chan told, end func()) {
	t.Helper()
	a, b := net.Pipe()
	calls = make(chan told, 1000)
	link := linger.NewLink(linger.LinkConfig{Conn: a, Table: table, Fresh: func(time.Time) {}, Left: func() (int64, int) { return 1, 0 },
		Heed: func() linger.Heed { return linger.Heed{Out: 1} }, At: func() grant.At { return grant.At{} },
		Lent: func(l grant.Lent, asked time.Time) { calls <- told{l, asked, time.Now()} }})
	k = linger.NewKeeper(linger.KeeperConfig{Conn: b, Append: func(*usage.Row) error { return nil }, Sublet: sublet(t), Fresh: func() time.Time { return time.Time{} }, Logger: quiet, Lend: lend})
	ended := make(chan error, 1)
	go func() { ended <- link.Run() }()
	go k.Run()
	return k, calls, func() {
		b.Close()
		<-k.Gone()
		<-ended
	}
}

func pairLent(time.Time) (grant.Lent, bool) {
	return grant.Lent{Pairs: []grant.LentPair{{To: "east", Lasts: linger.LentTime}}}, true
}

// The process that was killed may be said to have ended a moment later: what it lent must end then, also while a table is being put in
// force, which takes seconds.
func TestLink_WhatWasLentEndsWithTheConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, calls, end := lends(t, func(*syncv1.Signed) error { time.Sleep(20 * time.Second); return nil }, pairLent)
		if first := <-calls; len(first.lent.Pairs) != 1 {
			t.Fatalf("was lent %+v", first.lent)
		}
		k.Table([]*syncv1.Signed{{Payload: []byte("x")}})
		time.Sleep(time.Second)
		go end()
		for cut := false; !cut; {
			select {
			case c := <-calls:
				cut = len(c.lent.Pairs) == 0
			case <-time.After(300 * time.Millisecond):
				t.Error("what was lent goes on although the connection has ended")
				cut = true
			}
		}
		time.Sleep(30 * time.Second)
	})
}

// Words that overtake each other are heard in their order: the last one is that there are none.
func TestKeeper_TheNewestWordCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, r, end := keeperOf(t, nil)
		defer end()
		for _, c := range []struct {
			n    uint64
			out  int
			want int
		}{{2, 3, 3}, {5, 0, 0}, {4, 1, 0}, {5, 1, 0}, {6, 2, 2}} {
			r.say(heedOf(c.n, c.out, 0, place(5, 7)))
			if out, _, known := k.Relays(); out != c.want || !known {
				t.Errorf("after word %d it knows of %d: %v, want %d", c.n, out, known, c.want)
			}
		}
	})
}

// Of a process that is gone without a last word relays may go on for as long as what was lent to it lasts: it may be this end that gave
// the connection up.
func TestKeeper_WhoIsGoneMayRelayUntilWhatWasLentIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, r, end := keeperOf(t, nil)
		r.say(heedOf(1, 2, 1, place(5, 7)))
		if len(r.lent()) != 1 {
			t.Fatal("nothing is lent")
		}
		end()
		if out, in, known := k.Relays(); out != 2 || in != 1 || !known {
			t.Errorf("it has %d and %d: %v, want what it said", out, in, known)
		}
		time.Sleep(linger.LentTime + time.Second)
		if out, in, known := k.Relays(); out+in != 0 || !known {
			t.Errorf("later it has %d and %d: %v, want none", out, in, known)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		k, r, end := keeperOf(t, func(c *linger.KeeperConfig) { c.Lend = nil })
		r.say(heedOf(1, 2, 0, place(5, 7)))
		end()
		if out, in, known := k.Relays(); out+in != 0 || !known {
			t.Errorf("to whom nothing was lent has %d and %d: %v, want none: it went by what is its own", out, in, known)
		}
	})
}

// Who ends in order says so, and nobody waits for it.
func TestLink_CloseHasALastWord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		relays := 1
		a, b := net.Pipe()
		link := linger.NewLink(linger.LinkConfig{Conn: a, Table: func(*syncv1.Signed) error { return nil }, Fresh: func(time.Time) {}, Left: func() (int64, int) { return 1, 0 },
			Heed: func() linger.Heed { return linger.Heed{Out: relays} }, At: func() grant.At { return grant.At{} }, Lent: func(grant.Lent, time.Time) {}})
		k := linger.NewKeeper(linger.KeeperConfig{Conn: b, Append: func(*usage.Row) error { return nil }, Sublet: sublet(t), Fresh: func() time.Time { return time.Time{} }, Logger: quiet, Lend: pairLent})
		ended := make(chan error, 1)
		go func() { ended <- link.Run() }()
		go k.Run()
		time.Sleep(time.Second + 100*time.Millisecond) // between two words
		relays = 0
		link.Close()
		<-ended
		<-k.Gone()
		began := time.Now()
		if k.Tighten(place(9, 9)); time.Since(began) != 0 {
			t.Errorf("a table waits %s for a process that has ended", time.Since(began))
		}
	})
}

// Tables that wait to be put in force hold up nothing, and are bounded.
func TestLink_TablesThatWaitAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		goOn := make(chan struct{})
		k, calls, end := lends(t, func(*syncv1.Signed) error { <-goOn; return nil }, pairLent)
		part := &syncv1.Signed{Payload: make([]byte, 1<<20)}
		for range 200 {
			k.Table([]*syncv1.Signed{part})
			time.Sleep(10 * time.Millisecond)
		}
		for len(calls) > 0 {
			<-calls
		}
		time.Sleep(time.Second)
		if len(calls) == 0 {
			t.Error("nothing is lent while tables wait")
		}
		for range 100 {
			k.Table([]*syncv1.Signed{part})
			time.Sleep(10 * time.Millisecond)
		}
		select {
		case <-k.Gone():
		default:
			t.Error("300 MiB of tables wait")
		}
		close(goOn)
		end()
	})
}

// What a process says last is heard, though there is nobody any more who would hear an answer to what it said before.
func TestKeeper_HearsTheLastWordOfWhoIsGone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	for n := range uint64(9) {
		if _, err := a.Write(heedOf(n+1, 1, 0, place(5, 7))); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := a.Write(heedOf(10, 0, 0, place(5, 7))); err != nil {
		t.Fatal(err)
	}
	a.Close()
	k := linger.NewKeeper(linger.KeeperConfig{Conn: b, Append: func(*usage.Row) error { return nil }, Sublet: sublet(t), Fresh: func() time.Time { return time.Time{} }, Logger: quiet, Lend: pairLent})
	k.Run()
	if out, in, known := k.Relays(); out+in != 0 || !known {
		t.Errorf("it knows of %d and %d: %v, want of none", out, in, known)
	}
}

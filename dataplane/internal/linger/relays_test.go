package linger_test

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	"bailiwick/dataplane/internal/linger"
	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"
	"bailiwick/regions/grant"
	"bailiwick/shared/revision"
	"bailiwick/shared/usage"
)

const (
	tableFrame, heedFrame, lentFrame = 6, 10, 11

	heedEach = 250 * time.Millisecond
)

type obj = map[string]any

func place(catalog, zone uint64) grant.At {
	return grant.At{Catalog: revision.Revision{Epoch: 1, Index: catalog}, Store: revision.Revision{Epoch: 1, Index: zone}}
}

// heedOf is a heed of who has cut by at.
func heedOf(n uint64, out, in int, at grant.At) []byte {
	return frame(heedFrame, obj{"n": n, "out": out, "in": in, "catalog": obj{"epoch": at.Catalog.Epoch, "index": at.Catalog.Index}, "zone": obj{"epoch": at.Store.Epoch, "index": at.Store.Index}})
}

// oneTo lends relays to a region.
func oneTo(to string) grant.Lent {
	return grant.Lent{Pairs: []grant.LentPair{{To: to, Policies: []string{"p"}, Lasts: time.Second}}}
}

// came is a frame that the other end got.
type came struct {
	kind byte
	raw  []byte
	at   time.Time
}

// raw is the other end of a connection, as a program of any version may be one. Frames of the kind that it is about come on a channel.
type raw struct {
	net.Conn
	t    *testing.T
	came chan came
	over sync.WaitGroup
}

func newRaw(t *testing.T, c net.Conn, kind byte) *raw {
	r := &raw{Conn: c, t: t, came: make(chan came, 1000)}
	r.over.Go(func() {
		defer close(r.came)
		for {
			var head [5]byte
			if _, err := io.ReadFull(c, head[:]); err != nil {
				return
			}
			b := make([]byte, binary.BigEndian.Uint32(head[:]))
			if _, err := io.ReadFull(c, b); err != nil {
				return
			}
			if head[4] == kind {
				r.came <- came{head[4], b, time.Now()}
			}
		}
	})
	return r
}

func (r *raw) say(b []byte) {
	r.t.Helper()
	if _, err := r.Write(b); err != nil {
		r.t.Fatal(err)
	}
	synctest.Wait()
}

// lent is what came of it since the last time, as the number of the heed and the region.
func (r *raw) lent() (all []string) {
	r.t.Helper()
	synctest.Wait()
	for {
		select {
		case f, more := <-r.came:
			if !more {
				return all
			}
			var m struct {
				N    uint64     `json:"n"`
				Lent grant.Lent `json:"lent"`
			}
			if err := json.Unmarshal(f.raw, &m); err != nil {
				r.t.Fatal(err)
			}
			to := ""
			if len(m.Lent.Pairs) > 0 {
				to = m.Lent.Pairs[0].To
			}
			all = append(all, fmt.Sprint(m.N, " ", to))
		default:
			return all
		}
	}
}

func keeperOf(t *testing.T, change func(*linger.KeeperConfig)) (k *linger.Keeper, r *raw, end func()) {
	t.Helper()
	a, b := net.Pipe()
	cfg := linger.KeeperConfig{Conn: b, Append: func(*usage.Row) error { return nil }, Sublet: sublet(t), Fresh: func() time.Time { return time.Time{} }, Logger: quiet,
		Lend: func(time.Time) (grant.Lent, bool) { return oneTo("central"), true }, Since: place(5, 7)}
	if change != nil {
		change(&cfg)
	}
	k = linger.NewKeeper(cfg)
	go k.Run()
	r = newRaw(t, a, lentFrame)
	return k, r, func() {
		a.Close()
		<-k.Gone()
		r.over.Wait()
	}
}

// virtual is a subtest in virtual time.
func virtual(t *testing.T, name string, f func(t *testing.T)) {
	t.Helper()
	t.Run(name, func(t *testing.T) { synctest.Test(t, f) })
}

// Who has not cut by a table that forbids something is lent nothing by the one that has it in force.
func TestKeeper_LendsToWhoHasCut(t *testing.T) {
	for _, c := range []struct {
		name string
		heed []byte
		lend func(time.Time) (grant.Lent, bool)
		want string
	}{
		{"by the same table", heedOf(4, 1, 0, place(5, 7)), nil, "[4 central]"},
		{"of relays that it took", heedOf(4, 0, 1, place(5, 7)), nil, "[4 central]"},
		{"by a newer one", heedOf(4, 1, 1, place(6, 8)), nil, "[4 central]"},
		{"by an older catalog", heedOf(4, 1, 0, place(4, 9)), nil, "[]"},
		{"by an older store", heedOf(4, 1, 0, place(9, 6)), nil, "[]"},
		{"by none", frame(heedFrame, obj{"n": 4, "out": 1}), nil, "[]"},
		{"without relays", heedOf(4, 0, 0, place(5, 7)), nil, "[]"},
		{"with less than none", heedOf(4, -1, -5, place(5, 7)), nil, "[]"},
		{"where nothing is known yet", heedOf(4, 1, 0, place(5, 7)), func(time.Time) (grant.Lent, bool) { return oneTo("central"), false }, "[]"},
		{"where nothing may be relayed", heedOf(4, 1, 0, place(5, 7)), func(time.Time) (grant.Lent, bool) { return grant.Lent{}, true }, "[4 ]"},
	} {
		virtual(t, c.name, func(t *testing.T) {
			_, r, end := keeperOf(t, func(cfg *linger.KeeperConfig) {
				if c.lend != nil {
					cfg.Lend = c.lend
				}
			})
			defer end()
			r.say(c.heed)
			if got := fmt.Sprint(r.lent()); got != c.want {
				t.Errorf("is lent %s, want %s", got, c.want)
			}
		})
	}
	virtual(t, "who never lends", func(t *testing.T) {
		k, r, end := keeperOf(t, func(cfg *linger.KeeperConfig) { cfg.Lend = nil })
		defer end()
		r.say(heedOf(1, 2, 3, place(5, 7)))
		if got := r.lent(); len(got) != 0 {
			t.Errorf("it lends %v", got)
		}
		if out, in, known := k.Relays(); out != 2 || in != 3 || !known {
			t.Errorf("it knows of %d and %d: %v", out, in, known)
		}
	})
}

// From when a table is in force that forbids something, who has not cut by it is lent nothing, whatever the one before it was.
func TestKeeper_LendsNothingByAnOlderTable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, r, end := keeperOf(t, nil)
		defer end()
		r.say(heedOf(1, 1, 0, place(5, 7)))
		tight := make(chan struct{})
		go func() { k.Tighten(place(6, 7)); close(tight) }()
		synctest.Wait()
		r.say(heedOf(2, 1, 0, place(5, 7)))
		r.say(heedOf(3, 1, 0, place(6, 7)))
		<-tight
		k.Tighten(place(5, 9)) // cannot be: it goes back in the catalog, and takes nothing back
		r.say(heedOf(4, 1, 0, place(5, 9)))
		r.say(heedOf(5, 1, 0, place(6, 9)))
		if got := fmt.Sprint(r.lent()); got != "[1 central 3 central 5 central]" {
			t.Errorf("it lent %s, want by the newest table alone", got)
		}
	})
}

// A table that comes into force while it is found out what to lend is not overtaken by what is lent by the one before.
func TestKeeper_ATableThatComesWhileItLends(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tight := make(chan time.Duration, 1)
		var k *linger.Keeper
		var r *raw
		var end func()
		k, r, end = keeperOf(t, func(cfg *linger.KeeperConfig) {
			cfg.Lend = func(began time.Time) (grant.Lent, bool) {
				go func() { k.Tighten(place(6, 7)); tight <- time.Since(began) }()
				for range 1000 { // it may come before this one is through, and need not
					runtime.Gosched()
				}
				return oneTo("central"), true
			}
		})
		defer end()
		r.say(heedOf(1, 1, 0, place(5, 7)))
		if took := <-tight; took < linger.LentTime {
			t.Errorf("the table is obeyed after %s, and something was lent by the one before", took)
		}
		if got := fmt.Sprint(r.lent()); got != "[1 central]" {
			t.Errorf("it lent %s", got)
		}
	})
}

// Tighten returns when nothing goes on that the table forbids: it was said, or it cannot be.
func TestKeeper_TightenWaitsUntilTheOtherHasCut(t *testing.T) {
	const none = 100 * time.Millisecond // before Tighten
	older, newer := place(5, 7), place(6, 7)
	each := func(r *raw, d time.Duration, at grant.At) { // says the same each so often
		for n := uint64(100); ; n++ {
			if _, err := r.Write(heedOf(n, 1, 0, at)); err != nil {
				return
			}
			time.Sleep(d)
		}
	}
	for _, c := range []struct {
		name      string
		lent      bool
		before    func(r *raw) // Tighten is called
		meanwhile func(r *raw)
		want      time.Duration
	}{
		{"nothing was lent", false, nil, nil, 0},
		{"nothing was lent, and it says that it has not cut", false, func(r *raw) { r.say(heedOf(2, 1, 0, place(4, 7))) }, nil, 0},
		{"it has cut already", true, func(r *raw) { r.say(heedOf(2, 1, 0, newer)) }, nil, 0},
		{"it has none any more", true, func(r *raw) { r.say(heedOf(2, 0, 0, older)) }, nil, 0},
		{"it is gone, which may be a connection that was given up", true, func(r *raw) { r.Close(); synctest.Wait() }, nil, linger.LentTime},
		{"it cuts", true, nil, func(r *raw) { time.Sleep(time.Second); r.Write(heedOf(2, 1, 0, newer)) }, time.Second},
		{"it cuts the last", true, nil, func(r *raw) { time.Sleep(time.Second); r.Write(heedOf(2, 0, 0, older)) }, time.Second},
		{"it cuts after it said twice that it has not", true, nil, func(r *raw) {
			for n := range uint64(2) {
				time.Sleep(heedEach)
				r.Write(heedOf(2+n, 1, 0, older))
			}
			time.Sleep(heedEach)
			r.Write(heedOf(4, 1, 0, newer))
		}, 3 * heedEach},
		{"it goes", true, nil, func(r *raw) { time.Sleep(time.Second); r.Close() }, linger.LentTime},
		{"it is silent", true, nil, nil, linger.LentTime},
		{"it says on that it has not", true, nil, func(r *raw) { each(r, heedEach, older) }, linger.LentTime},
		{"what was lent is over", true, func(r *raw) { time.Sleep(linger.LentTime + none) }, nil, 0},
	} {
		virtual(t, c.name, func(t *testing.T) {
			lend := c.lent
			k, r, end := keeperOf(t, func(cfg *linger.KeeperConfig) {
				cfg.Lend = func(time.Time) (grant.Lent, bool) { return oneTo("central"), lend }
			})
			r.say(heedOf(1, 1, 0, older))
			since := time.Now()
			if c.before != nil {
				c.before(r)
			}
			if got := r.lent(); len(got) > 0 != c.lent {
				t.Fatalf("it lent %v", got)
			}
			var said sync.WaitGroup
			if c.meanwhile != nil {
				said.Go(func() { c.meanwhile(r) })
			}
			began := time.Now()
			if c.want == linger.LentTime {
				began = since
			}
			var all sync.WaitGroup
			for range 2 { // both hear of it
				all.Go(func() {
					k.Tighten(newer)
					if took := time.Since(began); took < c.want || took > c.want+none {
						t.Errorf("it returns after %s, want %s", took, c.want)
					}
				})
			}
			all.Wait()
			end()
			said.Wait()
		})
	}
}

// What the other says of its relays is bounded, whatever it says.
func TestKeeper_HearsWhatMayBe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var heard []linger.Heed
		k, r, end := keeperOf(t, func(cfg *linger.KeeperConfig) { cfg.Heard = func(h linger.Heed) { heard = append(heard, h) } })
		defer end()
		if out, in, known := k.Relays(); out != 0 || in != 0 || known {
			t.Errorf("before a word it knows of %d and %d: %v", out, in, known)
		}
		var cuts []string
		var refused []linger.Refusal
		for i := range 100 {
			cuts, refused = append(cuts, fmt.Sprint("a>", i)), append(refused, linger.Refusal{Rule: "relay-cut", From: "a", To: fmt.Sprint(i), Sample: "s", Count: i})
		}
		r.say(frame(heedFrame, obj{"n": 1, "out": -7, "in": 3, "cuts": cuts, "refused": refused}))
		if out, in, known := k.Relays(); out != 0 || in != 3 || !known {
			t.Errorf("of -7 and 3 it knows of %d and %d: %v", out, in, known)
		}
		if len(heard) != 1 || heard[0].Out != 0 || heard[0].In != 3 || len(heard[0].Cuts) != 64 || len(heard[0].Refused) != 64 {
			t.Fatalf("it hands on %+v", heard)
		}
		if heard[0].Cuts[63] != cuts[63] || heard[0].Refused[63] != refused[63] {
			t.Errorf("the last of those are %s and %+v", heard[0].Cuts[63], heard[0].Refused[63])
		}
		r.say(frame(heedFrame, obj{"n": 2, "out": 2, "in": -1}))
		if out, in, _ := k.Relays(); out != 2 || in != 0 || len(heard) != 2 {
			t.Errorf("then of 2 and -1 it knows of %d and %d", out, in)
		}
	})
}

// What cannot be read ends the connection: nobody goes by half of it.
func TestRelays_AFrameThatCannotBeReadIsAnEnd(t *testing.T) {
	for _, b := range []string{"{", "[]", `{"n":-1}`, `{"n":1,"out":"two"}`, `{"n":1,"catalog":7}`, ""} {
		virtual(t, "a heed: "+b, func(t *testing.T) {
			heard := 0
			k, r, end := keeperOf(t, func(cfg *linger.KeeperConfig) { cfg.Heard = func(linger.Heed) { heard++ } })
			defer end()
			r.say(frame(heedFrame, []byte(b)))
			select {
			case <-k.Gone():
			default:
				t.Error("it goes on")
			}
			if heard != 0 || len(r.lent()) != 0 {
				t.Errorf("%d were heard", heard)
			}
		})
	}
	for _, b := range []string{"{", "[]", `{"n":-1}`, `{"n":1,"lent":[]}`, `{"n":1,"lent":{"pairs":[{"lasts":"1s"}]}}`, ""} {
		virtual(t, "what is lent: "+b, func(t *testing.T) {
			l := newLinkOf(t, nil)
			defer l.end()
			l.say(frame(lentFrame, []byte(b)))
			select {
			case <-l.link.Lost():
			default:
				t.Error("it goes on")
			}
			if got := l.goesBy(); len(got) != 1 || got[0].to != "" { // the connection has ended
				t.Errorf("it goes by %+v, want by nothing", got)
			}
		})
	}
}

// linkOf is a Link with relays, and the other end of it.
type linkOf struct {
	*raw
	link  *linger.Link
	ended chan error

	mu    sync.Mutex
	said  linger.Heed
	at    grant.At
	took  time.Duration // to put a table in force
	lents []lentAt
}

type lentAt struct {
	to    string
	asked time.Time
}

func newLinkOf(t *testing.T, change func(*linger.LinkConfig)) *linkOf {
	t.Helper()
	a, b := net.Pipe()
	l := &linkOf{raw: newRaw(t, b, heedFrame), ended: make(chan error, 1), said: linger.Heed{Out: 1}, at: place(5, 7)}
	cfg := linger.LinkConfig{Conn: a, Fresh: func(time.Time) {}, Left: func() (int64, int) { return 0, 0 },
		Table: func(*syncv1.Signed) error {
			time.Sleep(l.took)
			l.mu.Lock()
			defer l.mu.Unlock()
			l.at.Catalog.Index++
			return nil
		},
		Heed: func() linger.Heed { l.mu.Lock(); defer l.mu.Unlock(); return l.said },
		At:   func() grant.At { l.mu.Lock(); defer l.mu.Unlock(); return l.at },
		Lent: func(m grant.Lent, asked time.Time) {
			to := ""
			if len(m.Pairs) > 0 {
				to = m.Pairs[0].To
			}
			l.mu.Lock()
			defer l.mu.Unlock()
			l.lents = append(l.lents, lentAt{to, asked})
		},
	}
	if change != nil {
		change(&cfg)
	}
	l.link = linger.NewLink(cfg)
	go func() { l.ended <- l.link.Run() }()
	return l
}

func (l *linkOf) end() {
	l.link.Close()
	<-l.ended
	l.over.Wait()
	l.Close()
}

// heed is the next that comes, and when it was sent.
func (l *linkOf) heed() (n uint64, out, in int, catalog uint64, at time.Time) {
	l.t.Helper()
	var f came
	select {
	case f = <-l.came:
	case <-time.After(5 * time.Second):
		l.t.Fatal("it says nothing of its relays")
	}
	var m struct {
		N       uint64
		Out, In int
		Catalog struct{ Epoch, Index uint64 }
	}
	if err := json.Unmarshal(f.raw, &m); err != nil {
		l.t.Fatal(err)
	}
	return m.N, m.Out, m.In, m.Catalog.Index, f.at
}

func (l *linkOf) lend(n uint64, to string) {
	l.t.Helper()
	l.say(frame(lentFrame, obj{"n": n, "lent": oneTo(to)}))
}

// goesBy is what it went by since the last time.
func (l *linkOf) goesBy() (all []lentAt) {
	l.mu.Lock()
	defer l.mu.Unlock()
	all, l.lents = l.lents, nil
	return all
}

// Of relays is spoken as long as there are any, with the table by which was cut: one that came is none before all is cut.
func TestLink_SpeaksOfItsRelays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLinkOf(t, nil)
		defer l.end()
		l.took = 600 * time.Millisecond
		began := time.Now()
		signed, err := proto.Marshal(&syncv1.Signed{Payload: []byte("x")})
		if err != nil {
			t.Fatal(err)
		}
		l.say(frame(tableFrame, signed))
		for i, want := range []struct {
			catalog uint64
			after   time.Duration
		}{{5, 0}, {5, heedEach}, {5, 2 * heedEach}, {6, l.took + 20*time.Millisecond}, {6, 3 * heedEach}} { // and soon after it was obeyed
			n, out, in, at, when := l.heed()
			if n != uint64(i+1) || out != 1 || in != 0 || at != want.catalog || when.Sub(began) != want.after {
				t.Errorf("heed %d has number %d, %d and %d relays and is of catalog %d, after %s; want one relay and %+v", i, n, out, in, at, when.Sub(began), want)
			}
		}
		l.mu.Lock()
		l.said = linger.Heed{In: 2}
		l.mu.Unlock()
		if _, out, in, _, _ := l.heed(); out != 0 || in != 2 {
			t.Errorf("it says %d and %d, want that it took two", out, in)
		}
		l.mu.Lock()
		l.said = linger.Heed{}
		l.mu.Unlock()
		if _, out, in, _, _ := l.heed(); out != 0 || in != 0 {
			t.Errorf("it says %d and %d, want that none is left", out, in)
		}
		time.Sleep(3 * time.Second)
		if len(l.came) != 0 {
			t.Errorf("%d more times it says that there are none", len(l.came))
		}
		if err := l.link.Healthy(); err != nil {
			t.Errorf("the link itself ends with them: %v", err)
		}
	})
}

// What is lent counts from when it was asked for, however late the answer is.
func TestLink_WhatIsLentCountsFromTheQuestion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLinkOf(t, nil)
		defer l.end()
		began := time.Now()
		time.Sleep(1900 * time.Millisecond) // eight were sent
		for _, n := range []uint64{1, 4, 8} {
			l.lend(n, "central")
			want := began.Add(time.Duration(n-1) * heedEach)
			if got := l.goesBy(); len(got) != 1 || got[0].to != "central" || !got[0].asked.Equal(want) {
				t.Errorf("what is lent for heed %d counts from %+v, want %s after it began", n, got, want.Sub(began))
			}
		}
	})
}

// Of answers the newest counts, and none for longer than anything is lent.
func TestLink_AnAnswerThatIsOldIsNotTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLinkOf(t, nil)
		defer l.end()
		time.Sleep(900 * time.Millisecond) // four were sent
		for _, c := range []struct {
			name string
			n    uint64
			want bool
		}{{"of none", 0, false}, {"of one that was not sent", 5, false}, {"of one far ahead", 1 << 63, false}, {"of the second", 2, true}, {"of the first, which was overtaken", 1, false}, {"of the second once more", 2, false}, {"of the fourth", 4, true}} {
			l.lend(c.n, c.name)
			if got := l.goesBy(); len(got) > 0 != c.want {
				t.Errorf("an answer %s: it goes by %+v", c.name, got)
			}
		}
	})
	for _, c := range []struct {
		after time.Duration
		want  bool
	}{{linger.LentTime - 10*time.Millisecond, true}, {linger.LentTime + 10*time.Millisecond, false}} {
		virtual(t, fmt.Sprint("after ", c.after), func(t *testing.T) {
			l := newLinkOf(t, nil)
			defer l.end()
			time.Sleep(c.after)
			l.lend(1, "central")
			if got := l.goesBy(); len(got) > 0 != c.want {
				t.Errorf("it goes by %+v", got)
			}
			l.lend(12, "us") // is new enough
			if got := l.goesBy(); len(got) != 1 {
				t.Errorf("then by %+v", got)
			}
		})
	}
}

// Whoever is slow to cut goes by the newest that was lent, and holds nobody up: rows are kept meanwhile.
func TestLink_IsHeldUpByNoCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		goOn := make(chan struct{})
		var by []string
		l := newLinkOf(t, func(c *linger.LinkConfig) {
			c.Lent = func(m grant.Lent, _ time.Time) { by = append(by, fmt.Sprint(m.Pairs)); <-goOn }
		})
		defer l.end()
		time.Sleep(900 * time.Millisecond)
		for n := range uint64(4) {
			l.lend(n+1, fmt.Sprint("r", n+1))
		}
		kept := make(chan error, 1)
		go func() { r := row(0); kept <- l.link.Append(&r) }()
		synctest.Wait()
		l.say(frame(4, obj{"n": 1}))
		select {
		case err := <-kept:
			if err != nil {
				t.Error(err)
			}
		default:
			t.Error("a row waits for relays to be cut")
		}
		close(goOn)
		synctest.Wait()
		if len(by) != 2 || !strings.Contains(by[0], "r1") || !strings.Contains(by[1], "r4") {
			t.Errorf("it goes by %v, want by the first, and then by the newest", by)
		}
	})
}

// An older program has no relays that go on, and is told nothing of them.
func TestLink_WithoutRelays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLinkOf(t, func(c *linger.LinkConfig) { c.Heed, c.At, c.Lent = nil, nil, nil })
		defer l.end()
		l.lend(1, "central")
		time.Sleep(time.Second)
		if len(l.came) != 0 || l.link.Healthy() != nil {
			t.Errorf("it says %d times what its relays do, and is %v", len(l.came), l.link.Healthy())
		}
	})
}

// Both ends: relays go on by what is lent, a table that forbids some is obeyed before Tighten returns, and once there are none the end
// of the older process is not waited for.
func TestRelays_ATableIsObeyedOverTheConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		var mu sync.Mutex
		in, relays := place(5, 7), 1
		var until time.Time // by what was lent
		var cut time.Time
		link := linger.NewLink(linger.LinkConfig{Conn: a, Fresh: func(time.Time) {}, Left: func() (int64, int) { return 1, 0 },
			Table: func(*syncv1.Signed) error {
				time.Sleep(1200 * time.Millisecond)
				mu.Lock()
				defer mu.Unlock()
				in, cut = place(6, 7), time.Now()
				return nil
			},
			Heed: func() linger.Heed { mu.Lock(); defer mu.Unlock(); return linger.Heed{Out: relays} },
			At:   func() grant.At { mu.Lock(); defer mu.Unlock(); return in },
			Lent: func(l grant.Lent, asked time.Time) {
				mu.Lock()
				defer mu.Unlock()
				if until = asked; len(l.Pairs) > 0 { // not at the end
					until = asked.Add(l.Pairs[0].Lasts)
				}
			}})
		k := linger.NewKeeper(linger.KeeperConfig{Conn: b, Append: func(*usage.Row) error { return nil }, Sublet: sublet(t), Fresh: func() time.Time { return time.Time{} }, Logger: quiet, Since: in,
			Lend: func(time.Time) (grant.Lent, bool) {
				return grant.Lent{Pairs: []grant.LentPair{{To: "central", Lasts: linger.LentTime}}}, true
			}})
		ended := make(chan error, 1)
		go func() { ended <- link.Run() }()
		go k.Run()
		for range 100 {
			time.Sleep(100 * time.Millisecond)
			mu.Lock()
			if left := time.Until(until); left < linger.LentTime-heedEach || left > linger.LentTime {
				t.Errorf("relays have %s left", left)
			}
			mu.Unlock()
		}
		began := time.Now()
		k.Table([]*syncv1.Signed{{Payload: []byte("x")}})
		k.Tighten(place(6, 7))
		mu.Lock()
		if cut.IsZero() || time.Since(began) > 1200*time.Millisecond+heedEach {
			t.Errorf("a table is obeyed after %s; it was cut: %v", time.Since(began), !cut.IsZero())
		}
		relays = 0
		mu.Unlock()
		time.Sleep(heedEach + time.Millisecond)
		if out, in, known := k.Relays(); out+in != 0 || !known {
			t.Errorf("it knows of %d and %d: %v, want of none", out, in, known)
		}
		began = time.Now()
		if k.Tighten(place(9, 9)); time.Since(began) != 0 {
			t.Errorf("without relays a table is waited for for %s", time.Since(began))
		}
		link.Close()
		if err := <-ended; !errors.Is(err, linger.ErrLost) {
			t.Error(err)
		}
		<-k.Gone()
	})
}

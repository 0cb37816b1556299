package linger_test

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"bailiwick/dataplane/internal/ferry"
	"bailiwick/dataplane/internal/linger"
	"bailiwick/dataplane/internal/policy"
	"bailiwick/dataplane/internal/quota"
	"bailiwick/dataplane/internal/spool"
	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"
	"bailiwick/shared/usage"
)

var quiet = slog.New(slog.DiscardHandler)

// silent is a leader that answers nobody.
type silent struct{}

func (silent) Exchange(context.Context, *quota.Request) (*quota.Response, error) {
	return nil, errors.New("nobody answers")
}

func sublet(t *testing.T, holding ...quota.Ask) *quota.Sublet {
	t.Helper()
	b, err := quota.New(quota.Config{Leader: silent{}, Epoch: 2, Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	return b.Adopt([]quota.Pending{{Epoch: 1, Sealed: 1}}, holding, func(string) *policy.Plan { return nil })
}

func row(units int64) usage.Row {
	return usage.Row{Customer: "acme", Subscription: "main", Plan: "p", PlanRev: 1, Product: "pr", API: "a", Route: "r", Outcome: usage.OutcomeSuccess, ServedRegion: "eu-west", Requests: 1, Units: units, Period: 1000, Status: 200}
}

// pair is both ends over conn, which a test may break.
type pair struct {
	link   *linger.Link
	keeper *linger.Keeper
	ended  chan error
}

func join(t *testing.T, older, newer net.Conn, keep func(*usage.Row) error, s *quota.Sublet, change func(*linger.LinkConfig)) *pair {
	t.Helper()
	cfg := linger.LinkConfig{Conn: older, Table: func(*syncv1.Signed) error { return nil }, Fresh: func(time.Time) {}, Left: func() (int64, int) { return 7, 1 }}
	if change != nil {
		change(&cfg)
	}
	p := &pair{link: linger.NewLink(cfg), ended: make(chan error, 1)}
	p.keeper = linger.NewKeeper(linger.KeeperConfig{Conn: newer, Append: keep, Sublet: s, Fresh: func() time.Time { return time.Unix(1_700_000_000, 0) }, Logger: quiet})
	go func() { p.ended <- p.link.Run() }()
	go p.keeper.Run()
	return p
}

func (p *pair) end() {
	p.link.Close()
	<-p.ended
	<-p.keeper.Gone()
}

// sockets are two ends of a socket, as between two processes.
func sockets(t *testing.T) (a, b net.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socket")
		if ends[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	return ends[0], ends[1]
}

// A row is kept, and its units are spent, before Append returns; one that is not kept is said so, and takes nothing.
func TestLink_ARowIsKeptBeforeItIsSaid(t *testing.T) {
	a, b := sockets(t)
	s := sublet(t, quota.Ask{ID: quota.ID{Customer: "acme", Subscription: "main"}, Plan: "p", Period: 1000, Ceiling: 15, Spent: 5})
	var mu sync.Mutex
	kept := map[[16]byte]int{}
	full := errors.New("no space for usage")
	p := join(t, a, b, func(r *usage.Row) error {
		mu.Lock()
		defer mu.Unlock()
		if r.RequestID[0] == 9 {
			return full
		}
		kept[r.RequestID]++
		return nil
	}, s, nil)
	var all sync.WaitGroup
	for i := range byte(10) {
		all.Go(func() {
			r := row(1)
			r.RequestID = [16]byte{i, 1, 255}
			err := p.link.Append(&r)
			mu.Lock()
			n := kept[r.RequestID]
			mu.Unlock()
			if i == 9 {
				if err == nil || err.Error() != full.Error() || n != 0 {
					t.Errorf("a row that was not kept: %v, and it is there %d times", err, n)
				}
			} else if err != nil || n != 1 {
				t.Errorf("row %d: %v, and it is there %d times", i, err, n)
			}
		})
	}
	all.Wait()
	if s.Held() != 1 {
		t.Errorf("%d units are held after nine of ten were spent", s.Held())
	}
	if p.keeper.Rows() != 9 {
		t.Errorf("it says that it kept %d rows", p.keeper.Rows())
	}
	p.end()
	r := row(1)
	if err := p.link.Append(&r); !errors.Is(err, linger.ErrLost) {
		t.Errorf("after the end: %v, want that nobody counts", err)
	}
	if s.Held() != 0 || !errors.Is(p.link.Healthy(), linger.ErrLost) {
		t.Errorf("after the end %d units are held, and the link is %v", s.Held(), p.link.Healthy())
	}
}

// Whoever is killed at whatever moment: what was said to be kept is, and nothing is there twice.
func TestLink_WhenTheConnectionBreaksNothingIsCountedTwice(t *testing.T) {
	for round := range 30 {
		a, b := sockets(t)
		var mu sync.Mutex
		kept := map[[16]byte]int{}
		var count atomic.Int64
		p := join(t, a, b, func(r *usage.Row) error {
			mu.Lock()
			kept[r.RequestID]++
			mu.Unlock()
			if count.Add(1) == int64(20+round) { // one end dies between keeping and saying so
				if round%2 == 0 {
					a.Close()
				} else {
					b.Close()
				}
			}
			return nil
		}, sublet(t), nil)
		var all sync.WaitGroup
		var said sync.Map
		for worker := range byte(8) {
			all.Go(func() {
				for i := range byte(20) {
					r := row(0)
					r.Period, r.RequestID = 0, [16]byte{worker, i}
					if p.link.Append(&r) == nil {
						said.Store(r.RequestID, true)
					}
				}
			})
		}
		all.Wait()
		p.end()
		n := 0
		said.Range(func(id, _ any) bool {
			n++
			if kept[id.([16]byte)] != 1 {
				t.Errorf("round %d: a row that was said to be kept is there %d times", round, kept[id.([16]byte)])
			}
			return true
		})
		for id, times := range kept {
			if times != 1 {
				t.Errorf("round %d: row %v is there %d times", round, id, times)
			}
		}
		if n == 0 || n == 160 {
			t.Errorf("round %d: %d of 160 rows were kept: it did not break in their midst", round, n)
		}
	}
}

// What comes back: tables in their order, how fresh they are, packets; and what is left goes the other way.
func TestKeeper_HandsOnWhatTheOtherNeeds(t *testing.T) {
	a, b := sockets(t)
	var mu sync.Mutex
	var tables []string
	var fresh time.Time
	var packet string
	p := join(t, a, b, func(*usage.Row) error { return nil }, sublet(t), func(c *linger.LinkConfig) {
		c.Table = func(s *syncv1.Signed) error {
			mu.Lock()
			defer mu.Unlock()
			tables = append(tables, string(s.Payload))
			return nil
		}
		c.Fresh = func(at time.Time) { mu.Lock(); fresh = at; mu.Unlock() }
		c.Packet = func(b []byte) error {
			mu.Lock()
			defer mu.Unlock()
			packet = string(b)
			return nil
		}
	})
	defer p.end()
	var want []string
	for i := range 20 {
		var parts []*syncv1.Signed
		for j := range 3 {
			text := fmt.Sprint(i, ".", j)
			want, parts = append(want, text), append(parts, &syncv1.Signed{Payload: []byte(text), Signature: []byte("s")})
		}
		p.keeper.Table(parts)
	}
	p.keeper.Packet([]byte("a packet"))
	for began := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		mu.Lock()
		done := len(tables) == len(want) && fresh.Equal(time.Unix(1_700_000_000, 0)) && packet == "a packet" && p.keeper.Connections() == 7 && p.keeper.Before() == 2
		mu.Unlock()
		if done {
			break
		}
		if time.Since(began) > time.Minute {
			t.Fatalf("after a minute: %d of %d tables, fresh %v, packet %q, %d connections, %d processes", len(tables), len(want), fresh, packet, p.keeper.Connections(), p.keeper.Before())
		}
	}
	if fmt.Sprint(tables) != fmt.Sprint(want) {
		t.Errorf("tables came as %v", tables)
	}
}

// A table that the older process cannot take ends what goes on there: it would go by one that is out of date.
func TestLink_ATableThatDoesNotFitEndsIt(t *testing.T) {
	a, b := sockets(t)
	unfit := errors.New("it does not follow")
	p := join(t, a, b, func(*usage.Row) error { return nil }, sublet(t), func(c *linger.LinkConfig) { c.Table = func(*syncv1.Signed) error { return unfit } })
	p.keeper.Table([]*syncv1.Signed{{Payload: []byte("x")}})
	if err := <-p.ended; !errors.Is(err, unfit) {
		t.Errorf("it ends with %v", err)
	}
	<-p.keeper.Gone()
	<-p.link.Lost()
}

// Who does not take what it is told is given up, and what waits for it is bounded.
func TestKeeper_WhoDoesNotListenIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, b := net.Pipe()
		k := linger.NewKeeper(linger.KeeperConfig{Conn: b, Append: func(*usage.Row) error { return nil }, Sublet: sublet(t), Fresh: func() time.Time { return time.Time{} }, Logger: quiet})
		began := time.Now()
		go k.Run()
		part := &syncv1.Signed{Payload: make([]byte, 1<<20)}
		for range 300 {
			k.Table([]*syncv1.Signed{part})
		}
		if n := k.Behind(); n > 257<<20 {
			t.Errorf("%d bytes wait", n)
		}
		<-k.Gone()
		if took := time.Since(began); took > 16*time.Second {
			t.Errorf("it is given up after %s", took)
		}
	})
}

// takes reads all that comes and answers nothing; each second it says a word if there is one. What it returns ends it.
func takes(c net.Conn, word []byte) (end func()) {
	over := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { io.Copy(io.Discard, c) })
	wg.Go(func() {
		for word != nil {
			c.Write(word)
			select {
			case <-over:
				return
			case <-time.After(time.Second):
			}
		}
	})
	return func() {
		c.Close()
		close(over)
		wg.Wait()
	}
}

// Silence is an end: the other process may be stopped.
func TestLink_SilenceIsAnEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		defer takes(b, nil)()
		l := linger.NewLink(linger.LinkConfig{Conn: a, Left: func() (int64, int) { return 0, 0 }})
		began := time.Now()
		if err := l.Run(); !errors.Is(err, linger.ErrLost) || time.Since(began) != 15*time.Second {
			t.Errorf("%v after %s", err, time.Since(began))
		}
		r := row(0)
		if err := l.Append(&r); !errors.Is(err, linger.ErrLost) {
			t.Errorf("then a row: %v", err)
		}
	})
}

// A row that is read and never answered ends the wait, and the link, though the other process speaks: nobody knows whether it is kept.
func TestLink_ARowWithoutAnAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		defer takes(b, frame(7, []byte("\x00\x00\x00\x00\x00\x00\x00\x00")))()
		l := linger.NewLink(linger.LinkConfig{Conn: a, Fresh: func(time.Time) {}, Left: func() (int64, int) { return 0, 0 }})
		ended := make(chan error, 1)
		go func() { ended <- l.Run() }()
		began := time.Now()
		r := row(0)
		if err := l.Append(&r); !errors.Is(err, linger.ErrLost) || time.Since(began) != 10*time.Second {
			t.Errorf("%v after %s", err, time.Since(began))
		}
		<-ended
	})
}

// An exchange that was given up may be answered all the same. That is no answer to the next.
func TestLink_AnAnswerThatComesLateAnswersNothingElse(t *testing.T) {
	a, b := sockets(t)
	l := linger.NewLink(linger.LinkConfig{Conn: a, Left: func() (int64, int) { return 0, 0 }})
	ended := make(chan error, 1)
	go func() { ended <- l.Run() }()
	const ask, states = 2, 5
	asked := func() uint64 {
		for {
			var head [5]byte
			if _, err := io.ReadFull(b, head[:]); err != nil {
				t.Fatal(err)
			}
			raw := make([]byte, binary.BigEndian.Uint32(head[:]))
			if _, err := io.ReadFull(b, raw); err != nil {
				t.Fatal(err)
			}
			var r quota.Request
			if head[4] == ask && json.Unmarshal(raw, &r) == nil {
				return r.Sequence
			}
		}
	}
	answer := func(sequence uint64) {
		raw, _ := json.Marshal(quota.Response{Sequence: sequence})
		if _, err := b.Write(append(append(binary.BigEndian.AppendUint32(nil, uint32(len(raw))), states), raw...)); err != nil {
			t.Fatal(err)
		}
	}
	brief, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if r, err := l.Exchange(brief, &quota.Request{Sequence: 1}); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("nobody answers: %+v, %v", r, err)
	}
	asked()
	type end struct {
		*quota.Response
		err error
	}
	second := make(chan end, 1)
	go func() { r, err := l.Exchange(t.Context(), &quota.Request{Sequence: 2}); second <- end{r, err} }()
	asked()
	answer(1)
	answer(2)
	if got := <-second; got.err != nil || got.Sequence != 2 {
		t.Errorf("the second exchange: %+v, %v; want its own answer", got.Response, got.err)
	}
	b.Close()
	<-ended
}

// Rows go over whole: what a field of theirs has is billed, or told.
func TestLink_ARowGoesOverWhole(t *testing.T) {
	a, b := sockets(t)
	var came usage.Row
	p := join(t, a, b, func(r *usage.Row) error { came = *r; return nil }, sublet(t), nil)
	defer p.end()
	r := row(7)
	v := reflect.ValueOf(&r).Elem()
	for i := range v.NumField() {
		switch f := v.Field(i); f.Kind() {
		case reflect.String:
			f.SetString(fmt.Sprintf("<%d \u00e9>", i))
		case reflect.Uint8:
			f.SetUint(200 + uint64(i))
		case reflect.Uint16:
			f.SetUint(65_000 + uint64(i))
		case reflect.Uint64:
			f.SetUint(math.MaxUint64 - uint64(i))
		case reflect.Int64:
			f.SetInt(math.MaxInt64 - int64(i))
		case reflect.Array:
			for j := range f.Len() {
				f.Index(j).SetUint(uint64(255 - j))
			}
		default:
			t.Fatalf("%s is of a kind that this test does not know", v.Type().Field(i).Name)
		}
	}
	if err := p.link.Append(&r); err != nil || came != r {
		t.Errorf("%+v came of %+v, %v", came, r, err)
	}
}

// End asks, waits, and then insists.
func TestKeeper_End(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		p := join(t, a, b, func(*usage.Row) error { return nil }, sublet(t), nil)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		asked := make(chan time.Duration, 1)
		go func() { asked <- <-p.link.Ending() }()
		began := time.Now()
		p.keeper.End(ctx, 3*time.Second)
		if took := time.Since(began); took != 5*time.Second {
			t.Errorf("it insists after %s, want when its time is over", took)
		}
		if within := <-asked; within != 3*time.Second {
			t.Errorf("the other is told to end within %s", within)
		}
		<-p.link.Lost()
		<-p.ended
	})
}

// Where too many processes linger the oldest ends, and not the one that is nearest: that one is still told to when its turn comes.
func TestKeeper_TheOldestEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		var older atomic.Int64 // that linger behind the other
		older.Store(1)
		asked := make(chan time.Duration, 1)
		p := join(t, a, b, func(*usage.Row) error { return nil }, sublet(t), func(c *linger.LinkConfig) {
			c.Older = func(within time.Duration) bool {
				if older.Load() == 0 {
					return false
				}
				asked <- within
				return true
			}
		})
		p.keeper.HurryOldest(3 * time.Second)
		select {
		case within := <-asked:
			if within != 3*time.Second {
				t.Errorf("the oldest is to end within %s", within)
			}
		case <-p.link.Ending():
			t.Error("the one before it is to end, and not the oldest")
		}
		select {
		case <-p.link.Ending():
			t.Error("the one before it ends with it")
		case <-time.After(time.Second):
		}
		older.Store(0)
		p.keeper.HurryOldest(4 * time.Second)
		if within := <-p.link.Ending(); within != 4*time.Second {
			t.Errorf("the last one is to end within %s", within)
		}
		p.keeper.Hurry(5 * time.Second)
		if within := <-p.link.Ending(); within != 5*time.Second {
			t.Errorf("told to end with the owner, it has %s", within)
		}
		p.end()
	})
}

// TestMeter_NoRowIsLostWhenTheSpoolChangesHands has rows come all the time while one process closes the spool and another opens it:
// each that was said to be kept is in a block once.
func TestMeter_NoRowIsLostWhenTheSpoolChangesHands(t *testing.T) {
	const workers, each = 8, 1500
	dir := filepath.Join(t.TempDir(), "spool")
	first := openSpool(t, dir)
	m := linger.NewMeter(first)
	var said, refused atomic.Int64
	var all sync.WaitGroup
	begun := make(chan struct{})
	for w := range byte(workers) {
		all.Go(func() {
			for i := range each {
				r := row(1)
				r.RequestID = [16]byte{w, byte(i), byte(i >> 8)}
				if err := m.Append(&r); err != nil {
					refused.Add(1)
					t.Errorf("row: %v", err)
				}
				if n := said.Add(1); n == workers*each/4 {
					close(begun)
				}
				if i%50 == 0 {
					time.Sleep(time.Millisecond)
				}
			}
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	run := make(chan error, 1)
	go func() { run <- first.Run(ctx) }()
	<-begun
	cancel()
	if err := <-run; err != nil {
		t.Fatal(err)
	}
	m.Leave()
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if m.Ready() || m.Healthy() != nil {
		t.Errorf("while the spool changes hands the meter is ready: %v, and healthy: %v", m.Ready(), m.Healthy())
	}
	second := openSpool(t, dir)
	a, b := sockets(t)
	p := join(t, a, b, second.Append, sublet(t), nil)
	m.Through(p.link)
	ctx, cancel = context.WithCancel(t.Context())
	go func() { run <- second.Run(ctx) }()
	all.Wait()
	if p.keeper.Rows() == 0 || p.keeper.Rows() == workers*each {
		t.Errorf("%d of %d rows came over the link: the spool did not change hands in their midst", p.keeper.Rows(), workers*each)
	}
	p.end()
	cancel()
	if err := <-run; err != nil {
		t.Fatal(err)
	}
	var requests, units int64
	for _, e := range second.Epochs() {
		blocks, err := second.Blocks(e.Epoch, e.Oldest, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		for _, block := range blocks {
			cells, err := usage.DecodePayload(block.Payload)
			if err != nil {
				t.Fatal(err)
			}
			for _, sums := range cells {
				requests, units = requests+sums.Requests, units+sums.Units
			}
		}
	}
	if requests != workers*each || units != requests {
		t.Errorf("%d rows were kept, %d are in blocks, of %d units", workers*each, requests, units)
	}
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
}

func openSpool(t *testing.T, dir string) *spool.Spool {
	t.Helper()
	s, err := spool.Open(spool.Config{Dir: dir, Edge: "edge", MaxUnacked: 10_000})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Where nobody takes the spool over, rows are refused with the reason; and at an ordinary stop with the spool's own.
func TestMeter_NobodyCounts(t *testing.T) {
	own := openSpool(t, filepath.Join(t.TempDir(), "spool"))
	m := linger.NewMeter(own)
	if err := own.Close(); err != nil {
		t.Fatal(err)
	}
	r := row(0)
	if err := m.Append(&r); !errors.Is(err, spool.ErrClosed) {
		t.Errorf("after an ordinary stop: %v", err)
	}
	m.Leave()
	kept := make(chan error, 1)
	go func() { r := row(0); kept <- m.Append(&r) }()
	gone := errors.New("the successor is gone")
	m.Fail(gone)
	if err := <-kept; !errors.Is(err, gone) || !errors.Is(m.Healthy(), gone) {
		t.Errorf("nobody took it over: %v, and healthy: %v", err, m.Healthy())
	}
}

// What a newer program says is not half understood: a row might lose what it is billed by.
func TestSaid_OfANewerProgramIsNotTaken(t *testing.T) {
	raw, err := (&linger.Said{Epoch: 3, Sealed: 9, Marks: []ferry.Mark{7}}).Encode()
	if err != nil {
		t.Fatal(err)
	}
	if s, err := linger.Decode(raw); err != nil || s.Epoch != 3 || s.Sealed != 9 || len(s.Marks) != 1 {
		t.Errorf("%+v, %v", s, err)
	}
	for _, other := range []string{`{"version":2,"epoch":3}`, `{"epoch":`, ``} {
		if s, err := linger.Decode([]byte(other)); err == nil {
			t.Errorf("%q is taken: %+v", other, s)
		}
	}
}

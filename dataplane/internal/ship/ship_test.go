package ship_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"bailiwick/dataplane/internal/detail"
	"bailiwick/dataplane/internal/ship"
	"bailiwick/dataplane/internal/spool"
	"bailiwick/shared/usage"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const edge = "eu-west-edge-1"

func openSpool(t testing.TB, dir string) *spool.Spool {
	t.Helper()
	s, err := spool.Open(spool.Config{Dir: dir, Edge: edge, SegmentBytes: 64 << 10, SealEvery: 5 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run spool: %v", err)
		}
		s.Close()
	})
	return s
}

func add(t testing.TB, s *spool.Spool, customer string, n int) {
	t.Helper()
	for range n {
		r := usage.Row{Customer: customer, Plan: "gold", API: "orders", Outcome: usage.OutcomeSuccess, Requests: 1, Units: 1}
		if err := s.Append(&r); err != nil {
			t.Fatal(err)
		}
	}
}

// addBlocks makes n blocks of one row.
func addBlocks(t testing.TB, s *spool.Spool, customer string, n int) {
	t.Helper()
	for range n {
		before := s.Stats().Seq
		add(t, s, customer, 1)
		eventually(t, "a block", func() bool { return s.Stats().Seq > before })
	}
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("no %s within 30 s", what)
		}
	}
}

type fixture struct {
	ship *ship.Shipper
	stop func()
}

func start(t testing.TB, s *spool.Spool, p *pki, addrs ...string) *fixture {
	t.Helper()
	return startWith(t, s, nil, p, addrs...)
}

func startWith(t testing.TB, s *spool.Spool, d *detail.Spool, p *pki, addrs ...string) *fixture {
	t.Helper()
	return startConfig(t, p, ship.Config{Spool: s, Detail: d, Addrs: func() []string { return addrs },
		Patience: 500 * time.Millisecond, Heartbeat: 20 * time.Millisecond, RetryQUIC: 100 * time.Millisecond, Backoff: 10 * time.Millisecond, RetryRefused: 300 * time.Millisecond, RetryHome: 700 * time.Millisecond})
}

func startConfig(t testing.TB, p *pki, cfg ship.Config) *fixture {
	t.Helper()
	tr := &http.Transport{TLSClientConfig: p.client, ForceAttemptHTTP2: true}
	cfg.QUICTLS, cfg.HTTPClient = p.quic, &http.Client{Transport: tr}
	f, err := ship.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	var once bool
	stop := func() {
		if once {
			return
		}
		once = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
		tr.CloseIdleConnections()
	}
	t.Cleanup(stop)
	return &fixture{f, stop}
}

func TestShipper_QUICCarriesAndTrims(t *testing.T) {
	p, led := newPKI(t), newLedger()
	n := newNode(t, p, led, true, true)
	s := openSpool(t, t.TempDir())
	f := start(t, s, p, n.addr)
	add(t, s, "acme", 1000)
	eventually(t, "1000 rows in the ledger", func() bool { return led.rows("acme") == 1000 })
	eventually(t, "empty spool", func() bool { return s.Stats().Unacked == 0 })
	if st := f.ship.Stats(); st.Transport != "quic" || st.Addr != n.addr || f.ship.Err() != nil {
		t.Errorf("stats = %+v, err %v; want quic and no error", st, f.ship.Err())
	}
	// Silence is told from absence of usage by the time up to which all is there.
	at := time.Now()
	eventually(t, "sealed-through past now", func() bool { return led.through(s.Stats().Epoch).After(at) })
}

func TestShipper_LostAcksAreNotCountedTwice(t *testing.T) {
	p, led := newPKI(t), newLedger()
	n := newNode(t, p, led, true, true)
	led.set(func() { led.cutAfterApply = 3 }) // applied, then the connection dies before the answer
	s := openSpool(t, t.TempDir())
	f := start(t, s, p, n.addr)
	for range 20 {
		addBlocks(t, s, "acme", 1)
	}
	eventually(t, "empty spool", func() bool { return s.Stats().Unacked == 0 })
	if got := led.rows("acme"); got != 20 {
		t.Errorf("the ledger counts %d rows, want 20", got)
	}
	if st := f.ship.Stats(); st.Sessions < 4 {
		t.Errorf("%d sessions; want at least 4, one a cut", st.Sessions)
	}
}

func TestShipper_FallsBackToConnectAndReturns(t *testing.T) {
	p, led := newPKI(t), newLedger()
	n := newNode(t, p, led, false, true) // TCP only: UDP is blocked
	s := openSpool(t, t.TempDir())
	f := start(t, s, p, n.addr)
	add(t, s, "acme", 100)
	eventually(t, "100 rows over Connect", func() bool { return led.rows("acme") == 100 })
	if tr := f.ship.Stats().Transport; tr != "connect" {
		t.Errorf("transport = %q, want connect", tr)
	}
	n.serveQUIC(t)
	eventually(t, "return to QUIC", func() bool { return f.ship.Stats().Transport == "quic" })
	add(t, s, "acme", 100)
	eventually(t, "200 rows", func() bool { return led.rows("acme") == 200 })
	eventually(t, "empty spool", func() bool { return s.Stats().Unacked == 0 })
}

func TestShipper_GoesOnToTheNextNode(t *testing.T) {
	p, led := newPKI(t), newLedger()
	dead, err := net.ListenPacket("udp", "127.0.0.1:0") // takes datagrams and never answers
	if err != nil {
		t.Fatal(err)
	}
	defer dead.Close()
	mute := newNode(t, p, led, true, false)
	mute.mute.Store(true) // shakes hands and never answers
	refusing := newNode(t, p, led, true, false)
	refusing.refusing.Store(true) // closes: it is not the leader and knows none
	good := newNode(t, p, led, true, false)
	s := openSpool(t, t.TempDir())
	f := start(t, s, p, dead.LocalAddr().String(), mute.addr, refusing.addr, good.addr)
	add(t, s, "acme", 10)
	eventually(t, "10 rows", func() bool { return led.rows("acme") == 10 })
	if got := f.ship.Stats().Addr; got != good.addr {
		t.Errorf("session with %s, want %s", got, good.addr)
	}
}

func TestShipper_OldEpochsGoFirst(t *testing.T) {
	p, led := newPKI(t), newLedger()
	n := newNode(t, p, led, true, true)
	dir := t.TempDir()
	for range 3 {
		s, err := spool.Open(spool.Config{Dir: dir, Edge: edge, SegmentBytes: 64 << 10})
		if err != nil {
			t.Fatal(err)
		}
		add(t, s, "acme", 5)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	s := openSpool(t, dir)
	add(t, s, "acme", 5)
	start(t, s, p, n.addr)
	eventually(t, "20 rows", func() bool { return led.rows("acme") == 20 })
	if order := led.order(); !slices.IsSorted(order) || len(slices.Compact(order)) != 4 {
		t.Errorf("epochs were applied in the order %v, want four, rising", order)
	}
}

func TestShipper_GapResumesWhereTheLedgerIs(t *testing.T) {
	p, led := newPKI(t), newLedger()
	n := newNode(t, p, led, true, true)
	led.set(func() { led.dropSeq = 4 }) // once: answered by nothing, so all behind it are gaps
	s := openSpool(t, t.TempDir())
	addBlocks(t, s, "acme", 10)
	f := start(t, s, p, n.addr)
	eventually(t, "empty spool", func() bool { return s.Stats().Unacked == 0 })
	if got, st := led.rows("acme"), f.ship.Stats(); got != 10 || st.Refusals == 0 || st.Sessions != 1 {
		t.Errorf("%d rows, stats %+v; want 10, some GAP refusals, and the same session", got, st)
	}
}

func TestShipper_RefusedBlockStaysAndIsLoud(t *testing.T) {
	for _, reason := range []string{ship.ReasonWrongChain, ship.ReasonFork, ship.ReasonForeign, ship.ReasonMalformed, ship.ReasonRegion, ship.ReasonAPI,
		ship.ReasonImplausible, ship.ReasonQuarantined, ship.ReasonEpochClosed} {
		t.Run(reason, func(t *testing.T) {
			p, led := newPKI(t), newLedger()
			n := newNode(t, p, led, true, true)
			led.set(func() { led.refuseSeq, led.refuseReason = 3, reason })
			s := openSpool(t, t.TempDir())
			addBlocks(t, s, "acme", 5)
			f := start(t, s, p, n.addr)
			eventually(t, "refusal", func() bool { return len(f.ship.Stats().Refused) == 1 })
			if err := f.ship.Err(); err == nil || !strings.Contains(err.Error(), reason) {
				t.Errorf("err = %v, want the reason %s", err, reason)
			}
			if st := s.Stats(); st.Unacked != 3 || st.Parked != 1 || led.rows("acme") != 2 {
				t.Errorf("%d blocks wait, %d epochs parked, %d rows in the ledger; want 3, 1, 2", st.Unacked, st.Parked, led.rows("acme"))
			}
			err := f.ship.Stuck()
			if err == nil || !strings.Contains(err.Error(), reason) || strings.Contains(err.Error(), "for good") != (reason == ship.ReasonEpochClosed) {
				t.Errorf("stuck: got %v, want the reason, and whether it is for good", err)
			}
			if reason == ship.ReasonEpochClosed {
				return // for good
			}
			led.set(func() { led.refuseSeq = 0 }) // the cause is repaired
			eventually(t, "the rest", func() bool { return led.rows("acme") == 5 && s.Stats().Unacked == 0 })
			eventually(t, "calm", func() bool { return f.ship.Err() == nil && f.ship.Stuck() == nil && s.Stats().Parked == 0 })
		})
	}
}

// An epoch of which the ledger has nothing would be closed by a newer one: that one waits.
func TestShipper_UnbegunRefusedEpochHoldsTheNext(t *testing.T) {
	p, led := newPKI(t), newLedger()
	n := newNode(t, p, led, true, true)
	dir := t.TempDir()
	old, err := spool.Open(spool.Config{Dir: dir, Edge: edge, SegmentBytes: 64 << 10})
	if err != nil {
		t.Fatal(err)
	}
	add(t, old, "stranger", 1)
	old.Close()
	s := openSpool(t, dir)
	addBlocks(t, s, "acme", 2)
	led.set(func() { led.foreign = "stranger" })
	f := start(t, s, p, n.addr)
	eventually(t, "refusal", func() bool { return len(f.ship.Stats().Refused) == 1 })
	time.Sleep(100 * time.Millisecond)
	if got := led.rows("acme"); got != 0 {
		t.Errorf("%d rows of the newer epoch are in the ledger, which closes the older one", got)
	}
	led.set(func() { led.foreign = "" })
	eventually(t, "both epochs", func() bool { return led.rows("stranger") == 1 && led.rows("acme") == 2 })
}

func TestShipper_LedgerWithAnotherHistoryGetsNoTrim(t *testing.T) {
	p, led := newPKI(t), newLedger()
	n := newNode(t, p, led, true, true)
	s := openSpool(t, t.TempDir())
	addBlocks(t, s, "acme", 3)
	led.preload(s.Stats().Epoch, 2, [32]byte{7}) // a clone of this disk was here before
	f := start(t, s, p, n.addr)
	eventually(t, "refusal", func() bool { return len(f.ship.Stats().Refused) == 1 })
	if r := f.ship.Stats().Refused[0]; r.Reason != ship.ReasonFork || s.Stats().Unacked != 3 {
		t.Errorf("refusal %+v, %d blocks wait; want FORK and 3", r, s.Stats().Unacked)
	}
}

// The ledger has blocks of an epoch that this spool never sealed, or sealed otherwise: it must hear of that, since
// all it has agrees with itself and nothing more is sent.
func TestShipper_TellsTheLedgerOfAFork(t *testing.T) {
	for sealed := range 4 {
		t.Run(fmt.Sprint(sealed, " sealed"), func(t *testing.T) {
			p, led := newPKI(t), newLedger()
			n := newNode(t, p, led, true, true)
			s := openSpool(t, t.TempDir())
			if sealed > 0 {
				addBlocks(t, s, "acme", sealed)
			}
			led.preload(s.Stats().Epoch, 2, [32]byte{7})
			f := start(t, s, p, n.addr)
			eventually(t, "the ledger hears of it", func() bool {
				led.mu.Lock()
				defer led.mu.Unlock()
				return led.disputed == 2
			})
			eventually(t, "one refusal, a FORK", func() bool { // the answer is under way when the ledger has heard
				r := f.ship.Stats().Refused
				return len(r) == 1 && r[0].Reason == ship.ReasonFork
			})
		})
	}
}

func TestShipper_WithdrawnStops(t *testing.T) {
	p, led := newPKI(t), newLedger()
	n := newNode(t, p, led, true, true)
	n.withdrawn.Store(true)
	s := openSpool(t, t.TempDir())
	addBlocks(t, s, "acme", 2)
	f := start(t, s, p, n.addr)
	eventually(t, "withdrawal", func() bool { return f.ship.Stats().Withdrawn })
	if f.ship.Err() == nil || s.Stats().Unacked != 2 {
		t.Errorf("err %v, %d blocks wait; want an error and 2", f.ship.Err(), s.Stats().Unacked)
	}
	sessions := n.sessions.Load()
	time.Sleep(100 * time.Millisecond)
	if now := n.sessions.Load(); now != sessions {
		t.Errorf("%d more sessions after the withdrawal", now-sessions)
	}
}

// The ledger goes away and comes back, several times, while rows come: each is counted once.
func TestShipper_NodesComeAndGo(t *testing.T) {
	p, led := newPKI(t), newLedger()
	a := newNode(t, p, led, true, true)
	b := newNode(t, p, led, true, true)
	s := openSpool(t, t.TempDir())
	start(t, s, p, a.addr, b.addr)
	total := int64(0)
	for i := range 6 {
		n := []*node{a, b}[i%2]
		n.mute.Store(true)
		n.cut()
		for range 20 {
			add(t, s, "acme", 7)
			total += 7
			time.Sleep(3 * time.Millisecond)
		}
		n.mute.Store(false)
	}
	eventually(t, fmt.Sprintf("%d rows", total), func() bool { return led.rows("acme") == total })
	eventually(t, "empty spool", func() bool { return s.Stats().Unacked == 0 })
	if got := led.rows("acme"); got != total {
		t.Errorf("the ledger counts %d rows, want %d", got, total)
	}
}

package ship_test

import (
	"context"
	"errors"
	"sync"
	"testing"

	"bailiwick/dataplane/internal/detail"
	"bailiwick/dataplane/internal/ship"
	usagev1 "bailiwick/proto/gen/bailiwick/usage/v1"
	"bailiwick/shared/usage"
)

// store is a control node's of detail: numbers in order, each once.
type store struct {
	mu       sync.Mutex
	stored   map[uint64]uint64
	customer map[string]int64
	lost     int64
	refuse   map[string]bool // customers
	refused  int
	stall    bool // answers the hello and then reads no more
	cutAfter int  // messages, once
	reads    uint32
	versions map[byte]int // of pieces that came
}

func newStore() *store {
	return &store{stored: map[uint64]uint64{}, customer: map[string]int64{}, reads: usage.DetailVersion, versions: map[byte]int{}}
}

func (s *store) rows(customer string) (kept, lost int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.customer[customer], s.lost
}

func (s *store) serve(receive func() (*usagev1.UploadDetailRequest, error), send func(*usagev1.UploadDetailResponse) error, ctx context.Context) error {
	for {
		m, err := receive()
		if err != nil {
			return err
		}
		answer, stall := s.take(m)
		if answer == nil {
			return errors.New("cut")
		}
		if err := send(answer); err != nil {
			return err
		}
		if stall {
			<-ctx.Done()
			return ctx.Err()
		}
	}
}

func (s *store) take(m *usagev1.UploadDetailRequest) (answer *usagev1.UploadDetailResponse, stall bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	mark := func(epoch uint64) *usagev1.UploadDetailResponse {
		return &usagev1.UploadDetailResponse{Message: &usagev1.UploadDetailResponse_Mark{Mark: &usagev1.DetailMark{Epoch: epoch, Stored: s.stored[epoch], Reads: s.reads}}}
	}
	refuse := func(epoch, number uint64, reason string) *usagev1.UploadDetailResponse {
		s.refused++
		return &usagev1.UploadDetailResponse{Message: &usagev1.UploadDetailResponse_Refusal{Refusal: &usagev1.DetailRefusal{Epoch: epoch, Number: number, Reason: reason, Expected: s.stored[epoch] + 1}}}
	}
	if s.cutAfter > 0 {
		if s.cutAfter--; s.cutAfter == 0 {
			return nil, false
		}
	}
	if h := m.GetHello(); h != nil {
		return mark(h.Epoch), s.stall
	}
	if l := m.GetLost(); l != nil {
		if l.From == s.stored[l.Epoch]+1 {
			s.stored[l.Epoch], s.lost = l.To, s.lost+l.Rows
		}
		return mark(l.Epoch), false
	}
	b := m.GetBlock()
	rows, err := usage.DecodeDetail(b.Payload)
	switch {
	case uint32(b.Payload[0]) > max(1, s.reads):
		return refuse(b.Epoch, b.Number, ship.ReasonMalformed), false
	case err != nil || usage.HashDetail(edge, b.Epoch, b.Number, b.Seq, b.Payload) != [32]byte(b.Hash):
		return refuse(b.Epoch, b.Number, ship.ReasonMalformed), false
	case b.Number > s.stored[b.Epoch]+1:
		return refuse(b.Epoch, b.Number, ship.ReasonGap), false
	case b.Number <= s.stored[b.Epoch]:
		return mark(b.Epoch), false
	}
	for i := range rows {
		if s.refuse[rows[i].Customer] {
			return refuse(b.Epoch, b.Number, ship.ReasonForeign), false
		}
	}
	for i := range rows {
		s.customer[rows[i].Customer]++
	}
	s.stored[b.Epoch] = b.Number
	s.versions[b.Payload[0]]++
	return mark(b.Epoch), false
}

func openDetail(t testing.TB) *detail.Spool {
	t.Helper()
	d, err := detail.Open(detail.Config{Dir: t.TempDir(), Edge: edge})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func detailRow(customer string, n uint64) usage.Row {
	return usage.Row{Customer: customer, Plan: "gold", API: "orders", Outcome: usage.OutcomeSuccess, Requests: 1, Units: 1, BytesOut: int64(n)}
}

// keep makes n pieces of one row each.
func keep(d *detail.Spool, epoch uint64, customer string, from, to uint64) {
	for n := from; n <= to; n++ {
		d.Keep(epoch, n, n, usage.BatchOf([]usage.Row{detailRow(customer, n)}))
	}
}

func TestShipper_DetailArrivesOnceWhateverIsCut(t *testing.T) {
	for _, transport := range []string{"quic", "connect"} {
		t.Run(transport, func(t *testing.T) {
			p, led := newPKI(t), newLedger()
			n := newNode(t, p, led, transport == "quic", true)
			n.store = newStore()
			n.store.cutAfter = 7
			s, d := openSpool(t, t.TempDir()), openDetail(t)
			keep(d, 5, "acme", 1, 40)
			keep(d, 9, "acme", 1, 10)
			f := startWith(t, s, d, p, n.addr)
			add(t, s, "acme", 10)
			eventually(t, "50 rows of detail", func() bool { k, _ := n.store.rows("acme"); return k == 50 })
			keep(d, 9, "acme", 11, 300)
			if transport == "quic" {
				n.cut()
			}
			eventually(t, "340 rows of detail", func() bool { k, _ := n.store.rows("acme"); return k == 340 })
			eventually(t, "all marked", func() bool { return d.Stats().Pieces == 0 })
			if k, lost := n.store.rows("acme"); k != 340 || lost != 0 {
				t.Errorf("%d rows stored and %d lost, want 340 and 0", k, lost)
			}
			if st := f.ship.Stats(); st.Transport != transport || st.PiecesSent < 340 {
				t.Errorf("stats = %+v", st)
			}
		})
	}
}

// A zone's nodes are replaced one by one: a node of before gets what it reads, and says of it what it would of its own.
func TestShipper_DetailForAnOlderNode(t *testing.T) {
	for reads, want := range map[uint32]byte{0: 1, 1: 1, 2: 2, 3: 2} {
		p, led := newPKI(t), newLedger()
		n := newNode(t, p, led, true, true)
		n.store = newStore()
		n.store.reads = reads
		s, d := openSpool(t, t.TempDir()), openDetail(t)
		const rows = 2000 // of version 2
		many := make([]usage.Row, rows)
		for i := range many {
			many[i] = detailRow("acme", uint64(i))
		}
		d.Keep(5, 1, rows, usage.BatchOf(many))
		d.Keep(5, 2, rows+1, usage.BatchOf(many[:1]))
		startWith(t, s, d, p, n.addr)
		eventually(t, "all rows", func() bool { k, _ := n.store.rows("acme"); return k == rows+1 })
		n.store.mu.Lock()
		if n.store.refused != 0 || n.store.versions[want] == 0 || want == 1 && n.store.versions[2] > 0 {
			t.Errorf("a node that reads version %d got %v, and refused %d; want version %d", reads, n.store.versions, n.store.refused, want)
		}
		n.store.mu.Unlock()
	}
}

// A piece that does not read, which cannot be written anew for an older node, holds up nothing: it is refused and becomes a loss.
func TestShipper_DetailThatDoesNotReadIsLostAtAnOlderNodeToo(t *testing.T) {
	p, led := newPKI(t), newLedger()
	n := newNode(t, p, led, true, true)
	n.store = newStore()
	n.store.reads = 0
	s, d := openSpool(t, t.TempDir()), openDetail(t)
	const rows = 2000 // of version 2
	many := make([]usage.Row, rows)
	for i := range many {
		many[i] = detailRow("", uint64(i)) // nobody's: no reader takes it
	}
	d.Keep(5, 1, rows, usage.BatchOf(many))
	d.Keep(5, 2, rows+1, usage.BatchOf([]usage.Row{detailRow("acme", 1)}))
	startWith(t, s, d, p, n.addr)
	eventually(t, "what is behind it", func() bool { k, lost := n.store.rows("acme"); return k == 1 && lost == rows })
}

// What a node refuses for what it is becomes a loss, and what is behind it arrives.
func TestShipper_RefusedDetailBecomesALoss(t *testing.T) {
	p, led := newPKI(t), newLedger()
	n := newNode(t, p, led, true, true)
	n.store = newStore()
	n.store.refuse = map[string]bool{"mallory": true}
	s, d := openSpool(t, t.TempDir()), openDetail(t)
	keep(d, 5, "acme", 1, 10)
	keep(d, 5, "mallory", 11, 11)
	keep(d, 5, "acme", 12, 20)
	startWith(t, s, d, p, n.addr)
	eventually(t, "the rest", func() bool { k, _ := n.store.rows("acme"); return k == 19 })
	if _, lost := n.store.rows(""); lost != 1 || n.store.refused < 2 {
		t.Errorf("%d rows lost after %d refusals, want 1 after the second", lost, n.store.refused)
	}
}

// Usage goes to whichever node is up, and home again when the first is back.
func TestShipper_GoesHomeAgain(t *testing.T) {
	p, led := newPKI(t), newLedger()
	home := newNode(t, p, led, true, true)
	home.refusing.Store(true)
	other := newNode(t, p, led, true, true)
	s := openSpool(t, t.TempDir())
	f := startWith(t, s, nil, p, home.addr, other.addr)
	add(t, s, "acme", 1)
	eventually(t, "a session with the other node", func() bool { return f.ship.Stats().Addr == other.addr })
	home.refusing.Store(false)
	eventually(t, "a session at home", func() bool { return f.ship.Stats().Addr == home.addr })
}

// A node that takes no detail, with a spool full of it: blocks of the ledger go
// as if there were none.
func TestShipper_DetailNeverDelaysTheLedger(t *testing.T) {
	for _, transport := range []string{"quic", "connect"} {
		t.Run(transport, func(t *testing.T) {
			p, led := newPKI(t), newLedger()
			n := newNode(t, p, led, transport == "quic", true)
			n.store = newStore()
			n.store.stall = true
			s, d := openSpool(t, t.TempDir()), openDetail(t)
			through := uint64(0)
			for range 40 { // noise, so that pieces are large
				rows := make([]usage.Row, 4000)
				for i := range rows {
					rows[i] = detailRow("acme", uint64(i)*0x9e3779b97f4a7c15>>1)
					rows[i].Address = uint64(i+1) * 0xbf58476d1ce4e5b9 * (through + 1)
				}
				through += uint64(len(rows))
				d.Keep(5, 1, through, usage.BatchOf(rows))
			}
			if b := d.Stats().BytesKept; b < 2<<20 {
				t.Fatalf("only %d bytes of detail: they fit into buffers", b)
			}
			f := startWith(t, s, d, p, n.addr)
			add(t, s, "acme", 1)
			eventually(t, "a session", func() bool { return led.rows("acme") == 1 })
			eventually(t, "detail under way", func() bool { return f.ship.Stats().DetailBytesSent > 32<<10 })
			for i := range int64(30) {
				add(t, s, "acme", 1)
				eventually(t, "the block, beside a stream of detail that stands still", func() bool { return led.rows("acme") == i+2 })
			}
			if st := f.ship.Stats(); st.Sessions != 1 {
				t.Errorf("%d sessions, want 1", st.Sessions)
			}
		})
	}
}

package ledger_test

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"bailiwick/controlplane/internal/explore"
	"bailiwick/controlplane/internal/ledger"
	"bailiwick/controlplane/internal/quota"
)

// The quota protocol in the small: two edges spend one strict quota over a network that loses, repeats and
// reorders; edges are killed with units in hand and rows in the spool, disks are lost, an operator closes
// epochs. What the ledger decides is its own code; the edge is a model of dataplane/internal/quota. A row is a
// block of its own: that blocks count once is the other exploration's.

type quotaBounds struct {
	name               string
	limit, epochs, net int
	gone               bool
}

const maxSpans = 2

// span is one epoch of an edge: rows in its spool, of them known to be in the ledger.
type span struct{ rows, acked uint8 }

type spender struct {
	up                  bool
	epoch               uint8 // 1…, the newest
	leased, free, spent uint8 // of the epoch; leased = free + spent + under way
	seq                 uint8 // of the newest exchange
	waits               bool  // for its answer
	owes                uint8 // units that the mutant has promised and not taken out
	spans               [maxSpans]span
	lost                uint8 // rows that went with a disk
}

type parcel struct {
	answer            bool
	to, epoch, seq    uint8
	leased, want      uint8 // of a request: the ceiling
	pending, pending2 uint8 // rows of the epoch before, if it is named
}

type entry struct{ applied, sealed, leased, spent uint8 }

// desk is what the ledger knows of an edge.
type desk struct {
	epoch, seq, pending uint8 // newest exchange; what the epoch before had sealed, 0: it was not named
	closed              uint8 // bits of epochs
	spans               [maxSpans]entry
}

type market struct {
	edges              [2]spender
	desks              [2]desk
	net                [3]parcel
	settled, forfeited uint8
}

type trade struct {
	quotaBounds
	mutant string
	fateOf func(uint64, *ledger.Asker, *ledger.Epoch) ledger.Fate
}

func exploredQuota(b quotaBounds, mutant string) (explore.Result, error) {
	p := &trade{quotaBounds: b, mutant: mutant, fateOf: ledger.FateOf}
	switch mutant {
	case "settled before applied":
		p.fateOf = func(n uint64, a *ledger.Asker, e *ledger.Epoch) ledger.Fate {
			if a != nil && n < a.Epoch {
				return ledger.FateOver
			}
			return ledger.FateOf(n, a, e)
		}
	case "a closed epoch returns what it held":
		p.fateOf = func(n uint64, a *ledger.Asker, e *ledger.Epoch) ledger.Fate {
			if e != nil && e.Closed {
				return ledger.FateOver
			}
			return ledger.FateOf(n, a, e)
		}
	}
	var m market
	for i := range m.edges {
		m.edges[i] = spender{up: true, epoch: 1}
	}
	return explore.Walk[market]{Start: m, Next: p.next, Good: p.good}.Run()
}

var errServed = errors.New("more is served than the quota allows")

// judge is the invariant.
func (p *trade) judge(m *market) error {
	served, owed := 0, int(m.settled)+int(m.forfeited)
	for i := range m.edges {
		served += int(m.edges[i].lost)
		for _, s := range m.edges[i].spans {
			served += int(s.rows)
		}
		for _, e := range m.desks[i].spans {
			owed += int(max(e.leased, e.spent))
		}
		if e := &m.edges[i]; e.free > e.leased || e.spent > e.leased {
			return fmt.Errorf("edge %d spends beyond its lease", i)
		}
	}
	if served > p.limit {
		return errServed
	}
	if owed > p.limit {
		return fmt.Errorf("%d units are spent or may be, of %d", owed, p.limit)
	}
	return nil
}

// good: everything that the quota allows is served and counted, or forfeited by an operator.
func (p *trade) good(m market) bool {
	n := int(m.forfeited)
	for i := range m.edges {
		e := &m.edges[i]
		if !e.up || e.leased != e.spent || e.owes > 0 {
			return false
		}
		for k, s := range e.spans {
			d := &m.desks[i]
			if d.closed&(1<<k) == 0 && e.lost == 0 && (d.spans[k].applied != s.rows || s.acked != s.rows) {
				return false
			}
			n += int(d.spans[k].applied)
		}
		if e.lost > 0 && m.desks[i].closed&1 == 0 {
			return false // the operator's turn
		}
	}
	return n >= p.limit
}

func (p *trade) next(m market, emit explore.Emit[market]) {
	out := func(name string, a, b int, after market) {
		emit(explore.Event{Name: name, A: a, B: b}, p.canonical(after), p.judge(&after))
	}
	for i := range m.edges {
		p.spend(m, i, out)
	}
	for k := range m.net {
		c := m.net[k]
		if c == (parcel{}) {
			break
		}
		gone := m
		gone.take(k)
		out("lose", k, 0, gone)
		for _, after := range []market{gone, m} {
			if c.answer {
				p.answered(&after, c)
				out("answer", int(c.to), int(c.leased), after)
				break // a second one is ignored by its number
			}
			p.exchange(&after, c)
			out("exchange", int(c.to), int(c.seq), after)
		}
	}
	if p.gone {
		for i := range m.desks {
			for n := range int(m.edges[i].epoch) - 1 { // the admin API closes no epoch in use
				// What the ledger has not heard of may be lost without a gap: then a close that leaves it to the
				// ledger gives back units that were spent. An operator who cannot know says --held forfeit.
				if m.desks[i].closed&(1<<n) != 0 || m.desks[i].spans[n].sealed < m.edges[i].spans[n].rows {
					continue
				}
				after := m
				p.close(&after, i, n)
				out("close", i, n+1, after)
			}
		}
	}
}

func (p *trade) spend(m market, i int, out func(string, int, int, market)) {
	e := &m.edges[i]
	at := e.epoch - 1
	if !e.up {
		after := m
		a := &after.edges[i]
		*a = spender{up: true, epoch: e.epoch + 1, spans: e.spans, lost: e.lost}
		if p.mutant == "a restart keeps its lease" {
			a.leased, a.free = e.leased-e.spent, e.leased-e.spent
		}
		out("restart", i, 0, after)
		return
	}
	if e.free > 0 {
		after := m
		after.edges[i].free--
		out("take", i, 0, after)
	}
	if e.leased > e.free+e.spent {
		after := m
		after.edges[i].spans[at].rows++
		after.edges[i].spent++
		out("served", i, 0, after)
		after = m
		after.edges[i].free++
		out("released", i, 0, after)
	}
	if int(e.epoch) < p.epochs {
		after := m
		after.edges[i].up = false
		out("kill", i, 0, after)
		if d := &m.desks[i].spans[at]; p.gone && e.lost == 0 && d.sealed == e.spans[at].rows {
			after.edges[i].lost = e.spans[at].rows - d.applied
			after.edges[i].spans[at] = span{d.applied, d.applied}
			out("disk gone", i, 0, after)
		}
	}
	for k := range int(e.epoch) {
		s, d := e.spans[k], m.desks[i].spans[k]
		if d.sealed < s.rows {
			after := m
			after.desks[i].spans[k].sealed = s.rows
			out("tell", i, k, after)
		}
		if d.applied < s.rows && m.desks[i].closed&(1<<k) == 0 {
			after := m
			x := &after.desks[i].spans[k]
			x.applied++
			x.spent++
			x.sealed = max(x.sealed, x.applied)
			out("block", i, k, after)
		}
		if s.acked < d.applied {
			after := m
			after.edges[i].spans[k].acked = d.applied
			out("ack", i, k, after)
		}
	}
	p.ask(m, i, out)
}

// ask lowers the local limit by what goes back, and then says so.
func (p *trade) ask(m market, i int, out func(string, int, int, market)) {
	e := &m.edges[i]
	for _, back := range []uint8{0, e.free} {
		for _, want := range []uint8{0, 1} {
			if back == 0 && want == 0 && e.leased > 0 || back > 0 && want > 0 {
				continue
			}
			after := m
			a := &after.edges[i]
			c := parcel{to: uint8(i), epoch: e.epoch, want: want, leased: e.leased - back}
			if p.mutant == "the ceiling is said before it is lowered" {
				a.owes = back
			} else {
				a.leased, a.free = a.leased-back, a.free-back
			}
			a.seq++
			a.waits = true
			c.seq = a.seq
			if s := e.spans[0]; e.epoch == 2 && s.acked < s.rows && p.mutant != "older epochs not named" {
				c.pending = s.rows
			}
			if after.add(c, p.net) {
				out("ask", i, int(c.leased), after)
			}
			if back == e.free && back == 0 {
				continue
			}
		}
	}
}

func (p *trade) answered(m *market, c parcel) {
	e := &m.edges[c.to]
	if !e.up || c.epoch != e.epoch || p.mutant != "an answer to an older exchange is taken" && (!e.waits || c.seq != e.seq) {
		return
	}
	e.waits = false
	if e.owes > 0 {
		back := min(e.owes, e.free)
		e.leased, e.free, e.owes = e.leased-back, e.free-back, 0
	}
	if c.leased > e.leased {
		e.free += c.leased - e.leased
		e.leased = c.leased
	} else if back := min(e.leased-c.leased, e.free); back > 0 {
		e.leased, e.free = e.leased-back, e.free-back
	}
}

const edgeNames = "ab"

// shelf is the market's account for the ledger's code.
func (p *trade) shelf(m *market) *ledger.Shelf {
	s := &ledger.Shelf{Settled: int64(m.settled), Forfeited: int64(m.forfeited), Askers: map[string]*ledger.Asker{}, Epochs: map[ledger.EpochKey]*ledger.Epoch{}, FateOf: p.fateOf}
	for i := range m.desks {
		d, name := &m.desks[i], edgeNames[i:i+1]
		if d.epoch > 0 {
			a := &ledger.Asker{Epoch: uint64(d.epoch), Sequence: uint64(d.seq)}
			if d.pending > 0 {
				a.Pending = []ledger.Pending{{Epoch: 1, Sealed: uint64(d.pending)}}
			}
			s.Askers[name] = a
		}
		for n, x := range d.spans {
			k := ledger.KeyOf(name, uint64(n+1))
			if x.leased > 0 || x.spent > 0 {
				s.Holders = append(s.Holders, ledger.Holding{EpochKey: k, Holder: quota.Holder{Leased: int64(x.leased), Spent: int64(x.spent)}})
			}
			switch {
			case d.closed&(1<<n) != 0:
				s.Epochs[k] = ledger.ClosedBy(uint64(x.applied), uint64(x.sealed), ledger.HeldAuto)
			case x.sealed > 0:
				s.Epochs[k] = &ledger.Epoch{Applied: uint64(x.applied), Sealed: uint64(x.sealed)}
			}
		}
	}
	return s
}

// put writes it back.
func (p *trade) put(m *market, s *ledger.Shelf) {
	m.settled, m.forfeited = uint8(s.Settled), uint8(s.Forfeited)
	for i := range m.desks {
		d, name := &m.desks[i], edgeNames[i:i+1]
		d.epoch, d.seq, d.pending = 0, 0, 0
		if a := s.Askers[name]; a != nil {
			d.epoch, d.seq = uint8(a.Epoch), uint8(a.Sequence)
			for _, x := range a.Pending {
				d.pending = uint8(x.Sealed)
			}
		}
		for n := range d.spans {
			x := &d.spans[n]
			x.leased, x.spent = 0, 0
			k := ledger.KeyOf(name, uint64(n+1))
			for _, h := range s.Holders {
				if h.EpochKey == k {
					x.leased, x.spent = uint8(h.Leased), uint8(h.Spent)
				}
			}
			if e := s.Epochs[k]; e != nil && e.Closed {
				d.closed |= 1 << n
				x.sealed = uint8(e.Sealed)
			}
		}
	}
}

func (p *trade) exchange(m *market, c parcel) {
	name := edgeNames[c.to : c.to+1]
	x := &ledger.Exchange{Edge: name, Epoch: uint64(c.epoch), Sequence: uint64(c.seq), Asks: []ledger.Ask{{Ceiling: int64(c.leased), Want: int64(c.want), Sharers: 1}}}
	if c.pending > 0 {
		x.Pending = []ledger.Pending{{Epoch: 1, Sealed: uint64(c.pending)}}
	}
	if d := &m.desks[c.to]; p.mutant == "sequence not looked at" && d.epoch == c.epoch && c.seq <= d.seq {
		d.seq = c.seq - 1
	}
	s := p.shelf(m)
	if p.mutant == "who is silent holds nothing" {
		for k := range s.Holders {
			if h := &s.Holders[k]; h.EdgeOf() != name {
				h.Leased = h.Spent
			}
		}
	}
	leased, ok := s.Exchange(x, int64(p.limit))
	if !ok {
		return
	}
	p.put(m, s)
	m.add(parcel{answer: true, to: c.to, epoch: c.epoch, seq: c.seq, leased: uint8(leased)}, p.net)
}

func (p *trade) close(m *market, i, n int) {
	s := p.shelf(m)
	s.Shut(ledger.KeyOf(edgeNames[i:i+1], uint64(n+1)), ledger.HeldAuto)
	p.put(m, s)
}

func (m *market) add(c parcel, limit int) bool {
	for i := range limit {
		if m.net[i] == c {
			return false
		}
		if m.net[i] == (parcel{}) {
			m.net[i] = c
			return true
		}
	}
	return false
}

func (m *market) take(k int) {
	copy(m.net[k:], m.net[k+1:])
	m.net[len(m.net)-1] = parcel{}
}

// canonical: of the numbers of exchanges only the order matters, of edges and messages not even that.
func (p *trade) canonical(m market) market {
	for i := range m.edges {
		numbers := []uint8{m.edges[i].seq}
		seqs := []*uint8{&m.edges[i].seq}
		if m.desks[i].epoch == m.edges[i].epoch {
			seqs = append(seqs, &m.desks[i].seq)
			numbers = append(numbers, m.desks[i].seq)
		}
		for k := range m.net {
			if c := &m.net[k]; *c != (parcel{}) && int(c.to) == i && c.epoch == m.edges[i].epoch {
				seqs = append(seqs, &c.seq)
				numbers = append(numbers, c.seq)
			}
		}
		numbers = append(numbers, 0)
		slices.Sort(numbers)
		numbers = slices.Compact(numbers)
		for _, s := range seqs {
			at, _ := slices.BinarySearch(numbers, *s)
			*s = uint8(at)
		}
	}
	n := 0
	for n < len(m.net) && m.net[n] != (parcel{}) {
		n++
	}
	slices.SortFunc(m.net[:n], func(a, b parcel) int {
		return cmp.Or(compareBools(a.answer, b.answer), cmp.Compare(a.to, b.to), cmp.Compare(a.epoch, b.epoch), cmp.Compare(a.seq, b.seq),
			cmp.Compare(a.leased, b.leased), cmp.Compare(a.want, b.want), cmp.Compare(a.pending, b.pending))
	})
	return m
}

var (
	leases     = quotaBounds{name: "leases", limit: 2, epochs: 1, net: 2}
	leaseKills = quotaBounds{name: "leases and kills", limit: 1, epochs: 2, net: 1}
	leaseDisks = quotaBounds{name: "leases and lost disks", limit: 1, epochs: 2, net: 1, gone: true}
)

// EXPLORE=full walks the larger worlds: make explore.
func TestExploreQuota(t *testing.T) {
	worlds := []quotaBounds{leases, leaseKills, leaseDisks}
	if os.Getenv("EXPLORE") == "full" {
		worlds = []quotaBounds{
			{name: "three under way", limit: 2, epochs: 1, net: 3},
			{name: "kills, two under way", limit: 1, epochs: 2, net: 2},
			{name: "two units and kills", limit: 2, epochs: 2, net: 1},
			{name: "two units and lost disks", limit: 2, epochs: 2, net: 1, gone: true},
		}
	}
	for _, b := range worlds {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			begun := time.Now()
			r, err := exploredQuota(b, "")
			if err != nil {
				t.Errorf("%v: %v", r, err)
			}
			fmt.Printf("explored %-30s %v, %s\n", b.name+":", r, time.Since(begun).Round(100*time.Millisecond))
		})
	}
}

func TestExploreQuota_CatchesEveryMutant(t *testing.T) {
	for _, m := range []struct {
		name  string
		world quotaBounds
	}{
		{"sequence not looked at", leases},
		{"an answer to an older exchange is taken", leases},
		{"the ceiling is said before it is lowered", leases},
		{"who is silent holds nothing", leases},
		{"settled before applied", leaseKills},
		{"older epochs not named", leaseKills},
		{"a restart keeps its lease", leaseKills},
		{"a closed epoch returns what it held", leaseDisks},
	} {
		t.Run(m.name, func(t *testing.T) {
			seen, err := exploredQuota(m.world, m.name)
			var broken *explore.Broken
			if !errors.As(err, &broken) {
				t.Fatalf("the mutant survives %q (%v): %v", m.world.name, seen, err)
			}
			t.Logf("%q, %v: %v", m.world.name, seen, broken)
		})
	}
}

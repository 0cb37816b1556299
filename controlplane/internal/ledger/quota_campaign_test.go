package ledger_test

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"pgregory.net/rapid"

	"bailiwick/controlplane/internal/ledger"
	"bailiwick/shared/usage"
)

// leasing is an edge as the protocol wants it, in one epoch.
type leasing struct {
	name          string
	epoch, seq    uint64
	answered      bool // the newest exchange
	leased, spent int64
	inFlight      int64
	rows          int64 // of spent, in no block yet
	chain         *chain
	known         bool // it has heard of the period
}

// kept is a block that is not in the ledger.
type kept struct {
	edge  string
	block ledger.Block
}

// wire is an exchange on its way, or its answer.
type wire struct {
	x      ledger.Exchange
	answer *ledger.Leases
}

// The campaign of invariant Q: requests and answers are lost, late, repeated and
// reordered; edges crash into new epochs with and without their disks; blocks
// come when they come; operators top up, raise the plan and close epochs; the
// machine is restored from snapshots. At every moment what all edges have served
// and may still serve stays within the limit, and so does what the ledger says.
// At the end not one unit is missing.
func TestQuota_Campaign(t *testing.T) {
	const period = 1_793_491_200
	acc := ledger.AccountID{Customer: "acme", Subscription: "s", Period: period}
	rapid.Check(t, func(rt *rapid.T) {
		m, other := open(t, vfs.NewMem()), open(t, vfs.NewMem())
		defer func() { shut(t, m); shut(t, other) }()
		var index, epochs uint64
		feed := func(cmd []byte) []byte {
			index++
			out, err := m.Apply(index, base, cmd)
			if err != nil {
				rt.Fatal(err)
			}
			if twin, err := other.Apply(index, base, cmd); err != nil || !bytes.Equal(out, twin) {
				rt.Fatalf("two machines answer differently: %v", err)
			}
			return out
		}
		terms := ledger.Terms{Plan: "p", Mode: "strict", Kind: "month", Limit: rapid.Int64Range(0, 40).Draw(rt, "limit"), End: period + 30*86400}
		var toppedUp, served, lost int64 // lost: spent in epochs whose disks are gone, not in the ledger
		ids := map[string]bool{}         // of top-ups
		var edges []*leasing
		var spool []kept
		var net []wire
		born := func(name string) *leasing {
			epochs++
			return &leasing{name: name, epoch: epochs, answered: true, chain: &chain{edge: name, epoch: epochs}}
		}
		for i := range 3 {
			edges = append(edges, born(fmt.Sprintf("e%d", i)))
		}
		pick := func(rt *rapid.T) *leasing { return edges[rapid.IntRange(0, len(edges)-1).Draw(rt, "edge")] }
		seal := func(e *leasing) {
			if e.rows == 0 {
				return
			}
			c := usage.Cell{Start: period, Customer: "acme", Subscription: "s", Plan: "p", API: "a", Outcome: usage.OutcomeSuccess, Period: period}
			spool = append(spool, kept{e.name, e.chain.next(map[usage.Cell]usage.Sums{c: {Requests: e.rows, Units: e.rows}})})
			e.rows = 0
		}
		pending := func(e *leasing) []ledger.Pending {
			last := map[uint64]uint64{}
			for _, k := range spool {
				if k.edge == e.name && k.block.Epoch < e.epoch {
					last[k.block.Epoch] = max(last[k.block.Epoch], k.block.Seq)
				}
			}
			var out []ledger.Pending
			for n, s := range last {
				out = append(out, ledger.Pending{Epoch: n, Sealed: s})
			}
			slices.SortFunc(out, func(a, b ledger.Pending) int { return int(a.Epoch) - int(b.Epoch) })
			return out
		}
		send := func(e *leasing, ceiling, want int64) {
			e.leased = ceiling
			e.seq++
			e.answered = false
			said := ceiling
			if !e.known {
				said = -1
			}
			net = append(net, wire{x: ledger.Exchange{Edge: e.name, Epoch: e.epoch, Sequence: e.seq, Pending: pending(e),
				Asks: []ledger.Ask{{ID: acc, Terms: terms, Ceiling: said, Want: want, Sharers: 2}}}})
		}
		deliver := func(x ledger.Exchange) ledger.Leases {
			x.Asks = slices.Clone(x.Asks)
			x.Asks[0].Terms = terms // the leader's, when it arrives
			all, err := ledger.DecodeLeases(feed(ledger.EncodeExchange(period+5, []ledger.Exchange{x})), []ledger.Exchange{x})
			if err != nil {
				rt.Fatal(err)
			}
			return all[0]
		}
		hear := func(x ledger.Exchange, a ledger.Leases) {
			for _, e := range edges {
				if e.name == x.Edge && e.epoch == x.Epoch && e.seq == x.Sequence && !e.answered && a.Reason == "" {
					e.answered, e.known, e.leased = true, true, a.Leases[0].Leased
				}
			}
		}
		ship := func(i int) {
			k := spool[i]
			spool = slices.Delete(spool, i, i+1)
			acks, err := ledger.DecodeAcks(feed(ledger.EncodeAppend([]ledger.Block{k.block})), []ledger.Block{k.block})
			if err != nil || acks[0].Reason != "" {
				rt.Fatalf("append: %+v, %v", acks, err)
			}
		}
		crash := func(e *leasing) {
			seal(e) // the spool recovers what was not sealed
			*e = *born(e.name)
		}
		account := func() ledger.Account {
			v, err := m.View()
			if err != nil {
				rt.Fatal(err)
			}
			defer v.Close()
			a, err := v.Account(acc, terms, period+5)
			if err != nil {
				rt.Fatal(err)
			}
			return a
		}
		check := func() {
			a := account()
			limit := terms.Limit + toppedUp
			if a.Limit != limit || a.Used+a.Held > limit {
				rt.Fatalf("ledger: %d used and %d held of %d, want at most %d", a.Used, a.Held, a.Limit, limit)
			}
			sum := served
			for _, e := range edges {
				if e.spent+e.inFlight > e.leased {
					rt.Fatalf("%s has spent %d and has %d in flight, leased %d", e.name, e.spent, e.inFlight, e.leased)
				}
				sum += e.leased - e.spent // it may serve all of that
				on := int64(0)
				for _, h := range a.Holders {
					if h.Edge == e.name && h.Epoch == e.epoch {
						on = h.Leased
					}
				}
				if e.leased > on { // the others rest on this one
					rt.Fatalf("%s takes %d for leased, the ledger has %d on record", e.name, e.leased, on)
				}
			}
			if sum > limit {
				rt.Fatalf("edges have served %d and may serve up to %d, of %d", served, sum, limit)
			}
		}
		rt.Repeat(map[string]func(*rapid.T){
			"send": func(rt *rapid.T) {
				e := pick(rt)
				ceiling := e.leased
				if e.known {
					ceiling = rapid.Int64Range(e.spent+e.inFlight, e.leased).Draw(rt, "ceiling")
				}
				send(e, ceiling, rapid.Int64Range(0, 12).Draw(rt, "want"))
			},
			"deliver": func(rt *rapid.T) { // any request, any number of times
				if len(net) == 0 {
					rt.Skip()
				}
				w := net[rapid.IntRange(0, len(net)-1).Draw(rt, "message")]
				if w.answer != nil {
					hear(w.x, *w.answer)
					return
				}
				a := deliver(w.x)
				net = append(net, wire{x: w.x, answer: &a})
			},
			"exchange": func(rt *rapid.T) { // without trouble, but for raft, which may apply one twice
				e := pick(rt)
				send(e, e.leased, rapid.Int64Range(0, 12).Draw(rt, "want"))
				x := net[len(net)-1].x
				hear(x, deliver(x))
				if rapid.Bool().Draw(rt, "twice") {
					deliver(x)
				}
			},
			// Its clock says that the period is over; it keeps what it counted, and asks which it is.
			"doubt": func(rt *rapid.T) { pick(rt).known = false },
			"lose": func(rt *rapid.T) {
				if len(net) == 0 {
					rt.Skip()
				}
				i := rapid.IntRange(0, len(net)-1).Draw(rt, "message")
				net = slices.Delete(net, i, i+1)
			},
			"take": func(rt *rapid.T) {
				if e := pick(rt); e.spent+e.inFlight < e.leased {
					e.inFlight++
				}
			},
			"finish": func(rt *rapid.T) {
				if e := pick(rt); e.inFlight > 0 {
					e.inFlight--
					if rapid.Bool().Draw(rt, "answered") {
						e.spent++
						e.rows++
						served++
					}
				}
			},
			"seal": func(rt *rapid.T) { seal(pick(rt)) },
			"ship": func(rt *rapid.T) {
				if len(spool) == 0 {
					rt.Skip()
				}
				first := spool[rapid.IntRange(0, len(spool)-1).Draw(rt, "block")]
				ship(slices.IndexFunc(spool, func(k kept) bool { return k.edge == first.edge })) // an edge's oldest
			},
			"crash": func(rt *rapid.T) { crash(pick(rt)) },
			"loseDisk": func(rt *rapid.T) { // an operator closes every epoch that was on it; the edge joins anew
				e := pick(rt)
				last := map[uint64]uint64{e.epoch: e.chain.seq}
				gone := e.rows
				for _, k := range spool {
					if k.edge == e.name {
						last[k.block.Epoch] = max(last[k.block.Epoch], k.block.Seq)
						cells, _ := usage.DecodePayload(k.block.Payload)
						for _, s := range cells {
							gone += s.Units
						}
					}
				}
				spool = slices.DeleteFunc(spool, func(k kept) bool { return k.edge == e.name })
				if e.rows > 0 {
					last[e.epoch]++ // an open block is a block that is lost
				}
				lost += gone
				for _, n := range slices.Sorted(maps.Keys(last)) {
					feed(ledger.EncodeCloseBy(e.name, n, last[n], ledger.HeldAuto))
				}
				*e = *born(e.name)
			},
			"topUp": func(rt *rapid.T) {
				n := rapid.Int64Range(1, 9).Draw(rt, "units")
				id := fmt.Sprint("r", rapid.IntRange(0, 9).Draw(rt, "id"))
				feed(ledger.EncodeTopUp(ledger.TopUp{ID: acc, Terms: terms, Units: n, RequestID: id}))
				if !ids[id] {
					ids[id] = true
					toppedUp += n
				}
			},
			"raise": func(rt *rapid.T) { terms.Limit += rapid.Int64Range(0, 9).Draw(rt, "units") },
			"restore": func(rt *rapid.T) {
				snap := snapshot(t, m)
				shut(t, m)
				m = open(t, vfs.NewMem())
				if err := m.Restore(bytes.NewReader(snap)); err != nil {
					rt.Fatal(err)
				}
			},
			"": func(rt *rapid.T) { check() },
		})
		// All come back, and all blocks with them.
		for _, e := range edges {
			crash(e)
		}
		for len(spool) > 0 {
			ship(0)
		}
		for _, e := range edges {
			send(e, 0, 0)
			x := net[len(net)-1].x
			hear(x, deliver(x))
		}
		a := account()
		forfeited := a.Used - (served - lost)
		if a.Held != 0 || forfeited < 0 || lost == 0 && forfeited != 0 {
			rt.Fatalf("at the end: %d used, %d held; %d were served, of which %d are lost", a.Used, a.Held, served, lost)
		}
		// Units come back exactly: one edge can lease all that is left, and not one more.
		left := max(0, terms.Limit+toppedUp-a.Used)
		e := edges[0]
		for range 200 {
			send(e, e.leased, 9)
			x := net[len(net)-1].x
			hear(x, deliver(x))
		}
		if e.leased != left {
			rt.Fatalf("at the end: leased %d, want all the %d that are left", e.leased, left)
		}
		check()
		if stateHash(t, m) != stateHash(t, other) {
			rt.Fatal("two machines fed the same log differ")
		}
	})
}

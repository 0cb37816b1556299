package ledger_test

import (
	"cmp"
	"errors"
	"slices"
)

// add puts a message under way. false: nothing changed, for it is there already or there is no room.
func (p *protocol) add(w *world, m message) bool {
	for i := range p.net {
		if w.net[i] == m {
			return false
		}
		if w.net[i].kind == isNone {
			w.net[i] = m
			return true
		}
	}
	return false
}

func (w *world) take(k int) {
	copy(w.net[k:], w.net[k+1:])
	w.net[len(w.net)-1] = message{}
}

func (w *world) dropAcks(edge int) {
	for k := len(w.net) - 1; k >= 0; k-- {
		if w.net[k].kind == isAck && int(w.net[k].edge) == edge {
			w.take(k)
		}
	}
}

// propose puts an entry into the leader's queue.
func (p *protocol) propose(w *world, m message) bool {
	for i := range p.pending {
		if w.queue[i].kind == isNone {
			w.queue[i] = m
			return true
		}
	}
	return false
}

func (p *protocol) netSteps(w world, out step) {
	for k := range w.net {
		m := w.net[k]
		if m.kind == isNone {
			return
		}
		gone := w
		gone.take(k)
		out("lose", int(m.kind), int(m.edge), gone, nil)
		for _, again := range []bool{false, true} {
			after := gone
			name := "deliver"
			if again {
				after, name = w, "deliver a copy"
			}
			switch m.kind {
			case isAck:
				if e := &w.edges[m.edge]; again || !e.there || !e.up {
					continue // an ack twice is two acks on their way: no news
				}
				out("ack", int(m.edge), int(m.a), after, p.answer(&after, m))
			default:
				if !w.led() {
					continue
				}
				entry := m
				entry.edge = p.ident(int(m.edge))
				if m.kind == isBlock {
					entry.waiter = m.edge + 1
					if p.mutated("ack before commit") {
						b := p.blocks[m.block]
						early := after
						if p.add(&early, message{kind: isAck, edge: m.edge, num: uint8(b.Epoch), a: uint8(b.Seq), block: m.block}) && p.propose(&early, entry) {
							out("early ack", int(m.edge), int(b.Seq), early, nil)
						}
					}
				}
				if p.propose(&after, entry) {
					out(name, int(m.kind), int(m.edge), after, nil)
				}
			}
		}
	}
}

var errDiffer = errors.New("two nodes hold different ledgers at one index")

func (p *protocol) nodeSteps(w world, out step) {
	led := w.led()
	tail := 0
	for tail < p.tail && w.tail[tail].kind != isNone {
		tail++
	}
	if led && w.queue[0].kind != isNone && tail < p.tail {
		after, err := p.commit(w, tail)
		out("commit", int(w.queue[0].kind), int(w.queue[0].waiter), after, err)
	}
	if p.closes && led && !w.closed {
		for i := range w.edges {
			e := &w.edges[i]
			for num := uint8(1); e.there && (i == 0 || !p.clone) && num <= e.epochs[e.n-1].num; num++ {
				after := w
				after.closed = true
				if p.propose(&after, message{kind: isClose, edge: p.ident(i), num: num}) {
					out("close", i, int(num), after, nil)
				}
			}
		}
	}
	for i := range w.nodes {
		n := &w.nodes[i]
		switch {
		case n.up && int(n.synced) < tail:
			after := w
			a := &after.nodes[i]
			var err error
			a.disk, _, err = p.apply(n.disk, w.tail[n.synced])
			a.synced++
			p.trim(&after)
			out("sync", i, int(a.synced), after, err)
		case !n.up:
			for _, snapshot := range []bool{false, true} {
				after, err := p.revive(w, i, tail, snapshot)
				out("node up", i, 0, after, err)
			}
			continue
		}
		if n.lead {
			for keep := 0; keep <= p.pending && (keep == 0 || w.queue[keep-1].kind != isNone); keep++ {
				out("new leader", i, keep, p.depose(w, i, keep), nil)
			}
		} else if w.upCount() > 3-p.down {
			after := w
			a := &after.nodes[i]
			a.up = false
			if p.mutated("watermark not in the batch") {
				a.disk = p.torn(n.mem, n.disk)
			}
			a.mem = 0
			out("node down", i, 0, after, nil)
		}
		if !slices.ContainsFunc(w.nodes[:], func(n node) bool { return n.lead }) && w.upCount() >= 2 {
			after := w
			after.nodes[i].lead = true
			out("elect", i, 0, after, nil)
		}
	}
}

// commit moves the first entry of the leader's queue into every log, and every node that is up applies it.
func (p *protocol) commit(w world, tail int) (world, error) {
	m := w.queue[0]
	copy(w.queue[:], w.queue[1:])
	w.queue[maxPending-1] = message{}
	waiter := m.waiter
	m.waiter = 0
	w.tail[tail] = m
	after, told, err := p.apply(w.ledger, m)
	if err != nil {
		return w, err
	}
	w.ledger = after
	for i := range w.nodes {
		n := &w.nodes[i]
		if !n.up {
			continue
		}
		if n.mem, _, err = p.apply(n.mem, m); err != nil {
			return w, err
		}
		if n.mem != w.ledger {
			return w, errDiffer
		}
	}
	if waiter != 0 && told.kind == isAck {
		told.edge = waiter - 1
		if w.edges[told.edge].up {
			p.add(&w, told)
		}
	}
	return w, p.complete(&w, m.edge)
}

// depose ends a leadership: of what was not committed the first keep entries are known to the next leader, who
// will commit them; nobody waits for their results any more.
func (p *protocol) depose(w world, i, keep int) world {
	w.nodes[i].lead = false
	for k := range w.queue {
		m := &w.queue[k]
		if k >= keep {
			if p.mutated("unknown taken for done") && m.kind == isBlock && m.waiter != 0 && w.edges[m.waiter-1].up {
				b := p.blocks[m.block]
				p.add(&w, message{kind: isAck, edge: m.waiter - 1, num: uint8(b.Epoch), a: uint8(b.Seq), block: m.block})
			}
			*m = message{}
		}
		m.waiter = 0
	}
	return w
}

// revive starts a node: it replays what its disk has not, or takes a snapshot of what is committed.
func (p *protocol) revive(w world, i, tail int, snapshot bool) (world, error) {
	n := &w.nodes[i]
	n.up = true
	if snapshot {
		n.disk, n.synced = w.ledger, uint8(tail)
		if p.mutated("snapshot without watermarks") {
			n.disk = p.torn(w.ledger, 0)
		}
	}
	n.mem = n.disk
	for _, m := range w.tail[n.synced:tail] {
		var err error
		if n.mem, _, err = p.apply(n.mem, m); err != nil {
			return w, err
		}
	}
	p.trim(&w)
	if n.mem != w.ledger {
		return w, errDiffer
	}
	return w, nil
}

// trim forgets entries that every disk has.
func (p *protocol) trim(w *world) {
	least := w.nodes[0].synced
	for _, n := range w.nodes[1:] {
		least = min(least, n.synced)
	}
	if least == 0 {
		return
	}
	copy(w.tail[:], w.tail[least:])
	for k := maxTail - int(least); k < maxTail; k++ {
		w.tail[k] = message{}
	}
	for i := range w.nodes {
		w.nodes[i].synced -= least
	}
}

func ackOf(edge, num uint8, l *booked, refusal byte) message {
	m := message{kind: isAck, edge: edge, num: num, b: refusal}
	if l != nil {
		m.a = uint8(l.rec.Applied)
		if m.a > 0 {
			m.block = l.blocks[m.a-1]
		}
	}
	return m
}

func compareMessages(a, b message) int {
	return cmp.Or(cmp.Compare(a.kind, b.kind), cmp.Compare(a.edge, b.edge), cmp.Compare(a.num, b.num), cmp.Compare(a.a, b.a),
		cmp.Compare(a.b, b.b), cmp.Compare(a.older, b.older), cmp.Compare(a.block, b.block))
}

// canonical is one of all worlds that differ only by the names of nodes and edges and the order of messages
// under way, which has no meaning.
func (p *protocol) canonical(w world) world {
	if !p.clone && !p.alone && compareEdges(&w.edges[0], &w.edges[1]) > 0 {
		w.edges[0], w.edges[1] = w.edges[1], w.edges[0]
		swap := func(list []message) {
			for i := range list {
				if m := &list[i]; m.kind != isNone {
					m.edge ^= 1
					if m.waiter != 0 {
						m.waiter ^= 3
					}
				}
			}
		}
		swap(w.net[:])
		swap(w.tail[:])
		swap(w.queue[:])
		w.ledger = p.swapped(w.ledger)
		for i := range w.nodes {
			w.nodes[i].disk = p.swapped(w.nodes[i].disk)
			if w.nodes[i].up {
				w.nodes[i].mem = p.swapped(w.nodes[i].mem)
			}
		}
	}
	n := 0
	for n < maxNet && w.net[n].kind != isNone {
		n++
	}
	slices.SortFunc(w.net[:n], compareMessages)
	slices.SortFunc(w.nodes[:], func(a, b node) int {
		return cmp.Or(compareBools(a.lead, b.lead), compareBools(a.up, b.up), cmp.Compare(a.synced, b.synced), cmp.Compare(a.disk, b.disk), cmp.Compare(a.mem, b.mem))
	})
	return w
}

func compareBools(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	}
	return 1
}

func compareEdges(a, b *edge) int {
	c := cmp.Or(compareBools(a.up, b.up), cmp.Compare(a.done, b.done), cmp.Compare(a.open, b.open), cmp.Compare(a.lost, b.lost),
		cmp.Compare(a.seq, b.seq), cmp.Compare(a.ms, b.ms), cmp.Compare(a.n, b.n))
	for k := 0; c == 0 && k < int(a.n); k++ {
		x, y := &a.epochs[k], &b.epochs[k]
		c = cmp.Or(cmp.Compare(x.num, y.num), cmp.Compare(x.sealed, y.sealed), cmp.Compare(x.acked, y.acked), compareBools(x.parked, y.parked), slices.Compare(x.blocks[:], y.blocks[:]))
	}
	return c
}

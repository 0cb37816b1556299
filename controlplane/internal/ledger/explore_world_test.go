package ledger_test

import (
	"errors"
	"fmt"
	"math/bits"
	"slices"

	"bailiwick/controlplane/internal/explore"
	"bailiwick/controlplane/internal/ledger"
)

// The world of the exploration: two edges, three nodes of one raft group, a network that loses, repeats and
// reorders whatever is in it. What the ledger decides is decided by the production code (ledger.Judge and its
// neighbours); raft, the disk and the edge are models: raft as "a committed entry is never lost, of uncommitted
// ones any first part may survive a change of leader", the disk as "what is applied may be gone after a crash
// down to what was synced, cells and watermarks together".

// bounds of one exploration.
type bounds struct {
	name               string
	rows, epochs       int  // rows an edge finishes, epochs it lives through
	tail, pending, net int  // entries not synced everywhere, entries not committed, messages under way
	down               int  // nodes down at once
	clone              bool // the second edge is a copy of the first one's disk, made at any moment
	closes             bool // an operator closes an epoch at any moment
	gone               bool // an edge's disk may be lost
	beats              bool // sealed-through times are said
	alone              bool // one edge only
}

const (
	maxEpochs  = 3
	maxBlocks  = 4
	maxTail    = 2
	maxPending = 2
	maxNet     = 4
)

// diskEpoch is one epoch in an edge's spool.
type diskEpoch struct {
	num, sealed, acked uint8
	parked             bool
	blocks             [maxBlocks]uint16 // ids of blocks 1…sealed
}

type edge struct {
	there, up bool
	done      uint8 // rows it has finished: bits
	open      uint8 // those not in a block
	lost      uint8 // those that went with its disk, though they may be under way
	seq, ms   uint8 // sealed-through, as last sealed
	n         uint8
	epochs    [maxEpochs]diskEpoch // oldest first
}

const (
	isNone = iota
	isBlock
	isAck
	isBeat
	isClose
)

// message, and also entry of the log.
type message struct {
	kind, edge, num uint8
	a, b, older     uint8 // applied or seq, refusal or time, sealed of the older epoch
	waiter          uint8 // of an entry: who waits for its result, plus 1
	block           uint16
}

type node struct {
	up, lead  bool
	synced    uint8  // entries of the tail that its disk has
	disk, mem uint32 // ledgers
}

type world struct {
	edges  [2]edge
	nodes  [3]node
	tail   [maxTail]message    // committed, not on every disk
	queue  [maxPending]message // the leader's, not committed
	net    [maxNet]message
	ledger uint32 // what is committed, applied
	closed bool   // the operator has had his turn
}

// rules are the code under exploration and, for mutants, what is wrong with it.
type rules struct {
	judge   func(*ledger.Epoch, *ledger.Block, uint64) (byte, bool)
	advance func(*ledger.Epoch, *ledger.Block)
	hear    func(*ledger.Epoch, ledger.Said)
	close   func(*ledger.Epoch, uint64)
	past    func(*ledger.Reach, *ledger.Epoch)

	mutant string
}

func production() rules {
	return rules{judge: ledger.Judge, advance: ledger.Advance, hear: ledger.Hear, close: ledger.Close, past: ledger.Past}
}

// protocol explores one world by one set of rules. Blocks and ledgers are kept once and named by numbers.
type protocol struct {
	bounds
	rules
	books
}

func explored(b bounds, r rules) (explore.Result, error) {
	p := &protocol{bounds: b, rules: r, books: newBooks()}
	w := world{}
	for i := range w.edges {
		w.edges[i] = edge{there: true, up: true, n: 1, epochs: [maxEpochs]diskEpoch{{num: 1}}}
	}
	if b.clone || b.alone {
		w.edges[1] = edge{}
	}
	for i := range w.nodes {
		w.nodes[i] = node{up: true, lead: i == 0}
	}
	return explore.Walk[world]{Start: p.canonical(w), Next: p.next, Good: p.good}.Run()
}

func (p *protocol) mutated(name string) bool { return p.mutant == name }

// ident is under which name the ledger knows an edge: a clone has its original's.
func (p *protocol) ident(i int) uint8 {
	if p.clone {
		return 0
	}
	return uint8(i)
}

func (p *protocol) next(w world, emit explore.Emit[world]) {
	out := func(name string, a, b int, after world, err error) {
		emit(explore.Event{Name: name, A: a, B: b}, p.canonical(after), err)
	}
	for i := range w.edges {
		if w.edges[i].there {
			p.edgeSteps(w, i, out)
		}
	}
	p.netSteps(w, out)
	p.nodeSteps(w, out)
}

type step func(name string, a, b int, after world, err error)

func (p *protocol) edgeSteps(w world, i int, out step) {
	e := &w.edges[i]
	if p.clone && !w.edges[1].there {
		after := w
		c := *e
		c.up, c.done = false, 0
		for k := range c.epochs {
			c.epochs[k].parked = false
		}
		after.edges[1] = c
		out("clone", i, 0, after, nil)
	}
	current := &e.epochs[e.n-1]
	if !e.up {
		for _, skip := range []uint8{1, 2} {
			if skip == 1 || i == 1 && p.clone && int(current.num)+2 <= maxEpochs {
				after := w
				p.restart(&after.edges[i], skip)
				out("restart", i, int(skip), after, nil)
			}
		}
		return
	}
	if n := bits.OnesCount8(e.done); n < p.rows {
		after := w
		bit := uint8(1) << n
		if p.clone && i == 1 {
			bit <<= p.rows
		}
		after.edges[i].done |= bit
		after.edges[i].open |= bit
		out("finish", i, n, after, nil)
	}
	if e.open != 0 && int(current.sealed) < maxBlocks-1 {
		after := w
		p.seal(&after.edges[i])
		out("seal", i, 0, after, nil)
		if p.mutated("seal and row position apart") {
			after.edges[i].open = e.open
			after.edges[i].up = false // killed between the two
			out("half a seal", i, 0, after, nil)
		}
	}
	if int(current.num) < p.epochs {
		after := w
		after.edges[i].up = false
		if p.mutated("open rows not recovered") {
			after.edges[i].open = 0
		}
		after.dropAcks(i) // they belonged to a session of the process
		out("kill", i, 0, after, nil)
		if p.gone && e.lost == 0 {
			after.edges[i] = p.replaced(e)
			out("disk gone", i, 0, after, nil)
		}
	}
	for k := range int(e.n) {
		ep := &e.epochs[k]
		if ep.acked == ep.sealed || ep.parked {
			continue
		}
		for seq := ep.acked + 1; seq <= ep.sealed; seq++ {
			after := w
			if p.add(&after, message{kind: isBlock, edge: uint8(i), block: ep.blocks[seq-1]}) {
				out("send", i, int(seq), after, nil)
			}
		}
		if l := p.ledgers[w.ledger].epoch(p.ident(i), ep.num); l != nil && w.led() && uint8(l.rec.Applied) > ep.acked {
			after := w
			if p.add(&after, ackOf(uint8(i), ep.num, l, 0)) {
				out("hello", i, int(ep.num), after, nil)
			}
		}
		if !p.mutated("newer epochs first") {
			break // the oldest first
		}
	}
	if p.beats {
		m := message{kind: isBeat, edge: uint8(i), num: current.num, a: e.seq, b: e.ms}
		if e.open == 0 {
			m.a, m.b = current.sealed, uint8(bits.OnesCount8(e.done))+1
		}
		if e.n > 1 && !p.mutated("older epochs not told of") {
			m.older = e.epochs[0].sealed // its hello has gone before
		}
		after := w
		if m.b > 1 && p.add(&after, m) {
			out("beat", i, int(m.b), after, nil)
		}
	}
}

// seal makes one block of what is open.
func (p *protocol) seal(e *edge) {
	ep := &e.epochs[e.n-1]
	var prev uint16
	if ep.sealed > 0 {
		prev = ep.blocks[ep.sealed-1]
	}
	ep.blocks[ep.sealed] = p.block(ep.num, ep.sealed+1, e.open, prev)
	ep.sealed++
	e.open, e.seq, e.ms = 0, ep.sealed, uint8(bits.OnesCount8(e.done))+1
}

// restart finishes the old epoch and begins a new one.
func (p *protocol) restart(e *edge, skip uint8) {
	if e.open != 0 {
		p.seal(e)
	}
	e.up = true
	num := e.epochs[e.n-1].num + skip
	var kept [maxEpochs]diskEpoch
	n := 0
	for _, ep := range e.epochs[:e.n] {
		if ep.parked = false; ep.acked < ep.sealed {
			kept[n] = ep
			n++
		}
	}
	if p.mutated("epoch number used again") {
		num = e.epochs[e.n-1].num
	}
	kept[n] = diskEpoch{num: num}
	e.epochs, e.n, e.seq = kept, uint8(n+1), 0
	e.ms = uint8(bits.OnesCount8(e.done)) + 1 // all is in the epochs before
}

// replaced is an edge with an empty disk. What it had not brought is lost, unless it is under way.
func (p *protocol) replaced(e *edge) edge {
	out := edge{there: true, up: true, done: e.done, lost: e.open, n: 1}
	for _, ep := range e.epochs[:e.n] {
		for seq := ep.acked; seq < ep.sealed; seq++ {
			out.lost |= p.blocks[ep.blocks[seq]].rows
		}
	}
	num := e.epochs[e.n-1].num + 1 // the clock is ahead of every number used before
	if p.mutated("epochs begin at 1 on an empty disk") {
		num = 1
	}
	out.epochs[0] = diskEpoch{num: num}
	return out
}

var errAlarm = errors.New("usage is refused for good although nobody did wrong")

// answer is an acknowledgement that reaches its edge: spool.Ack and ship's reaction to refusals.
func (p *protocol) answer(w *world, m message) error {
	e := &w.edges[m.edge]
	num := m.num
	if p.mutated("ack taken for the newest epoch") {
		num = e.epochs[e.n-1].num
	}
	for k := range int(e.n) {
		ep := &e.epochs[k]
		if ep.num != num {
			continue
		}
		if m.b != 0 {
			if m.b == ledger.RefGap || m.b == ledger.RefWrongChain && ep.acked == 0 && p.clone {
				return nil // it is sent again, at once or in a while
			}
			return p.park(ep, m.b)
		}
		switch {
		case m.a == 0 || m.a < ep.acked:
			return nil
		case p.mutated("ack without a hash"):
			m.a = min(m.a, ep.sealed)
		case m.a > ep.sealed || ep.blocks[m.a-1] != m.block:
			return p.park(ep, ledger.RefFork)
		}
		for seq := ep.acked; seq < m.a; seq++ {
			if rows := p.blocks[ep.blocks[seq]].rows; rows&^p.ledgers[w.ledger].counted[p.ident(int(m.edge))] != 0 {
				return fmt.Errorf("edge %d lets go of rows %b, which are not in the ledger", m.edge, rows)
			}
		}
		ep.acked = m.a
		if ep.acked == ep.sealed && k < int(e.n)-1 { // an old one that is done is forgotten
			copy(e.epochs[k:], e.epochs[k+1:])
			e.n--
			e.epochs[e.n] = diskEpoch{}
		}
		return nil
	}
	return nil
}

// park is an edge that gives an epoch up, loudly: a copied disk and an operator are the only causes there are.
func (p *protocol) park(ep *diskEpoch, refusal byte) error {
	ep.parked = true
	if !p.clone && (!p.closes || refusal != ledger.RefClosed) {
		return errAlarm
	}
	return nil
}

// good: everything that was finished is counted, or somebody was told why not.
func (p *protocol) good(w world) bool {
	l := p.ledgers[w.ledger]
	for i := range w.edges {
		e := &w.edges[i]
		if !e.there {
			continue
		}
		if !e.up || e.open != 0 {
			return false
		}
		excused := uint8(0)
		for _, ep := range e.epochs[:e.n] {
			if !ep.parked && ep.acked < ep.sealed {
				return false
			}
			for seq := ep.acked; seq < ep.sealed; seq++ {
				excused |= p.blocks[ep.blocks[seq]].rows
			}
		}
		if missing := e.lost &^ l.counted[p.ident(i)]; missing != 0 && w.closed {
			excused |= missing // the operator's gap
		}
		if e.done&^l.counted[p.ident(i)]&^excused != 0 {
			return false
		}
	}
	return w.queue[0].kind == isNone
}

func (w *world) led() bool {
	return slices.ContainsFunc(w.nodes[:], func(n node) bool { return n.lead }) && w.upCount() >= 2
}

func (w *world) upCount() (n int) {
	for _, x := range w.nodes {
		if x.up {
			n++
		}
	}
	return n
}

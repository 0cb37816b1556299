package ledger_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"bailiwick/controlplane/internal/ledger"
	"bailiwick/shared/usage"
)

// books hold every block and every ledger that was met, once each, so that a world names them by numbers and
// the judgement of one entry on one ledger is made once.
type books struct {
	blocks   []sealedBlock
	blockIDs map[blockKey]uint16
	ledgers  []*book
	byText   map[string]uint32
	results  map[question]result
	swaps    map[uint32]uint32
}

type sealedBlock struct {
	ledger.Block
	rows uint8
	prev uint16
}

type blockKey struct {
	num, seq, rows uint8
	prev           uint16
}

// book is a whole ledger: what is counted, and each edge's epochs in order.
type book struct {
	counted [2]uint8
	epochs  [2][]booked
	recent  []uint16 // what a window of remembered blocks would hold; the mutant's
}

type booked struct {
	num    uint8
	rec    ledger.Epoch
	blocks []uint16 // applied, in order
	final  uint64   // how many those were when it was closed
}

type question struct {
	ledger uint32
	entry  message
}

type result struct {
	ledger uint32
	told   message
	err    error
}

func newBooks() books {
	b := books{blockIDs: map[blockKey]uint16{}, byText: map[string]uint32{}, results: map[question]result{}, swaps: map[uint32]uint32{}}
	b.blocks = append(b.blocks, sealedBlock{}) // 0: none
	b.keep(&book{})
	return b
}

// block makes a block; both edges have one name, so that worlds that differ by it alone are the same.
func (b *books) block(num, seq, rows uint8, prev uint16) uint16 {
	k := blockKey{num, seq, rows, prev}
	if id, ok := b.blockIDs[k]; ok {
		return id
	}
	s := sealedBlock{rows: rows, prev: prev}
	s.Region = "r"
	s.Block.Block = usage.NewBlock("e", uint64(num), uint64(seq), b.blocks[prev].Hash, []byte{rows})
	b.blocks = append(b.blocks, s)
	b.blockIDs[k] = uint16(len(b.blocks) - 1)
	return b.blockIDs[k]
}

func (b *book) clone() *book {
	c := *b
	for i := range c.epochs {
		c.epochs[i] = slices.Clone(b.epochs[i])
		for k := range c.epochs[i] {
			c.epochs[i][k].blocks = slices.Clone(c.epochs[i][k].blocks)
		}
	}
	c.recent = slices.Clone(b.recent)
	return &c
}

func (b *book) epoch(edge, num uint8) *booked {
	for i := range b.epochs[edge] {
		if e := &b.epochs[edge][i]; e.num == num {
			return e
		}
	}
	return nil
}

// begin is epoch, which is there afterwards.
func (b *book) begin(edge, num uint8) *booked {
	list := b.epochs[edge]
	at, found := slices.BinarySearchFunc(list, num, func(e booked, n uint8) int { return int(e.num) - int(n) })
	if !found {
		list = slices.Insert(list, at, booked{num: num})
		b.epochs[edge] = list
	}
	return &list[at]
}

func (b *book) latest(edge uint8) (n uint64) {
	for i := range b.epochs[edge] {
		if e := &b.epochs[edge][i]; ledger.Begun(&e.rec) {
			n = uint64(e.num)
		}
	}
	return n
}

func (b *books) keep(l *book) uint32 {
	t := []byte{l.counted[0], l.counted[1]}
	for _, list := range l.epochs {
		t = append(t, byte(len(list)))
		for i := range list {
			e := ledger.EncodeInto(&list[i].rec)
			t = append(binary.AppendUvarint(append(t, list[i].num, byte(list[i].final)), uint64(len(e))), e...)
		}
	}
	for _, id := range l.recent {
		t = binary.BigEndian.AppendUint16(t, id)
	}
	if id, ok := b.byText[string(t)]; ok {
		return id
	}
	id := uint32(len(b.ledgers))
	b.ledgers = append(b.ledgers, l)
	b.byText[string(t)] = id
	return id
}

func (b *books) swapped(id uint32) uint32 {
	if to, ok := b.swaps[id]; ok {
		return to
	}
	c := b.ledgers[id].clone()
	c.counted[0], c.counted[1] = c.counted[1], c.counted[0]
	c.epochs[0], c.epochs[1] = c.epochs[1], c.epochs[0]
	to := b.keep(c)
	b.swaps[id], b.swaps[to] = to, id
	return to
}

// torn has the cells of one ledger and the watermarks of another, as if they were not in one batch.
func (b *books) torn(cells, marks uint32) uint32 {
	c := b.ledgers[marks].clone()
	c.counted = b.ledgers[cells].counted
	return b.keep(c)
}

var (
	errTwice = errors.New("a row is counted twice")
	errChain = errors.New("the blocks of an epoch in the ledger are no chain")
	errGap   = errors.New("the gap of a closed epoch is not what is missing")
	errAhead = errors.New("the ledger has applied more blocks than it knows to exist")
)

// apply is one entry on one ledger.
func (p *protocol) apply(id uint32, m message) (uint32, message, error) {
	m.waiter = 0
	q := question{id, m}
	r, ok := p.results[q]
	if !ok {
		l := p.ledgers[id].clone()
		r.told, r.err = p.applyTo(l, m)
		r.ledger = p.keep(l)
		p.results[q] = r
	}
	return r.ledger, r.told, r.err
}

func (p *protocol) applyTo(l *book, m message) (told message, err error) {
	switch m.kind {
	case isBlock:
		return p.applyBlock(l, m)
	case isBeat:
		if m.older > 0 {
			p.hear(&l.begin(m.edge, m.num-1).rec, ledger.Said{Epoch: uint64(m.num - 1), Sealed: uint64(m.older)})
		}
		p.hear(&l.begin(m.edge, m.num).rec, ledger.Said{Epoch: uint64(m.num), Sealed: uint64(m.a), Seq: uint64(m.a), MS: int64(m.b)})
	case isClose:
		e := l.begin(m.edge, m.num)
		p.close(&e.rec, 0)
		e.final = e.rec.Applied
	}
	return message{}, l.check()
}

func (p *protocol) applyBlock(l *book, m message) (told message, err error) {
	b := &p.blocks[m.block]
	num := uint8(b.Epoch)
	if p.mutated("one watermark per edge") {
		num = 1
	}
	e := l.epoch(m.edge, num)
	fresh := e == nil
	if fresh {
		e = &booked{num: num}
	}
	latest := l.latest(m.edge)
	if p.mutated("heard of is begun") && len(l.epochs[m.edge]) > 0 {
		latest = uint64(l.epochs[m.edge][len(l.epochs[m.edge])-1].num)
	}
	refusal, next := p.judge(&e.rec, &b.Block, latest)
	if p.mutated("a window of remembered blocks") {
		refusal, next = 0, !slices.Contains(l.recent, m.block)
	}
	if next {
		if fresh {
			e = l.begin(m.edge, num)
		}
		if l.counted[m.edge]&b.rows != 0 {
			return told, errTwice
		}
		if p.mutated("a window of remembered blocks") {
			l.recent = []uint16{m.block}
		} else if int(b.Seq) != len(e.blocks)+1 || len(e.blocks) > 0 && e.blocks[len(e.blocks)-1] != b.prev {
			return told, errChain
		}
		l.counted[m.edge] |= b.rows
		p.advance(&e.rec, &b.Block)
		for len(e.blocks) < int(b.Seq) {
			e.blocks = append(e.blocks, 0)
		}
		e.blocks[b.Seq-1] = m.block
	}
	if refusal == ledger.RefFork && !fresh && !e.rec.Closed && e.rec.Fork == nil {
		ledger.Quarantine(&e.rec, &b.Block)
	}
	told = ackOf(0, num, e, refusal)
	if told.num = uint8(b.Epoch); refusal != 0 {
		told.a, told.block = uint8(b.Seq), m.block
	}
	return told, l.check()
}

func (l *book) check() error {
	for _, list := range l.epochs {
		for i := range list {
			e := &list[i].rec
			if e.Applied > e.Sealed {
				return errAhead
			}
			if e.Closed && (e.Gap != e.Sealed-e.Applied || e.Applied != list[i].final) {
				return errGap
			}
		}
	}
	return nil
}

// complete holds the ledger to its word: every row that an edge finished before the instant it claims is
// counted, or its epoch was closed. Row n finishes at n+1.
func (p *protocol) complete(w *world, edge uint8) error {
	if !p.beats {
		return nil
	}
	l := p.ledgers[w.ledger]
	var r ledger.Reach
	for i := range l.epochs[edge] {
		p.past(&r, &l.epochs[edge][i].rec)
	}
	for n := range p.rows {
		if int64(n+1) < r.Through() && l.counted[edge]&(1<<n) == 0 {
			return fmt.Errorf("edge %d is said to be complete through %d, but row %d is not counted", edge, r.Through(), n)
		}
	}
	return nil
}

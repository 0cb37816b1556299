package detail

import (
	"slices"

	"bailiwick/shared/usage"
)

func (e *epoch) search(number uint64) (int, bool) {
	return slices.BinarySearchFunc(e.pieces, number, func(p piece, n uint64) int {
		switch {
		case p.number < n:
			return -1
		case p.number > n:
			return 1
		}
		return 0
	})
}

func (p *piece) asLost() Lost {
	return Lost{From: p.number, To: p.number, Rows: p.rows, SinceMS: p.since, UntilMS: p.until, through: p.through}
}

// add takes in a piece that is on disk. One with the same number is replaced: a
// write that seemed to fail may have reached the disk, and was made up for.
func (e *epoch) add(p piece) {
	i, found := e.search(p.number)
	if found {
		e.pieces[i] = p
	} else {
		e.pieces = slices.Insert(e.pieces, i, p)
	}
	e.advance(p.number, p.through, p.until)
}

func (e *epoch) advance(number, through uint64, until int64) {
	e.next, e.rows, e.until = max(e.next, number+1), max(e.rows, through), max(e.until, until)
}

// lose puts l in the place of the pieces and losses with its numbers, and joins
// it to its neighbours.
func (e *epoch) lose(l Lost) {
	e.pieces = slices.DeleteFunc(e.pieces, func(p piece) bool { return p.number >= l.From && p.number <= l.To })
	e.lost = slices.DeleteFunc(e.lost, func(o Lost) bool { return o.From >= l.From && o.To <= l.To })
	at, _ := slices.BinarySearchFunc(e.lost, l.From, func(o Lost, n uint64) int {
		if o.From < n {
			return -1
		}
		return 1
	})
	e.lost = slices.Insert(e.lost, at, l)
	e.advance(l.To, l.through, l.UntilMS)
	for i := len(e.lost) - 1; i > 0; i-- {
		a, b := &e.lost[i-1], &e.lost[i]
		if a.To+1 == b.From {
			a.To, a.Rows, a.through = b.To, a.Rows+b.Rows, b.through
			a.SinceMS, a.UntilMS = min(a.SinceMS, b.SinceMS), max(a.UntilMS, b.UntilMS)
			e.lost = slices.Delete(e.lost, i, i+1)
		}
	}
}

// mark returns how many pieces it took off.
func (e *epoch) mark(stored uint64) int {
	n := 0
	for n < len(e.pieces) && e.pieces[n].number <= stored {
		e.storedRows = e.pieces[n].through
		n++
	}
	e.pieces = slices.Clone(e.pieces[n:])
	k := 0
	for k < len(e.lost) && e.lost[k].From <= stored { // a loss is stored whole or not at all, but for one that grew meanwhile
		l := &e.lost[k]
		if l.To > stored {
			l.From = stored + 1
			break
		}
		e.storedRows = max(e.storedRows, l.through)
		k++
	}
	e.lost = slices.Clone(e.lost[k:])
	e.stored, e.next = stored, max(e.next, stored+1)
	return n
}

// settle makes losses of the numbers of which the files say nothing: those of a
// file that was damaged, or removed in a moment in which nothing could be
// written. How many rows they had follows from what stands around them.
func (e *epoch) settle() (rows int64) {
	number, through, until := e.stored+1, e.storedRows, int64(0)
	var found []Lost
	gap := func(to, before uint64, when int64) {
		if number <= to {
			l := Lost{From: number, To: to, Rows: int64(before - min(before, through)), SinceMS: until, UntilMS: when, through: before}
			rows += l.Rows
			found = append(found, l)
		}
	}
	p, l := e.pieces, e.lost
	for len(p) > 0 || len(l) > 0 {
		if len(l) == 0 || len(p) > 0 && p[0].number < l[0].From {
			gap(p[0].number-1, p[0].through-uint64(p[0].rows), p[0].since)
			number, through, until, p = p[0].number+1, p[0].through, p[0].until, p[1:]
		} else {
			gap(l[0].From-1, l[0].through-min(l[0].through, uint64(l[0].Rows)), l[0].SinceMS)
			number, through, until, l = l[0].To+1, l[0].through, l[0].UntilMS, l[1:]
		}
	}
	gap(e.next-1, e.rows, e.until)
	for _, f := range found {
		e.lose(f)
	}
	return rows
}

// batch is records on their way to the disk, and what is to be known once they
// are there. Until then the epochs stay as they are.
type batch struct {
	recs   [][]byte
	apply  []func(file uint64, off int64)
	next   uint64 // of the epoch, when the first was put in
	rows   uint64
	begun  bool
	counts struct{ rows, lost, pieces, bytes int64 }
}

func (b *batch) begin(e *epoch) {
	if !b.begun {
		b.next, b.rows, b.begun = e.next, e.rows, true
	}
}

func (b *batch) lose(e *epoch, l Lost) {
	b.begin(e)
	if l.From >= b.next {
		b.next, b.rows = l.To+1, l.through
	}
	b.recs = append(b.recs, encodeLost(e.epoch, &l))
	b.apply = append(b.apply, func(uint64, int64) { e.lose(l) })
	b.counts.lost += l.Rows
}

func (b *batch) keep(e *epoch, seq uint64, rows *usage.Batch, from, to int) {
	b.begin(e)
	n := to - from
	p := piece{number: b.next, seq: seq, through: b.rows + uint64(n), rows: int64(n), since: rows.End(from), until: rows.End(to - 1)}
	b.next, b.rows = b.next+1, p.through
	payload := rows.Encode(from, to)
	var rec []byte
	rec, p.head = encodePiece(e.epoch, &p, payload)
	p.size = len(rec)
	b.recs = append(b.recs, rec)
	b.apply = append(b.apply, func(file uint64, off int64) {
		p := p
		p.file, p.off = file, off
		e.add(p)
	})
	b.counts.rows += p.rows
	b.counts.pieces++
	b.counts.bytes += int64(len(payload))
}

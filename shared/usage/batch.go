package usage

import (
	"hash/maphash"
)

// Batch is rows on their way into detail, in the order in which they were appended. Row by row it holds numbers alone: what rows
// say in words is said once for all of them, by cell and by key. So a busy edge's second and a half of rows is some megabytes that
// no collector looks into, and all of it is used again after Reset.
//
// The zero value is empty. One goroutine at a time may use it.
type Batch struct {
	rows  []BatchRow
	cells []batchCell

	texts   map[string]uint32 // of cells
	names   []string          // by number
	holders map[holder]uint32
	held    []holder // by number
	spots   map[spot32]uint32
	spotted []spot32

	keys keyTable
	enc  *writer2
}

// BatchRow is what a row has alone. See Row for the fields.
type BatchRow struct {
	RequestID             [16]byte
	EndUnixMS             int64
	LatencyUS, UpstreamUS int64
	Requests, Units       int64
	BytesIn, BytesOut     int64
	Actor, Address        uint64
	cell, key             uint32
	Status                uint16
	Attempts              uint8
	Flags                 Flags
}

type batchCell struct {
	holder, spot, region uint32
	outcome              Outcome
	period               int64
}

// holder is who has a key, and under what: a number of a text each.
type holder struct {
	customer, subscription, plan uint32
	rev                          uint64
}

type spot32 struct{ product, api, route uint32 }

// Len is how many rows there are; of a nil Batch none.
func (b *Batch) Len() int {
	if b == nil {
		return 0
	}
	return len(b.rows)
}

// End is when row i finished.
func (b *Batch) End(i int) int64 { return b.rows[i].EndUnixMS }

// Piece is where a piece that begins with row from ends: it keeps the limits of one.
func (b *Batch) Piece(from int) (to int) {
	to = min(from+MaxDetailRows, len(b.rows))
	const most, overhead = MaxDetail / 2, 128 // of texts, and of the rest of a row
	all := len(b.keys.text) + (to-from)*overhead
	for _, s := range b.names {
		all += len(s)
	}
	if all <= most { // mostly
		return to
	}
	size := 0
	for i := from; i < to; i++ {
		if size += b.textBytes(i) + overhead; size > most && i > from {
			return i
		}
	}
	return to
}

// textBytes bounds what the texts of row i take.
func (b *Batch) textBytes(i int) int {
	r := &b.rows[i]
	c := &b.cells[r.cell]
	h, s := &b.held[c.holder], &b.spotted[c.spot]
	n := len(b.keys.at(r.key))
	for _, t := range [...]uint32{h.customer, h.subscription, h.plan, s.product, s.api, s.route, c.region} {
		n += len(b.names[t])
	}
	return n
}

// Reset empties it. What Cell gave is void.
func (b *Batch) Reset() {
	b.rows, b.cells, b.held, b.spotted = b.rows[:0], b.cells[:0], b.held[:0], b.spotted[:0]
	clear(b.names)
	b.names = b.names[:0]
	clear(b.texts)
	clear(b.holders)
	clear(b.spots)
	b.keys.reset()
}

// Cell is the number by which rows name what they are summed by, until Reset. Two numbers for one cell do no harm.
func (b *Batch) Cell(c *Cell) uint32 {
	if b.texts == nil {
		b.texts, b.holders, b.spots = map[string]uint32{}, map[holder]uint32{}, map[spot32]uint32{}
	}
	h := holder{b.text(c.Customer), b.text(c.Subscription), b.text(c.Plan), c.PlanRev}
	hn, ok := b.holders[h]
	if !ok {
		hn = uint32(len(b.held))
		b.held, b.holders[h] = append(b.held, h), hn
	}
	s := spot32{b.text(c.Product), b.text(c.API), b.text(c.Route)}
	sn, ok := b.spots[s]
	if !ok {
		sn = uint32(len(b.spotted))
		b.spotted, b.spots[s] = append(b.spotted, s), sn
	}
	b.cells = append(b.cells, batchCell{holder: hn, spot: sn, region: b.text(c.ServedRegion), outcome: c.Outcome, period: c.Period})
	return uint32(len(b.cells) - 1)
}

func (b *Batch) text(s string) uint32 {
	n, ok := b.texts[s]
	if !ok {
		n = uint32(len(b.names))
		b.names, b.texts[s] = append(b.names, s), n
	}
	return n
}

// Encode writes what Kept leaves of rows from to to, which is not among them: the same bytes for the same rows. It checks no limit.
// The bytes are the batch's own until it is used again.
func (b *Batch) Encode(from, to int) []byte {
	if to-from < detailSwitch {
		rows := make([]Row, to-from)
		for i := range rows {
			rows[i] = b.row(from + i)
		}
		return encodeDetail1(rows)
	}
	if b.enc == nil {
		b.enc = new(writer2)
	}
	return b.enc.piece2(b, from, to)
}

func (b *Batch) row(i int) Row {
	x := &b.rows[i]
	c := &b.cells[x.cell]
	h, s := &b.held[c.holder], &b.spotted[c.spot]
	return Row{RequestID: x.RequestID, EndUnixMS: x.EndUnixMS, Customer: b.names[h.customer], Subscription: b.names[h.subscription], Plan: b.names[h.plan], PlanRev: h.rev,
		Product: b.names[s.product], API: b.names[s.api], Route: b.names[s.route], Outcome: c.outcome, ServedRegion: b.names[c.region], Period: c.period,
		Requests: x.Requests, Units: x.Units, BytesIn: x.BytesIn, BytesOut: x.BytesOut, LatencyUS: x.LatencyUS, KeyID: string(b.keys.at(x.key)),
		Status: x.Status, UpstreamUS: x.UpstreamUS, Attempts: x.Attempts, Flags: x.Flags, Actor: x.Actor, Address: x.Address}
}

// Add is the place of the next row, of a cell and by a key, whose id is copied. The caller fills in all of it.
func (b *Batch) Add(cell uint32, keyID []byte) *BatchRow {
	if len(b.rows) == cap(b.rows) {
		b.rows = append(b.rows, BatchRow{})
	} else {
		b.rows = b.rows[:len(b.rows)+1]
	}
	r := &b.rows[len(b.rows)-1]
	r.cell, r.key = cell, b.keys.add(keyID)
	return r
}

// BatchOf is a batch of rows.
func BatchOf(rows []Row) *Batch {
	b := &Batch{rows: make([]BatchRow, 0, len(rows))}
	cells := map[Cell]uint32{}
	var last Cell
	var no uint32
	for i := range rows {
		r := &rows[i]
		if c := r.Cell(); i == 0 || c != last {
			var ok bool
			if no, ok = cells[c]; !ok {
				no = b.Cell(&c)
				cells[c] = no
			}
			last = c
		}
		b.Add(no, []byte(r.KeyID)).fill(r)
	}
	return b
}

func (x *BatchRow) fill(r *Row) {
	x.RequestID, x.EndUnixMS, x.LatencyUS, x.UpstreamUS = r.RequestID, r.EndUnixMS, r.LatencyUS, r.UpstreamUS
	x.Requests, x.Units, x.BytesIn, x.BytesOut = r.Requests, r.Units, r.BytesIn, r.BytesOut
	x.Actor, x.Address, x.Status, x.Attempts, x.Flags = r.Actor, r.Address, r.Status, r.Attempts, r.Flags
}

// keyTable numbers texts in the order in which they come. A map of strings would be a string for each, and grow anew for each
// batch; where a million keys are used in turn nearly every row has one that is new.
type keyTable struct {
	text  []byte
	ends  []uint32 // of each in text
	slots []uint32 // number + 1, by hash; at least half of them are free
}

var keySeed = maphash.MakeSeed()

func (k *keyTable) at(n uint32) []byte {
	from := uint32(0)
	if n > 0 {
		from = k.ends[n-1]
	}
	return k.text[from:k.ends[n]]
}

func (k *keyTable) add(text []byte) uint32 {
	if 2*len(k.ends) >= len(k.slots) {
		k.grow()
	}
	mask := uint64(len(k.slots) - 1)
	i := maphash.Bytes(keySeed, text) & mask
	for k.slots[i] != 0 {
		if n := k.slots[i] - 1; string(k.at(n)) == string(text) {
			return n
		}
		i = (i + 1) & mask
	}
	n := uint32(len(k.ends))
	k.text = append(k.text, text...)
	k.ends = append(k.ends, uint32(len(k.text)))
	k.slots[i] = n + 1
	return n
}

func (k *keyTable) grow() {
	k.slots = make([]uint32, max(1024, 2*len(k.slots)))
	mask := uint64(len(k.slots) - 1)
	for n := range k.ends {
		i := maphash.Bytes(keySeed, k.at(uint32(n))) & mask
		for k.slots[i] != 0 {
			i = (i + 1) & mask
		}
		k.slots[i] = uint32(n) + 1
	}
}

func (k *keyTable) reset() {
	clear(k.slots)
	k.text, k.ends = k.text[:0], k.ends[:0]
}

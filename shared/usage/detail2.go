package usage

import (
	"encoding/binary"
	"hash/maphash"
	"math/bits"
)

// Version 2 of the detail part, for pieces of many rows: a fraction of the time that version 1 takes, for as many bytes (an
// adaptive coder takes 3 ns a bit, and tables in order have to be sorted for each piece). After version and length it is bits, the
// lowest of a byte first:
//
//	rows, names, places, spots, holders, kinds: how many of each, a number
//	the lengths of the codes of each column
//	names: each by what differs from the one before it
//	places, spots, holders: each by names; a holder is a customer, subscription, plan and its revision
//	kinds: (outcome, status, place, flags, attempts, requests)
//	rows, in the order in which they were appended
//
// What is in a table stands in the order in which rows name it first, and a key is told by its first row. So there is one spelling,
// and nothing is sorted.
const detailVersion2 = 2

// detailSwitch is how many rows make a piece of version 2: in fewer an adaptive coder takes fewer bytes, and the time is nobody's.
const detailSwitch = 256

// Columns, each with an alphabet of its own.
const (
	colAccount    = iota // 0: the next new one, told behind; else its place, from 1, its lowest bits behind
	colSpot              // place
	colKind              // place
	colEnd               // since the row before
	colShape             // flags, see below
	colOver              // LatencyUS - UpstreamUS
	colUnits             // by which Units differ from Requests
	colIn                // BytesIn
	colPeriod            // one that is told
	colBegan             // of a request's id: how far it is from where the latency puts it
	colActor             // place among the account's last ones; recents: elsewhere in the piece; recents+1: a new one
	colAddress           // likewise
	colHolder            // of a new account: 0: the next new one; else its place, from 1
	colKey               // likewise 0: a new one; 1: an account of it was told
	colPrefix            // of a new key: how many bytes it has of the one before it
	colLength            // and how many beside
	colLetter            //
	colNamePrefix        // likewise of names
	colNameLength        //
	colNameLetter        //
	colOutFailed         // BytesOut of what is no success
	colLatency           // as the last two by route: see routes
	colOut        = colLatency + routes
	columns       = colOut + routes
)

// routes have columns of their own for what goes by them.
const routes = 4

// Flags of a row's shape. Of the two of periods none: it has none.
const (
	shapeID     = 1 << iota // its id is a ShortID
	shapeUnits              // Units differ from Requests
	shapeEmpty              // no BytesIn
	shapeDirect             // no upstream was waited for
	shapePeriod             // the period is the account's last one, or, where it has had none, the piece's
	shapeTold               // the period is told
	shapes
)

const recents = 4 // pseudonyms that are remembered of each account

// pseudonyms of an account, the last first.
type pseudonyms [recents]uint64

// front brings the one at a place to the front.
func (l *pseudonyms) front(i int, v uint64) {
	copy(l[1:i+1], l[:i])
	l[0] = v
}

// note finds v, first among the account's and then in the piece. at is behind the symbol, in so many bits.
func (l *pseudonyms) note(piece *values, v uint64) (sym uint8, at uint64, size uint) {
	for i := range l {
		if l[i] == v {
			if i > 0 {
				l.front(i, v)
			}
			return uint8(i), 0, 0
		}
	}
	l.front(recents-1, v)
	if i := piece.find(v); i >= 0 {
		return recents, uint64(i), width(len(piece.all))
	}
	piece.add(v)
	return recents + 1, v, 64
}

// values are pseudonyms of a piece, in the order in which they came.
type values struct {
	all   []uint64
	slots []uint32 // place + 1, by hash; at least half of them are free
}

func (v *values) reset() {
	if len(v.all) > 0 {
		clear(v.slots)
		v.all = v.all[:0]
	}
}

// valueSeed keeps whoever brings pieces from choosing pseudonyms that all have one slot. No byte depends on it.
var valueSeed = [2]uint64{maphash.String(keySeed, "added"), maphash.String(keySeed, "multiplied") | 1}

func (v *values) home(x uint64) uint64 {
	hi, lo := bits.Mul64(x^valueSeed[0], valueSeed[1])
	// By itself the product has pseudonyms that lie at equal distances at equal distances again, which for one seed in seven
	// is a few slots: MurmurHash3's last steps (Appleby, 2011) keep nothing of it.
	h := hi ^ lo
	h = (h ^ h>>33) * 0xff51afd7ed558ccd
	h = (h ^ h>>33) * 0xc4ceb9fe1a85ec53
	return (h ^ h>>33) & uint64(len(v.slots)-1)
}

func (v *values) slot(x uint64) uint64 {
	mask := uint64(len(v.slots) - 1)
	i := v.home(x)
	for v.slots[i] != 0 && v.all[v.slots[i]-1] != x {
		i = (i + 1) & mask
	}
	return i
}

// find is the place of x, -1 if it is new.
func (v *values) find(x uint64) int {
	if len(v.all) == 0 {
		return -1
	}
	return int(v.slots[v.slot(x)]) - 1
}

func (v *values) add(x uint64) {
	v.all = append(v.all, x)
	if 2*len(v.all) <= len(v.slots) {
		v.slots[v.slot(x)] = uint32(len(v.all))
		return
	}
	v.slots = make([]uint32, max(256, 2*len(v.slots)))
	for i, o := range v.all {
		v.slots[v.slot(o)] = uint32(i + 1)
	}
}

// width is how many bits name one of n.
func width(n int) uint { return uint(bits.Len(uint(max(n-1, 0)))) }

// spare is how many bits of a place among n are behind its symbol; from is the symbol of the first.
func spare(n, from int) uint {
	s := uint(0)
	for (n-1)>>s+from > 255 {
		s++
	}
	return s
}

type account2 struct {
	holder, key uint32
	period      int64
	actors      pseudonyms
	addresses   pseudonyms
}

type kind2 struct {
	outcome  Outcome
	attempts uint8
	flags    Flags
	status   uint16
	place    uint32
	requests int64
}

// numbering gives things of a batch numbers in a piece, in the order in which they come.
type numbering struct {
	of  []uint32 // number, from 1
	all []uint32
}

func (n *numbering) reset(size int) {
	if cap(n.of) < size {
		n.of = make([]uint32, size+size/4)
	}
	n.of = n.of[:size]
	clear(n.of)
	n.all = n.all[:0]
}

func (n *numbering) number(v uint32) (at uint32, fresh bool) {
	if at = n.of[v]; at != 0 {
		return at - 1, false
	}
	n.all = append(n.all, v)
	n.of[v] = uint32(len(n.all))
	return uint32(len(n.all) - 1), true
}

// noted is what is found of a row when it is counted, and written then.
type noted struct {
	account, spot, kind           uint32
	fresh                         bool // the account is new
	freshKey                      bool // its key too
	end, shape, over, began       uint8
	latency, units, in, out       uint8 // symbols, as those before
	period, actor, address        uint8
	actorSize, addressSize        uint8
	endValue, overValue, beganVal uint64
	actorAt, addressAt            uint64
}

// writer2 is what writing a piece takes; it is kept for the next.
type writer2 struct {
	w        bitWriter
	planner  planner
	alphabet [columns]alphabet

	names, places, spots, holders, keys numbering

	kinds    []kind2
	kindOf   map[kind2]uint32  // where there are many
	byKey    []uint32          // the first account of each key of the batch, from 1
	others   map[uint64]uint32 // those of a key that has several, by key and holder: few, but where somebody means to cost time
	accounts []account2
	actors   values
	addrs    values
	rows     []noted
}

func (d *writer2) reset(b *Batch, rows int) {
	d.names.reset(len(b.names))
	d.places.reset(len(b.names))
	d.spots.reset(len(b.spotted))
	d.holders.reset(len(b.held))
	d.keys.reset(len(b.keys.ends))
	if n := len(b.keys.ends); cap(d.byKey) < n {
		d.byKey = make([]uint32, n, n+n/4)
	} else {
		d.byKey = d.byKey[:n]
		clear(d.byKey)
	}
	d.kinds, d.accounts = d.kinds[:0], d.accounts[:0]
	clear(d.kindOf)
	clear(d.others)
	d.actors.reset()
	d.addrs.reset()
	if cap(d.rows) < rows {
		d.rows = make([]noted, rows)
	}
	d.rows = d.rows[:rows]
	for i := range d.alphabet {
		clear(d.alphabet[i].counts[:])
	}
	d.w = bitWriter{b: append(d.w.b[:0], make([]byte, headRoom)...)}
}

const (
	headRoom = 6       // for version and length
	rowRoom  = 64 + 80 // bytes of a row, at most: 14 codes, and numbers of 64 bits
)

// piece2 writes what Kept leaves of rows from to to, which is not among them. The bytes are d's own.
func (d *writer2) piece2(b *Batch, from, to int) []byte {
	rows := b.rows[from:to]
	d.reset(b, len(rows))
	d.look(b, rows)
	d.places3()
	d.letters(b)
	for i := range d.alphabet {
		d.alphabet[i].plan(&d.planner)
	}
	d.head(b)
	d.write(b, rows)
	out := d.w.finish()
	var head [headRoom]byte
	head[0] = detailVersion2
	n := 1 + binary.PutUvarint(head[1:], uint64(len(out)-headRoom))
	out = out[headRoom-n:]
	copy(out, head[:n])
	return out
}

func (d *writer2) kind(k kind2) uint32 {
	const few = 16
	if len(d.kinds) <= few {
		for i := range d.kinds {
			if d.kinds[i] == k {
				return uint32(i)
			}
		}
	} else if n, ok := d.kindOf[k]; ok {
		return n
	}
	d.kinds = append(d.kinds, k)
	n := uint32(len(d.kinds) - 1)
	switch {
	case n == few:
		if d.kindOf == nil {
			d.kindOf = map[kind2]uint32{}
		}
		for i, k := range d.kinds {
			d.kindOf[k] = uint32(i)
		}
	case n > few:
		d.kindOf[k] = n
	}
	return n
}

// look finds how each row is told, and counts.
func (d *writer2) look(b *Batch, rows []BatchRow) {
	var end, period int64
	var actor, address uint64
	for i := range rows {
		r, n := &rows[i], &d.rows[i]
		c := &b.cells[r.cell]
		holder, fresh := d.holders.number(c.holder)
		if fresh {
			h := &b.held[c.holder]
			d.names.number(h.customer)
			d.names.number(h.subscription)
			d.names.number(h.plan)
		}
		if n.spot, fresh = d.spots.number(c.spot); fresh {
			s := &b.spotted[c.spot]
			d.names.number(s.product)
			d.names.number(s.api)
			d.names.number(s.route)
		}
		place, fresh := d.places.number(c.region)
		if fresh {
			d.names.number(c.region)
		}
		k := kind2{c.outcome, r.Attempts, r.Flags, r.Status, place, r.Requests}
		if i > 0 && d.kinds[d.rows[i-1].kind] == k {
			n.kind = d.rows[i-1].kind
		} else {
			n.kind = d.kind(k)
		}

		n.fresh = false
		at := d.byKey[r.key]
		n.freshKey = at == 0
		if at != 0 && d.accounts[at-1].holder != holder {
			at = d.others[uint64(r.key)<<32|uint64(holder)]
		}
		if at == 0 {
			n.fresh = true
			d.accounts = append(d.accounts, account2{holder: holder, key: r.key, period: period, actors: pseudonyms{actor}, addresses: pseudonyms{address}})
			at = uint32(len(d.accounts))
			if n.freshKey {
				d.byKey[r.key] = at
			} else {
				if d.others == nil {
					d.others = map[uint64]uint32{}
				}
				d.others[uint64(r.key)<<32|uint64(holder)] = at
			}
		}
		n.account = at - 1
		a := &d.accounts[n.account]

		n.endValue = zigzag(r.EndUnixMS - end)
		n.end = symbolOf(n.endValue)
		d.alphabet[colEnd].counts[n.end]++
		end = r.EndUnixMS

		shape := uint8(0)
		kept := int64(rounded(uint64(r.LatencyUS), latencyBits))
		n.latency = symbolOf(uint64(r.LatencyUS))
		d.alphabet[colLatency+n.spot%routes].counts[n.latency]++
		upstream := r.UpstreamUS
		if upstream > 0 {
			n.overValue = rounded(uint64(max(kept-upstream, 0)), overheadBits)
			upstream = max(kept-int64(n.overValue), 0)
		}
		if upstream == 0 {
			shape |= shapeDirect
		} else {
			if upstream < 0 { // no such row is kept: reading refuses it
				n.overValue = uint64(kept - upstream)
			}
			n.over = symbolOf(n.overValue)
			d.alphabet[colOver].counts[n.over]++
		}
		if r.Units != r.Requests {
			shape |= shapeUnits
			n.units = symbolOf(zigzag(r.Units - r.Requests))
			d.alphabet[colUnits].counts[n.units]++
		}
		if r.BytesIn == 0 {
			shape |= shapeEmpty
		} else {
			n.in = symbolOf(uint64(r.BytesIn))
			d.alphabet[colIn].counts[n.in]++
		}
		n.out = symbolOf(uint64(r.BytesOut))
		d.alphabet[outColumn(c.outcome, n.spot)].counts[n.out]++
		switch {
		case c.period == 0:
		case c.period == a.period:
			shape |= shapePeriod
		default:
			shape |= shapeTold
			n.period = symbolOf(uint64(c.period))
			d.alphabet[colPeriod].counts[n.period]++
		}
		if c.period != 0 {
			a.period, period = c.period, c.period
		}
		if id := &r.RequestID; id[6]>>4 == 7 && id[8]>>6 == 2 {
			shape |= shapeID
			began := int64(binary.BigEndian.Uint64(id[:]) >> 16)
			n.beganVal = zigzag(began - (r.EndUnixMS - kept/1000))
			n.began = symbolOf(n.beganVal)
			d.alphabet[colBegan].counts[n.began]++
		}
		n.shape = shape
		d.alphabet[colShape].counts[shape]++

		var size uint
		n.actor, n.actorAt, size = a.actors.note(&d.actors, r.Actor)
		n.actorSize = uint8(size)
		d.alphabet[colActor].counts[n.actor]++
		n.address, n.addressAt, size = a.addresses.note(&d.addrs, r.Address)
		n.addressSize = uint8(size)
		d.alphabet[colAddress].counts[n.address]++
		actor, address = r.Actor, r.Address
	}
}

func outColumn(o Outcome, spot uint32) int {
	if o != OutcomeSuccess {
		return colOutFailed
	}
	return colOut + int(spot%routes)
}

// places3 counts places in tables, whose sizes are known by now.
func (d *writer2) places3() {
	account, spot, kind := spare(len(d.accounts), 1), spare(len(d.spots.all), 0), spare(len(d.kinds), 0)
	holder := spare(len(d.holders.all), 1)
	known := uint32(0)
	for i := range d.rows {
		n := &d.rows[i]
		d.alphabet[colSpot].counts[n.spot>>spot]++
		d.alphabet[colKind].counts[n.kind>>kind]++
		if !n.fresh {
			d.alphabet[colAccount].counts[1+n.account>>account]++
			continue
		}
		d.alphabet[colAccount].counts[0]++
		if h := d.accounts[n.account].holder; h == known {
			d.alphabet[colHolder].counts[0]++
			known++
		} else {
			d.alphabet[colHolder].counts[1+h>>holder]++
		}
		if n.freshKey {
			d.alphabet[colKey].counts[0]++
		} else {
			d.alphabet[colKey].counts[1]++
		}
	}
}

// letters counts what texts are made of.
func (d *writer2) letters(b *Batch) {
	var before []byte
	for i := range d.rows {
		if n := &d.rows[i]; n.freshKey {
			key := d.accounts[n.account].key
			text := b.keys.at(key)
			d.text(colPrefix, before, text)
			d.keys.number(key)
			before = text
		}
	}
	name := ""
	for _, at := range d.names.all {
		d.text(colNamePrefix, []byte(name), []byte(b.names[at]))
		name = b.names[at]
	}
}

func shared(a, b []byte) int {
	k := 0
	for k < len(a) && k < len(b) && a[k] == b[k] {
		k++
	}
	return k
}

// text counts a text's prefix, length and letters, whose columns follow each other.
func (d *writer2) text(column int, before, text []byte) {
	k := shared(before, text)
	d.alphabet[column].counts[symbolOf(uint64(k))]++
	d.alphabet[column+1].counts[symbolOf(uint64(len(text)-k))]++
	letters := &d.alphabet[column+2].counts
	for _, x := range text[k:] {
		letters[x]++
	}
}

func (d *writer2) putText(column int, before, text []byte) {
	d.w.room(2*len(text) + 32)
	k := shared(before, text)
	d.num(column, uint64(k))
	d.num(column+1, uint64(len(text)-k))
	letters := &d.alphabet[column+2]
	for _, x := range text[k:] {
		d.w.put(uint64(letters.code[x]), uint(letters.length[x]))
	}
}

func (d *writer2) sym(column int, sym uint8) {
	a := &d.alphabet[column]
	d.w.put(uint64(a.code[sym]), uint(a.length[sym]))
}

func (d *writer2) num(column int, v uint64) { d.numAs(column, v, symbolOf(v), 64) }

func (d *writer2) numAs(column int, v uint64, sym uint8, keep int) {
	d.sym(column, sym)
	d.w.putRest(v, sym, keep)
}

// head writes all that stands before the rows.
func (d *writer2) head(b *Batch) {
	w := &d.w
	w.room(128)
	for _, n := range [...]int{len(d.rows), len(d.names.all), len(d.places.all), len(d.spots.all), len(d.holders.all), len(d.kinds), len(d.accounts)} {
		w.number(uint64(n))
	}
	for i := range d.alphabet {
		w.lengths(&d.alphabet[i])
	}
	name := ""
	for _, at := range d.names.all {
		d.putText(colNamePrefix, []byte(name), []byte(b.names[at]))
		name = b.names[at]
	}
	size := width(len(d.names.all))
	text := func(batch uint32) { w.put(uint64(d.names.of[batch]-1), size) }
	for _, at := range d.places.all {
		w.room(16)
		text(at)
	}
	for _, at := range d.spots.all {
		w.room(32)
		s := &b.spotted[at]
		text(s.product)
		text(s.api)
		text(s.route)
	}
	var before holder
	for i, at := range d.holders.all {
		w.room(64)
		h := &b.held[at]
		text(h.customer)
		again := i > 0 && h.subscription == before.subscription && h.plan == before.plan && h.rev == before.rev // mostly
		if w.flag(again); !again {
			text(h.subscription)
			text(h.plan)
			w.number(h.rev)
		}
		before = *h
	}
	for _, k := range d.kinds {
		w.room(64)
		w.put(uint64(k.outcome), 8)
		w.put(uint64(k.attempts), 8)
		w.put(uint64(k.flags), 8)
		w.put(uint64(k.status), 16)
		w.put(uint64(k.place), width(len(d.places.all)))
		w.number(uint64(k.requests))
	}
}

func (d *writer2) write(b *Batch, rows []BatchRow) {
	w := &d.w
	account, spot, kind := spare(len(d.accounts), 1), spare(len(d.spots.all), 0), spare(len(d.kinds), 0)
	holder := spare(len(d.holders.all), 1)
	holders, keys := uint32(0), 0
	var before []byte
	for i := range rows {
		r, n := &rows[i], &d.rows[i]
		w.room(rowRoom)
		switch {
		case !n.fresh:
			d.sym(colAccount, uint8(1+n.account>>account))
			w.put(uint64(n.account&(1<<account-1)), account)
		default:
			d.sym(colAccount, 0)
			a := &d.accounts[n.account]
			if a.holder == holders {
				d.sym(colHolder, 0)
				holders++
			} else {
				d.sym(colHolder, uint8(1+a.holder>>holder))
				w.put(uint64(a.holder&(1<<holder-1)), holder)
			}
			if n.freshKey {
				d.sym(colKey, 0)
				text := b.keys.at(a.key)
				d.putText(colPrefix, before, text)
				before = text
				keys++
				w.room(rowRoom)
			} else {
				d.sym(colKey, 1)
				w.put(uint64(d.keys.of[a.key]-1), width(keys))
			}
		}
		d.sym(colSpot, uint8(n.spot>>spot))
		w.put(uint64(n.spot&(1<<spot-1)), spot)
		d.sym(colKind, uint8(n.kind>>kind))
		w.put(uint64(n.kind&(1<<kind-1)), kind)
		d.numAs(colEnd, n.endValue, n.end, 64)
		d.sym(colShape, n.shape)
		d.numAs(colLatency+int(n.spot%routes), uint64(r.LatencyUS), n.latency, latencyBits)
		if n.shape&shapeDirect == 0 {
			d.numAs(colOver, n.overValue, n.over, overheadBits)
		}
		if n.shape&shapeUnits != 0 {
			d.numAs(colUnits, zigzag(r.Units-r.Requests), n.units, 64)
		}
		if n.shape&shapeEmpty == 0 {
			d.numAs(colIn, uint64(r.BytesIn), n.in, 64)
		}
		c := &b.cells[r.cell]
		d.numAs(outColumn(c.outcome, n.spot), uint64(r.BytesOut), n.out, 64)
		if n.shape&shapeTold != 0 {
			d.numAs(colPeriod, uint64(c.period), n.period, 64)
		}
		if id := &r.RequestID; n.shape&shapeID != 0 {
			d.numAs(colBegan, n.beganVal, n.began, 64)
			w.put(uint64(binary.BigEndian.Uint32(id[12:])&0xffffff), 24)
		} else {
			w.long(binary.BigEndian.Uint64(id[:]), 64)
			w.long(binary.BigEndian.Uint64(id[8:]), 64)
		}
		d.sym(colActor, n.actor)
		w.long(n.actorAt, uint(n.actorSize))
		d.sym(colAddress, n.address)
		w.long(n.addressAt, uint(n.addressSize))
	}
}

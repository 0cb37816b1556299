package usage

import (
	"bytes"
	"encoding/binary"
	"errors"
)

// reader2 reads a piece of version 2. What it takes is bounded by the limits of a piece, whatever the bytes claim.
type reader2 struct {
	r        bitReader
	d        [columns]decoder
	names    []string
	places   []string
	spots    []spotTexts
	holders  []holderTexts
	kinds    []kindOf2
	accounts []accountRead
	keys     []string
	actors   []uint64
	addrs    []uint64
	texts    int // bytes so far

	batch Batch // of what was read, to be spelt again
	cells map[cellRead]uint32
}

// cellRead names a cell of the batch.
type cellRead struct {
	holder, spot, kind int
	period             int64
}

type spotTexts struct{ product, api, route string }

type holderTexts struct {
	customer, subscription, plan string
	rev                          uint64
}

type kindOf2 struct {
	outcome  Outcome
	attempts uint8
	flags    Flags
	status   uint16
	place    string
	requests int64
}

type accountRead struct {
	holder            int
	key               string
	period            int64
	actors, addresses pseudonyms
}

var errPlace = errors.New("a place is named that is not in its table")

// decode2 reads all rows, least at least, and insists that they are spelt as they would be here.
func decode2(b []byte, least int) ([]Row, error) {
	body, err := streamOf(b)
	if err != nil {
		return nil, err
	}
	d := &reader2{r: bitReader{b: body}, cells: map[cellRead]uint32{}}
	rows := d.read()
	if d.r.err != nil {
		return nil, d.r.err
	}
	for i := range rows {
		if err := rows[i].Check(); err != nil {
			return nil, err
		}
	}
	if len(rows) < least || !bytes.Equal(new(writer2).piece2(&d.batch, 0, len(rows)), b) {
		return nil, errors.New("it is another spelling of what it says")
	}
	return rows, nil
}

func (d *reader2) read() []Row {
	r := &d.r
	rows := r.limit(MaxDetailRows)
	names, places, spots, holders, kinds, accounts := r.limit(7*MaxDetailRows), r.limit(MaxDetailRows), r.limit(MaxDetailRows), r.limit(MaxDetailRows), r.limit(MaxDetailRows), r.limit(MaxDetailRows)
	for i := range d.d {
		if r.err == nil {
			d.d[i].open(r)
		}
	}
	before := ""
	for range names {
		if r.err != nil {
			return nil
		}
		before = d.text(colNamePrefix, before)
		d.names = append(d.names, before)
	}
	size := width(names)
	name := func() string {
		if n := r.get(size); n < uint64(len(d.names)) {
			return d.names[n]
		}
		r.fail(errPlace)
		return ""
	}
	for range places {
		d.places = append(d.places, name())
	}
	for range spots {
		d.spots = append(d.spots, spotTexts{name(), name(), name()})
	}
	var h holderTexts
	for range holders {
		h.customer = name()
		if again := r.get(1) == 1; !again {
			h.subscription, h.plan = name(), name()
			h.rev = r.number()
		}
		d.holders = append(d.holders, h)
	}
	for range kinds {
		k := kindOf2{outcome: Outcome(r.get(8)), attempts: uint8(r.get(8)), flags: Flags(r.get(8)), status: uint16(r.get(16))}
		if n := r.get(width(places)); n < uint64(len(d.places)) {
			k.place = d.places[n]
		} else {
			r.fail(errPlace)
		}
		k.requests = int64(r.number())
		d.kinds = append(d.kinds, k)
		if r.err != nil {
			return nil
		}
	}
	if r.err != nil {
		return nil
	}
	out := make([]Row, rows)
	d.rows(out, accounts)
	if r.err == nil && (len(r.b) > 0 || r.n >= 8 || r.acc != 0) {
		r.fail(errors.New("bytes follow its end"))
	}
	return out
}

func (d *reader2) text(column int, before string) string {
	k, n := d.num(column), d.num(column+1)
	if k > uint64(len(before)) || n > MaxString || d.r.err != nil {
		d.r.fail(errors.New("one of its texts has a length that cannot be"))
		return ""
	}
	if d.texts += int(k+n) + 1; d.texts > MaxDetail {
		d.r.fail(errors.New("its texts are too long"))
		return ""
	}
	b := append(make([]byte, 0, k+n), before[:k]...)
	for range n {
		b = append(b, byte(d.d[column+2].read(&d.r)))
	}
	return string(b)
}

func (d *reader2) num(column int) uint64 { return d.r.rest(d.d[column].read(&d.r), 64) }

// place reads one of n.
func (d *reader2) place(sym int, n int, spare uint) int {
	at := sym<<spare | int(d.r.get(spare))
	if at >= n {
		d.r.fail(errPlace)
		return 0
	}
	return at
}

func (d *reader2) rows(out []Row, most int) {
	r := &d.r
	account, spot, kind, holder := spare(most, 1), spare(len(d.spots), 0), spare(len(d.kinds), 0), spare(len(d.holders), 1)
	if len(out) > 0 && (len(d.spots) == 0 || len(d.kinds) == 0) {
		r.fail(errPlace)
		return
	}
	var end, period int64
	var actor, address uint64
	key, holders := "", 0
	var cell cellRead
	var cellNo uint32
	d.batch.rows = make([]BatchRow, 0, len(out))
	for i := range out {
		row := &out[i]
		var at int
		if sym := d.d[colAccount].read(r); sym > 0 {
			if at = d.place(sym-1, len(d.accounts), account); len(d.accounts) == 0 {
				r.fail(errPlace)
				return
			}
		} else {
			a := accountRead{period: period, actors: pseudonyms{actor}, addresses: pseudonyms{address}}
			if sym := d.d[colHolder].read(r); sym > 0 {
				a.holder = d.place(sym-1, len(d.holders), holder)
			} else {
				a.holder = holders
				holders++
			}
			if a.holder >= len(d.holders) {
				r.fail(errPlace)
				return
			}
			if d.d[colKey].read(r) == 0 {
				key = d.text(colPrefix, key)
				d.keys = append(d.keys, key)
				a.key = key
			} else if n := r.get(width(len(d.keys))); n < uint64(len(d.keys)) {
				a.key = d.keys[n]
			} else {
				r.fail(errPlace)
			}
			at = len(d.accounts)
			d.accounts = append(d.accounts, a)
		}
		a := &d.accounts[at]
		h := &d.holders[a.holder]
		row.Customer, row.Subscription, row.Plan, row.PlanRev, row.KeyID = h.customer, h.subscription, h.plan, h.rev, a.key
		n := d.place(d.d[colSpot].read(r), len(d.spots), spot)
		s := &d.spots[n]
		row.Product, row.API, row.Route = s.product, s.api, s.route
		kindNo := d.place(d.d[colKind].read(r), len(d.kinds), kind)
		k := &d.kinds[kindNo]
		row.Outcome, row.Attempts, row.Flags, row.Status, row.ServedRegion, row.Requests = k.outcome, k.attempts, k.flags, k.status, k.place, k.requests
		end += unzigzag(d.num(colEnd))
		row.EndUnixMS = end
		shape := d.d[colShape].read(r)
		if shape >= shapes {
			r.fail(errCode)
		}
		row.LatencyUS = int64(r.rest(d.d[colLatency+n%routes].read(r), latencyBits))
		if shape&shapeDirect == 0 {
			row.UpstreamUS = row.LatencyUS - int64(r.rest(d.d[colOver].read(r), overheadBits))
		}
		row.Units = row.Requests
		if shape&shapeUnits != 0 {
			row.Units += unzigzag(d.num(colUnits))
		}
		if shape&shapeEmpty == 0 {
			row.BytesIn = int64(d.num(colIn))
		}
		row.BytesOut = int64(d.num(outColumn(k.outcome, uint32(n))))
		switch {
		case shape&shapePeriod != 0:
			row.Period = a.period
		case shape&shapeTold != 0:
			row.Period = int64(d.num(colPeriod))
		}
		if row.Period != 0 {
			a.period, period = row.Period, row.Period
		}
		d.id(row, shape)
		row.Actor = d.pseudonym(colActor, &a.actors, &d.actors)
		row.Address = d.pseudonym(colAddress, &a.addresses, &d.addrs)
		actor, address = row.Actor, row.Address
		if r.err != nil {
			return
		}
		if c := (cellRead{a.holder, n, kindNo, row.Period}); i == 0 || c != cell {
			var known bool
			if cellNo, known = d.cells[c]; !known {
				said := row.Cell()
				cellNo = d.batch.Cell(&said)
				d.cells[c] = cellNo
			}
			cell = c
		}
		d.batch.Add(cellNo, []byte(row.KeyID)).fill(row)
	}
}

func (d *reader2) id(row *Row, shape int) {
	be := binary.BigEndian
	if shape&shapeID == 0 {
		be.PutUint64(row.RequestID[:], d.r.long(64))
		be.PutUint64(row.RequestID[8:], d.r.long(64))
		return
	}
	began := row.EndUnixMS - row.LatencyUS/1000 + unzigzag(d.num(colBegan))
	if began < 0 || began >= 1<<48 {
		d.r.fail(errors.New("a time is out of range"))
		return
	}
	be.PutUint64(row.RequestID[:], uint64(began)<<16|0x7000)
	be.PutUint64(row.RequestID[8:], 0x80<<56|d.r.get(24))
}

func (d *reader2) pseudonym(column int, l *pseudonyms, piece *[]uint64) uint64 {
	sym := d.d[column].read(&d.r)
	if sym < recents {
		v := l[sym]
		l.front(sym, v)
		return v
	}
	var v uint64
	if sym == recents {
		n := d.r.get(width(len(*piece)))
		if n >= uint64(len(*piece)) {
			d.r.fail(errPlace)
			return 0
		}
		v = (*piece)[n]
	} else {
		v = d.r.long(64)
		*piece = append(*piece, v)
	}
	l.front(recents-1, v)
	return v
}

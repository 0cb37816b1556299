package spool

import (
	"encoding/binary"
	"errors"

	"bailiwick/shared/usage"
)

// Limits of the latency sketches while nothing can be sealed: their number goes
// with time, and the disk and the memory of an edge must not.
const (
	fineLatency = 8192  // keys; beyond it latencies are summed by the hour, not the minute
	maxLatency  = 16384 // keys; beyond it they are in the detail alone
)

// sums are what is open: rows folded and not yet in a block.
type sums struct {
	cells   map[string]*cell // by the bytes of the cell: one hash of one string a row
	latency map[usage.LatencyKey]*usage.Sketch
}

type cell struct {
	usage.Cell
	sums   usage.Sums
	minute int64 // of sketch, unix ms
	sketch *usage.Sketch
	no     uint32 // of the cell in the batch of detail whose turn it is, from 1
	turn   uint64
}

func newSums() sums {
	return sums{map[string]*cell{}, map[usage.LatencyKey]*usage.Sketch{}}
}

var errRow = errors.New("a row does not decode")

// add folds one row's payload.
func (o *sums) add(payload []byte) (*cell, error) {
	le := binary.LittleEndian
	var c *cell
	if payload[0] == kindRow {
		key := payload[rowKey : len(payload)-keyIDLen(payload)]
		if c = o.cells[string(key)]; c == nil {
			var err error
			if c, err = o.open(string(key)); err != nil {
				return nil, err
			}
		}
	} else {
		var err error
		if c, err = o.open(renewKey(payload[oldKey:])); err != nil {
			return nil, err
		}
	}
	s := usage.Sums{Requests: int64(le.Uint64(payload[rowSums:])), Units: int64(le.Uint64(payload[rowSums+8:])),
		BytesIn: int64(le.Uint64(payload[rowSums+16:])), BytesOut: int64(le.Uint64(payload[rowSums+24:]))}
	c.sums = c.sums.Add(s)
	if s.Requests != 1 {
		return c, nil
	}
	if end := int64(le.Uint64(payload[rowEnd:])); c.sketch == nil || end < c.minute || end >= c.minute+60_000 {
		r := usage.Row{EndUnixMS: end, API: c.API, Route: c.Route, ServedRegion: c.ServedRegion, Outcome: c.Outcome, Requests: 1}
		k, ok := r.Latency()
		if !ok {
			return c, nil
		}
		c.minute, c.sketch = k.Minute*1000, o.sketch(k)
	}
	if c.sketch != nil {
		c.sketch.Add(int64(le.Uint64(payload[rowLat:])), 1)
	}
	return c, nil
}

// sketch is where a latency is summed; nil if there are too many.
func (o *sums) sketch(k usage.LatencyKey) *usage.Sketch {
	s := o.latency[k]
	if s == nil && len(o.latency) >= fineLatency {
		k.Minute -= k.Minute % 3600
		s = o.latency[k]
	}
	if s == nil && len(o.latency) < maxLatency {
		s = &usage.Sketch{}
		o.latency[k] = s
	}
	return s
}

// open finds or makes the cell of a key.
func (o *sums) open(key string) (*cell, error) {
	if c := o.cells[key]; c != nil {
		return c, nil
	}
	u, err := decodeKey(key)
	if err != nil {
		return nil, err
	}
	c := &cell{Cell: u}
	o.cells[key] = c
	return c, nil
}

// merge takes in what comes from a checkpoint.
func (o *sums) merge(p usage.Payload) error {
	for u, s := range p.Cells {
		c, err := o.open(encodeKey(u))
		if err != nil {
			return err
		}
		c.sums = c.sums.Add(s)
	}
	for k, s := range p.Latency {
		if o.latency[k] == nil {
			o.latency[k] = &usage.Sketch{}
		}
		o.latency[k].Merge(s)
	}
	return nil
}

func (o *sums) payload() usage.Payload {
	p := usage.Payload{Cells: make(map[usage.Cell]usage.Sums, len(o.cells)), Latency: o.latency}
	for _, c := range o.cells {
		p.Cells[c.Cell] = c.sums
	}
	for k, s := range p.Latency {
		if s.Count() == 0 {
			delete(p.Latency, k)
		}
	}
	return p
}

func decodeKey(k string) (c usage.Cell, err error) {
	b := []byte(k)
	c.Start = int64(binary.LittleEndian.Uint64(b))
	c.PlanRev = binary.LittleEndian.Uint64(b[keyRev:])
	c.Period = int64(binary.LittleEndian.Uint64(b[keyPeriod:]))
	c.Outcome = usage.Outcome(b[keyOut])
	b = b[keyTexts:]
	for _, s := range [...]*string{&c.Customer, &c.Subscription, &c.Plan, &c.Product, &c.API, &c.Route, &c.ServedRegion} {
		if len(b) < 2 || len(b)-2 < int(binary.LittleEndian.Uint16(b)) {
			return c, errRow
		}
		n := int(binary.LittleEndian.Uint16(b))
		*s, b = string(b[2:2+n]), b[2+n:]
	}
	if len(b) != 0 {
		return c, errRow
	}
	return c, nil
}

// encodeKey is the key of a cell, for cells that come from a checkpoint.
func encodeKey(c usage.Cell) string {
	r := usage.Row{Customer: c.Customer, Subscription: c.Subscription, Plan: c.Plan, PlanRev: c.PlanRev, Product: c.Product, API: c.API,
		Route: c.Route, Outcome: c.Outcome, ServedRegion: c.ServedRegion, EndUnixMS: c.Start * 1000, Period: c.Period}
	b := make([]byte, rowSize(&r))
	putRow(b, &r)
	return string(b[rowKey:])
}

// renewKey is the key of a row of version 1, which has no period.
func renewKey(old []byte) string {
	b := make([]byte, 0, len(old)+keyTexts-oldTexts)
	b = append(b, old[:keyPeriod]...)
	b = append(b, make([]byte, 8)...)
	return string(append(b, old[keyPeriod:]...))
}

// detailMax bounds the rows that wait to be made into detail. Folding must not
// fall behind for detail's sake: what comes on top in one go is counted as lost.
const detailMax = 8 * usage.MaxDetailRows

// detailRows are rows on their way to the detail: consecutive, up to the one
// with the number through.
type detailRows struct {
	batch   usage.Batch
	through uint64
	turn    uint64 // of batch: numbers of cells hold within one
}

func (d *detailRows) add(payload []byte, c *cell, ordinal uint64) {
	if d.batch.Len() >= detailMax {
		return
	}
	if c.turn != d.turn || c.no == 0 {
		c.turn, c.no = d.turn, d.batch.Cell(&c.Cell)+1
	}
	d.through = ordinal
	var key []byte
	isNew := payload[0] == kindRow
	if isNew {
		key = payload[len(payload)-keyIDLen(payload):]
	}
	le := binary.LittleEndian
	r := d.batch.Add(c.no-1, key)
	r.RequestID, r.EndUnixMS, r.LatencyUS = [16]byte(payload[rowID:rowEnd]), int64(le.Uint64(payload[rowEnd:])), int64(le.Uint64(payload[rowLat:]))
	r.Requests, r.Units = int64(le.Uint64(payload[rowSums:])), int64(le.Uint64(payload[rowSums+8:]))
	r.BytesIn, r.BytesOut = int64(le.Uint64(payload[rowSums+16:])), int64(le.Uint64(payload[rowSums+24:]))
	if !isNew {
		r.Attempts, r.Status, r.Flags, r.UpstreamUS, r.Actor, r.Address = 0, 0, 0, 0, 0, 0
		return
	}
	r.Attempts, r.Status, r.Flags = payload[1], le.Uint16(payload[2:]), usage.Flags(payload[4])
	r.UpstreamUS, r.Actor, r.Address = int64(le.Uint64(payload[rowUpstream:])), le.Uint64(payload[rowActor:]), le.Uint64(payload[rowAddress:])
}

// foldRow takes the row at off into what is open, and on its way to the detail.
func (s *Spool) foldRow(g *segment, off int, payload []byte) error {
	payload, err := s.reader.whole(g, off, payload)
	if err != nil {
		return err
	}
	c, err := s.open.add(payload)
	if err != nil {
		return err
	}
	s.rows++
	if s.cfg.Detail != nil {
		s.detail.add(payload, c, s.rows)
	}
	return nil
}

// keepDetail hands the waiting rows to the detail. They are on disk first, or a
// power cut could leave detail of rows that no block has.
func (s *Spool) keepDetail() error {
	if s.detail.batch.Len() == 0 {
		return nil
	}
	if err := s.syncRows(); err != nil {
		return err
	}
	s.giveDetail(s.detail.through)
	return nil
}

// giveDetail: the next seal's first block will be the one after the last.
func (s *Spool) giveDetail(through uint64) {
	s.cfg.Detail.Keep(s.st.epoch, s.st.seq+1, through, &s.detail.batch)
	s.detail.batch.Reset()
	s.detail.turn++
}

package spool

import (
	"encoding/binary"
	"math"

	"bailiwick/shared/usage"
)

// A short row leans on a whole one before it in the same segment: plan, product, API, route, region, revision, period, outcome and
// cell are that one's, as they are for most rows of an edge. It takes half the room, and what a row costs is its room: to copy it, to
// sum it, and to write its page.
//
//	kind u8, attempts u8, status u16, flags u8, lengths of customer, subscription and key id 3 × u8
//	request id [16] | end u64 | latency, upstream, units, bytes in, bytes out, place of the whole row: 6 × u32 | actor u64 | address u64 | texts
//
// Whoever reads the log after a crash begins where a fold ended, and behind that place alone he finds what he needs: no row leans on one
// from before the last fold (forget).
const (
	shortLat   = 32
	shortUp    = 36
	shortUnits = 40
	shortIn    = 44
	shortOut   = 48
	shortOn    = 52
	shortActor = 56
	shortAddr  = 64
	shortTexts = 72
)

const (
	wholeBits = 6
	wholeRows = 1 << wholeBits // that rows may lean on at a time; a row that finds another in its place is whole
)

// wholes are where the last rows lie that others may lean on. It belongs to whoever holds the spool's mu.
type wholes struct {
	turn uint64 // those of another turn are forgotten
	rows [wholeRows]struct {
		turn uint64
		off  int
	}
}

// forget has no row lean on one that was appended before.
func (w *wholes) forget() { w.turn++ }

// slot is where a row that r may lean on is looked for.
func slot(r *usage.Row, start int64) int {
	h := uint64(r.Outcome) + uint64(start) + uint64(r.Period)<<8 + r.PlanRev<<16
	for _, s := range [...]string{r.Plan, r.API, r.Route, r.ServedRegion} {
		n := len(s)
		h = h*0x9e3779b97f4a7c15 + uint64(n)
		if n > 0 {
			h += uint64(s[0])<<8 | uint64(s[n/2])<<16 | uint64(s[n-1])<<24
		}
	}
	return int(h * 0x9e3779b97f4a7c15 >> (64 - wholeBits))
}

// at is where the row in a slot lies; 0: there is none.
func (w *wholes) at(slot int) int {
	if e := &w.rows[slot]; e.turn == w.turn {
		return e.off
	}
	return 0
}

func (w *wholes) keep(slot, off int) {
	w.rows[slot].turn, w.rows[slot].off = w.turn, off
}

// bears says whether r may lean on the whole row at off, by what is written there: texts of a request may lie in memory that is used
// again.
func (g *segment) bears(off int, r *usage.Row, start int64) bool {
	le := binary.LittleEndian
	b := g.data[off+wordSize+rowKey:]
	if int64(le.Uint64(b)) != start || le.Uint64(b[keyRev:]) != r.PlanRev || int64(le.Uint64(b[keyPeriod:])) != r.Period || b[keyOut] != byte(r.Outcome) {
		return false
	}
	b = b[keyTexts:]
	for range 2 { // customer and subscription are each row's own
		b = b[2+le.Uint16(b):]
	}
	for _, s := range [...]string{r.Plan, r.Product, r.API, r.Route, r.ServedRegion} {
		n := int(le.Uint16(b))
		if n != len(s) || string(b[2:2+n]) != s {
			return false
		}
		b = b[2+n:]
	}
	return true
}

// fitsShort says whether a short row has room for r's numbers and texts.
func fitsShort(r *usage.Row) bool {
	const most = math.MaxUint32
	return r.Requests == 1 && r.Units <= most && r.BytesIn <= most && r.BytesOut <= most && r.LatencyUS <= most && r.UpstreamUS <= most &&
		len(r.Customer) <= 255 && len(r.Subscription) <= 255 && len(r.KeyID) <= 255
}

func shortSize(r *usage.Row) int {
	return shortTexts + len(r.Customer) + len(r.Subscription) + len(r.KeyID)
}

// putShort writes the payload of a row that leans on the one at off to b, which is exactly its size.
func putShort(b []byte, r *usage.Row, off int) {
	le := binary.LittleEndian
	_ = b[shortTexts-1]
	le.PutUint64(b, kindShort|uint64(r.Attempts)<<8|uint64(r.Status)<<16|uint64(r.Flags)<<32|
		uint64(len(r.Customer))<<40|uint64(len(r.Subscription))<<48|uint64(len(r.KeyID))<<56)
	copy(b[rowID:rowEnd], r.RequestID[:])
	le.PutUint64(b[rowEnd:], uint64(r.EndUnixMS))
	le.PutUint32(b[shortLat:], uint32(r.LatencyUS))
	le.PutUint32(b[shortUp:], uint32(r.UpstreamUS))
	le.PutUint32(b[shortUnits:], uint32(r.Units))
	le.PutUint32(b[shortIn:], uint32(r.BytesIn))
	le.PutUint32(b[shortOut:], uint32(r.BytesOut))
	le.PutUint32(b[shortOn:], uint32(off))
	le.PutUint64(b[shortActor:], r.Actor)
	le.PutUint64(b[shortAddr:], r.Address)
	b = b[shortTexts:]
	b = b[copy(b, r.Customer):]
	b = b[copy(b, r.Subscription):]
	copy(b, r.KeyID)
}

// lengthOfShort is how long a short row's payload must be.
func lengthOfShort(p []byte) int { return shortTexts + int(p[5]) + int(p[6]) + int(p[7]) }

// reader makes whole rows of short ones. It belongs to whoever folds.
type reader struct {
	b    []byte
	seen [wholeRows]struct { // whole rows that were leant on, so that each is checked once
		g       *segment
		off     int
		payload []byte
		rest    int // where what is shared begins behind customer and subscription
	}
}

// whole is the payload of the row at off as a whole row's; of one that is whole, payload itself. It is valid until the next call.
func (x *reader) whole(g *segment, off int, payload []byte) ([]byte, error) {
	if payload[0] != kindShort {
		return payload, nil
	}
	le := binary.LittleEndian
	on := int(le.Uint32(payload[shortOn:]))
	if len(payload) != lengthOfShort(payload) || on < segmentHeader || on >= off || on%wordSize != 0 {
		return nil, errRow
	}
	w := &x.seen[on/wordSize%wholeRows]
	if w.g != g || w.off != on {
		p, _, what := g.read(on)
		if what != placeRecord || p[0] != kindRow {
			return nil, errRow
		}
		rest, ok := behindTexts(p, rowKey+keyTexts, len(p)-keyIDLen(p), 2)
		if !ok {
			return nil, errRow
		}
		w.g, w.off, w.payload, w.rest = g, on, p, rest
	}
	p := w.payload
	shared := p[w.rest : len(p)-keyIDLen(p)]
	customer, texts := payload[shortTexts:], [3]int{int(payload[5]), int(payload[6]), int(payload[7])}
	subscription := customer[texts[0]:]
	id := subscription[texts[1]:]

	b := append(x.b[:0], p[:rowKey+keyTexts]...)
	copy(b, payload[:6])
	b[0], b[5] = kindRow, 0
	le.PutUint16(b[6:], uint16(texts[2]))
	copy(b[rowID:rowLat], payload[rowID:rowLat])
	le.PutUint64(b[rowLat:], uint64(le.Uint32(payload[shortLat:])))
	le.PutUint64(b[rowSums:], 1)
	le.PutUint64(b[rowSums+8:], uint64(le.Uint32(payload[shortUnits:])))
	le.PutUint64(b[rowSums+16:], uint64(le.Uint32(payload[shortIn:])))
	le.PutUint64(b[rowSums+24:], uint64(le.Uint32(payload[shortOut:])))
	le.PutUint64(b[rowUpstream:], uint64(le.Uint32(payload[shortUp:])))
	copy(b[rowActor:rowKey], payload[shortActor:shortTexts])
	b = append(le.AppendUint16(b, uint16(texts[0])), customer[:texts[0]]...)
	b = append(le.AppendUint16(b, uint16(texts[1])), subscription[:texts[1]]...)
	b = append(append(b, shared...), id...)
	x.b = b
	return b, nil
}

// behindTexts passes over n texts of a cell's key.
func behindTexts(p []byte, at, end, n int) (int, bool) {
	for range n {
		if at+2 > end {
			return 0, false
		}
		at += 2 + int(binary.LittleEndian.Uint16(p[at:]))
	}
	return at, at <= end
}

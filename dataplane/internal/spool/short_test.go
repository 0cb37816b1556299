package spool

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"bailiwick/shared/usage"
)

// Each row that is read is the row that was appended, byte for byte as a whole one, whichever it leans on: rows that differ from each
// other in one or two fields, of so many values that they meet in a slot, numbers and texts on both sides of what a short row has room
// for, and folds, ends of segments and of cells in between.
func TestShort_RowsReadAsTheyWereAppended(t *testing.T) {
	now := time.UnixMilli(1_800_000_000_000)
	s, err := Open(Config{Dir: t.TempDir(), Edge: "e1", SegmentBytes: 64 << 10, Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	defer s.release()
	rnd := rand.New(rand.NewPCG(1, 2))
	text := func(usual string) string {
		if usual == "" || len(usual) > 16 { // twice the same field
			return usual
		}
		switch rnd.IntN(20) {
		case 0:
			return strings.Repeat("x", usage.MaxString-rnd.IntN(2))
		case 1:
			return ""
		case 2:
			return usual[1:] + usual[:1]
		case 3:
			return usual + string(rune('a'+rnd.IntN(26))) + string(rune('a'+rnd.IntN(26)))
		}
		return usual
	}
	number := func() int64 {
		return [...]int64{0, 1, 77, math.MaxUint32, math.MaxUint32 + 1, math.MaxInt64}[rnd.IntN(6)>>rnd.IntN(3)]
	}
	var want [][]byte
	whole, short := 0, 0
	var read reader
	at := s.rowsEnd
	check := func() {
		t.Helper()
		for _, g := range s.segs {
			off := segmentHeader
			if g.no < at.seg() {
				continue
			} else if g.no == at.seg() {
				off = at.off()
			}
			for {
				payload, next, what := g.read(off)
				if what != placeRecord {
					break
				}
				if isRow(payload) {
					if payload[0] == kindShort {
						short++
					} else {
						whole++
					}
					got, err := read.whole(g, off, payload)
					if err != nil || !bytes.Equal(got, want[0]) {
						t.Fatalf("row %d is read as %x, %v; want %x", whole+short, got, err, want[0])
					}
					want = want[1:]
				}
				off = next
				at = g.at(off)
			}
		}
		if len(want) != 0 {
			t.Fatalf("%d rows are not read", len(want))
		}
	}
	for range 20_000 {
		r := usage.Row{Customer: "acme", Subscription: "main", Plan: "gold", PlanRev: 3, Product: "core", API: "orders", Route: "get", Outcome: usage.OutcomeSuccess, ServedRegion: "eu-west", KeyID: "k1",
			Requests: 1, Units: number(), BytesIn: number(), BytesOut: number(), LatencyUS: number(), UpstreamUS: number(),
			Status: uint16(rnd.Uint32()), Attempts: uint8(rnd.Uint32()), Flags: usage.Flags(rnd.Uint32()), Actor: rnd.Uint64(), Address: rnd.Uint64()}
		for range rnd.IntN(3) {
			switch rnd.IntN(11) {
			case 0:
				r.PlanRev = uint64(rnd.IntN(300))
			case 1:
				r.Period = int64(rnd.IntN(300))
			case 2:
				r.Outcome = usage.Outcome(1 + rnd.IntN(5))
			case 3:
				now = now.Add(usage.CellSeconds * time.Second)
			default:
				t := [...]*string{&r.Customer, &r.Subscription, &r.Plan, &r.Product, &r.API, &r.Route, &r.ServedRegion, &r.KeyID}[rnd.IntN(8)]
				*t = text(*t)
			}
		}
		if r.Customer == "" {
			r.Customer = "zeta"
		}
		if rnd.IntN(20) == 0 {
			r.Requests = int64(rnd.IntN(3))
		}
		for i := range r.RequestID {
			r.RequestID[i] = byte(rnd.Uint32())
		}
		if err := s.Append(&r); err != nil {
			t.Fatalf("%+v: %v", r, err)
		}
		b := make([]byte, rowSize(&r))
		putRow(b, &r)
		want = append(want, b)
		for i := range s.wholes.rows {
			if off := s.wholes.at(i); off != 0 {
				if p, _, what := s.cur.read(off); what != placeRecord || p[0] != kindRow || off >= s.off {
					t.Fatalf("rows may lean on what lies at %d of segment %d, and no whole row is there", off, s.cur.no)
				}
			}
		}
		if rnd.IntN(300) == 0 {
			check()
			if err := s.foldNew(); err != nil {
				t.Fatal(err)
			}
		}
	}
	check()
	if whole < 1000 || short < 1000 || s.cur.no < 10 {
		t.Errorf("%d rows are whole and %d short, in %d segments: too few of one kind to say anything", whole, short, s.cur.no)
	}
}

// What a short row leans on may be anything in a log that somebody else wrote: it is an error, never another's row.
func TestShort_LeansOnARowBeforeItOrIsRefused(t *testing.T) {
	r := usage.Row{EndUnixMS: 1_800_000_000_000, Customer: "acme", Subscription: "main", Plan: "gold", API: "orders", Route: "get", Outcome: usage.OutcomeSuccess, ServedRegion: "eu-west", Requests: 1, KeyID: "k1"}
	g := &segment{no: 1, epoch: 1, data: make([]byte, 4<<10)}
	n := rowSize(&r)
	first := segmentHeader
	putRow(g.data[first+wordSize:first+wordSize+n], &r)
	g.commit(first, n)
	mark := first + recordSize(n)
	b := g.data[mark+wordSize : mark+wordSize+16]
	binary.LittleEndian.PutUint64(b, kindSync)
	g.commit(mark, 16)
	second := mark + recordSize(16)
	m := shortSize(&r)
	put := func(at, on int) []byte {
		p := g.data[at+wordSize : at+wordSize+m]
		putShort(p, &r, on)
		g.commit(at, m)
		return p
	}
	third := second + recordSize(m)
	put(second, first)
	var x reader
	if got, err := x.whole(g, third, put(third, first)); err != nil || len(got) != n {
		t.Fatalf("leaning on a whole row: %x, %v", got, err)
	}
	for name, on := range map[string]int{"itself": third, "what comes later": third + 64, "a mark": mark, "a short row": second, "the header": 0, "the middle of a row": first + 16, "no place": first + 3, "far away": math.MaxUint32} {
		if got, err := new(reader).whole(g, third, put(third, on)); !errors.Is(err, errRow) {
			t.Errorf("leaning on %s: %x, %v; want %v", name, got, err, errRow)
		}
	}
	p := put(third, first)
	p[6]++ // lengths that are not the row's
	if got, err := new(reader).whole(g, third, p); !errors.Is(err, errRow) {
		t.Errorf("of another length: %x, %v; want %v", got, err, errRow)
	}
	g.data[first+wordSize+rowKey+keyTexts] = 0xff // texts of what it leans on that go beyond it
	g.commit(first, n)
	if got, err := new(reader).whole(g, third, put(third, first)); !errors.Is(err, errRow) {
		t.Errorf("leaning on what is no row: %x, %v; want %v", got, err, errRow)
	}
}

package spool

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"bailiwick/shared/durable"
	"bailiwick/shared/usage"
)

// A segment that a process left behind, whatever the disk made of it: reading ends, goes on only behind what it has taken, and takes
// nothing whose checksum is not its own; what is folded of it is what it says, and what does not decode is an error.
func FuzzSegment(f *testing.F) {
	const size = 4 << 10
	row := usage.Row{EndUnixMS: 1_800_000_000_000, Customer: "acme", Subscription: "main", Plan: "gold", PlanRev: 7, Product: "core", API: "orders", Route: "all", Outcome: usage.OutcomeSuccess,
		ServedRegion: "eu-west", Requests: 1, Units: 2, BytesIn: 3, BytesOut: 4, LatencyUS: 5, KeyID: "k1"}
	good := make([]byte, rowSize(&row))
	putRow(good, &row)
	marks := binary.LittleEndian.AppendUint64([]byte{kindSync, 0, 0, 0, 0, 0, 0, 0}, uint64(1)<<32|200)
	old := make([]byte, oldKey+oldTexts+14)
	old[0] = kindOld
	f.Add(good, marks, uint16(0), byte(0), true)
	f.Add(good, good, uint16(3), byte(0x80), true)
	f.Add(old, good, uint16(300), byte(1), false)
	short := make([]byte, shortSize(&row))
	putShort(short, &row, segmentHeader)
	f.Add(good, short, uint16(0), byte(0), true)
	f.Add(short, good, uint16(0), byte(0), true)
	f.Add(good, short[:shortTexts], uint16(segmentHeader+wordSize+rowKey+keyTexts), byte(0x40), false)
	f.Add(good[:rowKey+keyTexts], []byte{kindRow, 0, 0, 0, 0, 0, 0xff, 0xff}, uint16(0), byte(0), true)
	f.Fuzz(func(t *testing.T, one, two []byte, at uint16, flip byte, sound bool) {
		if len(one)+len(two) > size/2 {
			return
		}
		g := &segment{no: 1, epoch: 1, data: make([]byte, size)}
		copy(g.data, g.header(size, "test"))
		off, places := segmentHeader, []int{}
		for _, p := range [][]byte{one, two} {
			if len(p) < 16 {
				continue
			}
			copy(g.data[off+wordSize:], p)
			if sound {
				g.commit(off, len(p))
			} else { // as it was thrown at it
				binary.LittleEndian.PutUint64(g.data[off:], binary.LittleEndian.Uint64(p))
			}
			places = append(places, off)
			off += wordSize + (len(p)+7)&^7
		}
		if flip != 0 {
			g.data[int(at)%len(g.data)] ^= flip
		}
		path := filepath.Join(t.TempDir(), segmentName(1, 1))
		if err := os.WriteFile(path, g.data[:len(g.data)-int(at)%100], 0o600); err != nil { // it may be cut short, too
			t.Fatal(err)
		}
		back, err := readSegment(path, 1, 1)
		if err != nil {
			if !errors.Is(err, durable.ErrCorrupt) && !errors.Is(err, durable.ErrNewer) {
				t.Fatal(err)
			}
			if flip == 0 {
				t.Fatalf("an untouched header is refused: %v", err)
			}
			return
		}
		sums, rows, whole := newSums(), int64(0), reader{}
		n := 0
		for off := segmentHeader; ; n++ {
			payload, next, what := back.read(off)
			if what != placeRecord {
				if next != off {
					t.Fatalf("at %d: nothing is there, and it goes on at %d", off, next)
				}
				break
			}
			if next < off+wordSize+len(payload) || next > len(back.data)+7 || recordWord(payload) != binary.LittleEndian.Uint64(back.data[off:]) {
				t.Fatalf("at %d: a record of %d bytes, and it goes on at %d", off, len(payload), next)
			}
			at := off
			off = next
			if !isRow(payload) {
				continue
			}
			if payload, err = whole.whole(back, at, payload); err != nil {
				if payload != nil {
					t.Fatalf("at %d: %x beside %v", at, payload, err)
				}
				continue
			}
			requests := int64(binary.LittleEndian.Uint64(payload[rowSums:]))
			c, err := sums.add(payload)
			if err != nil {
				if c != nil {
					t.Fatalf("%x: a cell beside %v", payload, err)
				}
				continue
			}
			rows += requests
			if payload[0] == kindRow {
				if again := encodeKey(c.Cell); len(again) != len(payload)-rowKey-keyIDLen(payload) || again[keyRev:] != string(payload[rowKey+keyRev:len(payload)-keyIDLen(payload)]) {
					t.Fatalf("%x: its cell is %+v, which is written as %x", payload, c.Cell, again)
				}
			}
		}
		var sum int64
		for _, c := range sums.payload().Cells {
			sum += c.Requests
		}
		if sum != rows {
			t.Fatalf("%d requests in rows, %d in cells", rows, sum)
		}
		if flip == 0 && sound && n > 0 && n > len(places) {
			t.Fatalf("%d records of %d", n, len(places))
		}
		h := &stop{}
		h.look(back, min(off, len(back.data)))
	})
}

// Records of a journal in any order and of any bytes: one is taken if it continues what is there, and then the state can be written
// and is read again as it is.
func FuzzJournal(f *testing.F) {
	var st state
	st.edge = "e1"
	begin := encodeState(&st)
	block := usage.NewBlock("e1", 5, 1, [32]byte{}, []byte("payload"))
	rec, _ := encodeBlock(&block)
	pack := func(recs ...[]byte) (all []byte) {
		for _, r := range recs {
			all = append(binary.BigEndian.AppendUint16(all, uint16(len(r))), r...)
		}
		return all
	}
	ack := append([]byte{recAck, 5, 1}, block.Hash[:]...)
	f.Add(pack(begin, encodeEpoch(5), rec, encodeCommit(1<<32|200, 9, false, 1), ack))
	f.Add(pack(begin, encodeEpoch(5), rec, rec, encodeCommit(1<<32|200, 9, true, 1)))
	f.Add(pack(begin, begin, encodeEpoch(0), []byte{recAck, 0x80}, []byte{9}, nil))
	f.Fuzz(func(t *testing.T, all []byte) {
		if len(all) > 64<<10 {
			return
		}
		r := replay{st: state{edge: "e1"}, file: 1}
		for off := int64(0); len(all) >= 2; off++ {
			n := min(int(binary.BigEndian.Uint16(all)), len(all)-2)
			rec := all[2 : 2+n]
			all = all[2+n:]
			before := len(r.st.blocks)
			if err := r.record("journal", off, rec); err != nil {
				if !errors.Is(err, durable.ErrCorrupt) {
					t.Fatalf("%x: %v", rec, err)
				}
				return // the start ends here
			}
			if r.st.edge != "e1" { // which Open refuses
				return
			}
			if len(r.st.blocks) > before && rec[0] != recCommit {
				t.Fatalf("%x: a block counts without a commit", rec)
			}
		}
		if r.records == 0 {
			return
		}
		again := replay{st: state{edge: "e1"}, file: 2}
		if err := again.record("journal", 0, encodeState(&r.st)); err != nil {
			t.Fatalf("a state that was read cannot be written: %v", err)
		}
		got, want := again.st, r.st
		if got.edge != want.edge || got.epoch != want.epoch || got.seq != want.seq || got.head != want.head || got.covered != want.covered || got.at != want.at || got.final != want.final || got.rows != want.rows || len(got.epochs) != len(want.epochs) {
			t.Fatalf("%+v is read again as %+v", want, got)
		}
		for i := range got.epochs {
			if got.epochs[i] != want.epochs[i] {
				t.Fatalf("epoch %+v is read again as %+v", want.epochs[i], got.epochs[i])
			}
		}
	})
}

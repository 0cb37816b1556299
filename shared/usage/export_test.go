package usage

import "errors"

// Version 2 of however few rows, so that tests need not make a thousand.

func EncodeDetail2(rows []Row) []byte { return new(writer2).piece2(BatchOf(rows), 0, len(rows)) }

func DecodeDetail2(b []byte) ([]Row, error) {
	if len(b) == 0 || b[0] != detailVersion2 {
		return nil, errors.New("no version 2")
	}
	return decode2(b, 0)
}

func EncodeDetail1(rows []Row) []byte { return encodeDetail1(rows) }

func Fill(x *BatchRow, r *Row) { x.fill(r) }

const DetailSwitch = detailSwitch

func (b *Batch) Encode2(from, to int) []byte {
	if b.enc == nil {
		b.enc = new(writer2)
	}
	return b.enc.piece2(b, from, to)
}

// Homes is how many slots the pseudonyms of a piece have, of which no two are alike.
func Homes(pseudonyms []uint64) int {
	var v values
	for _, x := range pseudonyms {
		v.add(x)
	}
	seen := map[uint64]bool{}
	for _, x := range pseudonyms {
		seen[v.home(x)] = true
	}
	return len(seen)
}

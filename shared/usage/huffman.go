package usage

import (
	"encoding/binary"
	"errors"
	"math/bits"
	"slices"
)

// Codes of the detail part's version 2: canonical Huffman codes in bits, the lowest first. An adaptive coder (see coder) fits a
// stream better where it is short; this one takes a tenth of its time, and beyond a thousand rows as many bytes.

const codeBits = 12 // the longest code: what a reader's table is looked up by

// alphabet counts symbols, and then has a code for each that was counted.
type alphabet struct {
	counts [256]uint32
	code   [256]uint16
	length [256]uint8
}

// plan makes codes of what was counted. It depends on nothing else: the same counts are the same codes. If one symbol was
// counted, its code is empty.
func (a *alphabet) plan(s *planner) {
	s.used = s.used[:0]
	for sym, n := range a.counts {
		a.length[sym], a.code[sym] = 0, 0
		if n > 0 {
			s.used = append(s.used, leaf{n, uint16(sym)})
		}
	}
	if len(s.used) < 2 {
		return
	}
	for shift := uint32(0); ; shift++ {
		if s.lengths(a, shift) <= codeBits {
			break
		}
	}
	a.assign()
}

// assign numbers the codes of each length in the order of their symbols.
func (a *alphabet) assign() {
	var next, count [codeBits + 2]uint16
	for _, n := range a.length {
		count[n]++
	}
	count[0] = 0
	for n := 1; n <= codeBits; n++ {
		next[n+1] = (next[n] + count[n]) << 1
	}
	for sym, n := range a.length {
		if n > 0 {
			a.code[sym] = bits.Reverse16(next[n]) >> (16 - n)
			next[n]++
		}
	}
}

type leaf struct {
	n   uint32
	sym uint16
}

// planner is what planning needs in between.
type planner struct {
	used   []leaf
	sorted []leaf
	weight [512]uint64
	parent [512]uint16
}

// lengths makes a tree of the counts, each halved shift times and rounded up, and returns its depth.
func (s *planner) lengths(a *alphabet, shift uint32) (depth uint8) {
	s.sorted = append(s.sorted[:0], s.used...)
	for i := range s.sorted {
		s.sorted[i].n = (s.sorted[i].n-1)>>shift + 1
	}
	slices.SortFunc(s.sorted, func(a, b leaf) int {
		if a.n != b.n {
			return int(int64(a.n) - int64(b.n))
		}
		return int(a.sym) - int(b.sym)
	})
	n := len(s.sorted)
	for i, l := range s.sorted {
		s.weight[i] = uint64(l.n)
	}
	// Leaves stand in order, and the nodes made of them come in order too: the two least are at the heads of the two.
	lone, made := 0, n
	for next := n; next < 2*n-1; next++ {
		sum := uint64(0)
		for range 2 {
			at := made
			if lone < n && (made >= next || s.weight[lone] <= s.weight[made]) {
				at = lone
				lone++
			} else {
				made++
			}
			sum += s.weight[at]
			s.parent[at] = uint16(next)
		}
		s.weight[next] = sum
	}
	var deep [512]uint8
	for i := 2*n - 3; i >= 0; i-- {
		deep[i] = deep[s.parent[i]] + 1
		if i < n {
			a.length[s.sorted[i].sym] = deep[i]
			depth = max(depth, deep[i])
		}
	}
	return depth
}

// bitWriter writes bits, the lowest first.
type bitWriter struct {
	b   []byte // what is written has its length; its room is used without looking: see room
	acc uint64
	n   uint // bits in acc, less than 8 between puts
}

// room makes sure that so many bytes can be put.
func (w *bitWriter) room(n int) { w.b = slices.Grow(w.b, n+16) }

// put writes the n lowest bits of v, at most 56, of which none is set above them. Ask for room before.
func (w *bitWriter) put(v uint64, n uint) {
	w.acc |= v << w.n
	w.n += n
	at := len(w.b)
	binary.LittleEndian.PutUint64(w.b[at:at+8], w.acc)
	w.b = w.b[:at+int(w.n>>3)]
	w.acc >>= w.n &^ 7
	w.n &= 7
}

// long is put for up to 64 bits.
func (w *bitWriter) long(v uint64, n uint) {
	if n > 56 {
		w.put(v&(1<<32-1), 32)
		v, n = v>>32, n-32
	}
	w.put(v, n)
}

func (w *bitWriter) flag(v bool) {
	if v {
		w.put(1, 1)
	} else {
		w.put(0, 1)
	}
}

// number writes any number in 6 bits and its own.
func (w *bitWriter) number(v uint64) {
	if v < 2 {
		w.put(v<<6, 7)
		return
	}
	n := uint(bits.Len64(v))
	w.put(uint64(n-1), 6)
	w.long(v&^(1<<(n-1)), n-1) // its highest bit is known
}

// finish fills up the last byte.
func (w *bitWriter) finish() []byte {
	if w.n > 0 {
		w.room(1)
		w.put(0, 8-w.n)
	}
	return w.b
}

// lengths writes which symbols an alphabet has, and how long the code of each is.
func (w *bitWriter) lengths(a *alphabet) {
	w.room(256 * 3)
	count := uint64(0)
	for _, n := range a.counts {
		if n > 0 {
			count++
		}
	}
	w.put(count, 9)
	before := -1
	for sym, n := range a.counts {
		if n == 0 {
			continue
		}
		gap := uint64(sym - before) // from 1: mostly 1
		size := uint(bits.Len64(gap))
		w.put(1<<(size-1), size) // so many zeros, and a one
		w.put(gap&^(1<<(size-1)), size-1)
		if count > 1 {
			w.put(uint64(a.length[sym]), 4)
		}
		before = sym
	}
}

var (
	errCut  = errors.New("it is cut short")
	errCode = errors.New("one of its codes does not decode")
)

// bitReader reads what bitWriter wrote. Beyond the end are zeros and an error.
type bitReader struct {
	b   []byte
	acc uint64
	n   uint // valid bits in acc
	err error
}

func (r *bitReader) fail(err error) {
	if r.err == nil {
		r.err = err
	}
}

func (r *bitReader) fill() {
	for r.n <= 56 {
		if len(r.b) == 0 {
			return
		}
		r.acc |= uint64(r.b[0]) << r.n
		r.b = r.b[1:]
		r.n += 8
	}
}

// get reads n bits, at most 56.
func (r *bitReader) get(n uint) uint64 {
	if r.n < n {
		r.fill()
		if r.n < n {
			r.fail(errCut)
			r.acc, r.n = 0, 0
			return 0
		}
	}
	v := r.acc & (1<<n - 1)
	r.acc >>= n
	r.n -= n
	return v
}

func (r *bitReader) long(n uint) uint64 {
	if n > 56 {
		low := r.get(32)
		return r.get(n-32)<<32 | low
	}
	return r.get(n)
}

func (r *bitReader) number() uint64 {
	n := uint(r.get(6)) + 1
	if n == 1 {
		return r.get(1)
	}
	return r.long(n-1) | 1<<(n-1)
}

// limit reads a number up to most.
func (r *bitReader) limit(most int) int {
	v := r.number()
	if v > uint64(most) {
		r.fail(errors.New("a number is too large"))
		return 0
	}
	return int(v)
}

// decoder finds the symbol of a code.
type decoder struct {
	table []uint16 // by the next codeBits: a symbol, and its code's length above it; nil where there is no choice
	only  int      // the one symbol there is; -1: there are more, -2: none
}

// open reads what lengths wrote.
func (d *decoder) open(r *bitReader) {
	count := int(r.get(9))
	var a alphabet
	sym := -1
	d.only = -2
	for range count {
		size := uint(0)
		for r.err == nil && r.get(1) == 0 {
			if size++; size > 8 {
				r.fail(errCode)
			}
		}
		gap := int(r.get(size) | 1<<size)
		if sym += gap; sym > 255 || r.err != nil {
			r.fail(errCode)
			return
		}
		d.only = sym
		if count > 1 {
			n := r.get(4)
			if n == 0 || n > codeBits {
				r.fail(errCode)
				return
			}
			a.length[sym] = uint8(n)
		}
	}
	if count < 2 {
		return
	}
	d.only = -1
	full := 0
	for _, n := range a.length {
		if n > 0 {
			full += 1 << (codeBits - n)
		}
	}
	if full != 1<<codeBits { // such lengths are no tree's
		r.fail(errCode)
		return
	}
	a.assign()
	d.table = make([]uint16, 1<<codeBits)
	for sym, n := range a.length {
		if n == 0 {
			continue
		}
		for at := int(a.code[sym]); at < 1<<codeBits; at += 1 << n {
			d.table[at] = uint16(n)<<8 | uint16(sym)
		}
	}
}

// read reads a symbol.
func (d *decoder) read(r *bitReader) int {
	if d.only >= 0 {
		return d.only
	}
	if d.only == -2 {
		r.fail(errCode)
		return 0
	}
	if r.n < codeBits {
		r.fill()
	}
	e := d.table[r.acc&(1<<codeBits-1)]
	n := uint(e >> 8)
	if n > r.n {
		r.fail(errCut)
		r.acc, r.n = 0, 0
		return 0
	}
	r.acc >>= n
	r.n -= n
	return int(e & 0xff)
}

// A number is a symbol and the bits that follow it: those below 16 are symbols, of all others their size and the two bits below
// the highest are. Of some no more than the highest keep bits are kept: see rounded.

func symbolOf(v uint64) uint8 {
	if v < 16 {
		return uint8(v)
	}
	n := bits.Len64(v)
	return uint8(16 + (n-5)<<2 + int(v>>(n-3)&3))
}

// putRest writes those of v.
func (w *bitWriter) putRest(v uint64, sym uint8, keep int) {
	if sym < 16 {
		return
	}
	n := int(sym-16)>>2 + 5
	low := max(n-keep, 0)
	rest := uint(n - 3 - low)
	w.long(v>>low&(1<<rest-1), rest)
}

// rest reads the number that begins with a symbol.
func (r *bitReader) rest(sym int, keep int) uint64 {
	if sym < 16 {
		return uint64(sym)
	}
	n := (sym-16)>>2 + 5
	low := max(n-keep, 0)
	rest := uint(n - 3 - low)
	v := uint64(4|(sym-16)&3)<<rest | r.long(rest)
	if low > 0 {
		v = v<<low | 1<<(low-1)
	}
	return v
}

func zigzag(v int64) uint64   { return uint64(v<<1) ^ uint64(v>>63) }
func unzigzag(u uint64) int64 { return int64(u>>1) ^ -int64(u&1) }

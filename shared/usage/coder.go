package usage

import (
	"bytes"
	"errors"
	"math/bits"
)

// coder writes and reads both parts of a block: an adaptive binary range coder
// (Martin, 1979; with the carry of LZMA's) in integers only, so that the same
// values are the same bytes on every machine and with every version of a
// library. flate and zstd promise that for none of theirs, and need three times
// the bytes for blocks as small as these.
//
// One function describes a format in both directions: each method takes the
// value to write and returns it, or, when reading, ignores it and returns what
// was read. Reading writes along what it reads, so that in the end it can say
// whether the stream was the one that writing makes: there is one spelling.
//
// On the wire the stream is preceded by its length, so that cut or lengthened
// bytes are known as such.
type coder struct {
	reading bool
	rng     uint32

	low   uint64 // 32 bits and a carry
	cache byte
	held  int // bytes that wait for a carry, cache included
	out   []byte

	in   []byte // reading: what is left of all
	all  []byte
	code uint32
	over int // zeros read beyond the end

	err error
}

func newWriter() *coder { return &coder{rng: 1<<32 - 1, held: 1} }

func newReader(b []byte) *coder {
	c := &coder{reading: true, rng: 1<<32 - 1, held: 1, in: b, all: b, out: make([]byte, 0, len(b)+8)}
	for range 4 {
		c.code = c.code<<8 | uint32(c.next())
	}
	return c
}

// prob is the estimate that a bit is 0: half of 65536, plus off. The first bits
// move it most: blocks are small, so learning must be fast.
type prob struct {
	off int16
	n   uint8
}

const (
	probHalf  = 1 << 15
	probEdge  = probHalf - 48 // what is certain costs a thousandth of a bit
	probSpeed = 40            // the slowest step is 1/40: a stream's end may differ from its beginning
)

// steps are 2^32/(2n+3), rounded up: with them learn divides by multiplying, and no numerator here is so large that the
// quotient could differ.
var steps = func() (s [256]uint64) { // as many as a uint8 has, so that no index is checked
	for n := range probSpeed + 1 {
		d := uint64(2*n + 3)
		s[n] = (1<<32 + d - 1) / d
	}
	return s
}()

func (p *prob) learn(bit int) {
	if bit == 0 {
		p.off += int16(uint64(probEdge-int32(p.off)) * 2 * steps[p.n] >> 32)
	} else {
		p.off -= int16(uint64(probEdge+int32(p.off)) * 2 * steps[p.n] >> 32)
	}
	if p.n < probSpeed {
		p.n++
	}
}

// tree codes the n lowest bits of v, the highest first, each with the estimate that belongs to those before it. Most of the time
// that a payload takes is spent here: it is bit in a loop, without going through memory for each.
func (c *coder) tree(t []prob, v uint64, n int) uint64 {
	node := uint64(1)
	if c.reading {
		for i := n - 1; i >= 0; i-- {
			node = node<<1 | uint64(c.bit(&t[node], int(v>>i&1)))
		}
		return node - 1<<n
	}
	rng, low := c.rng, c.low
	for i := n - 1; i >= 0; i-- {
		p := &t[node]
		off, step := int32(p.off), steps[p.n]
		bound := (rng >> 16) * uint32(probHalf+off)
		if v>>i&1 == 0 {
			rng = bound
			p.off += int16(uint64(probEdge-off) * 2 * step >> 32)
			node <<= 1
		} else {
			low += uint64(bound)
			rng -= bound
			p.off -= int16(uint64(probEdge+off) * 2 * step >> 32)
			node = node<<1 | 1
		}
		if p.n < probSpeed {
			p.n++
		}
		for rng < 1<<24 {
			rng <<= 8
			c.low = low
			c.shift()
			low = c.low
		}
	}
	c.rng, c.low = rng, low
	return node - 1<<n
}

// bit is split with an estimate that learns.
func (c *coder) bit(p *prob, bit int) int {
	bound := (c.rng >> 16) * uint32(probHalf+int32(p.off))
	if c.reading {
		bit = c.split(bound, bit)
		p.learn(bit)
		return bit
	}
	if bit == 0 {
		c.rng = bound
	} else {
		c.low += uint64(bound)
		c.rng -= bound
	}
	p.learn(bit)
	for c.rng < 1<<24 {
		c.rng <<= 8
		c.shift()
	}
	return bit
}

// split codes one bit, of which 0 has the lower part of the range.
func (c *coder) split(bound uint32, bit int) int {
	if c.reading {
		bit = 0
		if c.code >= bound {
			bit = 1
			c.code -= bound
		}
	}
	if bit == 0 {
		c.rng = bound
	} else {
		c.low += uint64(bound)
		c.rng -= bound
	}
	for c.rng < 1<<24 {
		c.rng <<= 8
		c.shift()
		if c.reading {
			c.code = c.code<<8 | uint32(c.next())
		}
	}
	return bit
}

// raw codes the lowest n bits of v, of which nothing is expected.
func (c *coder) raw(v uint64, n int) uint64 {
	if !c.reading {
		rng, low := c.rng, c.low
		for i := n - 1; i >= 0; i-- {
			half := rng >> 1
			one := -uint32(v >> i & 1) // a bit that nothing is expected of is none to branch on
			low += uint64(half & one)
			rng = half + rng&1&one
			if rng < 1<<24 {
				rng <<= 8
				c.low = low
				c.shift()
				low = c.low
			}
		}
		c.rng, c.low = rng, low
		return v & (1<<n - 1)
	}
	var got uint64
	for i := n - 1; i >= 0; i-- {
		got = got<<1 | uint64(c.split(c.rng>>1, int(v>>i&1)))
	}
	return got
}

func (c *coder) next() byte {
	if len(c.in) == 0 {
		if c.over++; c.over > 8 { // 4 that finish cut off, and 4 that reading is ahead
			c.fail("it is cut short")
		}
		return 0
	}
	b := c.in[0]
	c.in = c.in[1:]
	return b
}

func (c *coder) fail(what string) {
	if c.err == nil {
		c.err = errors.New(what)
	}
}

func (c *coder) shift() {
	if c.low < 0xff<<24 || c.low >= 1<<32 {
		carry := byte(c.low >> 32)
		for ; c.held > 0; c.held-- {
			c.out = append(c.out, c.cache+carry)
			c.cache = 0xff
		}
		c.cache = byte(c.low >> 24)
	}
	c.held++
	c.low = c.low & 0x00ffffff << 8
}

// finish returns the stream: the shortest that lies in the range, without the
// zeros that reading supplies.
func (c *coder) finish() []byte {
	for k := 32; k >= 0; k -= 8 {
		mask := uint64(1)<<k - 1
		if v := (c.low + mask) &^ mask; v < c.low+uint64(c.rng) {
			c.low = v
			break
		}
	}
	for range 5 {
		c.shift()
	}
	out := c.out[1:] // the first is the carry's place and always 0
	for range 4 {
		if n := len(out); n > 0 && out[n-1] == 0 {
			out = out[:n-1]
		}
	}
	return out
}

// end says, after reading, whether all was well.
func (c *coder) end() error {
	if c.err == nil && !bytes.Equal(c.finish(), c.all) {
		c.fail("it is another spelling of what it says")
	}
	return c.err
}

// number models the numbers of one column: their size in bits, and the bits
// below the highest, of which the first three are learned for each size.
type number struct {
	size [64]prob
	huge prob
	head [65][8]prob
}

const learned = 3

// num codes any 64 bits; small numbers cost little, likely ones less.
func (c *coder) num(m *number, v uint64) uint64 { return c.float(m, v, 64) }

// float codes the highest keep bits of v. When it reads, the rest is the middle
// of what they could be: see rounded.
func (c *coder) float(m *number, v uint64, keep int) uint64 {
	n := c.size(m, bits.Len64(v))
	if n <= 1 {
		return uint64(n)
	}
	low := max(n-keep, 0)
	k := min(learned, n-1-low)
	got := 1<<k | c.tree(m.head[n][:], v>>(n-1-k)&(1<<k-1), k)
	if rest := n - 1 - k - low; rest > 0 {
		got = got<<rest | c.raw(v>>low, rest)
	}
	if low > 0 {
		got = got<<low | 1<<(low-1)
	}
	return got
}

// rounded is what float leaves of v: its relative error is below 1/2^keep.
func rounded(v uint64, keep int) uint64 {
	low := bits.Len64(v) - keep
	if low <= 0 {
		return v
	}
	return v>>low<<low | 1<<(low-1)
}

func (c *coder) size(m *number, n int) int {
	if size := int(c.tree(m.size[:], uint64(min(n, 63)), 6)); size < 63 {
		return size
	}
	return 63 + c.bit(&m.huge, n-63)
}

// below codes a number that must be below limit; what is not reads as 0 and an error.
func (c *coder) below(m *number, v, limit uint64) uint64 {
	v = c.num(m, v)
	if v >= limit {
		c.fail("a number is too large")
		return 0
	}
	return v
}

// positive codes a number that must not be negative.
func (c *coder) positive(m *number, v int64) int64 {
	return int64(c.below(m, uint64(v), 1<<63))
}

func (c *coder) signed(m *number, v int64) int64 {
	u := c.num(m, uint64(v<<1)^uint64(v>>63))
	return int64(u>>1) ^ -int64(u&1)
}

func (c *coder) flag(p *prob, v bool) bool {
	bit := 0
	if v {
		bit = 1
	}
	return c.bit(p, bit) == 1
}

// byteModel models the bytes of texts, each after the one before it.
type byteModel struct {
	after [32][256]prob
}

func (c *coder) byte(m *byteModel, before, v byte) byte {
	return byte(c.tree(m.after[before&31][:], uint64(v), 8))
}

// dictionary codes texts that are in ascending order, each by what differs from
// the one before it. limit bounds all their bytes.
func (c *coder) dictionary(texts []string, limit int) []string {
	var count, shared, length number
	var letters byteModel
	n := int(c.below(&count, uint64(len(texts)), uint64(limit)+1))
	out := make([]string, 0, min(n, 1024))
	prev, total := "", 0
	var buf [MaxString]byte
	for i := range n {
		var text string
		if !c.reading {
			text = texts[i]
		}
		k := 0
		for k < len(text) && k < len(prev) && text[k] == prev[k] {
			k++
		}
		k = int(c.below(&shared, uint64(k), uint64(len(prev))+1))
		rest := int(c.below(&length, uint64(max(len(text)-k, 0)), uint64(MaxString-k)+1))
		copy(buf[:], prev[:k])
		before := byte(0)
		if k > 0 {
			before = prev[k-1]
		}
		for j := k; j < k+rest; j++ {
			var b byte
			if !c.reading {
				b = text[j]
			}
			before = c.byte(&letters, before, b)
			buf[j] = before
		}
		text = string(buf[:k+rest])
		if total += len(text) + 1; total > limit {
			c.fail("its dictionary is too long")
		}
		if i > 0 && text <= prev {
			c.fail("its dictionary is not in order")
		}
		if !textOK(text) && c.err == nil {
			c.err = errText
		}
		if c.err != nil {
			return nil
		}
		out = append(out, text)
		prev = text
	}
	return out
}

package usage

import (
	"encoding/binary"
	"errors"
	"math"
	"slices"
	"sort"
)

// Sketch counts latencies so that any quantile can be told within 1 %, and two
// sketches be added without loss: DDSketch (Masson, Rim, Lee: "DDSketch: a fast
// and fully-mergeable quantile sketch with relative-error guarantees", VLDB
// 2019), with two changes. The bounds of the buckets are integers, made by
// integer arithmetic, so that every machine puts a latency into the same bucket.
// And buckets do not collapse: they end at an hour, so there are never more than
// SketchBuckets, and what took longer counts as an hour.
//
// Adding commutes, so replicas that add the same sketches in any order agree bit
// for bit (a t-digest's result depends on the order). The zero value is empty.
// One goroutine at a time may change it.
type Sketch struct {
	from   int     // bucket of counts[0]
	counts []int64 // neither the first nor the last is 0
}

// sketchBounds[i] is the largest latency, in µs, of bucket i. Each is at most
// 2 % above the one before it (1.02 is below (1+α)/(1-α) for α = 1 %, the rest
// is for rounding), so what stands for a bucket is within 1 % of all in it.
var sketchBounds = func() []int64 {
	b := []int64{0}
	for last := int64(0); last < sketchMax; b = append(b, last) {
		last = min(max(last+1, last*51/50), sketchMax)
	}
	return b
}()

const sketchMax = 3600 * 1_000_000 // µs

// SketchBuckets is how many buckets there are; a test says that it is.
const SketchBuckets = 993

// Add counts n latencies of us microseconds. Negative ones count as 0.
func (s *Sketch) Add(us, n int64) {
	if n <= 0 {
		return
	}
	i := sort.Search(len(sketchBounds)-1, func(i int) bool { return us <= sketchBounds[i] })
	s.grow(i, i+1)
	s.counts[i-s.from] = add(s.counts[i-s.from], n)
}

// Merge adds o to s. It saturates as Sums.Add does.
func (s *Sketch) Merge(o *Sketch) {
	if o == nil || len(o.counts) == 0 {
		return
	}
	s.grow(o.from, o.from+len(o.counts))
	for i, n := range o.counts {
		at := &s.counts[o.from+i-s.from]
		*at = add(*at, n)
	}
}

// grow makes room for buckets from..to.
func (s *Sketch) grow(from, to int) {
	if len(s.counts) == 0 {
		s.from, s.counts = from, make([]int64, to-from, max(to-from, 16))
		return
	}
	if from < s.from {
		s.counts = slices.Insert(s.counts, 0, make([]int64, s.from-from)...)
		s.from = from
	}
	if n := to - s.from; n > len(s.counts) {
		s.counts = append(s.counts, make([]int64, n-len(s.counts))...)
	}
}

// Count is how many latencies were added.
func (s *Sketch) Count() (n int64) {
	for _, c := range s.counts {
		n = add(n, c)
	}
	return n
}

// Quantile is the latency, in µs and within 1 %, that permille thousandths of
// the latencies do not exceed: 500 is the median, 0 the least, 1000 the most.
// 0 if there are none.
func (s *Sketch) Quantile(permille int) int64 {
	n := s.Count()
	if n == 0 {
		return 0
	}
	permille = min(max(permille, 0), 1000)
	// rank = ⌊permille × (n-1) / 1000⌋, without overflow
	rank := (n-1)/1000*int64(permille) + (n-1)%1000*int64(permille)/1000
	for i, c := range s.counts {
		if rank -= c; rank < 0 {
			return bucketMiddle(s.from + i)
		}
	}
	return bucketMiddle(s.from + len(s.counts) - 1)
}

// bucketMiddle is what is at most 1 % off all latencies of a bucket: the
// harmonic mean of its bounds, at which the relative errors at both are equal.
func bucketMiddle(i int) int64 {
	hi := sketchBounds[i]
	if i == 0 || hi-sketchBounds[i-1] == 1 {
		return hi
	}
	lo := sketchBounds[i-1] + 1
	return lo + (2*lo*(hi-lo)/(lo+hi)+1)/2
}

// Equal says whether both count the same.
func (s *Sketch) Equal(o *Sketch) bool {
	return len(s.counts) == len(o.counts) && (len(s.counts) == 0 || s.from == o.from) && slices.Equal(s.counts, o.counts)
}

// Clone shares nothing with s.
func (s *Sketch) Clone() *Sketch { return &Sketch{s.from, slices.Clone(s.counts)} }

// AppendBinary writes the sketch behind b: the number of buckets that are not
// empty, then for each how far it is from the one before it and its count, as
// uvarints. Equal sketches are equal bytes.
func (s *Sketch) AppendBinary(b []byte) []byte {
	n := 0
	for _, c := range s.counts {
		if c != 0 {
			n++
		}
	}
	b = binary.AppendUvarint(b, uint64(n))
	prev := -1
	for i, c := range s.counts {
		if c != 0 {
			b = binary.AppendUvarint(b, uint64(s.from+i-prev-1))
			b = binary.AppendUvarint(b, uint64(c))
			prev = s.from + i
		}
	}
	return b
}

var errSketch = errors.New("usage: a latency sketch does not decode")

// DecodeSketch reads what AppendBinary wrote, all of b, and refuses all else.
func DecodeSketch(b []byte) (*Sketch, error) {
	r := reader{b: b}
	s := &Sketch{}
	next := 0
	for range r.count(2) {
		i := next + int(r.uvarint(uint64(len(sketchBounds))))
		c := r.uvarint(math.MaxInt64)
		if r.err != nil || i >= len(sketchBounds) || c == 0 {
			return nil, errSketch
		}
		s.grow(i, i+1)
		s.counts[i-s.from] = int64(c)
		next = i + 1
	}
	if r.err != nil || len(r.b) > 0 {
		return nil, errSketch
	}
	return s, nil
}

// code writes or reads the sketch inside a payload; empty ones do not exist there.
func (s *Sketch) code(c *coder, m *sketchModel) {
	s.from = int(c.below(&m.from, uint64(s.from), SketchBuckets))
	n := int(c.below(&m.length, uint64(len(s.counts)), uint64(SketchBuckets-s.from)+1))
	if c.reading {
		s.counts = make([]int64, n)
	}
	var one, two int64 // the counts before: neighbours are alike
	for i := range n {
		s.counts[i] = c.positive(&m.counts[min(one, 3)][min(two, 3)], s.counts[i])
		if c.err != nil {
			return
		}
		one, two = s.counts[i], one
	}
	if n == 0 || s.counts[0] == 0 || s.counts[n-1] == 0 {
		c.fail("a latency sketch is empty at its ends")
	}
}

type sketchModel struct {
	from, length number
	counts       [4][4]number
}

// LatencyKey is what latencies are summed by: final rows that an upstream answered.
type LatencyKey struct {
	Minute                   int64 // unix seconds, a multiple of 60
	API, Route, ServedRegion string
}

// Latency says where the row's latency is summed; ok is false for interim rows
// and for those of which no upstream's whole answer was seen: how long a refusal
// or an aborted download took says nothing of a route.
func (r *Row) Latency() (k LatencyKey, ok bool) {
	switch r.Outcome {
	case OutcomeSuccess, OutcomeClientError, OutcomeUpstreamError:
	default:
		return k, false
	}
	if r.Requests != 1 || r.ServedRegion == "" {
		return k, false
	}
	return LatencyKey{LatencyMinute(r.EndUnixMS), r.API, r.Route, r.ServedRegion}, true
}

// LatencyMinute is the start of the minute in which an instant lies.
func LatencyMinute(unixMS int64) int64 {
	q := unixMS / 60_000
	if unixMS%60_000 < 0 {
		q--
	}
	return q * 60
}

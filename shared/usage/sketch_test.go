package usage_test

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"bailiwick/shared/usage"
)

// within says whether got is within 1 % of want, in integers.
func within(got, want int64) bool { d := got - want; return d <= want/100+1 && 100*max(d, -d) <= want }

func TestSketch_EveryLatencyIsWithinOnePercent(t *testing.T) {
	check := func(us int64) {
		var s usage.Sketch
		s.Add(us, 1)
		if got := s.Quantile(500); !within(got, us) && got != us {
			t.Fatalf("%d µs reads as %d", us, got)
		}
	}
	for us := range int64(200_000) {
		check(us)
	}
	for us := int64(200_000); us < 3_600_000_000; us += us / 997 {
		check(us)
	}
	var s usage.Sketch
	s.Add(math.MaxInt64, 1)
	s.Add(-5, 1)
	if lo, hi := s.Quantile(0), s.Quantile(1000); lo != 0 || !within(hi, 3_600_000_000) {
		t.Errorf("out of range reads as %d and %d, want 0 and an hour", lo, hi)
	}
}

func TestSketch_IsBounded(t *testing.T) {
	var s usage.Sketch
	for us := int64(0); us < 1<<40; us += 1 + us/200 {
		s.Add(us, 1)
	}
	n, _ := binary.Uvarint(s.AppendBinary(nil))
	if n != usage.SketchBuckets {
		t.Errorf("all latencies fill %d buckets, want %d", n, usage.SketchBuckets)
	}
}

func TestSketch_QuantilesOfMergedParts(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var all []int64
	var parts [5]usage.Sketch
	for i := range 50_000 {
		us := int64(math.Exp(r.NormFloat64()*1.5+9)) + 1
		all = append(all, us)
		parts[i%5].Add(us, 1)
	}
	var s usage.Sketch
	for i := range parts {
		s.Merge(&parts[i])
	}
	slices.Sort(all)
	for _, q := range []int{0, 1, 250, 500, 900, 990, 999, 1000} {
		want := all[(len(all)-1)*q/1000]
		if got := s.Quantile(q); !within(got, want) {
			t.Errorf("quantile %d = %d, want %d within 1 %%", q, got, want)
		}
	}
	if s.Count() != 50_000 {
		t.Errorf("count = %d, want 50000", s.Count())
	}
}

func TestSketch_MergeCommutes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b, c := genSketch(t), genSketch(t), genSketch(t)
		x, y := a.Clone(), c.Clone()
		x.Merge(b)
		x.Merge(c)
		y.Merge(a)
		y.Merge(b)
		if !x.Equal(y) || string(x.AppendBinary(nil)) != string(y.AppendBinary(nil)) {
			t.Fatalf("a+b+c and c+a+b differ")
		}
		got, err := usage.DecodeSketch(x.AppendBinary(nil))
		if err != nil || !got.Equal(x) {
			t.Fatalf("decode: %v", err)
		}
	})
}

func FuzzDecodeSketch(f *testing.F) {
	var s usage.Sketch
	f.Add(s.AppendBinary(nil))
	s.Add(5, 3)
	s.Add(1<<40, 1)
	f.Add(s.AppendBinary(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := usage.DecodeSketch(b)
		if err != nil {
			return
		}
		if again := s.AppendBinary(nil); string(again) != string(b) {
			t.Fatalf("two spellings: %x and %x", b, again)
		}
		s.Quantile(999)
	})
}

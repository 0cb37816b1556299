package usage_test

import (
	"bytes"
	"encoding/hex"
	"maps"
	"math"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"bailiwick/shared/usage"
)

func genCells(t *rapid.T) map[usage.Cell]usage.Sums {
	text := rapid.SampledFrom([]string{"", "a", "b", "gold", "eu-west", "Zürich", strings.Repeat("x", usage.MaxString)})
	num := rapid.OneOf(rapid.Int64Range(0, 300), rapid.Int64Range(0, math.MaxInt64))
	out := map[usage.Cell]usage.Sums{}
	for range rapid.IntRange(0, 40).Draw(t, "n") {
		c := usage.Cell{
			Start:    usage.CellSeconds * rapid.OneOf(rapid.Int64Range(-3, 3), rapid.Int64Range(-math.MaxInt64/900, math.MaxInt64/900)).Draw(t, "start"),
			Customer: rapid.SampledFrom([]string{"acme", "zeta", "ümlaut"}).Draw(t, "customer"), Subscription: text.Draw(t, "sub"), Plan: text.Draw(t, "plan"),
			PlanRev: rapid.Uint64().Draw(t, "rev"), Product: text.Draw(t, "product"), API: text.Draw(t, "api"), Route: text.Draw(t, "route"),
			Outcome: usage.Outcome(rapid.IntRange(1, 7).Draw(t, "outcome")), ServedRegion: text.Draw(t, "served"),
			Period: rapid.SampledFrom([]int64{0, usage.PeriodRolling, usage.PeriodPrepaid, 1761955200, math.MaxInt64}).Draw(t, "period"),
		}
		out[c] = usage.Sums{Requests: num.Draw(t, "r"), Units: num.Draw(t, "u"), BytesIn: num.Draw(t, "in"), BytesOut: num.Draw(t, "out")}
	}
	return out
}

func genPayload(t *rapid.T) usage.Payload {
	p := usage.Payload{Cells: genCells(t)}
	text := rapid.SampledFrom([]string{"", "a", "eu-west", "Zürich"})
	for range rapid.IntRange(0, 6).Draw(t, "latencies") {
		k := usage.LatencyKey{Minute: 60 * rapid.OneOf(rapid.Int64Range(-3, 3), rapid.Int64Range(-math.MaxInt64/60, math.MaxInt64/60)).Draw(t, "minute"),
			API: text.Draw(t, "api"), Route: text.Draw(t, "route"), ServedRegion: text.Draw(t, "served")}
		if p.Latency == nil {
			p.Latency = map[usage.LatencyKey]*usage.Sketch{}
		}
		p.Latency[k] = genSketch(t)
	}
	return p
}

func genSketch(t *rapid.T) *usage.Sketch {
	s := &usage.Sketch{}
	for range rapid.IntRange(1, 20).Draw(t, "adds") {
		s.Add(rapid.OneOf(rapid.Int64Range(-1, 200), rapid.Int64Range(0, 1<<33)).Draw(t, "us"), rapid.OneOf(rapid.Int64Range(1, 3), rapid.Int64Range(1, math.MaxInt64)).Draw(t, "n"))
	}
	return s
}

func same(a, b usage.Payload) bool {
	return maps.Equal(a.Cells, b.Cells) && maps.EqualFunc(a.Latency, b.Latency, func(x, y *usage.Sketch) bool { return x.Equal(y) })
}

func TestPayload_DecodesToWhatWasEncoded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := genPayload(t)
		b := usage.Encode(want)
		got, err := usage.Decode(b)
		if err != nil || !same(got, want) {
			t.Fatalf("decode = %v, %v; want %v", got, err, want)
		}
		if again := usage.Encode(usage.Payload{Cells: maps.Clone(got.Cells), Latency: maps.Clone(got.Latency)}); !bytes.Equal(again, b) {
			t.Fatalf("encoding again gives other bytes:\n got %x\nwant %x", again, b)
		}
	})
}

// The bytes are a contract with spools and ledgers in the field: this changes only with the version.
func TestPayload_BytesAreStable(t *testing.T) {
	c := usage.Cell{Start: 1800, Customer: "c", Subscription: "s", Plan: "p", PlanRev: 300, Product: "q", API: "a", Route: "r",
		Outcome: usage.OutcomeLimited, ServedRegion: "", Period: 1761955200}
	l := &usage.Sketch{}
	l.Add(1234, 2)
	l.Add(1300, 1)
	b := usage.Encode(usage.Payload{Cells: map[usage.Cell]usage.Sums{c: {Requests: 1, Units: 2, BytesIn: 128, BytesOut: 0}},
		Latency: map[usage.LatencyKey]*usage.Sketch{{Minute: 1860, API: "a", Route: "r", ServedRegion: "eu"}: l}})
	if got := hex.EncodeToString(b); got != goldenPayload {
		t.Errorf("payload = %s, want %s", got, goldenPayload)
	}
}

const goldenPayload = "02300fff80f3ee42283b005aaa5b43c95d5b076d2510b4bdc0e32862fbaa1bdf8015a21b7852561d82f317ff0e0ca0550023"

// Version 1 is what spools and ledgers' logs from before 2026-11-25 hold.
func TestDecode_ReadsVersion1(t *testing.T) {
	b, _ := hex.DecodeString("01" + "07" + "00" + "0161" + "0163" + "0170" + "0171" + "0172" + "0173" + "01" + "04" + "02060304010500" + "ac02" + "05" + "01" + "02" + "8001" + "00")
	c := usage.Cell{Start: 1800, Customer: "c", Subscription: "s", Plan: "p", PlanRev: 300, Product: "q", API: "a", Route: "r", Outcome: usage.OutcomeLimited}
	want := usage.Payload{Cells: map[usage.Cell]usage.Sums{c: {Requests: 1, Units: 2, BytesIn: 128}}}
	got, err := usage.Decode(b)
	if err != nil || !same(got, want) {
		t.Fatalf("decode = %v, %v; want %v", got, err, want)
	}
	for n := range b {
		if _, err := usage.Decode(b[:n]); err == nil {
			t.Errorf("the first %d of %d bytes decode", n, len(b))
		}
	}
	if again := usage.Encode(got); again[0] != 2 {
		t.Errorf("version %d is written, want 2", again[0])
	}
}

// A short input that declares much must cost neither memory nor time.
func TestDecode_HostileCountsAreCheap(t *testing.T) {
	for _, fill := range []byte{0x00, 0xff, 0xaa} {
		b := append([]byte{2, 64}, bytes.Repeat([]byte{fill}, 64)...)
		r := testing.Benchmark(func(t *testing.B) {
			t.ReportAllocs()
			for t.Loop() {
				usage.Decode(b)
			}
		})
		if r.AllocedBytesPerOp() > 32<<20 || r.NsPerOp() > 100e6 {
			t.Errorf("64 bytes of %x cost %d bytes and %d ns", fill, r.AllocedBytesPerOp(), r.NsPerOp())
		}
	}
}

func TestPayloads_SplitKeepsEveryCellOnce(t *testing.T) {
	want := usage.Payload{Cells: map[usage.Cell]usage.Sums{}, Latency: map[usage.LatencyKey]*usage.Sketch{}}
	for i := range 20_000 { // texts of their own, so that bytes bound it and not the count
		c := cell(900, strings.Repeat("y", 100)+string(rune('a'+i%26))+hex.EncodeToString([]byte{byte(i >> 16), byte(i >> 8), byte(i)}))
		c.Route = c.Customer[3:] + "r"
		want.Cells[c] = usage.Sums{Requests: int64(i), Units: 1}
	}
	for i := range usage.MaxLatency + 1 {
		s := &usage.Sketch{}
		s.Add(int64(i), 1)
		want.Latency[usage.LatencyKey{Minute: int64(i) * 60, API: "a"}] = s
	}
	got, parts := usage.Payload{Cells: map[usage.Cell]usage.Sums{}, Latency: map[usage.LatencyKey]*usage.Sketch{}}, 0
	for b := range usage.Payloads(want) {
		parts++
		p, err := usage.Decode(b)
		if err != nil {
			t.Fatalf("part %d: %v", parts, err)
		}
		for c, s := range p.Cells {
			if _, twice := got.Cells[c]; twice {
				t.Fatalf("part %d repeats a cell", parts)
			}
			got.Cells[c] = s
		}
		for k, s := range p.Latency {
			if _, twice := got.Latency[k]; twice {
				t.Fatalf("part %d repeats a latency", parts)
			}
			got.Latency[k] = s
		}
	}
	if parts < 2 || !same(got, want) {
		t.Errorf("%d parts with %d cells, want several with %d", parts, len(got.Cells), len(want.Cells))
	}
	for range usage.Payloads(usage.Payload{}) {
		t.Error("no cells yield a payload")
	}
}

func FuzzDecodePayload(f *testing.F) {
	f.Add(usage.EncodePayload(sample()))
	f.Add(usage.EncodePayload(nil))
	f.Add([]byte{1, 0, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := usage.Decode(b)
		if err != nil {
			return
		}
		if len(p.Cells) > usage.MaxCells || len(p.Latency) > usage.MaxLatency {
			t.Fatalf("%d cells and %d latencies decode", len(p.Cells), len(p.Latency))
		}
		again := usage.Encode(p)
		if b[0] != 1 && !bytes.Equal(again, b) {
			t.Fatalf("two payloads spell one:\n%x\n%x", b, again)
		}
		if p2, err := usage.Decode(again); err != nil || !same(p, p2) {
			t.Fatalf("what was decoded does not encode: %v", err)
		}
	})
}

package usage_test

import (
	"bytes"
	"encoding/hex"
	"maps"
	"math"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"bailiwick/shared/usage"
)

func cell(start int64, customer string) usage.Cell {
	return usage.Cell{Start: start, Customer: customer, Subscription: "main", Plan: "gold", PlanRev: 7, Product: "core",
		API: "orders", Route: "get", Outcome: usage.OutcomeSuccess, ServedRegion: "eu-west"}
}

func sample() map[usage.Cell]usage.Sums {
	late := cell(1800, "acme")
	late.ServedRegion = "eu-central"
	return map[usage.Cell]usage.Sums{
		cell(900, "acme"): {Requests: 3, Units: 3, BytesIn: 10, BytesOut: 4000},
		cell(900, "zeta"): {Requests: 1, Units: 1},
		late:              {BytesOut: math.MaxInt64},
	}
}

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
		}
		out[c] = usage.Sums{Requests: num.Draw(t, "r"), Units: num.Draw(t, "u"), BytesIn: num.Draw(t, "in"), BytesOut: num.Draw(t, "out")}
	}
	return out
}

func TestPayload_DecodesToWhatWasEncoded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := genCells(t)
		b := usage.EncodePayload(want)
		got, err := usage.DecodePayload(b)
		if err != nil || !maps.Equal(got, want) {
			t.Fatalf("decode = %v, %v; want %v", got, err, want)
		}
		if again := usage.EncodePayload(maps.Clone(got)); !bytes.Equal(again, b) {
			t.Fatalf("encoding again gives other bytes:\n got %x\nwant %x", again, b)
		}
	})
}

// The bytes are a contract with spools and ledgers in the field; this test changes only with payloadVersion.
func TestPayload_BytesAreStable(t *testing.T) {
	c := usage.Cell{Start: 1800, Customer: "c", Subscription: "s", Plan: "p", PlanRev: 300, Product: "q", API: "a", Route: "r",
		Outcome: usage.OutcomeLimited, ServedRegion: ""}
	got := hex.EncodeToString(usage.EncodePayload(map[usage.Cell]usage.Sums{c: {Requests: 1, Units: 2, BytesIn: 128, BytesOut: 0}}))
	want := "01" + "07" + "00" + "0161" + "0163" + "0170" + "0171" + "0172" + "0173" + "01" + "04" + "02060304010500" + "ac02" + "05" + "01" + "02" + "8001" + "00"
	if got != want {
		t.Errorf("payload = %s, want %s", got, want)
	}
	h := usage.HashBlock("edge-1", 5, 1, [32]byte{}, []byte("x"))
	if got, want := hex.EncodeToString(h[:]), goldenHash; got != want {
		t.Errorf("hash = %s, want %s", got, want)
	}
}

const goldenHash = "15207ba87482700b61f5dfaf4253a864659e64c534c2f0c8f7efe234ffd736de"

func TestDecodePayload_RefusesEveryPrefixAndTail(t *testing.T) {
	b := usage.EncodePayload(sample())
	for n := range b {
		if _, err := usage.DecodePayload(b[:n]); err == nil {
			t.Errorf("the first %d of %d bytes decode", n, len(b))
		}
	}
	if _, err := usage.DecodePayload(append(slices.Clone(b), 0)); err == nil {
		t.Error("a byte too many decodes")
	}
}

func TestDecodePayload_RefusesBadCells(t *testing.T) {
	bad := map[string]func(*usage.Cell, *usage.Sums){
		"blank customer":    func(c *usage.Cell, _ *usage.Sums) { c.Customer = "" },
		"zero byte":         func(c *usage.Cell, _ *usage.Sums) { c.Route = "a\x00b" },
		"zero after umlaut": func(c *usage.Cell, _ *usage.Sums) { c.Route = "ü\x00" },
		"not UTF-8":         func(c *usage.Cell, _ *usage.Sums) { c.Plan = "\xff" },
		"long text":         func(c *usage.Cell, _ *usage.Sums) { c.API = strings.Repeat("x", usage.MaxString+1) },
		"outcome 0":         func(c *usage.Cell, _ *usage.Sums) { c.Outcome = 0 },
		"outcome 8":         func(c *usage.Cell, _ *usage.Sums) { c.Outcome = 8 },
		"negative requests": func(_ *usage.Cell, s *usage.Sums) { s.Requests = -1 },
		"negative units":    func(_ *usage.Cell, s *usage.Sums) { s.Units = math.MinInt64 },
		"negative bytes":    func(_ *usage.Cell, s *usage.Sums) { s.BytesOut = -5 },
	}
	for name, spoil := range bad {
		c, s := cell(900, "acme"), usage.Sums{Requests: 1}
		spoil(&c, &s)
		if _, err := usage.DecodePayload(usage.EncodePayload(map[usage.Cell]usage.Sums{c: s})); err == nil {
			t.Errorf("%s: decodes", name)
		}
		r := usage.Row{Customer: c.Customer, Plan: c.Plan, API: c.API, Route: c.Route, Outcome: c.Outcome, Requests: s.Requests, Units: s.Units, BytesOut: s.BytesOut}
		if err := r.Check(); err == nil {
			t.Errorf("%s: Row.Check accepts what DecodePayload refuses", name)
		}
	}
}

func TestDecodePayload_RefusesTooMuch(t *testing.T) {
	many := map[usage.Cell]usage.Sums{}
	for i := range usage.MaxCells + 1 {
		many[cell(int64(i)*900, "acme")] = usage.Sums{Requests: 1}
	}
	if _, err := usage.DecodePayload(usage.EncodePayload(many)); err == nil {
		t.Errorf("%d cells decode", len(many))
	}
	if _, err := usage.DecodePayload(make([]byte, usage.MaxPayload+1)); err == nil {
		t.Error("more than MaxPayload bytes decode")
	}
	// A short input that declares much must not cost memory.
	hostile := []byte{1, 0xff, 0xff, 0xff, 0xff, 0x0f}
	if n := testing.AllocsPerRun(10, func() { usage.DecodePayload(hostile) }); n > 10 {
		t.Errorf("a hostile count costs %v allocations, want few", n)
	}
}

func TestPayloads_SplitKeepsEveryCellOnce(t *testing.T) {
	want := map[usage.Cell]usage.Sums{}
	for i := range 20_000 { // texts of their own, so that bytes bound it and not the count
		c := cell(900, strings.Repeat("y", 200)+string(rune('a'+i%26))+hex.EncodeToString([]byte{byte(i >> 16), byte(i >> 8), byte(i)}))
		c.Route = c.Customer[3:] + "r"
		want[c] = usage.Sums{Requests: int64(i), Units: 1}
	}
	got, parts := map[usage.Cell]usage.Sums{}, 0
	for b := range usage.Payloads(want) {
		parts++
		cells, err := usage.DecodePayload(b)
		if err != nil {
			t.Fatalf("part %d: %v", parts, err)
		}
		for c, s := range cells {
			if _, twice := got[c]; twice {
				t.Fatalf("part %d repeats a cell", parts)
			}
			got[c] = s
		}
	}
	if parts < 2 || !maps.Equal(got, want) {
		t.Errorf("%d parts with %d cells, want several with %d", parts, len(got), len(want))
	}
	for range usage.Payloads(nil) {
		t.Error("no cells yield a payload")
	}
}

func TestHashBlock_DependsOnEveryPart(t *testing.T) {
	base := usage.NewBlock("edge-1", 3, 2, [32]byte{9}, []byte("payload"))
	if !base.Intact() {
		t.Fatal("a new block is not intact")
	}
	for name, spoil := range map[string]func(*usage.Block){
		"edge": func(b *usage.Block) { b.Edge = "edge-2" }, "epoch": func(b *usage.Block) { b.Epoch++ }, "seq": func(b *usage.Block) { b.Seq++ },
		"prev": func(b *usage.Block) { b.Prev[31]++ }, "payload": func(b *usage.Block) { b.Payload = []byte("payloae") }, "hash": func(b *usage.Block) { b.Hash[0]++ },
		"shift": func(b *usage.Block) { b.Edge, b.Payload = "edge-", []byte("1payload") },
	} {
		b := base
		if spoil(&b); b.Intact() {
			t.Errorf("%s changed, and the block is still intact", name)
		}
	}
}

func TestRow_CellAndCheck(t *testing.T) {
	for ms, want := range map[int64]int64{0: 0, 899_999: 0, 900_000: 900, 1_800_001: 1800, -1: -900, -999: -900, -900_000: -900, -900_001: -1800, -1_800_000: -1800} {
		if got := usage.CellStart(ms); got != want {
			t.Errorf("CellStart(%d) = %d, want %d", ms, got, want)
		}
	}
	r := usage.Row{EndUnixMS: 901_500, Customer: "acme", Subscription: "main", Plan: "gold", PlanRev: 7, Product: "core", API: "orders", Route: "get",
		Outcome: usage.OutcomeSuccess, ServedRegion: "eu-west", Requests: 1, Units: 2, BytesIn: 3, BytesOut: 4, LatencyUS: 5}
	if got, want := r.Cell(), cell(900, "acme"); got != want {
		t.Errorf("cell = %v, want %v", got, want)
	}
	if err := r.Check(); err != nil {
		t.Errorf("a good row: %v", err)
	}
	if n := testing.AllocsPerRun(100, func() { _ = r.Check() }); n != 0 {
		t.Errorf("Check allocates %v times, want 0", n)
	}
	r.LatencyUS = -1
	if r.Check() == nil {
		t.Error("a negative latency passes")
	}
}

func TestSums_AddSaturates(t *testing.T) {
	got := usage.Sums{Requests: math.MaxInt64, Units: 1}.Add(usage.Sums{Requests: 1, Units: 2})
	if want := (usage.Sums{Requests: math.MaxInt64, Units: 3}); got != want {
		t.Errorf("sum = %v, want %v", got, want)
	}
}

func TestOutcome_TextRoundTrips(t *testing.T) {
	for o := usage.OutcomeSuccess; o <= usage.OutcomeUnserved; o++ {
		if got, err := usage.ParseOutcome(o.String()); err != nil || got != o {
			t.Errorf("ParseOutcome(%q) = %v, %v; want %d", o, got, err, o)
		}
	}
	for _, s := range []string{"", "outcome(0)", "Success"} {
		if _, err := usage.ParseOutcome(s); err == nil {
			t.Errorf("ParseOutcome(%q) succeeds", s)
		}
	}
	for status, want := range map[int]usage.Outcome{200: usage.OutcomeSuccess, 304: usage.OutcomeSuccess, 404: usage.OutcomeClientError, 503: usage.OutcomeUpstreamError} {
		if got := usage.OutcomeOf(status); got != want {
			t.Errorf("OutcomeOf(%d) = %v, want %v", status, got, want)
		}
	}
}

func FuzzDecodePayload(f *testing.F) {
	f.Add(usage.EncodePayload(sample()))
	f.Add(usage.EncodePayload(nil))
	f.Add([]byte{1, 0, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		cells, err := usage.DecodePayload(b)
		if err != nil {
			return
		}
		if len(cells) > usage.MaxCells {
			t.Fatalf("%d cells decode, want at most %d", len(cells), usage.MaxCells)
		}
		if again := usage.EncodePayload(cells); !bytes.Equal(again, b) {
			t.Fatalf("two payloads spell one map:\n%x\n%x", b, again)
		}
	})
}

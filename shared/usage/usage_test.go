package usage_test

import (
	"encoding/hex"
	"math"
	"slices"
	"strings"
	"testing"

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

func TestHashBlock_IsStable(t *testing.T) {
	h := usage.HashBlock("edge-1", 5, 1, [32]byte{}, []byte("x"))
	if got, want := hex.EncodeToString(h[:]), "15207ba87482700b61f5dfaf4253a864659e64c534c2f0c8f7efe234ffd736de"; got != want {
		t.Errorf("hash = %s, want %s", got, want)
	}
}

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
		"negative in":       func(_ *usage.Cell, s *usage.Sums) { s.BytesIn = math.MinInt64 },
		"negative period":   func(c *usage.Cell, _ *usage.Sums) { c.Period = -1 },
	}
	for name, spoil := range bad {
		c, s := cell(900, "acme"), usage.Sums{Requests: 1}
		spoil(&c, &s)
		if _, err := usage.DecodePayload(usage.EncodePayload(map[usage.Cell]usage.Sums{c: s})); err == nil {
			t.Errorf("%s: decodes", name)
		}
		r := usage.Row{Customer: c.Customer, Plan: c.Plan, API: c.API, Route: c.Route, Outcome: c.Outcome, Requests: s.Requests, Units: s.Units, BytesIn: s.BytesIn, BytesOut: s.BytesOut, Period: c.Period}
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
	hostile := []byte{1, 0xff, 0xff, 0xff, 0xff, 0x0f} // version 1; version 2 in TestDecode_HostileCountsAreCheap
	if n := testing.AllocsPerRun(10, func() { usage.DecodePayload(hostile) }); n > 10 {
		t.Errorf("a hostile count costs %v allocations, want few", n)
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

// Texts are looked at eight bytes at a time: what is wrong is found wherever it stands.
func TestRow_CheckFindsABadByteAnywhere(t *testing.T) {
	for n := range 27 {
		for at := range n {
			for _, c := range []struct {
				put  string
				want bool
			}{{"\x00", false}, {"\x01", true}, {"\x7f", true}, {"\x80", false}, {"\xff", false}, {"ü", true}, {"ü\x00", false}} {
				r := usage.Row{Customer: "acme", Outcome: usage.OutcomeSuccess, KeyID: strings.Repeat("x", at) + c.put + strings.Repeat("y", n-at-1)}
				if err := r.Check(); (err == nil) != c.want {
					t.Errorf("%q: %v, want good %v", r.KeyID, err, c.want)
				}
			}
		}
	}
}

package usage_test

import (
	"bytes"
	"encoding/hex"
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"bailiwick/shared/usage"
)

func genRow(t *rapid.T) usage.Row {
	text := rapid.SampledFrom([]string{"", "a", "b", "eu-west", "Zürich"})
	num := rapid.OneOf(rapid.Int64Range(0, 300), rapid.Int64Range(0, math.MaxInt64))
	r := usage.Row{EndUnixMS: rapid.OneOf(rapid.Int64Range(-5, 1<<41), rapid.Int64()).Draw(t, "end"), Customer: rapid.SampledFrom([]string{"acme", "zeta"}).Draw(t, "customer"),
		Subscription: text.Draw(t, "sub"), Plan: text.Draw(t, "plan"), PlanRev: rapid.Uint64().Draw(t, "rev"), Product: text.Draw(t, "product"), API: text.Draw(t, "api"),
		Route: text.Draw(t, "route"), Outcome: usage.Outcome(rapid.IntRange(1, 7).Draw(t, "outcome")), ServedRegion: text.Draw(t, "served"),
		Period: rapid.SampledFrom([]int64{0, 1, 1761955200}).Draw(t, "period"), Requests: rapid.Int64Range(0, 1).Draw(t, "requests"), Units: num.Draw(t, "units"),
		BytesIn: num.Draw(t, "in"), BytesOut: num.Draw(t, "out"), LatencyUS: num.Draw(t, "latency"), UpstreamUS: num.Draw(t, "upstream"), KeyID: text.Draw(t, "key"),
		Status: rapid.Uint16().Draw(t, "status"), Attempts: rapid.Uint8().Draw(t, "attempts"), Flags: usage.Flags(rapid.Uint8().Draw(t, "flags")),
		Actor: rapid.Uint64Range(0, 3).Draw(t, "actor"), Address: rapid.Uint64().Draw(t, "address")}
	copy(r.RequestID[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "id"))
	if rapid.Bool().Draw(t, "v7") {
		r.RequestID[6], r.RequestID[8] = r.RequestID[6]&0x0f|0x70, r.RequestID[8]&0x3f|0x80
	}
	return r
}

func kept(rows []usage.Row) []usage.Row {
	out := make([]usage.Row, len(rows))
	for i := range rows {
		out[i] = rows[i].Kept()
	}
	return out
}

func TestDetail_DecodesToWhatIsKept(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rows := make([]usage.Row, rapid.IntRange(0, 30).Draw(t, "n"))
		for i := range rows {
			rows[i] = genRow(t)
		}
		want := kept(rows)
		if !slices.Equal(kept(want), want) {
			t.Fatalf("what is kept of what is kept is less")
		}
		b := usage.EncodeDetail(rows)
		got, err := usage.DecodeDetail(b)
		if err != nil || !slices.Equal(got, want) {
			t.Fatalf("decode = %v, %v; want %v", got, err, want)
		}
		if again := usage.EncodeDetail(got); !bytes.Equal(again, b) {
			t.Fatalf("encoding again gives other bytes")
		}
	})
}

// What is summed is exact in the detail: a block can be derived from it again.
func TestDetail_SumsToItsBlock(t *testing.T) {
	rows := trafficRows(3000, 1000)
	got, err := usage.DecodeDetail(usage.EncodeDetail(rows))
	if err != nil {
		t.Fatal(err)
	}
	sum := func(rows []usage.Row) map[usage.Cell]usage.Sums {
		cells := map[usage.Cell]usage.Sums{}
		for i := range rows {
			cells[rows[i].Cell()] = cells[rows[i].Cell()].Add(rows[i].Sums())
		}
		return cells
	}
	if !bytes.Equal(usage.EncodePayload(sum(got)), usage.EncodePayload(sum(rows))) {
		t.Error("the sums of the detail are not those of the rows")
	}
	ids := map[[16]byte]bool{}
	for i := range rows {
		w, g := &rows[i], &got[i]
		if d := g.LatencyUS - w.LatencyUS; max(d, -d)*250 > w.LatencyUS {
			t.Fatalf("latency %d is kept as %d", w.LatencyUS, g.LatencyUS)
		}
		if d := g.UpstreamUS - w.UpstreamUS; max(d, -d) > w.LatencyUS/256+(w.LatencyUS-w.UpstreamUS)/16 || (g.UpstreamUS == 0) != (w.UpstreamUS == 0) {
			t.Fatalf("upstream %d of %d is kept as %d", w.UpstreamUS, w.LatencyUS, g.UpstreamUS)
		}
		if g.RequestID != usage.ShortID(w.RequestID) || ids[g.RequestID] {
			t.Fatalf("request %x is kept as %x, which names it not or not alone", w.RequestID, g.RequestID)
		}
		ids[g.RequestID] = true
	}
}

func TestDetail_BytesAreStable(t *testing.T) {
	b := usage.EncodeDetail([]usage.Row{{RequestID: [16]byte{1, 2, 3, 4, 5, 6, 0x7a, 8, 0x89, 10, 11, 12, 13, 14, 15, 16}, EndUnixMS: 1108152157500, Customer: "c", Plan: "p",
		API: "a", Outcome: usage.OutcomeSuccess, ServedRegion: "eu", Period: 1, Requests: 1, Units: 3, BytesOut: 700, LatencyUS: 54_321, UpstreamUS: 54_000, KeyID: "k", Status: 200, Attempts: 1, Address: 77}})
	if got := hex.EncodeToString(b); got != goldenDetail {
		t.Errorf("detail = %s, want %s", got, goldenDetail)
	}
	h := usage.HashDetail("edge-1", 5, 1, 2, []byte("x"))
	if got := hex.EncodeToString(h[:]); got != goldenDetailHash {
		t.Errorf("hash = %s, want %s", got, goldenDetailHash)
	}
}

const (
	goldenDetail     = "01300dff81e8b23c7d7e798ba60ea665ebe017f2fe0c9fc0b91ee0018523a640a0c0f5316455eb917161510002b272aa1112"
	goldenDetailHash = "749e2805de150e48e08856140bb3aa8e0fe7e900c86b26c9e7b4402ba5522728"
)

func TestDecodeDetail_RefusesEveryPrefixAndTail(t *testing.T) {
	b := usage.EncodeDetail(trafficRows(20, 1000))
	for n := range b {
		if _, err := usage.DecodeDetail(b[:n]); err == nil {
			t.Errorf("the first %d of %d bytes decode", n, len(b))
		}
	}
	if _, err := usage.DecodeDetail(append(slices.Clone(b), 0)); err == nil {
		t.Error("a byte too many decodes")
	}
}

var spoils = map[string]func(*usage.Row){
	"blank customer": func(r *usage.Row) { r.Customer = "" }, "outcome 0": func(r *usage.Row) { r.Outcome = 0 },
	"negative units": func(r *usage.Row) { r.Units = -1 }, "negative latency": func(r *usage.Row) { r.LatencyUS = -1 },
	"zero byte in key": func(r *usage.Row) { r.KeyID = "a\x00" }, "negative period": func(r *usage.Row) { r.Period = -1 },
}

func TestDecodeDetail_RefusesBadRows(t *testing.T) {
	for name, spoil := range spoils {
		rows := trafficRows(3, 1000)
		spoil(&rows[1])
		if _, err := usage.DecodeDetail(usage.EncodeDetail(rows)); err == nil {
			t.Errorf("%s: decodes", name)
		}
		if rows[1].Check() == nil {
			t.Errorf("%s: Check accepts what DecodeDetail refuses", name)
		}
	}
	if _, err := usage.DecodeDetail(usage.EncodeDetail(trafficRows(usage.MaxDetailRows+1, 1000))); err == nil {
		t.Error("more than MaxDetailRows rows decode")
	}
}

func FuzzDecodeDetail(f *testing.F) {
	f.Add(usage.EncodeDetail(nil))
	f.Add(usage.EncodeDetail(trafficRows(3, 1000)))
	f.Fuzz(func(t *testing.T, b []byte) {
		rows, err := usage.DecodeDetail(b)
		if err != nil {
			return
		}
		if len(rows) > usage.MaxDetailRows {
			t.Fatalf("%d rows decode", len(rows))
		}
		if again := usage.EncodeDetail(rows); !bytes.Equal(again, b) {
			t.Fatalf("two pieces spell one:\n%x\n%x", b, again)
		}
	})
}

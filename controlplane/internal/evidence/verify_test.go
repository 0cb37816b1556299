package evidence

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"bailiwick/controlplane/internal/model"
)

func verdict(t testing.TB, file []byte, trust Trust) *Verdict {
	t.Helper()
	v, err := Verify(bytes.NewReader(file), trust)
	if err != nil {
		return &Verdict{Total: 1, Findings: []Finding{{What: err.Error()}}}
	}
	return v
}

func TestVerify_WhatTheZoneDidIsSound(t *testing.T) {
	h := day(t)
	v := verdict(t, h.export(), h.trust())
	if v.Total != 0 {
		t.Fatalf("findings %+v", v.Findings)
	}
	if v.Anchor != "key" || v.Heads != 3 || v.Size != 12 || v.Records[KindGrant] != 3 || v.Records[KindInForce] != 2 || v.Records[KindWrite] != 1 {
		t.Errorf("got %+v", v)
	}
	for _, name := range []string{"acme"} {
		if bytes.Contains(h.export(), []byte(name)) {
			t.Errorf("the bundle names customer %s", name)
		}
	}
}

func TestVerify_EveryByteCounts(t *testing.T) {
	h := day(t)
	file := h.export()
	random := rand.New(rand.NewPCG(5, 46))
	for i := range file {
		bad := bytes.Clone(file)
		bad[i] ^= 1 << random.IntN(8)
		if v := verdict(t, bad, h.trust()); v.Total == 0 {
			t.Fatalf("byte %d of %d flipped, nothing found: %q", i, len(file), file[max(0, i-20):min(len(file), i+20)])
		}
	}
	for cut := range file {
		if v := verdict(t, file[:cut], h.trust()); v.Total == 0 {
			t.Fatalf("cut to %d of %d bytes, nothing found", cut, len(file))
		}
	}
}

// leaves lists the places of a JSON value, so that each can be changed.
func leaves(at []any, v any, out *[][]any) {
	switch x := v.(type) {
	case map[string]any:
		for k, y := range x {
			leaves(append(append([]any{}, at...), k), y, out)
		}
	case []any:
		for i, y := range x {
			leaves(append(append([]any{}, at...), i), y, out)
		}
	default:
		*out = append(*out, at)
	}
}

func changed(v any) any {
	switch x := v.(type) {
	case string:
		return x + "x"
	case json.Number:
		return json.Number("1" + x.String())
	case bool:
		return !x
	}
	return "x"
}

func set(v any, at []any) any {
	if len(at) == 0 {
		return changed(v)
	}
	switch k := at[0].(type) {
	case string:
		m := v.(map[string]any)
		m[k] = set(m[k], at[1:])
	case int:
		l := v.([]any)
		l[k] = set(l[k], at[1:])
	}
	return v
}

// A node that holds the zone's key for bundles may sign a changed file: the heads that were signed before stand
// against it.
func TestVerify_EveryFieldOfEveryRecordIsBoundByHeads(t *testing.T) {
	h := day(t)
	file := h.export()
	fields := 0
	for i := range apart(t, file).records {
		var places [][]any
		decode := func(line []byte) (v any) {
			dec := json.NewDecoder(bytes.NewReader(line))
			dec.UseNumber()
			if err := dec.Decode(&v); err != nil {
				t.Fatal(err)
			}
			return v
		}
		leaves(nil, decode(apart(t, file).records[i]), &places)
		for _, at := range places {
			b := apart(t, file)
			b.records[i] = model.Encode(set(decode(b.records[i]), at))
			fields++
			if v := verdict(t, b.together(t, h.key, false), h.trust()); v.Total == 0 {
				t.Errorf("record %d, field %v changed: nothing found", i, at)
			}
		}
	}
	if fields < 100 {
		t.Errorf("only %d fields were changed", fields)
	}
}

func TestVerify_Forgeries(t *testing.T) {
	h := day(t)
	file := h.export()
	mallory := keyOf("us")
	early := apart(t, file).ending.Heads[0]
	edit := func(b *bundle, i int, old, new string) {
		if !bytes.Contains(b.records[i], []byte(old)) {
			t.Fatalf("record %d has no %s: %s", i, old, b.records[i])
		}
		b.records[i] = bytes.Replace(b.records[i], []byte(old), []byte(new), 1)
	}
	kind := func(b *bundle, kind string, n int) int {
		for i, r := range b.records {
			if bytes.HasPrefix(r, []byte(`{"kind":"`+kind+`"`)) {
				if n--; n < 0 {
					return i
				}
			}
		}
		t.Fatalf("no %s", kind)
		return 0
	}
	drop := func(b *bundle, i int) { b.records = append(b.records[:i:i], b.records[i+1:]...) }
	for _, c := range []struct {
		name   string
		forge  func(b *bundle)
		resign bool // the zone itself lies: heads are signed anew
		want   string
	}{
		{"a record is dropped", func(b *bundle) { drop(b, 4) }, false, "was changed, left out, added or moved"},
		{"two records are swapped", func(b *bundle) { b.records[3], b.records[4] = b.records[4], b.records[3] }, false, "moved"},
		{"a record is repeated", func(b *bundle) { b.records = append(b.records[:5:5], b.records[4:]...) }, false, "moved"},
		{"the end is cut off", func(b *bundle) { b.records = b.records[:len(b.records)-1] }, false, "no signed head covers the last records"},
		{"an older head is shown for the newest", func(b *bundle) { b.ending.Heads = append(b.ending.Heads, early) }, false, "out of order"},
		{"heads are left out", func(b *bundle) { b.ending.Heads = b.ending.Heads[:1] }, false, "no signed head covers the last records"},
		{"no head at all", func(b *bundle) { b.ending.Heads = nil }, false, "no signed head covers the last records"},
		{"the beginning is cut off", func(b *bundle) { drop(b, 0) }, true, "permitted, and is not"},
		{"a pair that the rules do not have is permitted", func(b *bundle) { edit(b, kind(b, KindPermitted, 0), `"to":"eu-central"`, `"to":"us-east"`) }, true, "eu-west to us-east under policy gdpr-emea is taken for permitted, and is not"},
		{"a grant over a border", func(b *bundle) { edit(b, kind(b, KindGrant, 0), `"to":"eu-central"`, `"to":"us-east"`) }, true, "carries eu-west to us-east"},
		{"a grant that lasts too long", func(b *bundle) { edit(b, kind(b, KindGrant, 0), `"ttl_ms":3600000`, `"ttl_ms":36000000`) }, true, "lasts 36000000 ms"},
		{"a grant that lasts longer than can be counted", func(b *bundle) {
			edit(b, kind(b, KindGrant, 0), `"ttl_ms":3600000`, `"ttl_ms":4611686018427387904`)
		}, true, "lasts 4611686018427387904 ms"},
		{"a grant after the closure", func(b *bundle) {
			g := kind(b, KindGrant, 2)
			r := kind(b, KindReopened, 0)
			moved := strings.Replace(string(b.records[g]), `"index":13`, `"index":11`, 1)
			b.records = append(b.records[:r:r], append([][]byte{[]byte(moved)}, b.records[r:]...)...)
			b.records = b.records[:r+1]
		}, true, "which the zone had not taken for permitted"},
		{"a tightening is left out", func(b *bundle) { drop(b, kind(b, KindInForce, 0)) }, true, "without an in-force record"},
		{"an in-force record with a better time", func(b *bundle) { edit(b, kind(b, KindInForce, 1), `"by":"senders"`, `"by":"receivers"`) }, true, "is not signed by the zone"},
		{"a closure is left out", func(b *bundle) { drop(b, kind(b, KindClosure, 0)) }, true, "reopened as it never was"},
		{"relays are fewer", func(b *bundle) { edit(b, kind(b, KindGrant, 1), `"prev":"`, `"prev":"AAAA`) }, true, "does not follow entry"},
		{"relays under a grant that never was", func(b *bundle) { edit(b, kind(b, KindGrant, 1), `"grant":"g`, `"grant":"f`) }, true, "there is no grant f"},
		{"rules that open a partition", func(b *bundle) {
			edit(b, 0, `"kind":"same-law","status":"active"`, `"kind":"same-law","status":"suspended"`)
		}, true, "is not permitted"},
		{"records out of order", func(b *bundle) { edit(b, 3, `"index":`, `"index":9`) }, true, "out of order"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := apart(t, file)
			c.forge(b)
			v := verdict(t, b.together(t, h.key, c.resign), h.trust())
			if !strings.Contains(fmt.Sprint(v.Findings), c.want) {
				t.Errorf("want %q among %+v", c.want, v.Findings)
			}
		})
	}
	t.Run("another zone's key", func(t *testing.T) {
		v := verdict(t, apart(t, file).together(t, mallory, true), h.trust())
		if !strings.Contains(fmt.Sprint(v.Findings), "another key than the one given") {
			t.Errorf("got %+v", v.Findings)
		}
	})
	t.Run("split view", func(t *testing.T) {
		other := newHistory(t)
		other.rules()
		other.write("else")
		other.grant()
		other.head()
		trust := h.trust()
		trust.Held = [][]byte{other.heads()[0].note}
		if v := verdict(t, file, trust); !strings.Contains(fmt.Sprint(v.Findings), "split view") {
			t.Errorf("got %+v", v.Findings)
		}
		trust.Held = [][]byte{h.heads()[0].note, h.heads()[2].note}
		if v := verdict(t, file, trust); v.Total != 0 || v.Held != 2 {
			t.Errorf("heads of the same history: %d agree, findings %+v", v.Held, v.Findings)
		}
	})
}

// Each record left out, told twice, or exchanged with each later one is found, by who holds the zone's key for bundles and so
// can sign them: heads that were signed before stand against it. What came before whom is named.
func TestVerify_EveryRecordInItsPlace(t *testing.T) {
	h := day(t)
	file := h.export()
	n := len(apart(t, file).records)
	forged := 0
	check := func(what string, records func(r [][]byte) [][]byte) {
		t.Helper()
		b := apart(t, file)
		b.records = records(b.records)
		forged++
		v := verdict(t, b.together(t, h.key, false), h.trust())
		if v.Total == 0 || v.Findings[0].What == "" {
			t.Errorf("%s: nothing found", what)
		}
	}
	for i := range n {
		check(fmt.Sprintf("record %d is left out", i), func(r [][]byte) [][]byte { return slices.Delete(r, i, i+1) })
		check(fmt.Sprintf("record %d is told twice", i), func(r [][]byte) [][]byte { return slices.Insert(r, i, r[i]) })
		for j := i + 1; j < n; j++ {
			check(fmt.Sprintf("records %d and %d are exchanged", i, j), func(r [][]byte) [][]byte { r[i], r[j] = r[j], r[i]; return r })
			check(fmt.Sprintf("record %d is moved behind %d", i, j), func(r [][]byte) [][]byte {
				x := r[i]
				return slices.Insert(slices.Delete(r, i, i+1), j, x)
			})
		}
	}
	// Lines of the frame: the heading, the heads and the signature, each left out, doubled or exchanged with another.
	lines := bytes.SplitAfter(file, []byte("\n"))
	lines = lines[:len(lines)-1]
	frame := func(what string, l [][]byte) {
		t.Helper()
		forged++
		if v := verdict(t, bytes.Join(l, nil), h.trust()); v.Total == 0 {
			t.Errorf("%s: nothing found", what)
		}
	}
	for i := range lines {
		frame(fmt.Sprintf("line %d is left out", i+1), slices.Delete(slices.Clone(lines), i, i+1))
		frame(fmt.Sprintf("line %d stands twice", i+1), slices.Insert(slices.Clone(lines), i, lines[i]))
		for j := i + 1; j < len(lines); j++ {
			l := slices.Clone(lines)
			l[i], l[j] = l[j], l[i]
			frame(fmt.Sprintf("lines %d and %d are exchanged", i+1, j+1), l)
		}
	}
	if forged < 250 {
		t.Errorf("only %d bundles were forged", forged)
	}
}

func FuzzVerify(f *testing.F) {
	h := day(f)
	// Seeds come from one process and are judged in another: both must make the same file.
	x, err := h.log.NewExport("emea-1", "", h.at.Add(-24*time.Hour), h.at.Add(time.Hour), &Export{At: h.at, Size: h.log.newest.Size})
	if err != nil {
		f.Fatal(err)
	}
	var out bytes.Buffer
	if err := x.WriteTo(&out, 0); err != nil {
		f.Fatal(err)
	}
	file := out.Bytes()
	f.Add(file)
	f.Add([]byte("{}\n"))
	f.Add(file[:len(file)/2])
	f.Add(bytes.Replace(file, []byte(`"frontier":[]`), []byte(`"frontier":["AAAA"]`), 1))
	f.Add(bytes.Replace(file, []byte(`"first":0`), []byte(`"first":-1`), 1))
	f.Fuzz(func(t *testing.T, data []byte) {
		if v := verdict(t, data, h.trust()); v.Total == 0 && !bytes.Equal(data, file) {
			t.Errorf("a bundle that the zone did not write is found sound: %q", data)
		}
	})
}

func TestReport(t *testing.T) {
	h := day(t)
	r, err := ReportOn(bytes.NewReader(h.export()), h.trust())
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Pairs) != 2 || len(r.Bases) != 1 || len(r.Closures) != 1 || r.Closures[0].OpenedAt == nil || len(r.Tightening) != 1 || len(r.Relays) != 1 || r.Relays[0].Count != 12 || r.Pairs[1].Grants != 3 {
		t.Errorf("got %+v", r)
	}
	if len(r.Operators) != 2 || r.Operators[0] != (ReportOperator{"alice", "closure", 1}) {
		t.Errorf("operators %+v", r.Operators)
	}
	var page bytes.Buffer
	if err := r.HTML(&page); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"http:", "https:", "src=", "<script", "url("} {
		if strings.Contains(page.String(), bad) {
			t.Errorf("the page has %q: it must need nothing from elsewhere", bad)
		}
	}
	for _, want := range []string{"The evidence is sound", "eu-west to eu-central under policy gdpr-emea", "closure stop: all relays from eu-west to eu-central", "alice"} {
		if !strings.Contains(page.String(), want) {
			t.Errorf("the page does not say %q", want)
		}
	}
}

// A minute's refusals count once, however often an edge tells of them.
func TestReport_Refusals(t *testing.T) {
	h := newHistory(t)
	h.rules()
	minute := h.at.Truncate(time.Minute)
	tell := func(edge string, counts ...int64) {
		g := model.GrantRecord{Edge: edge, Region: "eu-west", GrantedAt: h.at}
		for i, n := range counts {
			g.Refusals = append(g.Refusals, model.RefusalMinute{Minute: minute.Add(time.Duration(i) * time.Minute), Rule: "grant-none", From: "eu-west", To: "us-east", Count: n, Sample: fmt.Sprintf("%s-%d", edge, i)})
		}
		h.txn(op{model.PrefixGrant + edge, g})
	}
	tell("a", 3, 4)
	tell("a", 3, 4, 1) // the answer was lost
	tell("b", 10)
	h.head()
	r, err := ReportOn(bytes.NewReader(h.export()), h.trust())
	if err != nil {
		t.Fatal(err)
	}
	want := ReportRefusals{Rule: "grant-none", From: "eu-west", To: "us-east", Count: 18, First: minute, Last: minute.Add(2 * time.Minute), Sample: "a-2"}
	if len(r.Refusals) != 1 || r.Refusals[0] != want {
		t.Errorf("got %+v, want %+v", r.Refusals, want)
	}
}

// Uptime is what most observers saw, from the state that the bundle begins with on; the sentinel's counts are each process's
// newest.
func TestReport_UptimeAndSentinel(t *testing.T) {
	h := newHistory(t)
	h.rules()
	see := func(region, state string) {
		h.txn(op{model.PrefixUptime + region, model.RegionState{Region: region, State: state, Observers: 3, At: h.at.Add(time.Second)}})
	}
	tell := func(edge string, c *model.SentinelCount) {
		h.txn(op{model.PrefixGrant + edge, model.GrantRecord{Edge: edge, Region: "eu-west", GrantedAt: h.at, Sentinel: c}})
	}
	see("eu-west", model.RegionUp)
	for h.log.state == 0 { // a state tells it on
		tell("a", nil)
	}
	from := h.at.Add(time.Second)
	h.at = from
	pass := func(d time.Duration) { h.at = h.at.Add(d - time.Second) } // until the next transaction
	pass(90 * time.Second)
	see("eu-west", model.RegionDown)
	pass(10 * time.Second)
	see("eu-west", model.RegionUp)
	see("eu-central", model.RegionDown)
	pass(20 * time.Second)
	see("eu-west", model.RegionDrained)
	pass(30 * time.Second)
	tell("a", &model.SentinelCount{Began: 1, Violations: 2})
	tell("a", &model.SentinelCount{Began: 1, Violations: 2, Late: 1})
	tell("a", &model.SentinelCount{Began: 2, Violations: 1})
	tell("b", &model.SentinelCount{Began: 1})
	h.head()
	var b bytes.Buffer
	if err := h.exportTo(&b, from, h.at); err != nil {
		t.Fatal(err)
	}
	r, err := ReportOn(&b, h.trust())
	if err != nil || r.Verdict.Total != 0 || r.Verdict.First == 0 {
		t.Fatalf("%v, from record %d, findings %+v", err, r.Verdict.First, r.Verdict.Findings)
	}
	if len(r.Regions) != 2 || r.Regions[1].Up != 111*time.Second || r.Regions[1].Down != 10*time.Second || r.Regions[1].Outages != 1 || r.Regions[1].State != model.RegionDrained || r.Regions[1].Uptime() != "91.735 %" {
		t.Errorf("regions %+v", r.Regions)
	}
	if r.Regions[0].Outages != 1 || r.Regions[0].Up != 0 || r.Regions[0].Uptime() != "0.000 %" {
		t.Errorf("eu-central %+v", r.Regions[0])
	}
	if want := (ReportSentinel{Edge: "a", Region: "eu-west", Violations: 3, Late: 1}); len(r.Sentinel) != 2 || r.Sentinel[0] != want || r.Sentinel[1].Violations != 0 {
		t.Errorf("sentinel %+v, want %+v", r.Sentinel, want)
	}
}

package ledger_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"bailiwick/controlplane/internal/ledger"
	"bailiwick/shared/usage"
)

// slow makes a block's latencies: n of about ms milliseconds in one minute of one route.
func slow(rng *rand.Rand, minute int64, route, region string, n int) (usage.LatencyKey, *usage.Sketch) {
	s := &usage.Sketch{}
	for range n {
		s.Add(rng.Int64N(2_000_000), 1)
	}
	return usage.LatencyKey{Minute: minute, API: "orders", Route: route, ServedRegion: region}, s
}

// latenciesOf reads what a machine holds as text that two machines can be compared by.
func latenciesOf(t testing.TB, m *ledger.Machine, since, until time.Time, route string) map[string]*usage.Sketch {
	t.Helper()
	v, err := m.View()
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	rows, err := v.Latency(t.Context(), since, until, "", route)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]*usage.Sketch{}
	for _, r := range rows {
		out[r.API+"/"+r.Route+"@"+r.ServedRegion] = r.Sketch
	}
	return out
}

func sameLatencies(t testing.TB, what string, got, want map[string]*usage.Sketch) {
	t.Helper()
	if len(got) != len(want) {
		t.Errorf("%s: %d rows, want %d", what, len(got), len(want))
	}
	for k, w := range want {
		if g := got[k]; g == nil || !g.Equal(w) {
			t.Errorf("%s: %s differs from all its latencies added up", what, k)
		}
	}
}

// Whatever shares an entry, is repeated, or comes after a restart: all nodes hold the sum of all sketches, to the bit.
func TestLatency_IsTheSumOfAllBlocksOnEveryNode(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	want := map[string]*usage.Sketch{}
	var blocks []ledger.Block
	chains := []*chain{{edge: "e1", epoch: 1}, {edge: "e2", epoch: 1}, {edge: "e3", epoch: 4}}
	for i := range 60 {
		p := usage.Payload{Cells: one("acme", i%7, 1), Latency: map[usage.LatencyKey]*usage.Sketch{}}
		for r := range 3 {
			k, s := slow(rng, base.Unix()+int64(i%5)*60, fmt.Sprintf("/r%d", r), []string{"eu-west", "eu-central"}[i%2], 1+rng.IntN(40))
			p.Latency[k] = s
			name := "orders/" + k.Route + "@" + k.ServedRegion
			if want[name] == nil {
				want[name] = &usage.Sketch{}
			}
			want[name].Merge(s)
		}
		c := chains[i%3]
		c.seq++
		b := block(c.edge, c.epoch, c.seq, c.head, usage.Encode(p))
		c.head = b.Hash
		blocks = append(blocks, b)
	}
	together := openMem(t)
	applyCmd(t, together, ledger.EncodeAppend(blocks))
	applyCmd(t, together, ledger.EncodeAppend(blocks)) // again: nothing is counted twice
	fs := vfs.NewMem()
	alone := open(t, fs)
	for i, b := range blocks {
		applyCmd(t, alone, ledger.EncodeAppend([]ledger.Block{b}))
		if i%20 == 7 { // in several tables, and merged across a restart
			if err := alone.Flush(); err != nil {
				t.Fatal(err)
			}
			shut(t, alone)
			alone = open(t, fs)
		}
	}
	defer shut(t, alone)
	since, until := base, base.Add(10*time.Minute)
	sameLatencies(t, "in one entry", latenciesOf(t, together, since, until, ""), want)
	sameLatencies(t, "one by one", latenciesOf(t, alone, since, until, ""), want)
	if got := latenciesOf(t, together, since, until, "/r1"); len(got) != 2 {
		t.Errorf("of one route: %d rows, want 2", len(got))
	}
	if got := latenciesOf(t, together, base.Add(5*time.Minute), until, ""); len(got) != 0 {
		t.Errorf("after the last minute: %d rows, want none", len(got))
	}
	if got := latenciesOf(t, together, base.Add(4*time.Minute+59*time.Second), until, ""); len(got) == 0 {
		t.Error("the minute that overlaps the beginning is left out")
	}
}

func TestLatency_ThinnedHoursHoldWhatTheMinutesHeld(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	fill := func(m *ledger.Machine, c *chain, from time.Time, minutes int) {
		for i := range minutes {
			k, s := slow(rng, from.Unix()+int64(i)*60, "/r", "eu-west", 20)
			c.seq++
			b := block(c.edge, c.epoch, c.seq, c.head, usage.Encode(usage.Payload{Latency: map[usage.LatencyKey]*usage.Sketch{k: s}}))
			c.head = b.Hash
			if a := apply(t, m, b)[0]; a.Reason != "" {
				t.Fatalf("minute %d: %s", i, a.Reason)
			}
		}
	}
	m := openMem(t)
	c := &chain{edge: "e", epoch: 1}
	fill(m, c, base, 180)
	all := func() map[string]*usage.Sketch {
		return latenciesOf(t, m, base.Add(-time.Hour), base.Add(4*time.Hour), "")
	}
	before := all()
	hour, minute := base.Add(time.Hour), base.Add(61*time.Minute)
	recent := latenciesOf(t, m, minute, base.Add(4*time.Hour), "")
	for range 5 { // sixty minutes, in pieces
		applyCmd(t, m, ledger.EncodeThin(ledger.Thin{Before: hour.Unix(), Drop: 0, Most: 13}))
	}
	sameLatencies(t, "an hour thinned", all(), before)
	sameLatencies(t, "minutes that are not old", latenciesOf(t, m, minute, base.Add(4*time.Hour), ""), recent)
	if whole, half := latenciesOf(t, m, base, hour, ""), latenciesOf(t, m, base, base.Add(30*time.Minute), ""); !whole["orders//r@eu-west"].Equal(half["orders//r@eu-west"]) {
		t.Error("half of an hour whose minutes are gone is not told as that hour")
	}
	fill(m, c, base, 1) // late, into an hour that was folded
	late := all()
	applyCmd(t, m, ledger.EncodeThin(ledger.Thin{Before: hour.Unix(), Drop: 0, Most: 100}))
	sameLatencies(t, "a late minute thinned", all(), late)
	applyCmd(t, m, ledger.EncodeThin(ledger.Thin{Before: hour.Unix(), Drop: hour.Unix(), Most: 100}))
	if got := latenciesOf(t, m, base.Add(-time.Hour), hour, ""); len(got) != 0 {
		t.Errorf("an hour beyond its time is still there: %v", got)
	}
	sameLatencies(t, "what is not old", latenciesOf(t, m, minute, base.Add(4*time.Hour), ""), recent)
	if err := m.Check(ledger.EncodeThin(ledger.Thin{Before: hour.Unix() + 60})); err == nil {
		t.Error("a part of an hour may be folded")
	}
}

func TestLedger_ThinsInTheBackgroundOnce(t *testing.T) {
	m := openMem(t)
	r := &replica{m: m}
	l := startLedger(t, r, ledger.Config{})
	c := &chain{edge: "e", epoch: 1}
	k, s := slow(rand.New(rand.NewPCG(5, 6)), base.Unix(), "/r", "eu-west", 9)
	c.seq++
	b := block("e", 1, 1, c.head, usage.Encode(usage.Payload{Latency: map[usage.LatencyKey]*usage.Sketch{k: s}}))
	if _, err := l.Append(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		now  time.Time
		want int
	}{{base.Add(time.Hour), 0}, {base.Add(36 * 24 * time.Hour), 1}, {base.Add(36 * 24 * time.Hour), 0}, {base.Add(401 * 24 * time.Hour), 1}} {
		if n, err := l.ThinLatency(t.Context(), step.now); err != nil || n != step.want {
			t.Errorf("at %v: %d sketches went, %v, want %d", step.now, n, err, step.want)
		}
	}
}

package grant_test

import (
	"testing"
	"time"

	"bailiwick/regions/grant"
)

var here = grant.Ground{
	Own:     func(string) (bool, bool) { return true, true },
	Members: func(region string) []string { return []string{region + "-edge"} },
}

func tableOf(edge, region string, epoch, index uint64) grant.Word {
	return grant.Word{Process: grant.Process{Edge: edge}, Region: region, By: "emea-1", Connected: true, Epoch: epoch, Index: index}
}

// A tightening that was recorded before a recovery comes into force by acknowledgements of the new epoch: a table of
// it was made from a log that has the record, whatever its place.
func TestBook_ATableOfALaterEpochAcknowledges(t *testing.T) {
	start := time.Unix(1000, 0)
	b := grant.Open(grant.Past{Edges: map[string]string{"west-edge": "west"}, Rules: []grant.Life{{To: "central", Lasts: time.Hour}}}, 30*time.Second, start)
	shut := grant.Tightening{From: "west", To: "central", Epoch: 1, Barrier: 9}
	for _, s := range []struct {
		after        time.Duration
		epoch, index uint64
		by           string
	}{
		{0, 1, 8, ""}, {2 * time.Second, 1, 8, ""}, // the table before the record's own
		{3 * time.Second, 2, 4, ""}, // first seen: the time to cut is not over
		{3500 * time.Millisecond, 2, 4, ""},
		{4 * time.Second, 2, 5, "receivers"},
	} {
		now := start.Add(s.after)
		b.Hear(tableOf("central-edge", "central", s.epoch, s.index), now)
		if by, _ := b.InForce(shut, here, now); by != s.by {
			t.Errorf("after %v with a table of %d.%d: in force by %q, want %q", s.after, s.epoch, s.index, by, s.by)
		}
	}
}

// An edge that comes back from a disk of an older epoch has acknowledged nothing, though its place there may be a
// higher number; when it has caught up, the time to cut begins anew.
func TestBook_ATableOfAnOlderEpochTakesTheAcknowledgementBack(t *testing.T) {
	start := time.Unix(1000, 0)
	b := grant.Open(grant.Past{Edges: map[string]string{"west-edge": "west"}, Rules: []grant.Life{{To: "central", Lasts: time.Hour}}}, 30*time.Second, start)
	shut := grant.Tightening{From: "west", To: "central", Epoch: 2, Barrier: 4}
	for _, s := range []struct {
		after        time.Duration
		epoch, index uint64
		by           string
	}{
		{0, 2, 4, ""},
		{500 * time.Millisecond, 1, 40, ""}, // the old disk
		{1500 * time.Millisecond, 2, 4, ""}, // just caught up
		{2500 * time.Millisecond, 2, 4, "receivers"},
	} {
		now := start.Add(s.after)
		b.Hear(tableOf("central-edge", "central", s.epoch, s.index), now)
		if by, _ := b.InForce(shut, here, now); by != s.by {
			t.Errorf("after %v with a table of %d.%d: in force by %q, want %q", s.after, s.epoch, s.index, by, s.by)
		}
	}
}

// What a recovery lost may have opened the pair again: a table of the lost end is no acknowledgement of what comes before it,
// although its index is higher.
func TestBook_ATableOfTheLostEndAcknowledgesNothing(t *testing.T) {
	start := time.Unix(1_000_000, 0)
	b := grant.Open(grant.Past{Edges: map[string]string{"west-edge": "west", "central-edge": "central"}}, 30*time.Second, start)
	p := run("central-edge", "a")
	told := func(epoch, index uint64, at time.Time) string {
		b.Hear(grant.Word{Process: p, Region: "central", By: "n1", Connected: true, Spoke: at, Epoch: epoch, Index: index}, at)
		shut := grant.Tightening{From: "west", To: "central", Epoch: 1, Barrier: 10, Now: 2}
		b.InForce(shut, zone(), at)
		by, _ := b.InForce(shut, zone(), at.Add(grant.Cut))
		return by
	}
	if by := told(1, 13, start); by != "" {
		t.Errorf("a table of the epoch before makes it hold by %q", by)
	}
	if by := told(2, 12, start.Add(2*grant.Cut)); by != "receivers" {
		t.Errorf("a table of this epoch makes it hold by %q, want receivers", by)
	}
}

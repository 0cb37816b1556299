package grant_test

import (
	"fmt"
	"testing"
	"time"

	"bailiwick/regions/grant"
	"bailiwick/shared/revision"
)

func shown(edge string, index uint64) *grant.Grant {
	return &grant.Grant{ID: fmt.Sprint(edge, "-", index), Process: grant.Process{Edge: edge}, From: "west", To: "central", Store: revision.Revision{Epoch: 1, Index: index}, TTL: ttl, OfflineTTL: offline}
}

// A pair that is closed and opened again, or an edge that leaves the registry and returns, is no new life for grants
// of before: whoever shows an ended one again has kept it on purpose.
func TestSeen_AnEdgeThatReturnsBringsNoEndedGrantBack(t *testing.T) {
	var s grant.Seen
	old, now := shown("west-edge", 7), start
	if !s.Fresh(old, now) {
		t.Fatal("a grant never seen is refused")
	}
	s.Forget(func(string) bool { return false })
	now = now.Add(offline / 2)
	s.Forget(func(string) bool { return true })
	if !s.Fresh(old, now) {
		t.Error("half its life later: want it taken")
	}
	now = now.Add(offline / 2)
	if s.Fresh(old, now) {
		t.Error("after its end: want it refused, its age counts from when it was first seen")
	}
	if s.Fresh(shown("west-edge", 6), now) {
		t.Error("an older one, never seen: want it refused")
	}
	if !s.Fresh(shown("west-edge", 8), now) {
		t.Error("a newer one: want it taken")
	}
}

// Names that left are remembered in a bounded number, those of the registry always.
func TestSeen_ForgetsTheNamesThatLeftLongestAgo(t *testing.T) {
	const most = 1024
	var s grant.Seen
	known := func(edge string) bool { return edge == "stays" }
	old := func(i int) *grant.Grant { return shown(fmt.Sprint("gone-", i), 7) }
	s.Fresh(shown("stays", 7), start)
	for i := range most + 1 {
		s.Fresh(old(i), start.Add(time.Duration(i)))
		s.Forget(known)
	}
	now := start.Add(2 * offline)
	if !s.Fresh(old(0), now) {
		t.Error("the first that left of one too many: want it forgotten")
	}
	for _, g := range []*grant.Grant{old(1), old(most), shown("stays", 7)} {
		if s.Fresh(g, now) {
			t.Errorf("%s: want it remembered", g.ID)
		}
	}
}

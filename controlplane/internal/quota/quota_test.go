package quota_test

import (
	"math"
	"testing"

	"pgregory.net/rapid"

	"bailiwick/controlplane/internal/quota"
)

// However an account stands, a grant keeps the sum of what is spent and may still
// be spent within the limit, and never refuses the last unit.
func TestGrant_KeepsTheLimit(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		n := rapid.OneOf(rapid.Int64Range(0, 50), rapid.Int64Range(0, math.MaxInt64))
		a := quota.Account{Limit: n.Draw(rt, "limit"), Settled: n.Draw(rt, "settled"), Forfeited: n.Draw(rt, "forfeited")}
		for range rapid.IntRange(1, 4).Draw(rt, "holders") {
			a.Holders = append(a.Holders, quota.Holder{Leased: n.Draw(rt, "leased"), Spent: n.Draw(rt, "spent")})
		}
		before := quota.Add(a.Used(), a.Held())
		left := a.Available()
		g := quota.Grant(left, rapid.Int64Range(1, math.MaxInt64).Draw(rt, "want"), rapid.Int64Range(0, math.MaxInt64).Draw(rt, "sharers"))
		if g > left || left > 0 && g == 0 {
			rt.Fatalf("grant of %d with %d available", g, left)
		}
		if before > a.Limit && left != 0 {
			rt.Fatalf("available: got %d above the limit, want 0", left)
		}
		if h := &a.Holders[0]; h.Leased >= h.Spent { // an edge is never behind what its blocks say
			h.Leased = quota.Add(h.Leased, g)
			if sum := quota.Add(a.Used(), a.Held()); g > 0 && sum > a.Limit {
				rt.Fatalf("after a grant of %d: %d used and held of %d", g, sum, a.Limit)
			}
		}
	})
}

func TestHolder_LowerKeepsWhatIsSpent(t *testing.T) {
	for _, c := range []struct{ leased, spent, ceiling, want int64 }{{10, 3, 12, 10}, {10, 3, 5, 5}, {10, 3, 1, 3}, {10, 3, 0, 3}, {2, 5, 9, 2}} {
		h := quota.Holder{Leased: c.leased, Spent: c.spent}
		if h.Lower(c.ceiling); h.Leased != c.want {
			t.Errorf("leased %d, spent %d, ceiling %d: got %d, want %d", c.leased, c.spent, c.ceiling, h.Leased, c.want)
		}
	}
}

func TestRaised(t *testing.T) {
	for _, c := range []struct {
		units   int64
		percent int
		want    int64
	}{{100, 0, 100}, {100, 10, 110}, {15, 10, 16}, {math.MaxInt64, 1000, math.MaxInt64}, {0, 50, 0}} {
		if got := quota.Raised(c.units, c.percent); got != c.want {
			t.Errorf("%d raised by %d %%: got %d, want %d", c.units, c.percent, got, c.want)
		}
	}
}

// Shares and the floors of edges without demand never make more than the limit,
// and who has demand gets at least a tenth of an even share.
func TestShares_AreAWholeTogether(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		demands := rapid.SliceOfN(rapid.OneOf(rapid.Int64Range(0, 9), rapid.Int64Range(0, math.MaxInt64)), 0, 8).Draw(rt, "demands")
		live := rapid.IntRange(0, 12).Draw(rt, "live")
		n := max(live, len(demands), 1)
		floor := int64(quota.Million / 10 / n)
		sum := floor * int64(n-len(demands))
		for i, s := range quota.Shares(live, demands) {
			if s < floor {
				rt.Fatalf("share %d of demand %d: got %d, below the floor of %d", i, demands[i], s, floor)
			}
			sum += s
		}
		if sum > quota.Million {
			rt.Fatalf("%d edges, demands %v: shares and floors sum to %d", live, demands, sum)
		}
	})
	if got := quota.Shares(4, []int64{90, 5, 5}); got[0] != 25_000+810_000 || got[1] != 25_000+45_000 {
		t.Errorf("90/5/5 of 4 edges: got %v", got)
	}
}

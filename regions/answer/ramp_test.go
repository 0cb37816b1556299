package answer_test

import (
	"testing"
	"time"

	"bailiwick/regions/answer"
)

func TestShare_GrowsFromATenth(t *testing.T) {
	for _, c := range []struct {
		back time.Duration
		want int
	}{{-time.Second, 10}, {0, 10}, {20 * time.Second, 40}, {59 * time.Second, 98}, {time.Minute, 100}, {time.Hour, 100}} {
		if got := answer.Share(c.back, time.Minute); got != c.want {
			t.Errorf("after %s: %d%%, want %d%%", c.back, got, c.want)
		}
	}
	if got := answer.Share(0, 0); got != 100 {
		t.Errorf("without a ramp: %d%%", got)
	}
}

// first counts, over many answers, the region that clients meet first.
func first(c answer.Choice, answers uint32) map[string]int {
	regionOf := map[string]string{"192.0.2.1": "eu-west", "192.0.2.2": "eu-west", "192.0.2.3": "eu-central"}
	out := map[string]int{}
	for spin := range answers {
		a := c.Addresses(false, spin)
		if len(a) == 0 {
			out[""]++
			continue
		}
		out[regionOf[a[0].String()]]++
	}
	return out
}

// A region that returns is first in its share of the answers that would have it first, whichever clients ask.
func TestChoice_ARegionReturnsByAndBy(t *testing.T) {
	const n = 10_000
	near := func(got, want int) bool { return got >= want-n/100 && got <= want+n/100 }
	for _, share := range []int{10, 40, 99} {
		w := emea()
		w.Share = map[string]int{"eu-west": share}
		c := answer.Choose(w)
		if got := first(c, n); !near(got["eu-west"], n/2*share/100) || got[""] != 0 {
			t.Errorf("at %d%% clients of no region meet first: %v of %d", share, got, n)
		}
		for _, v := range c.Regions {
			if want := map[string]int{"eu-west": share}[v.Region]; v.Share != want {
				t.Errorf("%s is said to have a share of %d, want %d", v.Region, v.Share, want)
			}
		}
		w.Client = "eu-west"
		c = answer.Choose(w)
		if got := first(c, n); !near(got["eu-west"], n*share/100) || got[""] != 0 {
			t.Errorf("at %d%% the region's own clients meet first: %v of %d", share, got, n)
		}
		for spin := range uint32(100) {
			if s := c.Services(spin); len(s) == 0 || s[0].Priority != 1 {
				t.Fatalf("HTTPS records %v: the first has to be there", s)
			}
		}
	}
}

// Where nobody is there to bear the load meanwhile, a return is no matter of shares.
func TestChoice_TheOnlyRegionReturnsAtOnce(t *testing.T) {
	const n = 1000
	w := emea()
	w.Share = map[string]int{"eu-west": 10}
	w.Down = map[string]string{"eu-central": "2 of 2"}
	if got := first(answer.Choose(w), n); got["eu-west"] != n {
		t.Errorf("the only region that is well is met first by %v of %d", got, n)
	}
	w = emea()
	w.Share = map[string]int{"eu-west": 10, "eu-central": 10}
	if got := first(answer.Choose(w), n); got["eu-west"] != n/2 || got["eu-central"] != n/2 {
		t.Errorf("both return together and are met first by %v of %d", got, n)
	}
	w.Share = map[string]int{"eu-west": 10, "eu-central": 50} // eu-central bears it all: eu-west has 20 of its 100
	if got := first(answer.Choose(w), n); got["eu-west"] < n/2*19/100 || got["eu-west"] > n/2*21/100 {
		t.Errorf("eu-west returns behind eu-central and is met first by %v of %d", got, n)
	}
}

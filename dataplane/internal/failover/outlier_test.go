package failover_test

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"bailiwick/dataplane/internal/failover"
)

func TestJudge_Table(t *testing.T) {
	type tl = failover.Tally
	well, bad, few := tl{100, 1}, tl{50, 50}, tl{0, 10}
	for _, c := range []struct {
		name    string
		percent int
		given   []tl
		want    []bool
	}{
		{"all well", 0, []tl{well, well, well}, []bool{false, false, false}},
		{"one fails", 0, []tl{well, bad, well}, []bool{false, true, false}},
		{"one of two", 0, []tl{bad, well}, []bool{true, false}},
		{"all alike: it is not the target", 0, []tl{bad, bad, bad}, []bool{false, false, false}},
		{"three times as bad as the others, not less", 0, []tl{{50, 50}, {80, 20}, {80, 20}}, []bool{false, false, false}},
		{"too few to say", 0, []tl{few, well, well}, []bool{false, false, false}},
		{"too few others to say", 0, []tl{bad, {3, 0}}, []bool{false, false}},
		{"below a fifth", 0, []tl{{81, 19}, {1000, 0}}, []bool{false, false}},
		{"no more than half, the worst first", 0, []tl{{50, 50}, {10, 90}, {1000, 0}}, []bool{false, true, false}},
		{"a fifth of five", 20, []tl{{50, 50}, {10, 90}, well, well, well}, []bool{false, true, false, false, false}},
		{"none of two at 40", 40, []tl{bad, well}, []bool{false, false}},
		{"never the last, at 100", 100, []tl{{0, 100}, {60, 40}, {1000, 0}}, []bool{true, true, false}},
	} {
		if got := failover.NewJudge(len(c.given)).Step(time.Minute, c.percent, c.given...); !slices.Equal(got, c.want) {
			t.Errorf("%s: got %v out, want %v", c.name, got, c.want)
		}
	}
}

func TestJudge_LetsBackInAndWaitsLongerEachTime(t *testing.T) {
	well, bad := failover.Tally{Good: 100}, failover.Tally{Good: 50, Bad: 50}
	j := failover.NewJudge(2)
	now := time.Minute
	for _, wait := range []time.Duration{30 * time.Second, time.Minute, 90 * time.Second} {
		if out := j.Step(now, 0, bad, well); !out[0] {
			t.Fatalf("fails at %v: want it out", now)
		}
		if out := j.Step(now+wait-time.Second, 0, failover.Tally{}, well); !out[0] {
			t.Errorf("out since %v: want it out for %v", now, wait)
		}
		now += wait
		if out := j.Step(now, 0, failover.Tally{}, well); out[0] {
			t.Errorf("out for %v: want it back", wait)
		}
	}
	now += 10 * time.Minute // well for long
	j.Step(now, 0, well, well)
	j.Step(now+10*time.Minute, 0, well, well)
	j.Step(now+20*time.Minute, 0, well, well)
	now += 30 * time.Minute
	j.Step(now, 0, bad, well)
	if out := j.Step(now+30*time.Second, 0, failover.Tally{}, well); out[0] {
		t.Error("well for half an hour in between: want it out for 30 s again")
	}
}

// Whatever happens, one stays, and no more than the share is out.
func TestJudge_NeverTakesTooMany(t *testing.T) {
	rnd := rand.New(rand.NewPCG(7, 7))
	most := 0
	for range 3000 {
		n, percent := 1+rnd.IntN(6), 1+rnd.IntN(100)
		j := failover.NewJudge(n)
		now := time.Duration(0)
		for range 8 {
			now += time.Duration(rnd.IntN(60)) * time.Second
			tallies := make([]failover.Tally, n)
			for i := range tallies {
				tallies[i] = failover.Tally{Good: rnd.Int64N(200), Bad: rnd.Int64N(200)}
				if rnd.IntN(2) == 0 {
					tallies[i].Bad = 0
				}
			}
			out := 0
			for _, o := range j.Step(now, percent, tallies...) {
				if o {
					out++
				}
			}
			if out > min(n*percent/100, n-1) {
				t.Fatalf("%d of %d out at %d percent", out, n, percent)
			}
			most = max(most, out)
		}
	}
	if most < 3 {
		t.Errorf("never more than %d out: too tame", most)
	}
}

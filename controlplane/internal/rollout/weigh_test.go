package rollout_test

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"bailiwick/controlplane/internal/model"
	"bailiwick/controlplane/internal/rollout"
)

// traffic is a zone of one canary and its neighbours, judged once a second.
type traffic struct {
	seed      uint64
	neighbour int                            // edges that do not hold the change
	before    int64                          // requests that the canary had before
	perSecond int                            // at each edge, on average
	seconds   int                            // how long it is watched
	usual     func(edge int, at int) float64 // how many fail whatever the change does; edge 0 is the canary, at -1 before
	harm      float64                        // and how many because of it
	region    func(edge int) string
}

// run says after how many requests and seconds the change is taken back, 0 if it is not.
func (w traffic) run(rng *rand.Rand) (requests int64, seconds int) {
	r := model.Rollout{Number: 1, Round: 1, State: model.RolloutRunning, Zones: []model.RolloutZone{{Zone: "z", Canary: "a"}}}
	j := &rollout.Judge{Zone: "z", Soak: rollout.All(7 * 24 * time.Hour)}
	fails := func(n int64, p float64) (failed int64) {
		for range n {
			if rng.Float64() < p {
				failed++
			}
		}
		return failed
	}
	var reports []rollout.Report
	for e := range w.neighbour + 1 {
		region := "here"
		if w.region != nil {
			region = w.region(e)
		}
		o := rollout.Outcome{API: "orders", Kind: 5}
		if e == 0 {
			o.BeforeRequests, o.BeforeFailing = w.before, fails(w.before, w.usual(0, -1))
		}
		reports = append(reports, rollout.Report{Edge: string(rune('a' + e)), Region: region, Connected: true, Ready: true, Holds: true, Judged: true, Outcomes: []rollout.Outcome{o}})
	}
	j.Look(r, reports, 0)
	for s := range w.seconds {
		for e := range reports {
			o := &reports[e].Outcomes[0]
			n := int64(w.perSecond)
			if w.perSecond < 10 { // a few, now and then
				n = int64(rng.IntN(2*w.perSecond + 1))
			}
			p := w.usual(e, s)
			if e == 0 {
				p += (1 - p) * w.harm
			}
			o.Requests, o.Failed = o.Requests+n, o.Failed+fails(n, p)
		}
		if w := j.Look(r, reports, time.Duration(s+1)*time.Second); w.Verdict == rollout.Bad {
			return reports[0].Outcomes[0].Requests, s + 1
		}
	}
	return 0, 0
}

func always(p float64) func(int, int) float64 { return func(int, int) float64 { return p } }

// A change that does no harm is taken back by chance in fewer than one of a thousand roll-outs, whatever usually fails, with
// a handful of requests as well as with many, and however long it is watched. Where an edge or a minute is unlike others, in
// fewer than one of a hundred.
func TestJudge_TakesNothingBackByChance(t *testing.T) {
	for _, c := range []struct {
		name   string
		w      traffic
		runs   int
		atMost float64
	}{
		{"a handful, one of ten fails", traffic{neighbour: 1, before: 12, perSecond: 1, seconds: 120, usual: always(0.1)}, 1000, 1e-3},
		{"a handful, half of them fail", traffic{neighbour: 1, before: 3, perSecond: 1, seconds: 60, usual: always(0.5)}, 1000, 1e-3},
		{"nothing to compare with, one of five fails", traffic{perSecond: 2, seconds: 60, usual: always(0.2)}, 1000, 1e-3},
		{"few to compare with", traffic{before: 60, perSecond: 5, seconds: 120, usual: always(0.05)}, 1000, 1e-3},
		{"one of a hundred fails", traffic{neighbour: 2, before: 500, perSecond: 20, seconds: 60, usual: always(0.01)}, 200, 1e-3},
		{"one of five fails", traffic{neighbour: 2, before: 150, perSecond: 20, seconds: 60, usual: always(0.2)}, 200, 1e-3},
		{"watched for an hour", traffic{neighbour: 1, before: 100, perSecond: 5, seconds: 3600, usual: always(0.05)}, 4, 1e-3},
		{"this edge always fails more", traffic{neighbour: 3, before: 300, perSecond: 20, seconds: 60, usual: func(edge, _ int) float64 {
			if edge == 0 {
				return 0.2
			}
			return 0.01
		}}, 100, 1e-2},
		{"this edge always fails more, and did little before", traffic{neighbour: 3, before: 60, perSecond: 20, seconds: 60, usual: func(edge, _ int) float64 {
			if edge == 0 {
				return 0.2
			}
			return 0.01
		}}, 100, 1e-2},
		{"an upstream of the region dies", traffic{neighbour: 3, before: 300, perSecond: 20, seconds: 60, region: func(edge int) string { return []string{"here", "here", "there", "there"}[edge] }, usual: func(edge, at int) float64 {
			if at > 20 && edge < 2 {
				return 0.9
			}
			return 0.01
		}}, 100, 1e-2},
	} {
		t.Run(c.name, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(20261126, uint64(len(c.name))))
			wrong := 0
			for range c.runs {
				if n, _ := c.w.run(rng); n > 0 {
					wrong++
				}
			}
			t.Logf("%d of %d taken back", wrong, c.runs)
			if float64(wrong) > c.atMost*float64(c.runs) {
				t.Errorf("%d of %d roll-outs of a good change were taken back, want at most %g of them", wrong, c.runs, c.atMost)
			}
		})
	}
}

// A change by which a fifth fails is found soon, if there is something to compare it with; one by which all fails also
// where there is nothing.
func TestJudge_FindsAFifth(t *testing.T) {
	for _, c := range []struct {
		name         string
		w            traffic
		half, almost int64 // requests by which half of them, and 99 of 100, are found
	}{
		{"a busy canary", traffic{neighbour: 1, before: 1000, perSecond: 10, seconds: 60, usual: always(0.01), harm: 0.2}, 60, 150},
		{"nobody beside it", traffic{before: 1000, perSecond: 10, seconds: 60, usual: always(0.01), harm: 0.2}, 60, 150},
		{"a little before", traffic{neighbour: 1, before: 100, perSecond: 10, seconds: 60, usual: always(0.01), harm: 0.2}, 110, 250},
		{"of many, a fifth fails already", traffic{neighbour: 1, before: 5000, perSecond: 100, seconds: 60, usual: always(0.2), harm: 0.2}, 500, 1200},
		{"all fails, and nothing to compare it with", traffic{perSecond: 10, seconds: 60, usual: always(0), harm: 1}, 40, 40},
	} {
		t.Run(c.name, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(20261126, 2))
			var found []int64
			const runs = 100
			for range runs {
				n, _ := c.w.run(rng)
				if n == 0 {
					n = 1 << 40
				}
				found = append(found, n)
			}
			slices.Sort(found)
			half, almost := found[runs/2], found[runs*99/100]
			t.Logf("half found within %d requests, 99 of 100 within %d, the last after %d", half, almost, found[runs-1])
			if half > c.half || almost > c.almost {
				t.Errorf("half found within %d requests and 99 of 100 within %d, want %d and %d", half, almost, c.half, c.almost)
			}
		})
	}
}

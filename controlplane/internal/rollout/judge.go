package rollout

import (
	"cmp"
	"math"
	"slices"
	"time"

	"bailiwick/controlplane/internal/model"
)

// Report is what a zone's leader knows of one of its edges.
type Report struct {
	Edge, Region string
	Connected    bool
	Ready        bool
	Refuses      string // why it does not take what it was sent last; "": it does, or has not answered yet
	Holds        bool   // all that it is to hold by the present record
	Unusable     int64  // objects that it holds and cannot use
	// Outcomes are of the objects it holds, if Judged; else of others.
	Judged   bool
	Outcomes []Outcome
}

// Outcome is how many requests to one API failed in one way under the objects held now, and under those before. Ways are
// judged apart: customers over their limits must not hide a route that is gone.
type Outcome struct {
	API                           string
	Kind                          int
	Requests, Failed              int64
	BeforeRequests, BeforeFailing int64
}

type way struct {
	api  string
	kind int
}

func (o Outcome) way() way { return way{o.API, o.Kind} }

// transport are refusals that say something of the road or the disk and nothing of the change.
var transport = []string{"SUM_MISMATCH", "POSITION_MISMATCH", "UPDATE_LOST", "STALE_TABLE", "SIGNATURE_INVALID", "WRONG_EDGE", "PERSIST"}

// Limits of judging requests.
const (
	minFailed = 4    // fewer failures are no pattern
	sigmas    = 3    // by how much more must fail than did before, or do elsewhere, to be no chance
	margin    = 0.02 // and by how much of all requests
)

// Judge is what a zone's leader makes of its edges. It belongs to one goroutine.
type Judge struct {
	Zone string
	Soak Soak

	number, round uint64
	ring          int
	heldSince     time.Duration // since when all edges of the ring hold the change and are ready; -1: they do not
	unready, gone map[string]time.Duration
	present       map[string]bool            // edges of the ring that were seen connected
	first         map[string]map[way]Outcome // edge → API → when it was first looked at in this round
	refusing      map[string]bool            // edges that took nothing when the round began
	unusable      map[string]int64           // objects that edges could not use then
	last          model.RolloutWord
	spoke         time.Duration
}

// Look says what the zone's word is now. reports are of the zone's edges alone.
func (j *Judge) Look(r model.Rollout, reports []Report, now time.Duration) model.RolloutWord {
	z := r.Zone(j.Zone)
	ring := -1
	if z != nil && z.Canary != "" {
		ring = z.Ring
	}
	if j.number != r.Number || j.round != r.Round {
		j.first, j.refusing, j.unusable = map[string]map[way]Outcome{}, map[string]bool{}, map[string]int64{}
		for _, e := range reports {
			j.refusing[e.Edge], j.unusable[e.Edge] = e.Refuses != "", e.Unusable
		}
	}
	if j.number != r.Number || j.round != r.Round || j.ring != ring {
		j.number, j.round, j.ring = r.Number, r.Round, ring
		j.heldSince, j.unready, j.gone, j.present = -1, map[string]time.Duration{}, map[string]time.Duration{}, map[string]bool{}
	}
	for _, e := range reports {
		if j.first[e.Edge] == nil {
			j.first[e.Edge] = map[way]Outcome{}
		}
		for _, o := range e.Outcomes {
			if _, ok := j.first[e.Edge][o.way()]; !ok {
				j.first[e.Edge][o.way()] = o
			}
		}
	}
	w := model.RolloutWord{Zone: j.Zone, Number: r.Number, Round: r.Round, Ring: ring, Verdict: Waiting}
	if ring < 0 {
		w.Canary = nominate(reports)
		if w.Canary == "" {
			w.Verdict = Alone
		}
		return w
	}
	j.judge(&w, r, *z, reports, now)
	return w
}

// Speak says whether a word is news, or the zone has been silent for so long that it should say so again.
func (j *Judge) Speak(w model.RolloutWord, now time.Duration) (model.RolloutWord, bool) {
	w.Beat = j.last.Beat
	if w == j.last && now-j.spoke < j.Soak.beat() {
		return w, false
	}
	w.Beat++
	return w, true
}

// Spoken takes note that a word is in the catalog.
func (j *Judge) Spoken(w model.RolloutWord, now time.Duration) { j.last, j.spoke = w, now }

// nominate takes a ready edge, the one with most to do: a canary that nobody asks anything tells nothing.
func nominate(reports []Report) string {
	busy := func(r Report) (n int64) {
		for _, o := range r.Outcomes {
			n = max(n, o.Requests+o.BeforeRequests) // of its busiest API
		}
		return n
	}
	var best *Report
	for i, r := range reports {
		if r.Connected && r.Ready && r.Refuses == "" &&
			(best == nil || cmp.Or(cmp.Compare(busy(r), busy(*best)), cmp.Compare(best.Edge, r.Edge)) > 0) {
			best = &reports[i]
		}
	}
	if best == nil {
		return ""
	}
	return best.Edge
}

func (j *Judge) judge(w *model.RolloutWord, r model.Rollout, z model.RolloutZone, reports []Report, now time.Duration) {
	bad := func(why, edge, api string) { w.Verdict, w.Why, w.Edge, w.API = Bad, why, edge, api }
	reached := func(e Report) bool {
		return r.Reaches(model.Node{Name: e.Edge, Region: e.Region, Zone: j.Zone})
	}
	overdue := func(m map[string]time.Duration, edge string, within time.Duration) bool {
		since, ok := m[edge]
		if !ok {
			m[edge], since = now, now
		}
		return now-since >= within
	}
	all, connected := true, false
	seen := map[string]bool{}
	var elsewhere []Report
	for _, e := range reports {
		connected = connected || e.Connected
		if !reached(e) {
			elsewhere = append(elsewhere, e)
			continue
		}
		seen[e.Edge] = true
		if !e.Connected {
			// One that was away when its ring came takes the change when it returns. The canary has to be there.
			if e.Edge == z.Canary || j.present[e.Edge] {
				all = false
				if overdue(j.gone, e.Edge, j.Soak.Lost) {
					bad(WhyLost, e.Edge, "")
					return
				}
			}
			continue
		}
		delete(j.gone, e.Edge)
		if e.Refuses == "" {
			delete(j.refusing, e.Edge)
		} else if j.refusing[e.Edge] && e.Edge != z.Canary {
			continue // it did before, and tells nothing of this change
		}
		j.present[e.Edge] = true
		switch {
		case e.Refuses != "" && !slices.Contains(transport, e.Refuses):
			bad(WhyRefused, e.Edge, "")
			return
		case e.Judged && e.Unusable > j.unusable[e.Edge]:
			bad(WhyRefused, e.Edge, "")
			return
		case !e.Holds:
			all = false
		case !e.Ready:
			all = false
			if overdue(j.unready, e.Edge, j.Soak.Ready) {
				bad(WhyNotReady, e.Edge, "")
				return
			}
		default:
			delete(j.unready, e.Edge)
		}
	}
	if !seen[z.Canary] {
		all = false
		if overdue(j.gone, z.Canary, j.Soak.Lost) {
			bad(WhyLost, z.Canary, "")
			return
		}
	}
	if edge, api, failing := j.failing(reached, reports, elsewhere); failing {
		bad(WhyFailing, edge, api)
		return
	}
	switch {
	case !connected:
		w.Verdict, j.heldSince = Alone, -1
	case !all:
		j.heldSince = -1
	case j.heldSince < 0:
		j.heldSince = now
	}
	if j.heldSince >= 0 && now-j.heldSince >= j.Soak.of(z.Ring, r.Soak) {
		w.Verdict = Good
	}
}

// failing finds an API whose requests fail at an edge that holds the change, by more than chance, compared with the same
// edge before and with the zone's other edges since the round began: what fails everywhere is not the change's doing.
func (j *Judge) failing(reached func(Report) bool, reports, elsewhere []Report) (edge, api string, failing bool) {
	var n, f = map[string]int64{}, map[way]int64{}
	for _, e := range elsewhere {
		counted := map[string]bool{}
		for _, o := range e.Outcomes {
			start := j.first[e.Edge][o.way()]
			d := o.Requests - start.Requests
			if d < 0 { // it began to count anew
				continue
			}
			if f[o.way()] += max(0, o.Failed-start.Failed); !counted[o.API] {
				counted[o.API], n[o.API] = true, n[o.API]+d
			}
		}
	}
	rate := func(failed, of int64) float64 {
		if of == 0 {
			return 0
		}
		return float64(failed) / float64(of)
	}
	for _, e := range reports {
		if !reached(e) || !e.Judged {
			continue
		}
		for _, o := range e.Outcomes {
			usual := max(rate(o.BeforeFailing, o.BeforeRequests), rate(f[o.way()], n[o.API]))
			all := float64(o.Requests)
			expected := usual * all
			chance := sigmas * math.Sqrt(expected*(1-usual))
			if o.Failed >= minFailed && float64(o.Failed) > expected+chance+margin*all {
				return e.Edge, o.API, true
			}
		}
	}
	return "", "", false
}

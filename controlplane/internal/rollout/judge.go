package rollout

import (
	"cmp"
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

// Judge is what a zone's leader makes of its edges. It belongs to one goroutine.
type Judge struct {
	Zone string
	Soak Soak

	number, round uint64
	ring          int
	heldSince     time.Duration // since when all edges of the ring hold the change and are ready; -1: they do not
	unready, gone map[string]time.Duration
	present       map[string]bool            // edges of the ring that were seen connected
	first         map[string]map[way]Outcome // edge → way → what it counted when the round began
	looked        map[lookedAt]look
	refusing      map[string]bool  // edges that took nothing when the round began
	unusable      map[string]int64 // objects that edges could not use then
	// ended is why the round was found bad; its Verdict is empty until then. It stands for the round: what was found is found
	// once, by numbers that were new then, and the word of it may have to wait until the catalog takes one.
	ended model.RolloutWord
	last  model.RolloutWord
	spoke time.Duration
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
		j.looked, j.ended = map[lookedAt]look{}, model.RolloutWord{}
		for _, e := range reports {
			j.refusing[e.Edge], j.unusable[e.Edge] = e.Refuses != "", e.Unusable
		}
	}
	if j.number != r.Number || j.round != r.Round || j.ring != ring {
		j.number, j.round, j.ring = r.Number, r.Round, ring
		j.heldSince, j.unready, j.gone, j.present = -1, map[string]time.Duration{}, map[string]time.Duration{}, map[string]bool{}
	}
	for _, e := range reports {
		j.begin(e)
	}
	w := model.RolloutWord{Zone: j.Zone, Number: r.Number, Round: r.Round, Ring: ring, Verdict: Waiting}
	if ring < 0 {
		w.Canary = nominate(reports)
		if w.Canary == "" {
			w.Verdict = Alone
		}
		return w
	}
	if j.ended.Verdict == Bad {
		w.Verdict, w.Why, w.Edge, w.API = Bad, j.ended.Why, j.ended.Edge, j.ended.API
		return w
	}
	if j.judge(&w, r, *z, reports, now); w.Verdict == Bad {
		j.ended = w
	}
	return w
}

// begin takes note of what an edge has counted when it is first seen in a round, so that only what comes after counts. A way
// of failing that it tells of later had no failures then.
func (j *Judge) begin(e Report) {
	seen := j.first[e.Edge]
	if seen == nil {
		seen = map[way]Outcome{}
		for _, o := range e.Outcomes {
			seen[o.way()] = o
		}
		j.first[e.Edge] = seen
	}
	start := map[string]int64{} // API → requests
	for w, o := range seen {
		start[w.api] = max(start[w.api], o.Requests)
	}
	for _, o := range e.Outcomes {
		was, ok := seen[o.way()]
		switch {
		case o.Requests < start[o.API]: // it counts anew, under other objects
			seen[o.way()] = Outcome{API: o.API, Kind: o.Kind}
		case !ok:
			seen[o.way()] = Outcome{API: o.API, Kind: o.Kind, Requests: start[o.API]}
		default:
			seen[o.way()] = was
		}
	}
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
// edge before and with edges that do not hold it since the round began, those of its region apart: an upstream that dies
// fails all edges of its region.
func (j *Judge) failing(reached func(Report) bool, reports, elsewhere []Report) (edge, api string, failing bool) {
	type where struct {
		region string
		way
	}
	others, total := map[where]side{}, map[where]int64{} // requests of an API are counted once, whatever failed how
	for _, e := range elsewhere {
		counted := map[string]bool{}
		for _, o := range e.Outcomes {
			start := j.first[e.Edge][o.way()]
			at := where{e.Region, o.way()}
			s := others[at]
			s.failed += max(0, o.Failed-start.Failed)
			if others[at] = s; !counted[o.API] {
				counted[o.API] = true
				total[where{e.Region, way{api: o.API}}] += o.Requests - start.Requests
			}
		}
	}
	holds, apis := 0, map[string]bool{}
	for _, e := range reports {
		if reached(e) && e.Judged {
			holds++
			for _, o := range e.Outcomes {
				apis[o.API] = true
			}
		}
	}
	for _, e := range reports {
		if !reached(e) || !e.Judged {
			continue
		}
		for _, o := range e.Outcomes {
			before := side{o.BeforeRequests, min(o.BeforeFailing, o.BeforeRequests)}
			var near, far side
			for at, n := range total {
				if at.api != o.API {
					continue
				}
				s := side{n, min(n, others[where{at.region, o.way()}].failed)}
				if at.region == e.Region {
					near = near.plus(s)
				} else {
					far = far.plus(s)
				}
			}
			look, new := j.look(e.Edge, o, before.n+near.n+far.n)
			if !new {
				continue // as good as the same numbers: asking again and again makes chance a certainty
			}
			if worse(side{o.Requests, min(o.Failed, o.Requests)}, []side{before, near, far}, look, ways*len(apis)*holds) {
				return e.Edge, o.API, true
			}
		}
	}
	return "", "", false
}

// ways of failing that edges tell apart.
const ways = 5

// look numbers this look at a way of failing, and says whether there is enough new to look at.
func (j *Judge) look(edge string, o Outcome, against int64) (number int, new bool) {
	key := lookedAt{edge, o.way()}
	at, ok := j.looked[key]
	if n := looks(o.Requests); !ok || n < at.now { // it began to count anew
		at = look{against: looks(against)}
	}
	number = looks(o.Requests) + looks(against) - at.against
	new = number > at.number
	at.now, at.number = looks(o.Requests), max(number, at.number)
	j.looked[key] = at
	return number, new
}

type lookedAt struct {
	edge string
	way
}

type look struct {
	against int // of what it is compared with, when it was first looked at
	now     int
	number  int // the last one
}

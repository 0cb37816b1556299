package failover

import (
	"math/rand/v2"
	"time"
)

// maxPicked is how many of an API's targets one request looks at; of more, a run of them that begins anywhere.
const maxPicked = 64

// fitness is whether a target may be the first choice of a request now.
type fitness uint8

const (
	unjudged fitness = iota
	unfit            // not well, tried before, or in doubt
	reserve          // well, but others first: it fails more than they do, or it is new and starts slowly
	regular
)

func (a *Attempts) fit(t *Target, now time.Duration) fitness {
	if a.seenHome(t) || a.doubted(t) || !t.takes(now) {
		return unfit
	}
	if t.out.Load() || !t.started(now) {
		return reserve
	}
	return regular
}

// started says whether a target that came beside others takes this request: more and more of them over its slow start.
func (t *Target) started(now time.Duration) bool {
	joined := time.Duration(t.joined.Load())
	if joined == 0 {
		return true
	}
	slow := t.settings.Load().dispatch.SlowStart
	if now-joined >= slow {
		t.joined.CompareAndSwap(int64(joined), 0)
		return true
	}
	return rand.Float64() < max(0.05, float64(now-joined)/float64(slow))
}

// pick takes a place at a target that is believed to be well: the less busy of two taken at random (Mitzenmacher, "The
// power of two choices", 2001), or the first in order. Busy is counted in requests under way, not weighed by latency: a
// target that fails at once is the fastest of all, and would get everything. nil: there is none, and a.full says whether
// there would be one with a place.
func (a *Attempts) pick() *Target {
	n, offset := len(a.targets), 0
	a.full = false
	if n > maxPicked {
		n, offset = maxPicked, rand.IntN(n)
	}
	now := a.now()
	if n > 0 && a.api.Dispatch.MaxRequests > 0 {
		a.targets[0].line.note(a.rank, now)
	}
	inOrder := a.api.Dispatch.Choice == "in-order"
	var judged [maxPicked]fitness // once each: a share is a throw of dice
	at := func(i int) *Target { return a.targets[(offset+i)%len(a.targets)] }
	fit := func(i int) fitness {
		if judged[i] == unjudged {
			judged[i] = a.fit(at(i), now)
		}
		return judged[i]
	}
	if n > 1 && !inOrder {
		i, j := rand.IntN(n), rand.IntN(n-1)
		if j >= i {
			j++
		}
		if fit(i) == regular && fit(j) == regular {
			t, other := at(i), at(j)
			if other.busy.Load() < t.busy.Load() {
				t, other = other, t
			}
			if t.enter(a.standing) {
				return t
			}
		}
	}
	for _, want := range [...]fitness{regular, reserve} {
		for range n {
			best := -1
			for i := range n {
				switch {
				case fit(i) != want:
				case at(i).full(a.standing):
					a.full = true
				case best < 0 || !inOrder && at(i).busy.Load() < at(best).busy.Load():
					best = i
				}
			}
			if best < 0 {
				break
			}
			if t := at(best); t.enter(a.standing) {
				return t
			}
		}
	}
	return nil
}

// HedgeHome is a second target of this region for a request that waits at the first. Call Leave when done with it.
func (a *Attempts) HedgeHome() (Candidate, bool) {
	t := a.pick()
	if t == nil {
		return Candidate{}, false
	}
	if t.stalled(a.r.monitor.now(), 0) {
		t.leave()
		return Candidate{}, false
	}
	a.sawHome(t)
	return Candidate{Target: t}, true
}

// CanHedgeHome says whether HedgeHome may give something.
func (a *Attempts) CanHedgeHome() bool {
	now := a.r.monitor.now()
	for i, t := range a.targets {
		if i < maxPicked && a.fit(t, now) != unfit {
			return true
		}
	}
	return false
}

func (a *Attempts) seenHome(t *Target) bool {
	for _, o := range a.triedHome[:a.nHome] {
		if o == t {
			return true
		}
	}
	return a.nHome == len(a.triedHome)
}

func (a *Attempts) sawHome(t *Target) {
	if a.nHome < len(a.triedHome) {
		a.triedHome[a.nHome] = t
		a.nHome++
	}
}

func (a *Attempts) doubted(t *Target) bool {
	for _, o := range a.doubt[:a.nDoubt] {
		if o == t {
			return true
		}
	}
	return a.nDoubt == len(a.doubt)
}

func (a *Attempts) doubts(t *Target) {
	if a.nDoubt < len(a.doubt) {
		a.doubt[a.nDoubt] = t
		a.nDoubt++
	}
}

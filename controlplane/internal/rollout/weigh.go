package rollout

import "math"

// Limits of judging requests. DESIGN.md says which promises they come to.
const (
	// falseAlarm is how likely chance alone may take a change back that does no harm: in one zone, in one roll-out, over all
	// edges that it has reached, all APIs and ways of failing, and all looks.
	falseAlarm = 1e-3
	// otherwise is the same where this edge always failed more than others do, or something fails everywhere at once: each
	// side that has enough requests must then be told from what is seen by itself.
	otherwise = 10 * falseAlarm
	decisive  = 200  // requests, from which on a side is compared by itself
	evident   = 0.01 // how unlikely a smaller side's failures are, among those of all others, where it is compared by itself too
	comparing = 20   // requests; with fewer to compare with, only what fails more often than not is the change's doing
	minFailed = 4    // fewer failures are no pattern, however unlikely
	margin    = 0.02 // of all requests: less is no harm that a change is taken back for, however certain
	step      = 1.25 // by how much the requests have to grow before they are weighed again
)

// side is how many requests there were, and how many failed in one way.
type side struct{ n, failed int64 }

func (s side) plus(o side) side { return side{s.n + o.n, s.failed + o.failed} }

func (s side) rate() float64 {
	if s.n == 0 {
		return 0
	}
	return float64(s.failed) / float64(s.n)
}

// worse says whether more fails now than chance explains. against are what it is compared with: the same edge before, and
// edges that do not hold the change; look counts how often it has been asked before, from 1; shared is how many questions
// share the permitted error.
//
// All of them together answer for chance, since each may be small. But a rate differs from edge to edge and from minute to
// minute too, and then the sum of two sides is like neither: so each side must agree that has enough to say so, or that
// fails more than the others by what little it has.
func worse(now side, against []side, look, shared int) bool {
	if now.failed < minFailed {
		return false
	}
	spend := 1 / (float64(look) * float64(look+1)) // sums up to 1 over all looks that there will ever be
	spend /= float64(max(1, shared))
	var all side
	for _, s := range against {
		all = all.plus(s)
	}
	for _, s := range against {
		rest := side{all.n - s.n, all.failed - s.failed}
		asked := s.n >= decisive || rest.n >= comparing && s.rate() > rest.rate() && unlikely(s, rest) <= evident
		if asked && !(now.rate() > s.rate()+margin && unlikely(now, s) <= otherwise*spend) {
			return false
		}
	}
	if all.n < comparing {
		return now.rate() > 0.5 && atLeast(now.failed, now.n, 0.5) <= falseAlarm*spend
	}
	return now.rate() > all.rate()+margin && unlikely(now, all) <= falseAlarm*spend
}

// looks numbers the moments at which requests are weighed: it goes up by one whenever they have grown by a quarter.
func looks(n int64) int {
	if n < minFailed {
		return 0
	}
	return 1 + int(math.Log(float64(n)/minFailed)/math.Log(step))
}

// unlikely is how probable it is that at least so many of all failures are among those requests, if it were the same for
// all how likely they fail: Fisher's exact test, one-sided. It is right for any rate and the smallest numbers.
func unlikely(now, usual side) float64 {
	n1, n0, k := float64(now.n), float64(usual.n), float64(now.failed+usual.failed)
	x := float64(now.failed)
	term := math.Exp(choose(n1, x) + choose(n0, k-x) - choose(n1+n0, k))
	return tail(term, func(i float64) float64 {
		x := x + i
		return (n1 - x) * (k - x) / ((x + 1) * (n0 - k + x + 1))
	}, min(k, n1)-x)
}

// atLeast is how probable it is that at least so many of n fail, if each does with that probability.
func atLeast(failed, n int64, p float64) float64 {
	x, all := float64(failed), float64(n)
	term := math.Exp(choose(all, x) + x*math.Log(p) + (all-x)*math.Log1p(-p))
	return tail(term, func(i float64) float64 { return (all - x - i) / (x + i + 1) * p / (1 - p) }, all-x)
}

// tail sums up a first term and as many further ones, each a multiple of the one before.
func tail(term float64, ratio func(i float64) float64, further float64) float64 {
	sum := term
	for i := 0.0; i < further; i++ {
		q := ratio(i)
		if term *= q; term < sum*1e-9 && q < 1 {
			break
		}
		sum += term
	}
	return min(1, sum)
}

// choose is the logarithm of n over k.
func choose(n, k float64) float64 {
	a, _ := math.Lgamma(n + 1)
	b, _ := math.Lgamma(k + 1)
	c, _ := math.Lgamma(n - k + 1)
	return a - b - c
}

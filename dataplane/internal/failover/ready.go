package failover

import "time"

// Ready is Next where that waits for nothing: a home upstream that is believed to be well and has a place. false: nothing has
// happened, and Next says more.
func (a *Attempts) Ready() (c Candidate, ok bool) {
	m := a.r.monitor
	a.targets, a.nDoubt = m.of(a.api), 0
	t := a.pick()
	if t == nil {
		return Candidate{}, false
	}
	timeout := time.Duration(0)
	if a.route != nil {
		timeout = a.route.Timeout
	}
	if now := a.now(); t.stalled(now, timeout) || a.once && t.unproven(now) {
		t.leave()
		return Candidate{}, false
	}
	a.at = 0
	a.sawHome(t)
	return Candidate{Target: t}, true
}

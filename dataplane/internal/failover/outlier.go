package failover

import "time"

const (
	compareEvery   = 5 * time.Second
	outlierFor     = 30 * time.Second // the first time; as much more each further time
	outlierForMost = 5 * time.Minute
	outlierSample  = 20 // answers of a target, and of all others, below which nothing is said
	outlierPercent = 20 // of failed answers, below which a target is no outlier
	outlierTimes   = 3  // how much worse than the others it must be
	ejectedPercent = 50 // of an API's targets in the region, where it does not say
)

// record is what comparing one target with the others has come to.
type record struct {
	target *Target
	tally
	out   bool
	until time.Duration // out: when it is over
	times int           // how often it was out, less one for each stretch as long as that without
	since time.Duration // not out: since when
}

// tally is how one target's requests ended since the last comparison.
type tally struct{ good, bad int64 }

func (t tally) all() int64 { return t.good + t.bad }

// judge compares the targets of one API with each other: pure. A target that fails much more than all others together is
// out for a while. It is never the last one, nor one of more than percent; and where all fail alike the fault is not a
// target's. Out means that others are taken first: it opens no way to another region.
func judge(records []record, percent int, now time.Duration) {
	if percent == 0 {
		percent = ejectedPercent
	}
	out := 0
	var total tally
	for i := range records {
		r := &records[i]
		if r.out && now >= r.until {
			r.out, r.since = false, now
		}
		if !r.out && r.times > 0 && now-r.since >= time.Duration(r.times)*outlierFor {
			r.times, r.since = r.times-1, now
		}
		if r.out {
			out++
		}
		total.good += r.good
		total.bad += r.bad
	}
	for room := min(len(records)*percent/100, len(records)-1) - out; room > 0; room-- {
		worst := -1
		for i, r := range records {
			if !r.out && deviates(r.tally, total) && (worst < 0 || r.bad*records[worst].all() > records[worst].bad*r.all()) {
				worst = i
			}
		}
		if worst < 0 {
			return
		}
		r := &records[worst]
		r.times++
		r.out, r.until = true, now+min(time.Duration(r.times)*outlierFor, outlierForMost)
		total.good -= r.good
		total.bad -= r.bad
	}
}

func deviates(t, total tally) bool {
	rest := tally{total.good - t.good, total.bad - t.bad}
	return t.all() >= outlierSample && rest.all() >= outlierSample && t.bad*100 >= outlierPercent*t.all() && t.bad*rest.all() >= outlierTimes*rest.bad*t.all()
}

// keep are the records of the targets that stay.
func keep(old, now *group) (out []record) {
	for _, t := range now.targets {
		r := record{target: t}
		for _, o := range old.records {
			if o.target == t {
				r = o
			}
		}
		out = append(out, r)
	}
	return out
}

// compare judges every API with more than one target.
func (m *Monitor) compare() {
	m.mu.RLock()
	groups := make([]*group, 0, len(m.groups))
	for _, g := range m.groups {
		if len(g.targets) > 1 {
			groups = append(groups, g)
		}
	}
	m.mu.RUnlock()
	now := m.now()
	for _, g := range groups {
		if len(g.records) != len(g.targets) {
			g.records = keep(g, g)
		}
		for i := range g.records {
			g.records[i].tally = tally{g.targets[i].good.Swap(0), g.targets[i].bad.Swap(0)}
		}
		judge(g.records, g.api.Dispatch.MaxEjectedPercent, now)
		for _, r := range g.records {
			was := r.target.out.Swap(r.out)
			switch {
			case r.out && !was:
				m.cfg.Logger.Warn("upstream fails more than the others: they are taken first", "api", g.api.Name, "target", r.target.name(), "fails", r.bad, "count", r.all(), "after", r.until-now)
			case was && !r.out:
				if g.api.Dispatch.SlowStart > 0 {
					r.target.joined.Store(int64(now))
				}
				m.cfg.Logger.Info("upstream is compared with the others again", "api", g.api.Name, "target", r.target.name())
			}
		}
	}
}

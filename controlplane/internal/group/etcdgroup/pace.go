package etcdgroup

import "time"

// maxAhead is how much more than has passed here a stamp may take the group's time forward on one clock's word.
const maxAhead = 30 * time.Second

// pace is how fast the group's time goes. Stamps come from the clock of whoever writes; one that is an hour ahead would take
// the group's time with it, for good, since stamps do not go back. So a leap needs the word of others, and without it time
// goes on as it passes here. It belongs to the goroutine that commits.
type pace struct {
	base  time.Time // a stamp of the group
	since time.Time // when it was seen, by this node's monotonic clock
}

// stamp is the next stamp of a group whose latest is known, at now by this node's clock. agrees says whether most others'
// clocks say the same; nil: nobody is asked.
func (p *pace) stamp(known, now time.Time, agrees func() bool) time.Time {
	passed := p.base.Add(now.Sub(p.since))
	if p.base.IsZero() || known.After(passed) {
		p.base, p.since, passed = known, now, known
	}
	wall := later(known, now)
	if agrees == nil || known.IsZero() || wall.Sub(passed) <= maxAhead || agrees() {
		if wall.After(passed) {
			p.base, p.since = wall, now
		}
		return wall
	}
	return later(known, passed)
}

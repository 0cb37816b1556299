package relay

import (
	"sync/atomic"
	"time"

	"bailiwick/dataplane/internal/policy"
	"bailiwick/regions/grant"
)

// answers are permissions that attempts got, kept for as long as asking again would give the same grant: the rules of
// the newest table are those (policy.Mark), the grants held are those, and the grant has not ended. Each attempt still
// loads the newest table and grants and reads the clock; what it is spared is to look up names in maps, which took two
// thirds of the time. A refusal is never kept. The zero answers has none; for any number of goroutines.
type answers struct {
	slots [1024]atomic.Pointer[answer]
}

// answer never changes.
type answer struct {
	mark  policy.Mark
	held  *grant.Held
	api   *policy.API
	to    string
	grant *grant.Grant
	until time.Duration // the end of the grant, by the clock of the questions
}

func (a *answer) stands(mark policy.Mark, held *grant.Held, now time.Duration) bool {
	return a.mark == mark && a.held == held && now < a.until
}

// slot is where an answer would be. Two questions may share one: then the first keeps it while its answer stands, and
// the other is asked in full each time, without an allocation.
func (as *answers) slot(api *policy.API, to string) *atomic.Pointer[answer] {
	h := api.Spread()
	if n := len(to); n > 0 {
		h += uint32(to[n-1]) + 31*uint32(to[n/2])
	}
	return &as.slots[h%uint32(len(as.slots))]
}

// drop lets go of what does not stand, so that no table or grant is held in memory by an answer of before.
func (as *answers) drop(mark policy.Mark, held *grant.Held, now time.Duration) {
	for i := range as.slots {
		if a := as.slots[i].Load(); a != nil && !a.stands(mark, held, now) {
			as.slots[i].CompareAndSwap(a, nil)
		}
	}
}

// leave is grant.Held.Leave of a table, for a client in region from that was born at a moment and asks now, so long
// after it.
func (as *answers) leave(t *policy.Table, held *grant.Held, api *policy.API, from, to string, born time.Time, now time.Duration) (*grant.Grant, string) {
	mark, slot := t.Mark(), as.slot(api, to)
	kept := slot.Load()
	stands := kept != nil && kept.stands(mark, held, now)
	if stands && kept.api == api && kept.to == to {
		return kept.grant, ""
	}
	g, rule := held.Leave(flightOf(api, from, to), rules{t}, born.Add(now))
	if rule == "" && !stands {
		slot.Store(&answer{mark, held, api, to, g, held.Ends(g).Sub(born)})
	}
	return g, rule
}

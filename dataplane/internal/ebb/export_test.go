package ebb

import "time"

// Tide is a tide of one count.
type Tide struct{ t tide }

func NewTide() *Tide { return &Tide{tide{high: make([]int64, 1), left: -1}} }

// Look is one look: whether memory is collected.
func (t *Tide) Look(now time.Time, count, inUse int64) bool {
	counts := []int64{count}
	return t.t.gone(now, counts) && t.t.worth(inUse, counts)
}

func (t *Tide) Ebbed(now time.Time, rest time.Duration, before, after, count int64) {
	t.t.ebbed(now, rest, before, after, []int64{count})
}

var (
	Rest = rest
	Give = give
)

// Package quota owns the arithmetic of quotas: when a period begins and ends,
// how many units of an account are free, how much of that an edge is leased, and
// how the edges of a region share a rate limit.
//
// It is pure: no clock, no I/O, no state, so nothing of it survives a crash and
// everything may be called at once. The ledger's machine applies it inside raft
// entries, where two nodes must come to the same result, and the lessor on the
// leader. It never decides which plan a customer has, nor who may ask.
package quota

import "math"

// Add adds two numbers that are not negative and saturates.
func Add(a, b int64) int64 {
	if s := a + b; s >= 0 {
		return s
	}
	return math.MaxInt64
}

// Holder is what one epoch of one edge has in an account. Both numbers only count
// what is of the account's period; Leased is cumulative: all that the epoch may
// ever spend, not what it may spend yet.
type Holder struct {
	Leased int64
	Spent  int64 // as far as its blocks are in the ledger
	// Free: what it holds does not count. It is for quotas that may be exceeded a
	// little (elastic), of an edge that was not heard from.
	Free bool
}

// Held is what the holder may still spend, as far as the ledger knows.
func (h Holder) Held() int64 { return max(0, h.Leased-h.Spent) }

// Lower takes the holder's promise never to have spent more than ceiling unless
// it is leased more. What is already spent stays.
func (h *Holder) Lower(ceiling int64) { h.Leased = min(h.Leased, max(ceiling, h.Spent)) }

// Account is one quota of one subscription in one period.
type Account struct {
	Limit   int64 // top-ups included
	Settled int64 // spent by epochs that are over
	// Forfeited was held by epochs that are lost with their disks. It counts as
	// spent: nobody can say that it was not.
	Forfeited int64
	// Sliding is what was spent in the window of a rolling quota, by all. It takes
	// the place of all that was ever spent.
	Sliding int64
	Rolling bool
	Holders []Holder
}

// Used is what was spent, as far as is known.
func (a *Account) Used() int64 {
	if a.Rolling {
		return a.Sliding
	}
	n := Add(a.Settled, a.Forfeited)
	for _, h := range a.Holders {
		n = Add(n, h.Spent)
	}
	return n
}

// Held is what is leased and not spent, as far as is known.
func (a *Account) Held() int64 {
	var n int64
	for _, h := range a.Holders {
		n = Add(n, h.Held())
	}
	return n
}

// Available is what may be leased now. The sum of what all have spent and may
// still spend never exceeds Limit by a grant of no more than this.
func (a *Account) Available() int64 {
	n := a.Used()
	for _, h := range a.Holders {
		if !h.Free {
			n = Add(n, h.Held())
		}
	}
	return max(0, a.Limit-n)
}

// Grant sizes a lease: what is wanted, but no more than half of an even share of
// what is left, so that the last units of a quota go out in small pieces to
// whoever needs them, and at least one unit while there is one.
func Grant(available, want, sharers int64) int64 {
	if available <= 0 || want <= 0 {
		return 0
	}
	sharers = min(max(1, sharers), math.MaxInt64/2)
	return min(want, max(1, available/(2*sharers)))
}

// Raised is a limit with a grace of so many percent.
func Raised(units int64, gracePercent int) int64 {
	if gracePercent <= 0 {
		return units
	}
	p := int64(gracePercent)
	// units*p/100 without overflow.
	return Add(units, Add(mul(units/100, p), units%100*p/100))
}

func mul(a, b int64) int64 {
	if a != 0 && b > math.MaxInt64/a {
		return math.MaxInt64
	}
	return a * b
}

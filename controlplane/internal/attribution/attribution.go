// Package attribution owns the judgement of what an edge says was used: whether
// it may bill for these customers, from these regions, on these APIs, and whether
// any edge could have served so much at such times.
//
// It is pure: what a node knows is given to it. It never refuses what an honest
// edge can bring, however long it was cut off: each bound says why it holds then.
// Every function may be called at once.
package attribution

import (
	"fmt"
	"time"

	"bailiwick/shared/usage"
)

// The reasons of refusals.
const (
	ForeignCustomer = "FOREIGN_CUSTOMER" // of another zone, or nobody
	ForeignRegion   = "FOREIGN_REGION"   // the edge may not serve from it
	ForeignAPI      = "FOREIGN_API"      // of another zone, or none
	Implausible     = "IMPLAUSIBLE"      // no edge could have done that
)

// Limits.
const (
	// MaxRate is the requests a second of one edge. A row lies in the cell in which its request finished, so an
	// edge has at most MaxRate × 900 s requests in one cell, whenever the block comes: an outage makes more cells,
	// never fuller ones. What one core serves is a tenth of it. Blocks are judged one by one: an edge that lies with
	// its own certificate can spread a lie over many, which this does not notice.
	MaxRate = 250_000
	// MaxQuantity bounds the units and the bytes, each way, that one cell of one block may hold: 900 s at 10 Tbit/s.
	MaxQuantity = 1 << 50
	// MaxAge is how long before an edge joined, and before its spool's epoch began, its rows may lie. An edge stamps
	// a row when it finishes, never before its epoch began; the allowance is for clocks that were set, and for a
	// spool that is shipped after its edge has joined anew.
	MaxAge = 35 * 24 * time.Hour
	// MaxPeriod is how long before a row a quota's period may have begun: a year, and what a long request adds.
	MaxPeriod = 400 * 24 * time.Hour
	// MaxAhead is how long after a row's cell its period may begin: a leader whose clock is wrong says so a day early.
	MaxAhead = 24 * time.Hour
)

// Facts is what a node knows of its zone. A name may be unknown because the node lags behind.
type Facts interface {
	Customer(name string) bool // of the zone, or was
	Region(name string) bool   // an edge of the edge's region may serve, or might have, from there
	API(name string) bool      // of the zone, or was
}

// Finding is why a block is refused; the zero Finding refuses nothing.
type Finding struct {
	Reason, Detail string
	// Unknown: a name is not known here. It counts only if the facts are fresh.
	Unknown bool
}

// Plausible judges what needs no facts. joined and epoch say since when the edge can have rows: an epoch's number
// is the unix ms of its beginning, or small in tests. rate is in requests a second; 0 means MaxRate.
func Plausible(cells map[usage.Cell]usage.Sums, joined time.Time, epoch uint64, rate int64) Finding {
	if rate == 0 {
		rate = MaxRate
	}
	oldest := int64(epoch/1000) - int64(MaxAge/time.Second)
	if !joined.IsZero() {
		oldest = max(min(joined.Unix(), int64(epoch/1000)), joined.Unix()-int64(MaxAge/time.Second)) - int64(MaxAge/time.Second)
	}
	served := make(map[int64]int64)
	for c, s := range cells {
		switch {
		case c.Start+usage.CellSeconds <= oldest:
			return Finding{Reason: Implausible, Detail: fmt.Sprintf("a row of %s is older than this edge and its spool: look at the edge's clock",
				time.Unix(c.Start, 0).UTC().Format(time.RFC3339))}
		case !periodic(c.Period, c.Start):
			return Finding{Reason: Implausible, Detail: fmt.Sprintf("a row of %s names quota period %d, and no quota has one that begins then",
				time.Unix(c.Start, 0).UTC().Format(time.RFC3339), c.Period)}
		case s.Units > MaxQuantity || s.BytesIn > MaxQuantity || s.BytesOut > MaxQuantity:
			return Finding{Reason: Implausible, Detail: fmt.Sprintf("a cell holds more than %d units or bytes", int64(MaxQuantity))}
		}
		served[c.Start] += min(s.Requests, rate*usage.CellSeconds+1) // at most 65,536 such terms: no overflow
	}
	for start, n := range served {
		if n > rate*usage.CellSeconds {
			return Finding{Reason: Implausible, Detail: fmt.Sprintf("more than %d requests a second in the quarter of an hour from %s", rate,
				time.Unix(start, 0).UTC().Format(time.RFC3339))}
		}
	}
	return Finding{}
}

// periodic: a period's start is on a quarter of an hour in every time zone, and not far from the row.
func periodic(period, start int64) bool {
	switch period {
	case 0, usage.PeriodRolling, usage.PeriodPrepaid:
		return true
	}
	return period%usage.CellSeconds == 0 && period >= start-int64(MaxPeriod/time.Second) && period < start+usage.CellSeconds+int64(MaxAhead/time.Second)
}

// Entitled judges the names that cells hold. Details name no customer.
func Entitled(cells map[usage.Cell]usage.Sums, region string, f Facts) Finding {
	customers, places, apis := make(map[string]bool), make(map[string]bool), make(map[string]bool)
	fresh := func(seen map[string]bool, name string) bool {
		was := seen[name]
		seen[name] = true
		return !was
	}
	for c := range cells {
		switch {
		case fresh(customers, c.Customer) && !f.Customer(c.Customer):
			return Finding{Reason: ForeignCustomer, Detail: "a row names a customer that is not of this zone", Unknown: true}
		case c.ServedRegion != "" && c.ServedRegion != region && fresh(places, c.ServedRegion) && !f.Region(c.ServedRegion):
			return Finding{Reason: ForeignRegion, Detail: fmt.Sprintf("a row says that region %.64q served it, from which this zone is not served", c.ServedRegion), Unknown: true}
		case fresh(apis, c.API) && !f.API(c.API):
			return Finding{Reason: ForeignAPI, Detail: fmt.Sprintf("a row names API %.64q, which is not of this zone", c.API), Unknown: true}
		}
	}
	return Finding{}
}

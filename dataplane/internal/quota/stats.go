package quota

import (
	"sync/atomic"
	"time"
)

type counters struct {
	exchanges, failed, latency, crowded, exhausted, unconfirmed atomic.Int64
}

// Stats are counters since New and sizes now. Reading them looks at every account.
type Stats struct {
	Exchanges, Failed int64
	Latency           time.Duration // of the last exchange
	Exhausted         int64         // requests of a quota that was known to be used up
	Unconfirmed       int64         // requests that nobody answered for in time, those crowded out included
	Crowded           int64         // requests that could not wait because MaxParked others did
	Parked            int64         // requests that wait now
	Accounts          int64
	Spent             int64 // units, in the current periods of this epoch
	Free              int64 // leased, not taken
	Share             int64 // of a rate limit where the leader named none, in millionths
	Reachable         bool
}

// Stats may be called at any time.
func (b *Book) Stats() Stats {
	s := Stats{Exchanges: b.stats.exchanges.Load(), Failed: b.stats.failed.Load(), Latency: time.Duration(b.stats.latency.Load()),
		Exhausted: b.stats.exhausted.Load(), Unconfirmed: b.stats.unconfirmed.Load(), Crowded: b.stats.crowded.Load(), Parked: b.parked.Load(), Share: b.even.Load(), Reachable: b.reachable.Load()}
	b.all(func(a *Account) {
		s.Accounts++
		if l := a.lease.Load(); l != nil {
			s.Spent += l.spent.Load()
			s.Free += max(0, l.free.Load())
		}
	})
	return s
}

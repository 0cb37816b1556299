package proxy

import (
	"hash/maphash"
	"net/netip"
	"sync/atomic"
	"time"

	"bailiwick/dataplane/internal/gate"
)

// What is answered without a key (preflights, the keys of signed identity) is nobody's to pay for, and no plan limits it. Each
// address may ask for so much of it, of IPv6 each /64; this machine's own are not bounded, as with connections: what stands
// before an edge there speaks for many. Addresses share places by a hash that nobody outside knows, so a flood of them takes no
// memory.
const (
	gratisRate  = 200 // a second
	gratisBurst = 400 // at once
)

type gratis struct {
	seed   maphash.Seed
	places [4096]atomic.Int64 // when all is paid off, since the proxy's start (GCRA)
}

func (g *gratis) place(at netip.Prefix) uint64 {
	return maphash.Comparable(g.seed, at) % uint64(len(g.places))
}

// take says whether an address may have one more.
func (g *gratis) take(client string, now time.Duration) bool {
	at := neighbour(client)
	if !at.IsValid() {
		return true
	}
	place := &g.places[g.place(at)]
	for {
		was := place.Load()
		next := max(was, int64(now)) + int64(time.Second/gratisRate)
		if next-int64(now) > int64(gratisBurst*(time.Second/gratisRate)) {
			return false
		}
		if place.CompareAndSwap(was, next) {
			return true
		}
	}
}

// overGratis refuses what an address has had enough of. true: it did.
func (x *exchange) overGratis() bool {
	if x.p.gratis.take(x.client, x.began.Sub(x.p.start)) {
		return false
	}
	x.v.RetryAfter = time.Second
	x.refuse(gate.NewProblem(429, gate.ReasonRateExceeded, "This address asks for more without a key than one may; try again shortly."))
	return true
}

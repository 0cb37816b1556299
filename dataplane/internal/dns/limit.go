package dns

import (
	"hash/maphash"
	"net/netip"
	"sync/atomic"
	"time"
)

// limiter bounds the UDP answers that go to one prefix, which a forger may have named as the sender. It is a fixed
// table of GCRA clocks under a salted hash of the prefix: no memory grows, no address is kept. Two prefixes that
// share a slot share a rate, one pair in 65,536.
type limiter struct {
	seed  maphash.Seed
	began time.Time
	each  int64 // ns an answer costs
	burst int64 // ns that may be ahead
	slip  atomic.Uint32
	slots [1 << 16]atomic.Int64 // when the slot is free again, ns since began
}

func newLimiter(seed maphash.Seed, perSecond, burst int) *limiter {
	each := int64(time.Second) / int64(perSecond)
	return &limiter{seed: seed, began: time.Now(), each: each, burst: each * int64(burst)}
}

type verdict uint8

const (
	answerIt verdict = iota
	dropIt
	slipIt // every other time over the rate: a true client learns to come over TCP
)

func (l *limiter) take(p netip.Prefix, now time.Time) verdict {
	slot := &l.slots[maphash.Comparable(l.seed, p)%uint64(len(l.slots))]
	at := int64(now.Sub(l.began))
	for {
		free := slot.Load()
		next := max(free, at) + l.each
		if next-at > l.burst {
			if l.slip.Add(1)%2 == 0 {
				return slipIt
			}
			return dropIt
		}
		if slot.CompareAndSwap(free, next) {
			return answerIt
		}
	}
}

package lessor

import (
	"time"

	"bailiwick/controlplane/internal/ledger"
)

// tell is an edge's word on what it has spent of an account, rows included whose
// block is not in the ledger yet. It is for eyes only: what may be leased follows
// from the ledger alone, where told units are held as long as they are not spent.
type tell struct {
	epoch uint64
	spent int64
	at    time.Time
}

// hearSpent takes note of what the edge has told beyond what the ledger knows.
func (t *term) hearSpent(x *request, now time.Time) {
	for _, s := range x.subjects {
		if s.mine < 0 || s.ceil < 0 { // no quota, or it speaks of another period
			continue
		}
		id, edge := s.id(), x.order.Edge
		if s.ask.GetSpent() <= s.lease.Spent {
			delete(t.told[id], edge)
			continue
		}
		if t.told[id] == nil {
			t.told[id] = map[string]tell{}
		}
		t.told[id][edge] = tell{x.order.Epoch, s.ask.GetSpent(), now}
	}
}

// othersTold says whether another edge has lately told of units of the account
// that the ledger did not know then.
func (t *term) othersTold(id ledger.AccountID, edge string, now time.Time) bool {
	for name, is := range t.told[id] {
		if name != edge && now.Sub(is.at) <= liveFor {
			return true
		}
	}
	return false
}

// underWay is what edges but one have told of an account and the ledger does not
// have: no more than what they hold, or of a quota that is not leased than its
// limit. What an epoch that is over has told is in the ledger, or will never be.
func (t *term) underWay(acc *ledger.Account, id ledger.AccountID, but string, leased bool, now time.Time) int64 {
	var n int64
	for name, is := range t.told[id] {
		if name == but || now.Sub(is.at) > liveFor || is.epoch != t.edges[name].epoch {
			continue
		}
		h := leasedTo(acc, name, is.epoch)
		if leased {
			n += is.beyond(h, h.Held)
			continue
		}
		h.Epoch = is.epoch // one that nothing is leased to has no entry before its first block
		n += is.beyond(h, acc.Limit)
	}
	return min(n, acc.Limit)
}

// beyond is how many units of a holder are spent that the ledger takes for held.
func (is tell) beyond(h ledger.Holder, most int64) int64 {
	if is.epoch != h.Epoch {
		return 0
	}
	return max(0, min(is.spent-h.Spent, most))
}

package ledger

import (
	"encoding/binary"

	"bailiwick/controlplane/internal/quota"
	"bailiwick/shared/usage"
)

// spending gathers what one block spends of quotas. A block has far fewer
// accounts than cells: each is written once, by merges, and nothing is read.
type spending struct {
	accounts map[AccountID]int64
	spans    map[spanKey]int64
}

type spanKey struct {
	customer, subscription string
	span                   byte
	start                  int64
}

func (s *spending) init() {
	s.accounts, s.spans = make(map[AccountID]int64), make(map[spanKey]int64)
}

func (s *spending) add(c *usage.Cell, units int64) {
	if units == 0 {
		return
	}
	if c.Period == 0 {
		k := spanKey{c.Customer, c.Subscription, spanUnknown, c.Start}
		s.spans[k] = quota.Add(s.spans[k], units)
		return
	}
	id := AccountID{c.Customer, c.Subscription, c.Period}
	s.accounts[id] = quota.Add(s.accounts[id], units)
	if c.Period == usage.PeriodRolling {
		k := spanKey{c.Customer, c.Subscription, spanRolling, c.Start}
		s.spans[k] = quota.Add(s.spans[k], units)
	}
}

// spend writes what was gathered of one epoch's block, and forgets it.
func (t *tx) spend(k epochKey) error {
	s := &t.m.spending
	var value [4 * binary.MaxVarintLen64]byte
	for id, units := range s.accounts {
		t.m.key = appendHolderKey(t.m.key[:0], id, k)
		if err := t.b.Merge(t.m.key, appendHolder(value[:0], 0, units), nil); err != nil {
			return err
		}
	}
	clear(s.accounts)
	for k, units := range s.spans {
		if err := t.span(k, units); err != nil {
			return err
		}
	}
	clear(s.spans)
	return nil
}

func (t *tx) span(k spanKey, units int64) error {
	var value [4 * binary.MaxVarintLen64]byte
	v := appendSums(value[:0], usage.Sums{Units: units})
	for width, start := range [...]int64{widthCell: k.start, widthDay: dayOf(k.start)} {
		t.m.key = appendSpanKey(t.m.key[:0], k.customer, k.subscription, k.span, byte(width), start)
		if err := t.b.Merge(t.m.key, v, nil); err != nil {
			return err
		}
	}
	return nil
}

// dayOf is the start of the UTC day that holds an instant.
func dayOf(start int64) int64 {
	n := start % daySeconds
	if n < 0 {
		n += daySeconds
	}
	return start - n
}

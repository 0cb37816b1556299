package ledger

import (
	"encoding/binary"
	"errors"
	"slices"

	pebbledb "github.com/cockroachdb/pebble/v2"

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

// trimSpans removes what no quota looks at any more when a day is folded, of one customer: cells that are older
// than any window, windows' days likewise, and days of unknown periods that are older than any period. The ledger's
// own closed days say how old something is at least.
func (t *tx) trimSpans(customer string, day int64) error {
	old := min(day+daySeconds, dayOf(t.m.closed-int64(quota.MaxWindow.Seconds())-daySeconds))
	prefix := append(append([]byte(prefixSpan), customer...), 0)
	it, err := t.db.NewIter(&pebbledb.IterOptions{LowerBound: prefix, UpperBound: upper(prefix)})
	if err != nil {
		return err
	}
	for it.First(); it.Valid(); { // one turn for each subscription, kind of span and width
		k := slices.Clone(it.Key())
		head := k[: len(k)-8 : len(k)-8]
		until := old
		if span, width := head[len(head)-2], head[len(head)-1]; span == spanUnknown && width == widthDay {
			until = day - keepFor
		}
		if startOf(k[len(head):]) < until {
			if err := t.b.DeleteRange(k, appendStart(head, until), nil); err != nil {
				return errors.Join(err, it.Close())
			}
		}
		it.SeekGE(upper(head))
	}
	return errors.Join(it.Error(), it.Close())
}

// dayOf is the start of the UTC day that holds an instant.
func dayOf(start int64) int64 {
	n := start % daySeconds
	if n < 0 {
		n += daySeconds
	}
	return start - n
}

package ledger

import (
	"cmp"
	"errors"
	"math"
	"slices"

	pebbledb "github.com/cockroachdb/pebble/v2"

	"bailiwick/controlplane/internal/quota"
	"bailiwick/shared/usage"
)

// book is one account as read, with whatever became of its holders settled.
type book struct {
	id      AccountID
	rec     account
	told    bool      // there is a record
	holders []*holder // by edge and epoch
	over    []epochKey
	lost    int64 // held by epochs that were closed with it, and not in rec yet
	added   int64 // by top-ups to a rolling quota, as far as they are in the window
}

type holder struct {
	epochKey
	quota.Holder
	stored bool
}

// registers answer what is known of an edge and of an epoch; nil: nothing.
type registers struct {
	asker func(edge string) (*asker, error)
	epoch func(epochKey) (*epoch, error)
}

// readBook reads an account with one scan. Holders whose epochs are over are
// folded into it: there is no list of what an edge held to walk when it comes
// back, and an account costs no more for an edge that restarts each hour.
func readBook(r pebbledb.Reader, id AccountID, regs registers) (*book, error) {
	b := &book{id: id}
	prefix := appendAccountKey(nil, id)
	err := scan(r, prefix, upper(prefix), func(k, v []byte) error { return b.read(k, v, regs) })
	return b, err
}

func (b *book) read(k, v []byte, regs registers) error {
	_, key, err := decodeAccountKey(k)
	if err != nil {
		return err
	}
	if key.edge == "" {
		b.rec, err = decodeAccount(v)
		b.told = true
		return err
	}
	s, err := decodeSums(v)
	if err != nil {
		return err
	}
	h := quota.Holder{Leased: s.Requests, Spent: s.Units}
	x, err := regs.asker(key.edge)
	if err != nil {
		return err
	}
	e, err := regs.epoch(key)
	if err != nil {
		return err
	}
	b.place(key, h, fateOf(key.epoch, x, e))
	return nil
}

// place keeps a holder or, if its epoch is over, settles it.
func (b *book) place(key epochKey, h quota.Holder, f fate) {
	switch f {
	case fateOpen:
		b.holders = append(b.holders, &holder{key, h, true})
		return
	case fateLost:
		b.lost = quota.Add(b.lost, h.Held())
	}
	b.rec.Settled = quota.Add(b.rec.Settled, h.Spent) // the record's own key comes first
	b.over = append(b.over, key)
}

func (b *book) rolling() bool { return b.id.Period == usage.PeriodRolling }

// loadAskers reads what Apply keeps in memory of edges that exchange.
func (m *Machine) loadAskers(db *pebbledb.DB) error {
	m.askers = make(map[string]*asker)
	return scan(db, []byte(prefixAsker), upper([]byte(prefixAsker)), func(k, v []byte) error {
		x, err := decodeAsker(v)
		m.askers[string(k[len(prefixAsker):])] = x
		return err
	})
}

// holder finds or makes the entry of an epoch.
func (b *book) holder(k epochKey) *holder {
	i, found := slices.BinarySearchFunc(b.holders, k, func(h *holder, k epochKey) int {
		return cmp.Or(cmp.Compare(h.edge, k.edge), cmp.Compare(h.epoch, k.epoch))
	})
	if !found {
		b.holders = slices.Insert(b.holders, i, &holder{epochKey: k})
	}
	return b.holders[i]
}

// account is the arithmetic's view of it. sliding is what the window holds, to
// which what is lost comes when the account is written; of an elastic quota only
// edges in heard are waited for, all if it is nil.
func (b *book) account(sliding int64, heard []string) quota.Account {
	a := quota.Account{Limit: quota.Add(b.rec.Limit, b.toppedUp()), Settled: b.rec.Settled, Forfeited: quota.Add(b.rec.Forfeited, b.lost),
		Rolling: b.rolling(), Sliding: quota.Add(sliding, b.lost), Holders: make([]quota.Holder, 0, len(b.holders))}
	for _, h := range b.holders {
		n := h.Holder
		n.Free = b.rec.Mode == "elastic" && heard != nil && !slices.Contains(heard, h.edge)
		a.Holders = append(a.Holders, n)
	}
	return a
}

// write puts accounts back. A new one forgets old ones, of which the entry may
// name some too: they go first, or what is left would follow from the order of
// the writes.
func (t *tx) write(now int64, books ...*book) error {
	books = slices.DeleteFunc(books, func(b *book) bool { return b.idle(now) })
	for _, b := range books {
		if !b.told {
			if err := t.forget(b.id); err != nil {
				return err
			}
		}
	}
	for _, b := range books {
		if err := t.put(b, now); err != nil {
			return err
		}
	}
	return nil
}

// idle: nothing is known of it and its period is over, so that whoever names it
// begins no account.
func (b *book) idle(now int64) bool {
	return !b.told && len(b.over) == 0 && b.rec.End != 0 && b.rec.End <= now && b.rec.ToppedUp == 0 &&
		!slices.ContainsFunc(b.holders, func(h *holder) bool { return h.Holder != quota.Holder{} })
}

// put writes an account's record, its holders, and none of those that are over.
// What it read came from before this entry, and nothing else of the entry writes
// these keys.
func (t *tx) put(b *book, now int64) error {
	if b.lost > 0 && b.rolling() { // it slides out of the window like what was spent now
		start := usage.CellStart(now * 1000)
		if err := t.span(spanKey{b.id.Customer, b.id.Subscription, spanRolling, start}, b.lost); err != nil {
			return err
		}
	} else {
		b.rec.Forfeited = quota.Add(b.rec.Forfeited, b.lost)
	}
	if err := t.set(append(appendAccountKey(nil, b.id), markAccount), b.rec.encode()); err != nil {
		return err
	}
	for _, k := range b.over {
		if err := t.b.Delete(appendHolderKey(nil, b.id, k), nil); err != nil {
			return err
		}
	}
	for _, h := range b.holders {
		key := appendHolderKey(nil, b.id, h.epochKey)
		if h.Holder == (quota.Holder{}) {
			if h.stored {
				if err := t.b.Delete(key, nil); err != nil {
					return err
				}
			}
			continue
		}
		// Also where nothing changed: it takes the place of all that blocks merged.
		if err := t.set(key, appendHolder(nil, h.Leased, h.Spent)); err != nil {
			return err
		}
	}
	return nil
}

// keepFor is how long the accounts of periods that are over are kept: longer
// than a year, so that a plan that goes from years to days and back does not
// begin a new year.
const keepFor = 400 * daySeconds

// forget removes a subscription's accounts of long ago, when a new one begins:
// long before the newest that there was until then, since the new one may be the
// word of a leader whose clock is years ahead. A block of that age may still come
// and makes an account anew; its units are in the cells all the same.
func (t *tx) forget(id AccountID) error {
	if id.Period <= keepFor {
		return nil // rolling, or a balance
	}
	first, last := id, id
	first.Period = usage.PeriodPrepaid + 1
	it, err := t.db.NewIter(&pebbledb.IterOptions{LowerBound: appendAccountKey(nil, first), UpperBound: appendAccountKey(nil, id)})
	if err != nil {
		return err
	}
	if it.Last() {
		last, _, err = decodeAccountKey(it.Key())
	}
	if err = errors.Join(err, it.Error(), it.Close()); err != nil || last.Period-keepFor <= first.Period || last == id {
		return err
	}
	last.Period -= keepFor
	return t.b.DeleteRange(appendAccountKey(nil, first), appendAccountKey(nil, last), nil)
}

// sumSpan sums the units of cells that start in [from, until): both are edges of
// cells.
func sumSpan(r pebbledb.Reader, id AccountID, span byte, from, until int64) (int64, error) {
	var sum int64
	part := func(width byte, lo, hi int64) error {
		if lo >= hi {
			return nil
		}
		return scan(r, appendSpanKey(nil, id.Customer, id.Subscription, span, width, lo), appendSpanKey(nil, id.Customer, id.Subscription, span, width, hi),
			func(_, v []byte) error {
				s, err := decodeSums(v)
				sum = quota.Add(sum, s.Units)
				return err
			})
	}
	first := dayOf(from)
	if first < from {
		first += daySeconds
	}
	last := max(first, dayOf(until))
	err := part(widthCell, from, min(first, until))
	if err == nil {
		err = part(widthDay, first, last)
	}
	if err == nil && first < until {
		err = part(widthCell, last, until)
	}
	return sum, err
}

// farAhead is after every cell there is.
const farAhead = math.MaxInt64 / 4

// sliding is what a rolling account spent in the window that ends now, and learns
// what was added to it then. A cell of which a part is inside counts whole.
func (b *book) sliding(r pebbledb.Reader, now int64) (spent int64, err error) {
	if !b.rolling() {
		return 0, nil
	}
	from := usage.CellStart((now - b.rec.Window) * 1000)
	if b.added, err = sumSpan(r, b.id, spanToppedUp, from, farAhead); err != nil {
		return 0, err
	}
	return sumSpan(r, b.id, spanRolling, from, farAhead)
}

func (b *book) toppedUp() int64 { return quota.Add(b.rec.ToppedUp, b.added) }

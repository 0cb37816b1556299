package ledger

import (
	"context"
	"errors"
	"fmt"

	pebbledb "github.com/cockroachdb/pebble/v2"

	"bailiwick/controlplane/internal/quota"
)

// Account is a quota as the ledger knows it at a View.
type Account struct {
	ID        AccountID
	Terms     Terms // as last told by a leader; blank if no exchange or top-up named it yet
	ToppedUp  int64
	Limit     int64 // of Terms, and top-ups
	Used      int64
	Held      int64
	Available int64
	Holders   []Holder
}

// Holder is an epoch that holds units or has spent some, and is not over.
type Holder struct {
	Edge          string
	Epoch         uint64
	Leased, Spent int64
	Held          int64
}

func (v *View) registers() registers {
	return registers{
		asker: func(edge string) (*asker, error) {
			return getRecord(v.snap, append([]byte(prefixAsker), edge...), decodeAsker)
		},
		epoch: func(k epochKey) (*epoch, error) { return getRecord(v.snap, appendEpochKey(nil, k), decodeEpoch) },
	}
}

// getRecord reads one record; nil: there is none.
func getRecord[T any](r pebbledb.Reader, key []byte, decode func([]byte) (*T, error)) (*T, error) {
	val, closer, err := r.Get(key)
	if errors.Is(err, pebbledb.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer closer.Close()
	return decode(val)
}

func (v *View) account(b *book, now int64) (Account, error) {
	sliding, err := b.sliding(v.snap, now)
	if err != nil {
		return Account{}, err
	}
	acc := b.account(sliding, nil)
	out := Account{ID: b.id, Terms: b.rec.Terms, ToppedUp: b.toppedUp(), Limit: acc.Limit, Used: acc.Used(), Held: acc.Held()}
	for _, h := range b.holders {
		out.Holders = append(out.Holders, Holder{Edge: h.edge, Epoch: h.epoch, Leased: h.Leased, Spent: h.Spent, Held: h.Held()})
	}
	if !b.rec.leased() && b.rec.End > 0 { // soft: edges serve before they know the period
		unknown, err := sumSpan(v.snap, b.id, spanUnknown, b.id.Period, b.rec.End)
		if err != nil {
			return Account{}, err
		}
		out.Used = quota.Add(out.Used, unknown)
	}
	out.Available = max(0, out.Limit-quota.Add(out.Used, out.Held))
	return out, nil
}

// Account reads one account as terms have it, whatever was told of it before. now
// ends the window of a rolling one, unix s.
func (v *View) Account(id AccountID, terms Terms, now int64) (a Account, err error) {
	defer guard(&err, "read ledger")
	b, err := readBook(v.snap, id, v.registers())
	if err == nil {
		b.rec.Terms = terms
		a, err = v.account(b, now)
	}
	if err != nil {
		return Account{}, fmt.Errorf("read account: %w", err)
	}
	return a, nil
}

// Accounts lists a customer's accounts, by subscription and period, periods that
// have ended included. now ends the window of rolling ones, unix s.
func (v *View) Accounts(ctx context.Context, customer string, now int64) ([]Account, error) {
	var out []Account
	var b *book
	regs := v.registers()
	flush := func() error {
		if b == nil {
			return nil
		}
		a, err := v.account(b, now)
		out = append(out, a)
		return err
	}
	prefix := append(append([]byte(prefixAccount), customer...), 0)
	err := v.scan(ctx, prefix, upper(prefix), func(k, val []byte) error {
		id, _, err := decodeAccountKey(k)
		if err != nil {
			return err
		}
		if b == nil || b.id != id {
			if err := flush(); err != nil {
				return err
			}
			b = &book{id: id}
		}
		return b.read(k, val, regs)
	})
	if err == nil {
		err = flush()
	}
	if err != nil {
		return nil, fmt.Errorf("read accounts: %w", err)
	}
	return out, nil
}

// Asker is how far an edge's exchanges have come: its newest epoch and sequence,
// and the older epochs that it named as unfinished. Zeros: it has never asked.
func (v *View) Asker(edge string) (epoch, sequence uint64, pending []Pending, err error) {
	defer guard(&err, "read ledger")
	x, err := getRecord(v.snap, append([]byte(prefixAsker), edge...), decodeAsker)
	if err != nil || x == nil {
		return 0, 0, nil, err
	}
	return x.Epoch, x.Sequence, x.Pending, nil
}

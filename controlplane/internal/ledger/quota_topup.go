package ledger

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"bailiwick/controlplane/internal/quota"
	"bailiwick/shared/usage"
)

// TopUp adds units to one account. RequestID makes it happen once.
type TopUp struct {
	ID         AccountID
	Terms      Terms
	Units      int64
	RequestID  string
	At         int64 // unix s, chosen by who proposes it
	By, Reason string
}

// MaxRequestID bounds a request's id, in bytes.
const MaxRequestID = 64

func (o *TopUp) encode(head []byte) []byte {
	b := appendTerms(appendAccountID(head, o.ID), &o.Terms)
	b = binary.AppendUvarint(b, uint64(o.Units))
	b = appendText(b, o.RequestID)
	b = binary.AppendUvarint(b, uint64(o.At))
	return appendText(appendText(b, o.By), o.Reason)
}

func (r *reader) topUp() *TopUp {
	o := &TopUp{ID: r.accountID(), Terms: r.terms(), Units: r.int64()}
	o.RequestID = string(r.bytes(MaxRequestID))
	o.At, o.By, o.Reason = r.int64(), r.short(), string(r.bytes(maxReason))
	if o.RequestID == "" {
		r.fail("a request id is blank")
	}
	return o
}

func decodeTopUp(r *reader) order { return r.topUp() }

const topUpVersion = 1

// apply answers with the first top-up of this request id and whether it is this one.
func (o *TopUp) apply(t *tx) ([]byte, error) {
	key := append([]byte(prefixTopUp), o.RequestID...)
	first, err := t.get(key)
	if err != nil {
		return nil, err
	}
	if first != nil {
		return append([]byte{resultVersion, 1}, first...), nil
	}
	b, err := readBook(t.db, o.ID, t.registers())
	if err != nil {
		return nil, err
	}
	b.rec.Terms = o.Terms
	if b.rolling() { // it has no period to end in: like what is spent, it slides out of the window
		err = t.span(spanKey{o.ID.Customer, o.ID.Subscription, spanToppedUp, usage.CellStart(o.At * 1000)}, o.Units)
	} else {
		b.rec.ToppedUp = quota.Add(b.rec.ToppedUp, o.Units)
	}
	if err != nil {
		return nil, err
	}
	if err := t.write(o.At, b); err != nil {
		return nil, err
	}
	rec := o.encode([]byte{topUpVersion})
	return append([]byte{resultVersion, 0}, rec...), t.set(key, rec)
}

// TopUp commits a top-up. If its request id was used before, the earlier one is
// returned and nothing changes.
func (l *Ledger) TopUp(ctx context.Context, o TopUp) (done TopUp, repeated bool, err error) {
	if err := checkName("customer", o.ID.Customer); err != nil {
		return done, false, err
	}
	if o.Units <= 0 || o.RequestID == "" || len(o.RequestID) > MaxRequestID || len(o.By) > maxName || len(o.Reason) > maxReason {
		return done, false, errors.New("top up a quota: units, request id, name or reason is out of bounds")
	}
	out, err := l.propose(ctx, o.encode(begin(kindTopUp)))
	if err != nil {
		return done, false, fmt.Errorf("top up customer %s: %w", o.ID.Customer, err)
	}
	if len(out) < 3 || out[0] != resultVersion || out[2] != topUpVersion {
		return done, false, errors.New("the ledger's answer is of an unknown version")
	}
	r := reader{b: out[3:]}
	done = *r.topUp()
	return done, out[1] != 0, r.done("top-up")
}

// TopUps lists a customer's, of periods that have ended too, the newest first. They rest by request id, so it reads
// those of every customer: a question for people, not for a request path.
func (v *View) TopUps(ctx context.Context, customer string) ([]TopUp, error) {
	var out []TopUp
	prefix := []byte(prefixTopUp)
	err := v.scan(ctx, prefix, upper(prefix), func(_, val []byte) error {
		if len(val) == 0 || val[0] != topUpVersion {
			return errors.New("a top-up is of an unknown version")
		}
		r := reader{b: val[1:]}
		o := r.topUp()
		if err := r.done("top-up"); err != nil {
			return err
		}
		if o.ID.Customer == customer {
			out = append(out, *o)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read top-ups: %w", err)
	}
	slices.SortFunc(out, func(a, b TopUp) int { return cmp.Or(cmp.Compare(b.At, a.At), cmp.Compare(a.RequestID, b.RequestID)) })
	return out, nil
}

package ledger

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"bailiwick/shared/usage"
)

// Quotas keep beside the cells, in the same batches:
//
//	q/<customer>\x00<subscription><period be64>\x00                     account
//	q/<customer>\x00<subscription><period be64>\x01<edge>\x00<epoch be64>  holder: sums of (leased, spent)
//	w/<customer>\x00<subscription><span u8><width u8><start be64>       units by cell and by day, for spans that slide
//	x/<edge>                                                            asker: how far an edge's exchanges have come
//	y/<request id>                                                      top-up
const (
	prefixAccount = "q/"
	prefixSpan    = "w/"
	prefixAsker   = "x/"
	prefixTopUp   = "y/"
)

// AccountID names a quota of a subscription in one period (usage.Row's Period).
type AccountID struct {
	Customer, Subscription string
	Period                 int64
}

// Terms are what the leader says of an account, from the catalog and the zone
// store: the ledger holds none of those and takes it with each ask.
type Terms struct {
	Plan  string
	Mode  string // strict, elastic; soft or "": nothing is leased
	Kind  string // of the period: hour, day, week, month, year, rolling, prepaid
	Limit int64  // of the plan, grace included, top-ups not
	End   int64  // of the period, unix s; 0: none
	// Window of a rolling quota in seconds.
	Window int64
}

func (t *Terms) leased() bool { return t.Mode == "strict" || t.Mode == "elastic" }

const (
	markAccount = 0
	markHolder  = 1
)

func appendAccountKey(b []byte, id AccountID) []byte {
	b = append(append(append(b, prefixAccount...), id.Customer...), 0)
	return appendStart(appendText(b, id.Subscription), id.Period)
}

func appendHolderKey(b []byte, id AccountID, h epochKey) []byte {
	b = append(append(append(appendAccountKey(b, id), markHolder), h.edge...), 0)
	return binary.BigEndian.AppendUint64(b, h.epoch)
}

// decodeAccountKey reads either kind of key; h is blank for an account's.
func decodeAccountKey(k []byte) (id AccountID, h epochKey, err error) {
	bad := errors.New("an account's key is malformed")
	i := slices.Index(k, 0)
	if i < len(prefixAccount) {
		return id, h, bad
	}
	r := reader{b: k[i+1:]}
	id.Customer, id.Subscription = string(k[len(prefixAccount):i]), r.text()
	if r.err != nil || len(r.b) < 9 {
		return id, h, bad
	}
	id.Period = int64(binary.BigEndian.Uint64(r.b) ^ 1<<63)
	rest := r.b[9:]
	switch n := len(rest) - 9; {
	case r.b[8] == markAccount && len(rest) == 0:
		return id, h, nil
	case r.b[8] == markHolder && n > 0 && rest[n] == 0:
		return id, epochKey{string(rest[:n]), binary.BigEndian.Uint64(rest[n+1:])}, nil
	}
	return id, h, bad
}

// account is what an account's record holds.
type account struct {
	Terms                        // as last told
	ToppedUp, Settled, Forfeited int64
}

const accountVersion = 1

func (a *account) encode() []byte {
	b := appendTerms([]byte{accountVersion}, &a.Terms)
	for _, n := range []int64{a.ToppedUp, a.Settled, a.Forfeited} {
		b = binary.AppendUvarint(b, uint64(n))
	}
	return b
}

func decodeAccount(b []byte) (a account, err error) {
	if len(b) == 0 || b[0] != accountVersion {
		return a, errors.New("decode account: its version is unknown")
	}
	r := reader{b: b[1:]}
	a.Terms = r.terms()
	a.ToppedUp, a.Settled, a.Forfeited = r.int64(), r.int64(), r.int64()
	return a, r.done("account")
}

func appendTerms(b []byte, t *Terms) []byte {
	b = appendText(appendText(appendText(b, t.Plan), t.Mode), t.Kind)
	for _, n := range []int64{t.Limit, t.End, t.Window} {
		b = binary.AppendUvarint(b, uint64(n))
	}
	return b
}

func (r *reader) terms() Terms {
	return Terms{Plan: r.short(), Mode: r.short(), Kind: r.short(), Limit: r.int64(), End: r.int64(), Window: r.int64()}
}

// short is a text of at most a name's length, blank allowed.
func (r *reader) short() string { return string(r.bytes(maxName)) }

func (r *reader) done(what string) error {
	if r.err == nil && len(r.b) != 0 {
		r.fail("something follows its end")
	}
	if r.err != nil {
		return fmt.Errorf("decode %s: %w", what, r.err)
	}
	return nil
}

// A holder is written as sums of which two columns mean something, because one
// merge operator serves the whole database: what blocks spend is added without
// reading, and an exchange, which reads, sets both.
func appendHolder(b []byte, leased, spent int64) []byte {
	return appendSums(b, usage.Sums{Requests: leased, Units: spent})
}

// The kinds of spans: units of rows whose edge did not know the period, units of
// rolling quotas, and what was added to those.
const (
	spanUnknown  = 0
	spanRolling  = 1
	spanToppedUp = 2
)

// The widths of a span's entries. Days make a window of a month 127 reads and
// not 2,976.
const (
	widthCell = 0
	widthDay  = 1

	daySeconds = 86400
)

func appendSpanKey(b []byte, customer, subscription string, span, width byte, start int64) []byte {
	b = append(append(append(b, prefixSpan...), customer...), 0)
	return appendStart(append(appendText(b, subscription), span, width), start)
}

// asker is how far the exchanges of an edge have come.
type asker struct {
	Epoch, Sequence uint64
	// Pending are older epochs that may still hold units: blocks of theirs are not
	// in the ledger.
	Pending []Pending
}

// Pending is an older epoch and its last block.
type Pending struct{ Epoch, Sealed uint64 }

const askerVersion = 1

func (a *asker) encode() []byte {
	b := binary.AppendUvarint(binary.AppendUvarint([]byte{askerVersion}, a.Epoch), a.Sequence)
	return appendPending(b, a.Pending)
}

func decodeAsker(b []byte) (*asker, error) {
	if len(b) == 0 || b[0] != askerVersion {
		return nil, errors.New("decode asker: its version is unknown")
	}
	r := reader{b: b[1:]}
	a := &asker{Epoch: r.uvarint(), Sequence: r.uvarint(), Pending: r.pending()}
	return a, r.done("asker")
}

func appendPending(b []byte, list []Pending) []byte {
	b = binary.AppendUvarint(b, uint64(len(list)))
	for _, p := range list {
		b = binary.AppendUvarint(binary.AppendUvarint(b, p.Epoch), p.Sealed)
	}
	return b
}

func (r *reader) pending() []Pending {
	out := make([]Pending, 0, r.count(2))
	for range cap(out) {
		out = append(out, Pending{r.uvarint(), r.uvarint()})
	}
	return out
}

func (a *asker) pending(epoch uint64) (Pending, bool) {
	i := slices.IndexFunc(a.Pending, func(p Pending) bool { return p.Epoch == epoch })
	if i < 0 {
		return Pending{}, false
	}
	return a.Pending[i], true
}

// fate is what became of an epoch, as far as units are concerned.
type fate byte

const (
	fateOpen fate = iota // it may still spend what it holds
	fateOver             // all it ever spent is in the ledger
	fateLost             // an operator closed it, and what it held counts as spent
)

// fateOf: x and e may be nil. That it may change its mind, when an edge names an
// epoch again that it had left out, is harmless: an account that has counted an
// epoch as over holds no entry of it any more (readBook), and one that has not
// counted it has not given its units away.
func fateOf(n uint64, x *asker, e *epoch) fate {
	switch {
	case e != nil && e.Closed:
		if c := e.Closing; c != nil && c.Held.forfeits(e.Gap) {
			return fateLost
		}
		return fateOver
	case x == nil || n >= x.Epoch:
		return fateOpen
	case e != nil && !e.complete():
		return fateOpen // the edge forgot it (a disk was lost), the ledger did not
	}
	if p, is := x.pending(n); is && p.Sealed > 0 && (e == nil || e.Applied < p.Sealed) {
		return fateOpen
	}
	return fateOver
}

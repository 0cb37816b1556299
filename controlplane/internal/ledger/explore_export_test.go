package ledger

import "bailiwick/controlplane/internal/quota"

// What the explorer runs: the judgement itself, without the disk.
type (
	Epoch = epoch
	Reach = reach
)

var (
	Judge      = (*epoch).judge
	Advance    = func(e *Epoch, b *Block) { e.advance(b, commandVersion) }
	Hear       = (*epoch).hear
	Close      = (*epoch).close
	Begun      = (*epoch).begun
	Complete   = (*epoch).complete
	EncodeInto = (*epoch).encode
	Past       = (*reach).past
	Quarantine = func(e *Epoch, b *Block) { e.Fork = &fork{min(b.Seq, e.Applied), b.Hash} }
)

// Through is how far r reaches.
func (r reach) Through() int64 { return r.ms }

// Refusals, as Judge answers them.
const (
	RefWrongChain = refWrongChain
	RefFork       = refFork
	RefGap        = refGap
	RefClosed     = refClosed
)

// Shelf is one account of a strict quota with all that decides it, for the explorer: exchangeOrder.apply and
// closeOrder.apply without the disk.
type Shelf struct {
	Settled, Forfeited int64
	Holders            []Holding // by edge and epoch
	Askers             map[string]*Asker
	Epochs             map[EpochKey]*Epoch
	FateOf             func(uint64, *Asker, *Epoch) Fate
}

type (
	Asker    = asker
	EpochKey = epochKey
	Fate     = fate
	Holding  struct {
		EpochKey
		quota.Holder
	}
)

var (
	FateOf = fateOf
	KeyOf  = func(edge string, n uint64) EpochKey { return epochKey{edge, n} }
)

const FateOver = fateOver

// EdgeOf and NumberOf are its parts.
func (k epochKey) EdgeOf() string   { return k.edge }
func (k epochKey) NumberOf() uint64 { return k.epoch }

// Exchange decides one; ok false: it is refused.
func (s *Shelf) Exchange(x *Exchange, limit int64) (leased int64, ok bool) {
	var latest uint64
	for k, e := range s.Epochs {
		if k.edge == x.Edge && e.begun() {
			latest = max(latest, k.epoch)
		}
	}
	now, refusal, repeated := s.Askers[x.Edge].weigh(x, latest, s.Epochs[epochKey{x.Edge, x.Epoch}])
	if refusal != 0 {
		return 0, false
	}
	if now != nil {
		s.Askers[x.Edge] = now
	}
	b := &book{}
	b.rec.Settled, b.rec.Forfeited = s.Settled, s.Forfeited
	for _, h := range s.Holders {
		b.place(h.EpochKey, h.Holder, s.FateOf(h.epoch, s.Askers[h.edge], s.Epochs[h.EpochKey]))
	}
	a := &x.Asks[0]
	a.Terms = Terms{Mode: "strict", Limit: limit}
	b.rec.Terms = a.Terms
	h := b.holder(epochKey{x.Edge, x.Epoch})
	if !repeated {
		a.decide(b, h, 0, nil)
	}
	s.Settled, s.Forfeited, s.Holders = b.rec.Settled, b.rec.Forfeited+b.lost, nil
	for _, h := range b.holders {
		if h.Holder != (quota.Holder{}) {
			s.Holders = append(s.Holders, Holding{h.epochKey, h.Holder})
		}
	}
	return h.Leased, true
}

// ClosedBy is an epoch as an operator has left it.
func ClosedBy(applied, sealed uint64, held Held) *Epoch {
	return &epoch{Applied: applied, Sealed: sealed, Closed: true, Gap: sealed - applied, Closing: &closing{Held: held}}
}

// Shut closes an epoch as an operator does.
func (s *Shelf) Shut(k EpochKey, held Held) {
	e := s.Epochs[k]
	if e == nil {
		e = new(epoch)
		s.Epochs[k] = e
	}
	if e.Closed {
		return
	}
	e.close(0)
	e.Closing = &closing{Held: held}
}

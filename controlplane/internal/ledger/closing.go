package ledger

import (
	"context"
	"encoding/binary"
	"fmt"
	"time"

	"bailiwick/shared/fault"
)

// What becomes of quota units that a closed epoch was leased and did not account for.
type Held uint8

// The numbers are part of the log.
const (
	HeldAuto    Held = 0 // forfeit where blocks are known to be lost, else return
	HeldReturn  Held = 1 // they are free again
	HeldForfeit Held = 2 // they count as spent for the rest of their period
)

// closeOrder ends an epoch. By, Reason and the rest are blank in logs of version 1.
type closeOrder struct {
	Edge          string
	Epoch, Sealed uint64
	Held          Held
	AtMS          int64 // chosen by who proposed it
	By, Reason    string
}

// forfeits says whether what an epoch held counts as spent: nobody can say that a lost block did not spend it.
func (h Held) forfeits(gap uint64) bool { return h == HeldForfeit || h == HeldAuto && gap > 0 }

func encodeClose(o *closeOrder) []byte {
	b := appendText(begin(kindCloseBy), o.Edge)
	b = binary.AppendUvarint(binary.AppendUvarint(b, o.Epoch), o.Sealed)
	b = append(b, byte(o.Held))
	b = binary.AppendUvarint(b, uint64(o.AtMS))
	return appendText(appendText(b, o.By), o.Reason)
}

func decodeClose(r *reader) order {
	return &closeOrder{Edge: r.name(), Epoch: r.uvarint(), Sealed: r.uvarint()}
}

func decodeCloseBy(r *reader) order {
	o := decodeClose(r).(*closeOrder)
	if o.Held = Held(r.take(1)[0]); o.Held > HeldForfeit {
		r.fail("what becomes of held units is unknown")
	}
	o.AtMS, o.By, o.Reason = r.int64(), string(r.bytes(maxName)), string(r.bytes(maxReason))
	return o
}

// maxReason bounds what an operator says of an act, in bytes.
const maxReason = 2048

func (o *closeOrder) apply(t *tx) ([]byte, error) {
	key := epochKey{o.Edge, o.Epoch}
	e := t.epoch(key)
	if t.version > 1 && !e.Closed {
		e.Closing = &closing{o.AtMS, o.By, o.Reason, o.Held}
	}
	if e.quarantined() {
		t.m.forks.Add(-1)
	}
	e.close(o.Sealed)
	t.keep(key, e)
	return appendAck(encodeAcks(nil, t.index, 1), 0, e), nil
}

// Closing says which epoch ends, and who wants it so.
type Closing struct {
	Edge   string
	Epoch  uint64
	Sealed uint64 // highest block known to have existed; 0: the highest that the ledger has heard of
	Held   Held
	At     time.Time
	By     string // operator
	Reason string
}

// CloseEpoch declares that no further block of an epoch will come: its disk is
// gone, or two spools speak for it. What lies between the last applied block and
// Sealed (or the highest block the ledger has heard of) becomes a permanent Gap,
// and completeness no longer waits for it. There is no undo; a second close
// changes nothing.
func (l *Ledger) CloseEpoch(ctx context.Context, c Closing) (Watermark, error) {
	if err := checkName("edge", c.Edge); err != nil {
		return Watermark{}, err
	}
	switch {
	case c.Epoch == 0:
		return Watermark{}, fault.New(fault.Invalid, ReasonEpoch, "close epoch 0 of edge %s: epochs begin at 1", c.Edge)
	case c.Held > HeldForfeit || len(c.By) > maxName || len(c.Reason) > maxReason:
		return Watermark{}, fault.New(fault.Invalid, ReasonEpoch, "close epoch %d of edge %s: what becomes of held units, the operator or the reason (at most %d bytes) is not valid", c.Epoch, c.Edge, maxReason)
	}
	o := closeOrder{Edge: c.Edge, Epoch: c.Epoch, Sealed: c.Sealed, Held: c.Held, AtMS: max(c.At.UnixMilli(), 0), By: c.By, Reason: c.Reason}
	out, err := l.propose(ctx, encodeClose(&o))
	if err != nil {
		return Watermark{}, fmt.Errorf("close epoch %d of edge %s: %w", c.Epoch, c.Edge, err)
	}
	key := Block{}
	key.Edge, key.Epoch = c.Edge, c.Epoch
	acks, err := decodeAcks(out, []Block{key})
	if err != nil {
		return Watermark{}, err
	}
	return acks[0].Watermark, nil
}

package ledger

import "encoding/binary"

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
	first := !e.Closed
	e.close(o.Sealed)
	t.keep(key, e)
	if first && t.version >= 2 {
		if err := t.closeHeld(key, o.Held, e.Gap); err != nil {
			return nil, err
		}
	}
	return appendAck(encodeAcks(nil, t.index, 1), 0, e), nil
}

package ledger

import (
	"encoding/binary"
	"errors"
	"fmt"

	"bailiwick/shared/usage"
)

// epoch is all that exactly-once needs to know of one (edge, epoch), whatever
// the number of its blocks, and what is known of its completeness.
type epoch struct {
	Region  string   // of the edge, from its certificate
	Applied uint64   // all blocks up to this one are in the cells
	Head    [32]byte // hash of block Applied
	Sealed  uint64   // highest block known to exist

	// Through is the latest said (seq, time) whose seq is applied. First and
	// Last are said but not applied yet: the oldest and the newest. Two, because
	// with the newest alone an edge that is always a little behind would never
	// advance, and with the oldest alone it would advance in small steps.
	Through, First, Last mark

	Closed bool
	Gap    uint64 // blocks known to exist and not applied when it was closed

	// Since version 2 of the log. Recent holds the first bytes of the hashes of
	// the newest applied blocks, the newest last: by them a copy of a spool is
	// noticed that repeats a number with other content.
	Recent     [recentBlocks][recentBytes]byte
	Remembered int // how many
	Fork       *fork
	Closing    *closing
}

const (
	recentBytes  = 4
	recentBlocks = 64 // an edge has no more on their way
)

// closing is who closed an epoch, and why.
type closing struct {
	AtMS       int64
	By, Reason string
	Held       Held
}

// mark: every row that finished before MS is in a block with a number at most Seq.
type mark struct {
	Seq uint64
	MS  int64
}

type epochKey struct {
	edge  string
	epoch uint64
}

// epochVersion 2 appends what came with version 2 of the log. A record without
// it is written as before, so that one log has one state in either release.
const epochVersion = 2

func (e *epoch) encode() []byte {
	b := []byte{1, boolByte(e.Closed)}
	b = binary.AppendUvarint(appendText(b, e.Region), e.Applied)
	b = append(b, e.Head[:]...)
	b = binary.AppendUvarint(b, e.Sealed)
	for _, m := range []mark{e.Through, e.First, e.Last} {
		b = binary.AppendUvarint(binary.AppendUvarint(b, m.Seq), uint64(m.MS))
	}
	b = binary.AppendUvarint(b, e.Gap)
	if e.Remembered == 0 && e.Fork == nil && e.Closing == nil {
		return b
	}
	b[0] = epochVersion
	b = append(b, byte(e.Remembered))
	for i := range e.Remembered {
		b = append(b, e.Recent[i][:]...)
	}
	b = append(b, boolByte(e.Fork != nil))
	if e.Fork != nil {
		b = append(binary.AppendUvarint(b, e.Fork.Seq), e.Fork.Hash[:]...)
	}
	b = append(b, boolByte(e.Closing != nil))
	if c := e.Closing; c != nil {
		b = appendText(appendText(binary.AppendUvarint(b, uint64(c.AtMS)), c.By), c.Reason)
		b = append(b, byte(c.Held))
	}
	return b
}

func decodeEpoch(b []byte) (*epoch, error) {
	if len(b) < 2 || b[0] == 0 || b[0] > epochVersion {
		return nil, errors.New("decode epoch record: its version is unknown")
	}
	r := reader{b: b[2:]}
	e := &epoch{Closed: b[1] != 0, Region: r.text(), Applied: r.uvarint()}
	e.Head = [32]byte(r.take(32))
	e.Sealed = r.uvarint()
	for _, m := range []*mark{&e.Through, &e.First, &e.Last} {
		*m = mark{r.uvarint(), r.int64()}
	}
	e.Gap = r.uvarint()
	if b[0] == 2 {
		if e.Remembered = int(r.take(1)[0]); e.Remembered > recentBlocks {
			return nil, errors.New("decode epoch record: it remembers too many blocks")
		}
		for i := range e.Remembered {
			e.Recent[i] = [recentBytes]byte(r.take(recentBytes))
		}
		if r.take(1)[0] != 0 {
			e.Fork = &fork{Seq: r.uvarint(), Hash: [32]byte(r.take(32))}
		}
		if r.take(1)[0] != 0 {
			e.Closing = &closing{AtMS: r.int64(), By: r.text(), Reason: r.text(), Held: Held(r.take(1)[0])}
		}
	}
	if r.err == nil && len(r.b) != 0 {
		r.fail("something follows its end")
	}
	if r.err != nil {
		return nil, fmt.Errorf("decode epoch record: %w", r.err)
	}
	return e, nil
}

// begun: it takes part in the order of an edge's epochs. One only heard of in a
// heartbeat does not: its edge may still have to finish an older one.
func (e *epoch) begun() bool { return e.Applied > 0 || e.Closed }

// judge decides what becomes of a block before its payload is looked at: 0 and
// next means that it is the next one.
func (e *epoch) judge(b *Block, latest uint64) (refusal byte, next bool) {
	switch {
	case b.Epoch == 0 || b.Seq == 0:
		return refMalformed, false
	case e.quarantined():
		return refQuarantined, false
	case b.Seq < e.Applied: // the chain vouches for what is no longer remembered
		if !e.Closed && e.contradicts(b) && b.Hash == hashOf(b) {
			return refFork, false
		}
		return 0, false
	case b.Seq == e.Applied:
		switch {
		case b.Hash == e.Head:
			return 0, false
		case b.Hash == hashOf(b):
			return refFork, false
		}
		return refWrongChain, false
	case e.Closed || b.Epoch < latest && !e.begun():
		return refClosed, false
	case b.Seq != e.Applied+1:
		return refGap, false
	case b.Hash != hashOf(b):
		return refWrongChain, false
	case b.Prev != e.Head && e.Applied > 0: // whole, but it follows another block than ours
		return refFork, false
	case b.Prev != e.Head:
		return refWrongChain, false
	}
	return 0, true
}

func hashOf(b *Block) [32]byte {
	return usage.HashBlock(b.Edge, b.Epoch, b.Seq, b.Prev, b.Payload)
}

// advance makes b the newest applied block.
func (e *epoch) advance(b *Block, version byte) {
	e.Applied, e.Head, e.Region = b.Seq, b.Hash, b.Region
	if version > 1 {
		if e.Remembered == recentBlocks {
			copy(e.Recent[:], e.Recent[1:])
			e.Remembered--
		}
		e.Recent[e.Remembered] = [recentBytes]byte(b.Hash[:])
		e.Remembered++
	}
	e.Sealed = max(e.Sealed, e.Applied)
	if e.Last.MS > 0 && e.Last.Seq <= e.Applied {
		e.Through, e.First, e.Last = e.Last, mark{}, mark{}
	} else if e.First.MS > 0 && e.First.Seq <= e.Applied {
		e.Through, e.First = e.First, e.Last
	}
}

// hear takes what the edge said of itself. Words may arrive late and out of
// order, by different nodes.
func (e *epoch) hear(s seal) {
	if e.Closed {
		return // its gap is a fact
	}
	e.Sealed = max(e.Sealed, s.Sealed, s.Seq)
	m := mark{s.Seq, s.MS}
	switch {
	case m.MS <= e.Through.MS:
	case m.Seq <= e.Applied:
		e.Through = m
		if e.Last.MS <= m.MS {
			e.First, e.Last = mark{}, mark{}
		} else if e.First.MS <= m.MS {
			e.First = e.Last
		}
	case m.MS <= e.Last.MS:
	case e.First.MS == 0:
		e.First, e.Last = m, m
	default:
		e.Last = m
	}
}

// close makes what is missing a fact.
func (e *epoch) close(sealed uint64) {
	if e.Closed {
		return
	}
	e.Sealed = max(e.Sealed, sealed)
	e.Closed, e.Gap = true, e.Sealed-e.Applied
	e.First, e.Last = mark{}, mark{}
}

// complete: nothing of it is known to be outstanding.
func (e *epoch) complete() bool { return e.Closed || e.Sealed == e.Applied }

// reach is how far an edge's usage is complete, going past its epochs in order:
// what a newer epoch says covers the older ones only if nothing of those is
// outstanding.
type reach struct {
	ms    int64
	stuck bool
}

func (r *reach) past(e *epoch) {
	if r.stuck {
		return
	}
	r.ms = max(r.ms, e.Through.MS)
	r.stuck = !e.complete()
}

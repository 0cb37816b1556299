package ledger

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// The reasons of a refusal, as in usage.v1 Refusal.
const (
	ReasonMalformed   = "MALFORMED"    // the payload does not decode, or says what may not be
	ReasonWrongChain  = "WRONG_CHAIN"  // the hash is not the block's, or prev is not the ledger's head
	ReasonFork        = "FORK"         // another block with this number was applied: a cloned disk
	ReasonGap         = "GAP"          // an earlier block is missing
	ReasonEpochClosed = "EPOCH_CLOSED" // an operator closed the epoch, or a newer one has begun
	ReasonQuarantined = "QUARANTINED"  // a fork was found before: nothing of the epoch is taken until an operator closes it
)

var refusals = []struct{ reason, detail string }{
	{},
	{ReasonMalformed, "the payload does not decode or holds values that may not be"},
	{ReasonWrongChain, "hash or prev does not continue the chain the ledger holds"},
	{ReasonFork, "a different block with this number is in the ledger: this spool is a copy of another"},
	{ReasonGap, "an earlier block is missing"},
	{ReasonEpochClosed, "the epoch was closed by an operator, or a newer epoch of this edge has begun"},
	{ReasonQuarantined, "two spools speak for this epoch: it is quarantined until an operator closes it; what is here stays here"},
}

const (
	refMalformed = 1 + iota
	refWrongChain
	refFork
	refGap
	refClosed
	refQuarantined
)

// Watermark is how far one epoch of an edge has been applied.
type Watermark struct {
	Edge    string
	Epoch   uint64
	Applied uint64   // every block up to this one is in the ledger; 0: none
	Head    [32]byte // hash of block Applied
	Index   uint64   // of the ledger's log, at least where this was true
	Closed  bool

	Quarantined bool // two spools speak for it: see ReasonQuarantined
}

// Ack is the ledger's word on one block.
type Ack struct {
	Watermark        // after it
	Reason    string // "": the block is in the ledger, now or since before
	Detail    string
}

// Expected is the number of the only block the ledger would apply next.
func (a *Ack) Expected() uint64 { return a.Applied + 1 }

// resultVersion begins every result: a node may ask a leader of another release.
const resultVersion = 1

// The result of blocks is version u8, the raft index, n, n × (refusal u8,
// 1 closed + 2 quarantined, applied, head[32]).
func encodeAcks(b []byte, index uint64, n int) []byte {
	b = append(b, resultVersion)
	return binary.AppendUvarint(binary.AppendUvarint(b, index), uint64(n))
}

func appendAck(b []byte, refusal byte, e *epoch) []byte {
	b = append(b, refusal, boolByte(e.Closed)|boolByte(e.quarantined())<<1)
	b = binary.AppendUvarint(b, e.Applied)
	return append(b, e.Head[:]...)
}

func decodeAcks(b []byte, blocks []Block) ([]Ack, error) {
	if len(b) == 0 || b[0] != resultVersion {
		return nil, errors.New("the ledger's answer is of an unknown version")
	}
	r := reader{b: b[1:]}
	index := r.uvarint()
	if n := r.count(35); r.err == nil && n != len(blocks) {
		r.fail(fmt.Sprintf("it answers %d blocks of %d", n, len(blocks)))
	}
	out := make([]Ack, len(blocks))
	for i := range out {
		flags := r.take(2)
		a := Ack{Watermark: Watermark{Edge: blocks[i].Edge, Epoch: blocks[i].Epoch, Closed: flags[1]&1 != 0, Quarantined: flags[1]&2 != 0, Applied: r.uvarint(), Index: index}}
		a.Head = [32]byte(r.take(32))
		if int(flags[0]) >= len(refusals) {
			r.fail("it holds an unknown refusal")
		} else {
			a.Reason, a.Detail = refusals[flags[0]].reason, refusals[flags[0]].detail
		}
		out[i] = a
	}
	if r.err != nil {
		return nil, fmt.Errorf("decode the ledger's answer: %w", r.err)
	}
	return out, nil
}

func boolByte(b bool) byte {
	if b {
		return 1
	}
	return 0
}

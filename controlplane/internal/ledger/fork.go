package ledger

import (
	"context"
	"encoding/binary"
	"fmt"
)

// fork is the fact that two spools speak for one epoch. Nothing more of it is
// taken, and nothing acknowledged, until an operator closes it.
type fork struct {
	Seq  uint64   // whose content there is more than one of
	Hash [32]byte // of the block that the ledger does not have; of its successor if only that came
}

func (e *epoch) quarantined() bool { return e.Fork != nil && !e.Closed }

// contradicts: the hash of an applied block is remembered, and is not b's.
func (e *epoch) contradicts(b *Block) bool {
	if b.Seq == e.Applied {
		return b.Hash != e.Head
	}
	back := e.Applied - b.Seq
	return back < uint64(e.Remembered) && e.Recent[uint64(e.Remembered)-1-back] != [recentBytes]byte(b.Hash[:])
}

// quarantine makes the fork of an open epoch a fact.
func (t *tx) quarantine(key epochKey, e *epoch, seq uint64, hash [32]byte) {
	if t.version < 2 || e.Closed || e.Fork != nil {
		return
	}
	e.Fork = &fork{min(seq, e.Applied), hash}
	t.keep(key, e)
	t.m.forks.Add(1)
	t.m.logger.Error("two spools speak for one epoch of an edge: it is quarantined until an operator closes it",
		"edge", key.edge, "epoch", key.epoch, "seq", e.Fork.Seq, "hash", fmt.Sprintf("%x", e.Fork.Hash[:8]))
}

// forkOrder is an edge's word that its block with an applied number has another hash.
type forkOrder Block

func encodeFork(edge string, number, seq uint64, hash [32]byte) []byte {
	b := appendText(begin(kindFork), edge)
	return append(binary.AppendUvarint(binary.AppendUvarint(b, number), seq), hash[:]...)
}

func decodeFork(r *reader) order {
	o := new(forkOrder)
	o.Edge, o.Epoch, o.Seq = r.name(), r.uvarint(), r.uvarint()
	o.Hash = [32]byte(r.take(32))
	return o
}

func (o *forkOrder) apply(t *tx) ([]byte, error) {
	key := epochKey{o.Edge, o.Epoch}
	if e := t.epoch(key); o.Seq > 0 && o.Seq <= e.Applied && e.contradicts((*Block)(o)) {
		t.quarantine(key, e, o.Seq, o.Hash)
	}
	return []byte{resultVersion}, nil
}

// NoteFork puts an epoch into quarantine if the hash that its edge gives for an
// applied block is not the one the ledger remembers.
func (l *Ledger) NoteFork(ctx context.Context, edge string, number, seq uint64, hash [32]byte) error {
	if err := checkName("edge", edge); err != nil {
		return err
	}
	if _, err := l.propose(ctx, encodeFork(edge, number, seq, hash)); err != nil {
		return fmt.Errorf("note a fork of epoch %d of edge %s: %w", number, edge, err)
	}
	return nil
}

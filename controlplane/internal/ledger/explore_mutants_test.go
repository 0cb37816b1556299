package ledger_test

import (
	"errors"
	"testing"

	"bailiwick/controlplane/internal/explore"
	"bailiwick/controlplane/internal/ledger"
)

// mutants are what somebody could get wrong. The exploration must find each, or it proves nothing about the
// code that has none of them.
var mutants = []struct {
	name  string
	world bounds
	code  func(*rules) // nil: the model knows it by its name
}{
	{name: "a window of remembered blocks", world: twoBlocks},
	{name: "ack before commit", world: oneBlock},
	{name: "unknown taken for done", world: oneBlock},
	{name: "watermark not in the batch", world: oneBlock},
	{name: "snapshot without watermarks", world: oneBlock},
	{name: "seal and row position apart", world: twoBlocks},
	{name: "open rows not recovered", world: restarts},
	{name: "epoch number used again", world: restarts},
	{name: "epochs begin at 1 on an empty disk", world: operator},
	{name: "one watermark per edge", world: restartsTwo},
	{name: "newer epochs first", world: restartsTwo},
	{name: "ack taken for the newest epoch", world: restarts},
	{name: "ack without a hash", world: copied},
	{name: "older epochs not told of", world: told},
	{name: "seq ≥ applied+1, chain not looked at", world: twoBlocks, code: func(r *rules) {
		r.judge = func(e *ledger.Epoch, b *ledger.Block, latest uint64) (byte, bool) {
			if b.Seq > e.Applied+1 && !e.Closed {
				return 0, true
			}
			return ledger.Judge(e, b, latest)
		}
	}},
	{name: "seq alone decides", world: copiedTwo, code: func(r *rules) {
		r.judge = func(e *ledger.Epoch, b *ledger.Block, latest uint64) (byte, bool) {
			if refusal, next := ledger.Judge(e, b, latest); (refusal == ledger.RefWrongChain || refusal == ledger.RefFork) && b.Seq == e.Applied+1 {
				return 0, true
			} else {
				return refusal, next
			}
		}
	}},
	{name: "a repeat is a fork", world: oneBlock, code: func(r *rules) {
		r.judge = func(e *ledger.Epoch, b *ledger.Block, latest uint64) (byte, bool) {
			if e.Applied > 0 && b.Seq <= e.Applied {
				return ledger.RefFork, false
			}
			return ledger.Judge(e, b, latest)
		}
	}},
	{name: "a repeat is applied again", world: oneBlock, code: func(r *rules) {
		r.judge = func(e *ledger.Epoch, b *ledger.Block, latest uint64) (byte, bool) {
			if b.Seq == e.Applied && b.Hash == e.Head {
				return 0, true
			}
			return ledger.Judge(e, b, latest)
		}
	}},
	{name: "a closed epoch takes blocks", world: operator, code: func(r *rules) {
		r.judge = func(e *ledger.Epoch, b *ledger.Block, latest uint64) (byte, bool) {
			open := *e
			open.Closed = false
			return ledger.Judge(&open, b, latest)
		}
	}},
	{name: "heard of is begun", world: told},
	{name: "sealed-through before its blocks", world: told, code: func(r *rules) {
		r.hear = func(e *ledger.Epoch, s ledger.Said) {
			ledger.Hear(e, s)
			if !e.Closed && s.MS > e.Through.MS {
				e.Through.Seq, e.Through.MS = s.Seq, s.MS
			}
		}
	}},
	{name: "the newest word counts with the oldest block", world: told, code: func(r *rules) {
		r.advance = func(e *ledger.Epoch, b *ledger.Block) {
			first, last := e.First, e.Last
			ledger.Advance(e, b)
			if first.MS > 0 && first.Seq <= e.Applied && last.MS > e.Through.MS {
				e.Through = last
			}
		}
	}},
	{name: "a newer epoch speaks for older ones", world: told, code: func(r *rules) {
		r.past = func(t *ledger.Reach, e *ledger.Epoch) {
			whole := *e
			whole.Sealed = whole.Applied
			ledger.Past(t, &whole)
		}
	}},
}

func TestExplore_CatchesEveryMutant(t *testing.T) {
	for _, m := range mutants {
		t.Run(m.name, func(t *testing.T) {
			r := production()
			r.mutant = m.name
			if m.code != nil {
				m.code(&r)
			}
			seen, err := explored(m.world, r)
			var broken *explore.Broken
			if !errors.As(err, &broken) {
				t.Fatalf("the mutant survives %q (%v): %v", m.world.name, seen, err)
			}
			t.Logf("%q, %v: %v", m.world.name, seen, broken)
		})
	}
}

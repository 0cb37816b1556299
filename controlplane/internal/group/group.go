// Package group owns the contract of a replicated, revisioned key-value store,
// in etcd's manner: reads, transactions with compares, watches from a revision.
//
// It holds values and interfaces and no technology: raftgroup is the embedded
// engine, conformance the suite every engine passes. It never reads a clock and
// keeps no state, so nothing of it survives a crash. Every method of a Store
// and of a Snapshot may be called from any goroutine at once; a Watch belongs to
// one goroutine, except Close.
package group

import (
	"context"
	"fmt"
	"iter"
	"time"
)

// Revision is a place in the history of one group. Index grows by exactly one
// per committed transaction that changed something: it is etcd's revision, not
// a Raft log index, so that a watcher can tell a gap from silence. Epoch is 0
// for a store nothing was ever written to, set by the first write, and raised
// when an operator recovers or restores the group: a position of another epoch
// says nothing about this one.
type Revision struct {
	Epoch uint64
	Index uint64
}

// Less orders by epoch, then index.
func (r Revision) Less(o Revision) bool {
	return r.Epoch < o.Epoch || r.Epoch == o.Epoch && r.Index < o.Index
}

// String is "epoch.index".
func (r Revision) String() string { return fmt.Sprintf("%d.%d", r.Epoch, r.Index) }

// KV is one key with its value. Value is shared with every other reader: never
// write to it.
type KV struct {
	Key         string
	Value       []byte
	CreateIndex uint64 // Index of the transaction that made the key (again)
	ModIndex    uint64 // Index of the latest transaction that wrote it
	Version     uint64 // writes since it was made, 1 for the first
}

// Compare is one condition of a transaction.
type Compare struct {
	Key      string
	ModIndex uint64 // the key's ModIndex must be this; 0: the key must be absent
	Exists   bool   // the key must exist, whatever its ModIndex (ModIndex is ignored)
}

// Op is one change of a transaction.
type Op struct {
	Key          string
	Value        []byte // what to put; ignored by both deletes
	Delete       bool   // delete Key; deleting an absent key changes nothing
	DeletePrefix bool   // delete every key that starts with Key; "" is refused
}

// Txn is a set of compares and, if all of them hold, a set of changes made as
// one. No key may be touched by two Ops (etcd's rule: it makes their order
// irrelevant). A Txn without Ops only compares.
type Txn struct {
	// RequestID makes a retry safe: the group remembers the results of the
	// latest RememberedRequests transactions, in the replicated state, and a
	// transaction whose id is among them changes nothing and returns the first
	// result, compares that failed included. The content is not looked at again.
	// "" means the store draws one itself, which covers its own retries only.
	RequestID string
	Compares  []Compare
	Ops       []Op
}

// Result is what a transaction did.
type Result struct {
	Succeeded bool      // all compares held
	Revision  Revision  // after it; unchanged if nothing changed
	Time      time.Time // the leader's stamp, never decreasing within a group
	Failed    int       // index of the first compare that failed, -1 if none
	Replayed  bool      // this RequestID, if the caller gave one, was applied before; the rest is that first result
}

// Event is one key's change.
type Event struct {
	Index  uint64    // of the transaction
	Time   time.Time // its stamp, as in its Result; the same on every node
	Delete bool
	KV     KV  // the new state; for a delete Key and ModIndex only
	Prev   *KV // the state before, nil if the key was absent
}

// Snapshot is the state at one revision: immutable, ordered by key bytes, and
// free to take. Holding one keeps its values in memory.
type Snapshot interface {
	Revision() Revision
	Get(key string) (KV, bool)
	List(prefix string) iter.Seq[KV] // in key order; "" lists everything
	Len() int
}

// ListAfter is what of snap.List(prefix) comes behind key after, which begins with prefix; prefix itself: all of it. A
// snapshot that has a way to begin in the middle, a method ListAfter of the same meaning, saves reading what comes before.
func ListAfter(snap Snapshot, prefix, after string) iter.Seq[KV] {
	if s, ok := snap.(interface {
		ListAfter(prefix, after string) iter.Seq[KV]
	}); ok {
		return s.ListAfter(prefix, after)
	}
	return func(yield func(KV) bool) {
		for kv := range snap.List(prefix) {
			if kv.Key > after && !yield(kv) {
				return
			}
		}
	}
}

// Watch follows a prefix.
type Watch interface {
	// Next blocks until something below the prefix changed and returns every
	// such event of one or more whole revisions, in order: across calls there is
	// no gap and no repeat, and events of one Index never come apart. rev is the
	// revision up to which the watch has looked, at or above the last event's.
	// An error of reason COMPACTED ends the watch: history before it is gone (it
	// fell out of the window, or the store was restored), so list again and
	// watch from that list's Index+1. Events are shared: never write to them.
	Next(ctx context.Context) (events []Event, rev Revision, err error)
	// Close releases the watch and ends a Next in progress.
	Close()
}

// Store is one replicated group as one of its nodes sees it.
//
// Errors are *fault.Error with these reasons: NO_LEADER (no leader was found
// before ctx ended, nothing was proposed), OUTCOME_UNKNOWN (it was proposed and
// may or may not commit: retry with the same RequestID), NOT_LEADER, COMPACTED,
// STORE_STOPPED (this node is stopping, or stopped itself on a fault), and those
// of Txn.Validate. Everything that blocks ends with its ctx.
type Store interface {
	Name() string
	// Get and List are linearizable: they see every write acknowledged before
	// the call began, on any node.
	Get(ctx context.Context, key string) (KV, bool, Revision, error)
	List(ctx context.Context, prefix string) ([]KV, Revision, error)
	// Sync returns a linearizable snapshot: the leader was verified by a quorum
	// after the call began, and this node has applied all it had committed.
	Sync(ctx context.Context) (Snapshot, error)
	// Local is what this node has applied; no I/O, possibly old.
	Local() Snapshot
	// Txn commits through the leader, wherever it is. A compare that fails is a
	// Result, not an error. This node may not have applied it yet on return:
	// WaitFor(Result.Revision.Index) if the next local read must see it.
	Txn(ctx context.Context, t Txn) (Result, error)
	// Watch follows what this node applies, from the first Index wanted (0 is 1:
	// all of history). It works without a leader.
	Watch(from uint64, prefix string) (Watch, error)
	// WaitFor returns once this node has applied Index.
	WaitFor(ctx context.Context, index uint64) error
	// Leader is the last leader this node knows of, "" if none.
	Leader() (name string, self bool)
	// VerifyLeader succeeds only if this node is still the leader, confirmed by
	// a quorum after the call began. It never forwards.
	VerifyLeader(ctx context.Context) error
	// RunLeader calls work once each time this node becomes leader, after it has
	// applied all its predecessors committed. work's ctx ends with the
	// leadership; work must return soon after. Two calls of work never overlap.
	// Several RunLeader may run at once. It returns when ctx ends (nil) or the
	// store stops.
	RunLeader(ctx context.Context, work func(ctx context.Context)) error
}

// Package replica owns what one node holds of a group in memory, whichever the
// engine: the state at one revision, the window of recent events that watches
// read, and the node's turn of leadership.
//
// It never commits, reads no clock and does no I/O; an engine rebuilds all of it
// at start. A State never changes; History and Turn may be used from any
// goroutine at once.
package replica

import (
	"iter"
	"slices"
	"strings"
	"time"

	iradix "github.com/hashicorp/go-immutable-radix"

	"bailiwick/controlplane/internal/group"
	"bailiwick/shared/fault"
)

// ErrStopped is what a node that is stopping answers.
var ErrStopped error = fault.New(fault.Unavailable, group.ReasonStopped, "this control node is stopping: ask another")

// State is one revision of a store. It never changes, so readers take no lock
// and a snapshot is a pointer.
type State struct {
	Rev  group.Revision
	Tree *iradix.Tree // key → *group.KV
}

// Empty is the state of a store nothing was ever written to.
func Empty() State { return State{Tree: iradix.New()} }

// Revision is part of group.Snapshot.
func (s *State) Revision() group.Revision { return s.Rev }

// Len is part of group.Snapshot.
func (s *State) Len() int { return s.Tree.Len() }

// Get is part of group.Snapshot.
func (s *State) Get(key string) (group.KV, bool) {
	if v, ok := s.Tree.Get([]byte(key)); ok {
		return *v.(*group.KV), true
	}
	return group.KV{}, false
}

// List is part of group.Snapshot.
func (s *State) List(prefix string) iter.Seq[group.KV] {
	return func(yield func(group.KV) bool) {
		it := s.Tree.Root().Iterator()
		it.SeekPrefix([]byte(prefix))
		for _, v, ok := it.Next(); ok; _, v, ok = it.Next() {
			if !yield(*v.(*group.KV)) {
				return
			}
		}
	}
}

// ListAfter is group.ListAfter's.
func (s *State) ListAfter(prefix, after string) iter.Seq[group.KV] {
	return func(yield func(group.KV) bool) {
		it := s.Tree.Root().Iterator()
		it.SeekLowerBound([]byte(after))
		for k, v, ok := it.Next(); ok && strings.HasPrefix(string(k), prefix); k, v, ok = it.Next() {
			if string(k) > after && !yield(*v.(*group.KV)) {
				return
			}
		}
	}
}

// Failed is the first compare that does not hold, -1 if all do.
func (s *State) Failed(compares []group.Compare) int {
	for i, c := range compares {
		kv, ok := s.Get(c.Key)
		switch {
		case c.Exists && !ok, !c.Exists && kv.ModIndex != c.ModIndex: // absent: ModIndex 0
			return i
		}
	}
	return -1
}

// Change is the tree with ops made as the next revision, and what they changed.
// Values are copied.
func (s *State) Change(ops []group.Op, at time.Time) (*iradix.Tree, []group.Event) {
	index := s.Rev.Index + 1
	tx := s.Tree.Txn()
	var events []group.Event
	remove := func(key []byte) {
		if v, ok := tx.Delete(key); ok {
			prev := v.(*group.KV)
			events = append(events, group.Event{Index: index, Time: at, Delete: true, KV: group.KV{Key: prev.Key, ModIndex: index}, Prev: prev})
		}
	}
	for _, op := range ops {
		key := []byte(op.Key)
		switch {
		case op.DeletePrefix:
			for kv := range s.List(op.Key) { // no other op touches these keys, so s is as good as tx
				remove([]byte(kv.Key))
			}
		case op.Delete:
			remove(key)
		default:
			kv := &group.KV{Key: op.Key, Value: slices.Clone(op.Value), CreateIndex: index, ModIndex: index, Version: 1}
			old, ok := tx.Insert(key, kv)
			var prev *group.KV
			if ok {
				prev = old.(*group.KV)
				kv.CreateIndex, kv.Version = prev.CreateIndex, prev.Version+1
			}
			events = append(events, group.Event{Index: index, Time: at, KV: *kv, Prev: prev})
		}
	}
	return tx.CommitOnly(), events
}

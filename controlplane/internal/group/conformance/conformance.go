// Package conformance is the suite every engine of group.Store passes.
//
// It states the contract's guarantees as named checks over the interface alone,
// and knows no engine. It keeps nothing; each check gets a fresh store. Its own
// tests break a working store in each way a check is there to notice.
package conformance

import (
	"context"
	"testing"
	"time"

	"bailiwick/controlplane/internal/group"
)

// T is the part of *testing.T that a check uses, so that a test of the suite can
// record what a check reports. Fatalf must end the calling goroutine.
type T interface {
	Helper()
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
	Context() context.Context
}

// Check is one guarantee.
type Check struct {
	Name string
	Run  func(t T, s group.Store)
}

// Run runs every check on a store of its own, some at once. open returns an empty
// store that is led already or soon, and closes it with t.Cleanup.
func Run(t *testing.T, open func(t *testing.T) group.Store) {
	for _, c := range Checks() {
		t.Run(c.Name, func(t *testing.T) {
			t.Parallel()
			c.Run(t, open(t))
		})
	}
}

// Checks is the suite.
func Checks() []Check {
	return []Check{
		{"reads", reads},
		{"compares", compares},
		{"atomicity", atomicity},
		{"transfers", transfers},
		{"bulk_is_one", bulkIsOne},
		{"revisions", revisions},
		{"deletes", deletes},
		{"snapshots", snapshots},
		{"values_are_copied", valuesAreCopied},
		{"linearizable_counter", linearizableCounter},
		{"request_ids", requestIDs},
		{"request_id_race", requestIDRace},
		{"limits", limits},
		{"overlap", overlap},
		{"watch_content", watchContent},
		{"watch_under_writes", watchUnderWrites},
		{"watch_prefix", watchPrefix},
		{"watch_from", watchFrom},
		{"watch_compacted", watchCompacted},
		{"watch_ends", watchEnds},
		{"wait_for", waitFor},
		{"leadership", leadership},
	}
}

// patience is how long one call may take before the check fails rather than
// hangs; it covers an election.
const patience = 20 * time.Second

func limited(t T) (context.Context, context.CancelFunc) {
	return context.WithTimeout(t.Context(), patience)
}

func txn(t T, s group.Store, x group.Txn) group.Result {
	t.Helper()
	ctx, cancel := limited(t)
	defer cancel()
	r, err := s.Txn(ctx, x)
	if err != nil {
		t.Fatalf("txn %s: got error %v", brief(x), err)
	}
	return r
}

func put(key, value string) group.Op { return group.Op{Key: key, Value: []byte(value)} }
func del(key string) group.Op        { return group.Op{Key: key, Delete: true} }
func delPrefix(key string) group.Op  { return group.Op{Key: key, DeletePrefix: true} }

func ops(o ...group.Op) group.Txn { return group.Txn{Ops: o} }

func write(t T, s group.Store, o ...group.Op) group.Result {
	t.Helper()
	r := txn(t, s, ops(o...))
	if !r.Succeeded || r.Failed != -1 || r.Replayed {
		t.Fatalf("write %s: got %+v, want it to succeed", brief(ops(o...)), r)
	}
	return r
}

func get(t T, s group.Store, key string) (group.KV, bool) {
	t.Helper()
	ctx, cancel := limited(t)
	defer cancel()
	kv, ok, _, err := s.Get(ctx, key)
	if err != nil {
		t.Fatalf("get %s: got error %v", key, err)
	}
	return kv, ok
}

func wantValue(t T, s group.Store, key, want string) {
	t.Helper()
	if kv, ok := get(t, s, key); !ok || string(kv.Value) != want {
		t.Errorf("get %s: got %q, %v, want %q", key, kv.Value, ok, want)
	}
}

func wantAbsent(t T, s group.Store, key string) {
	t.Helper()
	if kv, ok := get(t, s, key); ok {
		t.Errorf("get %s: got %q, want it absent", key, kv.Value)
	}
}

func list(t T, s group.Store, prefix string) ([]group.KV, group.Revision) {
	t.Helper()
	ctx, cancel := limited(t)
	defer cancel()
	kvs, rev, err := s.List(ctx, prefix)
	if err != nil {
		t.Fatalf("list %q: got error %v", prefix, err)
	}
	return kvs, rev
}

func current(t T, s group.Store) group.Snapshot {
	t.Helper()
	ctx, cancel := limited(t)
	defer cancel()
	snap, err := s.Sync(ctx)
	if err != nil {
		t.Fatalf("sync: got error %v", err)
	}
	return snap
}

func watch(t T, s group.Store, from uint64, prefix string) group.Watch {
	t.Helper()
	w, err := s.Watch(from, prefix)
	if err != nil {
		t.Fatalf("watch %q from %d: got error %v", prefix, from, err)
	}
	return w
}

func next(t T, w group.Watch) ([]group.Event, group.Revision) {
	t.Helper()
	ctx, cancel := limited(t)
	defer cancel()
	events, rev, err := w.Next(ctx)
	if err != nil {
		t.Fatalf("next: got error %v", err)
	}
	if len(events) == 0 {
		t.Fatalf("next: got no events at %v, want it to block until there are some", rev)
	}
	return events, rev
}

func keys(kvs []group.KV) []string {
	out := []string{}
	for _, kv := range kvs {
		out = append(out, kv.Key)
	}
	return out
}

// brief is a transaction without its values.
func brief(x group.Txn) []string {
	var out []string
	for _, op := range x.Ops {
		if len(out) == 5 {
			return append(out, "…")
		}
		switch {
		case op.Delete:
			out = append(out, "delete "+op.Key)
		case op.DeletePrefix:
			out = append(out, "delete "+op.Key+"*")
		default:
			out = append(out, "put "+op.Key)
		}
	}
	return out
}

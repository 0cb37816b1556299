// Package history owns the catalog's past: which resources each change of an operator wrote, and what they held before, so
// that any of the latest revisions can be compared with another and applied again.
//
// It turns snapshots into lists, differences and operations and does no I/O; adminapi commits them. A record is written in
// the transaction that it tells of, so the two survive a crash together, and every control node holds the same. It never
// decides whether something may be changed back: a rollback is judged, approved and rolled out like any other change.
// Everything in it may be called from several goroutines at once.
package history

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
	"bailiwick/shared/fault"
)

// The bounds of what is remembered, whichever is met first. The catalog is held in memory on every control node, and a
// rollback is for what went wrong lately; who changed what, for ever, is in each zone's log (audit list).
const (
	Kept      = 200     // revisions
	KeptBytes = 8 << 20 // of records, as stored
	dropped   = 8       // old records that one change takes away at most
	maxRecord = 256 << 10
)

// Reasons of errors.
const (
	ReasonUnreached = "REVISION_UNREACHED" // older than what is remembered, or in the future
)

// prefixes are what is remembered. Zones are not: nodes that come and go write their addresses there, and those must not
// come back; neither are nodes.
var prefixes = []string{model.PrefixRegion, model.PrefixBasis, model.PrefixPolicy, model.PrefixAPI, model.PrefixProduct, model.PrefixPlan, model.PrefixSwitch}

// Remembers says whether what rests at a key of the catalog has a history.
func Remembers(key string) bool {
	return slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(key, p) })
}

// Revision is one remembered change.
type Revision struct {
	Index uint64 // the catalog's, after it
	Seq   uint64 // of the record, without gaps
	At    time.Time
	By    string // zone and pseudonym
	Call  string
	Keys  []model.RevisedKey
	Lost  bool // what was before is not kept: it was too large

	before []byte
}

// List is what is remembered, oldest first.
func List(catalog group.Snapshot) ([]Revision, error) {
	var out []Revision
	for kv := range catalog.List(model.PrefixRevision) {
		r, err := model.Decode[model.Revision](kv.Key, kv.Value)
		if err != nil {
			return nil, err
		}
		out = append(out, Revision{Index: kv.ModIndex, Seq: r.Seq, At: r.At, By: r.By, Call: r.Call, Keys: r.Keys, Lost: r.Lost, before: r.Before})
	}
	return out, nil
}

// Head is the number of the latest record, 0 if there is none: as long as it stays, nothing remembered has changed.
func Head(catalog group.Snapshot) (seq uint64) {
	for kv := range catalog.List(model.PrefixRevision) {
		seq, _ = strconv.ParseUint(strings.TrimPrefix(kv.Key, model.PrefixRevision), 10, 64)
	}
	return seq
}

// Oldest is the first revision that Since still reaches; 0: none but what is now.
func Oldest(list []Revision) uint64 {
	var oldest uint64
	for i := len(list) - 1; i >= 0 && !list[i].Lost; i-- {
		// Before this one: the index that its transaction came after. It is not known, and every place between two records
		// holds the same.
		oldest = list[i].Index - 1
	}
	return oldest
}

// Since is what each resource that changed after a revision held at that revision, by key; nil: it did not exist.
func Since(catalog group.Snapshot, revision uint64) (map[string][]byte, error) {
	list, err := List(catalog)
	if err != nil {
		return nil, err
	}
	if now := catalog.Revision().Index; revision > now {
		return nil, fault.New(fault.Invalid, ReasonUnreached, "the catalog is at revision %d: there is no revision %d yet", now, revision).At("revision")
	}
	then := map[string][]byte{}
	for i := len(list) - 1; i >= 0; i-- {
		r := list[i]
		if r.Index <= revision {
			return then, nil
		}
		if r.Lost {
			return nil, unreached(revision, list)
		}
		before, err := unpack(r.before)
		if err != nil {
			return nil, fmt.Errorf("read revision %d of the catalog: %w", r.Index, err)
		}
		for _, k := range r.Keys {
			then[k.Key] = before[k.Key]
		}
	}
	if revision < Oldest(list) || len(list) == 0 && revision < catalog.Revision().Index {
		return nil, unreached(revision, list)
	}
	return then, nil
}

func unreached(revision uint64, list []Revision) error {
	oldest := "nothing is remembered but what is now"
	if o := Oldest(list); o > 0 {
		oldest = fmt.Sprintf("the oldest that is remembered is %d", o)
	}
	return fault.New(fault.NotFound, ReasonUnreached, "revision %d of the catalog is not remembered: %s; the latest %d changes are kept", revision, oldest, Kept).At("revision")
}

// Back are the operations that make resources what they were at a revision, those that want says yes to; nil: all. The
// caller compares what it judged them against. What is as it was is left out.
func Back(catalog group.Snapshot, revision uint64, want func(key string) bool) ([]group.Op, error) {
	then, err := Since(catalog, revision)
	if err != nil {
		return nil, err
	}
	var ops []group.Op
	for key, was := range then {
		if want != nil && !want(key) {
			continue
		}
		switch kv, is := catalog.Get(key); {
		case was == nil && is:
			ops = append(ops, group.Op{Key: key, Delete: true})
		case was != nil && (!is || !bytes.Equal(kv.Value, was)):
			ops = append(ops, group.Op{Key: key, Value: was})
		}
	}
	slices.SortFunc(ops, func(a, b group.Op) int { return strings.Compare(a.Key, b.Key) })
	return ops, nil
}

// Record adds to a transaction of the catalog the record of what it changes. snap is what it was judged on, or newer: the
// transaction is held to it. A transaction that changes nothing remembered comes back as it was.
func Record(snap group.Snapshot, t group.Txn, by, call string, at time.Time) (group.Txn, error) {
	before := map[string][]byte{}
	rev := model.Revision{By: by, Call: call, At: at.UTC().Truncate(time.Second)}
	compares := slices.Clip(t.Compares)
	for _, op := range t.Ops {
		if op.DeletePrefix && slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(p, op.Key) || strings.HasPrefix(op.Key, p) }) {
			return t, fault.New(fault.Internal, "HISTORY_BLIND", "a change of the catalog deletes by prefix: what it takes away could not be remembered")
		}
		if !Remembers(op.Key) {
			continue
		}
		kv, was := snap.Get(op.Key)
		if was && !op.Delete && bytes.Equal(kv.Value, op.Value) || !was && op.Delete {
			continue
		}
		k := model.RevisedKey{Key: op.Key, Action: model.RevisedUpdated}
		switch {
		case !was:
			k.Action = model.RevisedCreated
		case op.Delete:
			k.Action = model.RevisedDeleted
		}
		rev.Keys = append(rev.Keys, k)
		if was {
			before[op.Key] = kv.Value
		}
		// Without this what is written down as before could be another's, committed meanwhile.
		if !slices.ContainsFunc(compares, func(c group.Compare) bool { return c.Key == op.Key && !c.Exists }) {
			compares = append(compares, group.Compare{Key: op.Key, ModIndex: kv.ModIndex})
		}
	}
	if len(rev.Keys) == 0 {
		return t, nil
	}
	var err error
	if rev.Before, err = pack(before); err != nil {
		return t, err
	}
	rev.Seq = Head(snap) + 1
	key := keyOf(rev.Seq)
	out := t
	out.Compares = append(compares, group.Compare{Key: key})
	value := model.Encode(rev)
	out.Ops = append(append(slices.Clip(t.Ops), group.Op{Key: key, Value: value}), drop(snap, len(value))...)
	if len(rev.Before) > maxRecord || out.Validate() != nil && t.Validate() == nil {
		// Two openapi documents of half a megabyte each, that gzip makes nothing of: the change is made, and known.
		rev.Lost, rev.Before = true, nil
		value = model.Encode(rev)
		out.Ops = append(append(slices.Clip(t.Ops), group.Op{Key: key, Value: value}), drop(snap, len(value))...)
	}
	return out, nil
}

func keyOf(seq uint64) string { return fmt.Sprintf("%s%020d", model.PrefixRevision, seq) }

// drop are the oldest records that must go for one more.
func drop(snap group.Snapshot, more int) (ops []group.Op) {
	var keys []string
	var sizes []int
	total := more
	for kv := range snap.List(model.PrefixRevision) {
		keys, sizes, total = append(keys, kv.Key), append(sizes, len(kv.Value)), total+len(kv.Value)
	}
	for i := 0; i < len(keys) && len(ops) < dropped && (len(keys)-i >= Kept || total > KeptBytes); i++ {
		ops = append(ops, group.Op{Key: keys[i], Delete: true})
		total -= sizes[i]
	}
	return ops
}

func pack(before map[string][]byte) ([]byte, error) {
	text, err := json.Marshal(before)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err = z.Write(text); err == nil {
		err = z.Close()
	}
	return b.Bytes(), err
}

func unpack(data []byte) (map[string][]byte, error) {
	z, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(io.LimitReader(z, 8*group.MaxBytes))
	if err != nil {
		return nil, err
	}
	before := map[string][]byte{}
	return before, json.Unmarshal(text, &before)
}

package raftgroup

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"iter"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	iradix "github.com/hashicorp/go-immutable-radix"

	"bailiwick/controlplane/internal/group"
	"bailiwick/shared/fault"
)

// state is one revision of the store. It never changes, so readers take no
// lock and a snapshot is a pointer.
type state struct {
	rev     group.Revision
	applied uint64       // raft index, what Machine.Applied answers
	tree    *iradix.Tree // key → *group.KV
}

func (s *state) Revision() group.Revision { return s.rev }
func (s *state) Len() int                 { return s.tree.Len() }

func (s *state) Get(key string) (group.KV, bool) {
	if v, ok := s.tree.Get([]byte(key)); ok {
		return *v.(*group.KV), true
	}
	return group.KV{}, false
}

func (s *state) List(prefix string) iter.Seq[group.KV] {
	return func(yield func(group.KV) bool) {
		it := s.tree.Root().Iterator()
		it.SeekPrefix([]byte(prefix))
		for _, v, ok := it.Next(); ok; _, v, ok = it.Next() {
			if !yield(*v.(*group.KV)) {
				return
			}
		}
	}
}

type remembered struct {
	id     string
	result group.Result
}

// memory is the Store's Machine: everything in RAM, rebuilt from snapshot and
// log at start.
type memory struct {
	name   string
	cur    atomic.Pointer[state]
	hist   *history
	checks checks
	knows  uint32 // of commands; tests pretend to be newer

	// mu covers seen and order, the memory of request ids. Only the apply
	// goroutine changes them; StateHash reads them from elsewhere.
	mu    sync.Mutex
	seen  map[string]group.Result
	order []remembered // a ring once it is full
	next  int          // the oldest, where the next goes
}

func newMemory(name string, window int, checkEvery uint64) *memory {
	m := &memory{name: name, hist: newHistory(name, window), seen: make(map[string]group.Result), checks: checks{every: checkEvery, signal: make(chan struct{}, 1)}}
	m.cur.Store(&state{tree: iradix.New()})
	return m
}

// Applied is part of Machine.
func (m *memory) Applied() uint64 { return m.cur.Load().applied }

// Commands is part of Versioned.
func (m *memory) Commands() (oldest, newest uint32) {
	return commandVersion, max(commandVersion, m.knows)
}

// Version is part of Versioned.
func (m *memory) Version(cmd []byte) uint32 {
	if len(cmd) == 0 {
		return 0 // Check refuses it
	}
	return uint32(cmd[0])
}

// Check is part of Checker.
func (m *memory) Check(cmd []byte) error {
	kind, t, err := decodeCommand(cmd)
	if err != nil {
		return fault.New(fault.Invalid, "COMMAND_UNKNOWN", "change %s: %w", m.name, err)
	}
	switch kind {
	case kindTxn:
		return t.Validate()
	case kindReopen:
		return fault.New(fault.Invalid, "COMMAND_OFFLINE", "change %s: a group is reopened while its node is stopped, by recover or restore", m.name)
	}
	return nil
}

// Apply is part of Machine.
func (m *memory) Apply(index uint64, at time.Time, cmd []byte) ([]byte, error) {
	kind, t, err := decodeCommand(cmd)
	if err != nil {
		return nil, err
	}
	old := m.cur.Load()
	if r, ok := m.recall(t.RequestID); ok {
		m.cur.Store(&state{rev: old.rev, applied: index, tree: old.tree})
		r.Replayed = true
		return encodeResult(r), nil
	}
	now := &state{rev: old.rev, applied: index, tree: old.tree}
	res := group.Result{Succeeded: true, Time: at, Failed: -1}
	var events []group.Event
	if kind == kindEpoch {
		now.rev.Epoch = max(old.rev.Epoch+1, uint64(at.Unix()))
		now.rev.Index++
	} else if kind == kindReopen {
		now.tree, events = change(old, t.Ops, at)
		now.rev.Epoch = max(old.rev.Epoch+1, uint64(at.Unix()))
		now.rev.Index++
	} else if res.Failed = failed(old, t.Compares); res.Failed >= 0 {
		res.Succeeded = false
	} else if now.tree, events = change(old, t.Ops, at); len(events) > 0 {
		now.rev.Index++
		if now.rev.Epoch == 0 {
			// The leader's seconds: a group wiped and made anew does not
			// pass for its predecessor.
			now.rev.Epoch = max(1, uint64(at.Unix()))
		}
	}
	res.Revision = now.rev
	m.remember(t.RequestID, res)
	m.cur.Store(now) // before the events: whoever saw one finds the state
	switch {
	case kind == kindEpoch:
		m.hist.reset(now.rev)
	case len(events) > 0 || kind == kindReopen: // what was before it stays true: whoever follows goes on
		m.hist.add(now.rev, events)
	}
	if now.rev.Index != old.rev.Index && m.checks.every > 0 && now.rev.Index%m.checks.every == 0 {
		s, order := m.capture()
		m.checks.offer(func() Checkpoint { return Checkpoint{s.rev.Epoch, s.rev.Index, s.hash(order)} })
	}
	return encodeResult(res), nil
}

func failed(s *state, compares []group.Compare) int {
	for i, c := range compares {
		kv, ok := s.Get(c.Key)
		switch {
		case c.Exists && !ok, !c.Exists && kv.ModIndex != c.ModIndex: // absent: ModIndex 0
			return i
		}
	}
	return -1
}

func change(s *state, ops []group.Op, at time.Time) (*iradix.Tree, []group.Event) {
	index := s.rev.Index + 1
	tx := s.tree.Txn()
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

func (m *memory) recall(id string) (group.Result, bool) {
	if id == "" {
		return group.Result{}, false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	r, ok := m.seen[id]
	return r, ok
}

func (m *memory) remember(id string, r group.Result) {
	if id == "" {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.order) < group.RememberedRequests {
		m.order = append(m.order, remembered{id, r})
	} else {
		delete(m.seen, m.order[m.next].id)
		m.order[m.next] = remembered{id, r}
		m.next = (m.next + 1) % len(m.order)
	}
	m.seen[id] = r
}

// capture copies the request ids, 65,536 at most: a millisecond or two.
func (m *memory) capture() (*state, []remembered) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.cur.Load(), slices.Concat(m.order[m.next:], m.order[:m.next])
}

// Snapshot is part of Machine.
func (m *memory) Snapshot() (func(io.Writer) error, func(), error) {
	s, order := m.capture()
	return func(w io.Writer) error { return s.write(w, order) }, func() {}, nil
}

const stateVersion = 1

// write is version, epoch, index, raft index, the keys with their count before
// them, the remembered requests oldest first with theirs.
func (s *state) write(w io.Writer, order []remembered) error {
	var e encoder
	flush := func() error {
		_, err := w.Write(e)
		e = e[:0]
		return err
	}
	e.num(stateVersion)
	e.num(s.rev.Epoch)
	e.num(s.rev.Index)
	e.num(s.applied)
	e.num(uint64(s.Len()))
	for kv := range s.List("") {
		e.text(kv.Key)
		e.bytes(kv.Value)
		e.num(kv.CreateIndex)
		e.num(kv.ModIndex)
		e.num(kv.Version)
		if err := flush(); err != nil {
			return err
		}
	}
	e.num(uint64(len(order)))
	for _, r := range order {
		e.text(r.id)
		e.bytes(encodeResult(r.result))
		if err := flush(); err != nil {
			return err
		}
	}
	return flush()
}

// Restore is part of Machine. It builds the whole state before it shows any.
func (m *memory) Restore(rd io.Reader) error {
	r := bufio.NewReaderSize(rd, 64<<10)
	var err error
	num := func() (v uint64) {
		if err == nil {
			v, err = binary.ReadUvarint(r)
		}
		return v
	}
	bytes := func(limit uint64) []byte {
		n := num()
		if err == nil && n > limit {
			err = errMalformed
		}
		if err != nil {
			return nil
		}
		b := make([]byte, n)
		_, err = io.ReadFull(r, b)
		return b
	}
	if v := num(); err == nil && v != stateVersion {
		return fmt.Errorf("state version %d is unknown, this program knows %d: run a newer bailiwick-control", v, stateVersion)
	}
	s := &state{rev: group.Revision{Epoch: num(), Index: num()}, applied: num()}
	tx := iradix.New().Txn()
	for n := num(); n > 0 && err == nil; n-- {
		key := bytes(group.MaxKey)
		kv := &group.KV{Key: string(key), Value: bytes(group.MaxValue), CreateIndex: num(), ModIndex: num(), Version: num()}
		tx.Insert(key, kv)
	}
	s.tree = tx.CommitOnly()
	var order []remembered
	for n := num(); n > 0 && err == nil; n-- {
		id, b := bytes(group.MaxRequestID), bytes(64)
		if err != nil {
			break
		}
		var res group.Result
		if res, err = decodeResult(b); err == nil {
			order = append(order, remembered{string(id), res})
		}
	}
	if err == nil {
		if _, err = r.ReadByte(); err == nil { // io.EOF says that the checksum held
			err = errMalformed
		} else if err == io.EOF {
			err = nil
		}
	}
	if err != nil {
		return fmt.Errorf("restore state of %s: %w", m.name, err)
	}
	m.mu.Lock()
	m.seen, m.order, m.next = make(map[string]group.Result, len(order)), order, 0
	for _, o := range order {
		m.seen[o.id] = o.result
	}
	m.mu.Unlock()
	m.cur.Store(s)
	m.hist.reset(s.rev)
	return nil
}

// hash is over everything replicated: two nodes that applied the same entries
// have the same.
func (m *memory) hash() (group.Revision, [32]byte) {
	s, order := m.capture()
	return s.rev, s.hash(order)
}

func (s *state) hash(order []remembered) [32]byte {
	h := sha256.New()
	w := bufio.NewWriter(h)
	_ = s.write(w, order) // a hash never fails
	_ = w.Flush()
	return [32]byte(h.Sum(nil))
}

package raftgroup

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	iradix "github.com/hashicorp/go-immutable-radix"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/group/replica"
	"bailiwick/shared/fault"
)

// state is one revision of the store, and which entry made it.
type state struct {
	replica.State
	applied uint64 // raft index, what Machine.Applied answers
}

// memory is the Store's Machine: everything in RAM, rebuilt from snapshot and
// log at start.
type memory struct {
	name   string
	cur    atomic.Pointer[state]
	hist   *replica.History
	checks checks
	knows  uint32    // of commands; tests pretend to be older or newer
	looked time.Time // the stamp at the latest revision that may be hashed; only the apply goroutine

	requests replica.Requests
}

func newMemory(name string, window int, checkEvery uint64) *memory {
	m := &memory{name: name, hist: replica.NewHistory(name, window), checks: checks{every: checkEvery, signal: make(chan struct{}, 1)}}
	m.cur.Store(&state{State: replica.Empty()})
	return m
}

// Applied is part of Machine.
func (m *memory) Applied() uint64 { return m.cur.Load().applied }

// Commands is part of Versioned.
func (m *memory) Commands() (oldest, newest uint32) {
	if m.knows > 0 {
		return commandVersion, m.knows
	}
	return commandVersion, batchVersion
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
	if isBatch(cmd) {
		return fault.New(fault.Invalid, "COMMAND_BATCH", "change %s: only its leader makes one change of several", m.name)
	}
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

// Batch is part of Batcher.
func (m *memory) Batch(cmds [][]byte) []byte { return encodeParts(batchHead, cmds) }

// Results is part of Batcher.
func (m *memory) Results(out []byte) ([][]byte, error) { return decodeParts(batchHead, out) }

// Apply is part of Machine.
func (m *memory) Apply(index uint64, at time.Time, cmd []byte) ([]byte, error) {
	if !isBatch(cmd) {
		return m.apply(index, at, cmd)
	}
	cmds, err := decodeParts(batchHead, cmd)
	if err != nil {
		return nil, fmt.Errorf("read a batch of store commands: %w", err)
	}
	outs := make([][]byte, len(cmds))
	for i, c := range cmds {
		if outs[i], err = m.apply(index, at, c); err != nil {
			return nil, err
		}
	}
	return encodeParts(batchHead, outs), nil
}

func (m *memory) apply(index uint64, at time.Time, cmd []byte) ([]byte, error) {
	kind, t, err := decodeCommand(cmd)
	if err != nil {
		return nil, err
	}
	old := m.cur.Load()
	if r, ok := m.requests.Recall(t.RequestID); ok {
		m.cur.Store(&state{State: old.State, applied: index})
		r.Replayed = true
		return encodeResult(r), nil
	}
	now := &state{State: old.State, applied: index}
	res := group.Result{Succeeded: true, Time: at, Failed: -1}
	var events []group.Event
	if kind == kindEpoch {
		now.Rev.Epoch = max(old.Rev.Epoch+1, uint64(at.Unix()))
		now.Rev.Index++
	} else if kind == kindReopen {
		now.Tree, events = old.Change(t.Ops, at)
		now.Rev.Epoch = max(old.Rev.Epoch+1, uint64(at.Unix()))
		now.Rev.Index++
	} else if res.Failed = old.Failed(t.Compares); res.Failed >= 0 {
		res.Succeeded = false
	} else if now.Tree, events = old.Change(t.Ops, at); len(events) > 0 {
		now.Rev.Index++
		if now.Rev.Epoch == 0 {
			// The leader's seconds: a group wiped and made anew does not
			// pass for its predecessor.
			now.Rev.Epoch = max(1, uint64(at.Unix()))
		}
	}
	res.Revision = now.Rev
	m.requests.Remember(t.RequestID, res)
	m.cur.Store(now) // before the events: whoever saw one finds the state
	switch {
	case kind == kindEpoch:
		m.hist.Reset(now.Rev)
	case len(events) > 0 || kind == kindReopen: // what was before it stays true: whoever follows goes on
		m.hist.Add(now.Rev, events)
	}
	if now.Rev.Index != old.Rev.Index && m.checks.every > 0 && now.Rev.Index%m.checks.every == 0 && m.due(now, at) {
		s, order := m.capture()
		m.checks.offer(func() Checkpoint { return Checkpoint{s.Rev.Epoch, s.Rev.Index, s.hash(order)} })
	}
	return encodeResult(res), nil
}

// hashShare is how much time passes, by the group's clock, for each key and request of a state between two hashes of it: at
// a microsecond or so each, hashing a million keys under load takes a twentieth of a processor instead of all of one.
const hashShare = 20 * time.Microsecond

// due says whether this revision, one of every CheckEvery, is hashed: the first in each span of the group's time. It follows
// from what is replicated alone, so that all nodes choose the same; one that was just restored may choose one more.
func (m *memory) due(s *state, at time.Time) bool {
	last := m.looked
	m.looked = at
	span := int64(s.Len()+m.requests.Len()+1) * int64(hashShare)
	return last.IsZero() || at.UnixNano()/span != last.UnixNano()/span
}

// capture is the state with the requests it remembers, for the apply goroutine.
func (m *memory) capture() (*state, []replica.Remembered) { return m.cur.Load(), m.requests.All() }

// Snapshot is part of Machine.
func (m *memory) Snapshot() (func(io.Writer) error, func(), error) {
	s, order := m.capture()
	return func(w io.Writer) error { return s.write(w, order) }, func() {}, nil
}

const stateVersion = 1

// write is version, epoch, index, raft index, the keys with their count before
// them, the remembered requests oldest first with theirs.
func (s *state) write(w io.Writer, order []replica.Remembered) error {
	var e encoder
	flush := func() error {
		_, err := w.Write(e)
		e = e[:0]
		return err
	}
	e.num(stateVersion)
	e.num(s.Rev.Epoch)
	e.num(s.Rev.Index)
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
		e.text(r.ID)
		e.bytes(encodeResult(r.Result))
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
	s := &state{State: replica.State{Rev: group.Revision{Epoch: num(), Index: num()}}, applied: num()}
	tx := iradix.New().Txn()
	for n := num(); n > 0 && err == nil; n-- {
		key := bytes(group.MaxKey)
		kv := &group.KV{Key: string(key), Value: bytes(group.MaxValue), CreateIndex: num(), ModIndex: num(), Version: num()}
		tx.Insert(key, kv)
	}
	s.Tree = tx.CommitOnly()
	var order []replica.Remembered
	for n := num(); n > 0 && err == nil; n-- {
		id, b := bytes(group.MaxRequestID), bytes(64)
		if err != nil {
			break
		}
		var res group.Result
		if res, err = decodeResult(b); err == nil {
			order = append(order, replica.Remembered{ID: string(id), Result: res})
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
	m.requests.Replace(order)
	m.looked = time.Time{}
	m.cur.Store(s)
	m.hist.Reset(s.Rev)
	return nil
}

// hash is over everything replicated: two nodes that applied the same entries
// have the same.
func (m *memory) hash() (group.Revision, [32]byte) {
	s, order := m.capture()
	return s.Rev, s.hash(order)
}

func (s *state) hash(order []replica.Remembered) [32]byte {
	h := sha256.New()
	w := bufio.NewWriter(h)
	_ = s.write(w, order) // a hash never fails
	_ = w.Flush()
	return [32]byte(h.Sum(nil))
}

package spool

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path/filepath"
	"slices"

	"bailiwick/shared/durable"
	"bailiwick/shared/usage"
)

// The journal is a row of durable.Logs, journal-<n>, each beginning with the
// whole state, so that the oldest can go once its blocks are acknowledged.
//
//	state:  edge, epoch, seq, head, covered, at, final, n × epoch, rows
//	epoch:  a new epoch begins
//	block:  a block; it counts only once a commit follows
//	commit: the blocks before it are sealed, rows below covered are in them: the first so many of the epoch
//	ack:    the ledger has all blocks of an epoch up to a number, and the hash of that one
const (
	recState  = 1
	recEpoch  = 2
	recBlock  = 3
	recCommit = 4
	recAck    = 5
)

const journalVersion = 2 // 1: states and commits without a number of rows, before 2026-11-25

func (c *Config) journalHeader() durable.Header {
	return durable.Header{Magic: "bwspool", Version: journalVersion, Program: c.Program}
}

// entry says where a block that is not acknowledged lies.
type entry struct {
	epoch, seq uint64
	prev, hash [32]byte
	file       uint64 // number of the journal file
	off        int64  // of the payload in it
	size       int
}

// epochState is one epoch that still matters: the current one, and those with blocks.
type epochState struct {
	epoch, sealed, acked uint64
	head, ackedHead      [32]byte // hashes of blocks sealed and acked
}

// state is what the journal says. Values are copied; blocks is only appended to
// and cut at its front.
type state struct {
	edge    string
	epoch   uint64
	seq     uint64   // of the current epoch's last sealed block
	head    [32]byte // its hash
	covered pos      // rows of the current epoch below it are in blocks
	rows    uint64   // how many those are
	final   bool     // no more rows come into the current epoch
	at      int64    // unix ms, of the last seal
	epochs  []epochState
	blocks  []entry // not acknowledged, in order
}

func (st *state) begin(epoch uint64) {
	st.epoch, st.seq, st.head, st.covered, st.rows, st.final = epoch, 0, [32]byte{}, 0, 0, false
	st.epochs = append(slices.Clone(st.epochs), epochState{epoch: epoch})
	st.forget()
}

// seal takes in blocks that are on disk.
func (st *state) seal(blocks []entry, covered pos, at int64, final bool, rows uint64) {
	st.epochs = slices.Clone(st.epochs)
	for _, b := range blocks {
		st.seq, st.head = b.seq, b.hash
		if e := st.find(b.epoch); e != nil {
			e.sealed, e.head = b.seq, b.hash
		}
	}
	st.blocks = append(slices.Clone(st.blocks), blocks...)
	st.covered, st.at, st.final, st.rows = covered, max(st.at, at), final, max(st.rows, rows)
}

func (st *state) find(epoch uint64) *epochState {
	for i := range st.epochs {
		if st.epochs[i].epoch == epoch {
			return &st.epochs[i]
		}
	}
	return nil
}

// ack returns how many blocks it took off. At a start they may be gone already,
// with their file, and then the record alone says what was acknowledged.
func (st *state) ack(epoch, seq uint64, head [32]byte) int {
	st.epochs = slices.Clone(st.epochs)
	var left []entry
	for _, b := range st.blocks {
		if b.epoch != epoch || b.seq > seq {
			left = append(left, b)
		}
	}
	if e := st.find(epoch); e != nil && seq > e.acked && seq <= e.sealed {
		if seq == e.sealed {
			head = e.head
		}
		e.acked, e.ackedHead = seq, head
	}
	n := len(st.blocks) - len(left)
	st.blocks = left
	st.forget()
	return n
}

// hashOf is the hash of a block that waits; zeros if it does not.
func (st *state) hashOf(epoch, seq uint64) (hash [32]byte) {
	for _, b := range st.blocks {
		if b.epoch == epoch && b.seq == seq {
			return b.hash
		}
	}
	return hash
}

// forget drops epochs that are over and acknowledged.
func (st *state) forget() {
	st.epochs = slices.DeleteFunc(st.epochs, func(e epochState) bool { return e.epoch != st.epoch && e.acked >= e.sealed })
}

func encodeState(st *state) []byte {
	b := appendBytes([]byte{recState}, []byte(st.edge))
	b = binary.AppendUvarint(binary.AppendUvarint(b, st.epoch), st.seq)
	b = append(b, st.head[:]...)
	b = binary.AppendUvarint(binary.AppendUvarint(b, uint64(st.covered)), uint64(st.at))
	b = binary.AppendUvarint(append(b, flag(st.final)), uint64(len(st.epochs)))
	for _, e := range st.epochs {
		b = binary.AppendUvarint(binary.AppendUvarint(binary.AppendUvarint(b, e.epoch), e.sealed), e.acked)
		b = append(append(b, e.head[:]...), e.ackedHead[:]...)
	}
	return binary.AppendUvarint(b, st.rows)
}

func encodeEpoch(epoch uint64) []byte { return binary.AppendUvarint([]byte{recEpoch}, epoch) }

func encodeBlock(b *usage.Block) (rec []byte, payloadAt int) {
	rec = make([]byte, 0, 96+len(b.Payload))
	rec = binary.AppendUvarint(binary.AppendUvarint(append(rec, recBlock), b.Epoch), b.Seq)
	rec = append(append(rec, b.Prev[:]...), b.Hash[:]...)
	return append(rec, b.Payload...), len(rec)
}

func encodeCommit(covered pos, at int64, final bool, rows uint64) []byte {
	b := binary.AppendUvarint([]byte{recCommit}, uint64(covered))
	return binary.AppendUvarint(append(binary.AppendUvarint(b, uint64(at)), flag(final)), rows)
}

func encodeAck(epoch, seq uint64, head [32]byte) []byte {
	return append(binary.AppendUvarint(binary.AppendUvarint([]byte{recAck}, epoch), seq), head[:]...)
}

func appendBytes(b, v []byte) []byte { return append(binary.AppendUvarint(b, uint64(len(v))), v...) }

func flag(v bool) byte {
	if v {
		return 1
	}
	return 0
}

// fields takes a record apart and remembers that it could not.
type fields struct {
	b   []byte
	bad bool
}

func (f *fields) num() uint64 {
	v, n := binary.Uvarint(f.b)
	if n <= 0 {
		f.bad, f.b = true, nil
		return 0
	}
	f.b = f.b[n:]
	return v
}

func (f *fields) take(n uint64) []byte {
	if n > uint64(len(f.b)) {
		f.bad, f.b = true, nil
		return make([]byte, min(n, 64))
	}
	out := f.b[:n]
	f.b = f.b[n:]
	return out
}

// more is a number that version 1 did not write.
func (f *fields) more() uint64 {
	if f.bad || len(f.b) == 0 {
		return 0
	}
	return f.num()
}

func (f *fields) hash() [32]byte { return [32]byte(f.take(32)) }
func (f *fields) flag() bool     { return f.take(1)[0] != 0 }

// journal is the open log and the numbers of those before it.
type journal struct {
	cfg     *Config
	log     *durable.Log
	version uint32   // of log as Open found it
	files   []uint64 // existing, oldest first; the last one is log's
	broken  error    // of the last write: the file must be opened again
	final   bool     // broken for good: what was not synced may be lost, whatever a later sync says
}

func (c *Config) journalPath(n uint64) string {
	return filepath.Join(c.Dir, fmt.Sprintf("journal-%016x", n))
}

// loadJournal opens the journal, or begins one in an empty directory.
func loadJournal(cfg *Config) (*journal, state, error) {
	j := &journal{cfg: cfg}
	rows, err := j.list()
	if err != nil {
		return nil, state{}, err
	}
	r := replay{st: state{edge: cfg.Edge}}
	if err := j.replayAll(&r); err != nil {
		return j, state{}, err
	}
	if r.records == 0 && rows {
		return j, state{}, &durable.CorruptError{Path: cfg.Dir, What: "there are row segments, but no journal"}
	}
	if r.st.edge != cfg.Edge {
		return j, state{}, fmt.Errorf("this is the spool of edge %q, not of %q: its blocks can be shipped under that name only", r.st.edge, cfg.Edge)
	}
	if r.records > 0 && j.version < journalVersion { // records of this version go into files that say so
		err = j.create(j.files[len(j.files)-1]+1, &r.st)
	}
	if r.records == 0 { // the first start, or one that was killed in its first moment
		if j.log == nil {
			err = j.create(1, &r.st)
		} else {
			err = j.write(encodeState(&r.st))
		}
	}
	return j, r.st, err
}

func (j *journal) list() (rows bool, err error) {
	dir, err := j.cfg.FS.ReadDir(j.cfg.Dir)
	if err != nil {
		return false, err
	}
	for _, d := range dir {
		var n uint64
		if k, err := fmt.Sscanf(d.Name(), "journal-%016x", &n); err == nil && k == 1 && j.cfg.journalPath(n) == filepath.Join(j.cfg.Dir, d.Name()) {
			j.files = append(j.files, n)
		}
		if _, _, ok := parseSegmentName(d.Name()); ok {
			rows = true
		}
	}
	slices.Sort(j.files)
	return rows, nil
}

func (j *journal) replayAll(r *replay) error {
	for i, n := range j.files {
		if i > 0 && n != j.files[i-1]+1 {
			return &durable.CorruptError{Path: j.cfg.journalPath(j.files[i-1] + 1), What: "it is missing, and one before and one after are here"}
		}
		r.file, r.inFile = n, 0
		path := j.cfg.journalPath(n)
		log, info, err := durable.OpenLog(j.cfg.FS, path, j.cfg.journalHeader(), func(off int64, b []byte) error { return r.record(path, off, b) })
		if err != nil {
			return err
		}
		if info.Torn > 0 {
			j.cfg.Logger.Warn("usage journal had a torn tail", "file", filepath.Base(path), "bytes", info.Torn)
		}
		last := i == len(j.files)-1
		if len(r.pending) > 0 { // blocks without a commit never were: their rows are still in the row log
			j.cfg.Logger.Warn("usage journal ends in an unfinished seal", "file", filepath.Base(path), "blocks", len(r.pending))
			if err := log.Truncate(r.pendingAt); err != nil {
				log.Close()
				return err
			}
			r.pending = nil
		}
		if !last {
			log.Close()
			continue
		}
		if r.inFile == 0 && i > 0 { // killed between its creation and its state: as if never begun
			log.Close()
			if err := j.cfg.FS.Remove(path); err != nil {
				return err
			}
			j.files = j.files[:i]
			prev := j.cfg.journalPath(j.files[i-1])
			if log, info, err = durable.OpenLog(j.cfg.FS, prev, j.cfg.journalHeader(), nil); err != nil {
				return err
			}
		}
		j.log, j.version = log, info.Header.Version
	}
	return nil
}

// replay rebuilds the state.
type replay struct {
	st              state
	file            uint64
	records, inFile int
	pending         []entry // blocks before their commit
	pendingAt       int64
}

func (r *replay) record(path string, off int64, b []byte) error {
	bad := func(what string) error { return &durable.CorruptError{Path: path, Offset: off, What: what} }
	r.records++
	r.inFile++
	if len(b) == 0 {
		return bad("an empty record")
	}
	if (r.inFile == 1) != (b[0] == recState) {
		return bad("a journal begins with a state, and has only one")
	}
	f := fields{b: b[1:]}
	st := &r.st
	switch b[0] {
	case recState:
		n := state{edge: string(f.take(f.num())), epoch: f.num(), seq: f.num(), head: f.hash(), covered: pos(f.num()), at: int64(f.num()), final: f.flag()}
		for range min(f.num(), 1<<20) {
			if f.bad {
				break
			}
			n.epochs = append(n.epochs, epochState{epoch: f.num(), sealed: f.num(), acked: f.num(), head: f.hash(), ackedHead: f.hash()})
		}
		n.rows = f.more()
		// What an older file says must agree, or one of them is of another spool.
		if r.records > 1 && (n.epoch != st.epoch || n.seq != st.seq || n.head != st.head || n.covered != st.covered || n.edge != st.edge) {
			return bad("its state does not continue the file before it")
		}
		n.blocks = st.blocks
		*st = n
	case recEpoch:
		e := f.num()
		if e <= st.epoch {
			return bad(fmt.Sprintf("epoch %d begins after epoch %d", e, st.epoch))
		}
		st.begin(e)
	case recBlock:
		e := entry{epoch: f.num(), seq: f.num(), prev: f.hash(), hash: f.hash(), file: r.file}
		e.size = len(f.b)
		e.off = off + logRecordHead + int64(len(b)-e.size)
		seq, head := st.seq, st.head
		if n := len(r.pending); n > 0 {
			seq, head = r.pending[n-1].seq, r.pending[n-1].hash
		} else {
			r.pendingAt = off
		}
		if e.epoch != st.epoch || e.seq != seq+1 || e.prev != head {
			return bad("a block does not continue the chain")
		}
		f.b = nil
		r.pending = append(r.pending, e)
	case recCommit:
		covered, at, final, rows := pos(f.num()), int64(f.num()), f.flag(), f.more()
		if covered < st.covered {
			return bad("a commit covers less than the one before it")
		}
		st.seal(r.pending, covered, at, final, rows)
		r.pending = nil
	case recAck:
		epoch, seq := f.num(), f.num()
		var head [32]byte
		if len(f.b) > 0 {
			head = f.hash()
		} else {
			head = st.hashOf(epoch, seq)
		}
		st.ack(epoch, seq, head)
	default:
		return bad(fmt.Sprintf("record kind %d is unknown", b[0]))
	}
	if f.bad || len(f.b) > 0 {
		return bad("a record does not decode")
	}
	return nil
}

// logRecordHead is what durable.Log puts before a payload.
const logRecordHead = 8

// write appends records and syncs them. Under jmu, or in Open.
func (j *journal) write(recs ...[]byte) error {
	if j.broken != nil {
		return j.broken
	}
	for _, r := range recs {
		if err := j.log.Append(r); err != nil {
			return j.fail(err)
		}
	}
	if err := j.log.Sync(); err != nil {
		return j.fail(err)
	}
	return nil
}

func (j *journal) fail(err error) error {
	j.broken = fmt.Errorf("write usage journal: %w", err)
	j.final = !isFull(err)
	return j.broken
}

// create begins file n with the state, and makes it the current one.
func (j *journal) create(n uint64, st *state) error {
	path := j.cfg.journalPath(n)
	if err := j.cfg.FS.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("begin usage journal: %w", err)
	}
	log, _, err := durable.OpenLog(j.cfg.FS, path, j.cfg.journalHeader(), nil)
	if err == nil {
		if err = log.Append(encodeState(st)); err == nil {
			err = log.Sync()
		}
		if err != nil {
			log.Close()
			// Without it all is as before. Left behind, its state would be held
			// against a journal that has gone on, so then this one must not.
			if rerr := j.cfg.FS.Remove(path); rerr != nil {
				j.broken, j.final = fmt.Errorf("remove half-begun usage journal: %w", rerr), true
			}
		}
	}
	if err != nil {
		return fmt.Errorf("begin usage journal: %w", err)
	}
	j.close()
	j.log, j.files = log, append(j.files, n)
	return nil
}

// rotate begins a new file if the current one is long, and removes those whose
// blocks are all acknowledged.
func (j *journal) rotate(st *state) error {
	if j.broken != nil {
		return nil
	}
	if j.log.Size() > j.cfg.JournalBytes {
		if err := j.create(j.files[len(j.files)-1]+1, st); err != nil {
			return err
		}
	}
	oldest := uint64(math.MaxUint64)
	for _, b := range st.blocks {
		oldest = min(oldest, b.file)
	}
	for len(j.files) > 1 && j.files[0] < oldest {
		if err := j.cfg.FS.Remove(j.cfg.journalPath(j.files[0])); err != nil {
			return fmt.Errorf("remove usage journal: %w", err)
		}
		j.files = j.files[1:]
	}
	return nil
}

func (j *journal) close() {
	if j.log != nil {
		j.log.Close()
	}
}

// readBlock reads a sealed block back. Its hash is checked: what was damaged on
// the way must not be sent.
func (c *Config) readBlock(e entry, edge string) (usage.Block, error) {
	f, err := c.FS.Open(c.journalPath(e.file))
	if err != nil {
		return usage.Block{}, err
	}
	defer f.Close()
	b := usage.Block{Edge: edge, Epoch: e.epoch, Seq: e.seq, Prev: e.prev, Payload: make([]byte, e.size), Hash: e.hash}
	if _, err := f.ReadAt(b.Payload, e.off); err != nil {
		return usage.Block{}, fmt.Errorf("read usage block %d/%d: %w", e.epoch, e.seq, err)
	}
	if !b.Intact() {
		return usage.Block{}, &durable.CorruptError{Path: c.journalPath(e.file), Offset: e.off, What: "hash of a usage block differs"}
	}
	return b, nil
}

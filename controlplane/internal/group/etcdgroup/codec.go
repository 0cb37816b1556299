package etcdgroup

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/group/replica"
)

// format is of everything below the prefix. A program that meets a newer one
// stops rather than guess.
const format = 1

// head says which state the keys are. Each commit writes another one, and
// succeeds only if etcd still holds, byte for byte, the one it began with.
type head struct {
	group    string
	nonce    string         // drawn for each commit: no two heads are alike, whatever etcd was set back to
	serial   uint64         // commits so far
	rev      group.Revision // after the latest transaction
	at       time.Time      // the highest stamp
	requests uint64         // transactions remembered so far
	keys     uint64         // live keys
	bulk     bool           // the latest transaction is not yet spread over the keys: the log holds it

	// What was known of etcd's own past when this was written.
	cluster uint64 // its id
	term    uint64 // of its raft
	entry   uint64 // an entry of its raft log that was committed
}

// record is one transaction that left something behind.
type record struct {
	id     string
	failed int // index of the first compare that failed, -1 if it succeeded
	ops    []group.Op
}

// entry is the value of the log's key: what led from one head to the next.
type entry struct {
	head    []byte // as written beside it
	prev    string // nonce of the head before, "" for the first
	epoch   bool   // opens an epoch: positions given out before mean nothing any more
	records []record
}

type encoder []byte

func (e *encoder) num(v uint64)  { *e = binary.AppendUvarint(*e, v) }
func (e *encoder) byte(v byte)   { *e = append(*e, v) }
func (e *encoder) text(v string) { e.num(uint64(len(v))); *e = append(*e, v...) }
func (e *encoder) bytes(v []byte) {
	e.num(uint64(len(v)))
	*e = append(*e, v...)
}
func (e *encoder) flag(v bool) {
	if v {
		e.byte(1)
	} else {
		e.byte(0)
	}
}

var errMalformed = errors.New("it is malformed")

// newerFormat ends the node: it may not write over what it does not understand.
type newerFormat byte

func (f newerFormat) Error() string {
	return fmt.Sprintf("format %d is unknown, this program knows %d: run a newer bailiwick-control", byte(f), format)
}

// decoder remembers the first mistake, so that callers check once.
type decoder struct {
	b   []byte
	err error
}

func open(b []byte) *decoder {
	d := &decoder{b: b}
	if v := d.byte(); d.err == nil && v != format {
		d.b, d.err = nil, newerFormat(v)
	}
	return d
}

func (d *decoder) spoil() {
	if d.err == nil {
		d.err = errMalformed
	}
	d.b = nil
}

func (d *decoder) num() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.spoil()
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) byte() byte {
	if len(d.b) == 0 {
		d.spoil()
		return 0
	}
	v := d.b[0]
	d.b = d.b[1:]
	return v
}

func (d *decoder) bytes() []byte {
	n := d.num()
	if n > uint64(len(d.b)) {
		d.spoil()
		return nil
	}
	v := d.b[:n:n]
	d.b = d.b[n:]
	return v
}

func (d *decoder) text() string { return string(d.bytes()) }

// count reads how many items follow, each at least min bytes long.
func (d *decoder) count(min int) int {
	n := d.num()
	if n > uint64(len(d.b)/min) {
		d.spoil()
		return 0
	}
	return int(n)
}

func (d *decoder) end() error {
	if d.err == nil && len(d.b) > 0 {
		d.err = errMalformed
	}
	return d.err
}

func (h head) encode() []byte {
	e := encoder{format}
	e.text(h.group)
	e.text(h.nonce)
	e.num(h.serial)
	e.num(h.rev.Epoch)
	e.num(h.rev.Index)
	e.num(uint64(h.at.UnixNano()))
	e.num(h.requests)
	e.num(h.keys)
	e.flag(h.bulk)
	e.num(h.cluster)
	e.num(h.term)
	e.num(h.entry)
	return e
}

func decodeHead(b []byte) (head, error) {
	d := open(b)
	h := head{group: d.text(), nonce: d.text(), serial: d.num(), rev: group.Revision{Epoch: d.num(), Index: d.num()},
		at: time.Unix(0, int64(d.num())).UTC(), requests: d.num(), keys: d.num(), bulk: d.byte() == 1,
		cluster: d.num(), term: d.num(), entry: d.num()}
	if err := d.end(); err != nil {
		return head{}, fmt.Errorf("read the group's head: %w", err)
	}
	return h, nil
}

const (
	opPut          = 0
	opDelete       = 1
	opDeletePrefix = 2
)

func (n entry) encode() []byte {
	size := 64 + len(n.head)
	for _, r := range n.records {
		size += len(r.id) + 16
		for _, op := range r.ops {
			size += len(op.Key) + len(op.Value) + 8
		}
	}
	e := append(make(encoder, 0, size), format)
	e.bytes(n.head)
	e.text(n.prev)
	e.flag(n.epoch)
	e.num(uint64(len(n.records)))
	for _, r := range n.records {
		e.text(r.id)
		e.num(uint64(r.failed + 1))
		e.num(uint64(len(r.ops)))
		for _, op := range r.ops {
			switch {
			case op.Delete:
				e.byte(opDelete)
				e.text(op.Key)
			case op.DeletePrefix:
				e.byte(opDeletePrefix)
				e.text(op.Key)
			default:
				e.byte(opPut)
				e.text(op.Key)
				e.bytes(op.Value)
			}
		}
	}
	return e
}

// decodeEntry aliases b.
func decodeEntry(b []byte) (n entry, err error) {
	d := open(b)
	n.head, n.prev, n.epoch = d.bytes(), d.text(), d.byte() == 1
	n.records = make([]record, d.count(3))
	for i := range n.records {
		r := record{id: d.text(), failed: int(d.num()) - 1}
		r.ops = make([]group.Op, d.count(2))
		for j := range r.ops {
			what := d.byte()
			r.ops[j] = group.Op{Key: d.text(), Delete: what == opDelete, DeletePrefix: what == opDeletePrefix}
			switch {
			case what == opPut:
				r.ops[j].Value = d.bytes()
			case what > opDeletePrefix:
				d.spoil()
			}
		}
		n.records[i] = r
	}
	if err := d.end(); err != nil {
		return entry{}, fmt.Errorf("read the group's log: %w", err)
	}
	return n, nil
}

func encodeKV(kv group.KV) []byte {
	e := append(make(encoder, 0, len(kv.Value)+32), format)
	e.num(kv.CreateIndex)
	e.num(kv.ModIndex)
	e.num(kv.Version)
	e.bytes(kv.Value)
	return e
}

// decodeKV aliases b.
func decodeKV(key string, b []byte) (group.KV, error) {
	d := open(b)
	kv := group.KV{Key: key, CreateIndex: d.num(), ModIndex: d.num(), Version: d.num(), Value: d.bytes()}
	if err := d.end(); err != nil {
		return group.KV{}, fmt.Errorf("read a key: %w", err)
	}
	return kv, nil
}

func encodeResults(all []replica.Remembered) []byte {
	e := encoder{format}
	e.num(uint64(len(all)))
	for _, r := range all {
		e.text(r.ID)
		e.flag(r.Result.Succeeded)
		e.num(r.Result.Revision.Epoch)
		e.num(r.Result.Revision.Index)
		e.num(uint64(r.Result.Time.UnixNano()))
		e.num(uint64(r.Result.Failed + 1))
	}
	return e
}

func decodeResults(b []byte) ([]replica.Remembered, error) {
	d := open(b)
	all := make([]replica.Remembered, d.count(6))
	for i := range all {
		all[i] = replica.Remembered{ID: d.text(), Result: group.Result{Succeeded: d.byte() == 1,
			Revision: group.Revision{Epoch: d.num(), Index: d.num()}, Time: time.Unix(0, int64(d.num())).UTC(), Failed: int(d.num()) - 1}}
	}
	if err := d.end(); err != nil {
		return nil, fmt.Errorf("read remembered requests: %w", err)
	}
	return all, nil
}

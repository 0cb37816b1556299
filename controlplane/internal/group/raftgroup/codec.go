package raftgroup

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"bailiwick/controlplane/internal/group"
)

// The store's commands and results are hand-written: version, kind, then
// uvarints and length-prefixed bytes in a fixed order, so that the same
// transaction is the same bytes in every build.
const (
	commandVersion = 1 // all members know it
	batchVersion   = 2 // since 2026-11-26: kindBatch

	kindTxn    = 1
	kindEpoch  = 2
	kindReopen = 3 // a new epoch and its first changes, as one; only Recover and Restore write it
	kindBatch  = 4 // commands of version 1 in the order in which they are applied; only a leader makes it

	opPut          = 0
	opDelete       = 1
	opDeletePrefix = 2

	flagSucceeded = 1
	flagReplayed  = 2
)

type encoder []byte

func (e *encoder) num(v uint64)   { *e = binary.AppendUvarint(*e, v) }
func (e *encoder) byte(v byte)    { *e = append(*e, v) }
func (e *encoder) bytes(v []byte) { e.num(uint64(len(v))); *e = append(*e, v...) }
func (e *encoder) text(v string)  { e.num(uint64(len(v))); *e = append(*e, v...) }

var errMalformed = errors.New("it is malformed")

// decoder remembers the first mistake, so that callers check once.
type decoder struct {
	b   []byte
	err error
}

func (d *decoder) num() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.b, d.err = nil, errMalformed
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) byte() byte {
	if len(d.b) == 0 {
		d.err = errMalformed
		return 0
	}
	v := d.b[0]
	d.b = d.b[1:]
	return v
}

func (d *decoder) bytes() []byte {
	n := d.num()
	if n > uint64(len(d.b)) {
		d.b, d.err = nil, errMalformed
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
		d.b, d.err = nil, errMalformed
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

func encodeTxn(t group.Txn) []byte { return encodeChange(kindTxn, t) }

func encodeReopen(t group.Txn) []byte { return encodeChange(kindReopen, t) }

func encodeChange(kind byte, t group.Txn) []byte {
	size := 64 + len(t.RequestID)
	for _, c := range t.Compares {
		size += len(c.Key) + 16
	}
	for _, op := range t.Ops {
		size += len(op.Key) + len(op.Value) + 16
	}
	e := make(encoder, 0, size)
	e.byte(commandVersion)
	e.byte(kind)
	e.text(t.RequestID)
	e.num(uint64(len(t.Compares)))
	for _, c := range t.Compares {
		if c.Exists {
			e.byte(1)
			e.text(c.Key)
			continue
		}
		e.byte(0)
		e.text(c.Key)
		e.num(c.ModIndex)
	}
	e.num(uint64(len(t.Ops)))
	for _, op := range t.Ops {
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
	return e
}

func encodeEpoch(requestID string) []byte {
	e := encoder{commandVersion, kindEpoch}
	e.text(requestID)
	return e
}

// encodeParts is what a batch and its results have in common: a list of byte strings.
func encodeParts(head []byte, parts [][]byte) []byte {
	size := len(head) + 8
	for _, p := range parts {
		size += len(p) + 4
	}
	e := append(make(encoder, 0, size), head...)
	e.num(uint64(len(parts)))
	for _, p := range parts {
		e.bytes(p)
	}
	return e
}

// decodeParts aliases b.
func decodeParts(head, b []byte) (parts [][]byte, err error) {
	if !bytes.HasPrefix(b, head) {
		return nil, errMalformed
	}
	d := &decoder{b: b[len(head):]}
	parts = make([][]byte, d.count(1))
	for i := range parts {
		parts[i] = d.bytes()
	}
	return parts, d.end()
}

var batchHead = []byte{batchVersion, kindBatch}

func isBatch(cmd []byte) bool { return bytes.HasPrefix(cmd, batchHead) }

// decodeCommand aliases b: whoever keeps values copies them.
func decodeCommand(b []byte) (kind byte, t group.Txn, err error) {
	d := &decoder{b: b}
	if v := d.byte(); d.err == nil && v != commandVersion {
		return 0, t, fmt.Errorf("store command version %d is unknown, this program knows %d: run a newer bailiwick-control", v, commandVersion)
	}
	kind = d.byte()
	t.RequestID = d.text()
	switch {
	case d.err != nil:
	case kind == kindEpoch:
	case kind == kindTxn, kind == kindReopen:
		t.Compares = make([]group.Compare, d.count(3))
		for i := range t.Compares {
			exists := d.byte() == 1
			t.Compares[i] = group.Compare{Key: d.text(), Exists: exists}
			if !exists {
				t.Compares[i].ModIndex = d.num()
			}
		}
		t.Ops = make([]group.Op, d.count(2))
		for i := range t.Ops {
			what := d.byte()
			t.Ops[i] = group.Op{Key: d.text(), Delete: what == opDelete, DeletePrefix: what == opDeletePrefix}
			switch {
			case what == opPut:
				t.Ops[i].Value = d.bytes()
			case what > opDeletePrefix:
				d.err = errMalformed
			}
		}
	default:
		return 0, t, fmt.Errorf("store command kind %d is unknown: run a newer bailiwick-control", kind)
	}
	if err := d.end(); err != nil {
		return 0, t, fmt.Errorf("read store command: %w", err)
	}
	return kind, t, nil
}

func encodeResult(r group.Result) []byte {
	var flags byte
	if r.Succeeded {
		flags |= flagSucceeded
	}
	if r.Replayed {
		flags |= flagReplayed
	}
	e := encoder{commandVersion, flags}
	e.num(r.Revision.Epoch)
	e.num(r.Revision.Index)
	e.num(uint64(r.Time.UnixNano()))
	e.num(uint64(r.Failed + 1))
	return e
}

func (d *decoder) result() group.Result {
	flags := d.byte()
	return group.Result{
		Succeeded: flags&flagSucceeded != 0,
		Replayed:  flags&flagReplayed != 0,
		Revision:  group.Revision{Epoch: d.num(), Index: d.num()},
		Time:      time.Unix(0, int64(d.num())).UTC(),
		Failed:    int(d.num()) - 1,
	}
}

func decodeResult(b []byte) (group.Result, error) {
	d := &decoder{b: b}
	if v := d.byte(); d.err == nil && v != commandVersion {
		return group.Result{}, fmt.Errorf("store result version %d is unknown", v)
	}
	r := d.result()
	if err := d.end(); err != nil {
		return group.Result{}, fmt.Errorf("read store result: %w", err)
	}
	return r, nil
}

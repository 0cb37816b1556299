package ledger

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"

	pebbledb "github.com/cockroachdb/pebble/v2"

	"bailiwick/shared/fault"
	"bailiwick/shared/usage"
)

// The outbox keeps every applied block, in the order of the log, until each
// registered sink has it. It is part of the state: whoever leads next goes on
// from what was acknowledged. It is bounded by a budget that travels in the log,
// so all nodes drop the same block at the same entry, and a sink that had not
// taken it is told so in its record, for good.

// SinkState is how far a sink has come.
type SinkState struct {
	Name     string
	Position uint64 // every block up to it was acknowledged, or is lost to the sink
	Lost     uint64 // blocks that the budget gave up before the sink took them
	LostFrom uint64 // position of the first of them
	LostTo   uint64 // of the last
}

// OutBlock is a block in the outbox. Positions count from 1 without a hole.
type OutBlock struct {
	Position uint64
	Block
}

const (
	maxSinks = 16
	// DefaultOutbox is the budget of the outbox, in bytes.
	DefaultOutbox = 1 << 30
)

// outbox mirrors what is on disk; it belongs to the FSM goroutine.
type outbox struct {
	next   uint64 // position of the next block
	budget uint64
	sinks  map[string]*SinkState
	kept   []kept // what the outbox holds, oldest first
	bytes  uint64
	dirty  bool // next, budget or a sink has changed in this entry
}

type kept struct {
	position uint64
	size     uint32
}

func outboxKey(k kept) []byte {
	b := binary.BigEndian.AppendUint64([]byte(prefixOutbox), k.position)
	return binary.BigEndian.AppendUint32(b, k.size)
}

func (s *SinkState) encode() []byte {
	b := binary.AppendUvarint(binary.AppendUvarint(nil, s.Position), s.Lost)
	return binary.AppendUvarint(binary.AppendUvarint(b, s.LostFrom), s.LostTo)
}

func decodeSink(name string, b []byte) (*SinkState, error) {
	r := reader{b: b}
	s := &SinkState{Name: name, Position: r.uvarint(), Lost: r.uvarint(), LostFrom: r.uvarint(), LostTo: r.uvarint()}
	if r.err != nil {
		return nil, fmt.Errorf("read the state of a sink: %w", r.err)
	}
	return s, nil
}

func (m *Machine) loadOutbox(db *pebbledb.DB) error {
	o := &outbox{next: 1, sinks: make(map[string]*SinkState)}
	m.outbox = o
	v, closer, err := db.Get(keyOutbox)
	if errors.Is(err, pebbledb.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	r := reader{b: v}
	o.next, o.budget = r.uvarint(), r.uvarint()
	if err := errors.Join(r.err, closer.Close()); err != nil {
		return fmt.Errorf("read the outbox: %w", err)
	}
	err = scan(db, []byte(prefixSink), upper([]byte(prefixSink)), func(k, v []byte) error {
		name := string(k[len(prefixSink):])
		s, err := decodeSink(name, v)
		o.sinks[name] = s
		return err
	})
	if err != nil {
		return err
	}
	return scan(db, []byte(prefixOutbox), upper([]byte(prefixOutbox)), func(k, _ []byte) error { // sizes are in the keys
		if len(k) != len(prefixOutbox)+12 {
			return errors.New("a key of the outbox is malformed")
		}
		k = k[len(prefixOutbox):]
		o.kept = append(o.kept, kept{binary.BigEndian.Uint64(k), binary.BigEndian.Uint32(k[8:])})
		o.bytes += uint64(binary.BigEndian.Uint32(k[8:]))
		return nil
	})
}

// emit puts an applied block into the outbox, if there is a sink to take it.
func (t *tx) emit(k *Block) error {
	o := t.m.outbox
	if len(o.sinks) == 0 || t.version < 2 {
		return nil
	}
	v := appendText(appendText(nil, k.Edge), k.Region)
	v = binary.AppendUvarint(binary.AppendUvarint(v, k.Epoch), k.Seq)
	v = append(append(append(v, k.Prev[:]...), k.Hash[:]...), k.Payload...)
	e := kept{o.next, uint32(len(v))}
	o.next, o.dirty = o.next+1, true
	o.kept, o.bytes = append(o.kept, e), o.bytes+uint64(e.size)
	if err := t.set(outboxKey(e), v); err != nil {
		return err
	}
	for o.bytes > o.budget {
		p := o.kept[0].position
		for _, s := range o.sinks {
			if s.Position < p {
				if s.Lost++; s.Lost == 1 {
					s.LostFrom = p
					t.m.logger.Error("a sink falls behind: the ledger's outbox is full and gives up blocks that it has not taken", "sink", s.Name, "position", p)
				}
				s.Position, s.LostTo = p, p
			}
		}
		if err := t.shift(); err != nil {
			return err
		}
	}
	return nil
}

// shift drops the oldest block.
func (t *tx) shift() error {
	o := t.m.outbox
	k := o.kept[0]
	o.kept, o.bytes = o.kept[1:], o.bytes-uint64(k.size)
	return t.b.Delete(outboxKey(k), nil)
}

// trim drops what all sinks have; without a sink, everything.
func (t *tx) trim() error {
	o := t.m.outbox
	least := uint64(math.MaxUint64)
	for _, s := range o.sinks {
		least = min(least, s.Position)
	}
	for len(o.kept) > 0 && o.kept[0].position <= least {
		if err := t.shift(); err != nil {
			return err
		}
	}
	return nil
}

// putOutbox writes what changed of it besides blocks; commit calls it.
func (t *tx) putOutbox() error {
	o := t.m.outbox
	if !o.dirty {
		return nil
	}
	o.dirty = false
	for name, s := range o.sinks {
		if err := t.set(append([]byte(prefixSink), name...), s.encode()); err != nil {
			return err
		}
	}
	return t.set(keyOutbox, binary.AppendUvarint(binary.AppendUvarint(nil, o.next), o.budget))
}

// tell shows what metrics read.
func (o *outbox) tell(m *Machine) {
	m.kept.Store(int64(o.bytes))
	var lost uint64
	for _, s := range o.sinks {
		lost += s.Lost
	}
	m.lost.Store(int64(lost))
}

// sinksOrder registers sinks and forgets others. A new one begins with the next block.
type sinksOrder struct {
	budget      uint64
	add, forget []string
}

func encodeSinks(o *sinksOrder) []byte {
	b := binary.AppendUvarint(begin(kindSinks), o.budget)
	for _, names := range [][]string{o.add, o.forget} {
		b = binary.AppendUvarint(b, uint64(len(names)))
		for _, name := range names {
			b = appendText(b, name)
		}
	}
	return b
}

func decodeSinks(r *reader) order {
	o := &sinksOrder{budget: r.uvarint()}
	for _, names := range []*[]string{&o.add, &o.forget} {
		for range r.count(2) {
			*names = append(*names, r.name())
		}
	}
	return o
}

func (s *sinksOrder) apply(t *tx) ([]byte, error) {
	o := t.m.outbox
	o.budget, o.dirty = s.budget, true
	for _, name := range s.forget {
		if o.sinks[name] != nil {
			delete(o.sinks, name)
			if err := t.b.Delete(append([]byte(prefixSink), name...), nil); err != nil {
				return nil, err
			}
		}
	}
	for _, name := range s.add {
		if o.sinks[name] == nil && len(o.sinks) < maxSinks {
			o.sinks[name] = &SinkState{Name: name, Position: o.next - 1}
		}
	}
	return []byte{resultVersion}, t.trim()
}

// sunkOrder is a sink's acknowledgement.
type sunkOrder struct {
	name     string
	position uint64
}

func encodeSunk(name string, position uint64) []byte {
	return binary.AppendUvarint(appendText(begin(kindSunk), name), position)
}

func decodeSunk(r *reader) order { return sunkOrder{r.name(), r.uvarint()} }

func (s sunkOrder) apply(t *tx) ([]byte, error) {
	o := t.m.outbox
	if sink := o.sinks[s.name]; sink != nil && s.position > sink.Position && s.position < o.next {
		sink.Position, o.dirty = s.position, true
	}
	return []byte{resultVersion}, t.trim()
}

// RegisterSinks makes the outbox keep blocks for these sinks, within a budget in bytes, and no longer for the forgotten.
func (l *Ledger) RegisterSinks(ctx context.Context, budget int64, add, forget []string) error {
	for _, name := range slices.Concat(add, forget) {
		if err := checkName("sink", name); err != nil {
			return err
		}
	}
	if len(add) > maxSinks || budget <= 0 {
		return fault.New(fault.Invalid, "SINKS_INVALID", "at most %d sinks and a budget above 0 are allowed", maxSinks)
	}
	_, err := l.propose(ctx, encodeSinks(&sinksOrder{uint64(budget), add, forget}))
	return err
}

// Sunk acknowledges every block up to position for a sink.
func (l *Ledger) Sunk(ctx context.Context, name string, position uint64) error {
	_, err := l.propose(ctx, encodeSunk(name, position))
	return err
}

// Outbox reads the blocks after a position, in their order, up to about so many bytes and at least one.
func (v *View) Outbox(ctx context.Context, after uint64, bytes int) ([]OutBlock, error) {
	var out []OutBlock
	from := binary.BigEndian.AppendUint64([]byte(prefixOutbox), after+1)
	err := v.scan(ctx, from, upper([]byte(prefixOutbox)), func(k, val []byte) error {
		if bytes <= 0 {
			return errStopped
		}
		bytes -= len(val)
		r := reader{b: val}
		b := OutBlock{Position: binary.BigEndian.Uint64(k[len(prefixOutbox):])}
		b.Edge, b.Region, b.Epoch, b.Seq = r.name(), r.name(), r.uvarint(), r.uvarint()
		b.Prev, b.Hash = [32]byte(r.take(32)), [32]byte(r.take(32))
		if r.err != nil || len(r.b) > usage.MaxPayload {
			return errors.Join(r.err, errors.New("a block in the outbox is malformed"))
		}
		b.Payload = slices.Clone(r.b)
		out = append(out, b)
		return nil
	})
	if errors.Is(err, errStopped) {
		err = nil
	}
	return out, err
}

// Sinks lists the registered sinks by name.
func (v *View) Sinks(ctx context.Context) ([]SinkState, error) {
	var out []SinkState
	err := v.scan(ctx, []byte(prefixSink), upper([]byte(prefixSink)), func(k, val []byte) error {
		s, err := decodeSink(string(k[len(prefixSink):]), val)
		if err == nil {
			out = append(out, *s)
		}
		return err
	})
	return out, err
}

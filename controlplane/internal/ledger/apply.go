package ledger

import (
	"encoding/binary"
	"errors"
	"slices"

	pebbledb "github.com/cockroachdb/pebble/v2"

	"bailiwick/shared/usage"
)

// tx is what one entry changes. All of it becomes part of the state at once,
// with the entry's index, when the order has been applied.
type tx struct {
	m       *Machine
	db      *pebbledb.DB // the state before this entry
	b       *pebbledb.Batch
	index   uint64
	version byte // of the command
	changed map[epochKey]*epoch
	then    func() // called once the entry is part of the state; it changes none
}

// get reads a record as it was before this entry; nil: there is none. The result is the caller's.
func (t *tx) get(key []byte) ([]byte, error) {
	v, closer, err := t.db.Get(key)
	if errors.Is(err, pebbledb.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer closer.Close()
	return slices.Clone(v), nil
}

func (t *tx) set(key, value []byte) error { return t.b.Set(key, value, nil) }

func (t *tx) epoch(k epochKey) *epoch {
	if e := t.m.epochs[k]; e != nil {
		return e
	}
	return new(epoch)
}

func (t *tx) keep(k epochKey, e *epoch) {
	t.m.epochs[k], t.changed[k] = e, e
	t.m.begin(k, e)
}

// commit writes what was gathered. The order of the writes follows maps and
// differs between nodes; the state does not, since their keys are distinct.
func (t *tx) commit() error {
	m := t.m
	for k, e := range t.changed {
		m.key = appendEpochKey(m.key[:0], k)
		if err := t.set(m.key, e.encode()); err != nil {
			return err
		}
	}
	for k, s := range m.totals {
		if err := t.b.Merge([]byte(k), appendSums(m.key[:0], s), nil); err != nil {
			return err
		}
	}
	clear(m.totals)
	if err := m.latency.write(t); err != nil {
		return err
	}
	if err := t.putOutbox(); err != nil {
		return err
	}
	if err := t.set(keyApplied, binary.BigEndian.AppendUint64(nil, t.index)); err != nil {
		return err
	}
	return t.db.Apply(t.b, pebbledb.NoSync)
}

// appendOrder is blocks, each counted or refused by itself.
type appendOrder []Block

func (o appendOrder) apply(t *tx) (out []byte, err error) {
	out = encodeAcks(make([]byte, 0, 16+48*len(o)), t.index, len(o))
	for i := range o {
		k := &o[i]
		key := epochKey{k.Edge, k.Epoch}
		e := t.epoch(key)
		refusal, next := e.judge(k, t.m.latest[k.Edge])
		if refusal == refFork {
			t.quarantine(key, e, k.Seq, k.Hash)
		}
		if next {
			if refusal, err = t.fold(k); err != nil {
				return nil, err
			}
			if refusal == 0 {
				if err := t.emit(k); err != nil {
					return nil, err
				}
				e.advance(k, t.version)
				t.keep(key, e)
			}
		}
		out = appendAck(out, refusal, e)
	}
	return out, nil
}

// fold writes a block's cells, all or none. The order of the writes follows the
// map and differs between nodes; the state does not, since sums commute.
func (t *tx) fold(k *Block) (refusal byte, err error) {
	p, err := usage.Decode(k.Payload)
	if err != nil {
		return refMalformed, nil
	}
	cells := p.Cells
	for c, s := range cells {
		if !acceptable(&c, &s) {
			return refMalformed, nil
		}
	}
	m := t.m
	var value [4 * binary.MaxVarintLen64]byte
	for c, s := range cells {
		prefix, totals := prefixCell, prefixTotal
		if c.Start < m.closed && t.version >= 2 {
			prefix, totals = prefixLateCell, prefixLateTotal
		}
		m.key = appendCellKey(m.key[:0], prefix, &c)
		if err := t.b.Merge(m.key, appendSums(value[:0], s), nil); err != nil {
			return 0, err
		}
		// Many customers share one total: summed here first, written once an entry.
		m.key = appendTotalKey(m.key[:0], totals, &c)
		m.totals[string(m.key)] = m.totals[string(m.key)].Add(s)
		if t.version >= 2 {
			m.spending.add(&c, s.Units)
		}
	}
	if t.version >= 2 {
		m.latency.add(m, p.Latency)
	}
	return 0, t.spend(epochKey{k.Edge, k.Epoch})
}

// sealedOrder is what edges said of themselves.
type sealedOrder []seal

func (o sealedOrder) apply(t *tx) ([]byte, error) {
	for _, s := range o {
		key := epochKey{s.Edge, s.Epoch}
		e := t.epoch(key)
		e.hear(s)
		t.keep(key, e)
	}
	return []byte{resultVersion}, nil
}

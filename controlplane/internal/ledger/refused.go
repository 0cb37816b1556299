package ledger

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	pebbledb "github.com/cockroachdb/pebble/v2"
)

// Refused counts the usage of one edge that was refused for one reason. It is
// a fact of the ledger, so that it outlives the node that refused.
type Refused struct {
	Edge, Reason string
	Count        int64
	Epoch, Seq   uint64 // of the newest, as a sample
	Detail       string
	First, Last  time.Time
}

// maxRefused bounds the records, here and in the state: what more edges than
// that bring is counted under otherEdges.
const (
	maxRefused = 4096
	otherEdges = "*"
	maxDetail  = 512 // bytes
)

type refusedKey struct{ edge, reason string }

func (r *Refused) key() refusedKey { return refusedKey{r.Edge, r.Reason} }

// join adds what was refused later or elsewhere.
func (r *Refused) join(o *Refused) {
	if r.Count == 0 {
		edge := r.Edge
		*r = *o
		if edge != "" {
			r.Edge = edge
		}
		return
	}
	r.Count = plus(r.Count, o.Count)
	if o.First.Before(r.First) {
		r.First = o.First
	}
	if !o.Last.Before(r.Last) {
		r.Last, r.Epoch, r.Seq, r.Detail = o.Last, o.Epoch, o.Seq, o.Detail
	}
}

func (r *Refused) encode(b []byte) []byte {
	b = appendText(appendText(b, r.Edge), r.Reason)
	b = binary.AppendUvarint(b, uint64(r.Count))
	b = binary.AppendUvarint(binary.AppendUvarint(b, r.Epoch), r.Seq)
	b = appendText(b, r.Detail)
	b = binary.AppendUvarint(b, uint64(max(r.First.UnixMilli(), 0)))
	return binary.AppendUvarint(b, uint64(max(r.Last.UnixMilli(), 0)))
}

func (r *reader) refused() Refused {
	return Refused{Edge: r.name(), Reason: r.name(), Count: r.int64(), Epoch: r.uvarint(), Seq: r.uvarint(), Detail: string(r.bytes(maxDetail)),
		First: time.UnixMilli(r.int64()).UTC(), Last: time.UnixMilli(r.int64()).UTC()}
}

func refusedRecord(k refusedKey) []byte {
	return append(append(append([]byte(prefixRefused), k.edge...), 0), k.reason...)
}

// refusedOrder is what the nodes refused since they last said so.
type refusedOrder []Refused

func encodeRefused(list []Refused) []byte {
	b := binary.AppendUvarint(begin(kindRefused), uint64(len(list)))
	for i := range list {
		b = list[i].encode(b)
	}
	return b
}

func decodeRefused(r *reader) order {
	o := make(refusedOrder, r.count(9))
	for i := range o {
		o[i] = r.refused()
	}
	return o
}

func (o refusedOrder) apply(t *tx) ([]byte, error) {
	changed := make(map[refusedKey]*Refused)
	for i := range o {
		k := o[i].key()
		if !t.m.refused[k] && len(t.m.refused) >= maxRefused {
			k.edge = otherEdges
		}
		r := changed[k]
		if r == nil {
			r = &Refused{Edge: k.edge}
			v, err := t.get(refusedRecord(k))
			if err != nil {
				return nil, err
			}
			if v != nil {
				rd := reader{b: v}
				if *r = rd.refused(); rd.err != nil {
					return nil, fmt.Errorf("read what was refused: %w", rd.err)
				}
			}
			changed[k] = r
			t.m.refused[k] = true
		}
		r.join(&o[i])
	}
	for k, r := range changed {
		if err := t.set(refusedRecord(k), r.encode(nil)); err != nil {
			return nil, err
		}
	}
	return []byte{resultVersion}, nil
}

// NoteRefused remembers that usage of an edge was refused; Run commits the
// counts of this node with the sealed-through times. A crash loses those of an
// interval.
func (l *Ledger) NoteRefused(edge string, number, seq uint64, reason, detail string, at time.Time) {
	if checkName("edge", edge) != nil || checkName("reason", reason) != nil {
		return
	}
	if len(detail) > maxDetail {
		detail = strings.ToValidUTF8(detail[:maxDetail], "")
	}
	r := Refused{Edge: edge, Reason: reason, Count: 1, Epoch: number, Seq: seq, Detail: detail, First: at, Last: at}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.noteRefused(&r)
}

func (l *Ledger) noteRefused(r *Refused) {
	k := r.key()
	if _, known := l.refused[k]; !known && len(l.refused) >= maxRefused {
		k.edge = otherEdges
	}
	was := l.refused[k]
	was.Edge = k.edge
	was.join(r)
	l.refused[k] = was
}

func (l *Ledger) flushRefused(ctx context.Context) error {
	l.mu.Lock()
	said := l.refused
	l.refused = make(map[refusedKey]Refused)
	l.mu.Unlock()
	if len(said) == 0 {
		return nil
	}
	list := slices.Collect(maps.Values(said))
	_, err := l.propose(ctx, encodeRefused(list))
	if err != nil { // its outcome may be unknown: counted twice is better than not at all
		l.mu.Lock()
		defer l.mu.Unlock()
		for i := range list {
			l.noteRefused(&list[i])
		}
	}
	return err
}

// Refusals lists what was refused, by edge and reason.
func (v *View) Refusals(ctx context.Context) ([]Refused, error) {
	var out []Refused
	err := v.scan(ctx, []byte(prefixRefused), upper([]byte(prefixRefused)), func(_, val []byte) error {
		r := reader{b: val}
		one := r.refused()
		out = append(out, one)
		return r.err
	})
	return out, err
}

// loadRefused reads which records there are: their number is bounded by it.
func (m *Machine) loadRefused(db *pebbledb.DB) error {
	m.refused = make(map[refusedKey]bool)
	return scan(db, []byte(prefixRefused), upper([]byte(prefixRefused)), func(k, _ []byte) error {
		edge, reason, ok := bytes.Cut(k[len(prefixRefused):], []byte{0})
		if !ok {
			return errors.New("the key of a refusal is malformed")
		}
		m.refused[refusedKey{string(edge), string(reason)}] = true
		return nil
	})
}

package ledger

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	pebbledb "github.com/cockroachdb/pebble/v2"

	"bailiwick/shared/fault"
	"bailiwick/shared/usage"
)

// Latencies rest beside the cells, without a customer:
//
//	l/m<start be64><api, route, served region>   sketch of one minute
//	l/h<start be64><api, route, served region>   sketch of one hour, of minutes that are older than LatencyMinutes
//
// A sketch is merged as sums are, inside pebble: adding commutes, so nodes agree bit for bit.
const prefixLatency = "l/"

const (
	widthMinute = 'm'
	widthHour   = 'h'
)

// How long latencies are kept, and in which pieces.
const (
	LatencyMinutes = 35 * 24 * time.Hour
	LatencyHours   = 400 * 24 * time.Hour
)

// LatencyRow sums the latencies of a route as one region served it. No customer has part in its name.
type LatencyRow struct {
	API, Route, ServedRegion string
	Sketch                   *usage.Sketch
}

func appendLatencyKey(b []byte, width byte, k *usage.LatencyKey) []byte {
	b = appendStart(append(append(b, prefixLatency...), width), k.Minute)
	return appendText(appendText(appendText(b, k.API), k.Route), k.ServedRegion)
}

func decodeLatencyKey(b []byte) (width byte, k usage.LatencyKey, err error) {
	const head = len(prefixLatency) + 1
	if len(b) < head+8 {
		return 0, k, errors.New("a latency's key is malformed")
	}
	k.Minute = int64(binary.BigEndian.Uint64(b[head:]) ^ 1<<63)
	r := reader{b: b[head+8:]}
	k.API, k.Route, k.ServedRegion = r.text(), r.text(), r.text()
	if r.err == nil && len(r.b) != 0 {
		r.fail("something follows its end")
	}
	if r.err != nil {
		return 0, k, fmt.Errorf("decode a latency's key: %w", r.err)
	}
	return b[head-1], k, nil
}

// latencies gathers what one entry adds: the blocks of a second share their minutes.
type latencies map[string]*usage.Sketch

func (l latencies) add(m *Machine, from map[usage.LatencyKey]*usage.Sketch) {
	for k, s := range from {
		m.key = appendLatencyKey(m.key[:0], widthMinute, &k)
		if sum := l[string(m.key)]; sum != nil {
			sum.Merge(s)
		} else {
			l[string(m.key)] = s // decoded for us alone
		}
	}
}

// write empties l into t; the order of the map does not matter, since keys are distinct.
func (l latencies) write(t *tx) error {
	for k, s := range l {
		if err := t.b.Merge([]byte(k), s.AppendBinary(nil), nil); err != nil {
			return err
		}
	}
	clear(l)
	return nil
}

// mergingSketch is merging's like for keys of latencies.
type mergingSketch struct{ sum usage.Sketch }

func (m *mergingSketch) MergeNewer(value []byte) error {
	s, err := usage.DecodeSketch(value)
	if err == nil {
		m.sum.Merge(s)
	}
	return err
}
func (m *mergingSketch) MergeOlder(value []byte) error { return m.MergeNewer(value) }
func (m *mergingSketch) Finish(bool) ([]byte, io.Closer, error) {
	return m.sum.AppendBinary(nil), nil, nil
}

func isLatency(key []byte) bool { return bytes.HasPrefix(key, []byte(prefixLatency)) }

// thinOrder makes old latencies coarse. What it does follows from the state alone: the oldest first, Most minutes at
// once. A minute that comes late, after its neighbours were folded, is folded the next time.
type thinOrder struct {
	Before int64 // unix s, a multiple of an hour: minutes that start before become part of their hours
	Drop   int64 // unix s: hours that start before go
	Most   uint64
}

func encodeThin(o thinOrder) []byte {
	b := binary.AppendVarint(begin(kindThinLatency), o.Before)
	return binary.AppendUvarint(binary.AppendVarint(b, o.Drop), o.Most)
}

func decodeThin(r *reader) order {
	o := thinOrder{Before: r.varint(), Drop: r.varint(), Most: r.uvarint()}
	if o.Before%3600 != 0 {
		r.fail("latencies are folded into whole hours")
	}
	return o
}

// errEnough ends a scan early.
var errEnough = errors.New("enough")

func (o thinOrder) apply(t *tx) ([]byte, error) {
	prefix := append([]byte(prefixLatency), widthMinute)
	hours := make(latencies)
	var n uint64
	err := scan(t.db, prefix, appendStart(slices.Clone(prefix), o.Before), func(k, v []byte) error {
		if n == o.Most {
			return errEnough
		}
		n++
		_, key, err := decodeLatencyKey(k)
		if err != nil {
			return err
		}
		s, err := usage.DecodeSketch(v)
		if err != nil {
			return err
		}
		key.Minute -= ((key.Minute % 3600) + 3600) % 3600
		t.m.key = appendLatencyKey(t.m.key[:0], widthHour, &key)
		if sum := hours[string(t.m.key)]; sum != nil {
			sum.Merge(s)
		} else {
			hours[string(t.m.key)] = s
		}
		return t.b.Delete(k, nil)
	})
	if err != nil && !errors.Is(err, errEnough) {
		return nil, err
	}
	if err := hours.write(t); err != nil {
		return nil, err
	}
	old := append([]byte(prefixLatency), widthHour)
	err = scan(t.db, old, appendStart(slices.Clone(old), o.Drop), func(k, _ []byte) error {
		if n == o.Most {
			return errEnough
		}
		n++
		return t.b.Delete(k, nil)
	})
	if err != nil && !errors.Is(err, errEnough) {
		return nil, err
	}
	return binary.AppendUvarint([]byte{resultVersion}, n), nil
}

// thinAtOnce bounds what one entry rewrites.
const thinAtOnce = 4096

// ThinLatency folds and drops what is old at an instant, and returns the number of sketches that it took away. It may
// be called by any node and again at any time.
func (l *Ledger) ThinLatency(ctx context.Context, now time.Time) (int, error) {
	o := thinOrder{Before: now.Add(-LatencyMinutes).Truncate(time.Hour).Unix(), Drop: now.Add(-LatencyHours).Truncate(time.Hour).Unix(), Most: thinAtOnce}
	for total := 0; ; {
		out, err := l.propose(ctx, encodeThin(o))
		if err != nil {
			return total, fmt.Errorf("thin latencies: %w", err)
		}
		if len(out) == 0 || out[0] != resultVersion {
			return total, errors.New("thin latencies: the ledger's answer is of an unknown version")
		}
		r := reader{b: out[1:]}
		n := r.uvarint()
		if r.err != nil {
			return total, fmt.Errorf("thin latencies: %w", r.err)
		}
		if total += int(n); n < thinAtOnce {
			return total, nil
		}
	}
}

// Latency sums the latencies of rows that finished in the minutes that overlap [since, until), or in the hours that do
// where minutes are gone, by API, route and served region, in that order; api and route narrow it unless blank.
func (v *View) Latency(ctx context.Context, since, until time.Time, api, route string) ([]LatencyRow, error) {
	lo, hi, err := cellRange(since, until)
	if err != nil {
		return nil, err
	}
	sums := make(map[usage.LatencyKey]*usage.Sketch)
	for _, width := range []struct {
		name byte
		less int64
	}{{widthMinute, 60}, {widthHour, 3600}} {
		prefix := append([]byte(prefixLatency), width.name)
		from := lo + usage.CellSeconds - width.less // cellRange began a cell's length earlier
		err := v.scan(ctx, appendStart(slices.Clone(prefix), from), appendStart(slices.Clone(prefix), hi), func(k, val []byte) error {
			_, key, err := decodeLatencyKey(k)
			if err != nil {
				return err
			}
			if api != "" && key.API != api || route != "" && key.Route != route {
				return nil
			}
			s, err := usage.DecodeSketch(val)
			if err != nil {
				return err
			}
			key.Minute = 0
			if sum := sums[key]; sum != nil {
				sum.Merge(s)
			} else if len(sums) == MaxRows {
				return fault.New(fault.TooLarge, ReasonTooMany, "latencies: more than %d rows: name an API or a route", MaxRows)
			} else {
				sums[key] = s
			}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("read latencies: %w", err)
		}
	}
	var out []LatencyRow
	for k, s := range sums {
		out = append(out, LatencyRow{k.API, k.Route, k.ServedRegion, s})
	}
	slices.SortFunc(out, func(a, b LatencyRow) int {
		return cmp.Or(cmp.Compare(a.API, b.API), cmp.Compare(a.Route, b.Route), cmp.Compare(a.ServedRegion, b.ServedRegion))
	})
	return out, nil
}

var _ pebbledb.ValueMerger = (*mergingSketch)(nil)

package ledger

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"

	pebbledb "github.com/cockroachdb/pebble/v2"

	"bailiwick/shared/usage"
)

// The key space. Texts inside rest are length-prefixed, so that no two cells
// share a key whatever their names hold.
//
//	m/applied                                            raft index of the newest entry that is part of this state
//	m/outbox                                             next position and budget of the outbox
//	e/<edge>\x00<epoch be64>                             epoch
//	c/<customer>\x00<start be64><subscription…region>    sums of one cell: a customer's time range is one scan
//	t/<start be64><product, plan, api, region, outcome>  the same without the customers: O(1) in their number
//	lc/ lt/                                              as c/ and t/: rows that came for a day that was closed
//	dc/ dt/                                              as c/ and t/: what corrections add to requests and units, of either sign
//	zc/<customer>\x00<day be64><piece be32>              as usage's payload: the cells of a closed day, in the place of its c/
//	zt/<day be64><piece be32>                            the same for t/
//	k/<producer>/<request id>                            correction
//	os/<sink>                                            position that a sink has acknowledged
//	ob/<position be64><size be32>                        applied block that a sink has not acknowledged yet
//	p/<day be64>                                         closed day
//	rf/<edge>\x00<reason>                                count of refused usage, with a sample
//	ki/<customer>\x00<producer>/<request id>             nothing: the corrections of a customer
const (
	prefixEpoch = "e/"
	prefixCell  = "c/"
	prefixTotal = "t/"

	prefixLateCell    = "lc/"
	prefixLateTotal   = "lt/"
	prefixBookedCell  = "dc/"
	prefixBookedTotal = "dt/"
	prefixFoldedCell  = "zc/"
	prefixFoldedTotal = "zt/"
	prefixCorrection  = "k/"
	prefixCorrected   = "ki/"
	prefixRefused     = "rf/"
	prefixPeriod      = "p/"
	prefixSink        = "os/"
	prefixOutbox      = "ob/"
)

// prefixes lists them: a snapshot that holds another key is of a newer program.
var prefixes = [...]string{prefixEpoch, prefixCell, prefixTotal, prefixAccount, prefixSpan, prefixAsker, prefixTopUp,
	prefixLateCell, prefixLateTotal, prefixBookedCell, prefixBookedTotal, prefixFoldedCell, prefixFoldedTotal, prefixCorrection, prefixCorrected,
	prefixRefused, prefixLatency,
	prefixPeriod, prefixSink, prefixOutbox}

var (
	keyApplied = []byte("m/applied")
	keyOutbox  = []byte("m/outbox")
)

func appendEpochKey(b []byte, k epochKey) []byte {
	b = append(append(append(b, prefixEpoch...), k.edge...), 0)
	return binary.BigEndian.AppendUint64(b, k.epoch)
}

func decodeEpochKey(k []byte) (epochKey, error) {
	rest, ok := bytes.CutPrefix(k, []byte(prefixEpoch))
	if n := len(rest) - 9; ok && n > 0 && rest[n] == 0 {
		return epochKey{string(rest[:n]), binary.BigEndian.Uint64(rest[n+1:])}, nil
	}
	return epochKey{}, errors.New("an epoch's key is malformed")
}

// appendCustomer ends where start begins.
func appendCustomer(b []byte, prefix, customer string) []byte {
	return append(append(append(b, prefix...), customer...), 0)
}

// appendStart keeps times before 1970 below those after it.
func appendStart(b []byte, start int64) []byte {
	return binary.BigEndian.AppendUint64(b, uint64(start)^1<<63)
}

func startOf(b []byte) int64 { return int64(binary.BigEndian.Uint64(b) ^ 1<<63) }

func appendCellKey(b []byte, prefix string, c *usage.Cell) []byte {
	b = appendStart(appendCustomer(b, prefix, c.Customer), c.Start)
	b = appendText(appendText(b, c.Subscription), c.Plan)
	b = binary.AppendUvarint(b, c.PlanRev)
	b = appendText(appendText(appendText(b, c.Product), c.API), c.Route)
	b = append(b, byte(c.Outcome))
	return appendText(b, c.ServedRegion)
}

func decodeCellKey(prefix string, k []byte) (usage.Cell, error) {
	rest, ok := bytes.CutPrefix(k, []byte(prefix))
	customer, rest, found := bytes.Cut(rest, []byte{0})
	if !ok || !found || len(rest) < 8 {
		return usage.Cell{}, errors.New("a cell's key is malformed")
	}
	c := usage.Cell{Customer: string(customer), Start: startOf(rest)}
	r := reader{b: rest[8:]}
	c.Subscription, c.Plan, c.PlanRev = r.text(), r.text(), r.uvarint()
	c.Product, c.API, c.Route = r.text(), r.text(), r.text()
	c.Outcome = usage.Outcome(r.take(1)[0])
	c.ServedRegion = r.text()
	if r.err == nil && len(r.b) != 0 {
		r.fail("something follows its end")
	}
	if r.err != nil {
		return usage.Cell{}, fmt.Errorf("decode a cell's key: %w", r.err)
	}
	return c, nil
}

func appendTotalKey(b []byte, prefix string, c *usage.Cell) []byte {
	b = appendStart(append(b, prefix...), c.Start)
	b = appendText(appendText(appendText(appendText(b, c.Product), c.Plan), c.API), c.ServedRegion)
	return append(b, byte(c.Outcome))
}

func decodeTotalKey(prefix string, k []byte) (start int64, t TotalsRow, err error) {
	rest, ok := bytes.CutPrefix(k, []byte(prefix))
	if !ok || len(rest) < 8 {
		return 0, t, errors.New("a total's key is malformed")
	}
	start = startOf(rest)
	r := reader{b: rest[8:]}
	t = TotalsRow{Product: r.text(), Plan: r.text(), API: r.text(), ServedRegion: r.text()}
	t.Outcome = usage.Outcome(r.take(1)[0])
	if r.err != nil {
		return 0, t, fmt.Errorf("decode a total's key: %w", r.err)
	}
	return start, t, nil
}

// acceptable repeats what this package's keys and sums rest on, whatever a later
// codec admits: no zero byte before the separator, and nothing negative, since
// only then is the saturating addition of a merge operator free of order.
// Corrections are their own records.
func acceptable(c *usage.Cell, s *usage.Sums) bool {
	return c.Customer != "" && len(c.Customer) <= maxName && strings.IndexByte(c.Customer, 0) < 0 &&
		s.Requests >= 0 && s.Units >= 0 && s.BytesIn >= 0 && s.BytesOut >= 0
}

func appendSums(b []byte, s usage.Sums) []byte {
	b = binary.AppendUvarint(b, uint64(s.Requests))
	b = binary.AppendUvarint(b, uint64(s.Units))
	b = binary.AppendUvarint(b, uint64(s.BytesIn))
	return binary.AppendUvarint(b, uint64(s.BytesOut))
}

func decodeSums(b []byte) (usage.Sums, error) {
	r := reader{b: b}
	s := usage.Sums{Requests: r.int64(), Units: r.int64(), BytesIn: r.int64(), BytesOut: r.int64()}
	if r.err == nil && len(r.b) != 0 {
		r.fail("something follows its end")
	}
	if r.err != nil {
		return s, fmt.Errorf("decode a cell's sums: %w", r.err)
	}
	return s, nil
}

// sumsMerger adds sums inside pebble, so that Apply writes without reading:
// read-then-set costs two lookups a row. Its name is stored on disk.
var sumsMerger = &pebbledb.Merger{
	Name: "bailiwick.sums.1",
	Merge: func(key, value []byte) (pebbledb.ValueMerger, error) {
		if isLatency(key) { // since 2026-11-25; no older key begins like it
			m := new(mergingSketch)
			return m, m.MergeNewer(value)
		}
		m := new(merging)
		return m, m.MergeNewer(value)
	},
}

type merging struct{ sum usage.Sums }

func (m *merging) MergeNewer(value []byte) error {
	s, err := decodeSums(value)
	m.sum = m.sum.Add(s)
	return err
}
func (m *merging) MergeOlder(value []byte) error { return m.MergeNewer(value) }
func (m *merging) Finish(bool) ([]byte, io.Closer, error) {
	return appendSums(make([]byte, 0, 24), m.sum), nil, nil
}

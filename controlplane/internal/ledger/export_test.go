package ledger

import (
	"context"
	"encoding/binary"

	pebbledb "github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"bailiwick/shared/usage"
)

// OpenOn opens a Machine on a file system of the test's.
func OpenOn(fs vfs.FS, cfg MachineConfig) (*Machine, error) {
	cfg.fs = fs
	return OpenMachine(cfg)
}

// Said is one edge's word, as a command carries it.
type Said = seal

var (
	EncodeAppend = encodeAppend
	EncodeSealed = encodeSealed
	DecodeAcks   = decodeAcks
	EncodeThin   = encodeThin

	EncodeCloseDay = encodeCloseDay

	EncodeCheckpoint = encodeCheckpoint
)

// Thin is the order that makes latencies coarse.
type Thin = thinOrder

// Sync makes all that was applied durable, as an fsync of each entry would.
func (m *Machine) Sync() error { return m.cur.db.LogData(nil, pebbledb.Sync) }

func (m *Machine) Flush() error { return m.cur.db.Flush() }

// EncodeClose is a command of version 1.
func EncodeClose(edge string, epoch, sealed uint64) []byte {
	b := appendText([]byte{1, kindClose}, edge)
	return binary.AppendUvarint(binary.AppendUvarint(b, epoch), sealed)
}

func (l *Ledger) FlushSeals(ctx context.Context) error { return l.flushSeals(ctx) }

var DecodeLeases = decodeLeases

func EncodeExchange(now int64, xs []Exchange) []byte {
	return (&exchangeOrder{Now: now, Exchanges: xs}).encode()
}

func EncodeTopUp(o TopUp) []byte { return o.encode(begin(kindTopUp)) }

func EncodeCloseBy(edge string, epoch, sealed uint64, held Held) []byte {
	return encodeClose(&closeOrder{Edge: edge, Epoch: epoch, Sealed: sealed, Held: held})
}

func EncodeExchangeHeard(now int64, heard []string, xs []Exchange) []byte {
	return (&exchangeOrder{Now: now, Heard: heard, Exchanges: xs}).encode()
}

func EncodeFold(day int64, after string, cells uint64) []byte {
	return encodeFold(&foldOrder{day, after, cells})
}

func DecodeFolded(out []byte) Folded {
	r := reader{b: out[2:]}
	return Folded{Done: out[1] != 0, After: r.text(), Cells: r.uvarint(), Before: r.uvarint(), Bytes: r.uvarint()}
}

// Spans is how many sums there are beside the accounts.
func (m *Machine) Spans() (n int, err error) {
	err = scan(m.cur.db, []byte(prefixSpan), upper([]byte(prefixSpan)), func(_, _ []byte) error {
		n++
		return nil
	})
	return n, err
}

// Flip damages one value as a bad memory would: behind all checksums.
func (m *Machine) Flip(c usage.Cell) error {
	return m.cur.db.Merge(appendCellKey(nil, prefixCell, &c), appendSums(nil, usage.Sums{Requests: 1}), pebbledb.Sync)
}

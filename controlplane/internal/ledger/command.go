package ledger

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"

	"bailiwick/shared/usage"
)

// A command is version u8, kind u8, body. Numbers are uvarints unless said
// otherwise, texts and payloads a length and bytes. A kind, a field or an effect
// is only ever added under a new version: what a version means never changes, or
// nodes of two releases would apply one log to two states. Version 1 is replayed
// as it was written; version 2 is what this program writes.
const (
	commandVersion = 2

	kindAppend = 1 // n, n × (edge, region, epoch, seq, prev[32], hash[32], payload)
	kindSealed = 2 // n, n × (edge, epoch, sealed, seq, unix ms)
	kindClose  = 3 // edge, epoch, sealed; not written any more

	// Since version 2. 4 to 19 are of the ledger itself, 20 to 39 of quotas, 40 to 49 of what is looked at.
	kindCloseBy    = 4  // edge, epoch, sealed, held u8, at unix ms, by, reason
	kindFork       = 5  // edge, epoch, seq, hash[32]
	kindCorrect    = 6  // correction, as package correction encodes it
	kindRefused    = 7  // n, n × (edge, reason, count, epoch, seq, detail, first unix ms, last unix ms)
	kindCloseDay   = 8  // day, period (why u8, folded u8, closed at unix ms, n, n × edge)
	kindFoldDay    = 9  // day, after customer, cells
	kindCheckpoint = 10 // at unix ms
	kindVerdict    = 11 // index of a checkpoint, sum[32]
	kindSinks      = 12 // budget, n, n × name to add, n, n × name to forget
	kindSunk       = 13 // name, position

	kindExchange = 20 // now, n × edge, n × (edge, epoch, sequence, n × pending, n × ask): see quota_exchange.go
	kindTopUp    = 21 // account, terms, units, request id, at, by, reason

	kindThinLatency = 40 // before, drop, both signed; most
)

// order is the body of a command.
type order interface {
	// apply writes what the order changes into t and returns its result. What it
	// refuses is part of the result; an error stops the machine. It reads nothing
	// but the order and the state: no clock, no randomness, no order of a map.
	apply(t *tx) ([]byte, error)
}

// kinds says since which version a kind exists and how its body is read: to its
// last byte, errors kept by the reader.
var kinds = map[byte]struct {
	since  byte
	decode func(*reader) order
}{
	kindAppend:     {1, decodeAppend},
	kindSealed:     {1, decodeSealed},
	kindClose:      {1, decodeClose},
	kindCloseBy:    {2, decodeCloseBy},
	kindFork:       {2, decodeFork},
	kindCorrect:    {2, decodeCorrect},
	kindRefused:    {2, decodeRefused},
	kindCloseDay:   {2, decodeCloseDay},
	kindFoldDay:    {2, decodeFold},
	kindCheckpoint: {2, decodeCheckpoint},
	kindVerdict:    {2, decodeVerdict},
	kindSinks:      {2, decodeSinks},
	kindSunk:       {2, decodeSunk},

	kindExchange: {2, decodeExchange},
	kindTopUp:    {2, decodeTopUp},

	kindThinLatency: {2, decodeThin},
}

const maxName = 256 // bytes of an edge's or region's name

// Block is a block of usage and the region its edge's certificate names.
type Block struct {
	usage.Block
	Region string
}

// size is roughly what the block takes in an entry.
func (b *Block) size() int { return len(b.Payload) + len(b.Edge) + len(b.Region) + 96 }

// seal says that of (Edge, Epoch) all blocks up to Sealed exist, and that every
// row which finished before MS is in a block with a number at most Seq. MS is 0
// when only the former is known.
type seal struct {
	Edge        string
	Epoch       uint64
	Sealed, Seq uint64
	MS          int64
}

func appendText(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func encodeAppend(blocks []Block) []byte {
	n := 16
	for i := range blocks {
		n += blocks[i].size() + 16
	}
	b := append(make([]byte, 0, n), begin(kindAppend)...)
	b = binary.AppendUvarint(b, uint64(len(blocks)))
	for i := range blocks {
		k := &blocks[i]
		b = appendText(appendText(b, k.Edge), k.Region)
		b = binary.AppendUvarint(binary.AppendUvarint(b, k.Epoch), k.Seq)
		b = append(append(b, k.Prev[:]...), k.Hash[:]...)
		b = append(binary.AppendUvarint(b, uint64(len(k.Payload))), k.Payload...)
	}
	return b
}

func encodeSealed(seals []seal) []byte {
	b := binary.AppendUvarint(begin(kindSealed), uint64(len(seals)))
	for _, s := range seals {
		b = appendText(b, s.Edge)
		b = binary.AppendUvarint(b, s.Epoch)
		b = binary.AppendUvarint(b, s.Sealed)
		b = binary.AppendUvarint(b, s.Seq)
		b = binary.AppendUvarint(b, uint64(s.MS))
	}
	return b
}

func decodeAppend(r *reader) order {
	o := make(appendOrder, r.count(70)) // least bytes of a block
	for i := range o {
		k := &o[i]
		k.Edge, k.Region = r.name(), r.name()
		k.Epoch, k.Seq = r.uvarint(), r.uvarint()
		k.Prev, k.Hash = [32]byte(r.take(32)), [32]byte(r.take(32))
		k.Payload = r.bytes(usage.MaxPayload)
	}
	return o
}

func decodeSealed(r *reader) order {
	o := make(sealedOrder, r.count(5))
	for i := range o {
		o[i] = seal{Edge: r.name(), Epoch: r.uvarint(), Sealed: r.uvarint(), Seq: r.uvarint(), MS: r.int64()}
	}
	return o
}

// begin is the head of every command that this program writes.
func begin(kind byte) []byte { return []byte{commandVersion, kind} }

// decodeCommand's order shares b.
func decodeCommand(b []byte) (version byte, o order, err error) {
	if len(b) < 2 {
		return 0, nil, errors.New("ledger command is cut short")
	}
	version = b[0]
	if version == 0 || version > commandVersion {
		return 0, nil, fmt.Errorf("ledger command version %d is unknown, this program knows up to %d: run a newer bailiwick-control", version, commandVersion)
	}
	k, ok := kinds[b[1]]
	if !ok || version < k.since {
		return 0, nil, fmt.Errorf("ledger command kind %d of version %d is unknown: run a newer bailiwick-control", b[1], version)
	}
	r := reader{b: b[2:]}
	o = k.decode(&r)
	if r.err == nil && len(r.b) != 0 {
		r.err = fmt.Errorf("%d bytes too many", len(r.b))
	}
	if r.err != nil {
		return 0, nil, fmt.Errorf("decode ledger command of kind %d: %w", b[1], r.err)
	}
	return version, o, nil
}

// reader takes fields off bytes and remembers the first error, after which all
// it yields is zero.
type reader struct {
	b   []byte
	err error
}

var zeros [32]byte

func (r *reader) fail(what string) {
	if r.err == nil {
		r.err = errors.New(what)
	}
}

func (r *reader) uvarint() uint64 {
	if r.err != nil {
		return 0
	}
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.fail("a number is malformed")
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) varint() int64 {
	if r.err != nil {
		return 0
	}
	v, n := binary.Varint(r.b)
	if n <= 0 {
		r.fail("a number is malformed")
		return 0
	}
	r.b = r.b[n:]
	return v
}

func appendVarint(b []byte, v int64) []byte { return binary.AppendVarint(b, v) }

func (r *reader) int64() int64 {
	v := r.uvarint()
	if v > math.MaxInt64 {
		r.fail("a number is too large")
		return 0
	}
	return int64(v)
}

// take yields n ≤ 32 bytes.
func (r *reader) take(n int) []byte {
	if r.err != nil || len(r.b) < n {
		r.fail("it is cut short")
		return zeros[:n]
	}
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) bytes(limit uint64) []byte {
	n := r.uvarint()
	if r.err != nil {
		return nil
	}
	if n > limit || n > uint64(len(r.b)) {
		r.fail("a length is too large")
		return nil
	}
	out := r.b[:n:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) text() string { return string(r.bytes(math.MaxInt32)) }

// name is a text that keys are made of: not blank, and free of the separator.
func (r *reader) name() string {
	s := string(r.bytes(maxName))
	if r.err == nil && (s == "" || strings.IndexByte(s, 0) >= 0) {
		r.fail("a name is blank or holds a zero byte")
	}
	return s
}

// count is a number of items that take at least each bytes.
func (r *reader) count(each int) int {
	n := r.uvarint()
	if n > uint64(len(r.b)/each) {
		r.fail("a count is too large")
		return 0
	}
	return int(n)
}

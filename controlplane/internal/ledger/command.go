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
// otherwise, texts and payloads a length and bytes. A kind or a field is only
// ever added under a new version: what a version means never changes, or nodes
// of two releases would apply one log to two states.
const (
	commandVersion = 1

	kindAppend = 1 // n, n × (edge, region, epoch, seq, prev[32], hash[32], payload)
	kindSealed = 2 // n, n × (edge, epoch, sealed, seq, unix ms)
	kindClose  = 3 // edge, epoch, sealed
)

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
	b := append(make([]byte, 0, n), commandVersion, kindAppend)
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
	b := []byte{commandVersion, kindSealed}
	b = binary.AppendUvarint(b, uint64(len(seals)))
	for _, s := range seals {
		b = appendText(b, s.Edge)
		b = binary.AppendUvarint(b, s.Epoch)
		b = binary.AppendUvarint(b, s.Sealed)
		b = binary.AppendUvarint(b, s.Seq)
		b = binary.AppendUvarint(b, uint64(s.MS))
	}
	return b
}

func encodeClose(edge string, epoch, sealed uint64) []byte {
	b := appendText([]byte{commandVersion, kindClose}, edge)
	return binary.AppendUvarint(binary.AppendUvarint(b, epoch), sealed)
}

// command is one decoded command; exactly one of its parts is meant by kind.
type command struct {
	kind   byte
	blocks []Block
	seals  []seal // for kindClose one, with Edge, Epoch and Sealed
}

// decodeCommand's blocks share b.
func decodeCommand(b []byte) (command, error) {
	if len(b) < 2 {
		return command{}, errors.New("ledger command is cut short")
	}
	if b[0] != commandVersion {
		return command{}, fmt.Errorf("ledger command version %d is unknown, this program knows %d: run a newer bailiwick-control", b[0], commandVersion)
	}
	c := command{kind: b[1]}
	r := reader{b: b[2:]}
	switch c.kind {
	case kindAppend:
		n := r.count(70) // least bytes of a block
		c.blocks = make([]Block, n)
		for i := range c.blocks {
			k := &c.blocks[i]
			k.Edge, k.Region = r.name(), r.name()
			k.Epoch, k.Seq = r.uvarint(), r.uvarint()
			k.Prev, k.Hash = [32]byte(r.take(32)), [32]byte(r.take(32))
			k.Payload = r.bytes(usage.MaxPayload)
		}
	case kindSealed:
		c.seals = make([]seal, r.count(5))
		for i := range c.seals {
			c.seals[i] = seal{Edge: r.name(), Epoch: r.uvarint(), Sealed: r.uvarint(), Seq: r.uvarint(), MS: r.int64()}
		}
	case kindClose:
		c.seals = []seal{{Edge: r.name(), Epoch: r.uvarint(), Sealed: r.uvarint()}}
	default:
		return command{}, fmt.Errorf("ledger command kind %d is unknown: run a newer bailiwick-control", c.kind)
	}
	if r.err == nil && len(r.b) != 0 {
		r.err = fmt.Errorf("%d bytes too many", len(r.b))
	}
	if r.err != nil {
		return command{}, fmt.Errorf("decode ledger command of kind %d: %w", c.kind, r.err)
	}
	return c, nil
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

// The reasons of a refusal, as in usage.v1 Refusal.
const (
	ReasonMalformed   = "MALFORMED"    // the payload does not decode, or says what may not be
	ReasonWrongChain  = "WRONG_CHAIN"  // the hash is not the block's, or prev is not the ledger's head
	ReasonFork        = "FORK"         // another block with this number was applied: a cloned disk
	ReasonGap         = "GAP"          // an earlier block is missing
	ReasonEpochClosed = "EPOCH_CLOSED" // an operator closed the epoch, or a newer one has begun
)

var refusals = []struct{ reason, detail string }{
	{},
	{ReasonMalformed, "the payload does not decode or holds values that may not be"},
	{ReasonWrongChain, "hash or prev does not continue the chain the ledger holds"},
	{ReasonFork, "a different block with this number is in the ledger: this spool is a copy of another"},
	{ReasonGap, "an earlier block is missing"},
	{ReasonEpochClosed, "the epoch was closed by an operator, or a newer epoch of this edge has begun"},
}

const (
	refMalformed = 1 + iota
	refWrongChain
	refFork
	refGap
	refClosed
)

// Watermark is how far one epoch of an edge has been applied.
type Watermark struct {
	Edge    string
	Epoch   uint64
	Applied uint64   // every block up to this one is in the ledger; 0: none
	Head    [32]byte // hash of block Applied
	Index   uint64   // of the ledger's log, at least where this was true
	Closed  bool
}

// Ack is the ledger's word on one block.
type Ack struct {
	Watermark        // after it
	Reason    string // "": the block is in the ledger, now or since before
	Detail    string
}

// Expected is the number of the only block the ledger would apply next.
func (a *Ack) Expected() uint64 { return a.Applied + 1 }

// A result is version u8, the raft index, n, n × (refusal u8, closed u8,
// applied, head[32]).
func encodeAcks(b []byte, index uint64, n int) []byte {
	b = append(b, commandVersion)
	return binary.AppendUvarint(binary.AppendUvarint(b, index), uint64(n))
}

func appendAck(b []byte, refusal byte, e *epoch) []byte {
	b = append(b, refusal, boolByte(e.Closed))
	b = binary.AppendUvarint(b, e.Applied)
	return append(b, e.Head[:]...)
}

func decodeAcks(b []byte, blocks []Block) ([]Ack, error) {
	if len(b) == 0 || b[0] != commandVersion {
		return nil, errors.New("the ledger's answer is of an unknown version")
	}
	r := reader{b: b[1:]}
	index := r.uvarint()
	if n := r.count(35); r.err == nil && n != len(blocks) {
		r.fail(fmt.Sprintf("it answers %d blocks of %d", n, len(blocks)))
	}
	out := make([]Ack, len(blocks))
	for i := range out {
		flags := r.take(2)
		a := Ack{Watermark: Watermark{Edge: blocks[i].Edge, Epoch: blocks[i].Epoch, Closed: flags[1] != 0, Applied: r.uvarint(), Index: index}}
		a.Head = [32]byte(r.take(32))
		if int(flags[0]) >= len(refusals) {
			r.fail("it holds an unknown refusal")
		} else {
			a.Reason, a.Detail = refusals[flags[0]].reason, refusals[flags[0]].detail
		}
		out[i] = a
	}
	if r.err != nil {
		return nil, fmt.Errorf("decode the ledger's answer: %w", r.err)
	}
	return out, nil
}

func boolByte(b bool) byte {
	if b {
		return 1
	}
	return 0
}

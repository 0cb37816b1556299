// Package revision owns a place in a stream of versions: epoch, index, and an
// additive sum over the objects that stand there.
//
// It never stores or compares objects themselves. Everything in it is a plain
// value: nothing to survive a crash, safe for any number of readers. The
// encoding hashed by Of is a wire contract between the planes: changing it
// makes every edge refuse every delta, so it only ever changes with the stream
// version.
package revision

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/bits"
	"strconv"
)

// Sum is a 256-bit unsigned integer modulo 2^256, big-endian. The sum of a
// table is the sum of its objects' sums, so adding, changing or removing one
// object costs one object, and a lost change is detected.
//
// It detects faults (a dropped or doubled delta, a bug, a flipped bit), not
// forgery by who may choose objects: additive hashes yield to generalised
// birthday attacks (Wagner 2002). Authenticity is the signature's job.
type Sum [32]byte

// Of is the sum of one object: SHA-256 over kind, len(id), id, len(data), data
// with 8-byte big-endian lengths, so that no two triples encode alike.
func Of(kind uint8, id string, data []byte) Sum {
	buf := make([]byte, 0, 512)
	if n := 17 + len(id) + len(data); n > cap(buf) {
		buf = make([]byte, 0, n)
	}
	buf = append(buf, kind)
	buf = binary.BigEndian.AppendUint64(buf, uint64(len(id)))
	buf = append(buf, id...)
	buf = binary.BigEndian.AppendUint64(buf, uint64(len(data)))
	buf = append(buf, data...)
	return sha256.Sum256(buf)
}

// Add is a + b mod 2^256.
func (a Sum) Add(b Sum) Sum {
	var c uint64
	for i := 24; i >= 0; i -= 8 {
		var v uint64
		v, c = bits.Add64(binary.BigEndian.Uint64(a[i:]), binary.BigEndian.Uint64(b[i:]), c)
		binary.BigEndian.PutUint64(a[i:], v)
	}
	return a
}

// Sub is a - b mod 2^256.
func (a Sum) Sub(b Sum) Sum {
	var c uint64
	for i := 24; i >= 0; i -= 8 {
		var v uint64
		v, c = bits.Sub64(binary.BigEndian.Uint64(a[i:]), binary.BigEndian.Uint64(b[i:]), c)
		binary.BigEndian.PutUint64(a[i:], v)
	}
	return a
}

// IsZero says whether this is the sum of an empty table.
func (a Sum) IsZero() bool { return a == Sum{} }

// String is 64 lower-case hex digits.
func (a Sum) String() string { return hex.EncodeToString(a[:]) }

// MarshalText is String.
func (a Sum) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// UnmarshalText takes exactly 64 hex digits.
func (a *Sum) UnmarshalText(text []byte) error {
	if len(text) != hex.EncodedLen(len(a)) {
		return fmt.Errorf("parse sum: %d digits, want %d", len(text), hex.EncodedLen(len(a)))
	}
	var s Sum
	if _, err := hex.Decode(s[:], text); err != nil {
		return fmt.Errorf("parse sum: %w", err)
	}
	*a = s
	return nil
}

// FromBytes takes the 32 bytes of a wire message.
func FromBytes(b []byte) (Sum, error) {
	if len(b) != len(Sum{}) {
		return Sum{}, fmt.Errorf("read sum: %d bytes, want %d", len(b), len(Sum{}))
	}
	return Sum(b), nil
}

// Revision is a place in a stream. Epoch rises when history is rewritten
// (quorum-loss recovery, restore); Index rises within an epoch.
type Revision struct {
	Epoch uint64 `json:"epoch"`
	Index uint64 `json:"index"`
	Sum   Sum    `json:"sum"`
}

// Compare orders by (Epoch, Index). The sum takes no part: two revisions that
// compare equal and differ in Sum are a detected divergence.
func (r Revision) Compare(o Revision) int {
	return cmp.Or(cmp.Compare(r.Epoch, o.Epoch), cmp.Compare(r.Index, o.Index))
}

// Less says whether r stands before o.
func (r Revision) Less(o Revision) bool { return r.Compare(o) < 0 }

// AtLeast says whether r stands at or after o.
func (r Revision) AtLeast(o Revision) bool { return r.Compare(o) >= 0 }

// IsZero says whether r is the place before anything was written.
func (r Revision) IsZero() bool { return r == Revision{} }

// String is "epoch.index/" and the first 12 hex digits of the sum: enough for
// people to compare two nodes by eye.
func (r Revision) String() string {
	return strconv.FormatUint(r.Epoch, 10) + "." + strconv.FormatUint(r.Index, 10) + "/" + hex.EncodeToString(r.Sum[:6])
}

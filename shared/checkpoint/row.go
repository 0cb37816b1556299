package checkpoint

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash"
	"time"
)

// Row is what an edge keeps of one relay attempt. Rows rest with the edge; digests of them are in the log.
type Row struct {
	At        time.Time // whole microseconds
	RequestID string
	Grant     string
	From, To  string
}

// Append writes the row in the form that digests cover.
func (r Row) Append(buf []byte) []byte {
	buf = binary.AppendVarint(buf, r.At.UnixMicro())
	for _, s := range [...]string{r.RequestID, r.Grant, r.From, r.To} {
		buf = binary.AppendUvarint(buf, uint64(len(s)))
		buf = append(buf, s...)
	}
	return buf
}

// ParseRow reads a row. The bytes must be exactly those that Append writes.
func ParseRow(p []byte) (Row, error) {
	micros, n := binary.Varint(p)
	if n <= 0 {
		return Row{}, errors.New("a row has no time")
	}
	rest := p[n:]
	var s [4]string
	for i := range s {
		size, n := binary.Uvarint(rest)
		if n <= 0 || uint64(len(rest)-n) < size {
			return Row{}, errors.New("a row is cut short")
		}
		s[i], rest = string(rest[n:n+int(size)]), rest[n+int(size):]
	}
	r := Row{At: time.UnixMicro(micros).UTC(), RequestID: s[0], Grant: s[1], From: s[2], To: s[3]}
	if len(rest) > 0 || !bytes.Equal(r.Append(nil), p) {
		return Row{}, errors.New("a row has more bytes than it needs")
	}
	return r, nil
}

// Digest sums up the rows of one minute under one grant. It is SHA-256 over the digest before it and the SHA-256 of the rows,
// each after its length in four bytes.
type Digest struct{ rows hash.Hash }

// NewDigest begins one.
func NewDigest() *Digest { return &Digest{sha256.New()} }

// Add takes the next row, as Append wrote it.
func (d *Digest) Add(row []byte) {
	var size [4]byte
	binary.BigEndian.PutUint32(size[:], uint32(len(row)))
	d.rows.Write(size[:])
	d.rows.Write(row)
}

// Sum is the digest after prev, that of the entry before; empty for the first.
func (d *Digest) Sum(prev []byte) []byte {
	h := sha256.New()
	h.Write(prev)
	h.Write(d.rows.Sum(nil))
	return h.Sum(nil)
}

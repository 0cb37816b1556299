// Package apikey owns the text of an API key: minting, parsing, checksum,
// digest and the comparison of digests.
//
// It never stores, looks up or logs a key, and never sees a customer. The only
// state is a Hasher's pool of precomputed HMAC states, rebuilt at will after a
// crash; every function and method may be called at once from anywhere.
//
// The text is bw_<zone>_<id>_<secret><crc>:
//
//	zone    [a-z][a-z0-9-]{0,31}  a hint that picks a directory row, untrusted
//	id      12 base62             71 random bits; safe to log and to show
//	secret  28 base62             166 random bits
//	crc     6 base62              CRC-32 (IEEE) of all before it
//
// A CRC, not a MAC: it lets anybody (an edge under a flood of noise, a secret
// scanner) reject non-keys offline; it authenticates nothing.
package apikey

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"sync"
	"unsafe"
)

// Prefix begins every key, and no token.
const Prefix = "bw_"

const (
	prefix    = Prefix
	idLen     = 12
	secretLen = 28
	crcLen    = 6
	tailLen   = 1 + idLen + 1 + secretLen + crcLen // from the underscore after the zone

	maxZone = 32

	// MaxLen bounds what Parse looks at. The longest real key has 83 bytes.
	MaxLen = 128

	// PepperLen is the length of a pepper in bytes. NewHasher and Sum take any
	// length; whoever reads a pepper from disk or wire checks it with this.
	PepperLen = 32
)

const alphabet = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

// digitOf maps a byte to its base62 value, 0xff for what is no digit.
var digitOf = func() (t [256]byte) {
	for i := range t {
		t[i] = 0xff
	}
	for i := range len(alphabet) {
		t[alphabet[i]] = byte(i)
	}
	return t
}()

// Mint makes a new key for a zone. rand is crypto/rand.Reader but in tests.
// The key text exists nowhere else: what is not revealed once is lost.
func Mint(zone string, rand io.Reader) (id string, key Text, err error) {
	if !validZone(zone) {
		return "", Text{}, fmt.Errorf("mint key: zone %q is not [a-z][a-z0-9-]{0,31}", zone)
	}
	digits, err := randomDigits(rand, idLen+secretLen)
	if err != nil {
		return "", Text{}, fmt.Errorf("mint key: read randomness: %w", err)
	}
	id = string(digits[:idLen])
	body := prefix + zone + "_" + id + "_" + string(digits[idLen:])
	crc := crc32.ChecksumIEEE([]byte(body))
	var tail [crcLen]byte
	for i := crcLen - 1; i >= 0; i-- {
		tail[i] = alphabet[crc%62]
		crc /= 62
	}
	return id, Conceal(body + string(tail[:])), nil
}

// randomDigits draws n base62 digits without modulo bias: bytes from 248 up
// (62*4) are thrown away.
func randomDigits(r io.Reader, n int) ([]byte, error) {
	out := make([]byte, 0, n)
	var buf [64]byte
	for len(out) < n {
		if _, err := io.ReadFull(r, buf[:]); err != nil {
			return nil, err
		}
		for _, b := range buf {
			if b < 248 && len(out) < n {
				out = append(out, alphabet[b%62])
			}
		}
	}
	return out, nil
}

// Parse verifies form, length and checksum, and returns the zone hint and the
// id as substrings of s. It does not allocate: it is the first thing a flood of
// random keys meets.
func Parse(s string) (zone, id string, ok bool) {
	if len(s) > MaxLen || len(s) < len(prefix)+1+tailLen || s[:len(prefix)] != prefix {
		return "", "", false
	}
	z := len(s) - tailLen // all lengths after the zone are fixed
	zone = s[len(prefix):z]
	if !validZone(zone) || s[z] != '_' || s[z+1+idLen] != '_' {
		return "", "", false
	}
	id = s[z+1 : z+1+idLen]
	if !allDigits(id) || !allDigits(s[z+2+idLen:]) {
		return "", "", false
	}
	body, tail := s[:len(s)-crcLen], s[len(s)-crcLen:]
	var want uint64 // 62^6 > 2^32: kept wide, so that a value past 32 bits never wraps into a match
	for i := range len(tail) {
		want = want*62 + uint64(digitOf[tail[i]])
	}
	// ChecksumIEEE calls through a variable, so a []byte(body) would escape and
	// allocate. It only reads.
	if uint64(crc32.ChecksumIEEE(unsafe.Slice(unsafe.StringData(body), len(body)))) != want {
		return "", "", false
	}
	return zone, id, true
}

func validZone(s string) bool {
	if len(s) == 0 || len(s) > maxZone || s[0] < 'a' || s[0] > 'z' {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

func allDigits(s string) bool {
	for i := range len(s) {
		if digitOf[s[i]] == 0xff {
			return false
		}
	}
	return true
}

// Hasher computes digests under one pepper without allocating.
type Hasher struct{ pool sync.Pool }

type hashState struct {
	mac hash.Hash
	in  [MaxLen]byte // the key as bytes; hash.Hash takes no string
	out Digest
}

// NewHasher keeps no reference to pepper, which should have PepperLen bytes.
func NewHasher(pepper []byte) *Hasher {
	pepper = append([]byte(nil), pepper...)
	return &Hasher{pool: sync.Pool{New: func() any {
		return &hashState{mac: hmac.New(sha256.New, pepper)}
	}}}
}

// Sum is HMAC-SHA-256 of the whole key text.
func (h *Hasher) Sum(key string) Digest {
	st := h.pool.Get().(*hashState)
	for rest := key; len(rest) > 0; {
		n := copy(st.in[:], rest)
		st.mac.Write(st.in[:n])
		rest = rest[n:]
	}
	st.mac.Sum(st.out[:0])
	d := st.out
	st.mac.Reset()
	clear(st.in[:min(len(key), len(st.in))]) // no key text outlives its request in an idle pool
	h.pool.Put(st)
	return d
}

// Sum is one digest, for who needs only one. Hasher is for the request path.
func Sum(pepper []byte, key string) Digest {
	mac := hmac.New(sha256.New, pepper)
	mac.Write([]byte(key))
	return Digest(mac.Sum(nil))
}

// Equal compares in constant time. Never compare digests with ==; looking one
// up in a map is fine, since under an unknown pepper nobody can steer it.
func Equal(a, b Digest) bool { return subtle.ConstantTimeCompare(a[:], b[:]) == 1 }

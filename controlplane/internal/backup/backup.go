// Package backup owns the file that a group's backup is: a header that anybody
// can read, which says whose it is, and a body sealed under a key of the zone.
//
// It reads and writes streams and decides nothing: what the body holds, where
// the file rests and who may restore it is its callers'. A file that was cut,
// changed, or written for another zone does not open; nothing of the body is
// handed out before its part has been verified, and the end only after all has.
// Functions share nothing and may be called from any goroutine at once.
package backup

import (
	"bufio"
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"time"

	"bailiwick/shared/fault"
)

// A file is magic, length u32 and JSON of the Info, CRC32C u32 of that JSON, then
// chunks of (length u32, AES-256-GCM of at most chunkSize bytes). The nonce is the
// chunk's number, with lastChunk added on the last; the additional data is the
// SHA-256 of all before the chunks; the key is drawn by HKDF-SHA256 from the
// zone's with the file's salt, so that no nonce is ever used twice under one. All
// numbers are big-endian. This is the STREAM construction (Hoang, Reyhanitabar,
// Rogaway, Vizár, 2015): chunks cannot be left out, repeated or moved.
const (
	magic     = "bailiwick-backup\n"
	version   = 1
	chunkSize = 64 << 10
	lastChunk = 1 << 63
	maxInfo   = 64 << 10
)

// Reasons of errors; all are Invalid.
const (
	ReasonNotABackup = "NOT_A_BACKUP"
	ReasonNewer      = "BACKUP_NEWER"   // a newer program wrote it
	ReasonDamaged    = "BACKUP_DAMAGED" // or sealed under another zone's key
)

// Info is a backup's header.
type Info struct {
	Version      int       `json:"version"`
	Program      string    `json:"program"` // that wrote it
	Installation string    `json:"installation"`
	Zone         string    `json:"zone"` // whose key seals it
	Group        string    `json:"group"`
	Node         string    `json:"node"`
	TakenAt      time.Time `json:"taken_at"`
	Incarnation  uint64    `json:"incarnation"`     // of the group
	Entry        uint64    `json:"entry"`           // of its log, the last that is part of the backup
	Term         uint64    `json:"term"`            // of that entry
	Epoch        uint64    `json:"epoch,omitempty"` // of a store, with Index: its revision
	Index        uint64    `json:"index,omitempty"`
	State        int64     `json:"state"` // bytes of the state; what follows it in the body is the group's own
	Salt         []byte    `json:"salt"`
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func sealer(zoneKey, salt []byte) (cipher.AEAD, error) {
	key, err := hkdf.Key(sha256.New, zoneKey, salt, "bailiwick backup 1", 32)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

func nonce(n uint64) []byte { return binary.BigEndian.AppendUint64(make([]byte, 4, 12), n) }

// writer seals what is written to it, chunk by chunk.
type writer struct {
	w     io.Writer
	aead  cipher.AEAD
	about []byte
	buf   []byte
	n     uint64
}

func (s *writer) Write(p []byte) (int, error) {
	done := len(p)
	for len(p) > 0 {
		if len(s.buf) == chunkSize { // full and not the last
			if err := s.flush(0); err != nil {
				return 0, err
			}
		}
		n := min(chunkSize-len(s.buf), len(p))
		s.buf = append(s.buf, p[:n]...)
		p = p[n:]
	}
	return done, nil
}

func (s *writer) flush(flag uint64) error {
	sealed := s.aead.Seal(nil, nonce(s.n|flag), s.buf, s.about)
	s.n++
	s.buf = s.buf[:0]
	if _, err := s.w.Write(binary.BigEndian.AppendUint32(nil, uint32(len(sealed)))); err != nil {
		return err
	}
	_, err := s.w.Write(sealed)
	return err
}

// Write writes a backup whose body is what body writes. It sets Version and Salt.
func Write(w io.Writer, zoneKey []byte, info Info, body func(io.Writer) error) error {
	info.Version, info.Salt = version, make([]byte, 32)
	rand.Read(info.Salt)
	text, err := json.Marshal(info)
	if err != nil {
		return fmt.Errorf("write backup of %s: %w", info.Group, err)
	}
	head := binary.BigEndian.AppendUint32([]byte(magic), uint32(len(text)))
	head = append(head, text...)
	head = binary.BigEndian.AppendUint32(head, crc32.Checksum(text, castagnoli))
	about := sha256.Sum256(head)
	aead, err := sealer(zoneKey, info.Salt)
	if err != nil {
		return fmt.Errorf("write backup of %s: %w", info.Group, err)
	}
	b := bufio.NewWriterSize(w, chunkSize)
	if _, err := b.Write(head); err != nil {
		return fmt.Errorf("write backup of %s: %w", info.Group, err)
	}
	s := &writer{w: b, aead: aead, about: about[:], buf: make([]byte, 0, chunkSize)}
	if err := body(s); err != nil {
		return fmt.Errorf("write backup of %s: %w", info.Group, err)
	}
	if err := errors.Join(s.flush(lastChunk), b.Flush()); err != nil {
		return fmt.Errorf("write backup of %s: %w", info.Group, err)
	}
	return nil
}

func damaged(format string, args ...any) error {
	return fault.New(fault.Invalid, ReasonDamaged, "read backup: "+format, args...)
}

// ReadInfo reads a backup's header, for which no key is needed, and leaves r at the body.
func ReadInfo(r io.Reader) (Info, error) {
	info, _, err := readInfo(r)
	return info, err
}

func readInfo(r io.Reader) (info Info, head []byte, err error) {
	head = make([]byte, len(magic)+4)
	if _, err := io.ReadFull(r, head); err != nil || string(head[:len(magic)]) != magic {
		return info, nil, fault.New(fault.Invalid, ReasonNotABackup, "this is not a backup of bailiwick")
	}
	n := binary.BigEndian.Uint32(head[len(magic):])
	if n > maxInfo {
		return info, nil, damaged("its header of %d bytes is too long", n)
	}
	rest := make([]byte, n+4)
	if _, err := io.ReadFull(r, rest); err != nil {
		return info, nil, damaged("its header is cut short")
	}
	text := rest[:n]
	if crc32.Checksum(text, castagnoli) != binary.BigEndian.Uint32(rest[n:]) {
		return info, nil, damaged("its header does not match its checksum")
	}
	var v struct {
		Version int    `json:"version"`
		Program string `json:"program"`
	}
	if err := json.Unmarshal(text, &v); err != nil {
		return info, nil, damaged("its header: %w", err)
	}
	if v.Version > version {
		return info, nil, fault.New(fault.Invalid, ReasonNewer, "read backup: its format %d is newer than %d: %s wrote it: restore it with that program", v.Version, version, v.Program)
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&info); err != nil || info.Version < 1 || info.State < 0 {
		return info, nil, damaged("its header is malformed")
	}
	return info, append(head, rest...), nil
}

// reader opens a body chunk by chunk.
type reader struct {
	r     io.Reader
	aead  cipher.AEAD
	about []byte
	left  []byte
	n     uint64
	last  bool
}

// Open reads a backup's header and opens its body.
func Open(r io.Reader, zoneKey []byte) (Info, io.Reader, error) {
	b := bufio.NewReaderSize(r, chunkSize)
	info, head, err := readInfo(b)
	if err != nil {
		return info, nil, err
	}
	about := sha256.Sum256(head)
	aead, err := sealer(zoneKey, info.Salt)
	if err != nil {
		return info, nil, err
	}
	return info, &reader{r: b, aead: aead, about: about[:]}, nil
}

func (s *reader) Read(p []byte) (int, error) {
	for len(s.left) == 0 {
		if s.last {
			return 0, io.EOF
		}
		if err := s.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, s.left)
	s.left = s.left[n:]
	return n, nil
}

func (s *reader) next() error {
	var size [4]byte
	if _, err := io.ReadFull(s.r, size[:]); err != nil {
		return damaged("it ends before its last part")
	}
	n := binary.BigEndian.Uint32(size[:])
	if n > chunkSize+uint32(s.aead.Overhead()) {
		return damaged("a part of %d bytes is too long", n)
	}
	sealed := make([]byte, n)
	if _, err := io.ReadFull(s.r, sealed); err != nil {
		return damaged("it is cut short")
	}
	plain, err := s.aead.Open(nil, nonce(s.n), sealed, s.about)
	if err != nil {
		if plain, err = s.aead.Open(nil, nonce(s.n|lastChunk), sealed, s.about); err != nil {
			return damaged("part %d does not open: the file was changed, or another zone's key sealed it", s.n)
		}
		s.last = true
		if k, _ := s.r.Read(size[:1]); k > 0 {
			return damaged("something follows its end")
		}
	}
	s.n++
	s.left = plain
	return nil
}

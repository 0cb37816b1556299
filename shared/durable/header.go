package durable

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strings"
)

// ErrCorrupt means that bytes which were complete do not check out. It comes
// wrapped in a *CorruptError.
var ErrCorrupt = errors.New("corrupt")

// ErrNewer means that a newer program wrote the file in a format this one does
// not read.
var ErrNewer = errors.New("newer format")

// CorruptError says where a file does not check out.
type CorruptError struct {
	Path   string
	Offset int64
	What   string
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("read %s at byte %d: %s: corrupt", e.Path, e.Offset, e.What)
}

func (e *CorruptError) Is(target error) bool { return target == ErrCorrupt }

// Header opens every file: what it is, which format version, which program
// wrote it. The layout of the header itself never changes, so that any version
// of a program can name the writer of a file it cannot read.
//
//	magic [8] | version u32 | len u16 | program [len] | crc32c u32 of all before
//
// Numbers are little-endian here and in every file of this package.
type Header struct {
	Magic   string // 1..8 bytes, what the file is: "bwtable"
	Version uint32 // when opening: the newest version this program reads and the one it writes
	Program string // name and version of the writer, at most 255 bytes: "bailiwick-edge 0.1.0"
}

const (
	magicLen   = 8
	headFixed  = magicLen + 4 + 2
	maxProgram = 255
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func checksum(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }

func (h Header) check() error {
	switch {
	case len(h.Magic) == 0 || len(h.Magic) > magicLen:
		return fmt.Errorf("header magic %q: want 1 to %d bytes", h.Magic, magicLen)
	case h.Version == 0:
		return errors.New("header version: want at least 1")
	case h.Program == "" || len(h.Program) > maxProgram:
		return fmt.Errorf("header program %q: want 1 to %d bytes", h.Program, maxProgram)
	}
	return nil
}

func (h Header) size() int64 { return int64(headFixed + len(h.Program) + 4) }

func (h Header) append(b []byte) []byte {
	start := len(b)
	b = append(b, h.Magic...)
	b = append(b, make([]byte, magicLen-len(h.Magic))...)
	b = binary.LittleEndian.AppendUint32(b, h.Version)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(h.Program)))
	b = append(b, h.Program...)
	return binary.LittleEndian.AppendUint32(b, checksum(b[start:]))
}

// readHeader reads the header at the start of r and holds it against want.
// Headers are written atomically, so one that is cut short is corrupt, not torn.
func readHeader(r io.ReaderAt, path string, want Header) (Header, error) {
	buf := make([]byte, headFixed+maxProgram+4)
	n, err := r.ReadAt(buf, 0)
	if err != nil && err != io.EOF {
		return Header{}, fmt.Errorf("read header of %s: %w", path, err)
	}
	buf = buf[:n]
	bad := func(what string) (Header, error) { return Header{}, &CorruptError{path, 0, what} }
	if n < headFixed {
		return bad("header is cut short")
	}
	l := int(binary.LittleEndian.Uint16(buf[magicLen+4:]))
	if l > maxProgram || n < headFixed+l+4 {
		return bad("header is cut short")
	}
	if checksum(buf[:headFixed+l]) != binary.LittleEndian.Uint32(buf[headFixed+l:]) {
		return bad("header checksum differs")
	}
	h := Header{
		Magic:   strings.TrimRight(string(buf[:magicLen]), "\x00"),
		Version: binary.LittleEndian.Uint32(buf[magicLen:]),
		Program: string(buf[headFixed : headFixed+l]),
	}
	if h.Magic != want.Magic {
		return bad(fmt.Sprintf("file is a %q, want a %q", h.Magic, want.Magic))
	}
	if h.Version > want.Version {
		return h, fmt.Errorf("open %s: %q wrote format version %d, this program reads up to %d; start that program or a newer one: %w",
			path, h.Program, h.Version, want.Version, ErrNewer)
	}
	return h, nil
}

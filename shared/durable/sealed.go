package durable

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
)

const sealFixed = 8 + sha256.Size + 4

// WriteSealed replaces path by one checksummed blob:
//
//	header | len u64 | sha256 of blob | crc32c u32 of len and sha256 | blob
//
// Atomic and durable as WriteFileAtomic is. The hash finds damage; it
// authenticates nothing, since whoever can write the file can write the hash.
func WriteSealed(fsys FS, path string, h Header, blob []byte) error {
	if err := h.check(); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	b := make([]byte, 0, int(h.size())+sealFixed+len(blob))
	b = h.append(b)
	start := len(b)
	b = binary.LittleEndian.AppendUint64(b, uint64(len(blob)))
	sum := sha256.Sum256(blob)
	b = append(b, sum[:]...)
	b = binary.LittleEndian.AppendUint32(b, checksum(b[start:]))
	return WriteFileAtomic(fsys, path, append(b, blob...), FilePerm)
}

// ReadSealed reads what WriteSealed wrote, at most limit bytes of file (zero: no
// limit). Any damage is ErrCorrupt, a version newer than h.Version ErrNewer, no
// file fs.ErrNotExist. The returned header is the file's.
func ReadSealed(fsys FS, path string, h Header, limit int64) ([]byte, Header, error) {
	b, err := ReadFile(fsys, path, limit)
	if err != nil {
		return nil, Header{}, fmt.Errorf("read sealed file: %w", err)
	}
	found, err := readHeader(bytes.NewReader(b), path, h)
	if err != nil {
		return nil, found, err
	}
	off := found.size()
	body := b[off:]
	bad := func(what string) ([]byte, Header, error) { return nil, found, &CorruptError{path, off, what} }
	if len(body) < sealFixed {
		return bad("file is cut short")
	}
	if checksum(body[:sealFixed-4]) != binary.LittleEndian.Uint32(body[sealFixed-4:]) {
		return bad("checksum of the length differs")
	}
	blob := body[sealFixed:]
	if n := binary.LittleEndian.Uint64(body); n != uint64(len(blob)) {
		return bad(fmt.Sprintf("file holds %d bytes of %d", len(blob), n))
	}
	if sha256.Sum256(blob) != [sha256.Size]byte(body[8:]) {
		return bad("hash of the content differs")
	}
	return blob, found, nil
}

func newReader(r io.Reader) *bufio.Reader { return bufio.NewReaderSize(r, 256<<10) }

// allZero reads r to its end.
func allZero(r io.Reader) (bool, error) {
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		for _, b := range buf[:n] {
			if b != 0 {
				return false, nil
			}
		}
		if err == io.EOF {
			return true, nil
		}
		if err != nil {
			return false, err
		}
	}
}

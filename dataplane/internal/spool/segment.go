package spool

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"bailiwick/shared/durable"
	"bailiwick/shared/usage"
)

// A segment is a file of fixed size, allocated before it is mapped: a store to a
// mapped page without a block on disk is SIGBUS when the disk is full.
//
//	header: magic[8] | version u32 | size u32 | epoch u64 | number u64 | boot[16] | program[64] | 12 zeros | crc32c u32
//	record: word u64 = length u32 | crc32c u32 << 32   payload   zeros to the next multiple of 8
//
// The word is stored last, in one store: a record is there whole or not at all,
// whenever the process is killed. The checksum is seeded with the length. A word
// of zero is where the log ends so far; of all ones, where it goes on in the
// next segment.
const (
	segmentMagic   = "bwrows\x00\x00"
	segmentVersion = 3 // 2: no short rows, before 2026-11-27; 1: rows of kind 1 only, before 2026-11-25
	segmentHeader  = 128
	wordSize       = 8
	endWord        = ^uint64(0)
)

const (
	kindOld   = 1 // a row of version 1: no period, and nothing that only the detail keeps
	kindSync  = 2 // a pos, u64 at 8: all before it is known to be on disk
	kindRow   = 3 // request id, numbers, cell, key id: putRow
	kindShort = 4 // a row that leans on one of kind 3 before it: putShort
)

// Offsets in a row's payload. Its first 8 bytes are kind u8, attempts u8, status
// u16, flags u8, 0, length of the key id u16. What lies between rowKey and the
// key id is the cell, and as bytes the key by which rows are folded.
const (
	rowID       = 8
	rowEnd      = 24
	rowLat      = 32
	rowSums     = 40
	rowUpstream = 72
	rowActor    = 80
	rowAddress  = 88
	rowKey      = 96
	keyRev      = 8
	keyPeriod   = 16
	keyOut      = 24
	keyTexts    = 25
	maxRecord   = wordSize + (rowKey+keyTexts+7*(2+usage.MaxString)+usage.MaxString+7)&^7

	oldKey   = 72 // in a row of kind 1: start, rev, outcome, texts
	oldTexts = 17
)

// pos is a place in the row log of one epoch: segment number and offset.
type pos uint64

func (p pos) seg() uint64 { return uint64(p) >> 32 }
func (p pos) off() int    { return int(uint32(p)) }

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func recordWord(payload []byte) uint64 {
	n := uint32(len(payload))
	return uint64(n) | uint64(crc32.Update(n, castagnoli, payload))<<32
}

type segment struct {
	no    uint64
	epoch uint64
	path  string
	boot  [16]byte
	data  []byte // mapped, or read by Open
	f     *os.File

	ready int // rows go below it: see extend. Written under allocMu and mu
}

func (g *segment) at(off int) pos { return pos(g.no<<32 | uint64(off)) }

func segmentName(epoch, no uint64) string { return fmt.Sprintf("rows-%016x-%08x", epoch, no) }

func parseSegmentName(name string) (epoch, no uint64, ok bool) {
	n, err := fmt.Sscanf(name, "rows-%016x-%08x", &epoch, &no)
	return epoch, no, err == nil && n == 2 && name == segmentName(epoch, no)
}

func (g *segment) header(size int, program string) []byte {
	b := make([]byte, segmentHeader)
	copy(b, segmentMagic)
	binary.LittleEndian.PutUint32(b[8:], segmentVersion)
	binary.LittleEndian.PutUint32(b[12:], uint32(size))
	binary.LittleEndian.PutUint64(b[16:], g.epoch)
	binary.LittleEndian.PutUint64(b[24:], g.no)
	copy(b[32:48], g.boot[:])
	copy(b[48:112], program)
	binary.LittleEndian.PutUint32(b[124:], crc32.Checksum(b[:124], castagnoli))
	return b
}

// createSegment makes an empty segment, durable under its name or not there.
func createSegment(dir string, epoch, no uint64, size int, boot [16]byte, program string) (*segment, error) {
	g := &segment{no: no, epoch: epoch, boot: boot, path: filepath.Join(dir, segmentName(epoch, no))}
	tmp := g.path + ".tmp"
	if err := g.create(tmp, size, program); err != nil {
		g.close()
		os.Remove(tmp) // best effort: a leftover is removed by the next Open
		return nil, err
	}
	return g, nil
}

func (g *segment) create(tmp string, size int, program string) (err error) {
	if g.f, err = os.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_TRUNC, durable.FilePerm); err != nil {
		return err
	}
	if err := reserveBlocks(g.f, int64(size)); err != nil {
		return fmt.Errorf("allocate %d bytes for %s: %w", size, g.path, err)
	}
	if _, err := g.f.WriteAt(g.header(size, program), 0); err != nil {
		return fmt.Errorf("write %s: %w", g.path, err)
	}
	if g.data, err = unix.Mmap(int(g.f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return fmt.Errorf("map %s: %w", g.path, err)
	}
	g.ready = segmentHeader
	if err := durable.Sync(g.f); err != nil {
		return fmt.Errorf("sync usage segment: %w", err)
	}
	if err := os.Rename(tmp, g.path); err != nil {
		return err
	}
	return durable.OS().SyncDir(filepath.Dir(g.path))
}

// readSegment reads a segment of a process before into memory: a file that was
// cut short must not be mapped. What is missing of it reads as zeros.
func readSegment(path string, epoch, no uint64) (*segment, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	g := &segment{no: no, epoch: epoch, path: path}
	bad := func(what string) (*segment, error) { return nil, &durable.CorruptError{Path: path, What: what} }
	if len(b) < segmentHeader || string(b[:8]) != segmentMagic {
		return bad("it is no row segment")
	}
	if crc32.Checksum(b[:124], castagnoli) != binary.LittleEndian.Uint32(b[124:]) {
		return bad("its header's checksum differs")
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v > segmentVersion {
		return nil, fmt.Errorf("read %s: %q wrote version %d, this program reads up to %d; start that program or a newer one: %w",
			path, strings.TrimRight(string(b[48:112]), "\x00"), v, segmentVersion, durable.ErrNewer)
	}
	if binary.LittleEndian.Uint64(b[16:]) != epoch || binary.LittleEndian.Uint64(b[24:]) != no {
		return bad("its header is another segment's")
	}
	size := int(binary.LittleEndian.Uint32(b[12:]))
	if len(b) > size {
		return bad("it is longer than its header says")
	}
	g.boot = [16]byte(b[32:48])
	g.data = append(b, make([]byte, size-len(b))...)
	return g, nil
}

func (g *segment) close() {
	if g.f != nil {
		if g.data != nil {
			unix.Munmap(g.data)
		}
		g.f.Close()
	}
	g.data, g.f = nil, nil
}

// place is what read found.
type place int

const (
	placeRecord place = iota
	placeBlank        // nothing was written here yet
	placeEnd          // the log goes on in the next segment
	placeBad          // neither
)

// read looks at the record at off. The payload lies in the segment.
func (g *segment) read(off int) (payload []byte, next int, p place) {
	if off+wordSize > len(g.data) {
		return nil, off, placeEnd
	}
	w := binary.LittleEndian.Uint64(g.data[off:])
	switch w {
	case 0:
		return nil, off, placeBlank
	case endWord:
		return nil, off, placeEnd
	}
	n := int(uint32(w))
	if n < 16 || n > maxRecord || n > len(g.data)-off-wordSize {
		return nil, off, placeBad
	}
	payload = g.data[off+wordSize : off+wordSize+n]
	if recordWord(payload) != w || n < leastRecord(payload) {
		return nil, off, placeBad
	}
	return payload, off + recordSize(n), placeRecord
}

func leastRecord(payload []byte) int {
	switch payload[0] {
	case kindSync:
		return 16
	case kindOld:
		return oldKey + oldTexts
	case kindRow:
		return rowKey + keyTexts + keyIDLen(payload)
	case kindShort:
		return lengthOfShort(payload)
	}
	return maxRecord + 1
}

func isRow(payload []byte) bool { return payload[0] != kindSync }

func keyIDLen(payload []byte) int { return int(binary.LittleEndian.Uint16(payload[6:])) }

// commit makes the payload that was copied behind off a record.
func (g *segment) commit(off, n int) {
	w := recordWord(g.data[off+wordSize : off+wordSize+n])
	storeWord(g.data[off:], w)
}

// storeWord is one store, after all stores before it, so that no kill of the
// process leaves a word before its payload.
func storeWord(b []byte, w uint64) {
	var le [wordSize]byte
	binary.LittleEndian.PutUint64(le[:], w) // costs nothing on little-endian machines
	atomic.StoreUint64((*uint64)(unsafe.Pointer(&b[0])), binary.NativeEndian.Uint64(le[:]))
}

// recordSize is how much a payload of n bytes takes in a segment.
func recordSize(n int) int { return wordSize + (n+7)&^7 }

// rowSize is the length of the row's payload.
func rowSize(r *usage.Row) int {
	return rowKey + keyTexts + 14 + len(r.Customer) + len(r.Subscription) + len(r.Plan) + len(r.Product) + len(r.API) + len(r.Route) + len(r.ServedRegion) + len(r.KeyID)
}

// putRow writes the row's payload to b, which is exactly its size.
func putRow(b []byte, r *usage.Row) {
	le := binary.LittleEndian
	_ = b[rowKey+keyTexts]
	le.PutUint64(b, kindRow|uint64(r.Attempts)<<8|uint64(r.Status)<<16|uint64(r.Flags)<<32|uint64(len(r.KeyID))<<48)
	copy(b[rowID:rowEnd], r.RequestID[:])
	le.PutUint64(b[rowEnd:], uint64(r.EndUnixMS))
	le.PutUint64(b[rowLat:], uint64(r.LatencyUS))
	le.PutUint64(b[rowSums:], uint64(r.Requests))
	le.PutUint64(b[rowSums+8:], uint64(r.Units))
	le.PutUint64(b[rowSums+16:], uint64(r.BytesIn))
	le.PutUint64(b[rowSums+24:], uint64(r.BytesOut))
	le.PutUint64(b[rowUpstream:], uint64(r.UpstreamUS))
	le.PutUint64(b[rowActor:], r.Actor)
	le.PutUint64(b[rowAddress:], r.Address)
	le.PutUint64(b[rowKey:], uint64(usage.CellStart(r.EndUnixMS)))
	le.PutUint64(b[rowKey+keyRev:], r.PlanRev)
	le.PutUint64(b[rowKey+keyPeriod:], uint64(r.Period))
	b[rowKey+keyOut] = byte(r.Outcome)
	b = b[rowKey+keyTexts:]
	b = putText(b, r.Customer)
	b = putText(b, r.Subscription)
	b = putText(b, r.Plan)
	b = putText(b, r.Product)
	b = putText(b, r.API)
	b = putText(b, r.Route)
	b = putText(b, r.ServedRegion)
	copy(b, r.KeyID)
}

func putText(b []byte, s string) []byte {
	binary.LittleEndian.PutUint16(b, uint16(len(s)))
	return b[2+copy(b[2:], s):]
}

// bootID tells one boot of the machine from another; zeros if it cannot.
func bootID() (id [16]byte) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil || len(b) < 36 {
		return id
	}
	var n int
	for _, c := range strings.ReplaceAll(string(b[:36]), "-", "") {
		v := strings.IndexRune("0123456789abcdef", c)
		if v < 0 || n == 32 {
			return [16]byte{}
		}
		id[n/2] = id[n/2]<<4 | byte(v)
		n++
	}
	return id
}

func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

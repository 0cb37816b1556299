package raftgroup

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"sync"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	"github.com/klauspost/compress/zstd"
)

// A snapshot is magic, version u8, then one zstd stream of: writer (u8 length,
// text), group (u16 length, text), visible u64, stamp i64, chunks of (u32 length,
// bytes) ended by length 0, count of chunks u64, their bytes u64, CRC32C u32 over
// all that precedes it in the stream. All big-endian.
const (
	snapshotMagic   = "bailiwick-snap"
	snapshotVersion = 1
	snapshotWriter  = "bailiwick-control (raftgroup snapshot 1)"
	snapshotChunk   = 64 << 10
)

type snapshotHeader struct {
	group   string
	visible uint64 // fsm.visible at that point
	stamp   int64  // fsm.stamp at that point
}

// summed runs the checksum of everything that passes.
type summed struct {
	w   io.Writer
	sum uint32
}

func (s *summed) Write(p []byte) (int, error) {
	s.sum = crc32.Update(s.sum, castagnoli, p)
	return s.w.Write(p)
}

type chunker struct {
	w             io.Writer
	chunks, bytes uint64
}

func (c *chunker) Write(p []byte) (int, error) {
	n := 0
	for len(p) > 0 {
		part := p[:min(len(p), snapshotChunk)]
		if _, err := c.w.Write(binary.BigEndian.AppendUint32(nil, uint32(len(part)))); err != nil {
			return n, err
		}
		if _, err := c.w.Write(part); err != nil {
			return n, err
		}
		c.chunks++
		c.bytes += uint64(len(part))
		n += len(part)
		p = p[len(part):]
	}
	return n, nil
}

func writeSnapshot(w io.Writer, h snapshotHeader, state func(io.Writer) error) error {
	if _, err := w.Write(append([]byte(snapshotMagic), snapshotVersion)); err != nil {
		return err
	}
	z, err := zstd.NewWriter(w, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		return err
	}
	s := &summed{w: z}
	head := append([]byte{byte(len(snapshotWriter))}, snapshotWriter...)
	head = binary.BigEndian.AppendUint16(head, uint16(len(h.group)))
	head = append(head, h.group...)
	head = binary.BigEndian.AppendUint64(head, h.visible)
	head = binary.BigEndian.AppendUint64(head, uint64(h.stamp))
	if _, err := s.Write(head); err != nil {
		z.Close()
		return err
	}
	c := &chunker{w: s}
	b := bufio.NewWriterSize(c, snapshotChunk)
	if err := errors.Join(state(b), b.Flush()); err != nil {
		z.Close()
		return err
	}
	tail := binary.BigEndian.AppendUint32(nil, 0)
	tail = binary.BigEndian.AppendUint64(tail, c.chunks)
	tail = binary.BigEndian.AppendUint64(tail, c.bytes)
	if _, err := s.Write(tail); err != nil {
		z.Close()
		return err
	}
	_, err = z.Write(binary.BigEndian.AppendUint32(nil, s.sum))
	return errors.Join(err, z.Close())
}

// snapshotReader yields the state's bytes and returns io.EOF only after count
// and checksum were verified.
type snapshotReader struct {
	snapshotHeader
	z             *zstd.Decoder
	r             *bufio.Reader
	sum           uint32
	left          int
	chunks, bytes uint64
	err           error
}

func newSnapshotReader(r io.Reader) (*snapshotReader, error) {
	head := make([]byte, len(snapshotMagic)+1)
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, fmt.Errorf("read snapshot header: %w", err)
	}
	if string(head[:len(snapshotMagic)]) != snapshotMagic {
		return nil, errors.New("read snapshot header: this is not a snapshot of bailiwick-control")
	}
	z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(1<<30))
	if err != nil {
		return nil, err
	}
	s := &snapshotReader{z: z, r: bufio.NewReaderSize(z, snapshotChunk)}
	writer, err := s.take(1)
	if err == nil {
		writer, err = s.take(int(writer[0]))
	}
	if v := head[len(snapshotMagic)]; err == nil && v != snapshotVersion {
		err = fmt.Errorf("format %d is unknown: it was written by %q: run that program", v, writer)
	}
	var b []byte
	if err == nil {
		b, err = s.take(2)
	}
	if err == nil {
		b, err = s.take(int(binary.BigEndian.Uint16(b)))
		s.group = string(b)
	}
	if err == nil {
		b, err = s.take(16)
	}
	if err != nil {
		z.Close()
		return nil, fmt.Errorf("read snapshot header: %w", err)
	}
	s.visible, s.stamp = binary.BigEndian.Uint64(b), int64(binary.BigEndian.Uint64(b[8:]))
	return s, nil
}

func (s *snapshotReader) Close() { s.z.Close() }

func (s *snapshotReader) take(n int) ([]byte, error) {
	b := make([]byte, n)
	_, err := io.ReadFull(s.r, b)
	s.sum = crc32.Update(s.sum, castagnoli, b)
	return b, err
}

func (s *snapshotReader) Read(p []byte) (int, error) {
	if s.err != nil || len(p) == 0 {
		return 0, s.err
	}
	if s.left == 0 {
		if s.err = s.next(); s.err != nil {
			return 0, s.err
		}
	}
	n, err := s.r.Read(p[:min(len(p), s.left)])
	s.sum = crc32.Update(s.sum, castagnoli, p[:n])
	s.left -= n
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	s.err = err
	return n, err
}

func (s *snapshotReader) next() error {
	b, err := s.take(4)
	if err != nil {
		return unexpected(err)
	}
	if s.left = int(binary.BigEndian.Uint32(b)); s.left > snapshotChunk {
		return errors.New("read snapshot: a chunk is too long")
	}
	if s.left > 0 {
		s.chunks++
		s.bytes += uint64(s.left)
		return nil
	}
	if b, err = s.take(16); err != nil {
		return unexpected(err)
	}
	sum := s.sum
	crc, err := s.take(4)
	if err != nil {
		return unexpected(err)
	}
	if chunks, size := binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:]); chunks != s.chunks || size != s.bytes {
		return fmt.Errorf("read snapshot: it holds %d chunks of %d bytes instead of %d of %d", s.chunks, s.bytes, chunks, size)
	}
	if want := binary.BigEndian.Uint32(crc); sum != want {
		return fmt.Errorf("read snapshot: its checksum is %08x instead of %08x", sum, want)
	}
	if _, err := s.r.ReadByte(); err != io.EOF {
		return errors.New("read snapshot: something follows its end")
	}
	return io.EOF
}

func unexpected(err error) error {
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read snapshot: %w", err)
}

// snapshotStore is raft's file store plus a proof reading: a snapshot counts
// only once it has been read back to its end. Until then raft drops no log, and
// a snapshot found bad is never offered to raft again.
type snapshotStore struct {
	*raft.FileSnapshotStore
	dir    string
	group  string
	onFail func(error)

	mu  sync.Mutex // covers bad
	bad map[string]bool
}

func openSnapshots(dir, group string, logger hclog.Logger, onFail func(error)) (*snapshotStore, error) {
	if err := os.MkdirAll(filepath.Join(dir, "snapshots"), 0o700); err != nil {
		return nil, err
	}
	inner, err := raft.NewFileSnapshotStoreWithLogger(dir, 2, logger)
	if err != nil {
		return nil, err
	}
	return &snapshotStore{FileSnapshotStore: inner, dir: filepath.Join(dir, "snapshots"), group: group, onFail: onFail, bad: make(map[string]bool)}, nil
}

// verifyAll reads every snapshot, newest first. It returns the index of the
// newest good one (0: none) and what is wrong with the bad ones.
func (s *snapshotStore) verifyAll() (newest uint64, bad []error, err error) {
	metas, err := s.FileSnapshotStore.List()
	if err != nil {
		return 0, nil, err
	}
	for _, m := range metas {
		if err := s.verify(m.ID); err != nil {
			bad = append(bad, err)
			s.mu.Lock()
			s.bad[m.ID] = true
			s.mu.Unlock()
			continue
		}
		newest = max(newest, m.Index)
	}
	return newest, bad, nil
}

func (s *snapshotStore) verify(id string) error {
	_, rc, err := s.FileSnapshotStore.Open(id)
	if err != nil {
		return fmt.Errorf("open snapshot %s: %w", id, err)
	}
	defer rc.Close()
	r, err := newSnapshotReader(rc)
	if err != nil {
		return fmt.Errorf("verify snapshot %s: %w", id, err)
	}
	defer r.Close()
	if r.group != s.group {
		return fmt.Errorf("verify snapshot %s: it belongs to group %q, this is %q", id, r.group, s.group)
	}
	if _, err := io.Copy(io.Discard, r); err != nil {
		return fmt.Errorf("verify snapshot %s: %w", id, err)
	}
	return nil
}

func (s *snapshotStore) List() ([]*raft.SnapshotMeta, error) {
	metas, err := s.FileSnapshotStore.List()
	s.mu.Lock()
	defer s.mu.Unlock()
	good := metas[:0]
	for _, m := range metas {
		if !s.bad[m.ID] {
			good = append(good, m)
		}
	}
	return good, err
}

// Open is what raft calls to send a snapshot. A leader that cannot read its own
// would leave a lagging follower behind for ever (raft#522), so it says so.
func (s *snapshotStore) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	m, rc, err := s.FileSnapshotStore.Open(id)
	if err != nil {
		s.onFail(fmt.Errorf("open snapshot %s: %w", id, err))
	}
	return m, rc, err
}

func (s *snapshotStore) Create(v raft.SnapshotVersion, index, term uint64, c raft.Configuration, ci uint64, t raft.Transport) (raft.SnapshotSink, error) {
	sink, err := s.FileSnapshotStore.Create(v, index, term, c, ci, t)
	if err != nil {
		return nil, err
	}
	return &verifiedSink{SnapshotSink: sink, store: s}, nil
}

type verifiedSink struct {
	raft.SnapshotSink
	store  *snapshotStore
	closed bool
}

func (k *verifiedSink) Close() error {
	if k.closed {
		return nil
	}
	k.closed = true
	if err := k.SnapshotSink.Close(); err != nil {
		return err
	}
	dir := filepath.Join(k.store.dir, k.ID())
	for _, name := range []string{"", "meta.json", "state.bin"} { // raft makes them world-readable
		mode := os.FileMode(0o600)
		if name == "" {
			mode = 0o700
		}
		if err := os.Chmod(filepath.Join(dir, name), mode); err != nil {
			return err
		}
	}
	err := k.store.verify(k.ID())
	if err != nil {
		k.store.mu.Lock()
		k.store.bad[k.ID()] = true
		k.store.mu.Unlock()
		err = errors.Join(err, os.RemoveAll(dir))
		k.store.onFail(err)
	}
	return err
}

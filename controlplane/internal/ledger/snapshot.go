package ledger

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"strings"
	"sync"

	pebbledb "github.com/cockroachdb/pebble/v2"
)

// A snapshot is magic, version u8, pairs of (key length, key, value length,
// value) in key order, a zero, the count of pairs, CRC32C u32 big-endian over all
// that precedes it. Lengths and count are uvarints; no key is empty.
const (
	snapshotMagic   = "bailiwick-ledger"
	snapshotVersion = 1

	maxPair      = 8 << 20 // bytes of a key or value: a payload or a correction, and room
	restoreBatch = 1 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Snapshot is part of raftgroup.Machine.
func (m *Machine) Snapshot() (write func(io.Writer) error, release func(), err error) {
	defer guard(&err, "snapshot ledger")
	g, err := m.acquire()
	if err != nil {
		return nil, nil, err
	}
	snap := g.db.NewSnapshot()
	write = func(w io.Writer) (err error) {
		defer guard(&err, "write ledger snapshot")
		// Raft drops its log up to here next, and with it what could replay
		// batches that were not synced.
		if err := g.db.Flush(); err != nil {
			return fmt.Errorf("flush ledger: %w", err)
		}
		return writeSnapshot(w, snap)
	}
	var once sync.Once
	release = func() {
		once.Do(func() {
			if err := snap.Close(); err != nil {
				m.logger.Error("ledger snapshot does not close", "error", err)
			}
			m.release(g)
		})
	}
	return write, release, nil
}

func writeSnapshot(w io.Writer, r pebbledb.Reader) error {
	crc := crc32.New(castagnoli)
	b := bufio.NewWriterSize(io.MultiWriter(w, crc), 64<<10)
	b.WriteString(snapshotMagic) // bufio keeps the first error for Flush
	b.WriteByte(snapshotVersion)
	var count uint64
	var n [binary.MaxVarintLen64]byte
	err := scan(r, nil, nil, func(k, v []byte) error {
		count++
		b.Write(binary.AppendUvarint(n[:0], uint64(len(k))))
		b.Write(k)
		b.Write(binary.AppendUvarint(n[:0], uint64(len(v))))
		_, err := b.Write(v)
		return err
	})
	if err != nil {
		return fmt.Errorf("write ledger snapshot: %w", err)
	}
	b.WriteByte(0)
	b.Write(binary.AppendUvarint(n[:0], count))
	if err := b.Flush(); err != nil {
		return fmt.Errorf("write ledger snapshot: %w", err)
	}
	_, err = w.Write(binary.BigEndian.AppendUint32(n[:0], crc.Sum32()))
	return err
}

// Restore is part of raftgroup.Machine. All is read and verified into a new
// database, flushed, and only then named by the marker. A crash before that
// leaves the old content, and the node asks for the snapshot again.
func (m *Machine) Restore(r io.Reader) (err error) {
	defer func() {
		if err != nil {
			m.breakWith(err)
		}
	}()
	defer guard(&err, "restore ledger")
	m.mu.Lock()
	old, broken := m.cur, m.broken
	m.mu.Unlock()
	switch {
	case broken != nil:
		return broken
	case old == nil:
		return errClosed
	}
	name, err := nextName(old.name)
	if err != nil {
		return fmt.Errorf("restore ledger: %w", err)
	}
	if err := m.cfg.fs.RemoveAll(m.path(name)); err != nil {
		return fmt.Errorf("restore ledger: %w", err)
	}
	db, err := m.openDB(name)
	if err != nil {
		return fmt.Errorf("restore ledger: %w", err)
	}
	count, err := readSnapshot(r, db)
	if err == nil {
		err = db.Flush() // the tables and the manifest are durable after it
	}
	if err == nil {
		err = m.load(db)
	}
	if err == nil {
		err = m.marker.Move(name)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("restore ledger: %w", err), db.Close())
	}
	m.mu.Lock()
	m.cur = &generation{db: db, name: name}
	m.mu.Unlock()
	m.logger.Info("ledger restored from a snapshot", "index", m.applied.Load(), "keys", count)
	m.drop(m.takeWaiting())
	if err := m.retire(old); err != nil {
		m.logger.Warn("replaced ledger does not close", "error", err)
	}
	// What stays behind is removed on the next open.
	if err := errors.Join(m.cfg.fs.RemoveAll(m.path(old.name)), m.marker.RemoveObsolete()); err != nil {
		m.logger.Warn("replaced ledger is not removed", "error", err)
	}
	return nil
}

// summedReader runs the checksum of what is taken from it.
type summedReader struct {
	r   *bufio.Reader
	crc uint32
}

func (s *summedReader) ReadByte() (byte, error) {
	c, err := s.r.ReadByte()
	if err == nil {
		s.crc = crc32.Update(s.crc, castagnoli, []byte{c})
	}
	return c, err
}

func (s *summedReader) full(b []byte) error {
	_, err := io.ReadFull(s.r, b)
	s.crc = crc32.Update(s.crc, castagnoli, b)
	return err
}

// grown reads n bytes into buf.
func (s *summedReader) grown(buf []byte, n uint64) ([]byte, error) {
	if n > maxPair {
		return nil, fmt.Errorf("a length of %d is too large", n)
	}
	if uint64(cap(buf)) < n {
		buf = make([]byte, n)
	}
	return buf[:n], s.full(buf[:n])
}

// readSnapshot writes what r holds into db and returns the number of pairs. It
// reads r to its end: beneath us raftgroup checks its own sum there.
func readSnapshot(r io.Reader, db *pebbledb.DB) (uint64, error) {
	s := &summedReader{r: bufio.NewReaderSize(r, 64<<10)}
	count, err := s.pairs(db)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return 0, fmt.Errorf("read ledger snapshot: %w", err)
	}
	return count, nil
}

func (s *summedReader) pairs(db *pebbledb.DB) (uint64, error) {
	head := make([]byte, len(snapshotMagic)+1)
	if err := s.full(head); err != nil {
		return 0, err
	}
	if string(head[:len(snapshotMagic)]) != snapshotMagic {
		return 0, errors.New("this is not a ledger snapshot")
	}
	if v := head[len(snapshotMagic)]; v != snapshotVersion {
		return 0, fmt.Errorf("format %d is unknown, this program knows %d: run a newer bailiwick-control", v, snapshotVersion)
	}
	b := db.NewBatch()
	defer func() { b.Close() }()
	var key, value []byte
	var count uint64
	for {
		n, err := binary.ReadUvarint(s)
		if err != nil {
			return 0, err
		}
		if n == 0 {
			break
		}
		if key, err = s.grown(key, n); err != nil {
			return 0, err
		}
		if !known(key) {
			return 0, errors.New("it holds a kind of key that this program does not know: run a newer bailiwick-control")
		}
		if n, err = binary.ReadUvarint(s); err != nil {
			return 0, err
		}
		if value, err = s.grown(value, n); err != nil {
			return 0, err
		}
		if err := b.Set(key, value, nil); err != nil {
			return 0, err
		}
		count++
		if b.Len() < restoreBatch {
			continue
		}
		if err := db.Apply(b, pebbledb.NoSync); err != nil {
			return 0, err
		}
		b.Close()
		b = db.NewBatch()
	}
	want, err := binary.ReadUvarint(s)
	if err != nil {
		return 0, err
	}
	if want != count {
		return 0, fmt.Errorf("it holds %d pairs instead of %d", count, want)
	}
	sum := s.crc
	var tail [4]byte
	if err := s.full(tail[:]); err != nil {
		return 0, err
	}
	if got := binary.BigEndian.Uint32(tail[:]); got != sum {
		return 0, fmt.Errorf("its checksum is %08x instead of %08x", sum, got)
	}
	switch _, err := s.r.ReadByte(); {
	case err == nil:
		return 0, errors.New("something follows its end")
	case err != io.EOF:
		return 0, err
	}
	return count, db.Apply(b, pebbledb.NoSync)
}

func known(key []byte) bool {
	k := string(key)
	return k == string(keyApplied) || k == string(keyOutbox) || slices.ContainsFunc(prefixes[:], func(p string) bool { return strings.HasPrefix(k, p) })
}

package ledger

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"

	pebbledb "github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/atomicfs"
)

// The directory holds one pebble database, db-<n>, and a marker file whose name
// says which n. Restore writes db-<n+1> beside it and moves the marker, which is
// atomic and durable; whatever the marker does not name is removed on open. So a
// crash inside Restore leaves either the whole old or the whole new content.
const (
	markerName = "ledger"
	dbPrefix   = "db-"
)

// format is pinned: a pebble upgrade must not write files that the release
// before cannot read until we say so.
const format = pebbledb.FormatValueSeparation

// generation is one database and how many use it.
type generation struct {
	db   *pebbledb.DB
	name string
	uses int // under Machine.mu
}

func (m *Machine) path(name string) string { return m.cfg.fs.PathJoin(m.cfg.Dir, name) }

func (m *Machine) open() error {
	fs := m.cfg.fs
	if err := fs.MkdirAll(m.cfg.Dir, 0o700); err != nil {
		return err
	}
	if err := m.syncDir(fs.PathDir(m.cfg.Dir)); err != nil {
		return err
	}
	if f, err := fs.Open(m.path(condemnedName)); err == nil {
		index, err := io.ReadAll(io.LimitReader(f, 32))
		return errors.Join(errCondemned(strings.TrimSpace(string(index))), err, f.Close())
	}
	marker, name, err := atomicfs.LocateMarker(fs, m.cfg.Dir, markerName)
	if err != nil {
		return err
	}
	names, err := fs.List(m.cfg.Dir)
	if err != nil {
		return errors.Join(err, marker.Close())
	}
	for _, n := range names {
		if !strings.HasPrefix(n, dbPrefix) || n == name {
			continue
		}
		if name == "" { // the marker is written before the first database
			marker.Close()
			return fmt.Errorf("%s exists but no marker names it: this directory was tampered with: wipe it, the other nodes have the ledger", n)
		}
		if err := fs.RemoveAll(m.path(n)); err != nil { // of a Restore that a crash cut short
			return errors.Join(err, marker.Close())
		}
	}
	if name == "" {
		name = dbPrefix + "1"
		if err := marker.Move(name); err != nil {
			return errors.Join(err, marker.Close())
		}
	}
	db, err := m.openDB(name)
	if err == nil {
		if err = m.syncDir(m.cfg.Dir); err != nil { // names the database; pebble syncs only below it
			err = errors.Join(err, db.Close())
		}
	}
	if err == nil {
		if err = m.load(db); err != nil {
			err = errors.Join(err, db.Close())
		}
	}
	if err != nil {
		return errors.Join(err, marker.Close())
	}
	m.marker, m.cur = marker, &generation{db: db, name: name}
	return marker.RemoveObsolete()
}

func (m *Machine) syncDir(name string) error {
	d, err := m.cfg.fs.OpenDir(name)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func (m *Machine) openDB(name string) (*pebbledb.DB, error) {
	db, err := pebbledb.Open(m.path(name), &pebbledb.Options{
		FS:                 m.cfg.fs,
		FormatMajorVersion: format,
		Merger:             sumsMerger,
		Logger:             pebbleLogger{m},
		CacheSize:          16 << 20,
		MemTableSize:       16 << 20,
		EventListener: &pebbledb.EventListener{
			BackgroundError: func(err error) { m.logger.Error("ledger background work meets an error", "error", err) },
			// The event's own text names keys, and so customers.
			DataCorruption: func(i pebbledb.DataCorruptionInfo) {
				m.die(fmt.Errorf("read %s: it is corrupt: wipe this node's ledger and let it rejoin under a new name", i.Path))
			},
			DiskSlow: func(i pebbledb.DiskSlowInfo) {
				m.logger.Warn("ledger disk is slow", "operation", i.OpType.String(), "duration", i.Duration)
			},
		},
	})
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	return db, nil
}

// pebbleLogger keeps pebble from ending the process with the node unfenced.
type pebbleLogger struct{ m *Machine }

func (l pebbleLogger) Infof(string, ...any) {} // every flush and compaction, with key ranges
func (l pebbleLogger) Errorf(format string, args ...any) {
	l.m.logger.Error("ledger database meets an error", "error", fmt.Sprintf(format, args...))
}

// Fatalf must not return: pebble's state is undefined after it. The program is
// ended by OnFatal.
func (l pebbleLogger) Fatalf(format string, args ...any) {
	f := fatalError{text: fmt.Sprintf(format, args...)}
	for _, a := range args {
		if err, ok := a.(error); ok {
			f.cause = err
		}
	}
	l.m.die(f)
	select {}
}

// fatalError is what pebble prints before it would end the process, with the error in it: whether the disk is full decides
// what is done next.
type fatalError struct {
	text  string
	cause error
}

func (f fatalError) Error() string { return f.text }
func (f fatalError) Unwrap() error { return f.cause }

// watchedFS tells of a full disk before pebble hears of it. What pebble makes of one depends on who meets it: its log ends
// the process, by Fatalf or, where it changes files, by a panic that cannot be caught; a flush is tried again for ever, until
// the memory is full as well. The end is told here instead, once, while the reserve still gives room to end in order.
type watchedFS struct {
	vfs.FS
	full func(error)
}

func (w watchedFS) look(err error) error {
	if errors.Is(err, syscall.ENOSPC) {
		w.full(fmt.Errorf("write the ledger: %w", err))
	}
	return err
}

func (w watchedFS) file(f vfs.File, err error) (vfs.File, error) {
	if w.look(err) != nil {
		return nil, err
	}
	return watchedFile{f, w}, nil
}

func (w watchedFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return w.file(w.FS.Create(name, c))
}

func (w watchedFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, o ...vfs.OpenOption) (vfs.File, error) {
	return w.file(w.FS.OpenReadWrite(name, c, o...))
}

func (w watchedFS) ReuseForWrite(old, name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return w.file(w.FS.ReuseForWrite(old, name, c))
}

func (w watchedFS) Link(old, name string) error   { return w.look(w.FS.Link(old, name)) }
func (w watchedFS) Rename(old, name string) error { return w.look(w.FS.Rename(old, name)) }
func (w watchedFS) Unwrap() vfs.FS                { return w.FS }

type watchedFile struct {
	vfs.File
	fs watchedFS
}

func (f watchedFile) Write(p []byte) (int, error) {
	n, err := f.File.Write(p)
	return n, f.fs.look(err)
}

func (f watchedFile) WriteAt(p []byte, off int64) (int, error) {
	n, err := f.File.WriteAt(p, off)
	return n, f.fs.look(err)
}

func (f watchedFile) Preallocate(off, length int64) error {
	return f.fs.look(f.File.Preallocate(off, length))
}

func (f watchedFile) Sync() error     { return f.fs.look(f.File.Sync()) }
func (f watchedFile) SyncData() error { return f.fs.look(f.File.SyncData()) }

func (f watchedFile) SyncTo(length int64) (bool, error) {
	full, err := f.File.SyncTo(length)
	return full, f.fs.look(err)
}

// privateFS makes every file readable by its owner alone.
type privateFS struct{ vfs.FS }

func (p privateFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return p.private(p.FS.Create(name, c))(name)
}

func (p privateFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, o ...vfs.OpenOption) (vfs.File, error) {
	return p.private(p.FS.OpenReadWrite(name, c, o...))(name)
}

func (p privateFS) private(f vfs.File, err error) func(string) (vfs.File, error) {
	return func(name string) (vfs.File, error) {
		if err != nil {
			return nil, err
		}
		if err := os.Chmod(name, 0o600); err != nil {
			return nil, errors.Join(err, f.Close())
		}
		return f, nil
	}
}

func (p privateFS) Lock(name string) (io.Closer, error) {
	c, err := p.FS.Lock(name)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(name, 0o600); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

func (p privateFS) MkdirAll(dir string, _ os.FileMode) error { return p.FS.MkdirAll(dir, 0o700) }
func (p privateFS) Unwrap() vfs.FS                           { return p.FS }

// acquire pins the current database, so that Restore and Close cannot pull it
// away from under a reader.
func (m *Machine) acquire() (*generation, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.broken != nil:
		return nil, m.broken
	case m.cur == nil:
		return nil, errClosed
	}
	m.cur.uses++
	return m.cur, nil
}

func (m *Machine) release(g *generation) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if g.uses--; g.uses == 0 {
		m.idle.Broadcast()
	}
}

// retire waits until nobody uses g, then closes it.
func (m *Machine) retire(g *generation) error {
	m.mu.Lock()
	for g.uses > 0 {
		m.idle.Wait()
	}
	m.mu.Unlock()
	return g.db.Close()
}

// Close waits for readers, flushes and closes. Nothing is lost without it.
func (m *Machine) Close() (err error) {
	m.mu.Lock()
	g := m.cur
	m.cur = nil
	m.mu.Unlock()
	if g == nil {
		return nil
	}
	defer guard(&err, "close ledger")
	m.drop(m.takeWaiting())
	return errors.Join(m.retire(g), m.marker.Close())
}

// StateHash is a SHA-256 over the whole state, and the index it stands at: two
// nodes at one index must agree. It reads everything.
func (m *Machine) StateHash() (index uint64, sum [32]byte, err error) {
	g, err := m.acquire()
	if err != nil {
		return 0, sum, err
	}
	defer m.release(g)
	defer guard(&err, "hash ledger")
	snap := g.db.NewSnapshot()
	defer snap.Close()
	if index, err = readApplied(snap); err != nil {
		return 0, sum, err
	}
	h := sha256.New()
	if err := scan(snap, nil, nil, func(k, v []byte) error { hashPair(h, k, v); return nil }); err != nil {
		return 0, sum, fmt.Errorf("hash ledger: %w", err)
	}
	return index, [32]byte(h.Sum(nil)), nil
}

func hashPair(h hash.Hash, k, v []byte) {
	var n [2 * binary.MaxVarintLen64]byte
	h.Write(binary.AppendUvarint(binary.AppendUvarint(n[:0], uint64(len(k))), uint64(len(v))))
	h.Write(k)
	h.Write(v)
}

func nextName(name string) (string, error) {
	n, err := strconv.ParseUint(strings.TrimPrefix(name, dbPrefix), 10, 64)
	if err != nil {
		return "", fmt.Errorf("the database's name %q is malformed", name)
	}
	return dbPrefix + strconv.FormatUint(n+1, 10), nil
}

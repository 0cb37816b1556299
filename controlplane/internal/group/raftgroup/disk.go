package raftgroup

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"runtime/debug"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/raft"
	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// disk is what raft needs of a disk: its log, its term and its vote.
type disk interface {
	raft.LogStore
	raft.StableStore
	Close() error

	// StageCommitIndex and GetCommitIndex keep, some writes late, how far the log is known to be committed.
	StageCommitIndex(index uint64)
	GetCommitIndex() (uint64, error)
}

// ErrCorrupt is in the chain of every error that says a record of the log does
// not match its checksum.
var ErrCorrupt = errors.New("the raft log is corrupt")

func corrupt(path string, index uint64, why string) error {
	return fmt.Errorf("read entry %d of %s: %s: %w: this node neither votes nor leads: wipe its directory and let it rejoin under a new name",
		index, path, why, ErrCorrupt)
}

var (
	castagnoli   = crc32.MakeTable(crc32.Castagnoli)
	logBucket    = []byte("log")
	stableBucket = []byte("stable")
	metaBucket   = []byte("meta")
	formatKey    = []byte("format")
	commitKey    = []byte("CommitIndex")   // in stableBucket
	termKey      = []byte("CurrentTerm")   // in stableBucket; raft's key
	errNotFound  = errors.New("not found") // raft compares this text
)

// diskFormat is the newest version of the file's records that this program knows
// and refuses to go beyond; formatBorn is that of a file without a member record.
const (
	formatBorn = 1
	diskFormat = formatMember
)

// boltDisk keeps log and stable values in one bbolt file. Published stores
// do not verify records on read (dependencies.md §1.1), so this one's carry a
// CRC32C over index, term, type and data. The freelist is rebuilt on open rather
// than synced: syncing it wrote megabytes per entry in the Roblox outage.
type boltDisk struct {
	db     *bolt.DB
	path   string
	staged atomic.Uint64 // commit index that the next StoreLogs writes along
}

// openDisk proves the file before it opens it for writing: bbolt's own scan for
// free pages runs on a goroutine of its own, where a page that makes no sense
// would end the process without a word that helps.
func openDisk(path string) (*boltDisk, error) {
	if fi, err := os.Stat(path); err == nil && fi.Size() > 0 {
		if err := proveFile(path); err != nil {
			return nil, err
		}
	}
	db, err := openBolt(path, false)
	if err != nil {
		return nil, err
	}
	err = db.Update(func(tx *bolt.Tx) error {
		for _, name := range [][]byte{logBucket, stableBucket, metaBucket} {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		meta := tx.Bucket(metaBucket)
		if v := meta.Get(formatKey); v != nil {
			return checkFormat(v)
		}
		return meta.Put(formatKey, []byte{formatBorn})
	})
	if err != nil {
		db.Close()
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return &boltDisk{db: db, path: path}, nil
}

func openBolt(path string, readOnly bool) (*bolt.DB, error) {
	db, err := bolt.Open(path, 0o600, &bolt.Options{
		Timeout: time.Second, NoFreelistSync: true, FreelistType: bolt.FreelistMapType, ReadOnly: readOnly,
	})
	if errors.Is(err, bolterrors.ErrTimeout) {
		return nil, fmt.Errorf("open %s: another process holds it: %w", path, err)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return db, nil
}

// proveFile reads every record: a node that would only meet a bad one later
// could have voted or led by then.
func proveFile(path string) (err error) {
	defer func() { // bbolt panics on pages it cannot make sense of
		if p := recover(); p != nil {
			err = corrupt(path, 0, fmt.Sprint(p))
		}
	}()
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true)) // a file cut short is a fault under its mmap
	db, err := openBolt(path, true)
	var errno syscall.Errno
	switch {
	case err == nil:
	case errors.Is(err, bolterrors.ErrTimeout), errors.As(err, &errno): // held, or not ours to read
		return err
	default:
		return corrupt(path, 0, err.Error())
	}
	defer db.Close()
	fi, err := os.Stat(path)
	if err != nil {
		return err
	}
	// The rest of a page behind the end of a file reads as zeros, which bbolt
	// takes for an empty tree.
	err = db.View(func(tx *bolt.Tx) error {
		if fi.Size() < tx.Size() {
			return corrupt(path, 0, fmt.Sprintf("it holds %d bytes instead of %d", fi.Size(), tx.Size()))
		}
		if b := tx.Bucket(metaBucket); tx.ID() > 1 && (b == nil || b.Get(formatKey) == nil) {
			return corrupt(path, 0, "its format record is missing")
		}
		return nil
	})
	if err != nil {
		return err
	}
	return (&boltDisk{db: db, path: path}).verify()
}

func (d *boltDisk) verify() error {
	var prev uint64
	return d.db.View(func(tx *bolt.Tx) error {
		each := func(bucket []byte, do func(k, v []byte) error) error {
			if b := tx.Bucket(bucket); b != nil { // else stopped while it was made
				return b.ForEach(do)
			}
			return nil
		}
		if err := each(metaBucket, func(k, v []byte) error {
			if bytes.Equal(k, memberKey) {
				_, err := d.openStable(k, v)
				return err
			}
			return checkFormat(v)
		}); err != nil {
			return fmt.Errorf("open %s: %w", d.path, err)
		}
		var l raft.Log
		err := each(logBucket, func(k, v []byte) error {
			if len(k) != 8 {
				return corrupt(d.path, prev+1, "its key is malformed")
			}
			index := binary.BigEndian.Uint64(k)
			if prev != 0 && index != prev+1 {
				return corrupt(d.path, prev+1, "it is missing")
			}
			prev = index
			return d.decode(index, v, &l)
		})
		if err != nil {
			return err
		}
		return each(stableBucket, func(k, v []byte) error {
			_, err := d.openStable(k, v)
			return err
		})
	})
}

func checkFormat(v []byte) error {
	if len(v) != 1 || v[0] > diskFormat {
		return fmt.Errorf("format %v is newer than %d: it was written by a newer bailiwick-control: run that one", v, diskFormat)
	}
	return nil
}

func (d *boltDisk) Close() error { return d.db.Close() }

// IsMonotonic tells raft that indexes here have no gaps, so that it drops the
// old log after it installed a snapshot from the leader.
func (d *boltDisk) IsMonotonic() bool { return true }

func (d *boltDisk) FirstIndex() (uint64, error) { return d.edge((*bolt.Cursor).First) }
func (d *boltDisk) LastIndex() (uint64, error)  { return d.edge((*bolt.Cursor).Last) }

func (d *boltDisk) edge(at func(*bolt.Cursor) ([]byte, []byte)) (index uint64, err error) {
	err = d.db.View(func(tx *bolt.Tx) error {
		if k, _ := at(tx.Bucket(logBucket).Cursor()); len(k) == 8 {
			index = binary.BigEndian.Uint64(k)
		}
		return nil
	})
	return index, err
}

func (d *boltDisk) GetLog(index uint64, l *raft.Log) error {
	return d.db.View(func(tx *bolt.Tx) error {
		v := tx.Bucket(logBucket).Get(indexKey(index))
		if v == nil {
			return raft.ErrLogNotFound
		}
		return d.decode(index, v, l)
	})
}

func (d *boltDisk) StoreLog(l *raft.Log) error { return d.StoreLogs([]*raft.Log{l}) }

// StoreLogs is one transaction, and so one fsync, whatever the batch.
func (d *boltDisk) StoreLogs(logs []*raft.Log) error {
	return d.db.Update(func(tx *bolt.Tx) error {
		b := tx.Bucket(logBucket)
		b.FillPercent = 0.9 // the log only grows at its end
		for _, l := range logs {
			if err := b.Put(indexKey(l.Index), encodeLog(l)); err != nil {
				return fmt.Errorf("store entry %d: %w", l.Index, err)
			}
		}
		if n := len(logs); n > 0 {
			if staged := min(d.staged.Load(), logs[n-1].Index); staged > 0 {
				return tx.Bucket(stableBucket).Put(commitKey, sealStable(commitKey, be64(staged)))
			}
		}
		return nil
	})
}

// StageCommitIndex remembers how far the log is known to be committed; the next StoreLogs writes it along. A
// node that starts again thereby knows its state as of a few writes ago before it hears from anybody.
func (d *boltDisk) StageCommitIndex(index uint64) { d.staged.Store(index) }

// GetCommitIndex is what was written along, 0 if nothing was; never beyond the end of the log.
func (d *boltDisk) GetCommitIndex() (uint64, error) {
	index, err := d.GetUint64(commitKey)
	if errors.Is(err, errNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	last, err := d.LastIndex()
	return min(index, last), err
}

// DeleteRange is one transaction: the watchdog calls it in chunks.
func (d *boltDisk) DeleteRange(lo, hi uint64) error {
	return d.db.Update(func(tx *bolt.Tx) error {
		b := tx.Bucket(logBucket)
		for i := lo; i <= hi; i++ {
			if err := b.Delete(indexKey(i)); err != nil {
				return fmt.Errorf("delete entry %d: %w", i, err)
			}
		}
		return nil
	})
}

func (d *boltDisk) Set(key, val []byte) error {
	return d.db.Update(func(tx *bolt.Tx) error {
		return tx.Bucket(stableBucket).Put(key, sealStable(key, val))
	})
}

func sealStable(key, val []byte) []byte {
	rec := binary.BigEndian.AppendUint32(nil, crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, val))
	return append(rec, val...)
}

func (d *boltDisk) Get(key []byte) (val []byte, err error) {
	err = d.db.View(func(tx *bolt.Tx) error {
		rec := tx.Bucket(stableBucket).Get(key)
		if rec == nil {
			return errNotFound
		}
		val, err = d.openStable(key, rec)
		return err
	})
	return val, err
}

func (d *boltDisk) openStable(key, rec []byte) ([]byte, error) {
	if len(rec) < 4 || binary.BigEndian.Uint32(rec) != crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, rec[4:]) {
		return nil, fmt.Errorf("read %s of %s: its checksum differs: %w: wipe this node's directory and let it rejoin under a new name", key, d.path, ErrCorrupt)
	}
	return append([]byte(nil), rec[4:]...), nil
}

func (d *boltDisk) SetUint64(key []byte, val uint64) error {
	return d.Set(key, be64(val))
}

func (d *boltDisk) GetUint64(key []byte) (uint64, error) {
	v, err := d.Get(key)
	if err != nil {
		return 0, err
	}
	if len(v) != 8 {
		return 0, fmt.Errorf("read %s of %s: %d bytes instead of 8: %w", key, d.path, len(v), ErrCorrupt)
	}
	return binary.BigEndian.Uint64(v), nil
}

func be64(v uint64) []byte     { return binary.BigEndian.AppendUint64(nil, v) }
func indexKey(i uint64) []byte { return be64(i) }

// A record is crc32c, then term u64, type u8, appended-at i64, length of the
// extensions u32, extensions, data; all big-endian. The checksum is over the
// index and all that follows it.
const recordHeader = 4 + 8 + 1 + 8 + 4

func encodeLog(l *raft.Log) []byte {
	b := make([]byte, 4, recordHeader+len(l.Extensions)+len(l.Data))
	b = binary.BigEndian.AppendUint64(b, l.Term)
	b = append(b, byte(l.Type))
	var at int64
	if !l.AppendedAt.IsZero() {
		at = l.AppendedAt.UnixNano()
	}
	b = binary.BigEndian.AppendUint64(b, uint64(at))
	b = binary.BigEndian.AppendUint32(b, uint32(len(l.Extensions)))
	b = append(b, l.Extensions...)
	b = append(b, l.Data...)
	binary.BigEndian.PutUint32(b, logSum(l.Index, b[4:]))
	return b
}

func logSum(index uint64, rest []byte) uint32 {
	return crc32.Update(crc32.Checksum(indexKey(index), castagnoli), castagnoli, rest)
}

func (d *boltDisk) decode(index uint64, rec []byte, l *raft.Log) error {
	if len(rec) < recordHeader {
		return corrupt(d.path, index, "it is cut short")
	}
	if got, want := logSum(index, rec[4:]), binary.BigEndian.Uint32(rec); got != want {
		return corrupt(d.path, index, fmt.Sprintf("its checksum is %08x instead of %08x", got, want))
	}
	ext := binary.BigEndian.Uint32(rec[21:])
	if uint64(recordHeader)+uint64(ext) > uint64(len(rec)) {
		return corrupt(d.path, index, "its extensions are cut short")
	}
	*l = raft.Log{Index: index, Term: binary.BigEndian.Uint64(rec[4:]), Type: raft.LogType(rec[12])}
	if at := int64(binary.BigEndian.Uint64(rec[13:])); at != 0 {
		l.AppendedAt = time.Unix(0, at)
	}
	body := append([]byte(nil), rec[recordHeader:]...) // rec is the mmap, gone with the transaction
	if ext > 0 {
		l.Extensions = body[:ext:ext]
	}
	l.Data = body[ext:]
	return nil
}

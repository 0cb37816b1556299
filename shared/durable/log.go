package durable

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
)

// MaxRecord is the largest payload of a log record.
const MaxRecord = 64 << 20

const (
	recHead     = 8 // length u32, crc32c of the length
	recOverhead = recHead + 4
)

// Log is an append-only file of records:
//
//	header | { len u32 | crc32c u32 of len | payload | crc32c u32 of payload }*
//
// The length carries its own checksum: otherwise one flipped bit in a length
// near the end would look like a torn tail and quietly cut good records off.
//
// All methods may be called at once; Append and Truncate exclude each other,
// Sync runs beside them (group commit: many Appends, one Sync). After a write
// or sync error the log answers every call with that error: the kernel may have
// dropped the pages and marked them clean, so a retried fsync that succeeds
// proves nothing (Rebello et al., ATC 2020). Open it again to learn what is there.
type Log struct {
	path string
	f    File

	mu   sync.Mutex // covers size, buf and err, and the write that moves size
	size int64
	buf  []byte
	err  error
}

// LogState is what OpenLog found.
type LogState struct {
	Header  Header // of the file: who wrote it, in which version
	Created bool   // there was no file
	Records int    // intact records, each given to the callback
	Torn    int64  // bytes cut off the end because the last write was not finished
}

// OpenLog opens or creates the log at path and gives every intact record to
// each, in order, with the offset at which it starts. The payload is valid only
// during the call. An error of each ends the opening and is returned wrapped.
//
// A record whose declared end lies past the end of the file is a torn tail: it
// is cut, the cut synced, and its length reported. So is a tail of nothing but
// zeros, which a file system leaves when it grew the file before the data
// reached the disk. Everything else that does not check out is ErrCorrupt, and
// the file is left as it is. A version newer than h.Version is ErrNewer. A file
// of an older version opens; the caller looks at LogState.Header.Version.
//
// One process, one Log per path at a time.
func OpenLog(fsys FS, path string, h Header, each func(off int64, payload []byte) error) (*Log, LogState, error) {
	if err := h.check(); err != nil {
		return nil, LogState{}, fmt.Errorf("open log %s: %w", path, err)
	}
	var st LogState
	f, err := fsys.OpenFile(path, os.O_RDWR, FilePerm)
	if errors.Is(err, fs.ErrNotExist) {
		// Through a rename, so that a log without a whole header never exists.
		if err := WriteFileAtomic(fsys, path, h.append(nil), FilePerm); err != nil {
			return nil, st, fmt.Errorf("create log: %w", err)
		}
		st.Created = true
		f, err = fsys.OpenFile(path, os.O_RDWR, FilePerm)
	}
	if err != nil {
		return nil, st, fmt.Errorf("open log: %w", err)
	}
	l := &Log{path: path, f: f}
	if err := l.load(fsys, h, &st, each); err != nil {
		f.Close()
		return nil, st, err
	}
	return l, st, nil
}

func (l *Log) load(fsys FS, h Header, st *LogState, each func(int64, []byte) error) error {
	found, err := readHeader(l.f, l.path, h)
	st.Header = found
	if err != nil {
		return err
	}
	info, err := l.f.Stat()
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	end := info.Size()
	off, err := l.scan(found.size(), end, func(off int64, payload []byte) error {
		st.Records++
		if each == nil {
			return nil
		}
		return each(off, payload)
	})
	if err != nil {
		return err
	}
	if off < end {
		st.Torn = end - off
		if err := l.f.Truncate(off); err != nil {
			return fmt.Errorf("cut torn tail of log: %w", err)
		}
	}
	// Also what was whole may never have been synced, nor the file's name, if
	// whoever made it failed or was killed before that; from here on it counts
	// as read, so it must not vanish at the next crash.
	if !st.Created {
		if err := l.f.Sync(); err != nil {
			return fmt.Errorf("sync log: %w", err)
		}
		if err := fsys.SyncDir(filepath.Dir(l.path)); err != nil {
			return fmt.Errorf("sync log: %w", err)
		}
	}
	l.size = off
	return nil
}

// scan gives the whole records from off to end to each and returns where they end: at end, or at a torn tail.
func (l *Log) scan(off, end int64, each func(int64, []byte) error) (int64, error) {
	if _, err := l.f.Seek(off, io.SeekStart); err != nil {
		return off, fmt.Errorf("open log: %w", err)
	}
	var (
		r    = io.Reader(newReader(l.f))
		head [recHead]byte
		buf  []byte
	)
	for off < end {
		if end-off < recHead {
			break // torn within the length word
		}
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return off, fmt.Errorf("read log %s at byte %d: %w", l.path, off, err)
		}
		if head == [recHead]byte{} {
			zero, err := allZero(r)
			if err != nil {
				return off, fmt.Errorf("read log %s at byte %d: %w", l.path, off, err)
			}
			if zero {
				break
			}
		}
		if checksum(head[:4]) != binary.LittleEndian.Uint32(head[4:]) {
			return off, &CorruptError{l.path, off, "checksum of a record's length differs"}
		}
		n := int64(binary.LittleEndian.Uint32(head[:4]))
		if n > MaxRecord {
			return off, &CorruptError{l.path, off, fmt.Sprintf("record of %d bytes, at most %d are written", n, MaxRecord)}
		}
		if end-off < n+recOverhead {
			break // torn within the record
		}
		if int64(cap(buf)) < n+4 {
			buf = make([]byte, n+4)
		}
		buf = buf[:n+4]
		if _, err := io.ReadFull(r, buf); err != nil {
			return off, fmt.Errorf("read log %s at byte %d: %w", l.path, off, err)
		}
		if checksum(buf[:n]) != binary.LittleEndian.Uint32(buf[n:]) {
			return off, &CorruptError{l.path, off, "checksum of a record differs"}
		}
		if err := each(off, buf[:n:n]); err != nil {
			return off, fmt.Errorf("replay log %s at byte %d: %w", l.path, off, err)
		}
		off += n + recOverhead
	}
	return off, nil
}

// ErrStop, returned by a callback of ReadLog, ends the reading without an error.
var ErrStop = errors.New("stop")

// ReadLog gives every whole record of the log at path to each, in order, beside the process that appends to it: it
// changes nothing, and a last record that is not whole (yet) is the end. end is where reading stopped. Errors are as
// those of OpenLog.
func ReadLog(fsys FS, path string, h Header, each func(off int64, payload []byte) error) (found Header, end int64, err error) {
	f, err := fsys.Open(path)
	if err != nil {
		return found, 0, fmt.Errorf("open log: %w", err)
	}
	defer f.Close()
	l := &Log{path: path, f: f}
	if found, err = readHeader(f, path, h); err != nil {
		return found, 0, err
	}
	info, err := f.Stat()
	if err != nil {
		return found, 0, fmt.Errorf("open log: %w", err)
	}
	end, err = l.scan(found.size(), info.Size(), each)
	if errors.Is(err, ErrStop) {
		err = nil
	}
	return found, end, err
}

// Append writes one record at the end. It survives a kill of the process at
// once, a crash of the machine after the next Sync.
func (l *Log) Append(payload []byte) error {
	if len(payload) > MaxRecord {
		return fmt.Errorf("append to log %s: %d bytes, at most %d allowed", l.path, len(payload), MaxRecord)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return l.err
	}
	b := binary.LittleEndian.AppendUint32(l.buf[:0], uint32(len(payload)))
	b = binary.LittleEndian.AppendUint32(b, checksum(b))
	b = append(b, payload...)
	b = binary.LittleEndian.AppendUint32(b, checksum(payload))
	if cap(b) <= 1<<20 {
		l.buf = b[:0] // keep it, but not for ever the largest ever written
	}
	if _, err := l.f.WriteAt(b, l.size); err != nil {
		return l.fail(fmt.Errorf("append to log: %w", err))
	}
	l.size += int64(len(b))
	return nil
}

// Sync makes every record durable whose Append returned before Sync was called.
func (l *Log) Sync() error {
	l.mu.Lock()
	err := l.err
	l.mu.Unlock()
	if err != nil {
		return err
	}
	if err := l.f.Sync(); err != nil { // not under mu: an fsync takes as long as it takes
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.fail(fmt.Errorf("sync log: %w", err))
	}
	return nil
}

// Truncate cuts the log to size bytes, which must be where a record starts or
// ends, and syncs the cut.
func (l *Log) Truncate(size int64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return l.err
	}
	if size > l.size || size < headFixed {
		return fmt.Errorf("truncate log %s to %d bytes: it has %d", l.path, size, l.size)
	}
	if err := l.f.Truncate(size); err != nil {
		return l.fail(fmt.Errorf("truncate log: %w", err))
	}
	l.size = size
	if err := l.f.Sync(); err != nil {
		return l.fail(fmt.Errorf("sync log: %w", err))
	}
	return nil
}

// Record reads the record that starts at off, an offset that OpenLog gave or Size before an Append, beside any Append.
func (l *Log) Record(off int64) ([]byte, error) {
	var head [recHead]byte
	if _, err := l.f.ReadAt(head[:], off); err != nil {
		return nil, fmt.Errorf("read log %s at byte %d: %w", l.path, off, err)
	}
	n := binary.LittleEndian.Uint32(head[:4])
	if checksum(head[:4]) != binary.LittleEndian.Uint32(head[4:]) || n > MaxRecord {
		return nil, &CorruptError{l.path, off, "checksum of a record's length differs"}
	}
	buf := make([]byte, n+4)
	if _, err := l.f.ReadAt(buf, off+recHead); err != nil {
		return nil, fmt.Errorf("read log %s at byte %d: %w", l.path, off, err)
	}
	if checksum(buf[:n]) != binary.LittleEndian.Uint32(buf[n:]) {
		return nil, &CorruptError{l.path, off, "checksum of a record differs"}
	}
	return buf[:n:n], nil
}

// Size is the length of the file, header included.
func (l *Log) Size() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.size
}

// Path is where the log lies.
func (l *Log) Path() string { return l.path }

// Close does not sync. No other call may be under way.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil {
		l.err = fmt.Errorf("use log %s: %w", l.path, fs.ErrClosed)
	}
	return l.f.Close()
}

func (l *Log) fail(err error) error {
	if l.err == nil {
		l.err = err
	}
	return err
}

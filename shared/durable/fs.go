// Package durable owns the bytes a program must find again after a crash: a
// small file system interface, atomic replacement of a file, an append-only log
// of checksummed records, and sealed one-blob files.
//
// It never decides what is stored or when to sync, and never repairs silently:
// a torn tail is cut and reported, anything else that does not check out is
// ErrCorrupt. What survives a crash is said at each function. Functions may be
// called at once for different paths; a Log says for itself.
package durable

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// Permissions of everything a daemon writes: only its own user reads it.
const (
	DirPerm  fs.FileMode = 0o700
	FilePerm fs.FileMode = 0o600
)

// File is the part of *os.File that we use.
type File interface {
	io.Reader
	io.ReaderAt
	io.Writer
	io.WriterAt
	io.Seeker
	io.Closer
	Name() string
	Stat() (fs.FileInfo, error)
	Sync() error
	Truncate(size int64) error
}

// FS is all the disk the programs touch through this package, so that a crash
// or a failing fsync is a wrapper in a test (durabletest.FS) and not a machine.
// All methods may be called at once.
type FS interface {
	Open(name string) (File, error)
	// Create truncates. Its entry in the directory survives a crash only
	// after SyncDir, its content only after File.Sync.
	Create(name string) (File, error)
	OpenFile(name string, flag int, perm fs.FileMode) (File, error)
	// Rename replaces newname atomically. Durable only after SyncDir.
	Rename(oldname, newname string) error
	Remove(name string) error
	// MkdirAll is durable when it returns: directories are made rarely, and a
	// forgotten sync of a parent loses everything below.
	MkdirAll(path string, perm fs.FileMode) error
	ReadDir(path string) ([]fs.DirEntry, error)
	Stat(name string) (fs.FileInfo, error)
	// SyncDir makes the creations, renames and removals in a directory durable.
	SyncDir(path string) error
}

// OS is the real file system.
func OS() FS { return osFS{} }

type osFS struct{}

// orNil keeps a nil *os.File from becoming a non-nil File.
func orNil(f *os.File, err error) (File, error) {
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

type osFile struct{ *os.File }

func (f osFile) Sync() error { return Sync(f.File) }

func (osFS) Open(name string) (File, error) { return orNil(os.Open(name)) }
func (osFS) Create(name string) (File, error) {
	return orNil(os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_TRUNC, FilePerm))
}
func (osFS) OpenFile(name string, flag int, perm fs.FileMode) (File, error) {
	return orNil(os.OpenFile(name, flag, perm))
}
func (osFS) Rename(o, n string) error                   { return os.Rename(o, n) }
func (osFS) Remove(name string) error                   { return os.Remove(name) }
func (osFS) ReadDir(path string) ([]fs.DirEntry, error) { return os.ReadDir(path) }
func (osFS) Stat(name string) (fs.FileInfo, error)      { return os.Stat(name) }

func (o osFS) MkdirAll(path string, perm fs.FileMode) error {
	if info, err := os.Stat(path); err == nil {
		if !info.IsDir() {
			return &fs.PathError{Op: "mkdir", Path: path, Err: fs.ErrExist}
		}
		return nil
	}
	parent := filepath.Dir(path)
	if parent != path {
		if err := o.MkdirAll(parent, perm); err != nil {
			return err
		}
	}
	if err := os.Mkdir(path, perm); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return o.SyncDir(parent)
}

func (osFS) SyncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := Sync(d); err != nil {
		return fmt.Errorf("sync directory %s: %w", path, err)
	}
	return nil
}

// tmpSuffix marks a file that WriteFileAtomic had not finished. A fixed name: a
// crash leaves at most one behind per target, and the next write replaces it.
const tmpSuffix = ".tmp"

// WriteFileAtomic replaces path by data. After a crash at any moment path holds
// either the old content or all of the new; once this returned nil, the new.
// One writer per path at a time.
func WriteFileAtomic(fsys FS, path string, data []byte, perm fs.FileMode) error {
	if err := writeFileAtomic(fsys, path, data, perm); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

func writeFileAtomic(fsys FS, path string, data []byte, perm fs.FileMode) (err error) {
	tmp := path + tmpSuffix
	// Removed first: O_TRUNC on a leftover would keep the leftover's mode.
	if err := fsys.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := fsys.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm)
	if err != nil {
		return err
	}
	if _, err = f.Write(data); err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = fsys.Rename(tmp, path)
	}
	if err != nil {
		fsys.Remove(tmp) // best effort: on a full disk it gives the space back
		return err
	}
	return fsys.SyncDir(filepath.Dir(path))
}

// ReadFile reads a whole file of at most limit bytes; zero is no limit.
func ReadFile(fsys FS, path string, limit int64) ([]byte, error) {
	f, err := fsys.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if limit > 0 && info.Size() > limit {
		return nil, fmt.Errorf("read %s: %d bytes, at most %d allowed", path, info.Size(), limit)
	}
	data := make([]byte, info.Size())
	if _, err := io.ReadFull(f, data); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return data, nil
}

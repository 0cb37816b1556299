// Package durabletest owns a file system in memory that can crash: what was not
// synced is lost, as a disk may lose it.
//
// It is for tests only and never touches the disk. All methods may be called at
// once; Crash and CrashTorn invalidate every open file.
package durabletest

import (
	"errors"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"bailiwick/shared/durable"
)

// ErrCrashed is what a file answers that was open when the machine crashed.
var ErrCrashed = errors.New("file system crashed")

// FS is a durable.FS in memory. The zero value is not usable: call New.
//
// The model: a file has the content a process sees and the content that is
// durable, which Sync makes equal. A directory has the entries a process sees
// and those that are durable, which SyncDir makes equal; Rename moves an entry
// like any other change. MkdirAll is durable at once, as the contract says.
type FS struct {
	mu      sync.Mutex
	live    map[string]*inode // what processes see
	kept    map[string]*inode // what a crash leaves
	dirs    map[string]bool
	crashes int
	fault   func(op, path string) error
	syncs   int
}

type inode struct {
	data, kept []byte
	mode       fs.FileMode
}

var _ durable.FS = (*FS)(nil)

// New is an empty file system with the directories "/" and ".".
func New() *FS {
	return &FS{live: map[string]*inode{}, kept: map[string]*inode{}, dirs: map[string]bool{"/": true, ".": true}}
}

// Inject has every operation ask f first and fail with what it returns. op is
// one of open, read, write, truncate, sync, syncdir, rename, remove, mkdir,
// stat. A failed sync keeps nothing, as a real one may. nil injects nothing.
// f is called with a lock held: it must not use the file system.
func (m *FS) Inject(f func(op, path string) error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fault = f
}

// Syncs counts the successful syncs of files, for tests of group commit.
func (m *FS) Syncs() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.syncs
}

// Crash loses everything that was not synced.
func (m *FS) Crash() { m.crash(func(ino *inode) []byte { return ino.kept }) }

// CrashTorn crashes, but of each file's unsynced growth a random part reached
// the disk, as happens when the kernel was writing back at that moment.
func (m *FS) CrashTorn(r *rand.Rand) {
	m.crash(func(ino *inode) []byte {
		n := len(ino.kept)
		if len(ino.data) <= n || !slices.Equal(ino.data[:n], ino.kept) {
			return ino.kept // rewritten or cut in place, not grown
		}
		return ino.data[:n+r.IntN(len(ino.data)-n+1)]
	})
}

func (m *FS) crash(left func(*inode) []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.crashes++
	m.live = map[string]*inode{}
	for _, name := range slices.Sorted(maps.Keys(m.kept)) { // sorted: the same seed, the same crash
		ino := m.kept[name]
		data := left(ino)
		m.live[name] = &inode{data: slices.Clone(data), kept: slices.Clone(data), mode: ino.mode}
	}
	m.kept = maps.Clone(m.live)
}

// Corrupt changes what is stored at path, durably: bit rot, or a cut.
func (m *FS) Corrupt(path string, change func(data []byte) []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	ino := m.live[filepath.Clean(path)]
	if ino == nil {
		return pathError("corrupt", path, fs.ErrNotExist)
	}
	ino.data = slices.Clone(change(slices.Clone(ino.data))) // the caller may go on using its slice
	ino.kept = slices.Clone(ino.data)
	return nil
}

func pathError(op, path string, err error) error {
	return &fs.PathError{Op: op, Path: path, Err: err}
}

// ask is called with mu held.
func (m *FS) ask(op, path string) error {
	if m.fault != nil {
		if err := m.fault(op, path); err != nil {
			return pathError(op, path, err)
		}
	}
	return nil
}

func (m *FS) Open(name string) (durable.File, error) { return m.OpenFile(name, os.O_RDONLY, 0) }

func (m *FS) Create(name string) (durable.File, error) {
	return m.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_TRUNC, durable.FilePerm)
}

func (m *FS) OpenFile(name string, flag int, perm fs.FileMode) (durable.File, error) {
	name = filepath.Clean(name)
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.ask("open", name); err != nil {
		return nil, err
	}
	ino := m.live[name]
	switch {
	case m.dirs[name]:
		return nil, pathError("open", name, errors.New("is a directory"))
	case ino == nil && flag&os.O_CREATE == 0, !m.dirs[filepath.Dir(name)]:
		return nil, pathError("open", name, fs.ErrNotExist)
	case ino != nil && flag&os.O_EXCL != 0:
		return nil, pathError("open", name, fs.ErrExist)
	case ino == nil:
		ino = &inode{mode: perm}
		m.live[name] = ino
	case flag&os.O_TRUNC != 0:
		ino.data = nil
	}
	return &file{fs: m, ino: ino, name: name, flag: flag, born: m.crashes}, nil
}

func (m *FS) Rename(oldname, newname string) error {
	oldname, newname = filepath.Clean(oldname), filepath.Clean(newname)
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.ask("rename", newname); err != nil {
		return err
	}
	ino := m.live[oldname]
	if ino == nil || !m.dirs[filepath.Dir(newname)] {
		return pathError("rename", oldname, fs.ErrNotExist)
	}
	delete(m.live, oldname)
	m.live[newname] = ino
	return nil
}

func (m *FS) Remove(name string) error {
	name = filepath.Clean(name)
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.ask("remove", name); err != nil {
		return err
	}
	if m.dirs[name] {
		if len(m.children(name)) > 0 {
			return pathError("remove", name, errors.New("directory not empty"))
		}
		delete(m.dirs, name)
		return nil
	}
	if m.live[name] == nil {
		return pathError("remove", name, fs.ErrNotExist)
	}
	delete(m.live, name)
	return nil
}

func (m *FS) MkdirAll(path string, _ fs.FileMode) error {
	path = filepath.Clean(path)
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.ask("mkdir", path); err != nil {
		return err
	}
	for p := path; !m.dirs[p]; p = filepath.Dir(p) {
		if m.live[p] != nil {
			return pathError("mkdir", p, fs.ErrExist)
		}
		m.dirs[p] = true
	}
	return nil
}

func (m *FS) children(dir string) (names []string) {
	for name := range m.live {
		if filepath.Dir(name) == dir {
			names = append(names, name)
		}
	}
	for name := range m.dirs {
		if filepath.Dir(name) == dir && name != dir {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

func (m *FS) ReadDir(path string) ([]fs.DirEntry, error) {
	path = filepath.Clean(path)
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.dirs[path] {
		return nil, pathError("readdir", path, fs.ErrNotExist)
	}
	var out []fs.DirEntry
	for _, name := range m.children(path) {
		out = append(out, fs.FileInfoToDirEntry(m.info(name)))
	}
	return out, nil
}

func (m *FS) Stat(name string) (fs.FileInfo, error) {
	name = filepath.Clean(name)
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.ask("stat", name); err != nil {
		return nil, err
	}
	if !m.dirs[name] && m.live[name] == nil {
		return nil, pathError("stat", name, fs.ErrNotExist)
	}
	return m.info(name), nil
}

func (m *FS) info(name string) info {
	if m.dirs[name] {
		return info{name: filepath.Base(name), mode: fs.ModeDir | durable.DirPerm}
	}
	ino := m.live[name]
	return info{name: filepath.Base(name), size: int64(len(ino.data)), mode: ino.mode}
}

func (m *FS) SyncDir(path string) error {
	path = filepath.Clean(path)
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.ask("syncdir", path); err != nil {
		return err
	}
	if !m.dirs[path] {
		return pathError("syncdir", path, fs.ErrNotExist)
	}
	maps.DeleteFunc(m.kept, func(name string, _ *inode) bool { return filepath.Dir(name) == path })
	for name, ino := range m.live {
		if filepath.Dir(name) == path {
			m.kept[name] = ino
		}
	}
	return nil
}

// Files lists the paths of all files under dir, sorted.
func (m *FS) Files(dir string) (names []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for name := range m.live {
		if strings.HasPrefix(name, strings.TrimSuffix(filepath.Clean(dir), "/")+"/") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

type info struct {
	name string
	size int64
	mode fs.FileMode
}

func (i info) Name() string       { return i.name }
func (i info) Size() int64        { return i.size }
func (i info) Mode() fs.FileMode  { return i.mode }
func (i info) ModTime() time.Time { return time.Time{} }
func (i info) IsDir() bool        { return i.mode.IsDir() }
func (i info) Sys() any           { return nil }

type file struct {
	fs     *FS
	ino    *inode
	name   string
	flag   int
	born   int // crash count when opened
	pos    int64
	closed bool
}

// use locks the file system and says whether the file may be used for op. The
// caller unlocks, whatever the answer.
func (f *file) use(op string) error {
	f.fs.mu.Lock()
	switch {
	case f.closed:
		return pathError(op, f.name, fs.ErrClosed)
	case f.born != f.fs.crashes:
		return pathError(op, f.name, ErrCrashed)
	case (op == "write" || op == "truncate") && f.flag&(os.O_WRONLY|os.O_RDWR) == 0:
		return pathError(op, f.name, fs.ErrPermission)
	}
	return f.fs.ask(op, f.name)
}

func (f *file) Name() string { return f.name }

func (f *file) Close() error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if f.closed {
		return pathError("close", f.name, fs.ErrClosed)
	}
	f.closed = true
	return nil
}

func (f *file) Stat() (fs.FileInfo, error) {
	err := f.use("stat")
	defer f.fs.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return info{name: filepath.Base(f.name), size: int64(len(f.ino.data)), mode: f.ino.mode}, nil
}

func (f *file) Read(p []byte) (int, error) {
	err := f.use("read")
	defer f.fs.mu.Unlock()
	if err != nil {
		return 0, err
	}
	n, err := f.readAt(p, f.pos)
	f.pos += int64(n)
	if n > 0 {
		err = nil
	}
	return n, err
}

func (f *file) ReadAt(p []byte, off int64) (int, error) {
	err := f.use("read")
	defer f.fs.mu.Unlock()
	if err != nil {
		return 0, err
	}
	return f.readAt(p, off)
}

func (f *file) readAt(p []byte, off int64) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if off >= int64(len(f.ino.data)) {
		return 0, io.EOF
	}
	n := copy(p, f.ino.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *file) Write(p []byte) (int, error) {
	err := f.use("write")
	defer f.fs.mu.Unlock()
	if err != nil {
		return 0, err
	}
	if f.flag&os.O_APPEND != 0 {
		f.pos = int64(len(f.ino.data))
	}
	f.writeAt(p, f.pos)
	f.pos += int64(len(p))
	return len(p), nil
}

func (f *file) WriteAt(p []byte, off int64) (int, error) {
	err := f.use("write")
	defer f.fs.mu.Unlock()
	if err != nil {
		return 0, err
	}
	f.writeAt(p, off)
	return len(p), nil
}

func (f *file) writeAt(p []byte, off int64) {
	if grow := off + int64(len(p)) - int64(len(f.ino.data)); grow > 0 {
		f.ino.data = append(f.ino.data, make([]byte, grow)...)
	}
	copy(f.ino.data[off:], p)
}

func (f *file) Seek(offset int64, whence int) (int64, error) {
	err := f.use("seek")
	defer f.fs.mu.Unlock()
	if err != nil {
		return 0, err
	}
	switch whence {
	case io.SeekCurrent:
		offset += f.pos
	case io.SeekEnd:
		offset += int64(len(f.ino.data))
	}
	if offset < 0 {
		return 0, pathError("seek", f.name, fs.ErrInvalid)
	}
	f.pos = offset
	return offset, nil
}

func (f *file) Truncate(size int64) error {
	err := f.use("truncate")
	defer f.fs.mu.Unlock()
	if err != nil {
		return err
	}
	if n := int64(len(f.ino.data)); size > n {
		f.ino.data = append(f.ino.data, make([]byte, size-n)...)
	} else {
		f.ino.data = slices.Clone(f.ino.data[:size])
	}
	return nil
}

func (f *file) Sync() error {
	err := f.use("sync")
	defer f.fs.mu.Unlock()
	if err != nil {
		return err
	}
	f.ino.kept = slices.Clone(f.ino.data)
	f.fs.syncs++
	return nil
}

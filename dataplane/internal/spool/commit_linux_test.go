package spool_test

import (
	"errors"
	"math/bits"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"bailiwick/dataplane/internal/spool"
)

// After a group commit no page of the rows before it waits to be written, in whichever segment it lies: a power cut then takes none
// of them, which is what the record behind them says. Nobody but the kernel knows, so it is asked.
func TestSpool_ACommitLeavesNoPageToBeWritten(t *testing.T) {
	const size = 64 << 10
	dir := t.TempDir()
	s := open(t, spool.Config{Dir: dir, SegmentBytes: size})
	waiting := func() (pages uint64) {
		t.Helper()
		last, off := s.RowEnd()
		names, err := filepath.Glob(filepath.Join(dir, "rows-*"))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			to := size
			switch {
			case name > last: // the spare
				continue
			case name == last: // but what may be one folio with the page of the next row, which begins at a multiple of its size
				to = 1 << bits.Len(uint(off/os.Getpagesize())) >> 1 * os.Getpagesize()
			}
			if to > 0 {
				pages += toBeWritten(t, name, to)
			}
		}
		return pages
	}
	before := uint64(0)
	for range 4 {
		for range 1000 { // some 90 KB
			r := row("acme")
			if err := s.Append(&r); err != nil {
				t.Fatal(err)
			}
		}
		before += waiting()
		if err := s.GroupCommit(); err != nil {
			t.Fatal(err)
		}
		if n := waiting(); n != 0 {
			t.Errorf("%d pages of rows that were committed wait to be written", n)
		}
	}
	if before == 0 {
		t.Skip("the file system of temporary files does not say what waits to be written")
	}
}

// toBeWritten is how many pages of the file's first bytes are not on the disk yet.
func toBeWritten(t *testing.T, name string, to int) uint64 {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &fs); err != nil {
		t.Fatal(err)
	}
	if fs.Type == unix.TMPFS_MAGIC {
		t.Skip("temporary files lie in memory here, which is never written to a disk")
	}
	var is unix.Cachestat_t
	err = unix.Cachestat(uint(f.Fd()), &unix.CachestatRange{Len: uint64(to)}, &is, 0)
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EOPNOTSUPP) {
		t.Skip("the kernel does not say what waits to be written (Linux before 6.5)")
	}
	if err != nil {
		t.Fatal(err)
	}
	return is.Dirty + is.Writeback
}

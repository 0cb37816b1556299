package spool_test

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"bailiwick/dataplane/internal/spool"
	"bailiwick/shared/durable"
	"bailiwick/shared/usage"
)

var errDied = errors.New("the process is dead")

// sickFS is the real disk until a number of writing operations have passed.
// Then it is full for some of them, or the process is dead: nothing that it
// still does reaches the disk. The operation at which it happens may have been
// half done.
type sickFS struct {
	durable.FS
	left int // operations until it happens; negative: never
	full int // how many fail for want of space; 0: it is death
	half bool
	dead bool
}

func (f *sickFS) ask() error {
	switch {
	case f.dead:
		return errDied
	case f.left < 0:
		return nil
	case f.left > 0:
		f.left--
		return nil
	case f.full > 0:
		f.full--
		if f.full == 0 {
			f.left = -1
		}
		return unix.ENOSPC
	}
	f.dead = true
	return errDied
}

func (f *sickFS) OpenFile(name string, flag int, perm fs.FileMode) (durable.File, error) {
	if flag&os.O_CREATE != 0 {
		if err := f.ask(); err != nil {
			return nil, err
		}
	}
	file, err := f.FS.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return &sickFile{file, f}, nil
}

func (f *sickFS) Rename(a, b string) error {
	return first(f.ask(), func() error { return f.FS.Rename(a, b) })
}
func (f *sickFS) Remove(name string) error {
	return first(f.ask(), func() error { return f.FS.Remove(name) })
}
func (f *sickFS) SyncDir(p string) error {
	return first(f.ask(), func() error { return f.FS.SyncDir(p) })
}

func first(err error, then func() error) error {
	if err != nil {
		return err
	}
	return then()
}

type sickFile struct {
	durable.File
	fs *sickFS
}

func (f *sickFile) Write(b []byte) (int, error) {
	was := f.fs.dead
	if err := f.fs.ask(); err != nil {
		if f.fs.half && !was {
			f.File.Write(b[:len(b)/2])
		}
		return 0, err
	}
	return f.File.Write(b)
}

func (f *sickFile) WriteAt(b []byte, off int64) (int, error) {
	was := f.fs.dead
	if err := f.fs.ask(); err != nil {
		if f.fs.half && !was {
			f.File.WriteAt(b[:len(b)/2], off)
		}
		return 0, err
	}
	return f.File.WriteAt(b, off)
}

func (f *sickFile) Sync() error { return first(f.fs.ask(), f.File.Sync) }
func (f *sickFile) Truncate(n int64) error {
	return first(f.fs.ask(), func() error { return f.File.Truncate(n) })
}

type blockID struct{ epoch, seq uint64 }

// The law: whatever dies, fills up, repeats or gets lost in between, the sum over
// all blocks, each counted once, is the sum of the rows whose Append returned nil.
func TestSpool_EachRowIsInExactlyOneBlock(t *testing.T) {
	root := fastDir(t)
	rapid.Check(t, func(t *rapid.T) {
		dir, err := os.MkdirTemp(root, "model")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		var (
			sick     = &sickFS{FS: durable.OS(), left: -1}
			s        *spool.Spool
			appended = map[string]int64{}
			counted  = map[string]int64{}
			seen     = map[blockID][32]byte{}
			has      = map[uint64]usage.Block{} // newest block of each epoch that the ledger has acknowledged
			limit    = rapid.IntRange(1, 4).Draw(t, "max unacked")
			journal  = rapid.SampledFrom([]int64{300, 4 << 20}).Draw(t, "journal bytes")
			age      = rapid.SampledFrom([]time.Duration{1, time.Hour}).Draw(t, "segment age") // 1: at each idle seal
		)
		reopen := func() {
			if s != nil {
				s.Abandon()
			}
			s = nil
			for tries := 0; s == nil; tries++ {
				got, err := spool.Open(spool.Config{Dir: dir, Edge: edge, FS: sick, SegmentBytes: 64 << 10, MaxUnacked: limit, JournalBytes: journal, SegmentAge: age})
				switch {
				case err == nil:
					s = got
				case tries < 3 && (errors.Is(err, errDied) || errors.Is(err, unix.ENOSPC)):
					sick = &sickFS{FS: durable.OS(), left: -1} // it died while opening; once more
				default:
					t.Fatalf("open: %v", err)
				}
			}
			for epoch, b := range has { // as in the answer to a Hello
				if err := s.Ack(epoch, b.Seq, b.Hash); errors.Is(err, spool.ErrFork) {
					t.Fatalf("ack %d/%d after a restart: %v", epoch, b.Seq, err)
				}
			}
		}
		// deliver hands what waits to a ledger that counts each block once.
		deliver := func(ack int) {
			for _, e := range s.Epochs() {
				blocks, err := s.Blocks(e.Epoch, 0, 1<<30)
				if err != nil {
					t.Fatalf("read blocks: %v", err)
				}
				for i := range blocks {
					b := &blocks[i]
					id := blockID{b.Epoch, b.Seq}
					if hash, again := seen[id]; again {
						if hash != b.Hash {
							t.Fatalf("block %v came twice with two contents", id)
						}
					} else {
						if b.Seq > 1 && seen[blockID{b.Epoch, b.Seq - 1}] != b.Prev || b.Seq == 1 && b.Prev != [32]byte{} {
							t.Fatalf("block %v does not continue its chain", id)
						}
						seen[id] = b.Hash
						cells, err := usage.DecodePayload(b.Payload)
						if err != nil {
							t.Fatalf("block %v: %v", id, err)
						}
						for c, sum := range cells {
							counted[c.Customer] += sum.Units
						}
					}
					if ack > 0 {
						ack--
						has[b.Epoch] = *b
						if err := s.Ack(b.Epoch, b.Seq, b.Hash); errors.Is(err, spool.ErrFork) {
							t.Fatalf("ack %v: %v", id, err)
						}
					}
				}
			}
			for c, n := range counted {
				if n > appended[c] {
					t.Fatalf("%d units of %s are counted, %d were appended", n, c, appended[c])
				}
			}
		}
		reopen()
		defer func() { s.Abandon() }()
		t.Repeat(map[string]func(*rapid.T){
			"append": func(t *rapid.T) {
				c := rapid.SampledFrom([]string{"acme", "zeta", "umbrella"}).Draw(t, "customer")
				for range rapid.SampledFrom([]int{1, 3, 500}).Draw(t, "rows") {
					r := row(c)
					r.Units = 2
					if err := s.Append(&r); err != nil {
						t.Fatalf("append: %v", err) // segments are on a disk with space
					}
					appended[c] += 2
				}
			},
			"seal":    func(*rapid.T) { s.Seal() },
			"commit":  func(*rapid.T) { s.GroupCommit() },
			"deliver": func(t *rapid.T) { deliver(rapid.IntRange(0, 3).Draw(t, "acks")) },
			"kill":    func(*rapid.T) { sick = &sickFS{FS: durable.OS(), left: -1}; reopen() },
			"die later": func(t *rapid.T) {
				sick.left, sick.full, sick.half = rapid.IntRange(0, 12).Draw(t, "operations"), 0, rapid.Bool().Draw(t, "half")
			},
			"die while opening": func(t *rapid.T) {
				sick = &sickFS{FS: durable.OS(), left: rapid.IntRange(0, 12).Draw(t, "operations"), half: rapid.Bool().Draw(t, "half")}
				reopen()
			},
			"fill up": func(t *rapid.T) {
				if !sick.dead && sick.left < 0 {
					sick.left, sick.full, sick.half = rapid.IntRange(0, 8).Draw(t, "operations"), rapid.IntRange(1, 6).Draw(t, "times"), rapid.Bool().Draw(t, "half")
				}
			},
		})
		sick = &sickFS{FS: durable.OS(), left: -1}
		reopen()
		deliver(0)
		if !maps.Equal(counted, appended) {
			t.Fatalf("counted %v, appended %v", counted, appended)
		}
	})
}

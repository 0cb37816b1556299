package raftgroup

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// watchdog stands between raft and the disk. raft stores on its main loop while
// heartbeats flow from other goroutines, so a hung disk freezes a leader that
// nobody replaces (raft#503), and no step-down can reach it. A write that lasts
// longer than limit while this process runs, or any error, is therefore fatal: fail
// fences the node.
//
// After that no call returns to raft, which would panic on some errors, or
// retry an fsync whose pages the kernel has meanwhile marked clean. The process
// is about to end; until then its goroutines stay parked here.
type watchdog struct {
	disk
	limit time.Duration
	fail  func(error)
	last  atomic.Int64 // when a write came back last, unix ns
}

// quiet says whether no write came back for so long: the disk may hang and nobody would know.
func (w *watchdog) quiet(d time.Duration) bool { return time.Since(time.Unix(0, w.last.Load())) >= d }

// pieces of the limit are counted one after another, since a process that was stopped meanwhile (a virtual machine that moves, a
// debugger) finds at most one of them over when it goes on: its disk has not hung for as long.
const pieces = 10

func (w *watchdog) write(what string, do func() error) error {
	var over atomic.Bool // do has returned, or the limit has passed: whoever comes first
	var timer *time.Timer
	armed, left := make(chan struct{}), pieces
	timer = time.AfterFunc(w.limit/pieces, func() {
		<-armed
		if left--; left > 0 && !over.Load() {
			timer.Reset(w.limit / pieces)
		} else if over.CompareAndSwap(false, true) {
			w.fail(fmt.Errorf("%s lasts longer than %s: the disk is stalled", what, w.limit))
		}
	})
	close(armed)
	err := do()
	if !over.CompareAndSwap(false, true) {
		w.park(fmt.Errorf("%s lasted longer than %s", what, w.limit))
	}
	timer.Stop()
	if err != nil {
		w.park(fmt.Errorf("%s: %w", what, err))
	}
	w.last.Store(time.Now().UnixNano())
	return nil
}

func (w *watchdog) read(what string, err error) error {
	if err == nil || errors.Is(err, raft.ErrLogNotFound) || errors.Is(err, errNotFound) {
		return err
	}
	w.park(fmt.Errorf("%s: %w", what, err))
	return err
}

func (w *watchdog) park(err error) {
	w.fail(err)
	select {}
}

func (w *watchdog) IsMonotonic() bool { return true }

func (w *watchdog) StoreLog(l *raft.Log) error { return w.StoreLogs([]*raft.Log{l}) }
func (w *watchdog) StoreLogs(logs []*raft.Log) error {
	return w.write("store raft log", func() error { return w.disk.StoreLogs(logs) })
}
func (w *watchdog) Set(k, v []byte) error {
	return w.write("store raft vote", func() error { return w.disk.Set(k, v) })
}
func (w *watchdog) SetUint64(k []byte, v uint64) error {
	return w.write("store raft term", func() error { return w.disk.SetUint64(k, v) })
}

// deleteChunk bounds how long dropping a log prefix holds bbolt's writer lock,
// which the next StoreLogs waits for.
const deleteChunk = 2048

// DeleteRange goes chunk by chunk, so that the limit is for one write and not
// for dropping a long log: from the log's end when it cuts the end, else from
// its start, so that a crash between two chunks leaves no gap.
func (w *watchdog) DeleteRange(lo, hi uint64) error {
	last, err := w.LastIndex()
	if err != nil {
		return err
	}
	chunk := func(lo, hi uint64) error {
		return w.write("drop raft log", func() error { return w.disk.DeleteRange(lo, hi) })
	}
	if hi >= last { // cut the end: last first
		for hi >= lo && hi-lo >= deleteChunk {
			if err := chunk(hi-deleteChunk+1, hi); err != nil {
				return err
			}
			hi -= deleteChunk
		}
		return chunk(lo, hi)
	}
	for hi-lo >= deleteChunk {
		if err := chunk(lo, lo+deleteChunk-1); err != nil {
			return err
		}
		lo += deleteChunk
	}
	return chunk(lo, hi)
}

func (w *watchdog) FirstIndex() (uint64, error) {
	i, err := w.disk.FirstIndex()
	return i, w.read("read raft log", err)
}
func (w *watchdog) LastIndex() (uint64, error) {
	i, err := w.disk.LastIndex()
	return i, w.read("read raft log", err)
}
func (w *watchdog) GetLog(i uint64, l *raft.Log) error {
	return w.read("read raft log", w.disk.GetLog(i, l))
}
func (w *watchdog) Get(k []byte) ([]byte, error) {
	v, err := w.disk.Get(k)
	return v, w.read("read raft vote", err)
}
func (w *watchdog) GetUint64(k []byte) (uint64, error) {
	v, err := w.disk.GetUint64(k)
	return v, w.read("read raft term", err)
}

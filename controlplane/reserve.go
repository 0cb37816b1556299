package controlplane

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"bailiwick/shared/durable"
	"bailiwick/shared/fault"
)

// DefaultReserve is how much of its disk a control node keeps for the day on which it is full, in bytes.
const DefaultReserve = 64 << 20

// reserve is a file that is there to be removed. A group that meets a full disk is fenced and its node ends; the room
// that the reserve gives back is for what has to be written after that: the last of the logs, and inspect, recover or
// backup by an operator. A node does not start without it, since it would only meet the full disk again, and take part
// in elections meanwhile.
type reserve struct {
	path  string
	bytes int64 // 0: none is kept
}

func newReserve(dir string, bytes int64) reserve {
	switch {
	case bytes == 0:
		bytes = DefaultReserve
	case bytes < 0:
		bytes = 0
	}
	return reserve{filepath.Join(dir, "reserve"), bytes}
}

// make writes the file whole, for a file with holes holds nothing back.
func (r reserve) make() error {
	if r.bytes == 0 {
		return r.free()
	}
	if fi, err := os.Stat(r.path); err == nil && fi.Size() == r.bytes {
		return nil
	}
	err := r.write()
	if err == nil {
		return nil
	}
	_ = r.free() // what was written of it is room that others can use
	if errors.Is(err, syscall.ENOSPC) {
		return fault.New(fault.Unavailable, "DISK_FULL", "keep %d bytes of the disk in reserve in %s: the disk is full: make room there, then start the node again", r.bytes, r.path)
	}
	return fmt.Errorf("keep a reserve of the disk: %w", err)
}

func (r reserve) write() (err error) {
	f, err := os.OpenFile(r.path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, durable.FilePerm)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	block := make([]byte, 1<<20)
	for left := r.bytes; left > 0; left -= int64(len(block)) {
		block = block[:min(int64(len(block)), left)]
		if _, err := f.Write(block); err != nil {
			return err
		}
	}
	return f.Sync()
}

func (r reserve) free() error {
	if err := os.Remove(r.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// freeOn gives the reserve back if err says that the disk is full.
func (r reserve) freeOn(err error) (freed bool) {
	return errors.Is(err, syscall.ENOSPC) && r.bytes > 0 && r.free() == nil
}

package spool

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// reserveBlocks gives every byte of the file a block on disk.
func reserveBlocks(f *os.File, size int64) error {
	for {
		err := unix.Fallocate(int(f.Fd()), 0, 0, size)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EOPNOTSUPP):
			return writeZeros(f, size)
		}
		return err
	}
}

// noughts is as much as is written at once.
var noughts [256 << 10]byte

// prepare makes places that nobody has written to fit for rows: a page that is first touched need not be read.
func prepare(f *os.File, from, to int) error {
	for from < to {
		n := min(to-from, len(noughts)-from%len(noughts))
		if _, err := f.WriteAt(noughts[:n], int64(from)); err != nil {
			return err
		}
		from += n
	}
	return nil
}

// touch has the pages of the next n bytes of a mapping ready to be written to, at once: each that a row touches first is a fault of
// its own, which costs more than the row. Not more of them: each is written to the disk by the next commit, changed or not, and has
// to be touched again then.
func touch(data []byte, from, n int) {
	from &^= os.Getpagesize() - 1
	if to := min(from+n, len(data)); to-from > 2*os.Getpagesize() {
		_ = unix.Madvise(data[from:to], unix.MADV_POPULATE_WRITE) // advice: kernels before 5.14 refuse it
	}
}

// unmap takes whole pages of a mapping from the process, all at once, before they are written to the disk: else the right to write is
// taken from each by itself, with an interrupt of the other processors. What is in them is the file's; who touches one again has it
// back.
func unmap(data []byte, from, to int) {
	size := os.Getpagesize()
	if from, to = from&^(size-1), to&^(size-1); to-from > size {
		_ = unix.Madvise(data[from:to], unix.MADV_DONTNEED) // advice
	}
}

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

func syncData(f *os.File) error {
	for {
		if err := unix.Fdatasync(int(f.Fd())); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// noughts is as much as is written at once.
var noughts [256 << 10]byte

// prepare makes places that nobody has written to fit for rows: without a read of each page when it is first touched, and in
// memory already, so that the request path does not fault pages in one by one.
func prepare(f *os.File, data []byte, from, to int) error {
	for from < to {
		n := min(to-from, len(noughts)-from%len(noughts))
		if _, err := f.WriteAt(noughts[:n], int64(from)); err != nil {
			return err
		}
		_ = unix.Madvise(data[from&^(pageBytes-1):from+n], unix.MADV_POPULATE_WRITE) // advice: kernels before 5.14 refuse it
		from += n
	}
	return nil
}

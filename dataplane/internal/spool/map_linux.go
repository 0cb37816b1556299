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

// populate brings pages in ahead of the writer, so that the request path does
// not fault them in one by one. Advice: kernels before 5.14 refuse it.
func populate(b []byte) { _ = unix.Madvise(b, unix.MADV_POPULATE_WRITE) }

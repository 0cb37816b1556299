package spool

import (
	"fmt"
	"os"
	"runtime/debug"
)

// guarded runs f and turns a fault on mapped memory into an error: a disk that
// cannot read or write a page of ours answers with SIGBUS, which would end the
// process in the middle of everybody's requests.
func guarded(f func() error) (err error) {
	old := debug.SetPanicOnFault(true)
	defer func() {
		debug.SetPanicOnFault(old)
		if p := recover(); p != nil {
			err = faultError(p)
		}
	}()
	return f()
}

// faultError is the fault that p is; whatever else was a panic goes on.
func faultError(p any) error {
	if _, ok := p.(interface{ Addr() uintptr }); !ok {
		panic(p) // a defect of ours, not the disk's
	}
	return fmt.Errorf("access mapped usage segment: %v", p)
}

// writeZeros allocates where the file system has no call for it.
func writeZeros(f *os.File, size int64) error {
	zeros := make([]byte, 256<<10)
	for off := int64(0); off < size; off += int64(len(zeros)) {
		if _, err := f.WriteAt(zeros[:min(int64(len(zeros)), size-off)], off); err != nil {
			return err
		}
	}
	return nil
}

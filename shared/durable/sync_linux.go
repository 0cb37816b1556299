package durable

import (
	"encoding/binary"
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A thread that waits for a disk keeps the processor that its goroutine ran on until the runtime's monitor takes that away: where there
// is one processor everything else stands still meanwhile, up to as long as the disk takes, and where there are more the monitor has
// had to be woken for it, and looks every 20 µs for a while. So the kernel is asked to sync in a worker of its own (io_submit with
// IOCB_CMD_FSYNC or FDSYNC, Linux 4.18), and says by an eventfd, for which a goroutine waits as for any connection, that it has. A
// goroutine waits for its own sync alone, and starts no other: tests with a clock of their own may sync too. Where the kernel does not
// know how, or may not, the call is made as ever.

// The kernel's struct iocb and struct io_event (include/uapi/linux/aio_abi.h), and its numbers.
const (
	cmdSync     = 2
	cmdSyncData = 3
	tellEventfd = 1
)

type iocb struct {
	data         uint64
	key, rwFlags uint32 // in this order or the other: both are 0
	opcode       uint16
	priority     int16
	fd           uint32
	buf          uint64
	nbytes       uint64
	offset       int64
	_            uint64
	flags        uint32
	eventfd      uint32
}

type ioEvent struct {
	data, obj uint64
	res, res2 int64
}

// worker is one sync at a time.
type worker struct {
	ctx   uintptr
	fd    int
	event *os.File
	raw   syscall.RawConn // event's
	cb    iocb
	came  ioEvent
}

var (
	workers     sync.Mutex // covers idleWorkers
	idleWorkers []*worker  // at most as many as there were syncs at once
	noWorkers   atomic.Bool
)

func takeWorker() *worker {
	if noWorkers.Load() {
		return nil
	}
	workers.Lock()
	if n := len(idleWorkers); n > 0 {
		w := idleWorkers[n-1]
		idleWorkers = idleWorkers[:n-1]
		workers.Unlock()
		return w
	}
	workers.Unlock()
	w := &worker{}
	if _, _, errno := syscall.RawSyscall(syscall.SYS_IO_SETUP, 1, uintptr(unsafe.Pointer(&w.ctx)), 0); errno != 0 {
		noWorkers.Store(errno == syscall.ENOSYS || errno == syscall.EPERM)
		return nil
	}
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		w.end()
		return nil
	}
	w.fd, w.event = fd, os.NewFile(uintptr(fd), "eventfd")
	if w.raw, err = w.event.SyscallConn(); err != nil {
		w.end()
		return nil
	}
	return w
}

// end is for one that is not used any more.
func (w *worker) end() {
	syscall.Syscall(syscall.SYS_IO_DESTROY, w.ctx, 0, 0) // it waits for what is under way
	if w.event != nil {
		w.event.Close()
	}
}

// sync has f synced. false: nothing was done.
func (w *worker) sync(f *os.File, opcode uint16) (done bool, err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return false, nil
	}
	var errno syscall.Errno
	if err := raw.Control(func(fd uintptr) { // the kernel holds the file from here on, whoever closes it
		w.cb = iocb{opcode: opcode, fd: uint32(fd), flags: tellEventfd, eventfd: uint32(w.fd)}
		list := [1]*iocb{&w.cb}
		_, _, errno = syscall.RawSyscall(syscall.SYS_IO_SUBMIT, w.ctx, 1, uintptr(unsafe.Pointer(&list)))
	}); err != nil || errno != 0 {
		return false, nil
	}
	var count [8]byte
	if err := w.told(&count); err != nil {
		return true, err
	}
	for {
		n, _, errno := syscall.RawSyscall6(syscall.SYS_IO_GETEVENTS, w.ctx, 1, 1, uintptr(unsafe.Pointer(&w.came)), 0, 0)
		switch {
		case errno == syscall.EINTR:
			continue
		case errno != 0:
			return true, os.NewSyscallError("io_getevents", errno)
		case n != 1 || binary.NativeEndian.Uint64(count[:]) != 1:
			return true, errors.New("the kernel said that a sync is done, and knows of none")
		}
		return true, result(w.came.res)
	}
}

// told waits until the kernel has said how many syncs are done. The calls do not wait, and the runtime is not told of them: each would
// wake its monitor on a machine with little to do, which looks every 20 µs then.
func (w *worker) told(count *[8]byte) error {
	var errno syscall.Errno
	if err := w.raw.Read(func(fd uintptr) bool {
		for {
			if _, _, errno = syscall.RawSyscall(syscall.SYS_READ, fd, uintptr(unsafe.Pointer(count)), uintptr(len(count))); errno != syscall.EINTR {
				return errno != syscall.EAGAIN
			}
		}
	}); err != nil {
		return err
	}
	if errno != 0 {
		return os.NewSyscallError("read", errno)
	}
	return nil
}

// result is what came of a sync.
func result(res int64) error {
	if res < 0 {
		return syscall.Errno(-res)
	}
	return nil
}

func syncBy(f *os.File, opcode uint16) (done bool, err error) {
	w := takeWorker()
	if w == nil {
		return false, nil
	}
	if done, err = w.sync(f, opcode); done && w.came.obj != 0 {
		w.came = ioEvent{}
		putWorker(w)
	} else {
		w.end() // it may have something of this sync yet
	}
	return done, err
}

func putWorker(w *worker) {
	workers.Lock()
	defer workers.Unlock()
	idleWorkers = append(idleWorkers, w)
}

// Sync is f.Sync, without a thread that waits for the disk.
func Sync(f *os.File) error {
	if done, err := syncBy(f, cmdSync); !done {
		return f.Sync()
	} else if err != nil {
		return &os.PathError{Op: "fsync", Path: f.Name(), Err: err}
	}
	return nil
}

// SyncData is Sync of what is in a file, and of what is needed to find it, its length above all.
func SyncData(f *os.File) error {
	if done, err := syncBy(f, cmdSyncData); done {
		if err != nil {
			return &os.PathError{Op: "fdatasync", Path: f.Name(), Err: err}
		}
		return nil
	}
	for {
		if err := unix.Fdatasync(int(f.Fd())); !errors.Is(err, unix.EINTR) {
			if err != nil {
				return &os.PathError{Op: "fdatasync", Path: f.Name(), Err: err}
			}
			return nil
		}
	}
}

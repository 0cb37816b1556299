package loop

import (
	"syscall"
	"unsafe"
)

// Reported says whether Go's poller is told that there is something.
func (l *Loop) Reported() bool {
	p := struct {
		fd              int32
		events, revents int16
	}{fd: int32(l.gate), events: 1}
	var now syscall.Timespec
	n, _, _ := syscall.RawSyscall6(syscall.SYS_PPOLL, uintptr(unsafe.Pointer(&p)), 1, uintptr(unsafe.Pointer(&now)), 0, 0, 0)
	return n > 0
}

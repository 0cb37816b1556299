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

// Held is how many connections it hears of.
func (l *Loop) Held() (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.slots {
		if c != nil {
			n++
		}
	}
	return n
}

// Ended says whether Run has ended.
func (l *Loop) Ended() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.fd < 0
}

// Ajar says whether its gate stays open. Its goroutine calls it, in an owner's Ready.
func (l *Loop) Ajar() bool { return l.ajar }

// Calm is after how many events that came one at a time it does.
const Calm = calm

// SetYield has it let others have the processor by f.
func SetYield(l *Loop, f func()) { l.yield = f }

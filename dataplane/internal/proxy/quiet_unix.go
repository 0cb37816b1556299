//go:build unix

package proxy

import (
	"net"
	"syscall"
)

// ear hears whether something has arrived on a connection. It is made once a connection: asking costs no memory.
type ear struct {
	raw   syscall.RawConn // nil: it cannot hear
	peek  func(fd uintptr)
	still bool
	b     [1]byte
}

func newEar(c net.Conn) *ear {
	e := &ear{}
	if s, ok := c.(syscall.Conn); ok {
		e.raw, _ = s.SyscallConn()
	}
	e.peek = func(fd uintptr) {
		n, _, err := syscall.Recvfrom(int(fd), e.b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		e.still = n <= 0 && (err == syscall.EAGAIN || err == syscall.EWOULDBLOCK)
	}
	return e
}

// quiet says whether nothing waits to be read: neither bytes nor the end. A deadline that has passed does not matter.
func (e *ear) quiet() bool {
	if e.raw == nil {
		return true
	}
	e.still = false
	return e.raw.Control(e.peek) == nil && e.still
}

//go:build unix

package proxy

import (
	"net"
	"syscall"
)

// ear listens at a connection. It is asked before every request, so it costs no memory then.
type ear struct {
	raw   syscall.RawConn // nil: it cannot be known
	peek  func(fd uintptr) bool
	still bool
	b     [1]byte
}

func (e *ear) at(c net.Conn) {
	s, ok := c.(syscall.Conn)
	if !ok {
		return
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return
	}
	e.raw = raw
	e.peek = func(fd uintptr) bool {
		n, _, err := syscall.Recvfrom(int(fd), e.b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		e.still = n <= 0 && (err == syscall.EAGAIN || err == syscall.EWOULDBLOCK)
		return true
	}
}

// quiet says whether nothing waits to be read: neither bytes nor the connection's end.
func (e *ear) quiet() bool {
	if e.raw == nil {
		return true
	}
	e.still = false
	return e.raw.Read(e.peek) == nil && e.still
}

//go:build unix

package proxy

import (
	"net"
	"syscall"
)

// quiet says whether nothing waits to be read on a connection: neither bytes nor its end.
func quiet(c net.Conn) bool {
	if w, ok := c.(*wire); ok {
		c = w.Conn
	}
	s, ok := c.(syscall.Conn)
	if !ok {
		return true
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return false
	}
	still := false
	err = raw.Read(func(fd uintptr) bool {
		var b [1]byte
		n, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		still = n <= 0 && (err == syscall.EAGAIN || err == syscall.EWOULDBLOCK)
		return true
	})
	return err == nil && still
}

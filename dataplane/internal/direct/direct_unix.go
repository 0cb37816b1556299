//go:build unix && !linux

package direct

import (
	"net"
	"syscall"
)

// Conn is a TCP connection.
type Conn struct{ *net.TCPConn }

// New tells TCP connections, which can be asked, from others.
func New(c net.Conn) net.Conn {
	if tcp, ok := c.(*net.TCPConn); ok {
		return &Conn{tcp}
	}
	return c
}

// Ask is as on Linux.
func (c *Conn) Ask(ask, p []byte) (written, n int, err error) {
	if !c.Quiet() {
		return 0, 0, ErrStale
	}
	if written, err = c.Write(ask); err == nil {
		n, err = c.Read(p)
	}
	return written, n, err
}

// Quiet is as on Linux.
func (c *Conn) Quiet() (still bool) {
	raw, err := c.SyscallConn()
	return err == nil && raw.Control(func(fd uintptr) {
		var b [1]byte
		n, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		still = n <= 0 && err == syscall.EAGAIN
	}) == nil && still
}

//go:build unix && !linux

package direct

import (
	"io"
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

// Try is as on Linux.
func (c *Conn) Try(p []byte) (n int, err error) {
	raw, err := c.SyscallConn()
	if err != nil || len(p) == 0 {
		return 0, err
	}
	failed := raw.Read(func(fd uintptr) bool {
		n, err = syscall.Read(int(fd), p)
		return true
	})
	switch {
	case failed != nil:
		return 0, failed
	case err == syscall.EAGAIN || err == syscall.EINTR:
		return 0, nil
	case err != nil:
		return 0, err
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}

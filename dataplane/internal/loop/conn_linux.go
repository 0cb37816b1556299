package loop

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
)

// Conn is a TCP connection. As long as it is manned it is what any net.Conn is; while it is watched nobody reads or writes; and
// while it is its loop's, its loop's goroutine alone does, by TryRead and TryWrite.
type Conn struct {
	Owner Owner // set it before the first Watch

	loop          atomic.Pointer[Loop] // who tells of it: a Loop may have been told before it moved
	first         bool                 // it is told of before others
	fd            int
	slot, turn    uint32 // loop.mu covers them
	local, remote net.Addr
	raw           rawConn
	vain, pass    uint16 // its loop's goroutine's: see Expect

	state atomic.Uint32
	refs  atomic.Int32 // calls that use fd, and shutBit once it is closed

	in, out side
}

// Whose a connection is.
const (
	manned  = iota // goroutines'
	watched        // nobody's: an event makes it its loop's, and Take its caller's
	looped         // its loop's
)

const shutBit = 1 << 30

// side is where goroutines wait for one direction of a connection.
type side struct {
	mu    sync.Mutex // covers the rest
	ready bool       // something may be there; taken back before looking, and set again unless there was nothing
	until time.Time  // the deadline; zero: none
	timer *time.Timer
	wake  chan struct{}
}

// Adopt takes a TCP connection over from Go's poller, which else would hear of each packet too, and mans it. first: it is to be told
// of before others. tcp is closed; with an error nothing has changed.
func (l *Loop) Adopt(tcp *net.TCPConn, first bool) (*Conn, error) {
	raw, err := tcp.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	var errno syscall.Errno
	if err := raw.Control(func(old uintptr) {
		var n uintptr
		n, _, errno = syscall.RawSyscall(syscall.SYS_FCNTL, old, syscall.F_DUPFD_CLOEXEC, 0)
		fd = int(n)
	}); err != nil {
		return nil, err
	}
	if errno != 0 {
		return nil, os.NewSyscallError("fcntl", errno)
	}
	c := &Conn{first: first, fd: fd, local: tcp.LocalAddr(), remote: tcp.RemoteAddr()}
	c.raw.c = c
	if err := l.add(c, manned); err != nil {
		syscall.Close(fd)
		return nil, err
	}
	tcp.Close()
	return c, nil
}

func (c *Conn) acquire() bool {
	for {
		n := c.refs.Load()
		if n&shutBit != 0 {
			return false
		}
		if c.refs.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

func (c *Conn) release() {
	if c.refs.Add(-1) == shutBit {
		c.end()
	}
}

func (c *Conn) end() {
	if l := c.loop.Load(); l != nil {
		l.remove(c.slot)
	}
	syscall.Close(c.fd)
}

// Closed says whether somebody has closed it.
func (c *Conn) Closed() bool { return c.refs.Load()&shutBit != 0 }

// Close implements net.Conn. Whoever waits is told; nobody else is: see Take.
func (c *Conn) Close() error {
	for {
		n := c.refs.Load()
		if n&shutBit != 0 {
			return c.failed("close", net.ErrClosed)
		}
		if c.refs.CompareAndSwap(n, n|shutBit) {
			if n == 0 {
				c.end()
			}
			break
		}
	}
	c.in.close()
	c.out.close()
	return nil
}

// Watch leaves a connection that is manned to its loop: its owner hears of what comes. false: it was closed, or something may have
// come already; it stays the caller's, who may try again after Poll has found nothing.
func (c *Conn) Watch() bool {
	c.in.mu.Lock()
	defer c.in.mu.Unlock()
	if c.in.ready || c.Closed() {
		return false
	}
	c.state.Store(watched)
	if c.Closed() && c.state.CompareAndSwap(watched, manned) { // whoever did found nothing to take
		return false
	}
	return true
}

// Rest is Watch by its loop, of whoever has read all that there was. false: it was closed, and stays the loop's.
func (c *Conn) Rest() bool {
	c.state.Store(watched)
	return !c.Closed() || !c.state.CompareAndSwap(watched, looped)
}

// Move is Rest on another loop, which its owner hears from then on, at once of what has come already. false: it stays the caller's,
// for it was closed and is to be ended, or because the other takes none. Its loop's goroutine calls it.
func (c *Conn) Move(to *Loop) bool {
	if !c.acquire() { // meanwhile its descriptor is nobody else's
		return false
	}
	defer c.release()
	from := c.loop.Load()
	from.remove(c.slot)
	syscall.EpollCtl(from.fd, syscall.EPOLL_CTL_DEL, c.fd, nil) // what is still reported of a slot that is forgotten is nobody's
	if to.add(c, watched) != nil {
		if from.add(c, looped) != nil { // there is no memory even for what there was: nobody would hear of it
			c.loop.Store(nil)
			c.Close()
		}
		return false
	}
	return !c.Closed() || !c.state.CompareAndSwap(watched, manned) // looped would be the other loop's
}

// Take mans a connection that is watched. false: it is not.
func (c *Conn) Take() bool { return c != nil && c.state.CompareAndSwap(watched, manned) }

// Claim is Take by the loop's goroutine: the connection is the loop's.
func (c *Conn) Claim() bool { return c.state.CompareAndSwap(watched, looped) }

// Looped says whether it is the loop's, to whoever has it.
func (c *Conn) Looped() bool { return c.state.Load() == looped }

// Man makes the loop's connection one for goroutines: its loop's goroutine calls it, and lets go.
func (c *Conn) Man() {
	c.in.set(true) // what came meanwhile nobody has looked at, perhaps
	c.state.Store(manned)
}

// Poll is TryRead for goroutines.
func (c *Conn) Poll(p []byte) (int, error) {
	c.in.set(false)
	n, err := c.TryRead(p)
	if n > 0 || err != nil { // and there may be more, or its end
		c.in.set(true)
	}
	return n, err
}

// TryRead reads what has arrived, and waits for nothing: 0 and no error says that nothing has.
func (c *Conn) TryRead(p []byte) (int, error) {
	if !c.acquire() {
		return 0, c.failed("read", net.ErrClosed)
	}
	n, errno := call(syscall.SYS_RECVFROM, c.fd, p)
	c.release()
	switch {
	case errno == syscall.EAGAIN:
		return 0, nil
	case errno != 0:
		return 0, c.failed("read", os.NewSyscallError("read", errno))
	case n == 0 && len(p) > 0:
		return 0, io.EOF
	}
	return n, nil
}

// TryWrite writes what there is room for.
func (c *Conn) TryWrite(p []byte) (done int, err error) {
	if !c.acquire() {
		return 0, c.failed("write", net.ErrClosed)
	}
	for done < len(p) {
		n, errno := call(syscall.SYS_SENDTO, c.fd, p[done:])
		if errno == syscall.EAGAIN {
			break
		}
		if errno != 0 {
			err = c.failed("write", os.NewSyscallError("write", errno))
			break
		}
		done += n
	}
	c.release()
	return done, err
}

// Quiet says whether nothing waits to be read: neither bytes nor the end.
func (c *Conn) Quiet() bool {
	if !c.acquire() {
		return false
	}
	defer c.release()
	var b [1]byte
	for {
		n, _, errno := syscall.RawSyscall6(syscall.SYS_RECVFROM, uintptr(c.fd), uintptr(unsafe.Pointer(&b[0])), 1, syscall.MSG_PEEK|syscall.MSG_DONTWAIT, 0, 0)
		if errno != syscall.EINTR {
			return int(n) <= 0 && errno == syscall.EAGAIN
		}
	}
}

// Read implements net.Conn.
func (c *Conn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		if err := c.in.late(); err != nil {
			return 0, c.failed("read", err)
		}
		n, err := c.Poll(p)
		if n > 0 || err != nil {
			return n, err
		}
		if err := c.in.wait(c); err != nil {
			return 0, c.failed("read", err)
		}
	}
}

// Write implements net.Conn.
func (c *Conn) Write(p []byte) (done int, err error) {
	for {
		if err := c.out.late(); err != nil {
			return done, c.failed("write", err)
		}
		c.out.set(false)
		n, err := c.TryWrite(p[done:])
		if done += n; done == len(p) || err != nil {
			return done, err
		}
		if err := c.out.wait(c); err != nil {
			return done, c.failed("write", err)
		}
	}
}

// late says whether the deadline has passed.
func (s *side) late() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.until.IsZero() && !time.Now().Before(s.until) {
		return os.ErrDeadlineExceeded
	}
	return nil
}

// wait waits for an event, the deadline or the end.
func (s *side) wait(c *Conn) error {
	for {
		s.mu.Lock()
		if s.wake == nil {
			s.wake = make(chan struct{}, 1)
		}
		switch {
		case c.Closed():
			s.mu.Unlock()
			s.rouse() // another may wait too
			return net.ErrClosed
		case !s.until.IsZero() && !time.Now().Before(s.until):
			s.mu.Unlock()
			s.rouse()
			return os.ErrDeadlineExceeded
		case s.ready:
			s.mu.Unlock()
			return nil
		}
		if !s.until.IsZero() {
			left := time.Until(s.until)
			if s.timer == nil {
				s.timer = time.AfterFunc(left, s.rouse)
			} else {
				s.timer.Reset(left)
			}
		}
		s.mu.Unlock()
		<-s.wake
	}
}

// rouse has whoever waits look again.
func (s *side) rouse() {
	s.mu.Lock()
	wake := s.wake
	s.mu.Unlock()
	select {
	case wake <- struct{}{}:
	default:
	}
}

func (s *side) close() {
	s.mu.Lock()
	if s.timer != nil {
		s.timer.Stop()
	}
	s.mu.Unlock()
	s.rouse()
}

func (s *side) set(ready bool) {
	s.mu.Lock()
	s.ready = ready
	s.mu.Unlock()
}

// heard says that something happened.
func (s *side) heard() {
	s.set(true)
	s.rouse()
}

func (s *side) deadline(t time.Time) {
	s.mu.Lock()
	s.until = t
	s.mu.Unlock()
	s.rouse() // who waits sets the timer
}

// SetDeadline implements net.Conn.
func (c *Conn) SetDeadline(t time.Time) error {
	c.in.deadline(t)
	c.out.deadline(t)
	return nil
}

// SetReadDeadline implements net.Conn.
func (c *Conn) SetReadDeadline(t time.Time) error { c.in.deadline(t); return nil }

// SetWriteDeadline implements net.Conn.
func (c *Conn) SetWriteDeadline(t time.Time) error { c.out.deadline(t); return nil }

// LocalAddr implements net.Conn.
func (c *Conn) LocalAddr() net.Addr { return c.local }

// RemoteAddr implements net.Conn.
func (c *Conn) RemoteAddr() net.Addr { return c.remote }

// CloseWrite ends what is sent.
func (c *Conn) CloseWrite() error {
	return c.control("shutdown", func(fd int) error { return syscall.Shutdown(fd, syscall.SHUT_WR) })
}

// SetLinger is net.TCPConn's.
func (c *Conn) SetLinger(sec int) error {
	l := syscall.Linger{Onoff: 1, Linger: int32(sec)}
	if sec < 0 {
		l = syscall.Linger{}
	}
	return c.control("setsockopt", func(fd int) error {
		return syscall.SetsockoptLinger(fd, syscall.SOL_SOCKET, syscall.SO_LINGER, &l)
	})
}

func (c *Conn) control(op string, do func(fd int) error) error {
	if !c.acquire() {
		return c.failed(op, net.ErrClosed)
	}
	defer c.release()
	if err := do(c.fd); err != nil {
		return c.failed(op, os.NewSyscallError(op, err))
	}
	return nil
}

// SyscallConn implements syscall.Conn, for Control alone.
func (c *Conn) SyscallConn() (syscall.RawConn, error) { return &c.raw, nil }

type rawConn struct{ c *Conn }

// Control implements syscall.RawConn.
func (r *rawConn) Control(f func(fd uintptr)) error {
	return r.c.control("control", func(fd int) error { f(uintptr(fd)); return nil })
}

// Read implements syscall.RawConn.
func (r *rawConn) Read(func(uintptr) bool) error { return errors.ErrUnsupported }

// Write implements syscall.RawConn.
func (r *rawConn) Write(func(uintptr) bool) error { return errors.ErrUnsupported }

// call receives or sends, which is cheaper than to read and write, where the kernel asks first what kind of file it has. A failed
// call has moved nothing.
func call(trap uintptr, fd int, p []byte) (int, syscall.Errno) {
	for {
		n, _, errno := syscall.RawSyscall6(trap, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(min(len(p), most)), syscall.MSG_DONTWAIT|syscall.MSG_NOSIGNAL, 0, 0)
		switch errno {
		case 0:
			return int(n), 0
		case syscall.EINTR:
		default:
			return 0, errno
		}
	}
}

const most = 1 << 20 // of one call: it is not interrupted for others

func (c *Conn) failed(op string, err error) error {
	return &net.OpError{Op: op, Net: "tcp", Source: c.local, Addr: c.remote, Err: err}
}

// Rests says whether it is nobody's just now, for whoever counts.
func (c *Conn) Rests() bool { return c != nil && c.state.Load() == watched }

package direct

import (
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"unsafe"
)

// Conn is a TCP connection. Its methods may be called from any number of goroutines, as those of net.Conn.
type Conn struct {
	*net.TCPConn
	raw syscall.RawConn

	rmu  sync.Mutex // covers in; held while a read waits, as the descriptor's own lock is
	in   transfer
	read func(fd uintptr) bool // made once: what is made for a call costs memory
	once func(fd uintptr) bool
	ask  func(fd uintptr) bool
	peek func(fd uintptr)

	wmu   sync.Mutex // covers out
	out   transfer
	write func(fd uintptr) bool
}

// transfer is a call that is under way.
type transfer struct {
	p     []byte
	say   []byte // by ask, before p is filled
	said  bool
	n     int
	spoke int // bytes of say
	err   error
	still bool
}

// New gives c other ways of reading and writing; a connection that is no TCP connection stays as it is.
func New(c net.Conn) net.Conn {
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return c
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return c
	}
	d := &Conn{TCPConn: tcp, raw: raw}
	d.once = func(fd uintptr) bool { d.tryRead(fd); return true }
	d.read, d.ask, d.peek, d.write = d.tryRead, d.tryAsk, d.tryPeek, d.tryWrite
	return d
}

// SyscallConn implements syscall.Conn, making nothing anew.
func (c *Conn) SyscallConn() (syscall.RawConn, error) { return c.raw, nil }

// Read implements net.Conn.
func (c *Conn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	c.rmu.Lock()
	defer c.rmu.Unlock()
	c.in = transfer{p: p}
	err := c.raw.Read(c.read)
	n := c.in.n
	if err == nil {
		err = c.in.err
	}
	c.in = transfer{}
	return n, err
}

// Try reads what has arrived, and waits for nothing: 0 and no error says that nothing has.
func (c *Conn) Try(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	c.rmu.Lock()
	defer c.rmu.Unlock()
	c.in = transfer{p: p}
	err := c.raw.Read(c.once)
	n := c.in.n
	if err == nil {
		err = c.in.err
	}
	c.in = transfer{}
	return n, err
}

func (c *Conn) tryRead(fd uintptr) bool {
	t := &c.in
	n, errno := call(syscall.SYS_READ, fd, t.p)
	switch {
	case errno == syscall.EAGAIN:
		return false
	case errno != 0:
		t.err = c.failed("read", errno)
	case n == 0:
		t.err = io.EOF
	}
	t.n = n
	return true
}

// Write implements net.Conn.
func (c *Conn) Write(p []byte) (int, error) {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	c.out = transfer{p: p}
	err := c.raw.Write(c.write)
	n := c.out.n
	if err == nil {
		err = c.out.err
	}
	c.out = transfer{}
	return n, err
}

func (c *Conn) tryWrite(fd uintptr) bool {
	t := &c.out
	for t.n < len(t.p) {
		n, errno := call(syscall.SYS_WRITE, fd, t.p[t.n:])
		if errno == syscall.EAGAIN {
			return false
		}
		if errno != 0 {
			t.err = c.failed("write", errno)
			return true
		}
		t.n += n
	}
	return true
}

// Ask writes what is asked and reads the beginning of the answer into p, on a connection on which nobody else reads or writes.
// Nothing is written if anything waits to be read, the end of the connection or bytes that nobody has asked for: ErrStale. It
// says how much was written; where that is not all and there is no error, the connection takes no more just now, and nothing
// was read: write the rest and read as always.
func (c *Conn) Ask(ask, p []byte) (written, n int, err error) {
	c.rmu.Lock()
	defer c.rmu.Unlock()
	c.in = transfer{p: p, say: ask}
	err = c.raw.Read(c.ask)
	written, n = c.in.spoke, c.in.n
	if err == nil {
		err = c.in.err
	}
	c.in = transfer{}
	return written, n, err
}

// tryAsk is called at once and then whenever something may have arrived. That the first call reads nothing loses nothing: what
// it peeks for came before, and whatever comes later makes another call.
func (c *Conn) tryAsk(fd uintptr) bool {
	t := &c.in
	if t.said {
		return c.tryRead(fd)
	}
	if !quiet(fd) {
		t.err = ErrStale
		return true
	}
	t.said = true
	n, errno := call(syscall.SYS_WRITE, fd, t.say)
	if errno != 0 && errno != syscall.EAGAIN {
		t.err = c.failed("write", errno)
		return true
	}
	t.spoke = n
	return n < len(t.say)
}

// Quiet says whether nothing waits to be read: neither bytes nor the end. A deadline that has passed does not matter.
func (c *Conn) Quiet() bool {
	c.rmu.Lock()
	defer c.rmu.Unlock()
	c.in.still = false
	return c.raw.Control(c.peek) == nil && c.in.still
}

func (c *Conn) tryPeek(fd uintptr) { c.in.still = quiet(fd) }

func quiet(fd uintptr) bool {
	var b [1]byte
	for {
		n, _, errno := syscall.RawSyscall6(syscall.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(&b[0])), 1, syscall.MSG_PEEK|syscall.MSG_DONTWAIT, 0, 0)
		if errno != syscall.EINTR {
			return int(n) <= 0 && errno == syscall.EAGAIN
		}
	}
}

// call reads or writes: the descriptor is never one that blocks. A failed call has moved nothing.
func call(trap, fd uintptr, p []byte) (int, syscall.Errno) {
	for {
		n, _, errno := syscall.RawSyscall(trap, fd, uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(min(len(p), most)))
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

func (c *Conn) failed(op string, errno syscall.Errno) error {
	return &net.OpError{Op: op, Net: "tcp", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: os.NewSyscallError(op, errno)}
}

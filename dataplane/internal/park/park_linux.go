package park

import (
	"fmt"
	"net"
	"os"
	"syscall"
	"time"
)

// descriptor is a connection's, held so that a number that was given to another file meanwhile is not touched.
type descriptor = syscall.RawConn

// poll is an epoll of our own. Go's poller wakes the goroutine that waits for it, which is one for all that is parked.
type poll struct {
	file *os.File
	raw  syscall.RawConn
	fd   int
}

// atOnce is how many events are taken at a time.
const atOnce = 128

// New makes a Lot. Close it.
func New() (*Lot, error) {
	fd, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make a poller for idle connections: %w", err)
	}
	if err := syscall.SetNonblock(fd, true); err != nil {
		syscall.Close(fd)
		return nil, fmt.Errorf("make a poller for idle connections: %w", err)
	}
	file := os.NewFile(uintptr(fd), "epoll")
	raw, err := file.SyscallConn()
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("wait for idle connections: %w", err)
	}
	return &Lot{poll: poll{file, raw, fd}}, nil
}

// Park parks c, until something arrives or until a moment. false: it cannot be parked, and nothing has changed. Nobody may
// read, write or wait for c any more before its owner was roused, which may be at once; closing it is allowed and rouses nobody.
func (l *Lot) Park(p *Place, c net.Conn, owner Owner, until time.Time) bool {
	if p.fd == nil {
		s, ok := c.(syscall.Conn)
		if !ok {
			return false
		}
		raw, err := s.SyscallConn()
		if err != nil {
			return false
		}
		p.fd = raw
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	first := l.enter(p, owner, until)
	if !l.poll.add(p) {
		l.leave(p)
		return false
	}
	if first {
		l.poll.file.SetReadDeadline(until)
	}
	return true
}

func (q poll) add(p *Place) (ok bool) {
	// The id is in what the kernel leaves to us, which Go gives two names.
	e := syscall.EpollEvent{Events: syscall.EPOLLIN | syscall.EPOLLRDHUP, Fd: int32(p.slot), Pad: int32(p.turn)}
	return p.fd.Control(func(fd uintptr) {
		ok = syscall.EpollCtl(q.fd, syscall.EPOLL_CTL_ADD, int(fd), &e) == nil
	}) == nil && ok
}

// remove forgets a connection. One that is closed has been forgotten already.
func (q poll) remove(d descriptor) {
	d.Control(func(fd uintptr) { syscall.EpollCtl(q.fd, syscall.EPOLL_CTL_DEL, int(fd), nil) })
}

func (q poll) close() { q.file.Close() }

// Run rouses owners until the Lot is closed.
func (l *Lot) Run() error {
	events := make([]syscall.EpollEvent, atOnce)
	var owners []Owner
	for {
		n := 0
		var failed error
		err := l.poll.raw.Read(func(fd uintptr) bool {
			n, failed = syscall.EpollWait(int(fd), events, 0)
			return n > 0 || failed != nil && failed != syscall.EINTR
		})
		l.mu.Lock()
		if l.closed {
			l.mu.Unlock()
			return nil
		}
		for _, e := range events[:max(n, 0)] {
			slot, turn := uint32(e.Fd), uint32(e.Pad)
			if int(slot) < len(l.slots) && l.slots[slot] != nil && l.slots[slot].turn == turn {
				owners = append(owners, l.out(l.slots[slot]))
			}
		}
		var next time.Time
		owners, next = l.over(time.Now(), owners)
		l.poll.file.SetReadDeadline(next)
		l.mu.Unlock()
		for i, o := range owners {
			o.Rouse()
			owners[i] = nil
		}
		owners = owners[:0]
		switch {
		case failed != nil && failed != syscall.EINTR:
			l.Close()
			return fmt.Errorf("wait for idle connections: %w", failed)
		case err != nil && !os.IsTimeout(err):
			l.Close()
			return fmt.Errorf("wait for idle connections: %w", err)
		}
	}
}

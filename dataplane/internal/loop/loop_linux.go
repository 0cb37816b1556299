package loop

import (
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
)

// atOnce is how many events are taken at a time.
const atOnce = 256

// Loop waits for what happens on its connections.
type Loop struct {
	file *os.File
	raw  syscall.RawConn
	fd   int
	tick func(now time.Time) time.Duration

	events []syscall.EpollEvent // Run's
	ready  []event
	armed  time.Time
	rounds uint64
	all    []*Conn

	done atomic.Bool

	mu    sync.Mutex // covers the rest
	slots []*Conn    // nil: free
	free  []uint32
	turns uint32 // so that an event of one that has left is not taken for that of another
}

type event struct {
	c *Conn
	e Event
}

// New makes a Loop. tick is called on its goroutine when the time is over that it named, and after each round of events, about
// so often at most as it says; 0: only after events.
func New(tick func(now time.Time) time.Duration) (*Loop, error) {
	fd, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make a poller for connections: %w", err)
	}
	if err := syscall.SetNonblock(fd, true); err != nil {
		syscall.Close(fd)
		return nil, fmt.Errorf("make a poller for connections: %w", err)
	}
	file := os.NewFile(uintptr(fd), "epoll")
	raw, err := file.SyscallConn()
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("wait for connections: %w", err)
	}
	return &Loop{file: file, raw: raw, fd: fd, tick: tick, events: make([]syscall.EpollEvent, atOnce)}, nil
}

func (l *Loop) add(c *Conn) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n := len(l.free); n > 0 {
		c.slot, l.free = l.free[n-1], l.free[:n-1]
	} else {
		c.slot, l.slots = uint32(len(l.slots)), append(l.slots, nil)
	}
	l.turns++
	c.turn = l.turns
	l.slots[c.slot] = c
	const edges = 1 << 31 // EPOLLET
	e := syscall.EpollEvent{Events: syscall.EPOLLIN | syscall.EPOLLOUT | syscall.EPOLLRDHUP | edges, Fd: int32(c.slot), Pad: int32(c.turn)}
	if err := syscall.EpollCtl(l.fd, syscall.EPOLL_CTL_ADD, c.fd, &e); err != nil {
		l.slots[c.slot] = nil
		l.free = append(l.free, c.slot)
		return os.NewSyscallError("epoll_ctl", err)
	}
	return nil
}

func (l *Loop) remove(c *Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.slots[c.slot] = nil
	l.free = append(l.free, c.slot)
}

// Close ends Run. Connections stay what they are, and nobody hears of them any more.
func (l *Loop) Close() {
	l.done.Store(true)
	l.file.SetReadDeadline(time.Unix(1, 0))
}

// Run tells owners what happens until the Loop is closed.
func (l *Loop) Run() error {
	for {
		var failed error
		err := l.raw.Read(func(fd uintptr) bool {
			for {
				n, errno := l.poll()
				if errno != 0 && errno != syscall.EINTR {
					failed = os.NewSyscallError("epoll_wait", errno)
					return true
				}
				if n > 0 {
					l.round(l.events[:n])
				}
				l.arm(time.Now())
				if l.done.Load() {
					return true
				}
				if n < atOnce {
					return false
				}
			}
		})
		switch {
		case l.done.Load():
			return l.file.Close()
		case failed != nil:
			return fmt.Errorf("wait for connections: %w", failed)
		case os.IsTimeout(err):
			l.armed = time.Time{}
			l.file.SetReadDeadline(l.armed)
		default:
			return fmt.Errorf("wait for connections: %w", err)
		}
	}
}

func (l *Loop) arm(now time.Time) {
	next := l.tick(now)
	if next <= 0 {
		return
	}
	if at := now.Add(next); l.armed.IsZero() || at.Before(l.armed) {
		l.armed = at
		l.file.SetReadDeadline(at)
	}
}

func (l *Loop) poll() (int, syscall.Errno) {
	n, _, errno := syscall.RawSyscall6(syscall.SYS_EPOLL_PWAIT, uintptr(l.fd), uintptr(unsafe.Pointer(unsafe.SliceData(l.events))), atOnce, 0, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}

// round tells owners of what happened, those first that are to be.
func (l *Loop) round(events []syscall.EpollEvent) {
	l.mu.Lock()
	for _, e := range events {
		slot, turn := uint32(e.Fd), uint32(e.Pad)
		if int(slot) < len(l.slots) && l.slots[slot] != nil && l.slots[slot].turn == turn {
			l.ready = append(l.ready, event{l.slots[slot], Event(e.Events)})
		}
	}
	l.mu.Unlock()
	l.rounds++
	for _, first := range [...]bool{true, false} {
		for i := range l.ready {
			if l.ready[i].c.first == first {
				l.ready[i].c.happened(l.ready[i].e)
			}
		}
	}
	clear(l.ready)
	l.ready = l.ready[:0]
}

func (c *Conn) happened(e Event) {
	for {
		switch c.state.Load() {
		case looped:
			c.Owner.Ready(e)
			return
		case watched:
			if c.state.CompareAndSwap(watched, looped) {
				c.Owner.Ready(e)
				return
			}
		default:
			if e&(In|Gone) != 0 {
				c.in.mu.Lock()
				if c.state.Load() != manned {
					c.in.mu.Unlock()
					continue
				}
				c.in.ready = true
				c.in.mu.Unlock()
				c.in.rouse()
			}
			if e&(Out|Gone) != 0 {
				c.out.heard()
			}
			return
		}
	}
}

// Round counts how often events were taken: of what was left to the loop in a round before this one, all that had come when this
// one began has been told. Its goroutine calls it.
func (l *Loop) Round() uint64 { return l.rounds }

// Each calls do with the owner of each connection that is watched, which is the loop's then. Its goroutine calls it.
func (l *Loop) Each(do func(o Owner)) {
	l.mu.Lock()
	l.all = append(l.all[:0], l.slots...)
	l.mu.Unlock()
	defer func() { clear(l.all) }()
	for _, c := range l.all {
		if c != nil && c.state.CompareAndSwap(watched, looped) {
			do(c.Owner)
		}
	}
}

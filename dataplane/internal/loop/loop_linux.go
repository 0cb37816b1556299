package loop

import (
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
)

const (
	atOnce = 256              // events that are taken at a time
	spell  = time.Millisecond // others have to wait for a processor while there is always something to do
	calm   = 32               // times in a row that one event had it work: its gate stays open from then on

	wayMost  = 200 * time.Microsecond // who was given way and takes longer is not on his way to sleep: see GiveWay
	vainMost = 10                     // times in a row in vain that it remembers of a connection on which it expected something
)

// oneshot has the gate shut when its report is taken (EPOLLONESHOT).
const oneshot = 1 << 30

// Loop waits for what happens on its connections.
type Loop struct {
	// BusyPoll is for how long a loop that has little to do looks again and again for what it was told to Expect, before it sleeps;
	// 0: not at all. Set it before Run.
	BusyPoll time.Duration

	fd   int // an epoll of the connections; Run closes it, with mu held
	gate int // an epoll of fd, which is told of once while Run waits, and not while it works
	file *os.File
	raw  syscall.RawConn // file's, which is gate: Go's poller has it
	tick func(now time.Time) time.Duration

	events []syscall.EpollEvent // Run's
	ready  []event
	armed  time.Time
	rounds uint64
	single int  // times in a row that it worked for one event
	ajar   bool // the gate is not shut: nobody takes what it reports
	heard  time.Time
	all    []*Conn
	expect *Conn // something was asked on it since the loop last slept
	sought *Conn // what comes on it this round has waited for
	tardy  bool  // and longer than it may
	yield  func()
	taken  int // times in a row that others took long for the way they were given
	stays  int // times that they are given none

	came, vain atomic.Uint64 // times that it looked for what it expects

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
	l := &Loop{fd: -1, gate: -1, tick: tick, yield: yield, events: make([]syscall.EpollEvent, atOnce)}
	if err := l.create(); err != nil {
		for _, fd := range [...]int{l.fd, l.gate} {
			if fd >= 0 {
				syscall.Close(fd)
			}
		}
		return nil, fmt.Errorf("make a poller for connections: %w", err)
	}
	return l, nil
}

func (l *Loop) create() (err error) {
	if l.fd, err = syscall.EpollCreate1(syscall.EPOLL_CLOEXEC); err != nil {
		return os.NewSyscallError("epoll_create1", err)
	}
	if l.gate, err = syscall.EpollCreate1(syscall.EPOLL_CLOEXEC); err != nil {
		return os.NewSyscallError("epoll_create1", err)
	}
	if err := syscall.EpollCtl(l.gate, syscall.EPOLL_CTL_ADD, l.fd, &syscall.EpollEvent{}); err != nil { // shut
		return os.NewSyscallError("epoll_ctl", err)
	}
	if err := syscall.SetNonblock(l.gate, true); err != nil { // it is what has os.NewFile give it to Go's poller
		return os.NewSyscallError("fcntl", err)
	}
	l.file = os.NewFile(uintptr(l.gate), "epoll")
	if l.raw, err = l.file.SyscallConn(); err != nil {
		l.file.Close()
		l.gate = -1
	}
	return err
}

// add has the loop hear of a connection, which is in a state from then on. With an error nothing has changed.
func (l *Loop) add(c *Conn, state uint32) error {
	l.mu.Lock() // nothing is told of it before it is in that state
	defer l.mu.Unlock()
	if l.fd < 0 {
		return net.ErrClosed
	}
	slot := uint32(len(l.slots))
	if n := len(l.free); n > 0 {
		slot, l.free = l.free[n-1], l.free[:n-1]
	} else {
		l.slots = append(l.slots, nil)
	}
	l.turns++
	const edges = 1 << 31 // EPOLLET
	e := syscall.EpollEvent{Events: syscall.EPOLLIN | syscall.EPOLLOUT | syscall.EPOLLRDHUP | edges, Fd: int32(slot), Pad: int32(l.turns)}
	if err := syscall.EpollCtl(l.fd, syscall.EPOLL_CTL_ADD, c.fd, &e); err != nil {
		l.free = append(l.free, slot)
		return os.NewSyscallError("epoll_ctl", err)
	}
	c.slot, c.turn = slot, l.turns
	l.slots[slot] = c
	c.state.Store(state)
	c.loop.Store(l) // behind the state: who finds itself named finds no other's
	return nil
}

func (l *Loop) remove(slot uint32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.slots[slot] = nil
	l.free = append(l.free, slot)
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
		err := l.raw.Read(func(uintptr) bool {
			failed = l.work()
			return failed != nil || l.done.Load()
		})
		switch {
		case l.done.Load():
			l.mu.Lock()
			syscall.Close(l.fd)
			l.fd = -1 // whoever comes now is refused
			l.mu.Unlock()
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

// work tells owners what has come, behind a gate that is shut: else each packet that comes meanwhile would wake a thread that waits
// in Go's poller, for nothing. What has come by the time it is opened, or comes later, Go's poller hears of. Where there is so little
// to do that one event has it work each time, that happens hardly ever, and shutting and opening is half of what it costs to be woken:
// the gate stays open.
func (l *Loop) work() error {
	if !l.ajar {
		if err := l.shut(); err != nil {
			return err
		}
	}
	began := time.Now()
	now, most := began, 0
	for more := false; ; {
		n, errno := poll(l.fd, l.events)
		if l.sought != nil && n == 0 {
			n, errno = l.seek(now)
		}
		if errno != 0 && errno != syscall.EINTR {
			return os.NewSyscallError("epoll_wait", errno)
		}
		if l.heard = now; n == atOnce {
			l.heard = time.Time{}
		}
		sought := l.sought != nil
		if most = max(most, n); n > 0 {
			l.round(l.events[:n])
		}
		l.sought, l.tardy = nil, false
		now = time.Now()
		l.arm(now)
		if l.done.Load() {
			return nil
		}
		// To look again costs a quarter of what it costs to be woken again: where several things happened something may
		// have come meanwhile. But others have their turn.
		if more = n == atOnce || n > 0 && (n > 1 || more) && now.Sub(began) < spell; more {
			continue
		}
		if l.expect == nil || sought || most > 1 { // once, and then others have their turn
			l.expect = nil
			return l.rest(most)
		}
		l.sought, l.expect = l.expect, nil
	}
}

// Expect says that something was asked on a connection that the loop has: its answer may be there sooner than a thread is asleep and
// woken again. A loop that has little to do looks for it for up to BusyPoll, unless that was in vain before: then it sleeps at once
// the next time, after two in a row three times, and so on up to 1,023. Its goroutine calls it, in an owner's Ready.
func (l *Loop) Expect(c *Conn) {
	switch {
	case l.BusyPoll <= 0 || !l.ajar:
	case c.pass > 0:
		c.pass--
	default:
		l.expect = c
	}
}

// Calm says whether the loop has little to do: for a while one thing at a time has come. Its goroutine calls it, in an owner's Ready.
func (l *Loop) Calm() bool { return l.ajar }

// GiveWay lets others have the processor, if any wait for it, before the loop does what nobody waits for. Who takes it for long, as one
// that computes, is not given it the next time, after two in a row not three times, and so on up to 1,023: requests wait meanwhile. Its
// goroutine calls it, in an owner's Ready.
func (l *Loop) GiveWay() {
	if l.stays > 0 {
		l.stays--
		return
	}
	began := time.Now()
	if l.yield(); time.Since(began) < wayMost {
		l.taken = 0
		return
	}
	l.taken = min(l.taken+1, vainMost)
	l.stays = 1<<l.taken - 1
}

func yield() { syscall.RawSyscall(syscall.SYS_SCHED_YIELD, 0, 0, 0) }

// seek looks for what comes until BusyPoll is over. Whoever else wants the processor goes first: it may be who is to answer.
func (l *Loop) seek(began time.Time) (n int, errno syscall.Errno) {
	for {
		l.yield()
		n, errno = poll(l.fd, l.events)
		if over := time.Since(began) >= l.BusyPoll; n > 0 || errno != 0 && errno != syscall.EINTR {
			l.tardy = over
			return n, errno
		} else if over || l.done.Load() {
			l.invain(l.sought)
			return 0, 0
		}
	}
}

// invain remembers that it looked in vain, or found what it looked for when somebody else had the processor for longer than it may look:
// who sleeps is woken sooner then than who waits for another turn.
func (l *Loop) invain(c *Conn) {
	l.vain.Add(1)
	c.vain = min(c.vain+1, vainMost)
	c.pass = 1<<c.vain - 1
}

// Sought is how often it looked for what it expected, so that it slept no more, or in vain.
func (l *Loop) Sought() (came, vain uint64) { return l.came.Load(), l.vain.Load() }

// rest has Go's poller told of what comes, when the loop has worked for so many events at a time.
func (l *Loop) rest(events int) error {
	switch {
	case events > 1:
		l.single = 0
	case l.single < calm:
		l.single += events
	}
	stays := l.single >= calm
	if l.ajar {
		if stays {
			return nil // it has told, or will, of what came since the last look
		}
		if err := l.shut(); err != nil {
			return err
		}
	}
	l.ajar = stays
	return l.open()
}

// shut has nobody told of what comes: to take what was reported shuts the gate too, so that its next opening is reported anew.
func (l *Loop) shut() error {
	var e [1]syscall.EpollEvent
	if _, errno := poll(l.gate, e[:]); errno != 0 && errno != syscall.EINTR {
		return os.NewSyscallError("epoll_wait", errno)
	}
	return nil
}

// open has Go's poller told, until the gate is shut.
func (l *Loop) open() error {
	e := syscall.EpollEvent{Events: syscall.EPOLLIN | oneshot}
	if _, _, errno := syscall.RawSyscall6(syscall.SYS_EPOLL_CTL, uintptr(l.gate), syscall.EPOLL_CTL_MOD, uintptr(l.fd), uintptr(unsafe.Pointer(&e)), 0, 0); errno != 0 {
		return os.NewSyscallError("epoll_ctl", errno)
	}
	return nil
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

// poll asks an epoll what there is, and does not wait.
func poll(fd int, events []syscall.EpollEvent) (int, syscall.Errno) {
	n, _, errno := syscall.RawSyscall6(syscall.SYS_EPOLL_PWAIT, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(events))), uintptr(len(events)), 0, 0, 0)
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
				l.happened(l.ready[i].c, l.ready[i].e)
			}
		}
	}
	clear(l.ready)
	l.ready = l.ready[:0]
}

// happened has the owner told, or who waits, of an event that the loop took; of what has moved to another since, that one tells.
func (l *Loop) happened(c *Conn, e Event) {
	switch {
	case c != l.sought:
	case l.tardy:
		l.invain(c)
	default:
		l.came.Add(1)
		c.vain = 0
	}
	for c.loop.Load() == l {
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

// Heard is when this round began: what had come by then has been told of, to owners of what was left to the loop in a round before.
// Zero: more may have come than a round can take. Its goroutine calls it.
func (l *Loop) Heard() time.Time { return l.heard }

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

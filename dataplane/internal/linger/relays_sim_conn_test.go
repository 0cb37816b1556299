package linger_test

import (
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// simConn is one end of a connection between two processes: what is written arrives in its order and some time later.
type simConn struct {
	net.Conn // nil
	p        *simProc
	in, out  *simPipe
	closed   chan struct{}
	once     sync.Once
	deadline time.Time // of the reader
}

type simPipe struct {
	mu     sync.Mutex
	bytes  []byte
	marks  []simMark
	last   time.Time
	ended  bool
	notify chan struct{}
}

type simMark struct {
	n  int
	at time.Time
}

func (w *simWorld) link(a, b *simProc) (x, y net.Conn) {
	p, q := &simPipe{notify: make(chan struct{}, 1)}, &simPipe{notify: make(chan struct{}, 1)}
	return &simConn{p: a, in: p, out: q, closed: make(chan struct{})}, &simConn{p: b, in: q, out: p, closed: make(chan struct{})}
}

func (p *simPipe) rouse() {
	select {
	case p.notify <- struct{}{}:
	default:
	}
}

func (c *simConn) Write(b []byte) (int, error) {
	if !c.p.awake() {
		return 0, net.ErrClosed
	}
	c.p.w.mu.Lock()
	d := c.p.w.delay
	c.p.w.mu.Unlock()
	d = c.p.w.upTo(d)
	select {
	case <-c.closed:
		return 0, net.ErrClosed
	default:
	}
	c.out.mu.Lock()
	defer c.out.mu.Unlock()
	if c.out.ended {
		return 0, io.ErrClosedPipe
	}
	at := time.Now().Add(d)
	if at.Before(c.out.last) {
		at = c.out.last
	}
	c.out.last = at
	c.out.bytes = append(c.out.bytes, b...)
	c.out.marks = append(c.out.marks, simMark{len(b), at})
	c.out.rouse()
	return len(b), nil
}

func (c *simConn) Read(b []byte) (int, error) {
	for {
		if !c.p.awake() {
			return 0, net.ErrClosed
		}
		c.in.mu.Lock()
		wait, now := time.Hour, time.Now()
		if len(c.in.marks) > 0 {
			if m := &c.in.marks[0]; !now.Before(m.at) {
				n := copy(b, c.in.bytes[:m.n])
				c.in.bytes = c.in.bytes[n:]
				if m.n -= n; m.n == 0 {
					c.in.marks = c.in.marks[1:]
				}
				c.in.mu.Unlock()
				return n, nil
			} else {
				wait = m.at.Sub(now)
			}
		} else if c.in.ended {
			c.in.mu.Unlock()
			return 0, io.EOF
		}
		c.in.mu.Unlock()
		if !c.deadline.IsZero() {
			if !now.Before(c.deadline) {
				return 0, os.ErrDeadlineExceeded
			}
			wait = min(wait, c.deadline.Sub(now))
		}
		timer := time.NewTimer(wait)
		select {
		case <-c.closed:
			timer.Stop()
			return 0, net.ErrClosed
		case <-c.in.notify:
		case <-timer.C:
		}
		timer.Stop()
	}
}

func (c *simConn) Close() error {
	c.once.Do(func() {
		close(c.closed)
		for _, p := range []*simPipe{c.in, c.out} {
			p.mu.Lock()
			p.ended = true
			p.rouse()
			p.mu.Unlock()
		}
	})
	return nil
}

func (c *simConn) SetReadDeadline(t time.Time) error { c.deadline = t; return nil }
func (c *simConn) SetWriteDeadline(time.Time) error  { return nil }

package http2

import (
	"sync"
	"time"

	"bailiwick/dataplane/internal/head"
)

// Config of a Server. All fields are required.
type Config struct {
	MaxHead  int          // bytes of a request's head as it is decompressed, with 32 for each field; beyond it the answer is 431
	Go       func(func()) // starts a goroutine that somebody waits for
	Panicked func(p any)  // what a handler has panicked with
}

// Server has what connections share: goroutines that serve requests, and buffers.
type Server struct {
	cfg     Config
	spare   sync.Pool // *Stream
	buffers sync.Pool // *buffer

	mu     sync.Mutex // covers the rest
	idle   []*worker  // the last to have worked first to work again
	least  int        // how few were idle since the last sweep: so many are not needed
	swept  bool       // a sweep is due
	closed bool
}

// New makes a Server. Close it once no connection is left.
func New(cfg Config) *Server { return &Server{cfg: cfg} }

const sweepEvery = 5 * time.Second

// worker serves one stream at a time.
type worker struct{ jobs chan job }

// job is a stream to serve, or a connection to write to.
type job struct {
	s *Stream
	c *Conn
}

func (v *Server) do(j job) {
	v.mu.Lock()
	if n := len(v.idle); n > 0 {
		w := v.idle[n-1]
		v.idle[n-1], v.idle = nil, v.idle[:n-1]
		v.least = min(v.least, n-1)
		v.mu.Unlock()
		w.jobs <- j
		return
	}
	v.mu.Unlock()
	w := &worker{make(chan job, 1)}
	w.jobs <- j
	v.cfg.Go(func() { v.work(w) })
}

func (v *Server) work(w *worker) {
	for j := range w.jobs {
		if j.s != nil {
			j.s.run()
		} else {
			j.c.mu.Lock()
			j.c.hurried = false
			j.c.flush(true)
			j.c.idles()
			j.c.mu.Unlock()
		}
		v.mu.Lock()
		if v.closed {
			v.mu.Unlock()
			return
		}
		v.idle = append(v.idle, w)
		if !v.swept {
			v.swept, v.least = true, len(v.idle)
			time.AfterFunc(sweepEvery, v.sweep)
		}
		v.mu.Unlock()
	}
}

// sweep lets those go that nobody needed since the last one.
func (v *Server) sweep() {
	v.mu.Lock()
	defer v.mu.Unlock()
	n := min(v.least, len(v.idle))
	for _, w := range v.idle[:n] {
		close(w.jobs)
	}
	v.idle = append(v.idle[:0], v.idle[n:]...)
	clear(v.idle[len(v.idle):cap(v.idle)])
	v.least = len(v.idle)
	if v.swept = !v.closed && len(v.idle) > 0; v.swept {
		time.AfterFunc(sweepEvery, v.sweep)
	}
}

// Close lets all goroutines go that serve nothing. Those that do follow when they are done.
func (v *Server) Close() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.closed = true
	for _, w := range v.idle {
		close(w.jobs)
	}
	v.idle = nil
}

func (v *Server) get() *buffer {
	if b, _ := v.buffers.Get().(*buffer); b != nil {
		return b
	}
	return &buffer{make([]byte, 0, 2<<10)}
}

func (v *Server) put(b *buffer) {
	if cap(b.b) > 2*queueMost {
		return
	}
	clear(b.b) // a customer's bytes
	b.b = b.b[:0]
	v.buffers.Put(b)
}

// stream is one that is used again.
func (v *Server) stream(c *Conn, id uint32) *Stream {
	s, _ := v.spare.Get().(*Stream)
	if s == nil {
		s = &Stream{rwake: make(waker, 1), wwake: make(waker, 1)}
	}
	s.c, s.id = c, id
	s.block.Most = c.maxHead
	return s
}

// free gives it back: nobody may have it any more. Who has been told of it as net/http's request may look at it later.
func (s *Stream) free() {
	if s.shown {
		return
	}
	v, text, fields, body := s.c.v, s.block.Text, s.block.Fields, s.body
	if clear(text); cap(text) > keptText {
		text = nil
	}
	if clear(body); cap(body) > keptText {
		body = nil
	}
	clear(fields)
	*s = Stream{rwake: s.rwake, wwake: s.wwake, block: head.Block{Text: text[:0], Fields: fields[:0]}, body: body[:0]}
	v.spare.Put(s)
}

// waker is told that something may have changed. Whoever waits looks again.
type waker chan struct{}

func (w waker) wake() {
	select {
	case w <- struct{}{}:
	default:
	}
}

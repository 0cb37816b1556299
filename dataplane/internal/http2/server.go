package http2

import (
	"sync"

	"bailiwick/dataplane/internal/crew"
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
	crew    crew.Crew[job]
	counts  counts
}

// New makes a Server. Close it once no connection is left.
func New(cfg Config) *Server {
	v := &Server{cfg: cfg}
	v.crew = crew.Crew[job]{Go: cfg.Go, Work: v.work}
	return v
}

// job is a stream to serve, or a connection to write to.
type job struct {
	s *Stream
	c *Conn
}

func (v *Server) do(j job) { v.crew.Do(j) }

func (v *Server) work(j job) {
	if j.s != nil {
		j.s.run()
		return
	}
	j.c.mu.Lock()
	j.c.hurried = false
	j.c.flush(true)
	j.c.idles()
	j.c.mu.Unlock()
}

// Close lets all goroutines go that serve nothing. Those that do follow when they are done.
func (v *Server) Close() { v.crew.Close() }

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

package http3

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
	cfg    Config
	spare  sync.Pool // *Stream
	counts counts
	crew   crew.Crew[*Stream]
}

// New makes a Server. Close it once no connection is left.
func New(cfg Config) *Server {
	v := &Server{cfg: cfg}
	v.crew = crew.Crew[*Stream]{Go: cfg.Go, Work: (*Stream).run}
	return v
}

// Close lets all goroutines go that serve nothing. Those that do follow when they are done.
func (v *Server) Close() { v.crew.Close() }

// stream is one that is used again.
func (v *Server) stream() *Stream {
	s, _ := v.spare.Get().(*Stream)
	if s == nil {
		s = &Stream{reader: reader{buf: make([]byte, readBuffer)}}
	}
	s.block.Most = v.cfg.MaxHead
	return s
}

// free gives it back: nobody may have it any more. Who was shown it as net/http's request may look at it later.
func (v *Server) free(s *Stream) {
	if s.shown {
		return
	}
	buf, text, fields, body, out := s.buf, s.block.Text, s.block.Fields, s.body, s.out
	if clear(text); cap(text) > keptText {
		text = nil
	}
	if clear(body); cap(body) > keptText {
		body = nil
	}
	if clear(out); cap(out) > chunk+keptText {
		out = nil
	}
	if clear(buf[:s.most]); len(buf) > keptText {
		buf = make([]byte, readBuffer)
	}
	clear(fields)
	*s = Stream{reader: reader{buf: buf}, block: head.Block{Text: text[:0], Fields: fields[:0]}, body: body[:0], out: out[:0]}
	v.spare.Put(s)
}

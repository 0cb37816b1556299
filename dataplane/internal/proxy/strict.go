package proxy

import (
	"errors"
	"io"
	"net"
	"net/http"
	"sync"

	"bailiwick/dataplane/internal/http1"
)

// strictConn is a connection on which net/http asks an upstream, and on which it hears nothing that our own reader of answers
// (package http1) would not take: what two parsers could read in two ways is an error, whichever way a request goes. Nor does it
// hear what comes behind an answer: net/http has a connection idle before it looks whether anything is left on it, and a request
// that takes it at that moment, another customer's perhaps, would have that for its answer. On a connection that was found out
// nothing more is asked: its next request fails with nothing of it written, and may be sent elsewhere.
type strictConn struct {
	net.Conn       // over TLS, or wire itself
	wire     *wire // beneath it

	mu      sync.Mutex // covers the rest
	phase   uint8
	method  string
	before  int    // interim answers
	partial []byte // of a head that has not come whole
	answer  http1.Answer
	body    http1.Body
	last    bool  // nothing may be asked behind this answer
	err     error // what was found
	denied  bool  // to the request that has the connection
}

// Phases of a strictConn.
const (
	unasked uint8 = iota
	inHead
	inBody
	switched // the protocol is another
)

var (
	errUnsought = errors.New("the upstream said something that nobody had asked for")
	errSpent    = errors.New("nothing more can be asked on the connection")
)

// begin has the connection belong to a request, before any of it is written.
func (s *strictConn) begin(method string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.denied = s.err != nil || s.last || s.phase != unasked; !s.denied {
		s.phase, s.method, s.before = inHead, method, 0
	}
}

// Write implements net.Conn. What is left of a request whose answer has come early is written all the same.
func (s *strictConn) Write(p []byte) (int, error) {
	s.mu.Lock()
	denied := s.denied
	s.mu.Unlock()
	if denied {
		return 0, errSpent
	}
	return s.Conn.Write(p)
}

// Read implements net.Conn.
func (s *strictConn) Read(p []byte) (int, error) {
	s.mu.Lock()
	err := s.err
	s.mu.Unlock()
	if err != nil {
		return 0, err
	}
	n, err := s.Conn.Read(p)
	if n == 0 {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	used, bad := s.take(p[:n])
	if s.err = bad; bad == nil || used > 0 {
		return used, err
	}
	return 0, bad
}

// take follows what has come, and says how much of it net/http may hear.
func (s *strictConn) take(p []byte) (used int, err error) {
	for used < len(p) {
		n := 0
		switch rest := p[used:]; s.phase {
		case unasked:
			return used, errUnsought
		case switched:
			n = len(rest)
		case inHead:
			n, err = s.takeHead(rest)
		case inBody:
			if n, err = s.body.Pass(rest); err == io.EOF {
				s.phase, err = unasked, nil
			}
		}
		if used += n; err != nil {
			return used, err
		}
	}
	return used, nil
}

func (s *strictConn) takeHead(p []byte) (int, error) {
	seen, head := len(s.partial), p
	if seen > 0 {
		s.partial = append(s.partial, p...)
		head = s.partial
	}
	end, err := http1.Scan(head, seen)
	if err != nil {
		return 0, err
	}
	if end == 0 {
		if seen == 0 {
			s.partial = append(s.partial, p...)
		}
		if len(s.partial) > answerHead {
			return 0, http1.ErrTooLarge
		}
		return len(p), nil
	}
	if err := s.answer.Parse(view(head[:end]), s.method); err != nil {
		return 0, err
	}
	s.partial = nil
	a := &s.answer
	switch {
	case a.Status == http.StatusSwitchingProtocols:
		s.phase = switched
	case a.Status < 200:
		if s.before++; s.before > interims {
			return 0, errInterims
		}
	default:
		s.last = a.Close
		if s.phase = unasked; a.Length != 0 {
			s.phase, s.body = inBody, *http1.NewBody(nil, a.Length, answerHead)
		}
	}
	return end - seen, nil
}

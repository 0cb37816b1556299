package http2

import (
	"context"
	"io"
	"net/http"
	"os"
	"strconv"
	"time"

	"bailiwick/dataplane/internal/head"
	"bailiwick/dataplane/internal/http1"
)

// HTTP serves the request by a handler of net/http's. Whatever it panics with ends the stream: http.ErrAbortHandler without a
// word.
func (s *Stream) HTTP(serve http.HandlerFunc) {
	c := s.c
	s.shown = true
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	c.mu.Lock()
	s.cancel = cancel
	if s.gone != nil {
		cancel(s.gone)
	}
	ended := s.ended && len(s.body) == s.read && s.trailer == nil
	c.mu.Unlock()
	r, err := head.Request(&s.Request, "HTTP/2.0", 2, c.peer.Remote, c.peer.TLS)
	if err != nil {
		s.Plain(http.StatusBadRequest, http1.ErrRequest.Error())
		return
	}
	r = r.WithContext(ctx)
	w := &responder{s: s, r: r, header: http.Header{}, left: -1, invites: s.Request.Continue}
	if !ended {
		b := &requestBody{c: c, s: s, w: w}
		r.Body = b
		defer b.end()
	}
	defer func() {
		w.over = true
		if p := recover(); p != nil {
			if p != http.ErrAbortHandler {
				c.v.cfg.Panicked(p)
			}
			s.Reset(InternalError)
		}
	}()
	serve(w, r)
	w.finish()
}

// requestBody is the body of a request. A transport may read it from another goroutine, and a moment longer than the handler
// runs.
type requestBody struct {
	c *Conn
	w *responder
	s *Stream // nil: the request is over; c.mu covers it
}

func (b *requestBody) Read(p []byte) (int, error) {
	c := b.c
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		s := b.s
		if s == nil {
			return 0, http.ErrBodyReadAfterClose
		}
		if b.w.invites {
			b.w.invites = false
			if !b.w.sent && s.gone == nil {
				c.heads(s.id, AppendStatus(nil, http.StatusContinue), false)
				c.soon()
				continue
			}
		}
		if n := copy(p, s.body[s.read:]); n > 0 {
			clear(s.body[s.read : s.read+n])
			if s.read += n; s.read == len(s.body) {
				s.body, s.read = s.body[:0], 0
			}
			c.took(s, int64(n))
			c.soon()
			return n, nil
		}
		switch {
		case s.gone != nil:
			return 0, s.gone
		case s.ended:
			if s.trailer != nil {
				b.w.r.Trailer = s.trailer
			}
			return 0, io.EOF
		case len(p) == 0:
			return 0, nil
		}
		var late <-chan time.Time
		if !s.readUntil.IsZero() {
			left := time.Until(s.readUntil)
			if left <= 0 {
				return 0, os.ErrDeadlineExceeded
			}
			t := time.NewTimer(left)
			defer t.Stop()
			late = t.C
		}
		c.mu.Unlock()
		select {
		case <-s.rwake:
		case <-late:
		}
		c.mu.Lock()
	}
}

// end stops reading, also by whoever is in the middle of it.
func (b *requestBody) end() {
	b.c.mu.Lock()
	defer b.c.mu.Unlock()
	s := b.s
	b.s = nil
	s.rwake.wake()
}

func (b *requestBody) Close() error { return nil }

// responder is an answer as net/http's handlers give it. One goroutine uses it at a time.
type responder struct {
	s      *Stream
	r      *http.Request
	header http.Header

	status  int
	wrote   bool   // the head was given
	sent    bool   // the head is queued; the connection's mu covers it
	invites bool   // the client waits to be told that it may send the body; likewise
	left    int64  // of a declared length; -1: none was
	pending []byte // of the body, before the head is made
	failed  error
	over    bool // the handler has returned
}

func (w *responder) Header() http.Header { return w.header }

func (w *responder) WriteHeader(status int) {
	if w.wrote || w.over {
		return
	}
	if status < 200 {
		if status != http.StatusSwitchingProtocols && status >= 100 {
			w.interim(status)
		}
		return
	}
	w.wrote, w.status = true, status
	if declared := w.header["Content-Length"]; len(declared) == 1 {
		if n, ok := http1.Number(declared[0]); ok {
			w.left = n
			return
		}
	}
	delete(w.header, "Content-Length")
}

// interim sends an answer before the answer.
func (w *responder) interim(status int) {
	c := w.s.c
	block := w.fields(AppendStatus(nil, status), false)
	c.mu.Lock()
	defer c.mu.Unlock()
	if status == http.StatusContinue {
		w.invites = false
	}
	if w.s.begin(block, false) == nil {
		c.flush(false)
	}
}

func (w *responder) bodiless() bool {
	return w.r.Method == http.MethodHead || w.status == 204 || w.status == 304
}

func (w *responder) Write(p []byte) (int, error) {
	if !w.wrote {
		w.WriteHeader(http.StatusOK)
	}
	switch {
	case w.over:
		return 0, errOver
	case w.failed != nil:
		return 0, w.failed
	case w.bodiless():
		return len(p), nil
	}
	if w.left >= 0 {
		if int64(len(p)) > w.left {
			w.failed = http.ErrContentLength
			return 0, w.failed
		}
		w.left -= int64(len(p))
	}
	if w.left != 0 && len(w.pending)+len(p) < smallBody && !w.sent {
		w.pending = append(w.pending, p...)
		return len(p), nil
	}
	if w.flush(p, w.left == 0); w.failed != nil {
		return 0, w.failed
	}
	return len(p), nil
}

// flush sends what is pending, and p; last: with that all of the body is.
func (w *responder) flush(p []byte, last bool) {
	if w.failed != nil {
		return
	}
	if len(w.pending) > 0 {
		p = append(w.pending, p...)
		w.pending = nil
	}
	trailers := w.trailers()
	s, c := w.s, w.s.c
	ends := last && len(trailers) == 0
	var block []byte
	if !w.sent {
		block = w.head(last, len(p))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.answered {
		return
	}
	if !w.sent {
		w.sent = true
		if w.failed = s.begin(block, ends && len(p) == 0); w.failed != nil || s.answered {
			return
		}
	}
	if len(p) > 0 {
		if w.failed = s.send(p, ends, 0); w.failed != nil {
			return
		}
	}
	switch {
	case !last:
		c.flush(false)
	case len(trailers) > 0:
		w.failed = s.begin(trailers, true)
	case !s.answered:
		w.failed = s.send(nil, true, 0)
	}
}

// head is the block of the head. If all of the answer is here, its length is known.
func (w *responder) head(all bool, n int) []byte {
	b := w.fields(AppendStatus(make([]byte, 0, 512), w.status), w.status == 204)
	if all && w.header["Content-Length"] == nil && !w.bodiless() {
		b = AppendField(b, "content-length", strconv.Itoa(n))
	}
	if w.header["Date"] == nil {
		b = AppendField(b, "date", time.Now().UTC().Format(http.TimeFormat))
	}
	return b
}

// fields adds those of the header that may be in an answer.
func (w *responder) fields(b []byte, unsized bool) []byte {
	head.Fields(w.header, unsized, func(name, value string) { b = AppendField(b, name, value) })
	return b
}

// trailers is the block of those that the handler has set by now; empty: none.
func (w *responder) trailers() (b []byte) {
	head.Trailers(w.header, func(name, value string) { b = AppendField(b, name, value) })
	return b
}

// finish completes the answer.
func (w *responder) finish() {
	if !w.wrote {
		w.WriteHeader(http.StatusOK)
	}
	if w.left > 0 && !w.bodiless() { // it is shorter than was said: nobody should take it for whole
		w.s.Reset(InternalError)
		return
	}
	w.flush(nil, true)
}

// FlushError implements what http.ResponseController asks for.
func (w *responder) FlushError() error {
	if !w.wrote {
		w.WriteHeader(http.StatusOK)
	}
	w.flush(nil, false)
	return w.failed
}

func (w *responder) Flush() { w.FlushError() }

func (w *responder) SetReadDeadline(t time.Time) error {
	c := w.s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	w.s.readUntil = t
	w.s.rwake.wake()
	return nil
}

func (w *responder) SetWriteDeadline(t time.Time) error {
	c := w.s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	w.s.sendUntil = t
	w.s.wwake.wake()
	return nil
}

// EnableFullDuplex implements what http.ResponseController asks for: HTTP/2 always is.
func (w *responder) EnableFullDuplex() error { return nil }

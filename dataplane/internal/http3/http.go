package http3

import (
	"context"
	"io"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"

	"bailiwick/dataplane/internal/head"
	"bailiwick/dataplane/internal/http1"
)

// HTTP serves the request by a handler of net/http's. Whatever it panics with ends the stream: http.ErrAbortHandler without a
// word.
func (s *Stream) HTTP(serve http.HandlerFunc) {
	c := s.c
	s.shown = true
	r, err := head.Request(&s.Request, "HTTP/3.0", 3, c.peer.Remote(), c.peer.TLS)
	if err != nil {
		s.Plain(http.StatusBadRequest, http1.ErrRequest.Error())
		return
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	defer context.AfterFunc(s.q.Context(), func() { // it ends with the connection, when the client wants no answer, and once all of it is given
		if why := context.Cause(s.q.Context()); why != quic.ErrStreamClosed {
			cancel(why)
		}
	})()
	r = r.WithContext(ctx)
	w := &responder{s: s, r: r, header: http.Header{}, left: -1, invites: s.Request.Continue}
	if s.read < len(s.body) || !s.eof || s.r < s.w || s.trailer != nil {
		b := &requestBody{s: s, w: w}
		r.Body = b
		s.q.SetReadDeadline(time.Time{}) // an upload may take long; the request path has its own limits
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
	w.complete()
}

// requestBody is the body of a request. A transport may read it from another goroutine, and a moment longer than the handler
// runs.
type requestBody struct {
	w *responder

	mu   sync.Mutex // covers what was read of the stream, as long as it is not over
	s    *Stream
	over bool
}

func (b *requestBody) Read(p []byte) (int, error) {
	b.w.invite()
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.s
	switch {
	case b.over:
		return 0, http.ErrBodyReadAfterClose
	case s.read < len(s.body):
		n := copy(p, s.body[s.read:])
		clear(s.body[s.read : s.read+n])
		s.read += n
		return n, nil
	case len(p) == 0:
		return 0, nil
	}
	if s.failed == nil && s.left > 0 && s.r == s.w && !s.eof { // straight to whoever reads
		n, err := s.q.Read(p[:min(uint64(len(p)), s.left)])
		if err == io.EOF {
			s.eof = true
			err = nil
		}
		if n > 0 {
			s.left -= uint64(n)
			s.got += int64(n)
			return n, nil
		}
		if err != nil {
			return 0, s.stopped(err)
		}
	}
	piece, err := s.piece()
	if err == io.EOF && s.trailer != nil {
		b.w.r.Trailer = s.trailer
	}
	if err != nil {
		return 0, err
	}
	n := copy(p, piece)
	s.take(n)
	return n, nil
}

// end stops reading, also by whoever is in the middle of it.
func (b *requestBody) end() {
	b.s.q.SetReadDeadline(time.Unix(1, 0))
	b.mu.Lock()
	defer b.mu.Unlock()
	b.over = true
}

func (b *requestBody) Close() error { return nil }

// responder is an answer as net/http's handlers give it. One goroutine uses it at a time, but for invite.
type responder struct {
	s      *Stream
	r      *http.Request
	header http.Header

	status  int
	wrote   bool   // the head was given
	left    int64  // of a declared length; -1: none was
	pending []byte // of the body, before the head is made
	failed  error
	over    bool         // the handler has returned
	until   atomic.Int64 // ns of Unix time; 0: none. Somebody else may end who writes

	mu      sync.Mutex // covers writing the head and what is before it
	sent    bool       // the head was
	invites bool       // the client waits to be told that it may send the body
}

func (w *responder) Header() http.Header { return w.header }

// invite tells a client that waits for it to send the body.
func (w *responder) invite() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.invites && !w.sent {
		section := AppendStatus(nil, http.StatusContinue)
		w.s.q.TryWriteAll(append(appendFrame(nil, frameHeaders, len(section)), section...)) // it may send without having heard
	}
	w.invites = false
}

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

// interim sends an answer before the answer, whole or, where the client gives no room for it, not at all: nobody waits for it, and
// half of one would be read as the beginning of what follows.
func (w *responder) interim(status int) {
	section := w.fields(AppendStatus(nil, status), false)
	w.mu.Lock()
	defer w.mu.Unlock()
	if status == http.StatusContinue {
		w.invites = false
	}
	if w.s.reset {
		return
	}
	w.s.q.TryWriteAll(append(appendFrame(nil, frameHeaders, len(section)), section...))
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
	s := w.s
	if w.failed != nil || s.answered {
		return
	}
	if s.reset {
		w.failed = errOver
		return
	}
	if len(w.pending) > 0 {
		p = append(w.pending, p...)
		w.pending = nil
	}
	b := s.out[:0]
	if !w.sent {
		section := w.section(last, len(p))
		b = append(appendFrame(b, frameHeaders, len(section)), section...)
		w.mu.Lock()
		w.sent = true
		w.mu.Unlock()
	}
	var trailers []byte
	if last {
		trailers = w.trailers()
	}
	for first := true; first || len(p) > 0; first = false {
		n := min(len(p), chunk)
		if n > 0 {
			b = append(appendFrame(b, frameData, n), p[:n]...)
			p = p[n:]
		}
		if len(p) == 0 && len(trailers) > 0 {
			b = append(appendFrame(b, frameHeaders, len(trailers)), trailers...)
		}
		s.out = b
		if len(b) == 0 {
			break
		}
		if w.failed = s.write(b, &w.until); w.failed != nil {
			return
		}
		b = b[:0]
	}
	if last {
		w.failed = s.finish()
	}
}

// section is the field section of the head. If all of the answer is here, its length is known.
func (w *responder) section(all bool, n int) []byte {
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

// trailers is the field section of those that the handler has set by now; empty: none.
func (w *responder) trailers() (b []byte) {
	head.Trailers(w.header, func(name, value string) {
		if b == nil {
			b = AppendTrailer(nil)
		}
		b = AppendField(b, name, value)
	})
	return b
}

// complete completes the answer.
func (w *responder) complete() {
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

// SetReadDeadline implements what http.ResponseController asks for.
func (w *responder) SetReadDeadline(t time.Time) error { return w.s.q.SetReadDeadline(t) }

// SetWriteDeadline implements what http.ResponseController asks for.
func (w *responder) SetWriteDeadline(t time.Time) error {
	at := int64(0)
	if !t.IsZero() {
		at = t.UnixNano()
	}
	w.until.Store(at) // before it is set, and at once: see heed
	return w.s.q.SetWriteDeadline(t)
}

// EnableFullDuplex implements what http.ResponseController asks for: HTTP/3 always is.
func (w *responder) EnableFullDuplex() error { return nil }

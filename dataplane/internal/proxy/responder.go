package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/textproto"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"bailiwick/dataplane/internal/http1"
)

// slow serves the request through net/http's types.
func (c *conn) slow(serve http.HandlerFunc) (keep bool) {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	r, err := c.http()
	if err != nil {
		c.plain(http.StatusBadRequest, http1.ErrRequest.Error())
		return false
	}
	r = r.WithContext(ctx)
	w := &responder{c: c, r: r, header: http.Header{}, left: -1}
	b := &clientBody{c: c, r: r, body: http1.NewBody(c, c.req.Length, c.door.maxHeader), cancel: cancel, more: c.req.Continue && c.req.Minor > 0}
	w.body, b.body.Request = b, true
	last := c.req.Close
	c.until, c.wuntil = time.Time{}, time.Time{}
	c.rwc.SetDeadline(time.Time{}) // an upload or a stream may take long; the request path has its own limits
	if c.req.Length != 0 {
		r.Body = b
	} else {
		b.whole.Store(true)
		c.ahead.start(c, cancel)
	}
	defer func() {
		b.end()
		c.ahead.stop(c)
		c.rwc.SetDeadline(time.Time{}) // the handler may have set others
		c.until, c.wuntil = time.Time{}, time.Time{}
		if p := recover(); p != nil {
			c.panicked(p)
			keep = false
			// Whoever reads must see that this is no end.
			c.abort()
		}
	}()
	serve(w, r)
	keep = w.finish() && !last && b.whole.Load()
	if w.failed && r.ProtoMinor == 0 { // a client that was too slow reads on, up to an end that is none
		c.abort()
	}
	return keep
}

// abort breaks the connection: a clean end would make half an answer look whole.
func (c *conn) abort() {
	if t, ok := c.raw.(interface{ SetLinger(int) error }); ok && c.req.Minor == 0 { // an answer without a length ends where the connection does
		t.SetLinger(0)
	}
	c.raw.Close()
}

// http is the request as net/http has it. Its text is its own.
func (c *conn) http() (*http.Request, error) {
	q := &c.req
	r := &http.Request{Method: strings.Clone(q.Method), RequestURI: strings.Clone(q.Target), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: q.Minor, ContentLength: q.Length,
		Host: strings.Clone(q.Authority), RemoteAddr: c.remote, TLS: c.state, Header: make(http.Header, len(q.Fields)), Body: http.NoBody,
		Close: q.Close || q.Expects} // who expects what nobody knows may send its body or not
	if q.Minor == 0 {
		r.Proto = "HTTP/1.0"
	}
	if q.Length == http1.Chunked {
		r.TransferEncoding = []string{"chunked"}
	}
	for i := range q.Fields {
		f := &q.Fields[i]
		if f.Kind == http1.Host || f.Kind == http1.TransferEncoding {
			continue
		}
		name := textproto.CanonicalMIMEHeaderKey(strings.Clone(f.Name))
		r.Header[name] = append(r.Header[name], strings.Clone(f.Value))
	}
	var err error
	switch {
	case q.Path == "": // of CONNECT, or the asterisk
		r.URL = &url.URL{Path: "*"}
	default:
		target := strings.Clone(q.Path)
		if q.HasQuery {
			target += "?" + q.Query
		}
		r.URL, err = url.ParseRequestURI(target)
	}
	return r, err
}

// Peek implements http1.Source.
func (c *conn) Peek() ([]byte, error) {
	if c.r == c.w {
		c.r, c.w = 0, 0
		if err := c.read(); err != nil {
			return nil, err
		}
	}
	return c.buf[c.r:c.w], nil
}

// Discard implements http1.Source.
func (c *conn) Discard(n int) { c.r += n }

// Read implements http1.Source.
func (c *conn) Read(p []byte) (int, error) {
	if c.r == c.w {
		return c.rwc.Read(p)
	}
	n := copy(p, c.buf[c.r:c.w])
	c.r += n
	return n, nil
}

// clientBody is the body of a request. A transport may read it from another goroutine, and a moment longer than the handler
// runs.
type clientBody struct {
	c      *conn
	r      *http.Request
	cancel context.CancelCauseFunc
	whole  atomic.Bool // it was read to its end

	ask  sync.Mutex // covers more, and telling the client
	more bool       // the client waits to be told that it may send it

	mu   sync.Mutex // covers the rest, and reading of the connection while the body lasts
	body *http1.Body
	over bool // the request is
}

// invite tells a client that waits for it to send the body. false: it cannot be told.
func (b *clientBody) invite() bool {
	b.ask.Lock()
	defer b.ask.Unlock()
	if !b.more {
		return true
	}
	b.more = false
	return b.c.write([]byte("HTTP/1.1 100 Continue\r\n\r\n"), time.Now())
}

// answered says that the answer's head is about to leave: whoever reads the body from now on must not write into that. true:
// the client was never told to send the body.
func (b *clientBody) answered() (waits bool) {
	b.ask.Lock()
	defer b.ask.Unlock()
	waits, b.more = b.more, false
	return waits
}

func (b *clientBody) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.over {
		return 0, http.ErrBodyReadAfterClose
	}
	if !b.invite() {
		return 0, io.ErrUnexpectedEOF
	}
	n, err := b.body.Read(p)
	if err == io.EOF && !b.whole.Swap(true) {
		for _, f := range b.body.Trailer() {
			if b.r.Trailer == nil {
				b.r.Trailer = http.Header{}
			}
			b.r.Trailer.Add(f.Name, f.Value)
		}
		b.c.ahead.start(b.c, b.cancel)
	}
	return n, err
}

// drain passes over a body that nobody wanted, as far as it is here; false: it is not read to its end.
func (b *clientBody) drain() bool {
	if !b.mu.TryLock() { // somebody reads it
		return false
	}
	defer b.mu.Unlock()
	b.c.rwc.SetReadDeadline(time.Unix(1, 0)) // between chunks the reader would wait for what is not here
	defer b.c.rwc.SetReadDeadline(time.Time{})
	var pass [512]byte
	for b.c.r < b.c.w && !b.body.Done() {
		if _, err := b.body.Read(pass[:]); err != nil && err != io.EOF {
			return false
		}
	}
	if b.body.Done() {
		b.whole.Store(true)
	}
	return b.whole.Load()
}

// end stops reading, also by whoever is in the middle of it.
func (b *clientBody) end() {
	if !b.whole.Load() {
		b.c.rwc.SetReadDeadline(time.Unix(1, 0))
	}
	b.mu.Lock()
	b.over = true
	b.mu.Unlock()
}

func (b *clientBody) Close() error { return nil }

// watch reads one byte ahead while a request is served, so that a client that leaves is noticed.
type watch struct {
	mu    sync.Mutex // covers on
	on    bool
	over  chan struct{}
	got   [1]byte
	n     int
	ended bool
}

var errGone = errors.New("the client left")

func (a *watch) start(c *conn, cancel context.CancelCauseFunc) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.on || a.ended || c.r != c.w { // bytes of a further request say that it is there
		return
	}
	a.on, a.n, a.over = true, 0, make(chan struct{})
	c.rwc.SetReadDeadline(time.Time{})
	over := a.over
	c.door.wg.Go(func() {
		defer close(over)
		n, err := c.rwc.Read(a.got[:])
		if a.n = n; n == 0 && err != nil && !isTimeout(err) {
			cancel(errGone)
		}
	})
}

// stop ends it. The byte that it got is the first of the next request.
func (a *watch) stop(c *conn) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.on {
		return
	}
	c.rwc.SetReadDeadline(time.Unix(1, 0))
	<-a.over
	a.on = false
	if a.n == 1 {
		c.buf[0] = a.got[0]
		c.r, c.w = 0, 1
	}
}

// responder is an answer as net/http's handlers give it.
type responder struct {
	c      *conn
	r      *http.Request
	body   *clientBody
	header http.Header

	status  int
	wrote   bool  // the head was given
	sent    bool  // the head has left, or is in out
	chunked bool  //
	left    int64 // of a declared length; -1: none was
	out     []byte
	pending []byte // of the body, before the head is made
	failed  bool
	ends    bool // the connection ends with the answer
	bounded bool // the handler has set a deadline of its own
	taken   bool // the connection is somebody else's now
}

func (w *responder) Header() http.Header { return w.header }

func (w *responder) WriteHeader(status int) {
	if w.wrote || status < 200 { // others of its kind are not passed on
		if !w.wrote && status == http.StatusEarlyHints {
			w.hint()
		}
		return
	}
	w.wrote, w.status = true, status
}

func (w *responder) bodiless() bool {
	return w.r.Method == http.MethodHead || w.status == 204 || w.status == 304
}

const responderBuffer = 4 << 10

func (w *responder) Write(p []byte) (int, error) {
	if !w.wrote {
		w.WriteHeader(http.StatusOK)
	}
	if w.failed {
		return 0, io.ErrClosedPipe
	}
	if w.bodiless() {
		return len(p), nil
	}
	if len(w.pending)+len(p) < responderBuffer && !w.sent {
		w.pending = append(w.pending, p...)
		return len(p), nil
	}
	if err := w.flush(p, false); err != nil {
		return 0, err
	}
	return len(p), nil
}

// flush writes what is pending, p and, if last, the end.
func (w *responder) flush(p []byte, last bool) error {
	if !w.sent {
		w.begin(last)
	}
	n := int64(len(w.pending) + len(p))
	if w.left >= 0 && n > w.left {
		w.failed = true
		return http.ErrContentLength
	}
	if n > 0 {
		if w.chunked {
			w.out = fmt.Appendf(w.out, "%x\r\n", n)
		}
		w.out = append(append(w.out, w.pending...), p...)
		if w.chunked {
			w.out = append(w.out, '\r', '\n')
		}
		if w.left >= 0 {
			w.left -= n
		}
		w.pending = w.pending[:0]
	}
	if last && w.chunked {
		w.out = append(w.out, '0', '\r', '\n')
		for name, values := range w.header {
			if name, ok := strings.CutPrefix(name, http.TrailerPrefix); ok {
				for _, v := range values {
					w.out = append(w.out, name...)
					w.out = append(w.out, ": "...)
					w.out = append(append(w.out, clean(v)...), '\r', '\n')
				}
			}
		}
		w.out = append(w.out, '\r', '\n')
	}
	if len(w.out) == 0 {
		return nil
	}
	if !w.bounded { // a client that takes nothing must not hold a connection for ever
		w.c.rwc.SetWriteDeadline(time.Now().Add(sendTimeout))
	}
	_, err := w.c.rwc.Write(w.out)
	w.out = w.out[:0]
	if err != nil {
		w.failed = true
	}
	return err
}

// begin makes the head. If all of the answer is here, its length is known.
func (w *responder) begin(all bool) {
	w.sent = true
	h := w.header
	waits := w.body.answered()
	w.ends = w.r.Close || w.c.door.shut.Load() || !w.body.whole.Load() && (waits || !w.body.drain())
	w.out = fmt.Appendf(w.out[:0], "HTTP/1.1 %d %s", w.status, http.StatusText(w.status))
	declared := h["Content-Length"]
	if len(declared) == 1 {
		var n int64
		if _, err := fmt.Sscanf(declared[0], "%d", &n); err == nil && n >= 0 && !w.bodiless() {
			w.left = n
		}
	} else {
		delete(h, "Content-Length")
	}
	switch {
	case w.left >= 0 || w.bodiless():
	case all:
		w.left = int64(len(w.pending))
		w.out = fmt.Appendf(w.out, "\r\nContent-Length: %d", w.left)
	case w.r.ProtoMinor == 1:
		w.chunked = true
		w.out = append(w.out, "\r\nTransfer-Encoding: chunked"...)
	default:
		w.ends = true
	}
	for name, values := range h {
		if strings.HasPrefix(name, http.TrailerPrefix) || name == "Transfer-Encoding" || name == "Connection" || name == "Content-Length" && w.status == 204 {
			continue
		}
		for _, v := range values {
			w.out = field(w.out, name, clean(v))
		}
	}
	if h["Date"] == nil {
		w.out = append(w.out, "\r\nDate: "...)
		w.out = appendDate(w.out, time.Now())
	}
	if h["Upgrade"] != nil { // what would be spoken belongs to the connection
		w.out = append(w.out, "\r\nConnection: Upgrade"...)
	}
	if w.ends {
		w.out = append(w.out, "\r\nConnection: close"...)
	}
	w.out = append(w.out, "\r\n\r\n"...)
}

// clean keeps a value on its line.
func clean(v string) string {
	if strings.ContainsAny(v, "\r\n\x00") {
		return strings.NewReplacer("\r", " ", "\n", " ", "\x00", " ").Replace(v)
	}
	return v
}

// finish completes the answer. false: the connection ends.
func (w *responder) finish() bool {
	if w.taken {
		return false
	}
	if !w.wrote {
		w.WriteHeader(http.StatusOK)
	}
	if !w.failed && w.flush(nil, true) == nil && w.left <= 0 && !w.ends {
		return true
	}
	return false
}

// FlushError implements what http.ResponseController asks for.
func (w *responder) FlushError() error {
	if !w.wrote {
		w.WriteHeader(http.StatusOK)
	}
	return w.flush(nil, false)
}

func (w *responder) SetReadDeadline(t time.Time) error { return w.c.rwc.SetReadDeadline(t) }
func (w *responder) SetWriteDeadline(t time.Time) error {
	w.bounded = !t.IsZero()
	return w.c.rwc.SetWriteDeadline(t)
}

// takeOver ends HTTP on the connection with a last head; nil: the client does not take it. Whoever gets the leg reads what the
// client has sent meanwhile, and breaks it when done.
func (w *responder) takeOver(head []byte) *connLeg {
	c := w.c
	w.taken, w.wrote, w.sent = true, true, true
	c.ahead.stop(c)
	c.rwc.SetDeadline(time.Time{})
	c.rwc.SetWriteDeadline(time.Now().Add(sendTimeout))
	if _, err := c.rwc.Write(head); err != nil {
		return nil
	}
	c.rwc.SetWriteDeadline(time.Time{})
	l := &connLeg{Conn: c.rwc, early: c.buf[c.r:c.w], going: c.door.going}
	c.r, c.w = 0, 0
	return l
}

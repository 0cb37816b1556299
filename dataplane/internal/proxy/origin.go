package proxy

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/textproto"
	"strings"
	"sync"
	"time"
	"unsafe"

	"bailiwick/dataplane/internal/direct"
	"bailiwick/dataplane/internal/failover"
	"bailiwick/dataplane/internal/http1"
)

// Limits of what upstreams say.
const (
	answerHead = 256 << 10 // bytes of a head
	interims   = 8         // 1xx answers before the one that counts
	linkBuffer = 4 << 10   // of a connection; it grows to answerHead
	linkIdle   = 60 * time.Second
)

// view is b as text without a copy. It is good as long as nobody writes to b: no value of it outlives the request.
func view(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// origin is one upstream's connections. One request has a connection at a time; what is not used stays for the next,
// the newest first, so that those not needed any more grow old and go.
type origin struct {
	dial func(ctx context.Context) (net.Conn, error)
	max  int

	mu     sync.Mutex // covers the rest
	idle   []*link
	stocks []*stock // of loops
	swept  bool     // a sweep is due
	closed int      // times that all idle ones were closed: a link from before is not kept
}

// link is one connection. What arrived and was not taken yet is in buf[r:w].
type link struct {
	o      *origin
	conn   net.Conn
	buf    []byte
	r, w   int
	answer http1.Answer
	asked  bool // it served a request before: it may have been closed meanwhile
	since  time.Time
	until  time.Time // the deadline that is set
	age    int
	direct *direct.Conn   // the same as conn; nil: it cannot be asked whether something has arrived
	hint   func([]string) // has an answer's hints; nil: they are in early, and errHints is said of them
	early  []string
	still  bool // reading waits for nothing: http1.ErrWait
	before int  // interim answers to the request under way
	looped
}

// get gives an idle one: a loop's own, or for nil one that no loop has.
func (o *origin) get(t *turn) *link {
	if t != nil {
		return o.take(t)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	n := len(o.idle)
	if n == 0 {
		return nil
	}
	l := o.idle[n-1]
	o.idle[n-1], o.idle = nil, o.idle[:n-1]
	return l
}

func (o *origin) open(ctx context.Context, home *turn) (*link, error) {
	conn, err := o.dial(ctx)
	if err != nil {
		return nil, err
	}
	if home != nil {
		if l := o.adopt(conn, home); l != nil {
			return l, nil
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	l := &link{o: o, conn: direct.New(conn), buf: make([]byte, linkBuffer), age: o.closed}
	l.direct, _ = l.conn.(*direct.Conn)
	return l, nil
}

// put gives back a connection whose answer was read to its end.
func (o *origin) put(l *link, now time.Time) {
	if l.r != l.w || l.answer.Close { // bytes that nobody asked for: whose answer would they be?
		l.conn.Close()
		return
	}
	full := l.w == len(l.buf)
	l.r, l.w, l.asked, l.since = 0, 0, true, now
	if l.home != nil {
		o.stow(l, full)
		return
	}
	if len(l.buf) > linkBuffer {
		l.buf = make([]byte, linkBuffer)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.idle) >= o.max || l.age != o.closed {
		l.conn.Close()
		return
	}
	o.idle = append(o.idle, l)
	o.sweepSoon()
}

// sweepSoon has it swept, with mu held.
func (o *origin) sweepSoon() {
	if !o.swept {
		o.swept = true
		time.AfterFunc(linkIdle/2, o.sweep)
	}
}

// sweep closes what has been idle for long, and comes back while there is any.
func (o *origin) sweep() {
	o.mu.Lock()
	defer o.mu.Unlock()
	old := 0
	for old < len(o.idle) && time.Since(o.idle[old].since) > linkIdle {
		o.idle[old].conn.Close()
		old++
	}
	o.idle = append(o.idle[:0], o.idle[old:]...)
	left := len(o.idle)
	for _, s := range o.stocks {
		left += s.sweep(linkIdle)
	}
	if o.swept = left > 0; o.swept {
		time.AfterFunc(linkIdle/2, o.sweep)
	}
}

func (o *origin) closeIdle() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, l := range o.idle {
		l.conn.Close()
	}
	o.idle = nil
	o.closed++
	for _, s := range o.stocks {
		s.sweep(0)
	}
}

// ask writes a request and waits for the first of its answer. written: all of the request may have reached the upstream. On a
// connection on which something has arrived nothing is written, and the error is direct.ErrStale: its end, or an answer that
// nobody has asked for and that this request, another customer's, would get for its own. errUnasked says that the deadline had
// passed before anything was written: this machine was slow, and not the upstream.
func (l *link) ask(request []byte) (written bool, err error) {
	n, got := 0, 0
	if l.direct != nil {
		n, got, err = l.direct.Ask(request, l.buf)
		l.w += got
		if n == 0 && isTimeout(err) {
			return false, errUnasked
		}
	} else if l.lc != nil {
		if !l.lc.Quiet() {
			return false, direct.ErrStale
		}
		if n, err = l.lc.Write(request); n == 0 && isTimeout(err) {
			return false, errUnasked
		}
		return n == len(request), err
	}
	if err == nil && n < len(request) {
		_, err = l.conn.Write(request[n:])
		return err == nil, err
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return n == len(request), err
}

// Peek implements http1.Source.
func (l *link) Peek() ([]byte, error) {
	if l.r == l.w {
		l.r, l.w = 0, 0
		n, err := l.fetch(l.buf)
		if n == 0 {
			if err == nil {
				err = io.ErrNoProgress
			}
			return nil, err
		}
		l.w = n
	}
	return l.buf[l.r:l.w], nil
}

// Discard implements http1.Source.
func (l *link) Discard(n int) { l.r += n }

// Read implements http1.Source.
func (l *link) Read(p []byte) (int, error) {
	if l.r == l.w {
		return l.fetch(p)
	}
	n := copy(p, l.buf[l.r:l.w])
	l.r += n
	return n, nil
}

func (l *link) fetch(p []byte) (n int, err error) {
	if !l.still {
		return l.conn.Read(p)
	}
	if l.direct != nil {
		n, err = l.direct.Try(p)
	} else if l.lc != nil {
		n, err = l.lc.TryRead(p)
	}
	if n == 0 && (err == nil || isTimeout(err)) {
		err = http1.ErrWait
	}
	return n, err
}

// patience makes waiting on the connection end at now + d, or up to half of d later: a deadline is set anew only when it has
// to be, since that costs more than all else that is done with a connection in user space.
func (l *link) patience(now time.Time, d time.Duration) {
	if left := l.until.Sub(now); left < d || left > d*3/2 {
		l.until = now.Add(d * 3 / 2)
		l.conn.SetDeadline(l.until)
	}
}

// endless takes the deadline away.
func (l *link) endless() {
	l.until = time.Time{}
	l.conn.SetDeadline(l.until)
}

// head reads the answer's head, past 1xx. It may be called again after its deadline has passed: nothing is lost then. The
// answer points into the buffer until the next read.
func (l *link) head(method string) error {
	seen := 0
	for {
		have := l.buf[l.r:l.w]
		end, err := http1.Scan(have, seen)
		if err != nil {
			return err
		}
		if end > 0 {
			l.r += end
			if err := l.answer.Parse(view(have[:end]), method); err != nil {
				return err
			}
			if l.answer.Status >= 200 || l.answer.Status == http.StatusSwitchingProtocols {
				l.before = 0
				return nil
			}
			if l.before++; l.before > interims {
				return errInterims
			}
			if l.answer.Status == http.StatusEarlyHints {
				links := linksOf(l.answer.Fields)
				if l.hint == nil {
					l.early = links
					return errHints
				}
				l.hint(links)
			}
			seen = 0
			continue
		}
		seen = len(have)
		if l.r > 0 {
			copy(l.buf, have)
			l.r, l.w = 0, len(have)
		}
		if l.w == len(l.buf) {
			if l.w >= answerHead {
				return http1.ErrTooLarge
			}
			l.buf = append(l.buf, make([]byte, len(l.buf))...)
		}
		n, err := l.fetch(l.buf[l.w:])
		l.w += n
		if n == 0 {
			if err == nil {
				err = io.ErrNoProgress
			}
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
	}
}

var (
	errHints    = errors.New("the upstream gives hints of its answer")
	errUnasked  = errors.New("the time for an answer was over before the upstream was asked")
	errInterims = errors.New("the upstream sends one interim answer after another")
	errSwitched = errors.New("upstream switched protocols unasked")
)

// response is the answer as net/http has it, with its body still on the way. stop ends watching of a context; nil: none is.
func (l *link) response(ctx context.Context, stop func() bool) *http.Response {
	a := &l.answer
	resp := &http.Response{StatusCode: a.Status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: a.Minor, ContentLength: a.Length, Header: make(http.Header, len(a.Fields)+4)}
	for i := range a.Fields {
		f := &a.Fields[i]
		name := textproto.CanonicalMIMEHeaderKey(strings.Clone(f.Name))
		resp.Header[name] = append(resp.Header[name], strings.Clone(f.Value))
	}
	if a.Length < 0 {
		resp.ContentLength = -1
	}
	if a.Length == http1.Chunked {
		resp.TransferEncoding = []string{"chunked"} // else its end cannot be told from its connection's
		resp.Trailer = http.Header{}
	}
	resp.Body = &linkBody{l: l, ctx: ctx, stop: stop, resp: resp, body: http1.NewBody(l, a.Length, answerHead)}
	return resp
}

// linkBody is the body of an answer. Its end gives the connection back: the end that is read, since whoever closes it later
// has ended its context by then, and nobody could tell that from breaking off.
type linkBody struct {
	l    *link
	ctx  context.Context
	stop func() bool
	resp *http.Response
	body *http1.Body
	over bool
}

func (b *linkBody) Read(p []byte) (int, error) {
	n, err := b.body.Read(p)
	if err == io.EOF && !b.over {
		for _, f := range b.body.Trailer() {
			name := textproto.CanonicalMIMEHeaderKey(f.Name)
			b.resp.Trailer[name] = append(b.resp.Trailer[name], f.Value)
		}
		b.Close() // now, not when somebody is done with the answer: by then the context has ended
	} else if err != nil && err != io.EOF {
		if why := cause(b.ctx); why != nil {
			err = why
		}
	}
	return n, err
}

func (b *linkBody) Close() error {
	if b.over {
		return nil
	}
	b.over = true
	if (b.stop == nil || b.stop()) && b.body.Done() {
		b.l.o.put(b.l, time.Now())
	} else {
		b.l.conn.Close()
	}
	return nil
}

// begun is an attempt at an upstream of this region that was begun on a link and has had no answer yet.
type begun struct {
	link   *link
	sent   failover.Sent
	method string
	at     time.Time
}

// await waits for the answer until ctx ends. With an error the connection is its caller's to end.
func (b *begun) await(ctx context.Context, hint func([]string)) (*http.Response, error) {
	l := b.link
	l.endless()
	stop := context.AfterFunc(ctx, func() { l.conn.SetDeadline(time.Unix(1, 0)) })
	hint(l.early)
	l.early, l.hint = nil, hint
	err := l.head(b.method)
	l.hint = nil
	if err != nil {
		stop()
		return nil, err
	}
	return l.response(ctx, stop), nil
}

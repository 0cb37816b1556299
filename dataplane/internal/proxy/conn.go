package proxy

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"bailiwick/dataplane/internal/http1"
	"bailiwick/dataplane/internal/http2"
	"bailiwick/dataplane/internal/loop"
	"bailiwick/dataplane/internal/park"
	"bailiwick/dataplane/internal/relay"
)

// Limits of a client's connection over HTTP/1.1.
const (
	idleTimeout   = 90 * time.Second       // between requests
	headTimeout   = 10 * time.Second       // from a head's first byte to its last, and for a handshake
	headTick      = time.Second            // a door that shuts waits so long for a head that has begun
	lingerTimeout = 500 * time.Millisecond // for what a client still sends behind an answer that ends the connection
	lingerBytes   = 256 << 10
	connBuffer    = 4 << 10 // it grows to what a head may have
)

// conn is a client's connection.
type conn struct {
	door   *Door
	raw    net.Conn // TCP
	rwc    net.Conn // the same, or TLS over it
	state  *tls.ConnectionState
	sni    string
	remote string // host:port of the client
	client string // the same without the port
	seen   seen

	met    bool      // its handshake is over, and it speaks HTTP
	lot    *park.Lot // nil: it cannot be parked
	place  park.Place
	idle   time.Time // until when it waits for a request, of one that was parked; zero: it was not
	parks  bool      // it is to be parked
	stays  bool      // it cannot be
	first  [1]byte   // where a byte is waited for without a buffer
	buf    []byte    // what arrived and was not taken yet is in buf[r:w]
	r, w   int
	req    http1.Request
	now    time.Time // the clock as read for the answer that was just sent; zero: it has to be read
	until  time.Time // the deadline of reads that is set; zero: none is known to be
	wuntil time.Time // likewise of writes
	phase  atomic.Int32
	active *call // of a common request that is under way
	last   bool  // its answer ends the connection
	ahead  watch
	lc     *loop.Conn // the same as raw; nil: no loop has it
	home   *turn      // of whose loop; the door's mu covers it too
	seat   int        // which it is of those that loops have: its loop is found by it
	turn   *turn      // of the loop that has it; nil: goroutines do
	flying bool       // it waits for its request's answer
	more   bool       // something has come meanwhile
	under  *under     // of TLS; nil: there is none
	again  bool       // it has served a request
	lately bool       // its last request was a common one
	since  time.Time  // it waits

	two *http2.Conn // of one that speaks HTTP/2; the door's mu covers it
}

// Phases of a connection: one that waits for a request may be closed by whoever shuts the door, one that has it not.
const (
	waiting = iota
	serving
	closed
)

// serve is the life of a connection, or the part of it until it is parked, or from then on.
func (c *conn) serve() { c.resume(nil) }

// resume is serve by whoever has still to end a request; nil: nobody has.
func (c *conn) resume(first func() bool) {
	parked := false
	defer func() {
		if parked { // it may be served by another by now
			return
		}
		if p := recover(); p != nil {
			c.panicked(p)
		}
		c.end()
	}()
	if !c.met {
		if c.door.Others != nil && !c.handshake() {
			return
		}
		if c.two == nil && c.tunnels() {
			c.tunnel()
			return
		}
		c.met = true
	}
	if c.two != nil {
		if parked = c.runs(); !parked {
			c.linger()
		}
		return
	}
	if first != nil {
		if !first() || c.door.shut.Load() {
			c.linger()
			return
		}
		c.phase.Store(waiting)
	}
	for {
		if c.buf == nil {
			c.buf = make([]byte, connBuffer)
		}
		for c.next() {
			if !c.one() || c.door.shut.Load() {
				c.linger()
				return
			}
			c.settle()
			c.phase.Store(waiting)
		}
		if !c.parks {
			return
		}
		c.parks = false
		if c.idle.IsZero() {
			if parked = c.toLoop(); parked {
				return
			}
			continue
		}
		if parked = c.park(); parked {
			return
		}
		c.stays = true
	}
}

// end is the end of a connection.
func (c *conn) end() {
	c.abandon()
	c.rwc.Close()
	c.door.guests.leave(c.client)
	c.door.forget(c)
}

// abandon ends a request that is under way: none with a valid key is without a row.
func (c *conn) abandon() {
	if x := c.active; x != nil {
		c.active = nil
		x.close()
	}
}

func (c *conn) panicked(p any) { c.door.panicked(p) }

// panicked tells where in the code, and nothing of the request.
func (d *Door) panicked(p any) {
	if p != http.ErrAbortHandler {
		d.log.Printf("http: panic serving %s\ngoroutine %s", "a request", debug.Stack())
	}
}

// handshake sets TLS up, and serves what then speaks no HTTP. false: there is no more to do.
func (c *conn) handshake() bool {
	c.under = &under{Conn: c.raw, c: c}
	t := tls.Server(c.under, c.door.Others.TLSConfig)
	c.rwc = t
	c.raw.SetDeadline(time.Now().Add(headTimeout))
	if err := t.Handshake(); err != nil {
		c.door.unshaken.Add(1)
		if re, ok := errors.AsType[tls.RecordHeaderError](err); ok && re.Conn != nil && looksLikeHTTP(re.RecordHeader) {
			io.WriteString(re.Conn, "HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n")
			re.Conn.Close()
		}
		return false
	}
	c.raw.SetDeadline(time.Time{})
	state := t.ConnectionState()
	c.state, c.sni = &state, state.ServerName
	switch state.NegotiatedProtocol {
	case "", "http/1.1":
		return true
	case "h2":
		return c.door.speak(c)
	default:
		if serve := c.door.Others.TLSNextProto[state.NegotiatedProtocol]; serve != nil {
			c.phase.Store(serving)
			serve(c.door.Others, t, c.door.Handler)
		}
	}
	return false
}

func looksLikeHTTP(h [5]byte) bool {
	switch string(h[:]) {
	case "GET /", "HEAD ", "POST ", "PUT /", "OPTIO":
		return true
	}
	return false
}

// patience makes reads end at about so long from now: exactly, if exact, else up to a third later than they could. A deadline
// is set anew only when it has to be.
func (c *conn) patience(d time.Duration) (now time.Time) {
	now, c.now = c.now, time.Time{}
	if now.IsZero() {
		now = time.Now()
	}
	if left := c.until.Sub(now); left > d*2/3 && left <= d {
		return now
	}
	c.until = now.Add(d)
	c.rwc.SetReadDeadline(c.until)
	return now
}

// fill reads more, making room before. What is in buf[r:w] may move.
func (c *conn) fill(most int) error {
	if c.r > 0 {
		copy(c.buf, c.buf[c.r:c.w])
		c.r, c.w = 0, c.w-c.r
	}
	if c.w == len(c.buf) {
		if c.w >= most {
			return http1.ErrTooLarge
		}
		c.buf = append(c.buf, make([]byte, min(len(c.buf), most-len(c.buf)))...)
	}
	return c.read()
}

// read reads more behind what is there.
func (c *conn) read() error {
	n, err := c.rwc.Read(c.buf[c.w:])
	c.w += n
	if n > 0 {
		return nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return err
}

// within reads the n bytes of a small body, for which there is room behind the head, within d: all of them, so that one that
// trickles holds no place at an upstream for long.
func (c *conn) within(n int64, d time.Duration) bool {
	if int64(c.w-c.r) < n {
		c.until = time.Now().Add(d)
		c.rwc.SetReadDeadline(c.until)
	}
	for int64(c.w-c.r) < n {
		if c.w == len(c.buf) || c.read() != nil {
			return false
		}
	}
	return true
}

// wait waits for the first bytes of a request. A connection that is idle for longer is to be parked then; one that cannot be
// keeps no memory of its own meanwhile but what TLS and a goroutine need.
func (c *conn) wait() bool {
	now := c.patience(c.door.whole())
	until := c.idle
	c.idle = time.Time{}
	if !until.IsZero() && !now.Before(until) {
		return false
	}
	err := c.fill(c.door.maxHeader)
	if err == nil || !isTimeout(err) {
		return err == nil
	}
	c.buf, c.req = nil, http1.Request{}
	if until.IsZero() {
		until = time.Now().Add(idleTimeout - c.door.whole()) // what was read of the clock may be of before a long write
	}
	if c.idle, c.parks = until, !c.stays && c.lot != nil; c.parks {
		return false
	}
	c.until = until
	c.rwc.SetReadDeadline(c.until)
	n, _ := c.rwc.Read(c.first[:])
	if n == 0 {
		return false
	}
	c.idle = time.Time{}
	c.buf = make([]byte, connBuffer)
	c.buf[0], c.w, c.first = c.first[0], 1, [1]byte{}
	return true
}

// next waits for the head of a request and reads it. false: there is none; what a client should know it was told.
func (c *conn) next() bool {
	if c.r == c.w {
		c.r, c.w = 0, 0
		if len(c.buf) > connBuffer {
			c.buf = make([]byte, connBuffer)
		}
		if c.loops() {
			return false
		}
		if !c.wait() {
			return false
		}
	}
	if !c.phase.CompareAndSwap(waiting, serving) { // from its first byte on a request is under way
		return false
	}
	seen := 0
	var ends time.Time // a head that trickles must not hold a connection for ever
	for {
		have := c.buf[c.r:c.w]
		end, err := http1.Scan(have, seen)
		if err == nil && end > 0 {
			if err = c.req.Parse(view(have[:end])); err == nil {
				c.r += end
				return true
			}
		}
		if err != nil {
			c.malformed(err)
			return false
		}
		seen = len(have)
		now := time.Now()
		if ends.IsZero() {
			ends = now.Add(headTimeout)
		}
		c.until = now.Add(min(headTick, ends.Sub(now)))
		c.rwc.SetReadDeadline(c.until)
		if err := c.fill(c.door.maxHeader); err != nil {
			if isTimeout(err) && time.Now().Before(ends) && !c.door.shut.Load() {
				continue
			}
			if errors.Is(err, http1.ErrTooLarge) {
				c.malformed(err)
			} else if isTimeout(err) {
				c.plain(http.StatusRequestTimeout, "The request's head did not come in time.")
			}
			return false
		}
	}
}

// malformed answers what could not be read, and so belongs to nobody, with a bare status.
func (c *conn) malformed(err error) {
	status := http.StatusBadRequest
	switch {
	case errors.Is(err, http1.ErrTooLarge), errors.Is(err, http1.ErrFields):
		status = http.StatusRequestHeaderFieldsTooLarge
	case errors.Is(err, http1.ErrVersion):
		status = http.StatusHTTPVersionNotSupported
	case errors.Is(err, http1.ErrCoding):
		status = http.StatusNotImplemented
	}
	c.plain(status, err.Error())
	c.linger()
}

func (c *conn) plain(status int, text string) {
	c.write(fmt.Appendf(nil, "HTTP/1.1 %d %s\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s\n", status, http.StatusText(status), len(text)+1, text), time.Now())
}

// one serves the request whose head was read. false: the connection ends.
func (c *conn) one() bool {
	if c.door.fast != nil {
		k := c.door.works.Get().(*work)
		k.from, k.req, k.remote, k.secure, k.via = c, &c.req, c.remote, c.state != nil, "1.1 bailiwick"
		if k.common(c.door.fast, int64(len(c.buf)-c.r), c.sni) {
			c.lately = true
			keep := c.serveCommon(k)
			k.done()
			c.door.works.Put(k)
			return keep
		}
		k.done()
		c.door.works.Put(k)
	}
	c.lately = false // it stays on a goroutine while its requests need one
	return c.slow(c.door.Handler.ServeHTTP)
}

// serveCommon serves a common request. false: the connection ends.
func (c *conn) serveCommon(k *work) bool {
	c.begin(k)
	if keep, ok := k.admit(c.door.fast); !ok {
		return keep
	}
	return c.serveAdmitted(k)
}

func (c *conn) begin(k *work) {
	x := &k.call
	x.begin(c.door.fast, c.client)
	x.proto = 1
	x.seen = &c.seen
	c.active = x // until it is closed, a panic closes it
}

// serveAdmitted goes on once that was decided.
func (c *conn) serveAdmitted(k *work) bool {
	x := &k.call
	if c.req.Length > 0 {
		if !c.within(c.req.Length, x.timeout()) {
			return k.whole()
		}
		x.look()
	}
	k.body = c.buf[c.r : c.r+int(c.req.Length)]
	return k.serve()
}

// exchange implements front.
func (c *conn) exchange(k *work, do func(e *exchange)) bool {
	if t := c.turn; t != nil {
		t.then = func() bool { return c.exchange(k, do) }
		return false
	}
	c.lately = false // it stays on a goroutine while its requests need one
	k.ask.Host = strings.Clone(k.ask.Host)
	keep := c.slow(func(w http.ResponseWriter, r *http.Request) {
		e := &exchange{call: &k.call, w: w, r: r}
		c.active = nil
		defer e.close()
		e.sign()
		do(e)
	})
	if c.active != nil { // net/http would not read what this edge has read: there is no such request
		c.finish()
		return false
	}
	return keep
}

// head implements front.
func (c *conn) head(k *work, a *http1.Answer) {
	x := &k.call
	c.last = c.req.Close || c.door.shut.Load()
	b := append(k.out[:0], "HTTP/1.1 "...)
	b = strconv.AppendInt(b, int64(a.Status), 10)
	b = append(b, ' ')
	b = append(b, http.StatusText(a.Status)...)
	limit, policy := x.v.Limits()
	isDated, length := false, false
	for i := range a.Fields {
		f := &a.Fields[i]
		switch is := classOf(f.Name); {
		case f.Kind == http1.ContentLength:
			if a.Status == 204 {
				continue
			}
			length = true
		case is == stays, is == hidden, is == limited && len(limit) > 0:
			continue
		case is == dated:
			isDated = true
		}
		b = field(b, f.Name, f.Value)
	}
	if !length && a.Length == 0 && a.Status != 204 && a.Status != 304 && c.req.Method != http.MethodHead {
		b = append(b, "\r\nContent-Length: 0"...)
	}
	if a.Length < 0 {
		b = append(b, "\r\nTransfer-Encoding: chunked"...)
	}
	if !isDated {
		b = append(b, "\r\nDate: "...)
		b = appendDate(b, x.began)
	}
	b = append(b, "\r\n"+relay.HeaderRequestID+": "...)
	b = appendID(b, x.id)
	b = field(b, "Bailiwick-Edge", x.p.cfg.Region)
	b = field(b, relay.HeaderServed, x.served)
	if alt := x.p.altSvc(x.table, c.state != nil); alt != "" {
		b = field(b, "Alt-Svc", alt)
	}
	if len(limit) > 0 {
		b = append(b, "\r\nRateLimit: "...)
		b = append(b, limit...)
		b = append(b, "\r\nRateLimit-Policy: "...)
		b = append(b, policy...)
	}
	if c.last {
		b = append(b, "\r\nConnection: close"...)
	}
	k.out = append(b, "\r\n\r\n"...)
}

// send implements front.
func (c *conn) send(k *work, whole bool) bool {
	now := k.call.now // of the answer, some microseconds ago
	c.finish()
	if !whole {
		return false
	}
	c.r += int(c.req.Length)
	if !c.write(k.out, now) || c.last {
		return false
	}
	c.now = now
	return true
}

// finish is the end of a common request.
func (c *conn) finish() {
	x := c.active
	c.active = nil
	x.close()
}

// write writes all of b; a client that takes nothing for long is given up.
func (c *conn) write(b []byte, now time.Time) bool {
	if c.turn != nil {
		return c.tryWrite(b)
	}
	if left := c.wuntil.Sub(now); left < sendTimeout*2/3 || left > sendTimeout {
		c.wuntil = now.Add(sendTimeout)
		c.rwc.SetWriteDeadline(c.wuntil)
	}
	_, err := c.rwc.Write(b)
	return err == nil
}

const sendTimeout = 30 * time.Second // for what fits into one write

// linger takes what a client still sends behind the answer that ended the connection: closing at once would make the
// client's system throw the answer away.
func (c *conn) linger() {
	type half interface{ CloseWrite() error }
	if h, ok := c.rwc.(half); !ok || h.CloseWrite() != nil {
		return
	}
	c.rwc.SetReadDeadline(time.Now().Add(lingerTimeout))
	io.Copy(io.Discard, io.LimitReader(c.rwc, lingerBytes))
}

func isTimeout(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }

package http2

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"sync"
	"time"

	"bailiwick/dataplane/internal/head"
)

// Conn is a client's connection.
type Conn struct {
	v       *Server
	rwc     net.Conn
	peer    Peer
	serve   func(*Stream)
	maxHead int

	// What follows is the reader's.
	buf       []byte // what arrived and was not taken yet is in buf[r:w]
	r, w      int
	until     time.Time // the deadline that is set
	began     time.Time // of the preface, or of the header block that has not come whole
	idle      time.Time // since when there has been no request; zero: not looked at yet
	pinged    time.Time // a client that says nothing was asked; zero: it was not
	settled   bool      // its first SETTINGS have come
	greeted   bool      // its preface has
	paused    bool      // Run is to return, and to be called again
	table     dynamic
	part      []byte // of the header block that has not come whole
	partOf    uint32 // its stream; 0: none
	partEnds  bool   // nothing follows it
	partLoops bool   // the stream depends on itself
	parts     int
	spare     head.Block // for blocks that make no request

	mu       sync.Mutex // covers the rest
	fresh    []*Stream  // to be served once what is here is read
	streams  map[uint32]*Stream
	held     int    // bytes of heads of requests under way
	last     uint32 // the highest stream that a client has opened
	busy     int    // streams that are being served, also those that a client has reset
	quiet    chan struct{}
	ignored  [ignoredMost]uint32
	ignoring int
	dead     bool // nothing is written any more
	ending   bool // the reader is to end
	going    time.Time
	gone     bool // no stream above last is served any more

	out      *buffer // to be written
	promised int     // bytes that have room in it, and are not there yet
	writing  bool
	hurried  bool // somebody is on the way to write it
	wuntil   time.Time
	moved    time.Time // when the client's system has last taken much
	waiting  []*Stream // for windows
	line     []*Stream // for room in out: the first is the next

	inWindow, unread   int64 // what the client may send, and what of it was read and is to be told
	outWindow, initial int64 // what the client takes; of a new stream

	owed     int64 // room that the client may give anew: for what was sent, on its stream and on the connection
	tokens   int
	refilled time.Time
}

// buffer is bytes that wait to be written.
type buffer struct{ b []byte }

// Peer is who sends the requests of a connection.
type Peer struct {
	Remote string               // host:port
	TLS    *tls.ConnectionState // nil: there is no TLS
	Pause  func() time.Duration // after which of nothing Run returns although the connection has not ended; nil: never
}

// NewConn makes a connection of one that speaks HTTP/2 and of which nothing was read. serve serves each request.
func (v *Server) NewConn(rwc net.Conn, peer Peer, serve func(*Stream)) *Conn {
	c := &Conn{v: v, rwc: rwc, peer: peer, serve: serve, maxHead: v.cfg.MaxHead, streams: map[uint32]*Stream{}, inWindow: connWindow, outWindow: 65535, initial: 65535, tokens: allowance, table: dynamic{most: tableSize}}
	v.counts.conns.Add(1)
	v.counts.open.Add(1) // until Run has returned for good
	b := c.queue()
	b.b = appendFrame(b.b, frameSettings, 0, 0, 5*6)
	for _, s := range [...][2]uint32{{settingStreams, MaxStreams}, {settingWindow, streamWindow}, {settingFrame, maxFrame}, {settingList, uint32(c.maxHead)}, {settingPriorities, 1}} {
		b.b = binary.BigEndian.AppendUint16(b.b, uint16(s[0]))
		b.b = binary.BigEndian.AppendUint32(b.b, s[1])
	}
	b.b = binary.BigEndian.AppendUint32(appendFrame(b.b, frameWindow, 0, 0, 4), connWindow-65535)
	return c
}

// Run reads the connection until it ends, and returns once nobody serves a request of it any more. The caller closes it.
//
// If the peer pauses, Run also returns, with true, when nothing is under way and the client has said nothing for a while: then it
// holds neither a goroutine nor a buffer. Call it again when something has come, when it Ends, and at the end of its Patience.
func (c *Conn) Run() (paused bool) {
	defer func() {
		if !paused {
			c.v.counts.open.Add(-1)
		}
	}()
	c.buf = make([]byte, readBuffer)
	if c.began.IsZero() {
		c.began = time.Now()
	}
	code := c.read()
	if c.paused {
		c.buf, c.paused = nil, false
		return true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if code != none {
		c.goAway(c.last, code)
	}
	c.ending = true
	for _, s := range c.streams {
		s.lost(errGone)
	}
	c.wake()
	if c.busy > 0 { // also those that write
		c.quiet = make(chan struct{})
		c.mu.Unlock()
		<-c.quiet
		c.mu.Lock()
	}
	c.flush(true)
	c.dead = true
	return false
}

// Ends says whether the connection is to end, or to be drained, so that Run has something to do although the client says nothing.
func (c *Conn) Ends() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ending || c.dead || !c.going.IsZero()
}

// Stay has Run not pause any more: nobody can wait in its place. It is for whoever calls Run.
func (c *Conn) Stay() { c.peer.Pause = nil }

// Patience is until when a connection whose Run has paused is waited for. It is for whoever calls Run.
func (c *Conn) Patience() time.Time { return c.idle.Add(idleTimeout) }

// read reads until the connection is to end or paused; the code is what the client is told, none if nothing.
func (c *Conn) read() Code {
	if !secure(c.peer.TLS) {
		return Inadequate
	}
	c.dispatch() // whose first frame nobody has to wait for
	for !c.greeted && c.w < len(preface) {
		if !c.fill() {
			return none
		}
		if n := min(c.w, len(preface)); string(c.buf[:n]) != preface[:n] {
			return ProtocolError
		}
	}
	if !c.greeted {
		c.greeted, c.r = true, len(preface)
	}
	for {
		for {
			more, code := c.next()
			if code != none {
				return code
			}
			if !more {
				break
			}
		}
		c.dispatch()
		if !c.fill() {
			return none
		}
	}
}

// dispatch has those streams served that have come, and what is queued written, by others: a reader that waited for a client to
// read could not hear it give room.
func (c *Conn) dispatch() {
	c.mu.Lock()
	fresh := c.fresh
	c.fresh = fresh[:0]
	c.busy += len(fresh)
	c.soon()
	c.mu.Unlock()
	for i, s := range fresh {
		fresh[i] = nil
		c.v.do(job{s: s})
	}
}

// secure says whether HTTP/2 may be spoken over it (RFC 9113 §9.2.2): of TLS 1.2, with what is forward secret and authenticated.
func secure(t *tls.ConnectionState) bool {
	switch {
	case t == nil || t.Version >= tls.VersionTLS13:
		return true
	case t.Version < tls.VersionTLS12:
		return false
	}
	switch t.CipherSuite {
	case tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
		tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256, tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256:
		return true
	}
	return false
}

// fill reads more. false: there is no more, or the connection is to end.
func (c *Conn) fill() bool {
	if c.r == c.w {
		c.r, c.w = 0, 0
		if len(c.buf) > readBuffer && c.partOf == 0 && c.calm() {
			c.buf = make([]byte, readBuffer)
		}
	} else if c.r > 0 {
		copy(c.buf, c.buf[c.r:c.w])
		c.r, c.w = 0, c.w-c.r
	}
	if c.w == len(c.buf) { // never beyond a frame, which next has looked at
		c.buf = append(c.buf, make([]byte, min(len(c.buf), 9+maxFrame+readBuffer-len(c.buf)))...)
	}
	heard := time.Now()
	for now := heard; ; now = time.Now() {
		if !c.patience(now, heard) {
			return false
		}
		n, err := c.rwc.Read(c.buf[c.w:])
		if n > 0 {
			c.w += n
			c.pinged = time.Time{}
			return true
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			c.mu.Lock()
			c.dead = true
			c.mu.Unlock()
			return false
		}
		if c.pauses() {
			c.paused = true
			return false
		}
	}
}

// pauses says whether nothing is under way, and forgets the deadlines: nobody waits for them meanwhile.
func (c *Conn) pauses() bool {
	if c.peer.Pause == nil || !c.settled || c.partOf != 0 || c.r != c.w {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.streams) > 0 || len(c.fresh) > 0 || c.busy > 0 || c.out != nil || c.writing || c.ending || c.dead || !c.going.IsZero() {
		return false
	}
	if c.idle.IsZero() {
		c.idle = time.Now()
	}
	c.until, c.wuntil = time.Time{}, time.Time{}
	c.rwc.SetDeadline(time.Time{})
	return true
}

func (c *Conn) calm() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.streams) == 0
}

// patience sets how long the next read may take. A deadline costs, and is set anew only where it has to be: a read may end
// sooner than it must, and is then made again. false: the client has had its time, or the connection is to end.
func (c *Conn) patience(now, heard time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ending {
		return false
	}
	var limit time.Time
	switch calm := len(c.streams) == 0; {
	case !c.settled, c.partOf != 0:
		if limit = c.began.Add(headTimeout); !now.Before(limit) {
			c.goAway(c.last, EnhanceYourCalm)
			return false
		}
	case calm:
		if c.idle.IsZero() {
			c.idle = now
		}
		if limit = c.idle.Add(idleTimeout); !now.Before(limit) {
			c.goAway(c.last, NoError)
			return false
		}
	default:
		c.idle = time.Time{}
		if c.pinged.IsZero() && now.Sub(latest(heard, c.moved)) >= quietTimeout { // it may have gone without a word
			c.pinged = now
			b := c.queue()
			b.b = append(appendFrame(b.b, framePing, 0, 0, 8), "presence"...)
			c.soon()
		}
		if limit = now.Add(quietTimeout); !c.pinged.IsZero() {
			// What it takes slowly it has not left: the question waits behind it.
			if limit = latest(c.pinged, c.moved).Add(pingTimeout); !now.Before(limit) {
				c.dead = true
				return false
			}
		}
	}
	turn := quietTimeout
	if c.peer.Pause != nil {
		turn = c.peer.Pause()
	}
	if most := now.Add(turn); limit.After(most) {
		limit = most
	}
	if !c.until.After(now) || c.until.After(limit) || limit.Sub(c.until) > turn/3 {
		c.until = limit
		c.rwc.SetReadDeadline(limit)
	}
	return true
}

func latest(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

package http3

import (
	"context"
	"crypto/tls"
	"sync"
	"time"

	"github.com/quic-go/quic-go"
)

// Conn is a client's connection.
type Conn struct {
	v     *Server
	q     *quic.Conn
	peer  Peer
	serve func(*Stream)
	wg    sync.WaitGroup // requests, and streams of one direction
	mine  *quic.SendStream
	end   func(Code) // ends the connection, and says why

	mu       sync.Mutex // covers the rest
	busy     int        // requests under way
	mute     int        // of them, those whose heads have not come
	held     int        // bytes of their heads
	next     quic.StreamID
	count    uint64 // requests whose heads have come, or that have ended since
	seen     uint64 // of them, when the connection was looked at
	quiet    int    // how often nothing had changed since
	last     time.Time
	going    time.Time   // since when the client is told to go elsewhere
	gone     bool        // no stream from next on is served any more
	yields   bool        // nor one whose head has not come: another has the place
	drains   bool        // Drain came before there was anything to say it on
	watch    *time.Timer // looks at the connection
	tokens   int
	refilled time.Time

	opened [4]bool // control streams of the client's, by type
	pushes uint64  // the last MAX_PUSH_ID, and one
	goaway uint64  // the last GOAWAY, and one
}

// Peer is who sends the requests of a connection.
type Peer struct {
	Remote func() string // host:port: a client may move
	TLS    *tls.ConnectionState
}

// NewConn makes a connection of one whose handshake is done. serve serves each request.
func (v *Server) NewConn(q *quic.Conn, peer Peer, serve func(*Stream)) *Conn {
	return &Conn{v: v, q: q, peer: peer, serve: serve, tokens: allowance, refilled: time.Now(),
		end: func(code Code) {
			if code != NoError { // which each ends with once more
				count(&v.counts.ended, code)
			}
			q.CloseWithError(quic.ApplicationErrorCode(code), "")
		}}
}

// Run serves the connection until it ends, and returns once nobody serves a request of it any more.
func (c *Conn) Run() {
	c.v.counts.conns.Add(1)
	c.v.counts.open.Add(1)
	defer c.v.counts.open.Add(-1)
	defer c.wg.Wait()
	defer c.end(NoError)
	mine, err := c.q.OpenUniStream()
	if err != nil { // the client gives no room for a control stream
		c.end(StreamCreationError)
		return
	}
	section := appendVarint(appendVarint(nil, settingSection), uint64(c.v.cfg.MaxHead))
	if mine.TryWriteAll(append(appendFrame([]byte{streamControl}, frameSettings, len(section)), section...)) != nil {
		c.end(ExcessiveLoad) // nor for one frame on it
		return
	}
	c.mu.Lock()
	c.mine = mine
	c.watch = time.AfterFunc(IdleTimeout/3, c.look)
	if c.drains {
		c.drain()
	}
	c.mu.Unlock()
	defer c.watch.Stop()
	c.wg.Go(c.controls)
	for {
		q, err := c.q.AcceptStream(context.Background())
		if err != nil {
			return
		}
		id := q.StreamID()
		c.mu.Lock()
		if c.gone {
			c.mu.Unlock()
			count(&c.v.counts.resets, RequestRejected)
			q.CancelRead(quic.StreamErrorCode(RequestRejected))
			q.CancelWrite(quic.StreamErrorCode(RequestRejected))
			q.ReleaseStreamCredit()
			c.spent(1)
			continue
		}
		c.next = id + 4
		c.busy++
		c.mute++
		c.mu.Unlock()
		s := c.v.stream()
		s.c, s.q = c, q
		c.wg.Add(1)
		c.v.crew.Do(s)
	}
}

// Close breaks the connection off.
func (c *Conn) Close() { c.end(NoError) }

// spent takes of the allowance, and ends the connection if it is used up. false: it is.
func (c *Conn) spent(n int) bool {
	c.mu.Lock()
	if c.tokens -= n; c.tokens < 0 {
		now := time.Now()
		c.tokens = min(c.tokens+int(min(now.Sub(c.refilled), time.Minute)*allowanceSecond/time.Second), allowance)
		c.refilled = now
	}
	left := c.tokens >= 0
	c.mu.Unlock()
	if !left {
		c.end(ExcessiveLoad)
	}
	return left
}

// hold counts in what is held of a head or a trailer, or gives of it back; has is what of the
// same request already is. false: there is no room for it.
func (c *Conn) hold(has, n int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.holds(has, n)
}

// holds is hold; mu is held.
func (c *Conn) holds(has, n int) bool {
	if n > 0 && c.held > has && c.held+n > headsMost {
		return false
	}
	c.held += n
	return true
}

// heard says that the head of a request has come, which has so many bytes to hold. false: nobody should look at it.
func (c *Conn) heard(has, n int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mute--
	c.count++
	return !c.yields && c.holds(has, n)
}

// ended is the end of a request's serving.
func (c *Conn) ended(held int, heard, answered bool) {
	c.mu.Lock()
	c.held -= held
	if heard {
		c.count++
	} else {
		c.mute--
	}
	if answered {
		c.tokens = min(c.tokens+allowanceAnswer, allowance)
	}
	c.busy--
	if c.gone && c.busy == 0 {
		c.watch.Reset(c.patience())
	}
	c.mu.Unlock()
	c.wg.Done()
}

// look ends a connection that asks nothing, or that was told to go and has had all its answers.
func (c *Conn) look() {
	c.mu.Lock()
	switch {
	case c.gone:
		if c.busy == 0 || c.yields { // what was answered last has had time to arrive
			c.mu.Unlock()
			c.Close()
			return
		}
	case !c.going.IsZero():
		c.leave()
		c.watch.Reset(c.patience())
	default:
		if c.busy > c.mute || c.count != c.seen { // who begins requests and never says one asks nothing
			c.quiet = 0
		} else if c.quiet++; c.quiet >= 3 {
			c.going = time.Now()
			c.leave()
			c.watch.Reset(c.patience())
			break
		}
		c.seen = c.count
		c.watch.Reset(IdleTimeout / 3)
	}
	c.mu.Unlock()
}

// patience is for how long a client is waited for that should have heard something: some round trips.
func (c *Conn) patience() time.Duration {
	return min(max(4*c.q.ConnectionStats().SmoothedRTT, drainLeast), drainMost)
}

// goAway says that no request from id on is served; mu is held.
func (c *Conn) goAway(id uint64) {
	var b [16]byte
	v := appendVarint(b[:0], id)
	c.mine.TryWriteAll(append(appendFrame(nil, frameGoAway, len(v)), v...)) // one that takes nothing will see the end
}

// leave takes no more requests; mu is held.
func (c *Conn) leave() {
	c.gone = true
	c.goAway(uint64(c.next))
}

// Drain has the client go elsewhere with what it asks from now on, and ends the connection once all is answered. What it has
// sent before it hears that is served.
func (c *Conn) Drain() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.drains = true; c.mine != nil && c.going.IsZero() {
		c.drain()
	}
}

// drain is Drain once there is a control stream; mu is held.
func (c *Conn) drain() {
	c.going = time.Now()
	c.goAway(1<<62 - 4)
	c.watch.Reset(c.patience())
}

// Yield ends the connection if no request of it is under way whose head has come, so that another may have its place. false: one
// is, or it ends already.
func (c *Conn) Yield() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mine == nil || c.busy > c.mute || c.gone {
		return false
	}
	c.going, c.yields = time.Now(), true
	c.leave()
	c.watch.Reset(0)
	return true
}

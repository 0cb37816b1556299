package channel

import (
	"context"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
)

// How many streams are reset on a connection before it is retired: requests that come later go over a new one, those under way
// end where they are. An upstream that counts resets closes the connection of whoever resets many, and with it the requests of
// all others: Envoy at 500, Netty at 200 in 30 s, nghttp2 at 1,000.
const (
	resetsMost   = 100
	resetsWithin = 30 * time.Second
	retireEvery  = time.Second     // of a lane: who resets faster gets no more connections for it
	retiredMost  = 5 * time.Minute // what lasts on a retired connection has so long before it may end for another's sake
)

// link is one connection.
type link struct {
	cc      *http2.ClientConn
	wire    *wire
	awaited atomic.Int32 // requests that were taken back, of which LetGo waits to hear
	under   int          // requests to the end of their answers, or until they are given up; covered by Pool.mu
	retired bool         // it takes no more: whoever ends the last of them closes it; likewise
	tired   time.Time    // for its resets; zero: not for them; likewise
}

// link is the lane's connection, with a request more.
func (p *Pool) link(ctx context.Context, l *lane) (*link, error) {
	if k := p.linked(l, nil); k != nil {
		return k, nil
	}
	select {
	case l.dialing <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	defer func() { <-l.dialing }()
	if k := p.linked(l, nil); k != nil {
		return k, nil
	}
	conn, err := p.cfg.Dial(ctx)
	if err != nil {
		return nil, err
	}
	k := &link{wire: &wire{Conn: conn, pool: p, streams: map[uint32]*stream{}, gone: make(chan struct{}), news: make(chan struct{})}}
	k.wire.out.rest = len(http2.ClientPreface)
	k.wire.out.seen, k.wire.in.seen = k.wire.left, k.wire.came
	k.wire.heard.Store(time.Now().UnixNano())
	if k.cc, err = p.tr.NewClientConn(k.wire); err != nil {
		conn.Close()
		return nil, err
	}
	p.linked(l, k)
	time.AfterFunc(pingAfter, func() { p.mind(k) })
	return k, nil
}

// mind asks a peer that is silent while somebody waits for it whether it is there, and ends its connection if it does not say so. It
// is called again and again until the connection is over.
func (p *Pool) mind(k *link) {
	select {
	case <-k.wire.gone:
		return
	default:
	}
	p.mu.Lock()
	needed := k.under > 0 || k.awaited.Load() > 0
	p.mu.Unlock()
	next := pingAfter
	if silent := k.wire.silent(); needed && silent < pingAfter {
		next -= silent
	} else if needed && k.wire.mayAsk() {
		ctx, cancel := context.WithTimeout(context.Background(), pingWait)
		err := k.cc.Ping(ctx)
		if cancel(); err != nil && k.wire.silent() >= pingWait {
			k.cc.Close()
			return
		}
	}
	time.AfterFunc(next, func() { p.mind(k) })
}

// linked is the lane's connection, if it takes a request more; one that was just opened always does.
func (p *Pool) linked(l *lane, opened *link) *link {
	p.mu.Lock()
	var over []*link
	if opened != nil {
		l.link = opened
	} else if k := l.link; k != nil {
		now := time.Now()
		tired := k.wire.many(now) && now.Sub(l.retired) >= retireEvery
		if tired && k.under > 0 && len(p.draining) >= p.cfg.Max { // else it ends at once, and takes nobody's place
			// Who has one long request on each would keep later ones from retiring for as long as he likes.
			if oldest := p.draining[0]; now.Sub(oldest.tired) >= retiredMost {
				p.draining = p.draining[1:]
				over = append(over, oldest)
			} else {
				tired = false
			}
		}
		if tired {
			l.retired, k.tired = now, now
		}
		if tired || !k.cc.CanTakeNewRequest() {
			if p.retire(l) {
				over = append(over, k)
			}
			l.link = nil
		}
	}
	k := l.link
	if k != nil {
		k.under++
	}
	p.mu.Unlock()
	for _, k := range over {
		k.cc.Close()
	}
	return k
}

// retire has the lane's connection take no more requests, with mu held. true: it has none, and is to be closed.
func (p *Pool) retire(l *lane) (over bool) {
	k := l.link
	k.retired = true
	if over = k.under == 0; !over && !k.tired.IsZero() {
		p.draining = append(p.draining, k)
	}
	return over
}

// dropped is one request less, with mu held. true: it was the last, and the connection is to be closed.
func (p *Pool) dropped(k *link) (over bool) {
	k.under--
	if over = k.retired && k.under == 0; over && !k.tired.IsZero() {
		p.draining = slices.DeleteFunc(p.draining, func(other *link) bool { return other == k })
	}
	return over
}

// stream is a request on its connection.
type stream struct {
	link  *link
	whose string
	id    atomic.Uint32 // 0: its head was not written
	over  chan struct{} // closed when either end has ended it; nil: nobody asks
	peer  bool          // the peer has, or has answered to its end; covered by wire.mu
	told  int           // PINGs that had left when its reset did; likewise
}

// wrote is called when the request's head has been written, by the only goroutine that may write then.
func (s *stream) wrote() {
	w := s.link.wire
	w.mu.Lock()
	defer w.mu.Unlock()
	s.id.Store(w.latest)
	w.streams[w.latest] = s
	if w.early == w.latest {
		w.end(w.latest, true)
	}
}

// LetGo waits until the upstream is known to have let go of a request that was taken back: it has ended the stream, or has
// answered a PING that was sent behind the reset; the connection's end is an end too, and so is ctx's. A PING is sent for it only
// if the upstream has sent a head or data since the last: gRPC closes the connection of whoever sends four, with the requests of all
// others. Else whoever waits does until it does, or until one is sent because it is silent.
func (f Fate) LetGo(ctx context.Context) {
	s := f.stream
	if s == nil || s.over == nil {
		return
	}
	k := s.link
	if s.id.Load() == 0 {
		if k.cc.State(); s.id.Load() == 0 {
			return // what has no head when nobody writes, after its end, will have none
		}
	}
	k.awaited.Add(1)
	defer k.awaited.Add(-1)
	select {
	case <-s.over:
	case <-k.wire.gone:
		return
	case <-ctx.Done():
		return
	}
	for {
		ask, news, over := k.wire.told(s)
		switch {
		case over:
			return
		case ask:
			if k.cc.Ping(ctx) != nil {
				return
			}
			continue
		}
		select {
		case <-news:
		case <-k.wire.gone:
			return
		case <-ctx.Done():
			return
		}
	}
}

// told says whether the peer has read that a stream was reset; if not, whether to ask it now, and what is closed when there is news.
func (w *wire) told(s *stream) (ask bool, news <-chan struct{}, over bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case s.peer, w.answered > s.told:
		return false, nil, true
	case w.pings > s.told, w.asked.Load(): // one is on its way, or would be one too many
		return false, w.news, false
	}
	w.asked.Store(true)
	return true, nil, false
}

// silent is for how long nothing has come.
func (w *wire) silent() time.Duration { return time.Duration(time.Now().UnixNano() - w.heard.Load()) }

// mayAsk says whether a PING may be sent because the peer is silent. gRPC's servers forget what they hold against a client when
// they send a head or data, and end the connection at the third PING after that first one that comes within 5 min of another: the
// transport sends one with a reset, and LetGo and silence one together. Who is dead there is found by TCP, or in 5 min.
func (w *wire) mayAsk() bool {
	if !w.grpc.Load() {
		return true
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return !w.asked.Swap(true) || time.Since(w.pinged) >= pingRarely
}

// wire sees the frames that pass on a connection: which streams are reset, and how often.
type wire struct {
	net.Conn
	pool *Pool
	in   frames // of the one goroutine that reads
	out  frames // of whoever writes, one at a time
	over sync.Once
	gone chan struct{} // closed with the connection

	asked atomic.Bool  // a PING was sent for LetGo, or to a gRPC server, and neither a head nor data has come since; set with mu held
	grpc  atomic.Bool  // it has been asked something in gRPC
	heard atomic.Int64 // ns, when anything came

	mu       sync.Mutex    // covers all below
	pings    int           // that have left
	pinged   time.Time     // the last of them
	answered int           // of them; they are in their order
	news     chan struct{} // closed, and another made, when one is answered, or asked is over
	streams  map[uint32]*stream
	latest   uint32 // stream whose head, or trailer, was written last
	early    uint32 // likewise ended, before it was known whose it is
	resets   int    // of ours, since
	since    time.Time
}

func (w *wire) Write(p []byte) (int, error) {
	n, err := w.Conn.Write(p)
	w.out.pass(p[:n])
	return n, err
}

func (w *wire) Read(p []byte) (int, error) {
	n, err := w.Conn.Read(p)
	if n > 0 {
		w.heard.Store(time.Now().UnixNano())
	}
	w.in.pass(p[:n])
	if err != nil {
		w.over.Do(func() { close(w.gone) })
	}
	return n, err
}

func (w *wire) Close() error {
	w.over.Do(func() { close(w.gone) })
	return w.Conn.Close()
}

// left is a frame of ours.
func (w *wire) left(kind http2.FrameType, flags http2.Flags, id uint32) {
	if kind != http2.FrameHeaders && kind != http2.FrameRSTStream && (kind != http2.FramePing || flags&http2.FlagPingAck != 0) {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	switch kind {
	case http2.FrameHeaders:
		w.latest = id
		return
	case http2.FramePing:
		w.pings++
		w.pinged = time.Now()
		return
	}
	now := time.Now()
	if now.Sub(w.since) > resetsWithin {
		w.since, w.resets = now, 0
	}
	w.resets++
	if s := w.streams[id]; s != nil {
		s.told = w.pings
		w.pool.resets.note(s.whose, now)
		w.end(id, false)
	}
}

// came is one of the peer's.
func (w *wire) came(kind http2.FrameType, flags http2.Flags, id uint32) {
	said := kind == http2.FrameHeaders || kind == http2.FrameData
	ends := kind == http2.FrameRSTStream || said && flags&http2.FlagDataEndStream != 0
	answers := kind == http2.FramePing && flags&http2.FlagPingAck != 0
	if !ends && !answers && !(said && w.asked.Load()) {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if ends {
		w.end(id, true)
	}
	if answers {
		w.answered++ // it may come before the PING is known to have left
	}
	if answers || said && w.asked.Swap(false) {
		close(w.news)
		w.news = make(chan struct{})
	}
}

// end is a stream's, with mu held.
func (w *wire) end(id uint32, peer bool) {
	s := w.streams[id]
	if s == nil {
		w.early = max(w.early, id)
		return
	}
	delete(w.streams, id)
	if s.peer = peer; s.over != nil {
		close(s.over)
	}
}

// many says whether so many streams were reset lately that the connection is not to be used on.
func (w *wire) many(now time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.resets >= resetsMost && now.Sub(w.since) <= resetsWithin
}

// frames are those of one direction, of which the heads alone are read.
type frames struct {
	rest int // bytes of the frame under way, or of the preface, that are still to pass
	head [9]byte
	n    int // of head
	seen func(kind http2.FrameType, flags http2.Flags, id uint32)
}

func (f *frames) pass(p []byte) {
	for len(p) > 0 {
		if f.rest > 0 {
			n := min(f.rest, len(p))
			f.rest -= n
			p = p[n:]
			continue
		}
		n := copy(f.head[f.n:], p)
		f.n += n
		p = p[n:]
		if f.n == len(f.head) {
			h := &f.head
			f.n, f.rest = 0, int(h[0])<<16|int(h[1])<<8|int(h[2])
			f.seen(http2.FrameType(h[3]), http2.Flags(h[4]), (uint32(h[5])<<24|uint32(h[6])<<16|uint32(h[7])<<8|uint32(h[8]))&(1<<31-1))
		}
	}
}

package proxy

import (
	"net"
	"slices"
	"time"

	"bailiwick/dataplane/internal/failover"
	"bailiwick/dataplane/internal/http1"
	"bailiwick/dataplane/internal/loop"
)

// Loops have connections to upstreams of their own, so that an answer comes to the goroutine that has asked.

// looped is a link of a loop's.
type looped struct {
	lc   *loop.Conn // the same as conn
	home *turn      // whose; nil: nobody's
	k    *work      // the request under way; nil: it is idle, or goroutines have it
	at   int        // in flights
	due  time.Time  // the answer
}

// Ready implements loop.Owner.
func (l *link) Ready(e loop.Event) {
	t, k := l.home, l.k
	if e&(loop.In|loop.Gone) == 0 {
		if k == nil && !l.lc.Rest() {
			l.drop()
		}
		return
	}
	if k == nil { // its end, or what nobody has asked for
		if !l.lc.Quiet() || !l.lc.Rest() {
			l.drop()
		}
		return
	}
	c := k.from.(*conn)
	defer t.guardLink(l, c)
	if l.buf == nil {
		l.buf = t.buffer()
	}
	l.still = true
	err := l.head(k.req.Method)
	l.still = false
	if err == http1.ErrWait {
		return
	}
	t.land(l, c)
	if err != nil {
		l.lc.Man()
		t.leave(c, k, func() bool { return k.hear(l, true, err) })
		return
	}
	a := &l.answer
	a.Close = a.Close || e&loop.Gone != 0 // its end has come already: nobody is told of it again
	if a.Status == 101 || a.Status >= 502 && a.Status <= 504 || a.Options || a.Length < 0 || a.Length > smallAnswer || int(a.Length) > l.w-l.r || !k.call.p.cfg.Meter.Ready() {
		l.lc.Man()
		t.leave(c, k, func() bool { return k.answered(l) })
		return
	}
	keep := k.answered(l)
	if then := t.then; then != nil {
		t.leave(c, k, then)
		return
	}
	t.forget(k)
	t.over(c, keep)
}

// poolsKnown is what a loop found last: it looks there before it asks for a lock that others ask for too.
type poolsKnown struct {
	dropped uint64 // as it was when the first was found
	of      [4]struct {
		target *failover.Target
		pool   *pool
	}
	next int
}

// pool is a target's. A loop's goroutine calls it, or for nil anybody.
func (t *turn) pool(u *Upstreams, target *failover.Target) (*pool, error) {
	if t == nil {
		return u.pool(target.At)
	}
	k := &t.pools
	if n := u.dropped.Load(); n != k.dropped {
		*k = poolsKnown{dropped: n}
	}
	for i := range k.of {
		if k.of[i].target == target {
			return k.of[i].pool, nil
		}
	}
	p, err := u.pool(target.At)
	if err == nil {
		k.of[k.next].target, k.of[k.next].pool = target, p
		k.next = (k.next + 1) % len(k.of)
	}
	return p, err
}

// stock is a loop's idle connections to an origin.
type stock struct {
	home *turn
	// o.mu covers the rest. What was given back in this round is fresh: whether something came behind its answer nobody has heard.
	idle, fresh []*link
	round       uint64
}

// turn makes those of rounds before this one fit for use, with the origin's mu held. The loop's goroutine calls it.
func (s *stock) turn() {
	if now := s.home.loop.Round(); s.round != now {
		s.round = now
		s.idle = append(s.idle, s.fresh...)
		clear(s.fresh)
		s.fresh = s.fresh[:0]
	}
}

// adopt gives a new connection to a loop; nil: it cannot be.
func (o *origin) adopt(conn net.Conn, home *turn) *link {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return nil
	}
	lc, err := home.loop.Adopt(tcp, true)
	if err != nil {
		return nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	l := &link{o: o, conn: lc, buf: make([]byte, linkBuffer), age: o.closed, looped: looped{lc: lc, home: home}}
	lc.Owner = l
	return l
}

// take takes an idle one of a loop's.
func (o *origin) take(t *turn) *link {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, s := range o.stocks {
		if s.home != t {
			continue
		}
		s.turn()
		for n := len(s.idle); n > 0; n = len(s.idle) {
			l := s.idle[n-1]
			s.idle[n-1], s.idle = nil, s.idle[:n-1]
			if !l.lc.Claim() {
				continue
			}
			if l.age == o.closed {
				return l
			}
			l.conn.Close() // it was its loop's for a moment when all idle ones were closed
		}
	}
	return nil
}

// stow puts one back. full: what was read last took all the room there was, so that more may be there of which nobody is told again.
func (o *origin) stow(l *link, full bool) {
	t := l.home
	o.mu.Lock()
	defer o.mu.Unlock()
	i := slices.IndexFunc(o.stocks, func(s *stock) bool { return s.home == t })
	if i < 0 {
		i = len(o.stocks)
		o.stocks = append(o.stocks, &stock{home: t})
	}
	s := o.stocks[i]
	looped := l.lc.Looped()
	if len(s.idle)+len(s.fresh) >= o.max || l.age != o.closed || looped && full && !l.lc.Quiet() {
		l.conn.Close()
		return
	}
	buf := l.buf
	l.buf = nil
	if looped {
		s.turn()
		if t.give(buf); !l.lc.Rest() {
			l.lc.Man()
			return
		}
	} else {
		for one := make([]byte, 1); !l.lc.Watch(); {
			if n, err := l.lc.Poll(one); n > 0 || err != nil {
				l.conn.Close()
				return
			}
		}
	}
	s.fresh = append(s.fresh, l)
	o.sweepSoon()
}

// drop ends an idle one.
func (l *link) drop() {
	l.o.mu.Lock()
	defer l.o.mu.Unlock()
	for _, s := range l.o.stocks {
		if s.home == l.home {
			is := func(other *link) bool { return other == l }
			s.idle, s.fresh = slices.DeleteFunc(s.idle, is), slices.DeleteFunc(s.fresh, is)
		}
	}
	l.lc.Man() // what else is heard of it in this round is nobody's
	l.conn.Close()
}

// sweep closes what has been idle for long, with the origin's mu held, and says how many are left.
func (s *stock) sweep(long time.Duration) int {
	old := func(l *link) bool {
		if long > 0 && time.Since(l.since) <= long || !l.lc.Take() {
			return false
		}
		l.conn.Close()
		return true
	}
	s.idle, s.fresh = slices.DeleteFunc(s.idle, old), slices.DeleteFunc(s.fresh, old)
	return len(s.idle) + len(s.fresh)
}

package proxy

import (
	"net"
	"os"
	"runtime"
	"slices"
	"time"

	"bailiwick/dataplane/internal/direct"
	"bailiwick/dataplane/internal/http1"
	"bailiwick/dataplane/internal/loop"
)

// Common requests over HTTP/1.1 are served by loops: one goroutine for many connections, which reads a head, decides, asks an upstream
// on a connection of its own, and goes on with others until that answers. It never waits. Whatever is not common, not whole, not
// there at once, slow, odd or refused goes to a goroutine with all that was done so far, which runs the code that serves everything
// (conn.go, fast.go), and gives the connection back once a request of it was common again. So nothing is decided here, and nothing is
// written that is not written there.

// turn is what a loop has beside its connections: one goroutine uses it.
type turn struct {
	door    *Door
	number  int // of all
	all     []*turn
	loop    *loop.Loop
	then    func() bool // what the request at hand needs a goroutine for; nil: nothing
	bufs    [][]byte    // of connections that do nothing
	works   []*work
	pools   poolsKnown
	flights []*link   // on which an answer is awaited
	next    time.Time // nobody's patience ends before
	swept   time.Time
}

const (
	spareBuffers = 256
	loopTick     = time.Second          // between looks at who waits
	unheard      = 2 * time.Millisecond // a round that lasts longer looks at an idle connection before it uses it
)

// adopt gives a loop a connection; where there is none, it is read and written directly.
func (d *Door) adopt(raw net.Conn) (net.Conn, *loop.Conn, *turn) {
	if tcp, ok := raw.(*net.TCPConn); ok && d.Others == nil && d.fast != nil {
		if t := d.turnFor(); t != nil {
			if lc, err := t.loop.Adopt(tcp, false); err == nil {
				return lc, lc, t
			}
		}
	}
	return direct.New(raw), nil, nil
}

// turnFor deals connections to loops in turn.
func (d *Door) turnFor() *turn {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.refuses.Load() || d.loopless || d.unlooped {
		return nil
	}
	for n := runtime.GOMAXPROCS(0); len(d.turns) < n; {
		t := &turn{door: d, number: len(d.turns)}
		l, err := loop.New(t.tick)
		if err != nil {
			d.loopless = true
			d.log.Printf("connections are not served by loops: %v", err)
			for _, t := range d.turns {
				t.loop.Close()
				d.wg.Go(func() { t.loop.Run() })
			}
			d.turns = nil
			return nil
		}
		l.BusyPoll = d.busyPoll
		t.loop = l
		d.turns = append(d.turns, t)
		if len(d.turns) < n {
			continue
		}
		d.use.begin(n)
		for _, t := range d.turns {
			t.all = d.turns
			d.wg.Go(func() {
				if err := t.loop.Run(); err != nil {
					d.log.Printf("connections are not served by loops any more: %v", err)
					d.unloop(t)
				}
			})
		}
	}
	d.dealt++
	return d.turns[d.use.of(d.dealt)]
}

// sought is how often loops looked for an answer before they slept, and it came or did not.
func (d *Door) sought() (came, vain int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, t := range d.turns {
		c, v := t.loop.Sought()
		came, vain = came+int64(c), vain+int64(v)
	}
	return came, vain
}

// unloop ends the connections of a loop that has failed: nobody hears of them.
func (d *Door) unloop(t *turn) {
	for _, l := range slices.Clone(t.flights) {
		k := l.k
		c := k.from.(*conn)
		t.land(l, c)
		l.lc.Man()
		l.conn.Close()
		t.leave(c, k, func() bool { return k.hear(l, true, net.ErrClosed) })
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.loopless = true
	d.use.end()
	for c := range d.conns {
		if c.home == t {
			c.raw.Close()
			c.wake()
		}
	}
}

// stopLoops ends the loops of a door that takes no more connections and has none, with mu held.
func (d *Door) stopLoops() {
	if !d.refuses.Load() || len(d.conns) > 0 {
		return
	}
	for _, t := range d.turns {
		t.loop.Close()
	}
	d.turns = nil
}

// wake has a goroutine serve a connection that waits, wherever it does.
func (c *conn) wake() {
	if c.lot.Take(&c.place) {
		return
	}
	if c.lc.Take() {
		c.turn = nil
		c.Rouse()
	}
}

// loops says that the connection is one for its loop.
func (c *conn) loops() bool {
	if c.lc == nil || !c.lately {
		return false
	}
	c.lately, c.parks = false, true
	return true
}

// toLoop leaves a connection to its loop. false: something has come.
func (c *conn) toLoop() bool {
	buf := c.buf
	for {
		n, err := c.poll(buf)
		if n > 0 || err != nil { // an error comes again when that is read
			c.buf, c.w = buf, n
			return false
		}
		c.buf, c.turn, c.now, c.since, c.more = nil, c.home, time.Time{}, time.Time{}, false
		if c.lc.Watch() {
			return true
		}
		c.turn = nil
	}
}

// Ready implements loop.Owner.
func (c *conn) Ready(e loop.Event) {
	if c.flying {
		c.more = c.more || e&(loop.In|loop.Gone) != 0
		return
	}
	t := c.turn
	defer t.guard(c)
	if e&(loop.In|loop.Gone) != 0 {
		c.more = e&loop.Gone != 0
		t.read(c)
	} else if !c.lc.Rest() {
		t.end(c)
	}
}

// end ends a connection of the loop's.
func (t *turn) end(c *conn) {
	c.abandon()
	c.rwc.Close() // while it is the loop's: TLS has a last word, which waits for nobody
	c.turn = nil
	c.lc.Man() // what else is heard of it in this round is nobody's
	c.end()
}

// guard ends a connection whose request panics, and nothing else.
func (t *turn) guard(c *conn) {
	if p := recover(); p != nil {
		t.then = nil
		c.panicked(p)
		t.end(c)
	}
}

func (t *turn) guardLink(l *link, c *conn) {
	if p := recover(); p != nil {
		t.then = nil
		if l.k != nil {
			t.land(l, c)
		}
		if l.lc.Looped() {
			l.conn.Close()
		}
		c.panicked(p)
		t.end(c)
	}
}

// read reads what has come on a connection that waits.
func (t *turn) read(c *conn) {
	b := t.buffer()
	n, err := c.tryRead(b)
	if n == 0 {
		t.give(b)
		if err != nil || !c.lc.Rest() {
			t.end(c)
		}
		return
	}
	c.buf, c.r, c.w = b, 0, n
	end, err := http1.Scan(b[:n], 0)
	if err != nil || end == 0 || c.req.Parse(view(b[:end])) != nil {
		t.hand(c, nil) // where it will be said
		return
	}
	if !c.phase.CompareAndSwap(waiting, serving) {
		t.end(c)
		return
	}
	c.r = end
	k := t.work()
	k.from, k.req, k.remote, k.secure, k.via = c, &c.req, c.remote, c.state != nil, "1.1 bailiwick"
	if !k.common(c.door.fast, int64(len(c.buf)-c.r), c.sni) {
		t.forget(k)
		t.hand(c, c.one)
		return
	}
	c.begin(k)
	t.serve(c, k)
}

// serve serves a common request up to where an answer is awaited.
func (t *turn) serve(c *conn, k *work) {
	p, x := c.door.fast, &k.call
	problem := k.judge()
	if problem.Status == 0 && x.v.Parked {
		t.leave(c, k, func() bool {
			if keep, ok := k.admitted(p, problem); !ok {
				return keep
			}
			return c.serveAdmitted(k)
		})
		return
	}
	if _, ok := k.admitted(p, problem); !ok {
		t.leave(c, k, t.then)
		return
	}
	if c.req.Length > int64(c.w-c.r) {
		t.leave(c, k, func() bool { return c.serveAdmitted(k) })
		return
	}
	k.body = c.buf[c.r : c.r+int(c.req.Length)]
	if _, ok := k.start(); !ok {
		t.leave(c, k, t.then)
		return
	}
	k.try.home = t
	candidate, ok := k.a.Ready()
	if !ok {
		t.leave(c, k, k.walk)
		return
	}
	if _, ok := k.prepare(candidate, true, t); !ok {
		t.leave(c, k, t.then)
		return
	}
	t.ask(c, k)
}

// ask asks an upstream on a connection that the loop has.
func (t *turn) ask(c *conn, k *work) {
	for {
		l := k.try.o.get(t)
		if l == nil {
			t.leave(c, k, func() bool { return k.attempt(nil) })
			return
		}
		if (!k.try.repeatable || k.try.asked.Sub(t.loop.Heard()) > unheard) && !l.lc.Quiet() {
			l.conn.Close()
			continue
		}
		n, err := l.lc.TryWrite(k.out)
		if err != nil || n < len(k.out) {
			l.lc.Man()
			written, failed := n, err
			t.leave(c, k, func() bool { return k.finish(l, written, failed) })
			return
		}
		l.k, l.at, l.due = k, len(t.flights), k.try.from.Add(k.try.patience)
		t.flights = append(t.flights, l)
		if t.next.IsZero() || l.due.Before(t.next) {
			t.next = l.due
		}
		c.flying = true
		if len(t.flights) == 1 { // where more are under way another's answer may come first, and looking costs more than sleeping
			t.loop.Expect(l.lc)
		}
		return
	}
}

// finish goes on where n bytes of the request were written.
func (k *work) finish(l *link, n int, err error) bool {
	if l.buf == nil {
		l.buf = make([]byte, linkBuffer)
	}
	written := n == len(k.out)
	if err == nil {
		l.patience(k.try.from, k.try.patience)
		_, err = l.conn.Write(k.out[n:])
		written = err == nil
	}
	return k.hear(l, written, err)
}

// hear is heard, and what follows.
func (k *work) hear(l *link, written bool, err error) bool {
	next, done, keep := k.heard(l, written, err)
	if done {
		return keep
	}
	return k.attempt(next)
}

// land ends a flight.
func (t *turn) land(l *link, c *conn) {
	last := len(t.flights) - 1
	t.flights[l.at] = t.flights[last]
	t.flights[l.at].at = l.at
	t.flights[last] = nil
	t.flights = t.flights[:last]
	l.k, c.flying = nil, false
}

// over goes on when a request was answered.
func (t *turn) over(c *conn, keep bool) {
	if !keep || c.door.shut.Load() {
		t.hand(c, func() bool { return false })
		return
	}
	c.phase.Store(waiting)
	if c.r < c.w || c.more { // a request may be here: not now, while others have not been told what this round brought
		t.hand(c, nil)
		return
	}
	t.give(c.buf)
	c.buf, c.r, c.w = nil, 0, 0
	c.since = c.now
	if len(t.flights) == 0 && t.loop.Calm() {
		t.pause(c.now)
	}
	if n := t.door.use.of(c.seat); n >= 0 && n != t.number {
		t.move(c, t.all[n])
	} else if !c.lc.Rest() {
		t.end(c)
	}
}

// pause says that nobody waits for an answer just now, as far as this loop knows, which has little to do.
func (t *turn) pause(now time.Time) {
	if b := t.door.fast.cfg.Beat; b.Pause(now) {
		t.loop.GiveWay() // who was answered may wait for this processor
		b.Begin(now)
	}
}

// move has a connection rest on another loop, if that takes any.
func (t *turn) move(c *conn, to *turn) {
	if c.lives(to) && c.lc.Move(to.loop) {
		return
	}
	if c.lives(t); c.lc.Closed() || !c.lc.Rest() {
		t.end(c)
	}
}

// lives says whose loop has it, to whoever ends those of a loop that has failed. false: one has.
func (c *conn) lives(home *turn) bool {
	c.door.mu.Lock()
	defer c.door.mu.Unlock()
	c.home, c.turn = home, home
	return !c.door.loopless
}

// leave leaves what a request still needs to a goroutine.
func (t *turn) leave(c *conn, k *work, then func() bool) {
	t.then = nil
	t.hand(c, func() bool {
		keep := then()
		k.done()
		c.door.works.Put(k)
		return keep
	})
}

// hand hands a connection to a goroutine.
func (t *turn) hand(c *conn, first func() bool) {
	c.turn, c.now, c.lately = nil, time.Time{}, true
	c.lc.Man()
	c.door.wg.Go(func() { c.resume(first) })
}

// tryWrite writes an answer; what the client does not take at once a goroutine writes.
func (c *conn) tryWrite(b []byte) bool {
	if u := c.under; u != nil {
		if _, err := c.rwc.Write(b); err != nil {
			return false
		}
		if last := c.last; len(u.owed) > 0 {
			c.turn.then = func() bool { return c.flush() && !last }
		}
		return true
	}
	n, err := c.lc.TryWrite(b)
	if err != nil || n == len(b) {
		return err == nil
	}
	rest, last := slices.Clone(b[n:]), c.last
	c.turn.then = func() bool { return c.write(rest, time.Now()) && !last }
	return true
}

func (t *turn) buffer() []byte {
	if n := len(t.bufs); n > 0 {
		b := t.bufs[n-1]
		t.bufs = t.bufs[:n-1]
		return b
	}
	return make([]byte, connBuffer)
}

func (t *turn) give(b []byte) {
	if len(b) == connBuffer && len(t.bufs) < spareBuffers {
		t.bufs = append(t.bufs, b)
	}
}

func (t *turn) work() *work {
	if n := len(t.works); n > 0 {
		k := t.works[n-1]
		t.works = t.works[:n-1]
		return k
	}
	return t.door.works.Get().(*work)
}

func (t *turn) forget(k *work) {
	k.done()
	if len(t.works) < spareBuffers {
		t.works = append(t.works, k)
	} else {
		t.door.works.Put(k)
	}
}

// tick ends what takes too long.
func (t *turn) tick(now time.Time) time.Duration {
	if t.number == 0 && len(t.all) > 1 {
		t.door.use.look(now)
	}
	every, patience := loopTick, wholeFew
	if t.door.parkAfter > 0 {
		every, patience = min(every, t.door.parkAfter), t.door.parkAfter
	}
	if now.Sub(t.swept) >= every {
		t.swept = now
		t.loop.Each(func(o loop.Owner) {
			switch o := o.(type) {
			case *conn:
				t.idle(o, now, patience)
			case *link:
				if !o.lc.Rest() {
					o.drop()
				}
			}
		})
	}
	if len(t.flights) == 0 {
		t.next = time.Time{}
		return every
	}
	if left := t.next.Sub(now); left > 0 {
		return min(left, every)
	}
	t.next = now.Add(time.Minute)
	for i := len(t.flights) - 1; i >= 0; i-- {
		l := t.flights[i]
		if now.Before(l.due) {
			if l.due.Before(t.next) {
				t.next = l.due
			}
			continue
		}
		k := l.k
		c := k.from.(*conn)
		t.land(l, c)
		if l.buf == nil {
			l.buf = t.buffer()
		}
		l.lc.Man()
		t.leave(c, k, func() bool { return k.hear(l, true, os.ErrDeadlineExceeded) })
	}
	return min(max(t.next.Sub(now), time.Millisecond), every)
}

// idle parks who has waited for long.
func (t *turn) idle(c *conn, now time.Time, patience time.Duration) {
	if c.since.IsZero() {
		c.since = now
	}
	if now.Sub(c.since) < patience {
		if !c.lc.Rest() {
			t.end(c)
		}
		return
	}
	c.idle, c.turn, c.now = c.since.Add(idleTimeout), nil, time.Time{}
	c.until, c.wuntil, c.since = time.Time{}, time.Time{}, time.Time{}
	c.req = http1.Request{}
	c.lc.SetDeadline(time.Time{})
	c.lc.Man()
	if c.lot == nil || !c.leaveTo(c.idle) {
		c.stays = true
		c.Rouse()
		return
	}
	if c.lc.Closed() {
		c.lot.Take(&c.place)
	}
}

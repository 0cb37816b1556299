package linger_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"bailiwick/dataplane/internal/incarnation"
	"bailiwick/dataplane/internal/linger"
	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"
	"bailiwick/regions/grant"
	"bailiwick/shared/usage"
)

// simFlight is one end of a relay.
type simFlight struct {
	route int
	grant *grant.Grant // that a receiver was shown
	until time.Time
}

func (f *simFlight) flight() grant.Flight {
	r := simRoutes[f.route]
	return grant.Flight{Zone: "z", API: r.policy, Policy: r.policy, From: r.from, To: r.to, Peer: r.to}
}

// simProc is a process of an edge.
type simProc struct {
	w     *simWorld
	e     *simEdge
	name  string
	run   *incarnation.Run
	ctx   context.Context
	die   context.CancelFunc
	serve context.Context // while it serves
	leave context.CancelFunc
	parts sync.WaitGroup // of who serves

	table    atomic.Pointer[simTable]
	held     atomic.Pointer[grant.Held]
	answered atomic.Bool
	forsaken atomic.Bool
	slow     atomic.Int64 // how long a table takes to be put in force, at most
	again    chan struct{}
	keeper   *linger.Keeper // of the process before; nil: there is none
	ends     []net.Conn     // of its links

	borrowed sync.Mutex // covers the next two
	stays    func()
	since    time.Time

	// With the world's mu.
	dead      bool
	paused    chan struct{}
	resumed   time.Time
	retired   bool
	ending    bool      // what goes on is cut
	took      time.Time // when another took its place
	out, in   []*simFlight
	hello     []string // dead, as it said when it connected
	connected bool
	spoke     time.Time
	acked     uint64
}

// awake waits while the process is paused. false: it is dead.
func (p *simProc) awake() bool {
	for {
		p.w.mu.Lock()
		paused, dead := p.paused, p.dead
		p.w.mu.Unlock()
		if dead || paused == nil {
			return !dead
		}
		select {
		case <-paused:
		case <-p.ctx.Done():
		}
	}
}

// sleep lets time pass; false: the process is dead, or ctx has ended.
func (p *simProc) sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	case <-p.ctx.Done():
	}
	return p.awake() && ctx.Err() == nil
}

// enforce is relay.Client.Enforce and relay.Server.Enforce.
func (p *simProc) enforce(out, in bool) {
	w := p.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if p.dead || p.paused != nil {
		return
	}
	t, held, now := p.table.Load(), p.held.Load(), time.Now()
	sweep := func(list *[]*simFlight, stands func(*simFlight) bool) {
		*list = slices.DeleteFunc(*list, func(f *simFlight) bool {
			ended := !now.Before(f.until)
			lives := !ended && stands(f)
			if !lives && !p.took.IsZero() && now.Sub(p.took) > 10*time.Second {
				w.stats.outlived++
			}
			if ended || lives {
				return ended
			}
			w.stats.cut++
			// Of one that opens again the grant may be from before it closed, and end before there is a new one.
			if t.open[f.route] && w.last().open[f.route] && !p.ending && now.Sub(w.opened[f.route]) > 5*time.Second {
				w.stats.needless++
				if w.calm {
					w.fail("a relay over %v is cut in %s, whose table permits it, and all is well (grant %v, of leave %v are left); %s", simRoutes[f.route], p.name, held.Live(f.flight().Policy, f.flight().To, t.At(), now), held.LeaveFor(now), w.state())
				}
			}
			return true
		})
	}
	if out {
		sweep(&p.out, func(f *simFlight) bool { return held.Keep(f.flight(), t, now) })
	}
	if in {
		sweep(&p.in, func(f *simFlight) bool { return f.flight().Stands(t) && held.Takes(f.grant, now) })
	}
}

// ticks enforces as package relay does: a process that was paused may have just missed one.
func (p *simProc) ticks(every time.Duration, out bool) {
	for p.sleep(p.ctx, every) {
		p.w.mu.Lock()
		late := time.Since(p.resumed) < every && p.w.rnd.IntN(2) == 0
		p.w.mu.Unlock()
		if late && !p.sleep(p.ctx, p.w.upTo(every-50*time.Millisecond)) {
			return
		}
		p.enforce(out, !out)
	}
}

// begins has relays begin while it serves.
func (p *simProc) begins() {
	w := p.w
	other := w.edges[0]
	if other == p.e {
		other = w.edges[1]
	}
	for p.sleep(p.serve, w.upTo(400*time.Millisecond)) {
		w.mu.Lock()
		life := time.Duration(w.rnd.Int64N(int64(time.Second)))
		if w.rnd.IntN(2) == 0 {
			life = time.Duration(w.rnd.Int64N(int64(50 * time.Second)))
		}
		f := &simFlight{route: w.rnd.IntN(len(simRoutes)), until: time.Now().Add(life)}
		r, t, held, now := simRoutes[f.route], p.table.Load(), p.held.Load(), time.Now()
		switch {
		case p.retired || p.dead || p.paused != nil:
		case r.from == p.e.region:
			if g, _ := held.Leave(f.flight(), t, now); g != nil {
				p.out = append(p.out, f)
				w.stats.relays++
			}
		default: // of the process that serves there, if it would send
			if q := other.serving; q != nil && q.paused == nil {
				if f.grant, _ = q.held.Load().Leave(f.flight(), q.table.Load(), now); f.grant != nil && f.flight().Stands(t) && held.Takes(f.grant, now) {
					shown := *f.grant // as it was signed
					shown.OfflineTTL, f.grant = w.offline, &shown
					p.in = append(p.in, f)
					w.stats.relays++
				}
			}
		}
		w.judge("as another begins")
		w.mu.Unlock()
	}
}

// put has a table in force: what it forbids has ended here when it returns, and behind.
func (p *simProc) put(t *simTable) {
	p.table.Store(t)
	if p.keeper != nil {
		p.keeper.Table([]*syncv1.Signed{{Payload: binary.BigEndian.AppendUint64(nil, t.index)}})
	}
}

func (p *simProc) cut(mark *uint64) {
	p.enforce(true, true)
	if t := p.table.Load(); p.keeper != nil && *mark != t.rules {
		*mark = t.rules
		p.keeper.Tighten(t.At())
	}
}

// follow is subscribe's session: to disk, in force, what it forbids ended, acknowledged.
func (p *simProc) follow(mark *uint64) {
	needBase := false
	for p.sleep(p.serve, p.w.upTo(100*time.Millisecond)+20*time.Millisecond) {
		if slow := time.Duration(p.slow.Load()); slow > 0 && !p.sleep(p.serve, p.w.upTo(slow)) {
			return
		}
		p.w.mu.Lock()
		t, full, lost := p.w.last(), p.e.full, p.w.rnd.Float64() < p.w.loss/2 || time.Now().Before(p.e.away)
		had := p.table.Load()
		if !full && !lost {
			p.e.disk = t
		}
		p.w.mu.Unlock()
		if lost || t.index <= had.index && !needBase {
			continue
		}
		if t.index > had.index {
			p.put(t)
		}
		if needBase { // a snapshot has rules of its own
			*mark = 0
		}
		p.cut(mark)
		if needBase = full; full {
			continue
		}
		p.w.mu.Lock()
		p.acked = t.index
		p.w.note("%s acks %d (%d)", p.name, t.index, t.rules)
		p.w.mu.Unlock()
	}
}

// asks is failover.Grants.Run.
func (p *simProc) asks() {
	w := p.w
	var twin time.Time
	for p.serve.Err() == nil {
		t, asked := p.table.Load(), time.Now()
		answer := make(chan simAnswer, 1)
		w.wg.Go(func() {
			time.Sleep(w.upTo(30 * time.Millisecond))
			a := w.ask(p.e, grant.Process{Edge: p.e.name, Incarnation: p.run.ID}, p.run.Dead(), t.At())
			time.Sleep(w.upTo(30 * time.Millisecond))
			if a.answer != grant.Silent {
				answer <- a
			}
		})
		every := max(50*time.Millisecond, p.held.Load().Shortest(30*time.Second)/3)
		var a simAnswer
		timer := time.NewTimer(min(5*time.Second, max(every, 250*time.Millisecond)))
		select {
		case a = <-answer:
		case <-timer.C:
		case <-p.ctx.Done():
		}
		timer.Stop()
		if !p.awake() || p.serve.Err() != nil {
			return
		}
		for _, g := range a.given {
			g.Asked = asked
		}
		w.noted("%s is answered %d (twin %t) with %d grants, leave %v, asked with %v at %d", p.name, a.answer, a.twin, len(a.given), a.takes, p.run.Dead(), t.index)
		p.held.Store(p.held.Load().Step(a.answer, a.given, grant.Take{Asked: asked, Lasts: a.takes}, time.Now()))
		next := max(50*time.Millisecond, p.held.Load().Shortest(30*time.Second)/3)
		if a.answer == grant.Given {
			p.answered.Store(true)
			p.enforce(true, true)
		}
		if a.answer != grant.Given || p.lacks(t, asked) {
			next = min(next, time.Second)
		}
		if a.twin && p.run.Stays() {
			if twin.IsZero() {
				twin = time.Now()
			}
			if time.Since(twin) > 2*time.Second {
				p.forsaken.Store(true)
			}
			next = min(next, 200*time.Millisecond)
		}
	wait:
		for until := time.Now().Add(next); time.Now().Before(until) && p.table.Load().rules == t.rules; {
			if !p.sleep(p.serve, 50*time.Millisecond) {
				return
			}
			select {
			case <-p.again:
				break wait
			default:
			}
		}
	}
}

// lacks is failover.Grants.lacks.
func (p *simProc) lacks(t *simTable, newest time.Time) bool {
	for i, r := range simRoutes {
		g := p.held.Load().Live(r.policy, r.to, t.At(), time.Now())
		if t.open[i] && (r.from == p.e.region && (g == nil || g.Asked.Before(newest)) || r.to == p.e.region && p.held.Load().LeaveFor(time.Now()) <= 0) {
			return true
		}
	}
	return false
}

// buries is Edge.bury.
func (p *simProc) buries() {
	for p.run.Stays() && p.sleep(p.serve, 250*time.Millisecond) {
		if p.run.Look() {
			select {
			case p.again <- struct{}{}:
			default:
			}
		}
	}
}

// behind is how many processes linger behind, and what relays they have.
func (p *simProc) behind() (processes, relays int) {
	if p.keeper == nil {
		return 0, 0
	}
	out, in, known := p.keeper.Relays()
	if !known {
		out = 1
	}
	select {
	case <-p.keeper.Gone():
		return 0, out + in
	default:
		return p.keeper.Before(), out + in
	}
}

// relays are under way here and behind.
func (p *simProc) relays() (out, in int) {
	_, behind := p.behind()
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	return len(p.out) + behind, len(p.in)
}

func (p *simProc) staying() bool {
	out, in := p.relays()
	behind, _ := p.behind()
	p.borrowed.Lock()
	defer p.borrowed.Unlock()
	if p.stays == nil {
		return false
	}
	if linger.Rests(out+in, p.since, behind, time.Now()) {
		return true
	}
	p.stays()
	p.stays = nil
	p.w.noted("%s stays no longer", p.name)
	return false
}

func (p *simProc) goBy(h *grant.Held) {
	p.held.Store(h)
	p.answered.Store(true)
	p.enforce(true, true)
}

// lend is called with locks of package linger, and takes none of the world's.
func (p *simProc) lend(now time.Time) (grant.Lent, bool) {
	if p.forsaken.Load() {
		return grant.Lent{}, true
	}
	if !p.answered.Load() {
		return grant.Lent{}, false
	}
	return p.held.Load().Lend(p.table.Load().At(), now, linger.LentTime), true
}

// start has a process begin to serve, beside the one before it if that goes on over conn.
func (w *simWorld) start(e *simEdge, conn func(*simProc) net.Conn) *simProc {
	run, err := incarnation.Begin(e.dir, "boot", quiet)
	for again := 0; err != nil && again < 10; again++ { // who was killed may not have let go
		time.Sleep(20 * time.Millisecond)
		run, err = incarnation.Begin(e.dir, "boot", quiet)
	}
	if err != nil {
		panic(err)
	}
	p := &simProc{w: w, e: e, run: run, again: make(chan struct{}, 1)}
	p.ctx, p.die = context.WithCancel(w.ctx)
	p.serve, p.leave = context.WithCancel(p.ctx)
	p.held.Store(&grant.Held{})
	w.mu.Lock()
	p.name = fmt.Sprint(e.name, len(e.all))
	p.table.Store(e.disk)
	p.acked, p.hello, p.connected, p.spoke = e.disk.index, run.Dead(), true, time.Now()
	if !w.calm && w.rnd.IntN(4) == 0 {
		p.slow.Store(w.rnd.Int64N(int64(4 * time.Second)))
	}
	w.mu.Unlock()
	var mark uint64
	if conn != nil {
		c := conn(p)
		p.ends = append(p.ends, c)
		p.keeper = linger.NewKeeper(linger.KeeperConfig{Conn: c, Append: func(*usage.Row) error { return nil }, Sublet: sublet(w.t), Fresh: func() time.Time { return time.Time{} }, Logger: quiet,
			Lend: p.lend, Since: p.table.Load().At()})
		w.wg.Go(p.keeper.Run)
	}
	w.mu.Lock()
	w.note("%s begins as %s, dead %v, table %d", p.name, run.ID, p.hello, p.acked)
	e.all, e.serving, e.busy = append(e.all, p), p, false
	w.mu.Unlock()
	w.wg.Go(func() { p.ticks(200*time.Millisecond, true) })
	w.wg.Go(func() { p.ticks(500*time.Millisecond, false) })
	p.parts.Go(func() { p.follow(&mark) })
	p.parts.Go(p.asks)
	p.parts.Go(p.buries)
	p.parts.Go(p.begins)
	w.wg.Go(func() {
		p.parts.Wait()
		p.lingers(&mark)
	})
	return p
}

// kill ends a process as the kernel does.
func (w *simWorld) kill(p *simProc) {
	w.mu.Lock()
	if p.dead {
		w.mu.Unlock()
		return
	}
	w.note("%s ends", p.name)
	p.dead, p.connected, p.out, p.in = true, false, nil, nil
	if p.e.serving == p {
		p.e.serving = nil
	}
	ends := slices.Clone(p.ends)
	w.mu.Unlock()
	p.die()
	for _, c := range ends {
		c.Close()
	}
	p.run.Leave()
	p.borrowed.Lock()
	defer p.borrowed.Unlock()
	if p.stays != nil {
		p.stays()
		p.stays = nil
	}
}

// takeover has another process take the one's place that serves: Edge.settle. What follows is lingers'.
func (w *simWorld) takeover(p *simProc) {
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if p.took.IsZero() {
			p.e.busy = false // it is dead
		}
	}()
	if !p.awake() {
		return
	}
	if n, _ := p.behind(); n >= linger.MostBefore {
		p.keeper.HurryOldest(10 * time.Second)
	}
	stays := w.calm || !w.chance(0.1) // or another program asks
	if stays {
		over, err := p.run.Stay()
		if err != nil {
			w.t.Errorf("seed %d: %v", w.seed, err)
		}
		p.borrowed.Lock()
		p.stays = over
		p.borrowed.Unlock()
	}
	if !p.sleep(p.ctx, 250*time.Millisecond) {
		return
	}
	w.mu.Lock()
	p.retired = true
	w.mu.Unlock()
	if !stays {
		p.goBy(&grant.Held{})
		p.forsaken.Store(true)
		for until := time.Now().Add(linger.LentTime + 250*time.Millisecond); time.Now().Before(until) && p.sleep(p.ctx, 10*time.Millisecond); {
			if _, relays := p.behind(); relays == 0 {
				break
			}
		}
	}
	p.staying()
	w.mu.Lock()
	w.note("%s is replaced, with %d out and %d in", p.name, len(p.out), len(p.in))
	p.took = time.Now()
	w.taken = time.Now()
	w.mu.Unlock()
	p.leave()
}

// lingers is Edge.giveUp and goOn.
func (p *simProc) lingers(mark *uint64) {
	w := p.w
	w.mu.Lock()
	dead, took := p.dead, p.took
	p.connected = false
	w.mu.Unlock()
	if took.IsZero() || w.ctx.Err() != nil {
		return
	}
	idle := func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		p.e.busy = false
	}
	if dead {
		idle()
		return
	}
	if p.staying() {
		p.run.Leave()
	} else if err := p.run.End(); err != nil {
		w.t.Errorf("seed %d: %v", w.seed, err)
	}
	w.mu.Lock()
	w.stats.takeovers++
	if p.e.serving == p {
		p.e.serving = nil
	}
	w.mu.Unlock()
	var mine net.Conn
	crashes := !w.calm && w.chance(0.1)
	early := crashes && w.chance(0.5)
	join := func(q *simProc) net.Conn {
		a, b := w.link(p, q)
		mine = a
		return b
	}
	var next *simProc
	if !early {
		time.Sleep(w.upTo(150 * time.Millisecond))
		next = w.start(p.e, join)
		w.mu.Lock()
		p.ends = append(p.ends, mine)
		dead = p.dead
		w.mu.Unlock()
		if dead {
			mine.Close()
			return
		}
	}
	if crashes {
		if next != nil {
			w.wg.Go(func() {
				time.Sleep(w.upTo(500 * time.Millisecond))
				w.kill(next)
			})
		} else { // nobody is at the other end
			idle()
			w.kill(p)
			return
		}
	}
	var lent atomic.Bool
	var link *linger.Link
	link = linger.NewLink(linger.LinkConfig{Conn: mine,
		Table: func(s *syncv1.Signed) error {
			if slow := time.Duration(p.slow.Load()); slow > 0 {
				p.sleep(p.ctx, w.upTo(slow))
			}
			if !p.awake() {
				return net.ErrClosed
			}
			w.mu.Lock()
			t := w.log[binary.BigEndian.Uint64(s.Payload)-1]
			w.mu.Unlock()
			if t.index <= p.table.Load().index {
				return nil
			}
			p.put(t)
			p.cut(mark)
			w.noted("%s has table %d behind", p.name, t.index)
			return nil
		},
		Fresh: func(time.Time) {}, Left: func() (int64, int) { n, _ := p.behind(); return 1, n },
		Older: func(within time.Duration) bool {
			if n, _ := p.behind(); n == 0 {
				return false
			}
			p.keeper.HurryOldest(within)
			return true
		},
		Heed: func() linger.Heed {
			p.awake()
			p.staying()
			out, in := p.relays()
			return linger.Heed{Out: out, In: in}
		},
		At: func() grant.At { return p.table.Load().At() },
		Lent: func(l grant.Lent, asked time.Time) {
			if !p.awake() {
				return
			}
			w.mu.Lock()
			p.ending = p.ending || link.Healthy() != nil
			w.mu.Unlock()
			w.noted("%s is lent %d pairs for %v, leave %v of age %v, asked %v ago", p.name, len(l.Pairs), l.Pairs, l.TakeLasts, l.TakeAge, time.Since(asked))
			p.goBy(l.Held(asked))
			p.borrowed.Lock()
			defer p.borrowed.Unlock()
			if p.since.IsZero() {
				p.since = time.Now()
			}
			if !lent.Swap(true) {
				w.mu.Lock()
				w.stats.lent++
				w.mu.Unlock()
			}
		}})
	over := make(chan struct{})
	w.wg.Go(func() {
		why := link.Run()
		w.mu.Lock()
		w.note("%s: %v", p.name, why)
		p.ending = true
		w.mu.Unlock()
		if p.awake() {
			p.goBy(&grant.Held{})
		}
		close(over)
	})
	for {
		select {
		case <-over:
			time.Sleep(w.upTo(2 * time.Second)) // what is broken off is counted
			w.kill(p)
			return
		case within := <-link.Ending():
			if p.keeper != nil {
				p.keeper.Hurry(within)
			}
			p.sleep(p.ctx, within)
			if p.awake() {
				w.mu.Lock()
				p.ending = true
				w.mu.Unlock()
				p.goBy(&grant.Held{})
			}
		case <-time.After(100 * time.Millisecond):
			out, in := p.relays()
			if n, _ := p.behind(); n > 0 || out+in > 0 || !p.awake() {
				continue
			}
		}
		link.Close()
		<-over
		w.kill(p)
		return
	}
}

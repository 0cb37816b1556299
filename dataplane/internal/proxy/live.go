package proxy

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"bailiwick/dataplane/internal/failover"
	"bailiwick/dataplane/internal/gate"
	"bailiwick/dataplane/internal/policy"
	"bailiwick/dataplane/internal/websocket"
)

const (
	// DefaultStreams is how many connections that last an edge has at once unless it is told otherwise.
	DefaultStreams = 16_384

	// DefaultDrain is how long what lasts goes on at a target that is none any more unless the edge is told otherwise.
	DefaultDrain = 5 * time.Minute

	judgeAtMost  = 250 * time.Millisecond // between two looks when tables change all the time
	judgeAtLeast = time.Second            // without a change: keys end by time, and tables grow old
)

// lives are the connections that outlast the decision they began with: whatever takes back what that decision rested on ends
// them within a second.
type lives struct {
	count atomic.Int64

	mu  sync.Mutex // covers all
	all map[*life]struct{}
}

// life is one connection.
type life struct {
	standing gate.Standing
	stands   func(*policy.API, *policy.Route) bool // it is still of a kind that is served; nil: another edge decided, and asks again
	target   *failover.Target                      // whose bytes pass; nil: another region's
	left     atomic.Int64                          // when that was first seen to be no target any more, ns since the proxy's start; 0: it is one
	orders   chan websocket.Order                  // holds the one there is
	told     atomic.Pointer[websocket.Order]       // that one: nothing is counted after it, and so nothing passes
	cut      context.CancelCauseFunc               // ends what waits, and the connection if nothing can be told to it
}

// end tells the connection to end; the first word counts. It waits for nothing.
func (l *life) end(code uint16, reason string) {
	o := &websocket.Order{Code: code, Reason: reason}
	if l.told.CompareAndSwap(nil, o) {
		l.orders <- *o
		l.cut(errTaken)
	}
}

// live enters a connection, or an answer that lasts, that was admitted as asked under t and billed if it has a tab; at is where its
// bytes come from. Another edge decided of one that was not asked here: only its target is looked at. Call the returned func when
// it is over.
func (p *Proxy) live(c *call, t *policy.Table, a *gate.Request, at *failover.Target, stands func(*policy.API, *policy.Route) bool, cut context.CancelCauseFunc) (*life, func()) {
	l := &life{target: at, orders: make(chan websocket.Order, 1), cut: cut}
	if a != nil {
		l.standing, l.stands = c.v.Standing(t, a), stands
	}
	if c.tab != nil {
		c.tab.told = &l.told
	}
	p.lives.mu.Lock()
	if p.lives.all == nil {
		p.lives.all = map[*life]struct{}{}
	}
	p.lives.all[l] = struct{}{}
	p.lives.mu.Unlock()
	p.judge(l) // once more, now that a look would find it: the table may have changed since the decision
	return l, func() {
		p.lives.mu.Lock()
		delete(p.lives.all, l)
		p.lives.mu.Unlock()
	}
}

// lasts has a call keep no keys in memory while it lasts, and says which table decided it. Call it while nobody else reads it.
func (c *call) lasts() (decided *policy.Table) {
	decided, c.table = c.table, c.table.Keyless()
	c.v.KeyID = strings.Clone(c.v.KeyID) // which lies among five hundred others
	return decided
}

// outlasts has an answer that is still under way after a second end with what its decision rested on, and with its target. asked
// says then what that was, nil: another edge decided. cut is called once, and must end whoever waits for either side. Call the
// returned func when the answer is over: nothing is called after it. An answer that ends sooner costs no more than a timer.
func (c *call) outlasts(at *failover.Target, asked func() *gate.Request, cut context.CancelCauseFunc) (over func()) {
	if at == nil && c.relayed {
		return func() {}
	}
	var mu, cutting sync.Mutex // covers leave and ended; covers done, and a cut
	var leave func()
	ended, done := false, false
	decided := c.lasts()
	timer := time.AfterFunc(judgeAtLeast, func() {
		mu.Lock()
		defer mu.Unlock()
		if ended {
			return
		}
		_, leave = c.p.live(c, decided, asked(), at, anyRoute, func(why error) {
			cutting.Lock()
			defer cutting.Unlock()
			if !done { // else it would end whoever is served next on the connection
				cut(why)
			}
		})
		decided = nil // the timer stays
	})
	return func() {
		timer.Stop()
		mu.Lock()
		defer mu.Unlock()
		if ended = true; leave != nil {
			leave()
		}
		cutting.Lock()
		done = true
		cutting.Unlock()
	}
}

// decidedOn is what an answer's request asked, for outlasts.
func (x *exchange) decidedOn() *gate.Request {
	if x.relayed {
		return nil
	}
	if x.asked == nil { // it was asked on the common road, in text that is not kept
		said := asking(x.r)
		x.asked = &said
	}
	return &x.asked.Request
}

// past is a deadline that ends at once whoever waits.
var past = time.Unix(1, 0)

func anyRoute(*policy.API, *policy.Route) bool { return true }

// enter takes one of the places for connections that last. false: there is none.
func (p *Proxy) enter() bool {
	most := int64(p.cfg.MaxStreams)
	if p.lives.count.Add(1) > most {
		p.lives.count.Add(-1)
		return false
	}
	return true
}

func (p *Proxy) judge(l *life) {
	if l.target != nil && p.drained(l) {
		l.end(websocket.CloseAway, "the upstream is no target of the API any more: connect anew")
		return
	}
	if l.stands == nil {
		return
	}
	var age time.Duration
	now := time.Now()
	if p.cfg.TableAge != nil {
		age = p.cfg.TableAge(now)
	}
	api, route, problem := l.standing.Stands(p.cfg.Tables.Load(), age, now.Unix())
	switch {
	case problem.Status != 0:
		l.end(websocket.ClosePolicy, problem.Reason)
	case !l.stands(api, route):
		l.end(websocket.ClosePolicy, gate.ReasonRouteUnknown)
	}
}

// drained says whether the target has been none for so long that nobody should be there any more.
func (p *Proxy) drained(l *life) bool {
	if p.cfg.Monitor.Has(l.target) {
		l.left.Store(0)
		return false
	}
	now := int64(time.Since(p.start))
	return !l.left.CompareAndSwap(0, max(now, 1)) && now-l.left.Load() >= int64(p.cfg.UpstreamDrain)
}

// judgeAll looks at all connections whenever the table has changed, and now and then, until ctx ends.
func (p *Proxy) judgeAll(ctx context.Context) {
	tick := time.NewTicker(judgeAtLeast)
	defer tick.Stop()
	var list []*life
	for {
		changed := p.cfg.Tables.Changed()
		p.lives.mu.Lock()
		for l := range p.lives.all {
			list = append(list, l)
		}
		p.lives.mu.Unlock()
		for _, l := range list {
			p.judge(l)
		}
		clear(list)
		list = list[:0]
		pause := time.NewTimer(judgeAtMost)
		select {
		case <-ctx.Done():
			pause.Stop()
			return
		case <-pause.C:
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-tick.C:
		}
	}
}

// Streams is how many connections last at this edge now: WebSockets and such of APIs that are tcp.
func (p *Proxy) Streams() int64 { return p.lives.count.Load() }

// StreamsLimit is how many may.
func (p *Proxy) StreamsLimit() int64 { return int64(p.cfg.MaxStreams) }

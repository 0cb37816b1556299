package proxy

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"bailiwick/dataplane/internal/gate"
	"bailiwick/dataplane/internal/policy"
	"bailiwick/dataplane/internal/websocket"
)

const (
	// DefaultStreams is how many connections that last an edge has at once unless it is told otherwise.
	DefaultStreams = 16_384

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
	stands   func(*policy.API, *policy.Route) bool // it is still of a kind that is served
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

// live enters a connection, or a stream of messages, that was admitted as asked, and billed if it has a tab. Call the returned func when it is over.
func (p *Proxy) live(c *call, a *gate.Request, stands func(*policy.API, *policy.Route) bool, cut context.CancelCauseFunc) (*life, func()) {
	l := &life{standing: c.v.Standing(c.table, a), stands: stands, orders: make(chan websocket.Order, 1), cut: cut}
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

// outlasts has a stream of messages that is still there after a second end with what its decision rested on. Call the returned
// func when it is over.
func (x *exchange) outlasts(res *result) (over func()) {
	if x.asked == nil || res.end == nil { // another edge decided
		return func() {}
	}
	cut := func(why error) { x.taken.Store(true); res.end(why) }
	var mu sync.Mutex // covers both
	var leave func()
	ended := false
	timer := time.AfterFunc(judgeAtLeast, func() {
		mu.Lock()
		defer mu.Unlock()
		if !ended {
			_, leave = x.p.live(x.call, &x.asked.Request, func(*policy.API, *policy.Route) bool { return true }, cut)
		}
	})
	return func() {
		timer.Stop()
		mu.Lock()
		defer mu.Unlock()
		if ended = true; leave != nil {
			leave()
		}
	}
}

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
	var age time.Duration
	if p.cfg.TableAge != nil {
		age = p.cfg.TableAge()
	}
	api, route, problem := l.standing.Stands(p.cfg.Tables.Load(), age, time.Now().Unix())
	switch {
	case problem.Status != 0:
		l.end(websocket.ClosePolicy, problem.Reason)
	case !l.stands(api, route):
		l.end(websocket.ClosePolicy, gate.ReasonRouteUnknown)
	}
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

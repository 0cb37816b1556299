package websocket

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"
)

// Meter counts what passes.
type Meter interface {
	// Spend is asked before messages or bytes of them go on, from the client (up) or to it, from one goroutine each way. It may
	// wait; an error, an Order perhaps, ends the connection before they do.
	Spend(up bool, messages, bytes int64) error
	// Tick is called now and then, from a third one.
	Tick()
}

// Order ends a connection: why is told to both sides.
type Order struct {
	Code   uint16
	Reason string
}

func (o *Order) Error() string { return fmt.Sprintf("%s (%d)", o.Reason, o.Code) }

// Numbers that are not a route's to say.
const (
	DefaultMaxMessage = 1 << 20
	DefaultIdle       = 10 * time.Minute
	DefaultPing       = 30 * time.Second

	closeWait = 2 * time.Second  // for the answer to a close frame
	writeWait = 30 * time.Second // of a side that takes nothing
	tickEvery = 5 * time.Second
)

// Config of a connection. Client, Upstream and Meter are required.
type Config struct {
	Client, Upstream Leg
	Meter            Meter
	Orders           <-chan Order // the first one ends the connection; nil: none comes

	MaxMessage int64         // 0: DefaultMaxMessage
	Idle       time.Duration // 0: DefaultIdle; without a message either way
	Ping       time.Duration // 0: DefaultPing; who was silent for so long is asked, and gone after as long again
}

// End is how a connection ended.
type End struct {
	By     string // client, upstream or edge
	Closed bool   // by a close frame that client or upstream sent
	Code   uint16 // that the other was told, or both; 0: none
	Reason string
	Err    error  // what broke it; nil: nothing did
	Panic  []byte // where in the code, if that was the reason
}

// Sides.
const (
	Client   = "client"
	Upstream = "upstream"
	Edge     = "edge"
)

// joint is a connection under way.
type joint struct {
	cfg              Config
	born             time.Time
	client, upstream *side
	spoke            atomic.Int64 // when data last went on
	ordered          atomic.Bool  // both are told by this edge to close: what they answer goes no further
}

func (j *joint) since() time.Duration { return time.Since(j.born) }

// Join carries messages between both legs until one of them ends, an order comes or ctx is over. It breaks both before it
// returns, and nobody uses them any more then.
func Join(ctx context.Context, cfg Config) End {
	if cfg.MaxMessage <= 0 {
		cfg.MaxMessage = DefaultMaxMessage
	}
	if cfg.Idle <= 0 {
		cfg.Idle = DefaultIdle
	}
	if cfg.Ping <= 0 {
		cfg.Ping = DefaultPing
	}
	j := &joint{cfg: cfg, born: time.Now(), client: &side{leg: cfg.Client, name: Client}, upstream: &side{leg: cfg.Upstream, name: Upstream, masked: true}}
	rand.Read(j.client.nonce[:]) // never fails
	rand.Read(j.upstream.nonce[:])

	over := make(chan ended, 2)
	var wg sync.WaitGroup
	carry := func(p *pump) {
		wg.Go(func() {
			e := ended{p: p}
			defer func() { over <- e }()
			defer func() {
				if r := recover(); r != nil { // one connection's end, and not the edge's
					e.err = &panicked{debug.Stack()}
				}
			}()
			e = p.run()
		})
	}
	carry(newPump(j, j.client, j.upstream, true))
	carry(newPump(j, j.upstream, j.client, false))

	end, left := j.watch(ctx, over)
	j.part(&end, over, left)
	cfg.Client.Break()
	cfg.Upstream.Break()
	wg.Wait()
	return end
}

type panicked struct{ stack []byte }

func (*panicked) Error() string { return "panic" }

// watch waits for the first reason to end, and says how many directions still go on.
func (j *joint) watch(ctx context.Context, over <-chan ended) (end End, left int) {
	tick := time.NewTicker(min(tickEvery, j.cfg.Ping/2, j.cfg.Idle/2))
	defer tick.Stop()
	for {
		select {
		case e := <-over:
			return j.verdict(e), 1
		case o := <-j.cfg.Orders:
			return End{By: Edge, Code: o.Code, Reason: o.Reason}, 2
		case <-ctx.Done():
			return End{By: Edge, Code: CloseRestart, Reason: "connect anew", Err: context.Cause(ctx)}, 2
		case <-tick.C:
			j.cfg.Meter.Tick()
			if end, bad := j.look(); bad {
				return end, 2
			}
		}
	}
}

// look asks what time has made of both sides.
func (j *joint) look() (end End, bad bool) {
	now := j.since()
	for _, s := range [...]*side{j.client, j.upstream} {
		other := j.upstream
		if s == other {
			other = j.client
		}
		if at := time.Duration(s.writing.Load()); at != 0 && now-at > writeWait {
			return j.lost(s, errors.New("it takes nothing")), true
		} else if at != 0 || other.writing.Load() != 0 { // nobody can ask it, or nobody listens to it while the other takes nothing
			continue
		}
		switch silent := now - time.Duration(s.heard.Load()); {
		case silent >= 2*j.cfg.Ping:
			return j.lost(s, errors.New("it gave no sign of life")), true
		case silent >= j.cfg.Ping:
			s.control(opPing, s.nonce[:], j.since)
		}
	}
	if now-time.Duration(j.spoke.Load()) >= j.cfg.Idle {
		return End{By: Edge, Code: CloseAway, Reason: "nothing was said for long"}, true
	}
	return end, false
}

// lost is the end when one side is gone.
func (j *joint) lost(s *side, err error) End {
	var o *Order
	if errors.As(err, &o) { // its leg knows better
		return End{By: s.name, Code: o.Code, Reason: o.Reason, Err: err}
	}
	if s == j.client {
		return End{By: Client, Code: CloseAway, Reason: "the client left", Err: err}
	}
	return End{By: Upstream, Code: CloseFailed, Reason: "the upstream broke off", Err: err}
}

// verdict is the end as one direction saw it first.
func (j *joint) verdict(e ended) End {
	var v *Violation
	var o *Order
	var p *panicked
	switch {
	case e.closed:
		return End{By: e.p.from.name, Closed: true, Code: e.code, Reason: e.reason}
	case e.gone != nil:
		return j.lost(e.gone, e.err)
	case errors.As(e.err, &v) && e.p.from == j.client:
		return End{By: Client, Code: v.Code, Reason: v.What, Err: e.err}
	case errors.As(e.err, &v):
		return End{By: Upstream, Code: CloseFailed, Reason: "the upstream broke the protocol", Err: e.err}
	case errors.As(e.err, &o):
		return End{By: Edge, Code: o.Code, Reason: o.Reason}
	case errors.As(e.err, &p):
		return End{By: Edge, Code: CloseFailed, Reason: "the edge failed", Err: e.err, Panic: p.stack}
	}
	return End{By: Edge, Code: CloseFailed, Reason: "the connection could not be counted", Err: e.err}
}

// part tells both sides, as far as they were not told, and gives them a moment to answer.
func (j *joint) part(end *End, over <-chan ended, left int) {
	toClient, toUpstream := end.Code, end.Code
	switch {
	case end.Closed: // the other side was told by whoever closed; whoever closed hears from the other side
		toClient, toUpstream = 0, 0
	case end.By == Client && end.Err != nil: // what a client did wrong is not the upstream's business
		toUpstream = CloseAway
	case end.By == Upstream && errors.As(end.Err, new(*Violation)):
		toUpstream = end.Err.(*Violation).Code
	}
	wait := time.NewTimer(closeWait)
	defer wait.Stop()
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	tell := func(s *side, code uint16) bool {
		return code == 0 || s.done() || s.close(code, end.Reason, j.since)
	}
	j.ordered.Store(!end.Closed)
	told := tell(j.client, toClient)
	told = tell(j.upstream, toUpstream) && told
	for left > 0 {
		select {
		case e := <-over:
			left--
			if e.gone == j.client || e.gone == j.upstream && left == 0 { // nobody is left who would say more
				return
			}
		case <-again.C:
			if !told {
				told = tell(j.client, toClient)
				told = tell(j.upstream, toUpstream) && told
			}
		case <-wait.C:
			if end.Closed { // who was asked to close did not answer: who asked is told all the same
				code := end.Code
				if code == 0 {
					code = CloseNormal
				}
				tell(j.client, code)
				tell(j.upstream, code)
			}
			return
		}
	}
	if end.Closed { // the other side answered by breaking off
		code := end.Code
		if code == 0 {
			code = CloseNormal
		}
		tell(j.client, code)
		tell(j.upstream, code)
	}
}

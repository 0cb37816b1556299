package proxy

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"sync"
	"time"

	"bailiwick/dataplane/internal/channel"
	"bailiwick/dataplane/internal/failover"
	"bailiwick/dataplane/internal/gate"
	"bailiwick/dataplane/internal/limit"
	"bailiwick/dataplane/internal/priority"
	"bailiwick/dataplane/internal/relay"
	"bailiwick/dataplane/internal/trace"
)

// result is what one attempt, or all of them, came to.
type result struct {
	resp   *http.Response
	region string
	end    context.CancelCauseFunc // frees the attempt; call it when done with resp
	place  failover.Candidate      // holds a place at a target until then
	hold   *hold                   // of an attempt that counts against a bound; nil: none does
	watch  *time.Timer             // ends the attempt when nothing moves; reset it while something does
	paced  func()                  // ends judging how fast the client sends its body; nil: nobody does

	span   *trace.Attempt // nil: it has no trace
	stream *opened        // resp opens it; nil: it is an answer

	err     error
	sent    bool         // may have reached an upstream
	client  bool         // it failed by the client's doing
	problem gate.Problem // of the whole walk, when there is no resp
}

// answered says that an upstream gave an answer worth showing if there may be a better one elsewhere.
func (r *result) answered() bool {
	if r.resp == nil {
		return false
	}
	switch r.resp.StatusCode {
	case 502, 503, 504:
		return false
	}
	return true
}

func (r *result) drop(why error) {
	if r.watch != nil {
		r.watch.Stop()
	}
	if r.paced != nil {
		r.paced()
	}
	if r.end != nil {
		r.end(why)
	}
	if r.resp != nil {
		r.resp.Body.Close()
		r.resp = nil
	}
	r.leave()
}

func (r *result) leave() {
	r.place.Leave()
	r.place = failover.Candidate{}
}

// walk tries candidates until one answers. A request that can be repeated goes on to the next after any
// failure, one that cannot only while no byte of it can have reached an upstream.
func (x *exchange) walk(a *failover.Attempts, g *given) result {
	ctx := x.r.Context()
	if x.holds == nil && x.bounded() {
		x.holds = &holds{}
	}
	repeatable := idempotent(x.r.Method)
	var held result // an upstream's 502, 503 or 504, shown if nobody does better
	last := result{problem: gate.NewProblem(503, gate.ReasonNoRegion, "No region that the policy permits has a healthy upstream; try again shortly.")}
	charge := false
	for !x.gone() {
		var res result
		switch first := g; {
		case first != nil && first.none:
			g = nil
			return x.unanswered(held, x.nowhere(a, last))
		case first != nil:
			g = nil
			if first.failed != nil {
				if res = *first.failed; res.end != nil { // the client may leave while the answer is on its way
					end := res.end
					context.AfterFunc(ctx, func() { end(context.Cause(ctx)) })
				}
				break
			}
			x.begun = first.begun
			res = x.race(ctx, a, first.Candidate)
		default:
			c, ok := a.Next(ctx)
			if !ok {
				return x.unanswered(held, x.nowhere(a, last))
			}
			if charge && !x.budget.take(time.Since(x.p.start)) {
				c.Leave()
				last.problem = gate.NewProblem(503, gate.ReasonRetriesSpent, "Too many requests to this API are being retried; try again shortly.")
				return x.unanswered(held, last)
			}
			res = x.race(ctx, a, c)
		}
		if res.answered() || res.resp != nil && (!repeatable || x.rushed(res.resp.StatusCode)) { // nobody waits for another answer
			held.drop(nil)
			return res
		}
		if res.resp != nil {
			held.drop(nil)
			held, charge = res, true
			if !x.body.fresh() {
				break
			}
			continue
		}
		x.body.shut()
		last.client = res.client
		if errors.Is(res.err, channel.ErrHead) && !res.sent {
			last.problem = gate.NewProblem(431, gate.ReasonHeadTooLarge, "The upstream takes smaller heads: send fewer or shorter header fields.")
			break
		}
		if errors.Is(res.err, errOpens) {
			last.problem = busy
		}
		if res.sent {
			charge = true
			if !repeatable || !x.body.fresh() {
				last.sent = true
				last.problem = gate.NewProblem(502, gate.ReasonUpstream, "The upstream failed after the request was sent; it may or may not have acted on it.")
				if errors.Is(res.err, errLate) {
					last.problem = gate.NewProblem(504, gate.ReasonUpstreamLate, "The upstream did not answer in time; it may or may not have acted on the request.")
				}
				break
			}
			last.sent = true
		}
		if errors.Is(res.err, errLate) && (repeatable || x.left(1) == 0) && held.resp == nil {
			// The whole time of the route is spent: the client has waited long enough, or has said that it waits no longer.
			last.problem = gate.NewProblem(504, gate.ReasonUpstreamLate, "The upstream did not answer in time.")
			break
		}
		if !x.body.fresh() {
			last.problem = gate.NewProblem(502, gate.ReasonUpstream, "The upstream failed while the body was being sent.")
			break
		}
	}
	x.unwalked(ctx, g)
	return x.unanswered(held, last)
}

// unwalked ends a step that nobody goes on from, since the client left before the walk began. What an upstream has begun by then it
// works on: that holds its places like what is taken back later.
func (x *exchange) unwalked(ctx context.Context, g *given) {
	if g == nil || g.begun == nil {
		g.drop()
		return
	}
	res := result{place: g.Candidate, hold: x.holding(ctx)}
	g.begun.sent.End(failover.Tick)
	x.abandon(g.begun.link.conn, res.hold)
	x.forsake(&res)
}

// nowhere is what there is to say when no candidate is left.
func (x *exchange) nowhere(a *failover.Attempts, last result) result {
	if a.Busy() {
		last.problem = busy
	}
	return last
}

// unanswered is what the walk came to when no answer is better than the one that is held, if any is.
func (x *exchange) unanswered(held, last result) result {
	if b := x.body; b != nil {
		switch {
		case b.tooLarge.Load():
			held.drop(nil)
			last.client = true
			last.problem = bodyTooLarge(x.p.limit(x.v.Route))
			return last
		case b.slow.Load():
			held.drop(nil)
			last.problem = bodySlow
			return last
		case b.broken.Load():
			held.drop(nil)
			last.client = true
			last.problem = bodyBroken
			return last
		case b.idle.Load() && x.uploading() && !x.hurried():
			held.drop(nil)
			last.client = true
			last.problem = bodySlow
			return last
		}
	}
	if held.resp != nil {
		return held
	}
	return last
}

var busy = gate.NewProblem(503, gate.ReasonBusy, "The API's upstreams have as many requests as they take; try again shortly.")

var bodySlow = gate.NewProblem(408, gate.ReasonBodySlow, "The body came too slowly; send it faster, or in parts.")

// given is the first step of a walk that was taken before the exchange was made: nowhere to go, where to go, an attempt that
// was begun there, or what it came to.
type given struct {
	failover.Candidate
	none   bool
	begun  *begun
	failed *result
}

// drop ends a step that nobody went on from.
func (g *given) drop() {
	switch {
	case g == nil:
	case g.failed != nil:
		g.failed.drop(nil)
	case g.begun != nil:
		g.begun.sent.End(failover.Tick)
		g.begun.link.conn.Close()
		g.Leave()
	case !g.none:
		g.Leave()
	}
}

// race makes one attempt, and a second beside it when the first is silent for long and the request can be
// repeated. The first answer wins; the other attempt is ended.
func (x *exchange) race(ctx context.Context, a *failover.Attempts, c failover.Candidate) result {
	if !c.Home() {
		x.leave(priority.Untold) // a place is at this region's upstreams
	}
	near := c.Home() && x.v.Route != nil && x.v.Route.HedgeAfter > 0
	if x.lasts() || !idempotent(x.r.Method) || !x.body.repeatable() || !(near && a.CanHedgeHome() || a.CanHedge()) {
		return x.try(ctx, nil, c)
	}
	near = near && a.CanHedgeHome()
	after := x.p.cfg.HedgeAfter
	if near {
		after = x.v.Route.HedgeAfter
	} else if c.Home() {
		after = c.Target.StallAfter(after)
	} else {
		after *= 2
	}
	h := &hedge{x: x, a: a, c: c, near: near, after: after, done: make(chan struct{})}
	first, cancel := context.WithCancelCause(ctx)
	second, cancelSecond := context.WithCancelCause(ctx)
	h.ctx, h.end = second, cancel
	h.mu.Lock()
	if x.begun != nil { // it has been silent for some time already
		after = max(0, after-time.Since(x.begun.at))
	}
	h.timer = time.AfterFunc(after, h.fire)
	h.mu.Unlock()

	res := x.try(first, cancel, c)
	h.mu.Lock()
	h.over = true
	started, won := h.started, h.won
	h.timer.Stop()
	h.mu.Unlock()
	if !started {
		cancelSecond(nil)
		return res
	}
	// An answer that came just as the other won is of an attempt that is ended: its body would break off.
	if res.answered() && !won {
		cancelSecond(errHedged)
		<-h.done
		h.res.drop(errHedged)
		return res
	}
	<-h.done               // before anything else: it ends by itself, by its own watch or with the client
	if h.res.resp == nil { // the second try has nothing to add but that it was made
		cancelSecond(nil)
		res.sent = res.sent || h.res.sent
		if res.resp == nil && errors.Is(res.err, errHedged) {
			res.err = h.res.err
		}
		return res
	}
	res.drop(errHedged)
	end := h.res.end
	h.res.end = func(why error) { end(why); cancelSecond(why) }
	return h.res
}

// hedge is the second try beside a first.
type hedge struct {
	x     *exchange
	a     *failover.Attempts // used by fire only while the first try is under way, by nobody else then
	c     failover.Candidate
	near  bool // the second try is made in this region, because the route asks for it
	ctx   context.Context
	after time.Duration
	end   context.CancelCauseFunc // of the first try

	mu      sync.Mutex // covers all below up to done
	timer   *time.Timer
	asked   bool
	over    bool // the first try has ended: start nothing
	started bool
	won     bool // it answered while the first try had not, which is ended

	done chan struct{} // closed once res is final
	res  result
}

// fire runs when the first try has been silent for after. A target that shows life gets four times as long:
// its work is slow, and doing it twice, in another region, would not be faster.
func (h *hedge) fire() {
	if !h.asked && h.c.Home() && !h.near {
		h.asked = true
		if h.c.Target.Alive(h.ctx) {
			h.mu.Lock()
			if !h.over {
				h.timer.Reset(4 * h.after)
			}
			h.mu.Unlock()
			return
		}
	}
	h.mu.Lock()
	if h.over {
		h.mu.Unlock()
		return
	}
	h.started = true
	h.mu.Unlock()
	defer close(h.done)
	second := h.a.Hedge
	if h.near {
		second = h.a.HedgeHome
	}
	c, ok := second()
	if ok && !h.x.budget.take(time.Since(h.x.p.start)) {
		c.Leave()
		ok = false
	}
	if !ok {
		h.res.err = errors.New("no second try")
		return
	}
	ctx, cancel := context.WithCancelCause(h.ctx)
	h.res = h.x.try(ctx, cancel, c)
	if h.res.answered() {
		h.mu.Lock()
		if h.won = !h.over; h.won {
			h.end(errHedged)
		}
		h.mu.Unlock()
	}
}

// try makes exactly one attempt. ctx may come with its own cancel.
func (x *exchange) try(ctx context.Context, cancel context.CancelCauseFunc, c failover.Candidate) result {
	if cancel == nil {
		ctx, cancel = context.WithCancelCause(ctx)
	}
	x.tries.Add(1)
	left := x.left(x.timeout() - time.Since(x.began))
	res := result{end: cancel, place: c, watch: time.AfterFunc(max(left, 0), func() { cancel(errLate) })}
	x.attempts(&res)
	answered, over := x.uploads(&res, cancel)
	if c.Home() {
		x.home(ctx, c.Target, &res)
	} else {
		x.relay(ctx, c, &res)
	}
	if res.resp == nil || res.stream != nil {
		over()
	} else {
		answered()
		res.paced = over
	}
	if res.resp == nil {
		if why := cause(ctx); why != nil {
			res.err = why
		} else if x.hurried() { // the upstream knows the deadline too, and may be the first to say that it is over
			res.err = errLate
		}
		res.watch.Stop()
		cancel(nil)
		x.forsake(&res)
	}
	x.attempted(&res, &c)
	return res
}

// home sends to an upstream of this region.
func (x *exchange) home(ctx context.Context, t *failover.Target, res *result) {
	if t.Base == nil {
		res.err = errors.New("the target is no URL")
		return
	}
	switch {
	case x.tcp:
		x.dial(ctx, t, res)
		return
	case x.socket != nil:
		x.upgrade(ctx, t, res)
		return
	}
	if b := x.begun; b != nil {
		x.begun = nil
		res.hold = x.holding(ctx)
		resp, err := b.await(ctx, x.hint)
		if err != nil && b.link.r == b.link.w {
			x.abandon(b.link.conn, res.hold)
		} else if err != nil {
			b.link.conn.Close()
		}
		x.heard(ctx, b.sent, resp, true, err, res)
		return
	}
	path, host := x.reaimed(t.Base.Host)
	u := &url.URL{Scheme: t.Base.Scheme, Host: t.Base.Host, RawQuery: x.r.URL.RawQuery, ForceQuery: x.r.URL.ForceQuery,
		Path: t.Base.Path + path.Path}
	if path.RawPath != "" || t.Base.RawPath != "" {
		u.RawPath = t.Base.EscapedPath() + path.EscapedPath()
	}
	req := &http.Request{Method: x.r.Method, URL: u, Host: host, Header: x.under(res, x.header), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1}
	begun := t.Begin()
	sent, up := ending(begun), (*failover.Upload)(nil)
	if x.body != nil && x.body.kept == nil {
		up = begun.Upload()
		sent = up
	}
	switch {
	case x.body != nil:
		body := x.body.reader(up)
		req.Body, req.ContentLength, req.Trailer = body, x.body.length, x.trail(body)
		if req.Trailer != nil { // else net/http looks whether a GET has a body, and reads it to its end, where the trailer is filled in, while it writes the head from the same map: that ends the process
			req.TransferEncoding = []string{"chunked"}
		}
	case !idempotent(x.r.Method):
		req.Body = noBody{}
	}
	if t.At.Protocol != "" { // what was refused is sent anew, by the transport: it needs the body again
		switch {
		case req.Body == nil:
		case x.body == nil:
			req.GetBody = func() (io.ReadCloser, error) { return noBody{}, nil }
		case x.body.kept != nil:
			req.GetBody = func() (io.ReadCloser, error) { return x.body.reader(nil), nil }
		}
	}
	defer x.interrupt(ctx)()
	res.hold = x.holding(ctx)
	resp, fate, err := x.p.cfg.Upstreams.send(ctx, t.At, channel.Ask{Request: req, Whose: x.whose()}, res.hold, x.hinting())
	if err != nil && fate.Sent && t.At.Protocol != "" {
		x.lettingGo(res.hold, fate.LetGo)
	}
	x.heard(ctx, sent, resp, fate.Sent, err, res)
}

// ending is told how an attempt ended.
type ending interface{ End(failover.Event) }

// heard takes what an attempt at an upstream came to.
func (x *exchange) heard(ctx context.Context, sent ending, resp *http.Response, maybe bool, err error, res *result) {
	switch {
	case err == nil && resp.StatusCode == http.StatusSwitchingProtocols:
		resp.Body.Close()
		sent.End(failover.Answered)
		res.err, res.sent = errors.New("upstream switched protocols unasked"), true
	case err == nil:
		sent.End(x.told(resp))
		res.resp, res.region = resp, x.p.cfg.Region
	default:
		res.err, res.sent = err, maybe
		why := cause(ctx)
		x.stalled(why)
		switch {
		case why != nil && !errors.Is(why, errLate) && !errors.Is(why, errSlow): // the client left, or the other try won
			sent.End(failover.Tick)
		case x.body.unsent(), x.hurried(), errors.Is(err, channel.ErrHead): // one client must not take a target from all others
			res.client = true
			sent.End(failover.Tick)
		case errors.Is(err, errOpens), errors.Is(err, errSpent) && !maybe: // nothing of it was asked
			sent.End(failover.Tick)
		case why != nil:
			sent.End(failover.Late)
		default:
			sent.End(failover.Failed)
		}
	}
}

// relay sends to another region. Where the edge that is asked leaves, the next one there is, or its next process.
func (x *exchange) relay(ctx context.Context, c failover.Candidate, res *result) {
	x.abroad.Store(true)
	if x.relayTo(ctx, c, res) && !x.gone() {
		if x.body.shut(); x.body.fresh() {
			res.err, res.sent = nil, false
			x.relayTo(ctx, c, res)
		}
	}
}

// relayTo makes one attempt. leaves: the edge that was asked takes no more, and has sent nothing on.
func (x *exchange) relayTo(ctx context.Context, c failover.Candidate, res *result) (leaves bool) {
	f := relay.Forward{Class: x.v.Class.String(), API: x.v.API, Route: x.v.Route, To: c.To, RequestID: x.name(), Once: !idempotent(x.r.Method),
		Method: x.r.Method, URL: x.r.URL, Host: x.header.Get("X-Forwarded-Host"), Header: x.under(res, x.unasked())}
	if x.body != nil {
		body := x.body.reader(nil)
		f.Body, f.ContentLength, f.Trailer = body, x.body.length, x.trailAbroad(body)
	}
	if !x.lasts() && x.v.Pass != (limit.Pass{}) {
		res.hold = x.holding(ctx)
		f.Bounded = true
	}
	var pipe *io.PipeWriter
	if x.lasts() {
		f.Stream, f.ContentLength = relay.StreamWebSocket, -1
		if x.tcp {
			f.Stream = relay.StreamTCP
		}
		f.Body, pipe = io.Pipe()
	}
	resp, err := x.p.cfg.Relay.Do(x.hinted(ctx), f)
	if err == nil {
		x.p.router.PeerGood(c.To, &x.v.API.API)
		res.resp, res.region = resp, c.To
		if pipe != nil {
			x.streamed(res, pipe)
		}
		return false
	}
	if pipe != nil {
		pipe.CloseWithError(err)
	}
	res.err, res.sent = err, true
	x.stalled(cause(ctx))
	if e, ok := errors.AsType[*relay.Error](err); ok {
		if res.sent = e.Sent; res.sent {
			x.lettingGo(res.hold, e.LetGo)
		}
		switch {
		case x.gone() || x.hurried() || x.body.unsent():
			// Its fault, not the region's: one who breaks off his bodies must not take it from all others.
			res.client = true
		case e.Leaving:
			return true
		case e.Down:
			x.p.router.PeerBad(c.To, &x.v.API.API, 500*time.Millisecond)
		case e.Unreachable:
			x.p.router.PeerBad(c.To, nil, time.Second)
		}
	}
	return false
}

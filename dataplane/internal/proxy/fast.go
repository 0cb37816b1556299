package proxy

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"bailiwick/dataplane/internal/direct"
	"bailiwick/dataplane/internal/failover"
	"bailiwick/dataplane/internal/gate"
	"bailiwick/dataplane/internal/http1"
	"bailiwick/dataplane/internal/relay"
	"bailiwick/shared/usage"
)

// Common requests are those that most are: a plain path, a body that has come whole with the head or none, no
// upgrade and no expectation. They are read in place, asked of a healthy upstream of this region on a connection of this
// edge's own, and answered with one write, without memory of their own. Whatever leaves that road, before a decision or after
// the attempt was begun, goes on as an exchange: there is nothing that only this road decides.

const (
	smallAnswer = 16 << 10               // bytes of an answer's body that are read before it is passed on; longer ones are streamed
	openTimeout = time.Second            // to connect, where nobody else could be asked meanwhile
	unwatched   = 500 * time.Millisecond // of waiting for an answer: beyond it somebody notices that the client leaves
	workBuffer  = 4 << 10                // of what is sent; it grows to what is needed
)

// front is what brought a common request and takes its answer: a connection over HTTP/1.1, or a stream over HTTP/2 or HTTP/3.
type front interface {
	// exchange serves it as one that is not.
	exchange(k *work, do func(e *exchange)) bool
	// head puts the head of its answer into k.out.
	head(k *work, a *http1.Answer)
	// send ends the call and sends what is in k.out; whole: all of the answer is.
	send(k *work, whole bool) bool
}

// work is what one common request needs while it is under way.
type work struct {
	from   front
	req    *http1.Request
	body   []byte // of the request, whole
	remote string // host:port of the client
	secure bool   // it came over TLS
	via    string // the edge's word in Via
	two    front2
	three  front3

	call  call
	ask   asked
	out   []byte
	asked int // bytes of the request that were in out
	try   trying
	auth  [2]string // values of Authorization; a third would be refused too
	keys  [2]string
	a     failover.Attempts
}

func newWork() any { return &work{out: make([]byte, 0, workBuffer)} }

// done forgets the request: the buffers hold a customer's bytes.
func (k *work) done() {
	k.call.reset()
	k.from, k.req, k.body, k.remote = nil, nil, nil, ""
	k.ask, k.auth, k.keys, k.a, k.try = asked{}, [2]string{}, [2]string{}, failover.Attempts{}, trying{}
	if cap(k.out) > 2*(smallAnswer+workBuffer) {
		k.out = make([]byte, 0, workBuffer)
	}
	clear(k.out[:min(max(k.asked, len(k.out)), cap(k.out))]) // a request's body may be in it, which is kept no longer than the request lasts
	k.out, k.asked = k.out[:0], 0
}

// common says whether the request may take this road, and reads what it asks. room is how long its body may be.
func (k *work) common(p *Proxy, room int64, sni string) bool {
	r := k.req
	if !r.Plain || r.Minor == 0 || r.Continue || r.Expects || r.Upgrade || r.Options || r.Aliases || r.Length < 0 ||
		r.Length > room || strings.HasPrefix(r.Path, "/.well-known/") {
		return false
	}
	nAuth, nKeys := 0, 0
	for i := range r.Fields {
		f := &r.Fields[i]
		if f.Kind != http1.Other {
			continue
		}
		switch len(f.Name) { // most names are told apart by it
		case len("Authorization"):
			if strings.EqualFold(f.Name, "Authorization") {
				if nAuth == len(k.auth) {
					return false
				}
				k.auth[nAuth] = f.Value
				nAuth++
			}
		case len("X-Api-Key"):
			if strings.EqualFold(f.Name, "X-Api-Key") {
				if nKeys == len(k.keys) {
					return false
				}
				k.keys[nKeys] = f.Value
				nKeys++
			}
		case len("Via"):
			if strings.EqualFold(f.Name, "Via") {
				return false
			}
		default:
			if speaks(f) {
				return false
			}
		}
	}
	host := canonicalHost(r.Authority)
	if api := p.cfg.Tables.Load().API(host); api != nil && (api.Auth != nil || api.Shared && r.Method == http.MethodOptions) { // its callers may show themselves in other ways, or be browsers that ask first
		return false
	}
	k.ask = asked{Request: gate.Request{Host: host, Method: r.Method, Path: r.Path, Authorization: k.auth[:nAuth], APIKey: k.keys[:nKeys], Remote: k.remote, Says: r.HasQuery || r.Length != 0}, sni: sni}
	return true
}

// admit decides. false: the request was served otherwise, and keep says whether the connection goes on.
func (k *work) admit(p *Proxy) (keep, ok bool) {
	return k.admitted(p, k.judge())
}

// judge is the part of it that waits for nothing.
func (k *work) judge() gate.Problem {
	k.call.follow(k.req.Fields)
	return k.call.judge(&k.ask)
}

// admitted is the rest.
func (k *work) admitted(p *Proxy, problem gate.Problem) (keep, ok bool) {
	x := &k.call
	if problem.Status == 0 {
		problem = x.judged(context.Background())
	}
	if problem.Status != 0 {
		return k.from.exchange(k, func(e *exchange) { e.refuse(problem) }), false
	}
	// Where there may be a line to wait in, somebody has to notice that the client leaves it.
	if r := x.v.Route; x.follows() || k.req.Length > p.limit(r) || x.v.API.Auth != nil || x.v.API.Concurrency != nil || x.v.API.Dispatch.MaxRequests > 0 ||
		r != nil && (r.Shaped || r.Deadline > 0 || r.MaxResponseBytes > 0 || r.HedgeAfter > 0 || r.Units != nil) || x.keeping(k.req.Method, k.req.Path) != nil {
		return k.whole(), false
	}
	return false, true
}

// whole serves what was decided as an exchange.
func (k *work) whole() bool {
	return k.from.exchange(k, func(e *exchange) { e.serve(k.ask.Host) })
}

// serve serves one of them that was admitted and whose body is here. false: the connection ends.
func (k *work) serve() bool {
	if keep, ok := k.start(); !ok {
		return keep
	}
	return k.walk()
}

// start begins the walk over candidates. false: the request was served otherwise.
func (k *work) start() (keep, ok bool) {
	x := &k.call
	x.hold(k.req.Length)
	var problem gate.Problem
	if k.a, problem = x.start(context.Background(), k.req.Method, x.now); problem.Status != 0 {
		x.hold(0)
		return k.from.exchange(k, func(e *exchange) { e.refuse(problem) }), false
	}
	return false, true
}

// walk goes on to the first candidate.
func (k *work) walk() bool {
	candidate, ok := k.a.Next(context.Background())
	if keep, ok := k.prepare(candidate, ok, nil); !ok {
		return keep
	}
	return k.attempt(k.try.o.get(nil))
}

// trying is an attempt at an upstream of this region.
type trying struct {
	candidate  failover.Candidate
	o          *origin
	hedged     bool // another may be asked meanwhile
	repeatable bool
	patience   time.Duration
	asked      time.Time // it was begun
	from       time.Time // the answer is waited for
	sent       failover.Sent
	home       *turn // of new connections; nil: none
}

// prepare makes the request for a candidate, on a loop or, for nil, on a goroutine. false: the request was served otherwise.
func (k *work) prepare(candidate failover.Candidate, ok bool, on *turn) (keep, prepared bool) {
	x := &k.call
	if !ok || !candidate.Home() || candidate.Target.Base == nil || candidate.Target.Base.Scheme != "http" || candidate.Target.Base.RawPath != "" || candidate.Target.Base.EscapedPath() != candidate.Target.Base.Path {
		x.hold(0)
		return k.resume(&given{Candidate: candidate, none: !ok}), false
	}
	t, try := candidate.Target, &k.try
	pool, err := on.pool(x.p.cfg.Upstreams, t)
	if err != nil || pool.origin == nil {
		x.hold(0)
		return k.resume(&given{Candidate: candidate}), false // where it will be said
	}
	try.candidate, try.o, try.repeatable = candidate, pool.origin, idempotent(k.req.Method)
	patience := x.p.cfg.HedgeAfter
	if try.hedged = try.repeatable && k.a.CanHedge(); try.hedged {
		patience = t.StallAfter(patience)
	}
	try.patience = min(patience, x.timeout(), unwatched)
	k.out = k.request(t.Base.Host, t.Base.Path)
	k.asked = len(k.out)
	try.asked = x.look()
	try.from = try.asked
	try.sent = t.BeginAt(try.asked)
	return false, true
}

// resume goes on as an exchange with the walk that was begun.
func (k *work) resume(g *given) bool {
	return k.from.exchange(k, func(e *exchange) {
		if e.prepare(k.ask.Host) {
			e.answer(&k.a, g)
		} else {
			g.drop()
		}
	})
}

// attempt makes one at an upstream of this region, on l or, where that is nil, on a new connection, and answers if it gives a
// small answer soon.
func (k *work) attempt(l *link) bool {
	x, try := &k.call, &k.try
	for {
		if l == nil {
			limit := try.patience
			if !try.hedged {
				limit = openTimeout
			}
			ctx, cancel := context.WithTimeout(opening(context.Background(), x.v.Customer), limit)
			var err error
			l, err = try.o.open(ctx, try.home)
			cancel()
			if err != nil {
				x.hold(0)
				if try.hedged && ctx.Err() != nil { // it is only slow so far: the exchange tries it again, and another beside it
					try.sent.End(failover.Tick)
					return k.resume(&given{Candidate: try.candidate})
				}
				end := failover.Failed
				if errors.Is(err, errOpens) {
					end = failover.Tick
				}
				try.sent.End(end)
				try.candidate.Leave()
				x.tries.Add(1)
				x.waited += time.Since(try.asked)
				return k.resume(&given{Candidate: try.candidate, failed: &result{err: err}})
			}
			try.from = time.Now() // to connect may take longer than the answer is waited for here
		}
		l.patience(try.from, try.patience)
		written, err := l.ask(k.out)
		next, done, keep := k.heard(l, written, err)
		if done {
			return keep
		}
		l = next
	}
}

// heard goes on when a request was written on l, or could not be: it reads the answer's head, if there is no error yet. done: the
// request was served; else another attempt is to be made, on next.
func (k *work) heard(l *link, written bool, err error) (next *link, done, keep bool) {
	x, try := &k.call, &k.try
	if err == errUnasked && time.Since(try.asked) < x.timeout() {
		try.from = time.Now()
		return l, false, false
	}
	if err == nil {
		if err = l.head(k.req.Method); err == nil {
			return nil, true, k.answered(l)
		}
	}
	stale := err == direct.ErrStale
	if stale && l.asked {
		l.conn.Close()
		return try.o.get(nil), false, false
	}
	if written && (err == errHints || isTimeout(err)) {
		x.hold(0)
		x.waited += time.Since(try.asked)
		return nil, true, k.resume(&given{Candidate: try.candidate, begun: &begun{l, try.sent, strings.Clone(k.req.Method), try.asked}})
	}
	quick := l.asked && l.r == l.w // it was closed while it was idle: nobody acted on it
	l.conn.Close()
	if quick && try.repeatable {
		return nil, false, false
	}
	try.sent.End(failover.Failed)
	try.candidate.Leave()
	x.hold(0)
	x.tries.Add(1)
	x.waited += time.Since(try.asked)
	return nil, true, k.resume(&given{Candidate: try.candidate, failed: &result{err: err, sent: !stale && err != errUnasked}})
}

// answered goes on when the head of an answer is here.
func (k *work) answered(l *link) bool {
	x, try := &k.call, &k.try
	candidate, sent := try.candidate, try.sent
	now := x.look()
	x.waited += now.Sub(try.asked)
	x.tries.Add(1)
	a := &l.answer
	switch a.Status {
	case http.StatusSwitchingProtocols:
		l.conn.Close()
		sent.EndAt(now, failover.Answered)
		candidate.Leave()
		x.hold(0)
		return k.resume(&given{Candidate: candidate, failed: &result{err: errSwitched, sent: true}})
	case 502, 503, 504:
		sent.EndAt(now, failover.Unavailable)
	default:
		if a.Status >= 500 {
			sent.EndAt(now, failover.Erred)
		} else {
			sent.EndAt(now, failover.Answered)
		}
	}
	// Another road for what may have a better answer elsewhere, for what is a stream or long, and for odd heads.
	odd := a.Status >= 502 && a.Status <= 504 || a.Options
	if long := a.Length < 0 || a.Length > smallAnswer; long && !odd {
		if to, ok := k.from.(sink); ok {
			defer candidate.Leave()
			return k.flow(l, candidate.Target, to)
		}
		odd = true
	}
	if odd {
		ctx, cancel := context.WithCancelCause(context.Background())
		l.endless()
		stop := context.AfterFunc(ctx, func() { l.conn.SetDeadline(time.Unix(1, 0)) })
		res := &result{resp: l.response(ctx, stop), region: x.p.cfg.Region, end: cancel, place: candidate}
		res.watch = time.AfterFunc(x.timeout(), func() { cancel(errLate) })
		x.hold(0)
		return k.resume(&given{Candidate: candidate, failed: res})
	}
	defer candidate.Leave() // a panic passes
	return k.pass(l)
}

// pass answers with a small answer of an upstream: the row first, then one write.
func (k *work) pass(l *link) bool {
	x, a := &k.call, &l.answer
	x.served, x.status = x.p.cfg.Region, a.Status
	k.from.head(k, a)
	n := int(a.Length)
	have := min(n, l.w-l.r)
	k.out = append(k.out, l.buf[l.r:l.r+have]...)
	l.r += have
	if have < n { // the rest is on its way: behind the head, in place
		l.patience(x.now, x.timeout())
		at := len(k.out)
		k.out = append(k.out, make([]byte, n-have)...)
		if _, err := io.ReadFull(l.conn, k.out[at:]); err != nil { // half an answer is none: nothing of it has left
			l.conn.Close()
			if x.served, x.status = "", 0; isTimeout(err) {
				err = errLate
			}
			x.hold(0)
			return k.resume(&given{failed: &result{err: err, sent: true}})
		}
		x.look()
	}
	x.out = int64(n)
	if !x.countAt(usage.OutcomeOf(a.Status), x.now) {
		l.o.put(l, x.now)
		return k.from.exchange(k, func(e *exchange) { e.uncounted(e.w.Header()) })
	}
	l.o.put(l, x.now)
	clear(k.body) // nobody will send it again
	return k.from.send(k, true)
}

// request is the request to send on, with its body.
func (k *work) request(host, base string) []byte {
	r, x := k.req, &k.call
	b := k.out[:0]
	b = append(b, r.Method...)
	b = append(b, ' ')
	b = append(b, base...)
	b = append(b, r.Path...)
	if r.HasQuery {
		b = append(b, '?')
		b = append(b, r.Query...)
	}
	b = append(b, " HTTP/1.1\r\nHost: "...)
	b = append(b, host...)
	for i := range r.Fields {
		f := &r.Fields[i]
		switch classOf(f.Name) {
		case stays, claimed:
			continue
		case credential:
			if x.v.KeyInBearer || len(k.ask.Authorization) != 1 {
				continue
			}
		}
		b = field(b, f.Name, f.Value)
	}
	b = field(b, "X-Forwarded-For", x.client)
	if k.secure {
		b = append(b, "\r\nX-Forwarded-Proto: https"...)
	} else {
		b = append(b, "\r\nX-Forwarded-Proto: http"...)
	}
	b = field(b, "X-Forwarded-Host", k.ask.Host)
	b = append(b, "\r\nX-Request-Id: "...)
	b = appendID(b, x.id)
	b = field(b, "Via", k.via)
	for i, said := range [...]string{x.v.Customer, x.v.Subscription, x.v.Plan, x.v.KeyID} {
		b = field(b, relay.Identity[i], said)
	}
	if r.Length > 0 || !idempotent(r.Method) || r.Method == http.MethodPut { // many a server asks for one there
		b = append(b, "\r\nContent-Length: "...)
		b = strconv.AppendInt(b, r.Length, 10)
	}
	b = append(b, "\r\n\r\n"...)
	return append(b, k.body...)
}

func field(b []byte, name, value string) []byte {
	b = append(b, '\r', '\n')
	b = append(b, name...)
	b = append(b, ':', ' ')
	return append(b, value...)
}

// stamp is the date of a second as headers have it: it is made once a second, not once an answer.
type stamp struct {
	unix int64
	text string
}

var stamped atomic.Pointer[stamp]

func appendDate(b []byte, now time.Time) []byte {
	s := stamped.Load()
	if unix := now.Unix(); s == nil || s.unix != unix {
		s = &stamp{unix, now.UTC().Format(http.TimeFormat)}
		stamped.Store(s)
	}
	return append(b, s.text...)
}

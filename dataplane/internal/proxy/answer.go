package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"bailiwick/dataplane/internal/gate"
	"bailiwick/dataplane/internal/relay"
	"bailiwick/shared/usage"
)

// finish answers with what the walk brought.
func (x *exchange) finish(res result) {
	if res.resp != nil {
		x.deliver(&res)
		return
	}
	if x.gone() {
		if !x.relayed {
			// Nobody to answer, or so it looks: a client that only shut its sending half still reads, and a plain
			// return would have the library tell it 200. close counts it as aborted.
			panic(http.ErrAbortHandler)
		}
		return
	}
	if x.relayed {
		h := x.w.Header()
		if !res.sent {
			h.Set(relay.HeaderUnsent, "1")
		}
		if res.client || res.problem.Reason == gate.ReasonBusy {
			h.Set(relay.HeaderBlameless, "1")
		}
	}
	x.refuse(res.problem)
}

// deliver passes an upstream's answer on. The final row is appended before the bytes that complete it can
// leave: before the headers where there is no body, before the last bytes where the length is declared,
// before the handler returns where it is not.
func (x *exchange) deliver(res *result) {
	if res.stream != nil && x.tcp { // another region's client's
		defer res.drop(nil)
		if !x.p.enter() {
			x.full()
			return
		}
		defer x.p.lives.count.Add(-1)
		x.served = res.region
		if leg, err := x.answerStream(""); err == nil {
			x.carry(x.r.Context(), res, leg, func(stop context.CancelCauseFunc) (over func()) {
				_, over = x.p.live(x.call, x.call.lasts(), nil, res.place.Target, nil, stop)
				return over
			})
		}
		return
	} else if res.stream != nil {
		x.join(res)
		return
	}
	defer res.drop(nil)
	resp := res.resp
	x.timed(resp)
	x.toWeb(resp)
	if x.tooLong(resp.ContentLength) && x.r.Method != http.MethodHead {
		x.refuse(gate.NewProblem(502, gate.ReasonAnswerLarge, fmt.Sprintf("The route lets answers of at most %d bytes through; ask the provider of the API.", x.v.Route.MaxResponseBytes)))
		return
	}
	if x.status = resp.StatusCode; !x.hit {
		x.served = res.region
	}
	h := x.w.Header()
	x.units(resp.Header)
	answerable(h, resp.Header)
	x.reshape(h)
	h[relay.HeaderServed] = []string{res.region}
	x.limits(h)
	if x.relayed {
		delete(h, "Date")
	}
	outcome := x.judged(resp.Header, usage.OutcomeOf(resp.StatusCode))

	if x.r.Method == http.MethodHead || resp.StatusCode == 204 || resp.StatusCode == 304 || resp.ContentLength == 0 {
		if !x.count(outcome) {
			x.uncounted(h)
			return
		}
		x.written = true
		x.w.WriteHeader(resp.StatusCode)
		return
	}

	held := space{spaces: &x.p.spaces}
	defer held.free()
	rc := http.NewResponseController(x.w)
	idle := x.timeout()
	declared, passed := resp.ContentLength, int64(0)
	more, slow := declared > spaceBit, false // much may be here; the client was, with the last piece
	framed := x.framed(resp)
	messages := framed || x.texted(resp)
	if declared < 0 && (messages || strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream")) { // whoever streams both ways may wait for it
		// What was asked of a stream of messages goes with the first message, or is in a row a second from here: a call may fail right
		// behind its head, and then its units are in the row that says so.
		if x.owe(); !messages && !x.passes(0) {
			x.uncounted(h)
			return
		}
		x.head(resp.StatusCode)
		if rc.Flush() != nil {
			return
		}
	}
	bounded := false
	x.lastRow = time.Now()
	over := func() {}
	defer func() { over() }()
	for pieces := 0; ; pieces++ {
		if pieces == 0 && declared < 0 || pieces == 1 && declared >= 0 { // what comes in one piece is over
			dues := x.dues
			over = x.outlasts(res.place.Target, func() *gate.Request {
				if !dues.pay(0) {
					res.end(errUnpaid)
				}
				return x.decidedOn()
			}, func(why error) {
				x.taken.Store(true)
				res.end(why)
				rc.SetWriteDeadline(past) // who waits for a client that takes nothing would wait on
			})
		}
		res.watch.Reset(x.left(idle))
		buf := held.take(more && !slow)
		n, err := resp.Body.Read(buf)
		more = n == len(buf) || n > spaceBit
		if n > 0 && messages {
			if bad := x.speech.out.Take(buf[:n]); bad != nil {
				x.abort(bad)
			}
		}
		if n > 0 && !framed && x.tooLong(passed+int64(n)) {
			x.abort(errTooLong)
		}
		if n > 0 {
			if declared >= 0 && passed+int64(n) >= declared {
				n = int(declared - passed) // the library sees to it already; the row must not depend on that
				x.lock()
				x.out += int64(n)
				x.unlock()
				if !x.count(outcome) {
					x.uncounted(h)
					return
				}
			} else {
				if messages || passed > 0 {
					x.owe()
				}
				if !x.passes(int64(n)) {
					x.uncounted(h)
					return
				}
			}
			if passed > 0 { // what fits in one buffer cannot be waited for
				rc.SetWriteDeadline(time.Now().Add(x.room(idle))) // a client that reads nothing is given the same time as an upstream
				if !bounded {
					bounded = true
					defer rc.SetWriteDeadline(time.Time{})
				}
				res.watch.Reset(x.left(idle))
			}
			if x.taken.Load() { // after the deadline, which else would take the place of the one that ends this
				x.abort(errTaken)
			}
			x.head(resp.StatusCode)
			since := time.Now()
			x.cache.hands(since)
			if _, werr := x.w.Write(buf[:n]); werr != nil {
				return // the client left; close counts it
			}
			if passed += int64(n); declared >= 0 && passed >= declared {
				return
			}
			// Unknown length means a stream more often than not: nothing waits in a buffer. Nor does it on the
			// way back to the home edge, which has buffers of its own.
			if (declared < 0 || x.relayed) && rc.Flush() != nil {
				return
			}
			slow = time.Since(since) > flowSlow
			x.cache.took()
			if x.stale() {
				x.interim()
			}
		}
		if err == nil {
			continue
		}
		if err == io.EOF && (declared < 0 || passed >= declared) {
			break
		}
		if !x.written && !x.relayed && x.hurried() && !x.gone() { // the client's own time was over between an answer's head and its body
			x.instead(h, gate.NewProblem(504, gate.ReasonUpstreamLate, "The upstream did not answer in time."))
			return
		}
		if !x.written && passed == 0 && !x.gone() && !x.taken.Load() && !x.hit {
			problem := died
			if x.body.tooSlow() {
				problem = bodySlow
			}
			x.served, x.out = "", 0
			x.instead(h, problem)
			return
		}
		// The upstream died within its answer. A clean end would make half an answer look whole.
		x.abort(err)
	}
	x.lock()
	outcome = x.judged(resp.Trailer, outcome)
	x.unlock()
	x.regret(res)
	if !x.count(outcome) {
		x.uncounted(h)
		return
	}
	x.head(resp.StatusCode)
	if passed == 0 && len(resp.Trailer) > 0 && rc.Flush() != nil { // else it would be one without a body, whose end nothing comes behind
		return
	}
	for name, values := range resp.Trailer {
		if x.speech != nil && x.speech.web {
			break // they are in the body
		}
		if !strings.HasPrefix(name, relay.Prefix) && !hop[name] && !x.unsaid(name) {
			h[http.TrailerPrefix+name] = values
		}
	}
}

func (x *exchange) head(status int) {
	if !x.written {
		x.written = true
		x.w.WriteHeader(status)
	}
}

// uncounted ends an answer that could not be counted: as an error if nothing of it has left, else by
// breaking it off, so that the client does not take for complete what nobody has on record.
func (x *exchange) uncounted(h http.Header) {
	if x.written {
		panic(http.ErrAbortHandler)
	}
	x.instead(h, gate.NewProblem(503, gate.ReasonUsage, "Usage cannot be recorded at this edge just now."))
}

// instead refuses in the place of an answer of which nothing has left.
func (x *exchange) instead(h http.Header, problem gate.Problem) {
	for name := range h {
		if name != relay.HeaderRequestID && name != "Bailiwick-Edge" {
			delete(h, name)
		}
	}
	x.refuse(problem)
}

// abort breaks the connection (HTTP/1.1) or resets the stream. The row is written first.
func (x *exchange) abort(err error) {
	if !errors.Is(err, context.Canceled) {
		x.p.cfg.Logger.Debug("answer broken off", "request", x.name(), "served", x.served, "error", err)
	}
	x.broken = !x.gone() && !x.taken.Load() && !x.hurried() && !x.body.tooSlow()
	x.count(usage.OutcomeAborted)
	panic(http.ErrAbortHandler)
}

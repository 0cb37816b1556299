package proxy

import (
	"context"
	"sync/atomic"
	"time"

	"bailiwick/dataplane/internal/failover"
	"bailiwick/dataplane/internal/gate"
	"bailiwick/dataplane/internal/policy"
	"bailiwick/dataplane/internal/priority"
	"bailiwick/dataplane/internal/quota"
	"bailiwick/shared/usage"
)

// asked is what a request asks, in no protocol's words: all that a decision rests on.
type asked struct {
	gate.Request // its Host is canonical; "": the request names none that is valid

	raw     string   // the path as spelt, where that is not the usual spelling of Path
	more    bool     // the target has more than a path and a query
	sni     string   // what TLS was set up for; "": no TLS, or no name
	upgrade []string // values of Upgrade
	socket  *socketAsk
	http3   bool
	expects bool // something else than to be told to send its body
}

// call is one request from its decision to its row, whatever protocol brought it and whoever answers. Deciding and counting
// allocate nothing, and a call may be used again for the next request once it is closed.
type call struct {
	p       *Proxy
	began   time.Time
	now     time.Time // the clock as last read for this call
	id      [16]byte
	idText  string // of the request, as another edge gave it or as name made it
	client  string // address that speaks to this edge
	seen    *seen  // of its connection; nil: nobody remembers it
	relayed bool   // it came from another edge, which counts it

	table  *policy.Table
	v      gate.Verdict
	body   *body
	speech *speech // nil: it speaks neither gRPC nor what is like it
	in     int64   // bytes of a body that is not in body, and is kept elsewhere until the call is closed
	budget *budget

	served    string        // region whose upstream answered
	hit       bool          // none did, and the answer is one that was kept
	free      bool          // which this product does not bill
	status    int           // of that answer
	counted   bool          // the final row is appended
	broken    bool          // the upstream died within its answer
	keptOnly  bool          // the client wants no upstream asked, and there is no kept answer
	out       int64         // body bytes since the last row
	inBefore  int64         // body bytes of the request in rows before
	outBefore int64         // and of the answer
	said      int64         // units that the upstream named; -1: none
	lastRow   time.Time     //
	tries     atomic.Int32  // attempts at upstreams; a hedge makes one beside another
	abroad    atomic.Bool   // one of them was a relay
	waited    time.Duration // for an upstream's answer to begin

	seated bool            // it has a seat at this edge
	place  priority.Ticket // and a place at its API's upstreams, until the answer begins

	tab    *tab   // of a connection that lasts; nil: it is none
	holds  *holds // what upstreams have not let go of; nil: nothing is bounded
	dues   *dues  // of an answer that lasts; nil: its last row names all
	method string // one of a closed list, for the access log
	proto  uint8  // of HTTP: 1, 2 or 3; 0: another
	reason string // of the edge's own answer
	tracing
	kept usage.Row // what is appended: here, so that a row costs no memory
}

// begin is a call that a client makes.
func (c *call) begin(p *Proxy, client string) {
	c.p, c.began, c.client, c.table = p, time.Now(), client, p.cfg.Tables.Load()
	c.now = c.began
	c.id, c.said = newID(c.began), -1
}

func (c *call) reset() { *c = call{} }

// look reads the clock.
func (c *call) look() time.Time {
	c.now = time.Now()
	return c.now
}

// name is the request's id as text. It costs memory: what is answered quickly writes the id where it belongs.
func (c *call) name() string {
	if c.idText == "" {
		c.idText = string(appendID(nil, c.id))
	}
	return c.idText
}

// altSvc is the header of an answer, over TCP with TLS perhaps; "": none.
func (p *Proxy) altSvc(t *policy.Table, tcp bool) string {
	switch {
	case t.Off("http3"):
		return "clear" // RFC 7838: whoever remembers HTTP/3 here forgets it
	case tcp:
		if alt := p.alt.Load(); alt != nil {
			return *alt
		}
	}
	return ""
}

// decide says why the request is not served; a zero problem: it is. It waits for nothing but the first word on a quota.
func (c *call) decide(ctx context.Context, a *asked) gate.Problem {
	if problem := c.judge(a); problem.Status != 0 {
		return problem
	}
	return c.judged(ctx)
}

// judge is its beginning, which waits for nothing.
func (c *call) judge(a *asked) gate.Problem {
	p := c.p
	if a.http3 && c.table.Off("http3") {
		return gate.NewProblem(503, gate.ReasonSwitchedOff, "HTTP/3 is turned off here just now; use HTTP/2 or HTTP/1.1.")
	}
	c.method = methodOf(a.Method)
	if problem := check(c.table, a); problem.Status != 0 {
		return problem
	}
	if p.cfg.TableAge != nil {
		a.TableAge = p.cfg.TableAge(c.began)
	}
	a.Unix = c.began.Unix()
	p.cfg.Gate.AdmitTo(&c.v, c.table, &a.Request, c.began.Sub(p.start))
	return gate.Problem{}
}

// judged is the rest.
func (c *call) judged(ctx context.Context) gate.Problem {
	p := c.p
	if c.v.Parked { // nobody has said yet whether units are left: wait for it, not long
		ticket, decision := c.v.Account.Park(ctx, c.v.Units, c.v.Leased)
		p.cfg.Gate.Settle(&c.v, ticket, decision, c.look().Unix())
	}
	if !c.v.Admitted() {
		return c.v.Problem
	}
	if err := p.cfg.Meter.Healthy(); err != nil && p.cfg.OnSpoolError == RefuseNew {
		c.v.Counted, c.v.RetryAfter = false, time.Second // a row is what there is no room for
		return uncountable
	}
	return c.sit()
}

var uncountable = gate.NewProblem(503, gate.ReasonUsage, "Usage cannot be recorded at this edge just now.")

// start begins the walk over candidates of a call that was decided, once there is a place for it at its API's upstreams; a
// problem: there is none. Call leave when the answer begins. now is the time if nothing was waited for since it was read; zero:
// something may have been.
func (c *call) start(ctx context.Context, method string, now time.Time) (a failover.Attempts, problem gate.Problem) {
	c.budget = c.p.budget(c.v.API)
	if problem = c.wait(ctx); problem.Status != 0 {
		return a, problem
	}
	c.budget.earn()
	if now.IsZero() || c.v.API.Concurrency != nil {
		now = time.Now()
	}
	a = c.p.router.StartAt(now, c.v.API, c.v.Route, !idempotent(method))
	c.stands(&a)
	return a, problem
}

// stands says what its class is to the walk.
func (c *call) stands(a *failover.Attempts) {
	a.Ranked(int(c.v.Class))
	a.Shares(c.v.Class.Share())
	a.For(c.v.Customer)
}

// left is how much of a time there is before the deadline of the route, or of the client who has one.
func (c *call) left(d time.Duration) time.Duration {
	if limit := c.deadline(); limit > 0 {
		return min(d, max(limit-time.Since(c.began), 0))
	}
	return d
}

// tooLong says whether an answer of so many bytes is longer than the route lets through.
func (c *call) tooLong(n int64) bool {
	return c.v.Route != nil && c.v.Route.MaxResponseBytes > 0 && n > c.v.Route.MaxResponseBytes
}

func (c *call) timeout() time.Duration {
	if c.v.Route != nil && c.v.Route.Timeout > 0 {
		return c.v.Route.Timeout
	}
	return c.p.cfg.Timeout
}

// refused counts a request that the edge itself answers, before it does; the problem to show is what it returns.
func (c *call) refused(problem gate.Problem) gate.Problem {
	c.status, c.reason = problem.Status, problem.Reason
	if (problem.Status == 503 || problem.Reason == gate.ReasonCrowded) && c.v.Admitted() && c.tries.Load() == 0 { // shed, and no upstream was asked
		c.p.cfg.Gate.GiveBack(&c.v)
	}
	if c.v.Counted && !c.counted {
		outcome := c.v.Outcome
		if c.v.Admitted() { // refused after admission
			outcome = usage.OutcomeRefused
			switch {
			case c.rushed(problem.Status) && c.hurried() && c.tries.Load() > 0:
				outcome = usage.OutcomeAborted // the client's own time ended it, which an upstream worked in: as if it had left
			case problem.Status >= 500:
				outcome = usage.OutcomeUnserved
			case problem.Reason == gate.ReasonCrowded:
				outcome = usage.OutcomeLimited
			}
		}
		if !c.count(outcome) {
			return uncountable
		}
	}
	return problem
}

// count appends the final row; false if that failed and the request must not be served unbilled.
func (c *call) count(outcome usage.Outcome) bool { return c.countAt(outcome, time.Time{}) }

// countAt is count by who has just read the clock; zero: it is read, if there is a row.
func (c *call) countAt(outcome usage.Outcome, now time.Time) bool {
	if !c.v.Counted || c.counted {
		return true
	}
	c.lock()
	defer c.unlock()
	c.counted = true
	if c.hit && c.free && outcome == usage.OutcomeAborted {
		outcome = usage.OutcomeOf(c.status) // cells have no flags: whoever bills would take it for a client that left with nothing
	}
	if now.IsZero() {
		now = time.Now()
	}
	c.row(outcome, now)
	c.kept.Requests = 1
	if c.sold() { // else nobody answered, and that is not for sale
		c.kept.Units = c.unpaid()
		c.v.Ticket = c.v.Ticket.Part(c.kept.Units)
		c.kept.Period = c.v.Ticket.Period()
	}
	return c.append()
}

// interim appends the bytes since the last row of a long answer, so that a stream of hours is not one row
// that a crash could lose.
func (c *call) interim() {
	if c.v.Counted && !c.counted {
		c.lock()
		defer c.unlock()
		c.v.Flags |= usage.FlagStreamed
		c.row(usage.OutcomeOf(c.status), time.Now())
		c.append()
	}
}

// row is filled in as of now, a reading of the clock that may be some microseconds old.
func (c *call) row(outcome usage.Outcome, now time.Time) {
	in, address := c.in+c.body.bytes()+c.tab.bytesIn(), c.kept.Address
	c.kept = usage.Row{RequestID: c.id, Customer: c.v.Customer, Subscription: c.v.Subscription, Plan: c.v.Plan, PlanRev: c.v.PlanRev,
		Product: c.v.Product, Outcome: outcome, ServedRegion: c.served, Flags: c.v.Flags,
		BytesIn: in - c.inBefore, BytesOut: c.out, LatencyUS: now.Sub(c.began).Microseconds(),
		KeyID: c.v.KeyID, Status: uint16(c.status), UpstreamUS: c.waited.Microseconds(), Attempts: uint8(min(c.tries.Load(), 255))}
	row := &c.kept
	if c.hit {
		row.Flags |= usage.FlagCached
	}
	if c.abroad.Load() {
		row.Flags |= usage.FlagRelayed
	}
	if row.Address = address; address == 0 && c.p.cfg.Pseudonyms != nil { // else a row before this one has found it
		row.Address = c.pseudonym()
	}
	if c.v.API != nil {
		row.API = c.v.API.Name
	}
	if c.v.Route != nil {
		row.Route = c.v.Route.Name
	}
	c.inBefore, c.outBefore, c.out, c.lastRow = in, c.outBefore+c.out, 0, now
}

// seen is the pseudonym of a connection's client on a day: it is the same for each of its requests.
type seen struct {
	day   int64
	value uint64 // 0: not known
}

func (c *call) pseudonym() uint64 {
	day := c.began.Unix() / 86400
	if c.seen != nil && c.seen.value != 0 && c.seen.day == day {
		return c.seen.value
	}
	value := c.p.cfg.Pseudonyms.Of(c.client, c.began)
	if c.seen != nil {
		*c.seen = seen{day, value}
	}
	return value
}

func (c *call) append() bool {
	row := &c.kept
	err := c.p.cfg.Meter.Append(row)
	if row.Units > 0 { // neither spent nor given back if the row's fate is not known
		if err == nil {
			c.v.Ticket.Spend()
		}
		c.v.Ticket = quota.Ticket{}
	}
	if err == nil {
		return true
	}
	c.p.cfg.Logger.Error("usage row not recorded", "request", c.name(), "error", err)
	if c.p.cfg.OnSpoolError == ServeUnbilled {
		c.p.unbilled.Add(row.Requests)
		return true
	}
	return false
}

// hold says that n bytes of the request's body are kept outside of body; 0: not any more.
func (c *call) hold(n int64) {
	c.p.replays.Add(n - c.in)
	c.in = n
}

// close is the last word: what has no row by now was aborted.
func (c *call) close() {
	if c.v.Counted && c.v.Admitted() && !c.counted {
		c.count(usage.OutcomeAborted)
	}
	c.settled()
	c.outcome()
	c.access()
	c.traced()
	c.total()
	c.release()
	c.stand()
	c.v.Ticket.Release() // if it is still there, no upstream answered
	c.v.Ticket = quota.Ticket{}
	c.body.shut()
	c.body.wipe(&c.p.replays)
	c.hold(0)
}

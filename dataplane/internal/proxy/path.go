package proxy

import (
	"context"
	"errors"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"bailiwick/dataplane/internal/gate"
	"bailiwick/dataplane/internal/policy"
	"bailiwick/dataplane/internal/quota"
	"bailiwick/dataplane/internal/relay"
	"bailiwick/shared/usage"
)

// exchange is one request and its answer.
type exchange struct {
	p       *Proxy
	w       http.ResponseWriter
	r       *http.Request
	began   time.Time
	id      [16]byte
	idText  string
	relayed bool // it came from another edge, which counts it

	table  *policy.Table
	v      gate.Verdict
	header http.Header // to send on
	body   *body
	budget *budget

	served   string // region whose upstream answered
	status   int    // of that answer
	written  bool   // headers of the answer have left
	counted  bool   // the final row is appended
	broken   bool   // the upstream died within its answer
	out      int64  // body bytes since the last row
	inBefore int64  // body bytes of the request in rows before
	lastRow  time.Time
	tries    atomic.Int32  // attempts at upstreams; a hedge makes one beside another
	abroad   atomic.Bool   // one of them was a relay
	waited   time.Duration // for an upstream's answer to begin
}

// ServeHTTP is the request path, in order.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	x := exchange{p: p, w: w, r: r, began: time.Now(), table: p.cfg.Tables.Load()}
	// 0. What every answer carries, whatever becomes of the request.
	x.id = newID(x.began)
	x.idText = idText(x.id)
	h := w.Header()
	h[relay.HeaderRequestID] = []string{x.idText}
	h["Bailiwick-Edge"] = []string{p.cfg.Region}
	http3Off := x.table.Off("http3")
	switch {
	case http3Off:
		h["Alt-Svc"] = []string{"clear"} // RFC 7838: whoever remembers HTTP/3 here forgets it
	case p.cfg.AltSvc != "" && r.TLS != nil && r.ProtoMajor < 3:
		h["Alt-Svc"] = []string{p.cfg.AltSvc}
	}
	// Last thing, also when the client went away or a panic passes: no request with a valid key without a row.
	defer x.close()

	// 1. One reading of the request, or none.
	if http3Off && r.ProtoMajor == 3 {
		x.refuse(gate.NewProblem(503, gate.ReasonSwitchedOff, "HTTP/3 is turned off here just now; use HTTP/2 or HTTP/1.1."))
		return
	}
	host := canonicalHost(r.Host)
	if problem := check(x.table, r, host); problem.Status != 0 {
		x.refuse(problem)
		return
	}
	// 2. May it in, and on whose account? From here on, only the verdict speaks for the client.
	req := gate.Request{Host: host, Method: r.Method, Path: r.URL.Path, Authorization: r.Header["Authorization"], APIKey: r.Header["X-Api-Key"], Remote: r.RemoteAddr}
	if p.cfg.TableAge != nil {
		req.TableAge = p.cfg.TableAge()
	}
	req.Unix = x.began.Unix()
	x.v = p.cfg.Gate.Admit(x.table, &req, x.began.Sub(p.start))
	if x.v.Parked { // nobody has said yet whether units are left: wait for it, not long
		ticket, decision := x.v.Account.Park(r.Context(), gate.RequestUnits, x.v.Leased)
		p.cfg.Gate.Settle(&x.v, ticket, decision, time.Now().Unix())
	}
	if !x.v.Admitted() {
		x.refuse(x.v.Problem)
		return
	}
	// 3. Can it be counted?
	if err := p.cfg.Meter.Healthy(); err != nil && p.cfg.OnSpoolError == RefuseNew {
		x.v.Counted, x.v.RetryAfter = false, time.Second // a row is what there is no room for
		x.refuse(gate.NewProblem(503, gate.ReasonUsage, "Usage cannot be recorded at this edge just now."))
		return
	}
	// 4. What goes upstream: no credentials, no claims of the client about itself.
	x.header = forwardable(r.Header)
	if x.v.KeyInBearer {
		delete(x.header, "Authorization")
	}
	x.introduce(host)
	// 5. The body, within its limit.
	if problem := x.open(p.limit(x.v.Route)); problem.Status != 0 {
		x.refuse(problem)
		return
	}
	// 6. Home upstream or relay; every attempt asks for permission anew.
	x.budget = p.budget(x.v.API.Name)
	x.budget.earn()
	a := p.router.Start(x.v.API, x.v.Route, !idempotent(r.Method))
	asked := time.Now()
	res := x.walk(&a)
	x.waited = time.Since(asked)
	// 7. Count, then answer.
	x.finish(res)
}

// ServeRelayed is the path of a request that another region's edge accepted, authenticated and counts, and
// that relay.Server has admitted: own upstreams only, so that there is never a second hop.
func (p *Proxy) ServeRelayed(w http.ResponseWriter, r *http.Request, in relay.Inbound) {
	x := exchange{p: p, w: w, r: r, began: time.Now(), idText: in.RequestID, relayed: true, table: p.cfg.Tables.Load()}
	x.v.API, x.v.Route = in.API, in.Route
	defer x.close()
	if ambiguous(r.URL) {
		w.Header().Set(relay.HeaderUnsent, "1")
		x.refuse(gate.NewProblem(400, gate.ReasonPathAmbiguous, ""))
		return
	}
	x.header = r.Header
	if _, ok := x.header["User-Agent"]; !ok {
		x.header["User-Agent"] = nil
	}
	if problem := x.open(p.limit(in.Route)); problem.Status != 0 {
		w.Header().Set(relay.HeaderUnsent, "1")
		x.refuse(problem)
		return
	}
	x.budget = p.budget(in.API.Name)
	a := p.local.Start(in.API, in.Route, !idempotent(r.Method))
	x.finish(x.walk(&a))
}

func (p *Proxy) limit(route *policy.Route) int64 {
	if route != nil && route.MaxRequestBytes > 0 {
		return route.MaxRequestBytes
	}
	return p.cfg.MaxRequestBytes
}

// left is how much of a time there is before the route's deadline.
func (x *exchange) left(d time.Duration) time.Duration {
	if x.v.Route != nil && x.v.Route.Deadline > 0 {
		return min(d, max(x.v.Route.Deadline-time.Since(x.began), 0))
	}
	return d
}

// tooLong says whether an answer of so many bytes is longer than the route lets through.
func (x *exchange) tooLong(n int64) bool {
	return x.v.Route != nil && x.v.Route.MaxResponseBytes > 0 && n > x.v.Route.MaxResponseBytes
}

func (x *exchange) timeout() time.Duration {
	if x.v.Route != nil && x.v.Route.Timeout > 0 {
		return x.v.Route.Timeout
	}
	return x.p.cfg.Timeout
}

// client is the address that speaks to this edge; what it says of others is not asked.
func (x *exchange) client() string {
	host, _, err := net.SplitHostPort(x.r.RemoteAddr)
	if err != nil {
		return x.r.RemoteAddr
	}
	return host
}

// introduce says who asks. The edge stands at the border: what a client says of an earlier hop is not
// passed on.
func (x *exchange) introduce(host string) {
	proto := "http"
	if x.r.TLS != nil {
		proto = "https"
	}
	x.header["X-Forwarded-For"] = []string{x.client()}
	x.header["X-Forwarded-Proto"] = []string{proto}
	x.header["X-Forwarded-Host"] = []string{host}
	x.header["X-Request-Id"] = []string{x.idText}
	via := strconv.Itoa(x.r.ProtoMajor) + "." + strconv.Itoa(x.r.ProtoMinor) + " bailiwick"
	if before := x.header["Via"]; len(before) > 0 {
		via = strings.Join(before, ", ") + ", " + via
	}
	x.header["Via"] = []string{via}
}

// refuse answers for the edge itself. The row comes first.
func (x *exchange) refuse(problem gate.Problem) {
	x.status = problem.Status
	if x.v.Counted && !x.counted {
		outcome := x.v.Outcome
		if x.v.Admitted() { // refused after admission
			outcome = usage.OutcomeRefused
			if problem.Status >= 500 {
				outcome = usage.OutcomeUnserved
			}
		}
		if !x.count(outcome) {
			problem = gate.NewProblem(503, gate.ReasonUsage, "Usage cannot be recorded at this edge just now.")
		}
	}
	h := x.w.Header()
	x.limits(h)
	if x.v.RetryAfter > 0 {
		h["Retry-After"] = []string{strconv.FormatInt(gate.Seconds(x.v.RetryAfter), 10)}
	} else if problem.Status == 503 {
		h["Retry-After"] = []string{"1"}
	}
	switch problem.Status {
	case 401:
		h["Www-Authenticate"] = []string{`Bearer realm="bailiwick"`}
	case 405:
		h["Allow"] = []string{strings.Join(x.v.Allow, ", ")}
	}
	h["Cache-Control"] = []string{"no-store"}
	h["Content-Type"] = []string{gate.ProblemType}
	data := problem.JSON(x.idText)
	h["Content-Length"] = []string{strconv.Itoa(len(data))}
	x.written = true
	x.w.WriteHeader(problem.Status)
	if x.r.Method != http.MethodHead {
		x.w.Write(data)
	}
}

func (x *exchange) limits(h http.Header) {
	if x.v.RateLimit != "" {
		delete(h, "Ratelimit") // an upstream's, of a limit that is not the plan's
		delete(h, "Ratelimit-Policy")
		// Spelt as in the draft; the canonical form of net/http would be Ratelimit.
		h["RateLimit"] = []string{x.v.RateLimit}
		h["RateLimit-Policy"] = []string{x.v.RateLimitPolicy}
	}
}

// count appends the final row; false if that failed and the request must not be served unbilled.
func (x *exchange) count(outcome usage.Outcome) bool {
	if !x.v.Counted || x.counted {
		return true
	}
	x.counted = true
	row := x.row(outcome)
	row.Requests = 1
	if x.served != "" { // what no upstream answered is not for sale
		row.Units, row.Period = gate.RequestUnits, x.v.Ticket.Period()
	}
	return x.append(&row)
}

// interim appends the bytes since the last row of a long answer, so that a stream of hours is not one row
// that a crash could lose.
func (x *exchange) interim() {
	if x.v.Counted && !x.counted {
		x.v.Flags |= usage.FlagStreamed
		row := x.row(usage.OutcomeOf(x.status))
		x.append(&row)
	}
}

func (x *exchange) row(outcome usage.Outcome) usage.Row {
	in := x.body.bytes()
	row := usage.Row{RequestID: x.id, Customer: x.v.Customer, Subscription: x.v.Subscription, Plan: x.v.Plan, PlanRev: x.v.PlanRev,
		Product: x.v.Product, Outcome: outcome, ServedRegion: x.served, Flags: x.v.Flags,
		BytesIn: in - x.inBefore, BytesOut: x.out, LatencyUS: time.Since(x.began).Microseconds(),
		KeyID: x.v.KeyID, Status: uint16(x.status), UpstreamUS: x.waited.Microseconds(), Attempts: uint8(min(x.tries.Load(), 255))}
	if x.abroad.Load() {
		row.Flags |= usage.FlagRelayed
	}
	if x.p.cfg.Pseudonyms != nil {
		row.Address = x.p.cfg.Pseudonyms.Of(x.client(), x.began)
	}
	if x.v.API != nil {
		row.API = x.v.API.Name
	}
	if x.v.Route != nil {
		row.Route = x.v.Route.Name
	}
	x.inBefore, x.out, x.lastRow = in, 0, time.Now()
	return row
}

func (x *exchange) append(row *usage.Row) bool {
	err := x.p.cfg.Meter.Append(row)
	if row.Units > 0 { // neither spent nor given back if the row's fate is not known
		if err == nil {
			x.v.Ticket.Spend()
		}
		x.v.Ticket = quota.Ticket{}
	}
	if err == nil {
		return true
	}
	x.p.cfg.Logger.Error("usage row not recorded", "request", x.idText, "error", err)
	if x.p.cfg.OnSpoolError == ServeUnbilled {
		x.p.unbilled.Add(row.Requests)
		return true
	}
	return false
}

// close is the last word: what has no row by now was aborted.
func (x *exchange) close() {
	if x.v.Counted && x.v.Admitted() && !x.counted {
		x.count(usage.OutcomeAborted)
	}
	x.outcome()
	x.v.Pass.Leave()
	x.v.Ticket.Release() // if it is still there, no upstream answered
	x.v.Ticket = quota.Ticket{}
	x.body.shut()
	x.body.wipe(&x.p.replays)
}

// gone says whether the client has left.
func (x *exchange) gone() bool { return x.r.Context().Err() != nil }

var (
	errLate    = errors.New("no answer in time")
	errTooLong = errors.New("answer is longer than the route lets through")
	errHedged  = errors.New("another attempt answered first")
)

// cause is why an attempt's context ended, nil if it has not.
func cause(ctx context.Context) error {
	if ctx.Err() == nil {
		return nil
	}
	return context.Cause(ctx)
}

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

	"bailiwick/dataplane/internal/failover"
	"bailiwick/dataplane/internal/gate"
	"bailiwick/dataplane/internal/policy"
	"bailiwick/dataplane/internal/priority"
	"bailiwick/dataplane/internal/relay"
	"bailiwick/dataplane/internal/rpc"
	"bailiwick/dataplane/internal/trace"
	"bailiwick/dataplane/internal/websocket"
)

// exchange is a call and its answer as net/http has them: what comes over HTTP/2 and HTTP/3, and whatever over HTTP/1.1 is
// not of the common kind.
type exchange struct {
	*call
	w      http.ResponseWriter
	r      *http.Request
	header http.Header // to send on
	from   string      // region that a relay comes from

	came    *http.Request // r as it came, where that is a copy: its trailer is filled in; nil: it is none
	written bool          // headers of the answer have left
	hints   hints
	cache   *caching    // nil: the route keeps no answers
	begun   *begun      // an attempt that the walk's first try takes up; nil: none
	asked   *asked      // of a client
	socket  *socketAsk  // the request asks for a WebSocket, which the route opens; nil: it does not
	tcp     bool        // a connection of which nothing is known but its bytes
	taken   atomic.Bool // what the decision rested on was taken back while the answer passed
}

// ServeHTTP is the request path, in order.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c := &call{}
	c.begin(p, addressOf(r.RemoteAddr))
	c.proto = uint8(r.ProtoMajor)
	sever(r.Header)
	c.followed(r.Header, trace.Client)
	x := exchange{call: c, w: w, r: r}
	// 0. What every answer carries, whatever becomes of the request.
	x.sign()
	// Last thing, also when the client went away or a panic passes: no request with a valid key without a row.
	defer x.close()

	// 1-3. One reading of the request, or none; may it in, and can it be counted? From here on, only the verdict speaks for
	// the client.
	a := asking(r)
	if x.answersItself(&a) {
		return
	}
	if problem := c.decide(r.Context(), &a); problem.Status != 0 {
		x.refuse(problem)
		return
	}
	if x.asked = &a; a.socket.opens(c.table, &a) {
		x.socket = a.socket
		if problem := x.led(r); problem.Status != 0 {
			x.refuse(problem)
			return
		}
	}
	x.serve(a.Host)
}

// lasts says whether a connection is asked for, and no answer.
func (x *exchange) lasts() bool { return x.socket != nil || x.tcp }

// sign writes what every answer carries.
func (x *exchange) sign() {
	h := x.w.Header()
	h[relay.HeaderRequestID] = []string{x.name()}
	h["Bailiwick-Edge"] = []string{x.p.cfg.Region}
	if alt := x.p.altSvc(x.table, x.r.TLS != nil && x.r.ProtoMajor < 3); alt != "" {
		h["Alt-Svc"] = []string{alt}
	}
}

// asking is what a request of net/http asks.
func asking(r *http.Request) asked {
	a := asked{Request: gate.Request{Host: canonicalHost(r.Host), Method: r.Method, Path: r.URL.Path, Authorization: r.Header["Authorization"], APIKey: r.Header["X-Api-Key"], Remote: r.RemoteAddr, Shown: shown{r}, Says: r.URL.RawQuery != "" || r.URL.ForceQuery || r.ContentLength != 0},
		raw: r.URL.RawPath, more: r.URL.Opaque != "" || r.URL.User != nil, http3: r.ProtoMajor == 3, upgrade: r.Header["Upgrade"], expects: expects(r.Header["Expect"])}
	if len(a.upgrade) > 0 {
		a.socket = askSocket(r)
		a.Socket = a.socket != nil
	}
	if r.TLS != nil {
		a.sni = r.TLS.ServerName
	}
	return a
}

// serve sends on what was decided, and answers.
func (x *exchange) serve(host string) {
	if !x.prepare(host) {
		return
	}
	// 6. An answer that is kept, where the route lets it be.
	if of := x.keeping(x.r.Method, x.r.URL.Path); of != nil && x.socket == nil {
		defer x.uncache()
		if x.lookUp(host, of) {
			return
		}
	}
	// 7. Home upstream or relay; every attempt asks for permission anew.
	a, problem := x.start(x.r.Context(), x.r.Method, time.Time{})
	if problem.Status != 0 {
		if x.cache == nil || !x.spare() {
			x.refuse(problem)
		}
		return
	}
	x.answer(&a, nil)
}

// prepare makes what is sent on. false: the request was refused.
func (x *exchange) prepare(host string) bool {
	// 4. What goes upstream: no credentials, no claims of the client about itself.
	x.header = forwardable(x.r.Header)
	if x.v.KeyInBearer {
		delete(x.header, "Authorization")
	}
	x.conceal(x.v.API.Auth)
	x.untrace()
	x.rewrite() // before the edge's own word
	x.introduce(host)
	x.identify(x.v.API.Auth)
	x.listen()
	// 5. The body, within its limit.
	problem := x.open(x.p.limit(x.v.Route))
	if problem.Status == 0 {
		problem = x.examine()
	}
	if problem.Status != 0 {
		x.refuse(problem)
		return false
	}
	return true
}

// answer walks over the candidates and delivers what comes of it. g is the first step, if it was taken already.
func (x *exchange) answer(a *failover.Attempts, g *given) {
	asked := time.Now()
	res := x.walk(a, g)
	x.hints.close()
	x.waited += time.Since(asked)
	if res.resp != nil || len(x.held()) == 0 { // else release does, when the upstream has let go
		x.leave(x.ended(&res))
	}
	// 8. Count, then answer.
	if x.cache == nil || !x.keep(&res) {
		x.finish(res)
	}
}

// ServeRelayed is the path of a request that another region's edge accepted, authenticated and counts, and
// that relay.Server has admitted: own upstreams only, so that there is never a second hop.
func (p *Proxy) ServeRelayed(w http.ResponseWriter, r *http.Request, in relay.Inbound) {
	c := &call{p: p, began: time.Now(), idText: in.RequestID, client: addressOf(r.RemoteAddr), relayed: true, table: p.cfg.Tables.Load()}
	x := exchange{call: c, w: w, r: r, from: in.From}
	x.v.API, x.v.Route = in.API, in.Route
	if in.LetGo != nil {
		x.holds = &holds{over: in.LetGo}
	}
	c.method = methodOf(r.Method)
	c.received(r.Header)
	defer x.close()
	if r.URL.Opaque != "" || r.URL.User != nil || ambiguous(r.URL.Path, r.URL.RawPath) {
		w.Header().Set(relay.HeaderUnsent, "1")
		x.refuse(gate.NewProblem(400, gate.ReasonPathAmbiguous, ""))
		return
	}
	x.header = r.Header
	x.untrace()
	if _, ok := x.header["User-Agent"]; !ok {
		x.header["User-Agent"] = nil
	}
	x.listen()
	if in.Stream == relay.StreamWebSocket {
		x.socket = &socketAsk{leaving: in.Ending}
		x.socket.Protocols, x.socket.err = websocket.ReadProtocols(r.Header)
	}
	x.tcp = in.Stream == relay.StreamTCP
	if x.lasts() { // its body is what it says
	} else if problem := x.open(p.limit(in.Route)); problem.Status != 0 {
		w.Header().Set(relay.HeaderUnsent, "1")
		x.refuse(problem)
		return
	}
	x.budget = p.budget(in.API)
	x.v.Class = priority.ParseClass(in.Class)
	if problem := x.wait(r.Context()); problem.Status != 0 {
		w.Header().Set(relay.HeaderUnsent, "1")
		problem.Status = http.StatusTooManyRequests // 503 would be said of the API as a whole, and so of higher classes
		x.refuse(problem)
		return
	}
	a := p.local.Start(in.API, in.Route, !idempotent(r.Method))
	x.stands(&a)
	x.answer(&a, nil)
}

func (p *Proxy) limit(route *policy.Route) int64 {
	if route != nil && route.MaxRequestBytes > 0 {
		return route.MaxRequestBytes
	}
	return p.cfg.MaxRequestBytes
}

// addressOf is the address that speaks to this edge; what it says of others is not asked.
func addressOf(remote string) string {
	host, _, err := net.SplitHostPort(remote)
	if err != nil {
		return remote
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
	x.header["X-Forwarded-For"] = []string{x.client}
	x.header["X-Forwarded-Proto"] = []string{proto}
	x.header["X-Forwarded-Host"] = []string{host}
	x.header["X-Request-Id"] = []string{x.name()}
	via := strconv.Itoa(x.r.ProtoMajor) + "." + strconv.Itoa(x.r.ProtoMinor) + " bailiwick"
	if before := x.header["Via"]; len(before) > 0 {
		via = strings.Join(before, ", ") + ", " + via
	}
	x.header["Via"] = []string{via}
}

// refuse answers for the edge itself. The row comes first.
func (x *exchange) refuse(problem gate.Problem) {
	problem = x.refused(problem)
	h := x.w.Header()
	x.share(h)
	x.limits(h)
	if x.v.RetryAfter > 0 {
		h["Retry-After"] = []string{strconv.FormatInt(gate.Seconds(x.v.RetryAfter), 10)}
	} else if problem.Status == 503 {
		h["Retry-After"] = []string{"1"}
	}
	switch problem.Status {
	case 401:
		h["Www-Authenticate"] = []string{`Bearer realm="bailiwick"`}
	case http.StatusUpgradeRequired:
		h["Upgrade"], h[websocket.HeaderVersion] = []string{"websocket"}, []string{websocket.Version}
	case 405:
		h["Allow"] = []string{strings.Join(x.v.Allow, ", ")}
	}
	h["Cache-Control"] = []string{"no-store"}
	if kind := x.spoken(); kind != rpc.None {
		x.tell(kind, problem)
		return
	}
	h["Content-Type"] = []string{gate.ProblemType}
	data := problem.JSON(x.name())
	h["Content-Length"] = []string{strconv.Itoa(len(data))}
	x.written = true
	x.w.WriteHeader(problem.Status)
	if x.r.Method != http.MethodHead {
		x.w.Write(data)
	}
}

func (x *exchange) limits(h http.Header) {
	if limit, policy := x.v.Limits(); len(limit) > 0 {
		delete(h, "Ratelimit") // an upstream's, of a limit that is not the plan's
		delete(h, "Ratelimit-Policy")
		// Spelt as in the draft; the canonical form of net/http would be Ratelimit.
		h["RateLimit"] = []string{string(limit)}
		h["RateLimit-Policy"] = []string{string(policy)}
	}
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

package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"bailiwick/dataplane/internal/failover"
	"bailiwick/dataplane/internal/gate"
	"bailiwick/dataplane/internal/policy"
	"bailiwick/dataplane/internal/trace"
	"bailiwick/dataplane/internal/tunnel"
	"bailiwick/shared/usage"
)

// A connection over TLS to a host of an API that is tcp carries no HTTP. Who has not shown a client certificate that the API
// asks for says in a first line who he is, and is told in one whether he may:
//
//	BAILIWICK/1 <key or token>\r\n
//	BAILIWICK/1 200 ok\r\n
const (
	preambleWord = "BAILIWICK/1 "
	preambleMost = 4 << 10 // bytes of the line, which has headTimeout to come
	methodTCP    = "TCP"   // of the request that a connection is
)

var errPreamble = errors.New("the first line is not BAILIWICK/1, a blank and a key, ended by CR LF within 4096 bytes")

// preamble reads the first line from the beginning of b; size 0: it is not all here.
func preamble(b []byte) (key string, size int, err error) {
	n := min(len(b), len(preambleWord))
	if string(b[:n]) != preambleWord[:n] {
		return "", 0, errPreamble
	}
	for i := n; i < len(b); i++ {
		switch c := b[i]; {
		case i >= preambleMost:
			return "", 0, errPreamble
		case c == '\r':
			if i+1 == len(b) {
				return "", 0, nil
			}
			if b[i+1] != '\n' || i == n {
				return "", 0, errPreamble
			}
			return string(b[n:i]), i + 2, nil
		case c <= ' ' || c >= 0x7f:
			return "", 0, errPreamble
		}
	}
	if len(b) >= preambleMost {
		return "", 0, errPreamble
	}
	return "", 0, nil
}

// tcpAPI is the API that is tcp of a TLS name; nil: there is none.
func (p *Proxy) tcpAPI(name string) *policy.API {
	if p == nil || name == "" {
		return nil
	}
	if api := p.cfg.Tables.Load().API(canonicalHost(name)); api != nil && api.TCP != nil {
		return api
	}
	return nil
}

// whole lets clients of hosts that are tcp offer protocols that this edge does not know. Who offers HTTP speaks HTTP, and is
// told that there is none: a browser must not be led to say to a database what a page has it say.
func (p *Proxy) whole(cfg *tls.Config) func(*tls.ClientHelloInfo) (*tls.Config, error) {
	choose := cfg.GetConfigForClient
	return func(hello *tls.ClientHelloInfo) (chosen *tls.Config, err error) {
		if choose != nil {
			if chosen, err = choose(hello); err != nil {
				return nil, err
			}
		}
		if len(hello.SupportedProtos) == 0 || p.tcpAPI(hello.ServerName) == nil || slices.ContainsFunc(hello.SupportedProtos, func(o string) bool {
			return o == "h2" || o == "http/1.1" || o == "acme-tls/1" || slices.Contains(cfg.NextProtos, o)
		}) {
			return chosen, nil
		}
		if chosen == nil {
			chosen = cfg
		}
		chosen = chosen.Clone()
		chosen.NextProtos, chosen.GetConfigForClient = nil, nil
		return chosen, nil
	}
}

// tunnels says whether the connection is one of an API that is tcp.
func (c *conn) tunnels() bool {
	return c.state != nil && c.state.NegotiatedProtocol == "" && c.door.fast.tcpAPI(c.sni) != nil
}

// tunnel is the life of such a connection.
func (c *conn) tunnel() {
	if !c.phase.CompareAndSwap(waiting, serving) {
		return
	}
	p := c.door.fast
	api := p.tcpAPI(c.sni)
	if api == nil {
		return
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	r := (&http.Request{Method: http.MethodGet, URL: &url.URL{Path: "/"}, Header: http.Header{}, Body: http.NoBody, Host: c.sni, RemoteAddr: c.remote, TLS: c.state, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1}).WithContext(ctx)
	a := asked{Request: gate.Request{Host: canonicalHost(c.sni), Method: methodTCP, Path: "/", Remote: c.remote, Shown: shown{r}, TCP: true}, sni: c.sni}
	asks := api.Auth == nil || !api.Auth.Certificates || len(c.state.PeerCertificates) == 0
	if asks {
		key, err := c.readPreamble()
		if err != nil {
			c.say(400, gate.ReasonBadRequest)
			c.linger()
			return
		}
		a.Authorization = []string{"Bearer " + key}
	}
	k := &call{}
	k.begin(p, c.client)
	k.followed(nil, trace.Client)
	x := exchange{call: k, w: nowhere{}, r: r, header: http.Header{}, asked: &a, tcp: true}
	defer x.close()
	refuse := func(problem gate.Problem) {
		problem = x.refused(problem)
		if asks {
			c.say(problem.Status, problem.Reason)
			c.linger()
		}
	}
	if problem := x.decide(ctx, &a); problem.Status != 0 {
		refuse(problem)
		return
	}
	x.introduce(a.Host)
	x.identify(x.v.API.Auth)
	walk, problem := x.start(ctx, http.MethodGet, time.Time{}) // nothing is said before a target has answered: another may be tried
	if problem.Status != 0 {
		refuse(problem)
		return
	}
	began := time.Now()
	res := x.walk(&walk, nil)
	x.waited += time.Since(began)
	if res.resp != nil || len(x.held()) == 0 { // else release does, when the upstream has let go
		x.leave(x.ended(&res))
	}
	if res.stream == nil {
		res.drop(nil)
		if res.problem.Status == 0 {
			res.problem = gate.NewProblem(502, gate.ReasonUpstream, "")
		}
		refuse(res.problem)
		return
	}
	defer res.drop(nil)
	if !p.enter() {
		refuse(x.overloaded("This edge has as many connections that last as it takes."))
		return
	}
	defer p.lives.count.Add(-1)
	c.rwc.SetDeadline(time.Time{})
	if asks && !c.say(200, "ok") {
		return // the client left; close counts it
	}
	c.rwc.SetDeadline(time.Time{})
	leg := &connLeg{Conn: c.rwc, early: c.buf[c.r:c.w]}
	clean := x.carry(ctx, &res, leg, func(stop context.CancelCauseFunc) (over func()) {
		_, over = p.live(k, k.lasts(), &a.Request, res.place.Target, func(api *policy.API, _ *policy.Route) bool { return api.TCP != nil }, stop)
		return over
	})
	if clean { // a client that goes on speaking is heard, so that what it was told last is not thrown away
		c.linger()
	} else { // what was broken off must not look as if all had been said: some take a connection's end for TLS's
		if t, ok := c.raw.(interface{ SetLinger(int) error }); ok {
			t.SetLinger(0)
		}
		c.raw.Close()
	}
}

var errTaken = errors.New("what it rested on was taken back")

// carry passes bytes as long as both sides speak; clean: until both had said all. enter has the connection ended with what it rests on.
func (x *exchange) carry(ctx context.Context, res *result, client tunnel.Leg, enter func(context.CancelCauseFunc) func()) (clean bool) {
	x.served, x.status = res.region, http.StatusOK
	res.watch.Stop()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	cfg := tunnel.Config{Client: client, Upstream: lastLeg{res.stream.Leg, stop}, Meter: x.bill(ctx)}
	if _, far := res.stream.Leg.(*relayLeg); far {
		cfg.Client = relayed{client}
	}
	defer enter(stop)()
	if r := x.v.Route; r != nil && r.Deadline > 0 {
		defer time.AfterFunc(x.left(r.Deadline), func() { stop(errTaken) }).Stop()
	}
	x.stand()
	if t := x.v.API.TCP; t != nil {
		cfg.Idle = t.IdleTimeout
	}
	err := tunnel.Join(ctx, cfg)
	outcome := usage.OutcomeSuccess
	var broken *tunnel.Broken
	var panicked *tunnel.Panic
	switch {
	case errors.As(err, &panicked):
		slog.NewLogLogger(x.p.cfg.Logger.Handler(), slog.LevelError).Print("panic in a connection that lasts\n", string(panicked.Stack))
		outcome = usage.OutcomeAborted
	case errors.As(err, &broken) && broken.Upstream:
		outcome, x.broken = usage.OutcomeAborted, true
	case errors.As(err, &broken):
		outcome = usage.OutcomeAborted
	}
	x.tab.close(outcome)
	return err == nil
}

// dial opens a connection to an upstream of this region.
func (x *exchange) dial(ctx context.Context, t *failover.Target, res *result) {
	sent := t.Begin()
	conn, err := x.p.cfg.Upstreams.connect(ctx, t.At, x.whose())
	if err != nil {
		end := failover.Failed
		if why := cause(ctx); why != nil && !errors.Is(why, errLate) || errors.Is(err, errOpens) {
			end = failover.Tick
		}
		sent.End(end)
		res.err = err
		return
	}
	sent.End(failover.Answered)
	leg := &connLeg{Conn: conn}
	res.resp, res.region = &http.Response{StatusCode: http.StatusSwitchingProtocols, Body: leg}, x.p.cfg.Region
	res.stream = &opened{Leg: leg}
}

// readPreamble takes the first line. What is behind it stays for the upstream.
func (c *conn) readPreamble() (key string, err error) {
	c.buf = make([]byte, connBuffer)
	c.rwc.SetReadDeadline(time.Now().Add(headTimeout))
	for {
		key, n, err := preamble(c.buf[c.r:c.w])
		if n > 0 || err != nil {
			clear(c.buf[c.r : c.r+n])
			c.r += n
			return key, err
		}
		if err := c.fill(2 * preambleMost); err != nil {
			return "", err
		}
	}
}

// say answers a preamble.
func (c *conn) say(status int, word string) bool {
	return c.write(fmt.Appendf(nil, "BAILIWICK/1 %d %s\r\n", status, strings.ReplaceAll(word, " ", "-")), time.Now())
}

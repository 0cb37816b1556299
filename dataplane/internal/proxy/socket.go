package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"bailiwick/dataplane/internal/failover"
	"bailiwick/dataplane/internal/gate"
	"bailiwick/dataplane/internal/policy"
	"bailiwick/dataplane/internal/relay"
	"bailiwick/dataplane/internal/shape"
	"bailiwick/dataplane/internal/tunnel"
	"bailiwick/dataplane/internal/websocket"
	"bailiwick/shared/usage"
)

// socketAsk is a request that asks for a WebSocket; err: in a way that cannot be granted.
type socketAsk struct {
	websocket.Offer
	err     error
	leaving <-chan struct{} // of one that another region sends: relay.Inbound.Ending
}

// askSocket reads what a request asks beside what it asks of HTTP; nil: no WebSocket.
func askSocket(r *http.Request) *socketAsk {
	if r.ProtoMajor != 1 || r.ProtoMinor != 1 || !websocket.Asked(r.Header["Upgrade"]) {
		return nil
	}
	s := &socketAsk{}
	if s.Offer, s.err = websocket.ReadOffer(r.Header); s.err == nil && (r.ContentLength != 0 || r.Method != http.MethodGet) {
		s.err = errHandshake
	}
	return s
}

var errHandshake = errors.New("a WebSocket is opened by GET without a body")

// opens says whether the route at which a WebSocket is asked for lets one be opened.
func (s *socketAsk) opens(t *policy.Table, a *asked) bool {
	api := t.API(a.Host)
	if s == nil || api == nil {
		return false
	}
	route, match := api.Route(a.Method, a.Path)
	return match == policy.RouteFound && opensSocket(api, route)
}

func opensSocket(_ *policy.API, route *policy.Route) bool { return route.WebSocket != nil }

func (s *socketAsk) problem() gate.Problem {
	switch {
	case s.err == nil:
		return gate.Problem{}
	case errors.Is(s.err, websocket.ErrVersion):
		return gate.NewProblem(http.StatusUpgradeRequired, gate.ReasonUpgrade, "Only version 13 of WebSocket is spoken here.")
	}
	return gate.NewProblem(http.StatusBadRequest, gate.ReasonBadRequest, "The WebSocket cannot be opened: "+s.err.Error()+".")
}

// led refuses a WebSocket that a page of a strange origin asks for in the name of whose certificate the browser shows: CORS
// holds no page back from WebSockets, which it may read and write.
func (x *exchange) led(r *http.Request) gate.Problem {
	origin := r.Header["Origin"]
	if len(origin) == 0 || !x.v.ByCertificate() || len(origin) == 1 && (origin[0] == "https://"+strings.ToLower(r.Host) || shape.Trusts(x.v.Route.CORS, origin[0])) {
		return gate.Problem{}
	}
	return gate.NewProblem(http.StatusForbidden, gate.ReasonUpgrade, "A page may not open a WebSocket here by the browser's client certificate, unless the route's cors names its origin, with credentials.")
}

// opened is a connection to an upstream that was opened for one of a client's, here or by way of another region.
type opened struct {
	tunnel.Leg
	protocol string
	fields   http.Header // of the upstream's answer
}

// upgrade opens a WebSocket at an upstream of this region.
func (x *exchange) upgrade(ctx context.Context, t *failover.Target, res *result) {
	sent := t.Begin()
	end := failover.Failed
	defer func() {
		if why := cause(ctx); res.resp == nil && why != nil && !errors.Is(why, errLate) {
			end = failover.Tick
		}
		sent.End(end)
	}()
	conn, err := x.p.cfg.Upstreams.connect(ctx, t.At, x.whose())
	if err != nil {
		if res.err = err; errors.Is(err, errOpens) {
			end = failover.Tick
		}
		return
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	res.hold = x.holding(ctx)
	fail := func(err error) {
		stop()
		x.abandon(conn, res.hold)
		res.err, res.sent = err, true
	}
	key := websocket.NewKey()
	if _, err := conn.Write(x.handshake(t.Base, key, x.under(res, x.header))); err != nil {
		fail(err)
		return
	}
	l := &link{o: &origin{}, conn: conn, buf: make([]byte, linkBuffer)}
	if err := l.head(http.MethodGet); err != nil {
		fail(err)
		return
	}
	if l.answer.Status != http.StatusSwitchingProtocols {
		end = failover.Answered
		switch l.answer.Status {
		case 502, 503, 504:
			end = failover.Unavailable
		default:
			if l.answer.Status >= 500 {
				end = failover.Erred
			}
		}
		res.resp, res.region = l.response(ctx, stop), x.p.cfg.Region
		return
	}
	resp := l.response(ctx, stop)
	protocol, err := websocket.Check(resp.Header, key, x.socket.Protocols)
	if err == nil && !stop() {
		err = context.Cause(ctx)
	}
	if err != nil {
		end = failover.Answered
		fail(err)
		return
	}
	end = failover.Answered
	leg := &connLeg{Conn: conn, early: l.buf[l.r:l.w]}
	res.resp, res.region = &http.Response{StatusCode: http.StatusSwitchingProtocols, Body: leg}, x.p.cfg.Region
	res.stream = &opened{Leg: leg, protocol: protocol, fields: resp.Header}
}

// handshake is the request that opens one.
func (x *exchange) handshake(base *url.URL, key string, header http.Header) []byte {
	path, host := x.reaimed(base.Host)
	target := base.EscapedPath() + path.EscapedPath()
	if x.r.URL.RawQuery != "" || x.r.URL.ForceQuery {
		target += "?" + x.r.URL.RawQuery
	}
	b := fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %s", target, host, key)
	for name, values := range header {
		if isHandshake(name) {
			continue
		}
		for _, v := range values {
			b = field(b, name, clean(v))
		}
	}
	if len(x.socket.Protocols) > 0 {
		b = field(b, "Sec-WebSocket-Protocol", strings.Join(x.socket.Protocols, ", "))
	}
	return append(b, "\r\n\r\n"...)
}

// isHandshake says whether a field, by its canonical name, belongs to one connection's handshake.
func isHandshake(name string) bool { return strings.HasPrefix(name, "Sec-Websocket-") }

// streamed takes another region's answer to a stream that was asked for: pipe is what it is told.
func (x *exchange) streamed(res *result, pipe *io.PipeWriter) {
	if res.resp.Header.Get(relay.HeaderStream) == "" || res.resp.StatusCode != http.StatusOK {
		pipe.Close() // an ordinary answer: an upstream's refusal
		return
	}
	s := &opened{Leg: &relayLeg{body: res.resp.Body, pipe: pipe}, fields: res.resp.Header}
	if x.socket != nil {
		var err error
		if s.protocol, err = websocket.Chosen(res.resp.Header, x.socket.Protocols); err != nil {
			pipe.CloseWithError(err)
			res.resp.Body.Close()
			res.resp, res.err, res.sent = nil, err, true
			return
		}
	}
	res.resp.StatusCode, res.stream = http.StatusSwitchingProtocols, s
}

// join is the answer to a request for a WebSocket whose upstream agreed: it lasts as long as the connection.
func (x *exchange) join(res *result) {
	defer res.drop(nil)
	if !x.p.enter() {
		x.full()
		return
	}
	defer x.p.lives.count.Add(-1)
	x.served, x.status = res.region, http.StatusSwitchingProtocols
	res.watch.Stop()
	x.units(res.stream.fields)
	ctx := x.r.Context()
	stopped, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	cfg := websocket.Config{Upstream: lastLeg{res.stream.Leg, stop}, Meter: x.bill(stopped)}
	if r := x.v.Route; r != nil && r.WebSocket != nil {
		cfg.MaxMessage, cfg.Idle, cfg.Ping = r.WebSocket.MaxMessageBytes, r.WebSocket.IdleTimeout, r.WebSocket.PingEvery
	}
	var client interface {
		websocket.Leg
		leaving() <-chan struct{}
	}
	if x.relayed {
		leg, err := x.answerStream(res.stream.protocol)
		if err != nil {
			return
		}
		cfg.Client, cfg.MaxMessage = leg, maxRelayedMessage // the edge that counts it bounds it
		life, over := x.p.live(x.call, x.call.lasts(), nil, res.place.Target, nil, stop)
		defer over()
		cfg.Orders = life.orders
		defer context.AfterFunc(closedContext(stopped, x.socket.leaving), func() { life.end(websocket.CloseAway, edgeGoes) })()
	} else {
		taker, ok := x.w.(interface{ takeOver(head []byte) *connLeg })
		if !ok {
			x.refuse(gate.NewProblem(501, gate.ReasonUpgrade, "A WebSocket is opened over HTTP/1.1."))
			return
		}
		leg := taker.takeOver(x.accepted(res.stream))
		if leg == nil {
			return // the client left; close counts it
		}
		x.written = true
		cfg.Client, client = leg, leg
		life, over := x.p.live(x.call, x.call.lasts(), &x.asked.Request, res.place.Target, opensSocket, stop)
		defer over()
		cfg.Orders = life.orders
		if d := x.v.Route.Deadline; d > 0 {
			defer time.AfterFunc(x.left(d), func() { life.end(websocket.CloseAway, "its time is over") }).Stop()
		}
		defer context.AfterFunc(closedContext(stopped, client.leaving()), func() { life.end(websocket.CloseAway, edgeGoes) })()
	}
	x.stand() // the seat is for requests; connections that last have places of their own
	end := websocket.Join(ctx, cfg)
	x.logEnd(&end)
	outcome := usage.OutcomeSuccess
	if end.By == websocket.Upstream && !end.Closed || end.By == websocket.Edge && (end.Code == websocket.CloseFailed || end.Code == websocket.CloseRestart) {
		outcome, x.broken = usage.OutcomeAborted, true
	}
	x.tab.close(outcome)
}

const edgeGoes = "the edge goes away: connect anew"

// full refuses a connection that lasts for want of room.
func (x *exchange) full() {
	if x.relayed {
		x.w.Header().Set(relay.HeaderBlameless, "1") // requests are served all the same
	}
	x.refuse(x.overloaded("This edge has as many connections that last as it takes; try again shortly."))
}

// logEnd says what people may want to know of how a connection ended.
func (x *exchange) logEnd(end *websocket.End) {
	if len(end.Panic) > 0 {
		slog.NewLogLogger(x.p.cfg.Logger.Handler(), slog.LevelError).Print("panic in a connection that lasts\n", string(end.Panic))
		return
	}
	x.p.cfg.Logger.Debug("connection ended", "request", x.name(), "by", end.By, "error", end.Err)
}

// maxRelayedMessage bounds messages at a receiver of relays: the most that a route may say.
const maxRelayedMessage = 64 << 20

// accepted is the head of the answer that opens a client's WebSocket.
func (x *exchange) accepted(s *opened) []byte {
	h := x.w.Header()
	answerable(h, s.fields)
	x.reshape(h)
	h[relay.HeaderServed] = []string{x.served}
	x.limits(h)
	b := []byte("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " + websocket.Accept(x.socket.Key))
	if s.protocol != "" {
		b = field(b, "Sec-WebSocket-Protocol", s.protocol)
	}
	for name, values := range h {
		if isHandshake(name) || name == "Content-Length" || name == "Transfer-Encoding" || name == "Connection" {
			continue
		}
		for _, v := range values {
			b = field(b, name, clean(v))
		}
	}
	return append(b, "\r\n\r\n"...)
}

// answerStream tells another region's edge that its stream is open, and is its client's leg.
func (x *exchange) answerStream(protocol string) (*handlerLeg, error) {
	h := x.w.Header()
	h[relay.HeaderServed] = []string{x.served}
	h[relay.HeaderStream] = []string{"1"}
	if protocol != "" {
		h[websocket.HeaderProtocol] = []string{protocol}
	}
	x.written = true
	x.w.WriteHeader(http.StatusOK)
	leg := &handlerLeg{r: x.r.Body, w: x.w, rc: http.NewResponseController(x.w)}
	return leg, leg.rc.Flush()
}

// lastLeg ends, with the connection, whoever waits for units: what was counted is in its row before the doors are shut.
type lastLeg struct {
	tunnel.Leg
	stop context.CancelCauseFunc
}

// Break implements websocket.Leg.
func (l lastLeg) Break() {
	l.stop(nil)
	l.Leg.Break()
}

// closedContext is a context that ends when ch is closed, or with ctx.
func closedContext(ctx context.Context, ch <-chan struct{}) context.Context {
	return &chanContext{ctx, ch}
}

type chanContext struct {
	context.Context
	ch <-chan struct{}
}

func (c *chanContext) Done() <-chan struct{} { return c.ch }

func (c *chanContext) Err() error {
	select {
	case <-c.ch:
		return context.Canceled
	default:
		return nil
	}
}

// connLeg is a connection of which something arrived already.
type connLeg struct {
	net.Conn
	early []byte
	going <-chan struct{}
}

func (l *connLeg) Read(p []byte) (int, error) {
	if len(l.early) > 0 {
		n := copy(p, l.early)
		l.early = l.early[n:]
		return n, nil
	}
	return l.Conn.Read(p)
}

// Break implements websocket.Leg.
func (l *connLeg) Break() { l.SetDeadline(time.Unix(1, 0)) }

// CloseWrite implements tunnel.Leg.
func (l *connLeg) CloseWrite() error {
	if half, ok := l.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errHalf
}

var errHalf = errors.New("the connection cannot be closed by half")

func (l *connLeg) leaving() <-chan struct{} { return l.going }

// relayLeg is a stream to another region: the body of a request, and of its answer.
type relayLeg struct {
	body io.ReadCloser
	pipe *io.PipeWriter
}

func (l *relayLeg) Read(p []byte) (int, error) {
	n, err := l.body.Read(p)
	if err != nil && err != io.EOF { // cut, mostly: another way may be open
		err = &websocket.Order{Code: websocket.CloseRestart, Reason: "the way to the upstream was cut: connect anew"}
	}
	return n, err
}

func (l *relayLeg) Write(p []byte) (int, error) { return l.pipe.Write(p) }

// CloseWrite implements tunnel.Leg.
func (l *relayLeg) CloseWrite() error { return l.pipe.Close() }

// Break implements websocket.Leg.
func (l *relayLeg) Break() {
	l.pipe.CloseWithError(net.ErrClosed)
	l.body.Close()
}

// relayed is the client of a stream to another region, where nothing is heard any more once the upstream has said all.
type relayed struct{ tunnel.Leg }

// CloseWrite implements tunnel.Leg.
func (l relayed) CloseWrite() error {
	if err := l.Leg.CloseWrite(); err != nil {
		return err
	}
	return tunnel.ErrLast
}

// handlerLeg is a stream from another region, as its handler has it.
type handlerLeg struct {
	r    io.Reader
	w    io.Writer
	rc   *http.ResponseController
	said atomic.Bool // all: the answer ends as its handler does, and is not broken off
}

func (l *handlerLeg) Read(p []byte) (int, error) { return l.r.Read(p) }

func (l *handlerLeg) Write(p []byte) (int, error) {
	n, err := l.w.Write(p)
	if err == nil {
		err = l.rc.Flush()
	}
	return n, err
}

// CloseWrite implements tunnel.Leg: the answer ends with its handler, and with it the request.
func (l *handlerLeg) CloseWrite() error {
	l.said.Store(true)
	return tunnel.ErrLast
}

// Break implements websocket.Leg.
func (l *handlerLeg) Break() {
	l.rc.SetReadDeadline(time.Unix(1, 0))
	if !l.said.Load() {
		l.rc.SetWriteDeadline(time.Unix(1, 0))
	}
}

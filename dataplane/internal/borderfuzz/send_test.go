package borderfuzz

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"net/http"
	"net/textproto"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"bailiwick/dataplane/internal/relay"
	"bailiwick/shared/identity"
)

func crc(s string) uint64 { return uint64(crc32.ChecksumIEEE([]byte(s))) }

// noise is randomness that a seed makes again.
type noise struct{ rng *rand.Rand }

func (n noise) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(n.rng.Uint32())
	}
	return len(p), nil
}

func (w *world) noise(rng *rand.Rand) noise { return noise{rng} }

// client is one of many who send, one request after the other.
type client struct {
	w     *world
	rng   *rand.Rand
	wires map[*edge]*wire
}

// one sends one request and judges the answer.
func (c *client) one() {
	s := &shot{}
	s.edge, s.service = c.w.aim(c.rng)
	if c.rng.IntN(50) == 0 {
		c.forged(s)
		return
	}
	q := c.w.forge(c.rng, s)
	edge, service := c.place(s)
	since := c.w.due(edge, service)
	c.w.judge.start(s)
	var status int
	var header http.Header
	if q.tail != "" || c.rng.IntN(3) == 0 && q.sni == "" {
		if s.expect == good && q.tail == "" && q.leave {
			q.leave = false
		}
		status, header = c.overWire(s, q)
	} else {
		status, header = c.direct(s, q)
	}
	c.w.stats.requests.Add(1)
	if status == 0 {
		if s.expect == good && !q.leave && since != 0 && since == c.w.due(edge, service) {
			c.w.stats.wanted.Add(1)
		}
		return
	}
	c.answer(s, q, status, header)
	if s.expect == good && !q.leave && since != 0 && since == c.w.due(edge, service) {
		c.w.stats.wanted.Add(1)
		if header.Get(headerUpstream) != "" {
			c.w.stats.served.Add(1)
		}
	}
}

func (c *client) place(s *shot) (edge, service int) {
	for i, e := range c.w.edges {
		if e == s.edge {
			edge = i
		}
	}
	for j, x := range services {
		if x == s.service {
			service = j
		}
	}
	return edge, service
}

// answer holds what the client is told against what happened.
func (c *client) answer(s *shot, q *request, status int, header http.Header) {
	j := c.w.judge
	upstream := header.Get(headerUpstream)
	if upstream == "" {
		c.w.stats.refused.Add(1)
		if got := header.Get(relay.HeaderServed); got == forgedServed[0] {
			j.breach("shot %d: an upstream's word for who served came through: %v", s.number, header)
		}
		return
	}
	c.w.stats.answered.Add(1)
	if upstream != s.edge.region {
		c.w.stats.relayed.Add(1)
	}
	switch {
	case s.expect == bad:
		j.breach("shot %d (%s %s) was answered by %s with %d, and nobody may", s.number, q.method, q.target, upstream, status)
	case s.served.Load() == nil:
		j.breach("shot %d has an answer of %s, which it never reached", s.number, upstream)
	case header.Get(relay.HeaderServed) != upstream || header.Get("Bailiwick-Edge") != s.edge.region:
		j.breach("shot %d: accepted by %s and served by %s, and the answer says %q and %q", s.number, s.edge.region, upstream, header.Get("Bailiwick-Edge"), header.Get(relay.HeaderServed))
	}
}

// overWire sends the bytes as a client would, to the server of cleartext HTTP.
func (c *client) overWire(s *shot, q *request) (int, http.Header) {
	x := c.wires[s.edge]
	if x == nil {
		x = s.edge.doors.dial()
		c.wires[s.edge] = x
	}
	drop := func() { x.conn.Close(); delete(c.wires, s.edge) }
	patience := 10 * time.Second
	if s.expect != good { // the server may wait for more of what has no more
		patience = 50 * time.Millisecond
	}
	x.conn.SetDeadline(time.Now().Add(patience))
	wrote := make(chan struct{})
	go func() { x.conn.Write(q.text(s.number)); close(wrote) }()
	resp, err := http.ReadResponse(x.in, &http.Request{Method: q.method})
	for err == nil && resp.StatusCode == http.StatusContinue {
		resp, err = http.ReadResponse(x.in, &http.Request{Method: q.method})
	}
	if err != nil {
		drop()
		<-wrote
		return 0, nil
	}
	_, err = io.Copy(io.Discard, resp.Body)
	if err != nil || resp.Close || s.expect != good || q.leave {
		drop() // what follows on a bent connection is not this request's
	}
	<-wrote
	return resp.StatusCode, resp.Header
}

// sink is the answer of a request that was handed over as the HTTP/2 and HTTP/3 servers do.
type sink struct {
	header http.Header
	sent   http.Header
	status int
}

func (s *sink) Header() http.Header { return s.header }
func (s *sink) Flush()              {}
func (s *sink) WriteHeader(status int) {
	if s.status == 0 {
		s.status, s.sent = status, s.header.Clone()
	}
}
func (s *sink) Write(p []byte) (int, error) {
	s.WriteHeader(http.StatusOK)
	return len(p), nil
}
func (s *sink) SetWriteDeadline(time.Time) error { return nil }
func (s *sink) SetReadDeadline(time.Time) error  { return nil }

// direct gives the handler a request as the HTTP/2 and HTTP/3 servers would have read it: the authority as Host,
// whatever else the client called itself in a header.
func (c *client) direct(s *shot, q *request) (status int, header http.Header) {
	ctx := context.Background()
	if q.leave {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(c.rng.IntN(3000))*time.Microsecond)
		defer cancel()
	}
	return c.through(ctx, s, q)
}

func (c *client) through(ctx context.Context, s *shot, q *request) (status int, header http.Header) {
	u, err := url.ParseRequestURI(q.target)
	if err != nil || strings.ContainsAny(q.method, " ") {
		return 0, nil
	}
	r := &http.Request{Method: q.method, URL: u, RequestURI: q.target, Host: q.host, Header: http.Header{headerShot: {strconv.FormatUint(s.number, 10)}},
		Proto: "HTTP/2.0", ProtoMajor: 2 + int(s.number%2), RemoteAddr: "192.0.2.7:999", Body: http.NoBody}
	sni := q.sni
	if sni == "" {
		sni = strings.ToLower(strings.TrimSuffix(strings.SplitN(q.host, ":", 2)[0], "."))
	}
	r.TLS = &tls.ConnectionState{HandshakeComplete: true, ServerName: sni}
	for _, h := range q.header {
		name := textproto.CanonicalMIMEHeaderKey(h[0])
		r.Header[name] = append(r.Header[name], h[1])
	}
	for _, h := range q.hosts {
		r.Header["Host"] = append(r.Header["Host"], h)
	}
	if len(q.body) > 0 || q.chunked {
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(q.body)), int64(len(q.body))
		if q.chunked {
			r.ContentLength = -1
		}
	}
	out := &sink{header: http.Header{}}
	defer func() {
		if p := recover(); p != nil && p != http.ErrAbortHandler {
			c.w.judge.breach("shot %d (%s %s): panic: %v", s.number, q.method, q.target, p)
		}
	}()
	s.edge.proxy.ServeHTTP(out, r.WithContext(ctx))
	return out.status, out.sent
}

// forged is a relay made by hand, with the certificate of a true edge: what an edge that was taken over could send.
// The receiver alone stands between it and the upstream.
func (c *client) forged(s *shot) {
	w, rng := c.w, c.rng
	s.forged, s.expect, s.service = true, unsure, pick(rng, services...)
	victim := w.edges[rng.IntN(len(w.edges))]
	for victim == s.edge {
		victim = w.edges[rng.IntN(len(w.edges))]
	}
	from := s.edge
	if rng.IntN(3) == 0 {
		from = w.edges[rng.IntN(len(w.edges))]
	}
	grant := from.leader.stolen(rng)
	if len(grant) > 0 && rng.IntN(4) == 0 {
		grant[rng.IntN(len(grant))] ^= byte(1 << rng.IntN(8))
	}
	home := pick(rng, s.edge.region, s.edge.region, from.region, victim.region, "")
	if rng.IntN(2) == 0 { // all of it true but the permission, perhaps
		home, from = s.edge.region, s.edge
		grant = from.leader.stolen(rng)
	}
	c.relay(s, victim, grant, home)
}

// err has a leader sign grants for regions in which their edges are not, and shows them where all else is true.
func (w *world) err(t testing.TB, rng *rand.Rand) {
	w.rules.heal()
	w.commit(t)
	w.everybody(t)
	c := &client{w: w, rng: rng}
	for _, e := range w.edges {
		grant, says, to, service := e.leader.erring(rng)
		if grant == nil || !within(cutBy, func() bool { return to.grants.Now().LeaveFor(time.Now()) > ttl/2 }) {
			continue
		}
		c.relay(&shot{edge: e, service: service, forged: true, expect: bad}, to, grant, says)
	}
}

// relay sends one by hand.
func (c *client) relay(s *shot, victim *edge, grant []byte, home string) {
	w, rng := c.w, c.rng
	w.judge.start(s)
	req, err := http.NewRequest(pick(rng, "GET", "POST", "HEAD"), "https://"+victim.relayAddr+"/v1/forged", nil)
	if err != nil {
		return
	}
	req.Host = s.service.host
	req.Header.Set(headerShot, strconv.FormatUint(s.number, 10))
	api := s.service.name
	if s.expect != bad {
		api = pick(rng, api, api, api, s.service.zone+"/"+api, "")
	}
	req.Header.Set(relay.HeaderAPI, api)
	req.Header.Set(relay.HeaderGrant, base64.StdEncoding.EncodeToString(grant))
	req.Header.Set(relay.HeaderHome, home)
	req.Header.Set(relay.HeaderRequestID, strconv.FormatUint(s.number, 16))
	resp, err := w.forger(s.edge).RoundTrip(req)
	w.stats.requests.Add(1)
	w.stats.forged.Add(1)
	if err != nil {
		return
	}
	io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
}

// forger speaks to any relay server with the certificate of an edge.
func (w *world) forger(e *edge) *http.Transport {
	w.forgersMu.Lock()
	defer w.forgersMu.Unlock()
	if w.forgers[e] == nil {
		var protocols http.Protocols
		protocols.SetHTTP2(true)
		w.forgers[e] = &http.Transport{Protocols: &protocols, TLSClientConfig: e.source.ClientTLS([]string{"h2"}, func(identity.Name) error { return nil }), ResponseHeaderTimeout: 3 * time.Second}
	}
	return w.forgers[e]
}

package proxy

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"runtime/debug"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"bailiwick/dataplane/internal/cache"
	"bailiwick/dataplane/internal/failover"
	"bailiwick/dataplane/internal/gate"
	"bailiwick/dataplane/internal/policy"
	"bailiwick/dataplane/internal/priority"
	"bailiwick/shared/table"
)

const (
	renewers        = 8    // stale answers asked for anew at a time
	renewalsWaiting = 1024 // beyond it an answer stays stale until the next request

	copying = 64 << 20 // bytes of answers that pass and are to be kept, at a time; beyond it they pass alone

	queueShare     = 4                      // a request waits for others' answers for a quarter of its time; halfway one of those who wait asks too
	queueMost      = 3                      // who ask for others in turn, each leaving before the answer, for whom a request waits
	leaderPatience = 300 * time.Millisecond // for a client to take, in all, an answer for which others wait
)

// caching is what the cache has to do with one request.
type caching struct {
	asked     cache.Asked
	rules     cache.Rules
	key       cache.Key
	entry     *cache.Entry // there is one, and it must be asked about first
	validates bool         // the request asks whether entry still holds
	changes   bool         // an unsafe method: what is kept of its URL goes
	flight    *cache.Flight
	unkept    bool // its answer is none to share
	copied    bool // it is being copied on its way, and others may wait for that
	said      bool // the flight has its word, and goes on without it
	slow      slowness
	about     cache.About
	sent      time.Time
	reason    string // why it went on to an upstream (RFC 9211)
}

// keeping is the route whose cache has to do with the request, nil if there is none: its own, or where it changes something
// the one whose answers are kept of its URL.
func (c *call) keeping(method, path string) *policy.Route {
	route := c.v.Route
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodOptions:
	default:
		route, _ = c.v.API.Route(http.MethodGet, path)
	}
	if c.p.cfg.Cache == nil || route == nil || route.Cache == nil {
		return nil
	}
	return route
}

// lookUp answers with what is kept, if it may. Else it says in x.cache what is to become of the upstream's answer.
func (x *exchange) lookUp(host string, of *policy.Route) (answered bool) {
	route, kept := of.Cache, x.p.cfg.Cache
	c := &caching{asked: cache.Ask(x.r.Method, x.header, x.body != nil), reason: "uri-miss",
		rules: cache.Rules{TTL: route.TTL, StaleWhileRevalidate: route.StaleWhileRevalidate, StaleIfError: route.StaleIfError, MaxBytes: route.MaxBytes}}
	x.cache = c
	c.key = x.cacheKey(host, of)
	c.about = cache.About{API: x.v.API.Name, URL: table.PurgeURL(host, x.r.URL.Path, x.r.URL.RawQuery)}
	if !x.heed() {
		c.asked.Bypass = true // somebody ended something, and this edge cannot read what
	}
	switch x.r.Method {
	case http.MethodGet, http.MethodHead:
	default:
		c.changes, c.reason = x.r.Method != http.MethodOptions, "method"
		return false
	}
	if c.asked.Bypass {
		c.reason = "bypass"
		return false
	}
	var until time.Time // it waits for others
	for waits, alone := 0, false; ; waits++ {
		now := time.Now()
		if e := kept.Get(c.key, x.header); e != nil && x.fits(e) {
			switch e.Judge(&c.asked, now) {
			case cache.Revalidate:
				x.p.renew(x, e)
				fallthrough
			case cache.Fresh:
				x.give(e, "", "hit")
				return true
			}
			if c.entry, c.reason = e, "stale"; e.Left(now) > 0 && !e.NoCache() {
				c.reason = "request" // which asks for more than that it be fresh
			}
		}
		if c.asked.OnlyIfCached() {
			x.keptOnly = true
			x.refuse(gate.NewProblem(504, gate.ReasonNotCached, "There is no kept answer to this request; ask without only-if-cached."))
			return true
		}
		if alone || waits >= queueMost || x.r.Method == http.MethodHead {
			break
		}
		flight, leads := kept.Join(c.key, now)
		if leads {
			c.flight = flight
		}
		if leads || flight == nil {
			break
		}
		if waits == 0 {
			until = now.Add(x.left(x.timeout()-now.Sub(x.began)) / queueShare)
		}
		alone = !x.await(flight, until)
		if !x.heed() {
			c.asked.Bypass, c.reason = true, "bypass"
			return false
		}
		if c.flight != nil {
			break
		}
	}
	x.validate()
	return false
}

// await waits for what another asks for, until then at most: what is left of the request's time must be enough to ask for it alone.
// Halfway one of those who wait asks too (x.cache.flight is set then): one upstream that hangs would else have all of them ask at
// once. next: nobody asks any more, and one of them may.
func (x *exchange) await(flight *cache.Flight, until time.Time) (next bool) {
	now := time.Now()
	half := min(flight.Left(now), until.Sub(now)/2)
	if half <= 0 {
		return false
	}
	timer := time.NewTimer(half)
	defer timer.Stop()
	for relieves := true; ; relieves = false {
		select {
		case <-flight.Done():
			return flight.Vacant()
		case <-x.r.Context().Done():
			return false
		case <-timer.C:
		}
		if !relieves {
			return false
		}
		if now = time.Now(); flight.Relieve(half, now) {
			x.cache.flight = flight
			return false
		}
		timer.Reset(until.Sub(now))
	}
}

// fits says whether the route lets an answer pass that is as long as an entry: it may have been kept before the bound was set.
func (x *exchange) fits(e *cache.Entry) bool {
	return !x.tooLong(int64(len(e.Body))) || x.r.Method == http.MethodHead || e.NotModified(&x.cache.asked)
}

// heed has the cache do what was purged by now: the request may have waited since it was given its table. false: what was purged
// cannot be read.
func (x *exchange) heed() bool {
	t, api := x.p.cfg.Tables.Load(), x.v.API.Name
	return x.p.cfg.Cache.Heed(api, t.Purges(api), t.Zone().Epoch, time.Now())
}

// validate makes the request ask about the entry that is there. What the client compares with is looked at afterwards.
func (x *exchange) validate() {
	if c := x.cache; c.entry != nil {
		delete(x.header, "If-None-Match")
		delete(x.header, "If-Modified-Since")
		c.validates = c.entry.Validate(x.header)
	}
	x.cache.sent = time.Now()
}

// unasked are the headers for another region: what is kept here is not what it is asked about, and its word on that would be
// no answer to the client.
func (x *exchange) unasked() http.Header {
	c := x.cache
	if c == nil || c.entry == nil {
		return x.header
	}
	h := maps.Clone(x.header) // another attempt may be reading it
	delete(h, "If-None-Match")
	delete(h, "If-Modified-Since")
	c.asked.Restore(h)
	return h
}

// still is what is left of an entry that was found some time ago; nil: it was purged since.
func (x *exchange) still(e *cache.Entry) *cache.Entry {
	if !x.heed() {
		return nil
	}
	return x.p.cfg.Cache.Still(e)
}

// cacheKey names what may answer this request: nothing of another zone, customer or epoch.
func (x *exchange) cacheKey(host string, of *policy.Route) cache.Key {
	scope := of.Cache.Scope
	if auth := x.v.API.Auth; scope == "" {
		if scope = "key"; auth != nil && auth.Anonymous && !x.v.ByToken() {
			scope = "subscription" // upstreams are told nothing of who asks, and cannot tell its keys apart
		}
	}
	var class string
	switch scope {
	case "all":
		class = "all"
	case "plan":
		class = "plan " + x.v.Plan
	case "customer":
		class = "customer " + x.v.Customer
	case "subscription":
		class = cache.Class("subscription", x.v.Customer, x.v.Subscription, x.v.Plan)
	default: // one that this edge does not know is the narrowest
		class = cache.Class("key", x.v.Customer, x.v.Subscription, x.v.Plan, x.v.KeyID)
	}
	if (scope == "customer" || scope == "subscription") && x.v.ByToken() { // its holder is one of the customer's many, often a person
		class += " key " + x.v.KeyID
	}
	scheme := "http"
	if x.r.TLS != nil { // upstreams are told, and some lead who came without to TLS: a loop for who came with it
		scheme = "https"
	}
	return cache.KeyOf(x.v.API.Zone, x.v.API.Name, strconv.FormatUint(x.table.Catalog().Epoch, 10), strconv.FormatUint(x.table.Zone().Epoch, 10),
		of.Name, strconv.FormatInt(of.Cache.Generation, 10), class, scheme, host, x.r.URL.EscapedPath(), x.r.URL.RawQuery)
}

// uncache lets others go on who wait for this request's answer, however it ended.
func (x *exchange) uncache() {
	c := x.cache
	if c == nil {
		return
	}
	x.looked()
	c.took()
	switch {
	case c.said:
	case c.unkept || !c.copied && !x.leaves():
		c.flight.End(c.unkept, time.Now())
	default:
		c.flight.Leave()
	}
}

// leaves says whether it is the client who ends the request before its answer is known: nothing follows from that for others.
func (x *exchange) leaves() bool { return x.gone() || x.taken.Load() || x.hurried() }

// slowness is how long a client takes for an answer that others wait for.
type slowness struct {
	timer *time.Timer // nil: it was given nothing
	since time.Time   // the last piece is on its way, zero: none is
	spent time.Duration
}

// hands begins to give the client a piece of the answer, and took ends it. Who does not take what is there must not keep others, who
// wait for a copy that cannot come any sooner.
func (c *caching) hands(now time.Time) {
	if c == nil || c.flight == nil || !c.copied || c.said {
		return
	}
	s := &c.slow
	s.since = now
	if left := max(leaderPatience-s.spent, 0); s.timer == nil {
		s.timer = time.AfterFunc(left, c.flight.Leave)
	} else {
		s.timer.Reset(left)
	}
}

func (c *caching) took() {
	if c == nil || c.slow.since.IsZero() {
		return
	}
	s := &c.slow
	c.said = !s.timer.Stop()
	s.spent += time.Since(s.since)
	s.since = time.Time{}
}

// give answers with an entry. served is the region whose upstream was asked about it; "": none was, and it is a hit.
func (x *exchange) give(e *cache.Entry, served, status string) {
	now := time.Now()
	if x.hit = served == ""; x.hit {
		if plan := x.table.Plan(x.v.Plan); plan != nil {
			x.free = slices.Contains(plan.FreeHits, x.v.API.Name)
		}
	}
	h := e.Header.Clone()
	h["Age"] = []string{strconv.FormatInt(int64(e.Age(now)/time.Second), 10)}
	h["Cache-Status"] = append(h["Cache-Status"], fmt.Sprintf("bailiwick; %s; ttl=%d", status, int64(e.Left(now)/time.Second)))
	resp := &http.Response{StatusCode: e.Status, Header: h, Body: io.NopCloser(bytes.NewReader(e.Body)), ContentLength: int64(len(e.Body))}
	switch {
	case e.NotModified(&x.cache.asked):
		resp.StatusCode, resp.Body, resp.ContentLength = http.StatusNotModified, http.NoBody, 0
		delete(h, "Content-Length")
	case e.Status != http.StatusNoContent:
		h["Content-Length"] = []string{strconv.Itoa(len(e.Body))}
	}
	watch := time.NewTimer(time.Hour) // of an upstream, and there is none
	x.deliver(&result{resp: resp, region: x.p.cfg.Region, watch: watch})
}

// keep looks at what the walk came to: it may be kept, renew what is, or be worse than what is. True: it was answered here.
func (x *exchange) keep(res *result) (answered bool) {
	c, kept := x.cache, x.p.cfg.Cache
	failed := res.resp == nil
	c.unkept = !failed || !x.leaves()
	defer func() { // now: its client may take long for what it is given
		switch {
		case c.unkept && failed:
			c.flight.Fail(time.Now())
			c.said = true
		case c.unkept:
			c.flight.End(true, time.Now())
		}
	}()
	var tags []string
	taggable := true
	if res.resp != nil {
		tags, taggable = cache.Tags(res.resp.Header)
	}
	if c.changes {
		if res.resp != nil && res.resp.StatusCode < 400 {
			kept.End(c.about, x.table.Zone().Epoch, time.Now()) // RFC 9111, 4.4
		}
		c.mark(res, "")
		return false
	}
	if (res.resp == nil || res.resp.StatusCode >= 500) && c.entry != nil && !x.gone() {
		if e := x.still(c.entry); e != nil && e.IfError(&c.asked, time.Now()) {
			status := "fwd=" + c.reason + failedAs(res)
			res.drop(nil)
			c.unkept = false // others in line get the same, and need not try in turn
			c.flight.End(false, time.Now())
			x.give(e, "", status)
			return true
		}
	}
	if res.resp == nil {
		return false
	}
	if c.asked.Bypass || res.region != x.p.cfg.Region { // what another region answered is kept nowhere (invariant 13)
		c.mark(res, "")
		return false
	}
	ans := cache.Answer{Status: res.resp.StatusCode, Header: http.Header{}, Sent: c.sent, Received: time.Now()}
	answerable(ans.Header, res.resp.Header)
	if ans.Status == http.StatusNotModified && c.validates {
		res.drop(nil)
		e := c.entry.Renewed(&c.asked, ans, c.rules)
		if e != nil && len(tags) > 0 {
			e = e.Under(c.about, tags).With(e.Body)
		}
		if e != nil && taggable {
			kept.Put(c.key, e)
			c.unkept = false
		} else {
			kept.Drop(c.key, time.Now())
			c.flight.End(true, time.Now())
			e = c.entry
		}
		x.give(e, res.region, "fwd="+c.reason+"; fwd-status=304")
		return true
	}
	e := cache.Keeps(&c.asked, x.header, ans, c.rules)
	most := c.rules.MaxBytes
	if most == 0 {
		most = cache.DefaultEntry
	}
	if bound := x.v.Route.MaxResponseBytes; bound > 0 {
		most = min(most, bound)
	}
	// Of an answer that ends with its connection nobody can tell whether it came whole (RFC 9112, 8). In HTTP/2 each has an end.
	endless := res.resp.ContentLength < 0 && len(res.resp.TransferEncoding) == 0 && res.resp.ProtoMajor < 2
	if e == nil || !taggable || endless || res.resp.ContentLength > most || len(res.resp.Trailer) > 0 || x.r.Method == http.MethodHead {
		c.mark(res, "")
		return false
	}
	k := &keeper{ReadCloser: res.resp.Body, x: x, c: c, kept: kept, entry: e.Under(c.about, tags), most: most, declared: res.resp.ContentLength, resp: res.resp, all: &x.p.copies}
	if !k.reserve(k.declared) {
		c.mark(res, "")
		return false
	}
	c.mark(res, "; stored")
	c.unkept, c.copied = false, true
	if k.declared == 0 || ans.Status == http.StatusNoContent {
		k.done()
	}
	res.resp.Body = k
	return false
}

// spare gives what is kept to a request that found no place at its API's upstreams, if it may be given in place of an error: an API
// that is short is what stale answers are for. No upstream was asked, and it is a hit. False: there is none.
func (x *exchange) spare() bool {
	c := x.cache
	if c.entry == nil || x.gone() {
		return false
	}
	e := x.still(c.entry)
	if e == nil || !e.IfError(&c.asked, time.Now()) {
		return false
	}
	x.v.RetryAfter = 0 // of the refusal that it is not
	x.give(e, "", "hit")
	return true
}

// failedAs is the status in whose place a kept answer is given, if there was one: with fwd, since what went on is no hit (RFC 9211, 2.1).
func failedAs(res *result) string {
	if res.resp == nil {
		return ""
	}
	return "; fwd-status=" + strconv.Itoa(res.resp.StatusCode)
}

// mark says in the answer what the cache made of the request (RFC 9211).
func (c *caching) mark(res *result, more string) {
	if res.resp != nil {
		h := res.resp.Header
		h["Cache-Status"] = append(slices.Clone(h["Cache-Status"]), "bailiwick; fwd="+c.reason+more)
	}
}

// keeper keeps a copy of a body on its way to the client, and of a whole one alone.
type keeper struct {
	io.ReadCloser
	x        *exchange
	c        *caching
	kept     *cache.Cache
	entry    *cache.Entry // nil: it is not to be kept, or is
	body     []byte
	most     int64
	declared int64
	resp     *http.Response
	all      *atomic.Int64 // bytes that all keepers hold
	held     int64         // of them, this one
}

// reserve takes room for so many bytes, all told, while there is any.
func (k *keeper) reserve(n int64) bool {
	more := n - k.held
	if more <= 0 {
		return true
	}
	if k.all.Add(more) > copying {
		k.all.Add(-more)
		return false
	}
	k.held += more
	return true
}

// forget ends the copy.
func (k *keeper) forget() {
	k.all.Add(-k.held)
	k.entry, k.body, k.held = nil, nil, 0
}

func (k *keeper) Close() error {
	k.forget()
	return k.ReadCloser.Close()
}

func (k *keeper) Read(p []byte) (int, error) {
	n, err := k.ReadCloser.Read(p)
	if k.entry == nil {
		return n, err
	}
	if int64(len(k.body)+n) > k.most || !k.reserve(int64(len(k.body)+n)) {
		k.fail()
		return n, err
	}
	if k.body == nil && k.declared > 0 {
		k.body = make([]byte, 0, k.declared)
	}
	k.body = append(k.body, p[:n]...)
	if whole := int64(len(k.body)) == k.declared; whole || err == io.EOF && k.declared < 0 {
		k.done()
	} else if err != nil && !k.x.leaves() {
		k.fail()
	}
	return n, err
}

// fail ends a copy that comes to nothing by the answer's doing: nobody waits for it any longer.
func (k *keeper) fail() {
	k.forget()
	k.c.unkept, k.c.copied = true, false
	k.c.flight.End(true, time.Now())
}

// done keeps the answer before its last byte is passed on: whoever has it whole finds it here.
func (k *keeper) done() {
	if len(k.resp.Trailer) > 0 { // of which nobody was told
		k.fail()
		return
	}
	body := k.body
	if k.declared < 0 {
		body = bytes.Clone(body) // without the room that it grew into
	}
	k.kept.Put(k.c.key, k.entry.With(body))
	k.c.copied = false
	k.c.flight.End(false, time.Now()) // if it was not that of the key any more
	k.forget()
}

// renewal is a stale answer that was given and is to be asked for anew.
type renewal struct {
	api    *policy.API
	route  *policy.Route
	table  *policy.Table
	r      *http.Request
	header http.Header
	c      caching
}

// renew asks Run for it, once at a time and if there is room.
func (p *Proxy) renew(x *exchange, e *cache.Entry) {
	flight, leads := p.cfg.Cache.Join(x.cache.key, time.Now())
	if !leads {
		return
	}
	t := renewal{api: x.v.API, route: x.v.Route, table: x.table, header: x.header.Clone(), c: *x.cache,
		r: &http.Request{Method: http.MethodGet, URL: x.r.URL, Host: x.r.Host, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1}}
	t.c.entry, t.c.reason, t.c.flight, t.c.asked = e, "stale", flight, cache.Ask(http.MethodGet, nil, false)
	if len(x.header["Authorization"]) > 0 {
		t.c.asked = cache.Ask(http.MethodGet, http.Header{"Authorization": {""}}, false)
	}
	delete(t.header, "X-Forwarded-For") // it is nobody's request now
	delete(t.header, "Cache-Control")
	delete(t.header, "Pragma")
	select {
	case p.stale <- t:
	default:
		flight.End(false, time.Now())
	}
}

// Run renews stale answers until ctx ends, and looks at connections that last. Stale answers are asked of this region's upstreams
// alone, and counted for nobody.
func (p *Proxy) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { p.judgeAll(ctx) })
	for range renewers {
		wg.Go(func() {
			for {
				select {
				case <-ctx.Done():
					return
				case t := <-p.stale:
					p.ask(ctx, t)
				}
			}
		})
	}
	wg.Wait()
	return nil
}

func (p *Proxy) ask(ctx context.Context, t renewal) {
	defer func() {
		// An answer that breaks off is passed on as http.ErrAbortHandler. Whatever else: as in a handler it is one request's
		// end, and not the edge's.
		if r := recover(); r != nil && r != http.ErrAbortHandler {
			slog.NewLogLogger(p.cfg.Logger.Handler(), slog.LevelError).Print("panic asking for an answer anew\n", string(debug.Stack()))
		}
	}()
	// In line for long perhaps: what the API was then may be no word of its zone's any more.
	if api := p.cfg.Tables.Load().APIOf(t.api.Zone, t.api.Name); api != t.api {
		t.c.flight.End(false, time.Now())
		return
	}
	c := &call{relayed: true} // counted by nobody, and no outcome of a client's
	c.begin(p, "")
	c.table, c.v.API, c.v.Route, c.v.Class = t.table, t.api, t.route, priority.Free
	c.budget = p.budget(t.api)
	if !c.squeeze() { // the next request for it has it asked for again
		t.c.flight.End(false, time.Now())
		return
	}
	defer c.release() // whatever comes of it
	ctx, cancel := context.WithTimeout(ctx, c.timeout())
	defer cancel()
	x := exchange{call: c, w: nowhere{}, r: t.r.WithContext(ctx), header: t.header, cache: &t.c}
	defer x.uncache()
	x.header["X-Request-Id"] = []string{c.name()}
	x.validate()
	var a failover.Attempts = p.local.Start(t.api, t.route, false)
	x.stands(&a)
	x.answer(&a, nil)
}

// nowhere is where the answer to nobody goes.
type nowhere struct{}

func (nowhere) Header() http.Header         { return http.Header{} }
func (nowhere) Write(b []byte) (int, error) { return len(b), nil }
func (nowhere) WriteHeader(int)             {}
func (nowhere) Flush()                      {}

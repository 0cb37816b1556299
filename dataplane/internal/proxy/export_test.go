package proxy

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"
	"unsafe"

	"bailiwick/dataplane/internal/failover"
	"bailiwick/dataplane/internal/gate"
	"bailiwick/dataplane/internal/http1"
	"bailiwick/dataplane/internal/policy"
	"bailiwick/dataplane/internal/priority"
	"bailiwick/dataplane/internal/upstream"
	"bailiwick/shared/table"
	"bailiwick/shared/usage"
)

// Kept is a body kept to be sent again, a reader of it as a transport has one, and its end.
func Kept(data []byte, room *atomic.Int64) (r io.Reader, wipe func()) {
	b := &body{kept: data, length: int64(len(data))}
	room.Add(b.length)
	return b.reader(nil), func() { b.wipe(room) }
}

// DecideAndCount is a request's decision and row, in a call that is used again; nothing is sent.
func (p *Proxy) DecideAndCount(host, path, key string) func() usage.Outcome {
	c := &call{}
	keys := []string{key}
	a := &asked{}
	return func() usage.Outcome {
		c.reset()
		c.begin(p, "192.0.2.1")
		*a = asked{Request: gate.Request{Host: host, Method: "GET", Path: path, APIKey: keys}}
		defer c.close()
		if problem := c.decide(context.Background(), a); problem.Status != 0 {
			return 0
		}
		c.served, c.status = p.cfg.Region, 200
		c.count(usage.OutcomeSuccess)
		return c.kept.Outcome
	}
}

// Hinted has an early answer's head read and passed on, more often than may be; taken: it is one that reads. told is what the
// client heard.
func Hinted(said []byte) (links []string, told []http.Header, taken bool) {
	end, err := http1.Scan(said, 0)
	if err != nil || end == 0 {
		return nil, nil, false
	}
	var a http1.Answer
	if a.Parse(string(said[:end]), http.MethodGet) != nil || a.Status != http.StatusEarlyHints {
		return nil, nil, false
	}
	links = linksOf(a.Fields)
	w := &hearer{head: http.Header{"X-Answer": {"to come"}}}
	x := &exchange{call: &call{}, w: w, r: &http.Request{ProtoMajor: 1, ProtoMinor: 1}}
	for range hintsMost + 2 {
		x.hint(links)
	}
	if len(w.head) != 1 {
		panic("the answer's head is lost")
	}
	return links, w.told, true
}

// hearer is a client that keeps what it is told.
type hearer struct {
	head http.Header
	told []http.Header
}

func (e *hearer) Header() http.Header         { return e.head }
func (e *hearer) Write(p []byte) (int, error) { return len(p), nil }
func (e *hearer) WriteHeader(int)             { e.told = append(e.told, e.head.Clone()) }

// Copying are the bytes of answers that pass and are to be kept, n of them more.
func (p *Proxy) Copying(n int64) int64 { return p.copies.Add(n) }

// Poison is a renewal that panics.
func (p *Proxy) Poison() { p.stale <- renewal{} }

// MostCopied is their bound.
const MostCopied = copying

// Forwarded says whether a request's header goes upstream as it is, by the rules of an exchange and by those of the common
// road, where it takes part in that.
func Forwarded(name string) (exchanged, common bool) {
	canonical := http.CanonicalHeaderKey(name)
	out := forwardable(http.Header{canonical: {"x"}})
	is := classOf(name)
	return len(out[canonical]) > 0, is != stays && is != claimed
}

// Answered says likewise of an answer's header.
func Answered(name string) (exchanged, common bool) {
	out := http.Header{}
	canonical := http.CanonicalHeaderKey(name)
	answerable(out, http.Header{canonical: {"1"}})
	is := classOf(name)
	return len(out[canonical]) > 0, is != stays && is != hidden || canonical == "Content-Length"
}

// Names are those of headers that some rule is about.
func Names() (names []string) {
	for name := range hop {
		names = append(names, name)
	}
	for name := range claims {
		names = append(names, name)
	}
	for _, beginning := range claiming {
		names = append(names, beginning, beginning+"Anything")
	}
	return names
}

// Budgets says whether two APIs have a budget each.
func Budgets(p *Proxy, a, b *policy.API) bool {
	return p.budget(a) != p.budget(b) && p.budget(a) == p.budget(a)
}

// KeptBudgets is how many APIs have one.
// Under is how many requests an API's upstreams work on.
func Under(p *Proxy, api *policy.API) int { return p.budget(api).flow.Stats().Under }

func KeptBudgets(p *Proxy) int { return len(p.budgets.all()) }

// Enter takes a place at an API's upstreams; leave gives it back.
func Enter(ctx context.Context, p *Proxy, api *policy.API, c priority.Class) (leave func(), ok bool) {
	ticket, ok := p.budget(api).flow.Enter(ctx, c, priority.Bounds{Min: 1, Max: 1})
	return func() { ticket.Leave(priority.Untold) }, ok
}

// Whose is by whom a request is taken back that another region's edge has sent.
func Whose(p *Proxy, r *http.Request, from string) string {
	return (&exchange{call: &call{p: p, relayed: true}, r: r, from: from}).whose()
}

// Retries takes as many retries as an API's budget has at a moment, after n requests earned some.
func (p *Proxy) Retries(api *policy.API, n int, now time.Duration) (taken int) {
	b := p.budget(api)
	for range n {
		b.earn()
	}
	for ; b.take(now); taken++ {
	}
	return taken
}

// Pools is how many places there are connections for, and that of at made if there was none.
func (u *Upstreams) Pools(at upstream.Place) int {
	u.pool(at)
	u.mu.RLock()
	defer u.mu.RUnlock()
	return len(u.pools) + len(u.left)
}

// HostPort is where a cleartext target's common requests are dialled; "": none goes there.
var HostPort = hostPort

// Within reads a small body of n bytes from c within d.
func Within(c net.Conn, n int64, d time.Duration) bool {
	return (&conn{rwc: c, buf: make([]byte, 2*n)}).within(n, d)
}

// Preamble is the first line of a connection that is no HTTP.
var Preamble = preamble

// What reads requests before anything is decided.
var (
	CanonicalHost = canonicalHost
	Ambiguous     = ambiguous
)

// Forwardable is what goes on of a request's header.
func Forwardable(in http.Header) http.Header {
	sever(in)
	return forwardable(in)
}

// Conceals says whether a query shows a key under a name, Concealed what of it goes on.
func Conceals(query, name string) bool {
	return len(shown{&http.Request{URL: &url.URL{RawQuery: query}}}.Query(name)) > 0
}

func Concealed(query, name string) string {
	x := &exchange{r: &http.Request{URL: &url.URL{RawQuery: query}}}
	x.conceal(&table.Auth{KeyQuery: name})
	return x.r.URL.RawQuery
}

// Gratis asks for n things without a key for an address, and says how many it gets.
func (p *Proxy) Gratis(client string, n int, now time.Duration) (got int) {
	for range n {
		if p.gratis.take(client, now) {
			got++
		}
	}
	return got
}

// GratisPlace is what an address shares with others.
func (p *Proxy) GratisPlace(client string) uint64 { return p.gratis.place(neighbour(client)) }

// Age is how long the proxy has been there.
func (p *Proxy) Age() time.Duration { return time.Since(p.start) }

// Pace is how fast a client sends.
type Pace struct{ pace }

// NewPace is that of one that has sent nothing.
func NewPace() *Pace { return &Pace{} }

// Wait waits for n bytes.
func (p *Pace) Wait(d time.Duration, n int) {
	p.begin(time.Now())
	time.Sleep(d)
	p.end(time.Now(), n)
}

// Stop is the end of its body.
func (p *Pace) Stop() { p.stop() }

// Slow says whether it is slow.
func (p *Pace) Slow(rate int64, window time.Duration) bool {
	return p.slow(time.Now(), rate, window)
}

// Bound bounds connections over QUIC, and those of one address.
func (d *Door3) Bound(most, each int) { d.quics = newGuests(most, each) }

// Guests is how many connections are counted, of all doors and of those over QUIC.
func (d *Door3) Guests() (all, quics int) {
	for g, n := range map[*guests]*int{d.guests: &all, d.quics: &quics} {
		g.mu.Lock()
		*n = g.total
		g.mu.Unlock()
	}
	return all, quics
}

// KeepsID says whether a call that lasts keeps the memory in which a key's id was found.
func KeepsID(t *policy.Table, id string) bool {
	c := &call{table: t}
	c.v.KeyID = id
	x := &exchange{call: c, header: http.Header{}}
	x.identify(nil)
	c.lasts()
	for _, kept := range [...]string{c.v.KeyID, x.header["Bailiwick-Key"][0]} {
		if unsafe.StringData(kept) == unsafe.StringData(id) || kept != id {
			return true
		}
	}
	return false
}

// FoundByALoop says whether a loop that has found a place's pool finds the same one again, and whether it still does when that was
// dropped.
func (u *Upstreams) FoundByALoop(at upstream.Place) (same, stale bool) {
	t, target := &turn{}, &failover.Target{At: at}
	first, _ := t.pool(u, target)
	again, _ := t.pool(u, target)
	u.mu.Lock()
	u.drop(at)
	u.mu.Unlock()
	anew, _ := t.pool(u, target)
	return first != nil && again == first, anew == nil || anew == first
}

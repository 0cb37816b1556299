package proxy

import (
	"sync/atomic"
	"time"

	"bailiwick/dataplane/internal/gate"
	"bailiwick/dataplane/internal/http2"
	"bailiwick/dataplane/internal/http3"
	"bailiwick/dataplane/internal/priority"
	"bailiwick/shared/usage"
)

// What metrics say of requests. Each name is one of a closed list, written here or in the package that has the words: nothing
// that a request brought becomes one.
var (
	// CountedProtocols are what brings requests; "relay" is another region's edge.
	CountedProtocols = [...]string{"tcp", "1.1", "2", "3", "relay"}
	// CountedOutcomes are those of usage rows; "uncounted" has none: nobody is known who could be billed.
	CountedOutcomes = [...]string{"uncounted", usage.OutcomeSuccess.String(), usage.OutcomeClientError.String(), usage.OutcomeUpstreamError.String(), usage.OutcomeAborted.String(),
		usage.OutcomeLimited.String(), usage.OutcomeRefused.String(), usage.OutcomeUnserved.String()}
	// CacheResults are what came of looking for a kept answer: one was there, or why an upstream was asked (RFC 9211).
	CacheResults = [...]string{"hit", "uri-miss", "stale", "bypass", "method"}
	// LatencyBounds are upper ends of the histogram of how long requests took, in seconds.
	LatencyBounds = [...]float64{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10}
)

// counts are of requests that are over, since the start. They lie in shards: two processors that count into one place wait for
// each other's caches.
type counts struct {
	shards  [8]shard
	refused map[string]*atomic.Int64 // by reason; never written to
}

type shard struct {
	ended   [len(CountedProtocols)][len(CountedOutcomes)]atomic.Int64
	cached  [len(CacheResults)]atomic.Int64
	took    [len(LatencyBounds) + 1]atomic.Int64
	seconds atomic.Int64 // Σ, in µs
	_       [64]byte
}

func newCounts() (c *counts) {
	c = &counts{refused: map[string]*atomic.Int64{}}
	for _, reason := range gate.Reasons() {
		c.refused[reason] = new(atomic.Int64)
	}
	return c
}

// total counts a call that is over.
func (c *call) total() {
	s := &c.p.counts.shards[c.id[15]%8]
	protocol := int(c.proto)
	switch {
	case c.relayed:
		protocol = len(CountedProtocols) - 1
	case protocol >= len(CountedProtocols)-1:
		protocol = 0
	}
	outcome := 0
	if c.counted {
		if outcome = int(c.kept.Outcome); outcome >= len(CountedOutcomes) {
			outcome = 0
		}
		i, us := 0, c.kept.LatencyUS
		for i < len(LatencyBounds) && us > latencyUS[i] {
			i++
		}
		s.took[i].Add(1)
		s.seconds.Add(us)
	}
	s.ended[protocol][outcome].Add(1)
	if c.reason != "" {
		if n := c.p.counts.refused[c.reason]; n != nil {
			n.Add(1)
		}
	}
}

var latencyUS = func() (us [len(LatencyBounds)]int64) {
	for i, s := range LatencyBounds {
		us[i] = int64(s * 1e6)
	}
	return us
}()

// looked counts what came of looking for a kept answer.
func (x *exchange) looked() {
	result := "hit"
	if !x.hit {
		result = x.cache.reason
	}
	for i, name := range CacheResults {
		if name == result {
			x.p.counts.shards[x.id[15]%8].cached[i].Add(1)
			return
		}
	}
}

// Ended is how many requests of a protocol ended so, by their places in the lists.
func (p *Proxy) Ended(protocol, outcome int) (n int64) {
	for i := range p.counts.shards {
		n += p.counts.shards[i].ended[protocol][outcome].Load()
	}
	return n
}

// Refused is how often the edge itself answered for a reason.
func (p *Proxy) Refused(reason string) int64 {
	if n := p.counts.refused[reason]; n != nil {
		return n.Load()
	}
	return 0
}

// Looked is how often looking for a kept answer came to a result, by its place in CacheResults.
func (p *Proxy) Looked(result int) (n int64) {
	for i := range p.counts.shards {
		n += p.counts.shards[i].cached[result].Load()
	}
	return n
}

// Took is how long requests with a row took: how many within each of LatencyBounds and no lower one, and beyond, and the sum.
func (p *Proxy) Took() (each [len(LatencyBounds) + 1]int64, sum time.Duration) {
	for i := range p.counts.shards {
		s := &p.counts.shards[i]
		for j := range s.took {
			each[j] += s.took[j].Load()
		}
		sum += time.Duration(s.seconds.Load()) * time.Microsecond
	}
	return each, sum
}

// Shed is how many requests of a class were turned away because an API's upstreams, or this edge, were short.
func (p *Proxy) Shed(c priority.Class) (upstreams, edge int64) {
	p.budgets.mu.Lock()
	defer p.budgets.mu.Unlock()
	upstreams = p.budgets.shed[c]
	for _, b := range p.budgets.all() {
		upstreams += b.flow.Stats().Shed[c]
	}
	return upstreams, p.seats.Shed(c)
}

// InFlight is how many requests of clients are under way, and how many may be.
func (p *Proxy) InFlight() (taken, most int64) { return p.seats.Taken(), p.seats.Most() }

// Connections says of all doors how many connections there are and may be, and what became of all that came.
type Connections struct {
	Open, Most       int64
	Taken            int64 // since the start
	Crowded, Full    int64 // refused: their address had as many as it may, or all had
	Yielded          int64 // waited for a request, and went for a new one
	HandshakesFailed int64
	Sought, Vain     int64 // times that a loop looked for an upstream's answer before it slept: it came, it did not
}

// Connections are those of all doors.
func (s *Servers) Connections() Connections {
	g := s.HTTPS.guests
	g.mu.Lock()
	c := Connections{Open: int64(g.total), Most: int64(g.most), Taken: g.taken, Crowded: g.crowded, Full: g.full, Yielded: g.yielded}
	g.mu.Unlock()
	if s.H3 != nil {
		q := s.H3.quics // who has no place among these has not asked for one among all
		q.mu.Lock()
		c.Crowded, c.Full, c.Yielded = c.Crowded+q.crowded, c.Full+q.full, c.Yielded+q.yielded
		q.mu.Unlock()
	}
	c.HandshakesFailed = s.HTTPS.unshaken.Load()
	for _, d := range [...]*Door{s.HTTPS, s.HTTP} {
		if d != nil {
			came, vain := d.sought()
			c.Sought, c.Vain = c.Sought+came, c.Vain+vain
		}
	}
	return c
}

// HTTP2 counts connections over HTTP/2, HTTP3 those over HTTP/3.
func (s *Servers) HTTP2() http2.Counts { return s.HTTPS.two.Counts() }
func (s *Servers) HTTP3() http3.Counts { return s.H3.three.Counts() }

// Idle is how many connections to upstreams wait for a request, of those that common requests use.
func (u *Upstreams) Idle() (n int64) {
	u.mu.RLock()
	defer u.mu.RUnlock()
	for _, p := range u.pools {
		if p.origin != nil {
			p.origin.mu.Lock()
			n += int64(len(p.origin.idle))
			p.origin.mu.Unlock()
		}
	}
	return n
}

// Count is how many upstreams there are connections to.
func (u *Upstreams) Count() int64 {
	u.mu.RLock()
	defer u.mu.RUnlock()
	return int64(len(u.pools))
}

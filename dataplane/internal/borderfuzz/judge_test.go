package borderfuzz

import (
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"bailiwick/dataplane/internal/relay"
)

// What is expected of a shot.
const (
	good   = iota // it must be served if anybody may serve it
	unsure        // it may be served, as what it is or as nothing
	bad           // it must reach no upstream
)

// shot is one request on its way.
type shot struct {
	number  uint64
	edge    *edge // that accepts it, or whose certificate relays it
	service *service
	expect  int
	forged  bool // a relay made by hand, past the sender's checks
	began   time.Time
	served  atomic.Pointer[string] // region of the upstream that it reached last
	held    *held                  // nil: it is answered and over
}

// abortIn is how long what was under way when a tightening came into force may go on (invariant 11).
const abortIn = time.Second

// truth is what was permitted when. It is the judge's own record, made from the lists of rules.
type truth struct {
	mu sync.RWMutex // covers flows
	// flows has each flow that ever was permitted, and since when it is in force that it is not: zero while it is.
	flows map[flow]closing
}

type closing struct {
	at    time.Time // by whatever end came first
	there time.Time // by the receiver's word; zero: it has not been told, and an edge that cheats may still relay to it
}

// judge counts, and remembers what went wrong.
type judge struct {
	truth truth
	ring  [1 << 16]atomic.Pointer[shot]
	next  atomic.Uint64

	waited func(since time.Time) bool // whether the machine let this process wait meanwhile

	rows sync.Map // request id and target → recorded; written by senders before they relay
	keep chan string

	arrived, relayed, foreign atomic.Int64 // requests at upstreams; of them from other regions, and from other zones

	mu       sync.Mutex // covers breaches
	breaches []string
}

// recorded is an evidence row.
type recorded struct {
	grant, from, to string
}

const rowsKept = 1 << 16

func newJudge() *judge {
	return &judge{truth: truth{flows: map[flow]closing{}}, keep: make(chan string, rowsKept), waited: func(time.Time) bool { return false }}
}

func (j *judge) breach(format string, args ...any) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.breaches) < 20 {
		j.breaches = append(j.breaches, fmt.Sprintf(format, args...))
	}
}

func (j *judge) failed() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return len(j.breaches) > 0
}

// start registers a shot before its first byte leaves.
func (j *judge) start(s *shot) {
	s.number = j.next.Add(1)
	s.began = time.Now()
	j.ring[s.number%uint64(len(j.ring))].Store(s)
}

// Relay is the evidence log of every edge.
func (j *judge) Relay(id, grant, from, to string) error {
	j.search("a row of evidence", id+" "+grant+" "+from+" "+to)
	id += ">" + to
	j.rows.Store(id, recorded{grant, from, to})
	for {
		select {
		case j.keep <- id:
			return nil
		default:
		}
		select {
		case old := <-j.keep: // of many requests ago
			j.rows.Delete(old)
		default:
		}
	}
}

// Refuse is what else goes into an evidence log, and from there to the control plane: names and an id.
func (j *judge) Refuse(rule, from, to, requestID string) {
	j.search("a refusal in the evidence", rule+" "+from+" "+to+" "+requestID)
	if zoneOf(to) == "" || len(rule) > 32 {
		j.breach("a refusal in the evidence is not made of names: rule %q, %q to %q", rule, from, to)
	}
}

const (
	headerShot     = "X-Shot"
	headerUpstream = "X-Upstream"
)

// saw judges a request that has reached an upstream. Here nothing of it can be taken back.
func (j *judge) saw(u *upstream, r *http.Request) *shot {
	now := time.Now()
	j.arrived.Add(1)
	number, err := strconv.ParseUint(r.Header.Get(headerShot), 10, 64)
	s := j.ring[number%uint64(len(j.ring))].Load()
	if err != nil || s == nil || s.number != number {
		j.breach("%s got a request that nobody sent: %s %s %v", u, r.Method, r.URL, r.Header)
		return &shot{}
	}
	s.served.Store(&u.region)
	what := fmt.Sprintf("shot %d (%s %s for %s), accepted by %s", s.number, r.Method, r.URL, s.service.host, s.edge.region)
	switch {
	case s.expect == bad:
		j.breach("%s got %s, which nobody may serve", u, what)
	case u.service.zone != s.edge.zone:
		j.breach("%s got %s, of another zone", u, what)
	case !s.forged && s.expect == good && u.service != s.service:
		j.breach("%s got %s, of another API", u, what)
	}
	j.headers(u, r, s, what)
	if u.region == s.edge.region {
		return s
	}
	j.relayed.Add(1)
	if zoneOf(u.region) != s.edge.zone {
		j.foreign.Add(1)
	}
	f := flow{u.service, s.edge.region, u.region}
	j.truth.mu.RLock()
	c, known := j.truth.flows[f]
	j.truth.mu.RUnlock()
	if s.forged {
		c.at = c.there
	}
	switch {
	case !known:
		j.breach("%s got %s, over a pair that never was", u, what)
	case c.at.IsZero():
	case s.began.After(c.at):
		j.breach("%s got %s, begun %v after the pair was shut in force", u, what, s.began.Sub(c.at))
	case now.Sub(c.at) > abortIn && (now.Sub(c.at) > cutBy || !j.waited(c.at)):
		j.breach("%s got %s %v after the pair was shut in force", u, what, now.Sub(c.at))
	}
	if s.forged {
		return s
	}
	row, ok := j.rows.Load(r.Header.Get("X-Request-Id") + ">" + u.region)
	if rec, _ := row.(recorded); !ok || rec.from != s.edge.region || rec.to != u.region {
		j.breach("%s got %s without a row of evidence for it: %v", u, what, row)
	} else if g, ok := s.edge.leader.given(rec.grant); !ok || g.from != s.edge.region || g.to != u.region {
		j.breach("%s got %s under grant %q, which its zone did not give for that", u, what, rec.grant)
	} else if s.began.After(g.end) {
		j.breach("%s got %s, begun %v after its grant had ended", u, what, s.began.Sub(g.end))
	}
	return s
}

// caller is what edges say of whoever has one of the keys here; each key has an id of its own.
var caller = map[string]string{relay.Identity[0]: "acme", relay.Identity[1]: "main", relay.Identity[2]: "gold"}

// headers: no credential and nothing that only edges may say.
func (j *judge) headers(u *upstream, r *http.Request, s *shot, what string) {
	for name, values := range r.Header {
		switch {
		case slices.Contains(relay.Identity[:], name):
			// Who asks, in the edge's own words, and never to another zone.
			if zoneOf(u.region) != s.edge.zone || s.forged || len(values) != 1 || caller[name] != "" && values[0] != caller[name] || strings.Contains(values[0], forgedMark) {
				j.breach("%s got %s with %s: %q", u, what, name, values)
			}
		case strings.HasPrefix(name, relay.Prefix) || strings.HasPrefix(strings.ReplaceAll(name, "_", "-"), relay.Prefix):
			j.breach("%s got %s with %s", u, what, name)
		case name == "X-Api-Key" || name == "Forwarded" || name == "X-Real-Ip" || name == "X-Original-Url":
			j.breach("%s got %s with the client's %s", u, what, name)
		}
		for _, v := range values {
			if strings.Contains(v, "bw_") {
				j.breach("%s got %s with a key in %s", u, what, name)
			}
			if strings.Contains(v, forgedMark) && (strings.HasPrefix(name, "X-Forwarded") || name == "X-Request-Id") {
				j.breach("%s got %s with the client's word for %s", u, what, name)
			}
		}
	}
}

// forgedMark is in every header that a client makes up about itself.
const forgedMark = "forged-by-client"

// leaks takes what edges log, down to the least of it: of what a request brought, nothing may be there.
type leaks struct{ *judge }

func (l leaks) Write(line []byte) (int, error) {
	l.search("a log line", string(line))
	return len(line), nil
}

// marks are of what only requests bring: keys, what clients say of themselves, bodies.
var marks = []string{"bw_emea_", "bw_us_", forgedMark, "bbbbbbbb"}

func (j *judge) search(where, text string) {
	for _, what := range marks {
		if strings.Contains(text, what) {
			j.breach("%s has %q of a request in it: %s", where, what, text)
		}
	}
}

// shut and open keep the truth. The first closing stands.
func (j *judge) shut(f flow, at time.Time, there bool) {
	j.truth.mu.Lock()
	defer j.truth.mu.Unlock()
	c, known := j.truth.flows[f]
	if !known {
		return
	}
	if c.at.IsZero() || at.Before(c.at) {
		c.at = at
	}
	if there && c.there.IsZero() {
		c.there = at
	}
	j.truth.flows[f] = c
}

func (j *judge) open(f flow) {
	j.truth.mu.Lock()
	defer j.truth.mu.Unlock()
	j.truth.flows[f] = closing{}
}

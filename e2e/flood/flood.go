// Package flood is clients that mean harm: each flood does one thing to an edge as fast as it can, or as slowly, over real
// connections, and says what came of it. Guest is a client beside them that behaves, and whose answers tell whether anybody was
// kept from being served. It owns the connections it opens, which end with the flood; it judges nothing, starts no edge and keeps
// nothing on disk. One Edge may be flooded by any number of goroutines at once.
package flood

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"bailiwick/shared/apikey"
)

// Edge is who is flooded. All fields but Lines and Few are required.
type Edge struct {
	HTTP, HTTPS, H3 string // addresses; H3 is of UDP
	Host            string // of an API whose paths are all routes
	Lines           string // host of an API that is tcp; "": the floods that need one are left out
	Few             string // host of one that has no route under Nowhere; "": likewise
	Zone            string // of keys
	Key             string // of a customer that floods, and may ask as much as it likes
	GuestKey        string // of one that behaves; empty: it is Key's
	Long            string // path of an answer of a MiB and more
}

// Nowhere begins the paths that no route of Few has.
const Nowhere = "/nowhere/"

// Flood is one thing that is done to an edge.
type Flood struct {
	Name    string
	Workers int // goroutines, each of which does it again and again
	do      func(ctx context.Context, e *Edge, t *Tally)
	lines   bool   // it needs Lines
	few     bool   // it needs Few
	Served  bool   // the edge may serve what it asks for
	Answer  string // the one that there is to all of it; "": the edge may end a connection, or say several things
}

// All are the floods for an edge, in the order in which they are written down.
func All(e *Edge) (all []Flood) {
	for _, f := range slices.Concat(overHTTP1, overTLS, overHTTP2, overHTTP3) {
		if (!f.lines || e.Lines != "") && (!f.few || e.Few != "") {
			all = append(all, f)
		}
	}
	return all
}

// Run floods until ctx ends.
func (f Flood) Run(ctx context.Context, e *Edge) *Tally {
	t := &Tally{came: map[string]int64{}}
	f.run(ctx, e, t)
	return t
}

func (f Flood) run(ctx context.Context, e *Edge, t *Tally) {
	var wg sync.WaitGroup
	for range f.Workers {
		wg.Go(func() {
			for ctx.Err() == nil {
				f.do(ctx, e, t)
			}
		})
	}
	wg.Wait()
}

// Tally is what a flood came to.
type Tally struct {
	sent atomic.Int64

	mu   sync.Mutex // covers the rest
	came map[string]int64
}

// Sent is how many requests, frames, connections or bytes that were: what the flood's name says.
func (t *Tally) Sent() int64 { return t.sent.Load() }

// Answers are what the edge said, and how often.
func (t *Tally) Answers() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	names := slices.SortedFunc(maps.Keys(t.came), func(a, b string) int { return int(t.came[b] - t.came[a]) })
	var out []string
	for i, name := range names {
		if i == 4 {
			out = append(out, "…")
			break
		}
		out = append(out, fmt.Sprintf("%s × %d", name, t.came[name]))
	}
	return strings.Join(out, ", ")
}

// Others is how often the edge said anything else.
func (t *Tally) Others(answer string) (n int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for said, times := range t.came {
		if said != answer {
			n += times
		}
	}
	return n
}

// Said is how often the edge said so.
func (t *Tally) Said(answer string) int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.came[answer]
}

func (t *Tally) say(answer string) {
	t.mu.Lock()
	t.came[answer]++
	t.mu.Unlock()
}

// dial opens a connection that ends with ctx, and that leaves nothing behind when it is closed: a flood of them would use up the
// ports.
func dial(ctx context.Context, at string) (net.Conn, func(), error) {
	c, err := (&net.Dialer{Timeout: 10 * time.Second}).DialContext(ctx, "tcp", at)
	if err != nil {
		pause(ctx, 10*time.Millisecond)
		return nil, nil, err
	}
	c.(*net.TCPConn).SetLinger(0)
	stop := context.AfterFunc(ctx, func() { c.Close() })
	return c, func() { stop(); c.Close() }, nil
}

// secure is dial with a handshake behind it.
func (e *Edge) secure(ctx context.Context, alpn string) (net.Conn, func(), error) {
	raw, end, err := dial(ctx, e.HTTPS)
	if err != nil {
		return nil, nil, err
	}
	c := tls.Client(raw, e.tls(alpn))
	if err := c.HandshakeContext(ctx); err != nil {
		end()
		pause(ctx, 10*time.Millisecond)
		return nil, nil, err
	}
	return c, end, nil
}

var sessions = tls.NewLRUClientSessionCache(16)

func (e *Edge) tls(alpn string) *tls.Config {
	return &tls.Config{InsecureSkipVerify: true, ServerName: e.Host, NextProtos: []string{alpn}, ClientSessionCache: sessions}
}

// stranger is a key by the letter that nobody has.
func (e *Edge) stranger() string {
	_, key, err := apikey.Mint(e.Zone, rand.Reader)
	if err != nil {
		panic(err) // the zone's name is none
	}
	return key.Reveal()
}

// atFew has do flood the API that has few routes.
func atFew(do func(context.Context, *Edge, *Tally)) func(context.Context, *Edge, *Tally) {
	return func(ctx context.Context, e *Edge, t *Tally) {
		few := *e
		few.Host = e.Few
		do(ctx, &few, t)
	}
}

// astray is a path that no route of Few has, and that nobody has asked for.
func astray() string { return Nowhere + rand.Text() }

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

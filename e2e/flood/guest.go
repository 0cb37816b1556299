package flood

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
)

// Guest is a client that behaves: it asks a hundred times a second, in turn over HTTP/1.1 in the clear, HTTP/1.1 over TLS, HTTP/2,
// HTTP/3, and over a new connection with TLS.
type Guest struct {
	roads []road

	mu     sync.Mutex // covers the rest
	took   []time.Duration
	failed map[string]int
}

type road struct {
	name, scheme string
	rt           http.RoundTripper
	over         func()
}

// Patience is how long a guest waits for an answer before he counts it as none.
const Patience = 10 * time.Second

const guestEvery = 10 * time.Millisecond

// NewGuest makes one of an edge; Close him.
func NewGuest(e *Edge) *Guest {
	g := &Guest{failed: map[string]int{}}
	over := func(name, scheme, at string, two, keeps bool) {
		var protocols http.Protocols
		protocols.SetHTTP1(!two)
		protocols.SetHTTP2(two)
		t := &http.Transport{Protocols: &protocols, DisableKeepAlives: !keeps, MaxIdleConnsPerHost: 64, TLSClientConfig: &tls.Config{InsecureSkipVerify: true, ServerName: e.Host},
			DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, network, at)
			}}
		g.roads = append(g.roads, road{name, scheme, t, t.CloseIdleConnections})
	}
	over("HTTP/1.1", "http", e.HTTP, false, true)
	over("HTTP/1.1 over TLS", "https", e.HTTPS, false, true)
	over("HTTP/2", "https", e.HTTPS, true, true)
	three := &http3.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, ServerName: e.Host}, Dial: func(ctx context.Context, _ string, t *tls.Config, q *quic.Config) (*quic.Conn, error) {
		return quic.DialAddrEarly(ctx, e.H3, t, q)
	}}
	g.roads = append(g.roads, road{"HTTP/3", "https", three, func() { three.Close() }})
	over("a new connection", "https", e.HTTPS, false, false)
	return g
}

// Close ends his connections.
func (g *Guest) Close() {
	for _, r := range g.roads {
		r.over()
	}
}

// Visit is what came of a guest's asking.
type Visit struct {
	Asked, Failed int
	P50, P99, Max time.Duration
	Why           map[string]int // how often what failed
}

// Run asks until ctx ends, at times of its own however long answers take.
func (g *Guest) Run(ctx context.Context, e *Edge) Visit {
	var wg sync.WaitGroup
	began := time.Now()
	for n := 0; ; n++ {
		due := began.Add(time.Duration(n) * guestEvery)
		pause(ctx, time.Until(due))
		if ctx.Err() != nil {
			break
		}
		r := g.roads[n%len(g.roads)]
		wg.Go(func() { g.ask(r, e, due) })
	}
	wg.Wait()
	g.mu.Lock()
	defer g.mu.Unlock()
	slices.Sort(g.took)
	v := Visit{Asked: len(g.took), Why: g.failed}
	for _, n := range g.failed {
		v.Failed += n
	}
	if n := len(g.took); n > 0 {
		v.P50, v.P99, v.Max = g.took[n/2], g.took[min(n*99/100, n-1)], g.took[n-1]
	}
	g.took, g.failed = nil, map[string]int{}
	return v
}

func (g *Guest) ask(r road, e *Edge, due time.Time) {
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	why := ""
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.scheme+"://"+e.Host+"/v1/guest", nil)
	if err == nil {
		req.Header.Set("X-API-Key", cmp.Or(e.GuestKey, e.Key))
		var resp *http.Response
		if resp, err = r.rt.RoundTrip(req); err == nil {
			var body []byte
			body, err = io.ReadAll(resp.Body)
			if resp.Body.Close(); resp.StatusCode != http.StatusOK {
				var problem struct{ Reason string }
				json.Unmarshal(body, &problem)
				why = fmt.Sprintf("%s: %d %s", r.name, resp.StatusCode, problem.Reason)
			}
		}
	}
	if err != nil {
		why = fmt.Sprintf("%s: %v", r.name, err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.took = append(g.took, time.Since(due))
	if why != "" {
		g.failed[why]++
	}
}

package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// customer is one account with what its clients know.
type customer struct {
	name, zone, key string
	quiet           bool  // nothing of it is in flight at a kill
	limit           int64 // of its strict quota; 0: none
	edges           []string

	sent, completed, unheard atomic.Int64

	flight sync.RWMutex // of a quiet one: held for reading by requests, for writing by faults
}

func (c *customer) plan() string {
	if c.limit > 0 {
		return "strict-" + c.name
	}
	return "unlimited"
}

// account is the end of it.
type account struct {
	Name      string `json:"name"`
	Zone      string `json:"zone"`
	Sent      int64  `json:"sent"`
	Unheard   int64  `json:"unheard"`   // no answer came to the end
	Completed int64  `json:"completed"` // answers of an upstream, read whole
	Counted   int64  `json:"counted"`
	Answered  int64  `json:"answered"`
	Law       string `json:"law"`
	Breach    string `json:"breach,omitempty"`
}

// upstream answers for one region and knows how often for whom.
type upstream struct {
	region  string
	address string

	mu   sync.Mutex // covers seen
	seen map[string]*atomic.Int64
}

func newUpstream(ctx context.Context, region string) (*upstream, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	u := &upstream{region: region, address: l.Addr().String(), seen: map[string]*atomic.Int64{}}
	server := &http.Server{Handler: u, ReadHeaderTimeout: time.Minute}
	context.AfterFunc(ctx, func() { server.Close() })
	go server.Serve(l)
	return u, nil
}

func (u *upstream) of(customer string) *atomic.Int64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	n := u.seen[customer]
	if n == nil {
		n = new(atomic.Int64)
		u.seen[customer] = n
	}
	return n
}

// ServeHTTP counts before the answer leaves: what anybody saw answered was counted.
func (u *upstream) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if strings.HasPrefix(r.UserAgent(), "bailiwick-probe") {
		return
	}
	io.Copy(io.Discard, r.Body)
	name, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/c/"), "/")
	u.of(name).Add(1)
	w.Header().Set("Content-Type", "text/plain")
	io.WriteString(w, "answered in "+u.region+"\n")
}

// load sends requests of all customers, so many a second, until ctx ends. A worker that waits sends nothing.
func (w *world) load(ctx context.Context, workers, perSecond int) {
	tokens := make(chan struct{}, workers)
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(tokens)
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		last, owed := time.Now(), 0.0
		for {
			select {
			case <-ctx.Done():
				return
			case now := <-tick.C:
				owed = min(owed+now.Sub(last).Seconds()*float64(perSecond), float64(workers))
				last = now
			}
			for ; owed >= 1; owed-- {
				select {
				case tokens <- struct{}{}:
				default:
				}
			}
		}
	})
	for n := range workers {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(w.o.seed, uint64(n)+1000))
			for range tokens {
				c := w.customers[rng.IntN(len(w.customers))]
				w.ask(c, c.edges[rng.IntN(len(c.edges))])
			}
		})
	}
	wg.Wait()
}

// ask sends one request of a customer through an edge, and returns the status; 0: no answer came to the end.
func (w *world) ask(c *customer, edge string) int {
	if c.quiet {
		c.flight.RLock()
		defer c.flight.RUnlock()
	}
	request, err := http.NewRequest(http.MethodGet, "https://orders."+c.zone+".example.test/c/"+c.name+"/x", nil)
	if err != nil {
		return 0
	}
	request.Header.Set("X-API-Key", c.key)
	c.sent.Add(1)
	w.sent.Add(1)
	response, err := w.client(edge).Do(request)
	if err == nil {
		_, err = io.Copy(io.Discard, response.Body)
		response.Body.Close()
	}
	switch {
	case err != nil:
		c.unheard.Add(1)
		return 0
	case response.Header.Get("Bailiwick-Served") != "":
		c.completed.Add(1)
	}
	return response.StatusCode
}

// useUp asks until every edge says that a strict quota is used up: what killed edges held must have come back.
func (w *world) useUp(c *customer) {
	deadline := time.Now().Add(2 * time.Minute)
	for refusals := 0; refusals < 2*len(c.edges); {
		for _, e := range c.edges {
			switch w.ask(c, e) {
			case http.StatusTooManyRequests:
				refusals++
			case http.StatusServiceUnavailable: // some units are on their way
				time.Sleep(20 * time.Millisecond)
				refusals = 0
			default:
				refusals = 0
			}
		}
		if time.Now().After(deadline) {
			w.breach("%s: its quota of %d is not used up, nor can be, after two minutes of quiet", c.name, c.limit)
			return
		}
	}
}

// client keeps connections to one edge.
func (w *world) client(address string) *http.Client {
	w.mu.Lock()
	defer w.mu.Unlock()
	if c := w.clients[address]; c != nil {
		return c
	}
	dialer := &net.Dialer{Timeout: 2 * time.Second}
	c := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: w.s.Roots()}, MaxIdleConnsPerHost: 64,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, network, address)
		}}}
	w.clients[address] = c
	return c
}

// still does something while nothing of the quiet customers is in flight.
func (w *world) still(do func()) {
	for _, c := range w.customers {
		if c.quiet {
			c.flight.Lock()
			defer c.flight.Unlock()
		}
	}
	do()
}

func newLines(r io.Reader) *bufio.Scanner { return bufio.NewScanner(r) }

package scenario_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"bailiwick/e2e/harness"
)

const lastingHost = "lasting.emea.example.test"

// TestLinger replaces an edge twice under requests that last: answers that are slow, events, uploads, a WebSocket, and streams whose bytes are
// sold while they go on. All go on as if nothing were, count once, and take of a strict quota no unit too many; who comes anew is
// served at once; a key that is revoked ends what it began in the process before too. When the process that counts for them is
// killed, they end, and nothing is counted that was not answered; when it stops in order, they have as long as its own.
func TestLinger(t *testing.T) {
	t.Parallel()
	s := harness.Start(t)
	up := newLastingUpstream(t)
	const quota, region, edge = 700, "eu-west", "eu-west-edge-1"
	s.MustCLI("emea", "apply", "--now", "--reason", "a test", "-f", writeFile(t, "lasting.yaml", fmt.Sprintf(`kind: API
name: lasting
spec:
  zone: emea
  hosts: [%s]
  policy: gdpr-emea
  routes:
    - {name: all, path_prefix: /, timeout: 60s}
    - {name: sold, path_prefix: /sold, units: {per_bytes: 1000, most: 150}}
    - {name: live, path_prefix: /live, websocket: {}}
  upstreams: [{region: eu-west, url: %q}]
---
kind: Product
name: lasting
spec: {apis: [lasting]}
---
kind: Plan
name: lasting
spec: {products: [lasting], quota: {units: %d, mode: strict}}
---
kind: Customer
name: lasting
spec: {zone: emea, subscriptions: [{plan: lasting}]}
---
kind: Customer
name: revoked
spec: {zone: emea, subscriptions: [{plan: lasting}]}
`, lastingHost, up.URL, quota)))
	_, key := s.NewKey("emea", "lasting", "lasting")
	revoked, other := s.NewKey("emea", "revoked", "lasting")
	admin := s.EdgeOf(region).Admin
	for _, k := range []string{key, other} {
		s.Eventually(30*time.Second, "the API at its edge", func() error {
			return ok(s.Do(region, http.MethodGet, lastingHost, "/", k, nil), region)
		})
	}
	before := func() (processes float64) {
		processes, _ = s.Metric(admin, "bailiwick_processes_before")
		return processes
	}
	h1, h2 := once(s, region, false), once(s, region, true)
	h3 := overHTTP3(t, s, region)
	h1.Timeout, h2.Timeout, h3.Timeout = 0, 0, 0

	var clients sync.WaitGroup
	answers := make(chan error, 32)
	lasts := func(c *http.Client, method, path, key string, body io.Reader, check func(*http.Response) error) {
		clients.Go(func() {
			answers <- lasting(c, method, path, key, body, check)
		})
	}
	whole := func(r *http.Response) error {
		body, err := io.ReadAll(r.Body)
		if err == nil && (r.StatusCode != http.StatusOK || !strings.HasSuffix(string(body), "the end")) {
			err = fmt.Errorf("status %d, and it ends with %.100q", r.StatusCode, body[max(0, len(body)-100):])
		}
		return err
	}
	for _, c := range []*http.Client{h1, h2, h3} {
		for range 3 {
			lasts(c, http.MethodPost, "/slow", key, strings.NewReader("{}"), whole)
		}
		lasts(c, http.MethodGet, "/events", key, nil, whole)
		lasts(c, http.MethodGet, "/sold", key, nil, whole)
		r, w := io.Pipe()
		clients.Go(func() {
			for !up.released() {
				if _, err := w.Write(make([]byte, 100)); err != nil {
					return
				}
				time.Sleep(50 * time.Millisecond)
			}
			w.Close()
		})
		lasts(c, http.MethodPost, "/upload", key, r, whole)
	}
	const under = 19
	clients.Go(func() { answers <- speaks(t.Context(), s, region, key, up.released) })
	cut := make(chan error, 1)
	clients.Go(func() { cut <- lasting(h1, http.MethodGet, "/events", other, nil, whole) })
	s.Eventually(20*time.Second, "all are at the upstream", func() error { return up.holds(under + 1) })
	for i := range 2 {
		began := time.Now()
		s.Act("replace", edge)
		a := s.Do(region, http.MethodGet, lastingHost, "/", key, nil)
		if err := ok(a, region); err != nil {
			t.Errorf("takeover %d: who comes anew: %v", i+1, err)
		}
		t.Logf("takeover %d, and an answer of the new one after %s", i+1, time.Since(began).Round(time.Millisecond))
		s.Eventually(10*time.Second, "the processes before are known", func() error {
			if n := before(); n != float64(i+1) {
				return fmt.Errorf("%v processes linger", n)
			}
			return nil
		})
		time.Sleep(3 * time.Second) // longer than a takeover leaves where nothing may go on
	}
	if err := up.holds(under + 1); err != nil {
		t.Errorf("after two takeovers: %v", err)
	}
	s.MustCLI("emea", "key", "revoke", revoked)
	select {
	case err := <-cut:
		if err == nil {
			t.Error("what a revoked key began ended as if it were well")
		}
	case <-time.After(10 * time.Second):
		t.Error("what a revoked key began goes on in a process before")
	}
	up.release()
	for range under {
		select {
		case err := <-answers:
			if err != nil {
				t.Errorf("it began before two takeovers: %v", err)
			}
		case <-time.After(30 * time.Second):
			t.Fatal("an answer does not come")
		}
	}
	s.Eventually(20*time.Second, "no process lingers", func() error {
		if n := before(); n != 0 {
			return fmt.Errorf("%v do", n)
		}
		return nil
	})
	answered := int64(1 + 2 + under) // the one that found the API, those of the takeovers, and these
	u := s.UsageThrough("emea", "lasting", time.Now(), time.Minute)
	if got := u.Answered(); got != answered {
		t.Errorf("%d requests were answered, %d are counted", answered, got)
	}
	if sold := up.sold(); u.Total.Units < sold || u.Total.Units > sold+answered {
		t.Errorf("%d units are counted; %d were sold by the byte, and %d requests cost one each", u.Total.Units, sold, answered-2)
	}
	// All of the quota, and not one unit more, though three processes have counted in it.
	left, served := int64(quota)-u.Total.Units, int64(0)
	s.Eventually(60*time.Second, "the quota is used up", func() error {
		a := s.Do(region, http.MethodGet, lastingHost, "/", key, nil)
		if ok(a, region) == nil {
			served++
			return errors.New("one more was served")
		}
		return refused(a, http.StatusTooManyRequests, "quota-exceeded")
	})
	if served != left {
		t.Errorf("%d more were served, want the %d that were left of %d", served, left, quota)
	}
	clients.Wait()

	// Who counts for them is killed.
	up.hold()
	s.Eventually(20*time.Second, "a key for what is cut", func() error {
		_, key = s.NewKey("emea", "revoked", "lasting")
		return nil
	})
	s.Eventually(20*time.Second, "it serves", func() error { return ok(s.Do(region, http.MethodGet, lastingHost, "/", key, nil), region) })
	counted := s.UsageThrough("emea", "revoked", time.Now(), time.Minute).Answered()
	for range 4 {
		lasts(h1, http.MethodPost, "/slow", key, strings.NewReader("{}"), whole)
	}
	s.Eventually(20*time.Second, "they are at the upstream", func() error { return up.holds(4) })
	s.Act("replace", edge)
	s.Act("kill", edge)
	for range 4 {
		select {
		case err := <-answers:
			if err == nil {
				t.Error("it was answered though nobody could count it")
			}
		case <-time.After(20 * time.Second):
			t.Fatal("it goes on though nobody counts for it")
		}
	}
	up.release()
	s.Act("start", edge)
	s.Eventually(30*time.Second, "the edge serves again", func() error { return ok(s.Do(region, http.MethodGet, lastingHost, "/", key, nil), region) })
	if got := s.UsageThrough("emea", "revoked", time.Now(), time.Minute).Answered() - counted; got != 1 {
		t.Errorf("%d requests are counted after the kill, want the one that was answered", got)
	}
	clients.Wait()

	// Who counts for them stops in order: they have the time that its own requests have.
	up.hold()
	for range 4 {
		lasts(h1, http.MethodPost, "/slow", key, strings.NewReader("{}"), whole)
	}
	s.Eventually(20*time.Second, "they are at the upstream", func() error { return up.holds(4) })
	s.Act("replace", edge)
	clients.Go(func() {
		time.Sleep(2 * time.Second)
		up.release()
	})
	s.Act("stop", edge)
	for range 4 {
		select {
		case err := <-answers:
			if err != nil {
				t.Errorf("when the edge stopped in order: %v", err)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("an answer does not come")
		}
	}
	s.Act("start", edge)
	if got := s.UsageThrough("emea", "revoked", time.Now(), time.Minute).Answered() - counted; got != 1+4 {
		t.Errorf("%d requests are counted after the stop, want those five that were answered", got)
	}
	clients.Wait()
}

func lasting(c *http.Client, method, path, key string, body io.Reader, check func(*http.Response) error) error {
	r, err := http.NewRequest(method, "https://"+lastingHost+path, body)
	if err != nil {
		return err
	}
	r.Header.Set("Authorization", "Bearer "+key)
	resp, err := c.Do(r)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	defer resp.Body.Close()
	if err := check(resp); err != nil {
		return fmt.Errorf("%s over %s: %w", path, resp.Proto, err)
	}
	return nil
}

// lastingUpstream holds what it is asked until it is released.
type lastingUpstream struct {
	*httptest.Server

	mu    sync.Mutex // covers the rest
	gate  chan struct{}
	under int
	bytes int64 // sold
}

func newLastingUpstream(t *testing.T) *lastingUpstream {
	u := &lastingUpstream{gate: make(chan struct{})}
	u.Server = httptest.NewServer(u)
	t.Cleanup(func() { u.release(); u.CloseClientConnections(); u.Close() })
	return u
}

func (u *lastingUpstream) hold() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.gate = make(chan struct{})
}

func (u *lastingUpstream) release() {
	u.mu.Lock()
	defer u.mu.Unlock()
	select {
	case <-u.gate:
	default:
		close(u.gate)
	}
}

func (u *lastingUpstream) held() chan struct{} {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.gate
}

func (u *lastingUpstream) released() bool {
	select {
	case <-u.held():
		return true
	default:
		return false
	}
}

// holds says whether so many requests are under way.
func (u *lastingUpstream) holds(n int) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.under != n {
		return fmt.Errorf("%d are, want %d", u.under, n)
	}
	return nil
}

// sold is how many units the bytes come to that were sold.
func (u *lastingUpstream) sold() int64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.bytes / 1000
}

func (u *lastingUpstream) add(n int, bytes int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.under += n
	u.bytes += int64(bytes)
}

func (u *lastingUpstream) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if strings.HasPrefix(r.UserAgent(), "bailiwick-probe") || r.URL.Path == "/" {
		return
	}
	u.add(1, 0)
	defer u.add(-1, 0)
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	gate := u.held()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	switch r.URL.Path {
	case "/live":
		c, err := (&websocket.Upgrader{}).Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer c.Close()
		for {
			kind, data, err := c.ReadMessage()
			if err != nil || c.WriteMessage(kind, data) != nil {
				return
			}
		}
	case "/slow":
		io.Copy(io.Discard, r.Body)
		select {
		case <-gate:
		case <-ctx.Done():
			return
		}
	case "/upload":
		if n, err := io.Copy(io.Discard, r.Body); err != nil || n == 0 {
			panic(http.ErrAbortHandler)
		}
	case "/events", "/sold":
		if r.URL.Path == "/events" {
			w.Header().Set("Content-Type", "text/event-stream")
		}
		out := bufio.NewWriter(w)
		for open := true; open; {
			select {
			case <-gate:
				open = false
			case <-ctx.Done():
				return
			case <-tick.C:
				fmt.Fprintf(out, "data: %s\n\n", strings.Repeat("x", 192))
				if out.Flush() != nil || http.NewResponseController(w).Flush() != nil {
					return
				}
				if r.URL.Path == "/sold" {
					u.add(0, 200)
				}
			}
		}
	}
	io.WriteString(w, "the end")
}

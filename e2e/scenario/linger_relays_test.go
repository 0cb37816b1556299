package scenario_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"bailiwick/e2e/harness"
)

// TestLinger_Relays replaces both ends of relays that last: the edge whose clients asked, twice, and the one in whose region they are
// answered. All go on and count once, and who comes anew is answered over the same pair. When the pair
// is closed those in processes before end, and it is in force as soon as with no process before.
func TestLinger_Relays(t *testing.T) {
	t.Parallel()
	s := harness.Start(t)
	up := newLastingUpstream(t)
	dead := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }))
	t.Cleanup(dead.Close)
	const region, edge, other, otherEdge = "eu-west", "eu-west-edge-1", "eu-central", "eu-central-edge-1"
	s.MustCLI("emea", "apply", "--now", "--reason", "a test", "-f", writeFile(t, "lasting.yaml", fmt.Sprintf(`kind: API
name: lasting
spec:
  zone: emea
  hosts: [%s]
  policy: gdpr-emea
  routes:
    - {name: all, path_prefix: /, timeout: 60s}
    - {name: live, path_prefix: /live, websocket: {}}
  upstreams: [{region: eu-west, url: %q}, {region: eu-central, url: %q}]
---
kind: Product
name: lasting
spec: {apis: [lasting]}
---
kind: Plan
name: lasting
spec: {products: [lasting]}
---
kind: Customer
name: lasting
spec: {zone: emea, subscriptions: [{plan: lasting}]}
`, lastingHost, dead.URL, up.URL)))
	_, key := s.NewKey("emea", "lasting", "lasting")
	ask := func() error { return ok(s.Do(region, http.MethodGet, lastingHost, "/", key, nil), other) }
	s.Eventually(30*time.Second, "requests are relayed", ask)
	answered := int64(1)

	var clients sync.WaitGroup
	answers := make(chan error, 32)
	whole := func(r *http.Response) error {
		body, err := io.ReadAll(r.Body)
		if err == nil && (r.StatusCode != http.StatusOK || !strings.HasSuffix(string(body), "the end")) {
			err = fmt.Errorf("status %d, and it ends with %.100q", r.StatusCode, body[max(0, len(body)-100):])
		}
		return err
	}
	under := 0
	begin := func() {
		for _, c := range []*http.Client{once(s, region, false), once(s, region, true), overHTTP3(t, s, region)} {
			c.Timeout = 0
			lasts := func(method, path string, body io.Reader) {
				under++
				clients.Go(func() {
					answers <- lasting(c, method, path, key, body, whole)
					if r, ok := body.(io.Closer); ok { // who writes would wait
						r.Close()
					}
				})
			}
			lasts(http.MethodPost, "/slow", strings.NewReader("{}"))
			lasts(http.MethodGet, "/events", nil)
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
			lasts(http.MethodPost, "/upload", r)
		}
		under++
		clients.Go(func() {
			answers <- speaks(t.Context(), s, region, key, up.released)
		})
	}
	end := func(check func(error)) {
		t.Helper()
		for ; under > 0; under-- {
			select {
			case err := <-answers:
				check(err)
			case <-time.After(30 * time.Second):
				t.Fatal("an answer does not come")
			}
		}
	}
	well := func(err error) {
		if err != nil {
			t.Errorf("it began before the takeovers: %v", err)
		}
	}
	begin()
	s.Eventually(20*time.Second, "all are at the upstream", func() error { return up.holds(under) })
	for i, replaced := range []string{edge, otherEdge, edge} {
		began := time.Now()
		s.Act("replace", replaced)
		within(t, began, 30*time.Second, "who comes anew is relayed", ask)
		answered++
		t.Logf("takeover %d, and a relay of the new one after %s", i+1, time.Since(began).Round(time.Millisecond))
		time.Sleep(5 * time.Second) // longer than a takeover leaves where nothing may go on, and than what was lent lasts
		if err := up.holds(under); err != nil {
			t.Fatalf("after %d takeovers: %v", i+1, err)
		}
	}
	if out, _ := s.Metric(s.EdgeOf(region).Admin, "bailiwick_relays_out_in_flight"); out != float64(under) {
		t.Errorf("%v relays are said to be under way, want %d", out, under)
	}
	answered += int64(under)
	up.release()
	end(well)
	clients.Wait()
	if got := s.UsageThrough("emea", "lasting", time.Now(), time.Minute).Answered(); got != answered {
		t.Errorf("%d requests were answered, %d are counted", answered, got)
	}

	// The pair is closed while they go on in a process before, at both ends.
	up.hold()
	begin()
	s.Eventually(20*time.Second, "all are at the upstream again", func() error { return up.holds(under) })
	s.Act("replace", edge)
	s.Act("replace", otherEdge)
	within(t, time.Now(), 30*time.Second, "who comes anew is relayed", ask)
	if err := up.holds(under); err != nil {
		t.Fatalf("before the pair is closed: %v", err)
	}
	s.MustCLI("emea", "apply", "-f", writeFile(t, "closure.yaml", "kind: Closure\nname: shut\nspec: {zone: emea, from: eu-west, to: eu-central, reason: drill}\n"))
	closed := time.Now()
	end(func(err error) {
		if err == nil {
			t.Error("it goes on over a pair that is closed")
		}
	})
	t.Logf("all are cut %s after the pair was closed", time.Since(closed).Round(time.Millisecond))
	s.Eventually(15*time.Second, "the closure is in force", func() error { return inForce(s, region, other) })
	t.Logf("in force %s after the pair was closed", time.Since(closed).Round(time.Millisecond))
	up.release()
	clients.Wait()
}

// speaks is a client that says something over a WebSocket again and again and hears the same, until it is to end.
func speaks(ctx context.Context, s *harness.Sandbox, region, key string, ended func() bool) error {
	d := websocket.Dialer{TLSClientConfig: &tls.Config{RootCAs: s.Roots()}, NetDialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, s.HTTPS(region))
	}}
	ws, _, err := d.DialContext(ctx, "wss://"+lastingHost+"/live", http.Header{"X-API-Key": {key}})
	if err != nil {
		return fmt.Errorf("a WebSocket: %w", err)
	}
	defer ws.Close()
	for n := 0; !ended(); n++ {
		said := fmt.Sprint("message ", n)
		ws.WriteMessage(websocket.TextMessage, []byte(said))
		if _, heard, err := ws.ReadMessage(); err != nil || string(heard) != said {
			return fmt.Errorf("a WebSocket hears %q to %q: %w", heard, said, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
	ws.WriteMessage(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""))
	if _, _, err := ws.ReadMessage(); !websocket.IsCloseError(err, websocket.CloseNormalClosure) {
		return fmt.Errorf("a WebSocket ends with %w", err)
	}
	return nil
}

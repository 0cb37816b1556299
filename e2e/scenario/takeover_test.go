package scenario_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"bailiwick/e2e/harness"
)

// TestTakeover replaces an edge under load, again and again: no request fails, also of those that take a second or six, which see some takeovers, and each is
// counted once.
// TAKEOVERS=20 makes as many; the load is of clients that repeat nothing.
func TestTakeover(t *testing.T) {
	times, _ := strconv.Atoi(os.Getenv("TAKEOVERS"))
	if times == 0 {
		t.Skip("TAKEOVERS is not set: TestGrowth replaces an edge too")
	}
	s := harness.Start(t)
	s.Settle()
	takeOver(t, s, times)
}

func takeOver(t *testing.T, s *harness.Sandbox, times int) {
	t.Helper()
	const region, edge = "eu-west", "eu-west-edge-1"
	customer := ""
	for _, k := range s.Keys {
		if k.Zone == "emea" && k.Plan == "unlimited" {
			customer = k.Customer
		}
	}
	_, key := s.NewKey("emea", customer, "unlimited")
	usage := func() int64 {
		return s.UsageThrough("emea", customer, time.Now(), time.Minute).Answered()
	}
	clients := []*http.Client{once(s, region, true), once(s, region, false), once(s, region, false), overHTTP3(t, s, region)}
	for _, c := range clients { // they know the edge, and it them
		within(t, time.Now(), 10*time.Second, "the key serves", func() error {
			return ok(s.Send(c, http.MethodPost, ordersEMEA, "/v1/orders", key, nil), region)
		})
	}
	counted, answered := usage(), s.Count(region)
	var slowest atomic.Int64 // of those that are not slow by themselves
	load := harness.StartLoad(12, 300, func(n int64) error {
		path, began := "/v1/orders", time.Now()
		switch {
		case n%150 == 0:
			path += "?delay=6s"
		case n%50 == 0:
			path += "?delay=1s"
		default:
			defer func() {
				for took := int64(time.Since(began)); ; {
					if old := slowest.Load(); took <= old || slowest.CompareAndSwap(old, took) {
						return
					}
				}
			}()
		}
		return ok(s.Send(clients[n%int64(len(clients))], http.MethodPost, ordersEMEA, path, key, strings.NewReader("{}")), region)
	})
	for i := range times {
		time.Sleep(300 * time.Millisecond)
		began := time.Now()
		s.Act("replace", edge)
		t.Logf("takeover %d: %s", i+1, time.Since(began).Round(time.Millisecond))
	}
	time.Sleep(300 * time.Millisecond)
	if failed, why := load.Stop(); failed > 0 {
		t.Errorf("%d of %d requests failed over %d takeovers: %q", failed, load.Sent.Load(), times, why)
	}
	sent := load.OK.Load()
	t.Logf("%d requests over %d takeovers; of those that are quick by themselves the slowest took %s", sent, times, time.Duration(slowest.Load()).Round(time.Millisecond))
	if got := s.Count(region) - answered; got != sent {
		t.Errorf("%d requests were answered at clients, %d at the upstream", sent, got)
	}
	if got := usage() - counted; got != sent {
		t.Errorf("%d requests were answered, %d are counted", sent, got)
	}
}

// TestStop ends edges that have something to lose: one whose place a process is to take that cannot serve serves on, and one that
// another region has relayed to answers first.
func TestStop(t *testing.T) {
	t.Parallel()
	s := harness.Start(t)
	s.Settle()
	key := s.Key("emea", "unlimited")
	edge := s.AddEdge("eu-west", "eu-west-edge-9", 10)
	for option, value := range map[string]string{"-upstream-allow": "privat", "-traces-endpoint": "http://collector.example:4318"} {
		said, err := edge.Takeover(option, value)
		if exit, failed := errors.AsType[*exec.ExitError](err); !failed || exit.ExitCode() != 1 || !strings.Contains(said, "serves on") {
			t.Errorf("a successor with %s %s ends with %v, and says %s", option, value, err, said)
		}
		select {
		case <-edge.Ended():
			t.Fatalf("a successor with %s %s has ended the edge that served", option, value)
		default:
		}
		if status := s.Ready(edge.Admin); status != http.StatusOK {
			t.Errorf("behind a successor with %s %s the edge says %d of itself, want that it is ready", option, value, status)
		}
	}
	s.Act("kill", "orders@eu-west")
	within(t, time.Now(), 10*time.Second, "a pair serves eu-west", func() error { return ok(s.Get("eu-west", key), "eu-central") })
	slow := make(chan harness.Answer, 1)
	go func() { slow <- s.Do("eu-west", http.MethodPost, ordersEMEA, "/v1/orders?delay=5s", key, nil) }()
	time.Sleep(time.Second) // it is at its upstream
	began := time.Now()
	s.Act("stop", "eu-central-edge-1")
	if err := ok(<-slow, "eu-central"); err != nil {
		t.Errorf("a POST that had been relayed for a second when the edge there was told to stop: %v", err)
	}
	if took := time.Since(began); took < 3*time.Second || took > 14*time.Second {
		t.Errorf("the edge has ended after %s, want as soon as it had answered", took)
	}
}

// once is a client that sends each request once. Over HTTP/2 it sends anew what the edge said that it has not seen (GOAWAY),
// as the protocol wants it.
func once(s *harness.Sandbox, region string, h2 bool) *http.Client {
	base := s.NewClient(s.HTTPS(region))
	from := base.Transport.(*http.Transport)
	tr := &http.Transport{DialContext: from.DialContext, TLSClientConfig: from.TLSClientConfig.Clone(), MaxIdleConnsPerHost: 16, ForceAttemptHTTP2: h2}
	if !h2 {
		tr.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
		tr.TLSClientConfig.NextProtos = []string{"http/1.1"}
		return &http.Client{Transport: unrepeatable{tr}, Timeout: 20 * time.Second}
	}
	return &http.Client{Transport: tr, Timeout: 20 * time.Second}
}

// overHTTP3 is a client over HTTP/3. Like the one over HTTP/2 it sends anew what the edge said that it has not seen.
func overHTTP3(t *testing.T, s *harness.Sandbox, region string) *http.Client {
	base := s.NewClient(s.HTTPS(region))
	tr := &http3.Transport{TLSClientConfig: base.Transport.(*http.Transport).TLSClientConfig.Clone(),
		Dial: func(ctx context.Context, _ string, t *tls.Config, q *quic.Config) (*quic.Conn, error) {
			return quic.DialAddr(ctx, s.HTTPS(region), t, q)
		}}
	t.Cleanup(func() { tr.Close() })
	return &http.Client{Transport: tr, Timeout: 20 * time.Second}
}

// unrepeatable keeps a transport from sending a body twice.
type unrepeatable struct{ http.RoundTripper }

func (u unrepeatable) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body != nil {
		r = r.Clone(r.Context())
		r.Body, r.GetBody = io.NopCloser(r.Body), nil
	}
	return u.RoundTripper.RoundTrip(r)
}

package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
)

// loadConfig of the load generator for what wrk and h2load cannot do. It is this program, started again so that it can be
// pinned like them, and prints one line as the script of wrk does.
type loadConfig struct {
	Kind        string // rate, handshakes, idle, paced, http2 or http3
	Address     string
	Scheme      string
	Path        string
	Key         string
	Keys        string // file of all of them
	Lasts       time.Duration
	Connections int
}

// loads are the kinds of load that this program makes by itself.
var loads = map[string]func(ctx context.Context, cfg loadConfig) (loaded, error){
	"rate": atRate, "handshakes": handshakes, "idle": idle, "http3": overHTTP3, "http2": overHTTP2, "paced": paced,
}

// loaded is what a load came to.
type loaded struct {
	took   []time.Duration // of each request; empty: not measured
	n      int64           // requests
	failed int64
	lasted time.Duration
}

const (
	ratePerSecond  = 500
	handshakers    = 16
	streamsPerConn = 4
)

func load(text string) error {
	var cfg loadConfig
	if err := json.Unmarshal([]byte(text), &cfg); err != nil {
		return err
	}
	began := time.Now()
	r, err := loads[cfg.Kind](context.Background(), cfg)
	if err != nil {
		return err
	}
	if r.lasted == 0 {
		r.lasted = time.Since(began)
	}
	slices.Sort(r.took)
	at := func(q float64) int64 {
		if len(r.took) == 0 {
			return 0
		}
		return r.took[min(int(q*float64(len(r.took))), len(r.took)-1)].Microseconds()
	}
	fmt.Printf("RESULT %d %d %d %d %d\n", r.n, r.lasted.Microseconds(), at(0.5), at(0.99), r.failed)
	return nil
}

func (cfg loadConfig) request() string {
	return "GET " + cfg.Path + " HTTP/1.1\r\nHost: " + host + "\r\nX-API-Key: " + cfg.Key + "\r\n\r\n"
}

// tls is of version 1.3 with X25519 for everybody: OpenSSL 3.0 has no post-quantum exchange, and that costs half a handshake
// more. (P-256 is there for the certificate.)
func (cfg loadConfig) tls() *tls.Config {
	return &tls.Config{InsecureSkipVerify: true, ServerName: host, CurvePreferences: []tls.CurveID{tls.X25519, tls.CurveP256}, MinVersion: tls.VersionTLS13, SessionTicketsDisabled: true}
}

func (cfg loadConfig) dial(ctx context.Context) (net.Conn, error) {
	if cfg.Scheme == "https" {
		return (&tls.Dialer{Config: cfg.tls()}).DialContext(ctx, "tcp", cfg.Address)
	}
	return (&net.Dialer{}).DialContext(ctx, "tcp", cfg.Address)
}

// once asks on a connection and reads the answer, which is small and has a length.
func once(c net.Conn, request string, b []byte) error {
	if _, err := io.WriteString(c, request); err != nil {
		return err
	}
	n := 0
	for {
		m, err := c.Read(b[n:])
		if err != nil {
			return err
		}
		n += m
		if head, body, ok := strings.Cut(string(b[:n]), "\r\n\r\n"); ok {
			if !strings.HasPrefix(head, "HTTP/1.1 200") {
				return fmt.Errorf("it answers %.40q", head)
			}
			if len(body) >= 256 {
				return nil
			}
		}
	}
}

// atRate asks 500 times a second on one connection. What waits for an answer that is late counts as late itself.
func atRate(ctx context.Context, cfg loadConfig) (r loaded, err error) {
	c, err := cfg.dial(ctx)
	if err != nil {
		return r, err
	}
	defer c.Close()
	b, request := make([]byte, 8<<10), cfg.request()
	for range 50 {
		if err := once(c, request, b); err != nil {
			return r, err
		}
	}
	began := time.Now()
	for due := began; due.Sub(began) < cfg.Lasts; due = due.Add(time.Second / ratePerSecond) {
		time.Sleep(time.Until(due))
		sent := time.Now()
		if time.Since(due) > 2*time.Millisecond { // more than a whole turn behind: somebody was slow, and that is no oversleeping
			sent = due
		}
		if err := once(c, request, b); err != nil {
			return r, err
		}
		r.took = append(r.took, time.Since(sent))
		r.n++
	}
	return r, nil
}

// handshakes makes a connection for each request, and breaks it off after the answer: so no port waits for its time to end.
func handshakes(ctx context.Context, cfg loadConfig) (r loaded, err error) {
	until := time.Now().Add(cfg.Lasts)
	var n, failed atomic.Int64
	var wg sync.WaitGroup
	for range handshakers {
		wg.Go(func() {
			b, request := make([]byte, 8<<10), cfg.request()
			for time.Now().Before(until) {
				if c, err := cfg.dial(ctx); err != nil {
					failed.Add(1)
				} else {
					if once(c, request, b) != nil {
						failed.Add(1)
					}
					if t, ok := c.(*tls.Conn); ok {
						t.NetConn().(*net.TCPConn).SetLinger(0)
						t.NetConn().Close()
					}
					c.Close()
				}
				n.Add(1)
			}
		})
	}
	wg.Wait()
	return loaded{n: n.Load(), failed: failed.Load()}, nil
}

// idle opens connections, asks once on each and holds them; what they cost is looked at meanwhile.
func idle(ctx context.Context, cfg loadConfig) (r loaded, err error) {
	conns := make(chan net.Conn, cfg.Connections)
	var wg sync.WaitGroup
	var failed atomic.Int64
	work := make(chan struct{})
	for range handshakers {
		wg.Go(func() {
			b, request := make([]byte, 8<<10), cfg.request()
			for range work {
				c, err := cfg.dial(ctx)
				if err != nil {
					if failed.Add(1) == 1 {
						fmt.Fprintln(os.Stderr, "the first that was not made:", err)
					}
					continue
				}
				if err := once(c, request, b); err != nil && failed.Add(1) == 1 {
					fmt.Fprintln(os.Stderr, "the first that failed:", err)
				}
				conns <- c
			}
		})
	}
	for range cfg.Connections {
		work <- struct{}{}
	}
	close(work)
	wg.Wait()
	time.Sleep(cfg.Lasts)
	for range len(conns) {
		c := <-conns
		c.SetReadDeadline(time.Now().Add(time.Microsecond)) // one that was closed meanwhile was not held
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) && failed.Add(1) == 1 {
			fmt.Fprintln(os.Stderr, "the first that was not held:", err)
		}
		c.Close()
	}
	return loaded{n: int64(cfg.Connections), failed: failed.Load()}, nil
}

// paced asks once a second on each of many connections, so that each is idle in between.
func paced(ctx context.Context, cfg loadConfig) (r loaded, err error) {
	var n, failed atomic.Int64
	var wg sync.WaitGroup
	var opened sync.WaitGroup
	open := make(chan struct{}, handshakers)
	opened.Add(cfg.Connections)
	began := make(chan struct{})
	for i := range cfg.Connections {
		wg.Go(func() {
			b, request := make([]byte, 8<<10), cfg.request()
			open <- struct{}{}
			c, err := cfg.dial(ctx)
			<-open
			opened.Done()
			if err != nil {
				failed.Add(1)
				return
			}
			defer c.Close()
			<-began
			start := time.Now()
			for due := start.Add(time.Second * time.Duration(i) / time.Duration(cfg.Connections)); due.Sub(start) < cfg.Lasts; due = due.Add(time.Second) {
				time.Sleep(time.Until(due))
				if err := once(c, request, b); err != nil {
					failed.Add(1)
					return
				}
				n.Add(1)
			}
		})
	}
	opened.Wait()
	close(began)
	wg.Wait()
	return loaded{n: n.Load(), failed: failed.Load()}, nil
}

// overHTTP3 asks on connections with a few streams each, one key.
func overHTTP3(ctx context.Context, cfg loadConfig) (loaded, error) {
	return onStreams(cfg, []string{cfg.Key}, func() http.RoundTripper {
		return &http3.Transport{TLSClientConfig: cfg.tls(), Dial: func(ctx context.Context, _ string, t *tls.Config, q *quic.Config) (*quic.Conn, error) {
			return quic.DialAddr(ctx, cfg.Address, t, q)
		}}
	})
}

// overHTTP2 is what h2load does, with all keys in turn.
func overHTTP2(ctx context.Context, cfg loadConfig) (loaded, error) {
	text, err := os.ReadFile(cfg.Keys)
	if err != nil {
		return loaded{}, err
	}
	keys := strings.Fields(string(text))
	fmt.Fprint(os.Stderr, begun)
	return onStreams(cfg, keys, func() http.RoundTripper {
		dial := func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, cfg.Address)
		}
		return &http.Transport{TLSClientConfig: cfg.tls(), ForceAttemptHTTP2: true, MaxConnsPerHost: 1, DialContext: dial}
	})
}

// onStreams asks on connections, each a transport of its own, with a few streams each.
func onStreams(cfg loadConfig, keys []string, connection func() http.RoundTripper) (r loaded, err error) {
	_, port, _ := net.SplitHostPort(cfg.Address)
	target := &url.URL{Scheme: "https", Host: net.JoinHostPort(host, port), Path: cfg.Path}
	began := time.Now()
	until := began.Add(cfg.Lasts)
	var failed, next atomic.Int64
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range cfg.Connections {
		t := connection()
		if c, ok := t.(io.Closer); ok {
			defer c.Close()
		}
		for range streamsPerConn {
			wg.Go(func() {
				var took []time.Duration
				for time.Now().Before(until) {
					key := keys[int(next.Add(1))%len(keys)]
					sent := time.Now()
					response, err := t.RoundTrip(&http.Request{Method: http.MethodGet, URL: target, Host: host, Header: http.Header{"X-Api-Key": {key}}})
					if err == nil {
						_, err = io.Copy(io.Discard, response.Body)
						response.Body.Close()
					}
					if err != nil || response.StatusCode != http.StatusOK {
						failed.Add(1)
					}
					took = append(took, time.Since(sent))
				}
				mu.Lock()
				r.took = append(r.took, took...)
				mu.Unlock()
			})
		}
	}
	wg.Wait()
	r.n, r.failed, r.lasted = int64(len(r.took)), failed.Load(), time.Since(began)
	return r, nil
}

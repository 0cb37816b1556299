package proxy_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/quic-go/quic-go/http3"

	"bailiwick/dataplane/internal/proxy"
	"bailiwick/dataplane/internal/rpc"
	"bailiwick/shared/lifecycle/porttest"
	"bailiwick/shared/table"
)

// Every limit of a plan, a route and a key holds over every protocol, with the same verdict: the number of a refusal, or for gRPC
// the status that says the same. Time that is over is TestPath_ADeadlineEndsARequest's, TestFailover_TimesOut's and
// TestGRPC_DeadlineAndCancellation's.
func TestPlans_HoldOverEveryProtocol(t *testing.T) {
	w := newWorld(t, patient)
	held, release := make(chan struct{}, 64), make(chan struct{})
	answer := func(rw http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasPrefix(r.URL.Path, "/held"):
			held <- struct{}{}
			<-release
		case strings.HasPrefix(r.URL.Path, "/short"):
			rw.Header().Set("Content-Length", "200")
			rw.Write(make([]byte, 200))
			return
		case strings.HasPrefix(r.URL.Path, "/priced"):
			rw.Header().Set("X-Units", "7")
		}
		io.WriteString(rw, "here")
	}
	w.west.up.does(answer)
	w.west.plan = func(p *table.Plan) { p.Windows = []table.Window{{Requests: 12, Per: time.Hour}} }
	w.west.orders = func(a *table.API) {
		a.Routes = append(a.Routes, table.Route{Name: "live", PathPrefix: "/live", WebSocket: &table.WebSocket{}}, table.Route{Name: "live-scoped", PathPrefix: "/live/scoped", WebSocket: &table.WebSocket{}, Scope: "orders:read"})
	}
	// keyed makes a key of a plan and gives it to the edge.
	keyed := func(plan string, change func(*table.Key)) string {
		key, o := mint(t, plan)
		o = edited(t, o, func(k *table.Key) {
			k.Subscription = "s-" + k.ID // whose limits are its own
			if change != nil {
				change(k)
			}
		})
		w.objects = append(w.objects, o)
		w.west.tables.Swap(w.view(w.west, true))
		return key
	}

	cert := httptest.NewUnstartedServer(nil)
	cert.StartTLS()
	defer cert.Close()
	servers := proxy.NewServers(proxy.ServersConfig{Handler: w.west.proxy, TLS: &tls.Config{Certificates: cert.TLS.Certificates}, Logger: slog.New(slog.DiscardHandler)})
	l, err := net.Listen("tcp", porttest.Addr(t))
	if err != nil {
		t.Fatal(err)
	}
	pc, err := net.ListenPacket("udp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	go servers.HTTPS.Serve(l)
	go servers.H3.Serve(pc)
	defer servers.HTTPS.Close()
	defer pc.Close()
	defer servers.H3.Close()
	var h1, h2 http.Protocols
	h1.SetHTTP1(true)
	h2.SetHTTP2(true)
	insecure := func() *tls.Config { return &tls.Config{InsecureSkipVerify: true, ServerName: "orders.test"} }
	h3 := &http3.Transport{TLSClientConfig: insecure()}
	defer h3.Close()
	trips := map[string]http.RoundTripper{"HTTP/1.1": &http.Transport{Protocols: &h1, TLSClientConfig: insecure()}, "HTTP/2": &http.Transport{Protocols: &h2, TLSClientConfig: insecure()}, "HTTP/3": h3}
	for _, rt := range trips {
		if rt, ok := rt.(*http.Transport); ok {
			defer rt.CloseIdleConnections()
		}
	}
	trips["gRPC"] = trips["HTTP/2"]
	// ask gives the verdict on a request as a status of HTTP, 0: the answer broke off.
	ask := func(protocol, key, method, path, body string) int {
		if protocol == "WebSocket" {
			c := w.open(w.west, "path", "/live"+path, "X-Api-Key", key)
			defer c.Close()
			return c.status
		}
		req, _ := http.NewRequestWithContext(context.Background(), method, "https://"+l.Addr().String()+path, strings.NewReader(body))
		req.Host = "orders.test"
		req.Header.Set("X-Api-Key", key)
		if protocol == "gRPC" {
			req.Method = "POST"
			req.Header.Set("Content-Type", "application/grpc")
			req.Header.Set("Te", "trailers")
		}
		resp, err := trips[protocol].RoundTrip(req)
		if err != nil {
			t.Logf("%s %s: %v", protocol, path, err)
			return 0
		}
		defer resp.Body.Close()
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			return 0
		}
		if said := resp.Header.Get("Grpc-Status"); protocol == "gRPC" && said != "" {
			n, _ := strconv.Atoi(said)
			return -n // of a code, not of HTTP
		}
		return resp.StatusCode
	}
	frame := func(body string) string { return "\x00\x00\x00\x00" + string(rune(len(body))) + body }

	for _, protocol := range []string{"HTTP/1.1", "HTTP/2", "HTTP/3", "gRPC", "WebSocket"} {
		t.Run(strings.ReplaceAll(protocol, "/", ""), func(t *testing.T) {
			const fine = 200 // also to a WebSocket: the limits let it pass, and this upstream speaks none
			is := func(what string, got, want int) {
				t.Helper()
				if protocol == "gRPC" && want >= 400 {
					want = -int(rpc.FromHTTP(want))
				}
				if got != want {
					t.Errorf("%s: got %d, want %d", what, got, want)
				}
			}
			empty := ""
			if protocol == "gRPC" {
				empty = frame("")
			}
			refill := time.Now()
			key, passed := keyed("free", nil), 0 // 5 a second, 5 at once
			for range 100 {
				got := ask(protocol, key, "GET", "/v1/x", empty)
				if got == fine {
					passed++
					continue
				}
				is("beyond requests_per_second", got, 429)
				break
			}
			if most := 6 + int(time.Since(refill).Seconds()*5); passed < 5 || passed > most {
				t.Errorf("requests_per_second: %d passed, want 5 to %d", passed, most)
			}
			key = keyed("gold", nil) // 12 an hour
			for i := range 13 {
				is(fmt.Sprint("rate_limits, request ", i+1), ask(protocol, key, "GET", "/v1/x", empty), map[bool]int{true: fine, false: 429}[i < 12])
			}
			if protocol != "WebSocket" { // of which an open one is: TestSocket_HasAPlaceOfItsOwn
				key = keyed("narrow", nil) // one at once
				first := make(chan int, 1)
				go func() { first <- ask(protocol, key, "GET", "/held/x", empty) }()
				select {
				case <-held:
				case got := <-first:
					t.Fatalf("the first of max_concurrent: got %d", got)
				}
				is("max_concurrent", ask(protocol, key, "GET", "/v1/x", empty), 429)
				release <- struct{}{}
				is("the one that was there", <-first, 200)
			}
			key = keyed("gold", nil)
			is("a scope that the key has not", ask(protocol, key, "GET", "/scoped/x", empty), 403)
			is("one that it has", ask(protocol, keyed("gold", func(k *table.Key) { k.Scopes = "a orders:read" }), "GET", "/scoped/x", empty), fine)
			is("allow_from elsewhere", ask(protocol, keyed("gold", func(k *table.Key) { k.From = "192.0.2.0/24" }), "GET", "/v1/x", empty), 403)
			is("allow_from here", ask(protocol, keyed("gold", func(k *table.Key) { k.From = "192.0.2.0/24,127.0.0.0/8" }), "GET", "/v1/x", empty), fine)
			is("a suspended key", ask(protocol, keyed("gold", func(k *table.Key) { k.Suspended = true }), "GET", "/v1/x", empty), 403)
			is("one that has ended", ask(protocol, keyed("gold", func(k *table.Key) { k.Ends = 1 }), "GET", "/v1/x", empty), 401)
			is("one that is not paid for", ask(protocol, keyed("gold", func(k *table.Key) { k.Overdue = true }), "GET", "/v1/x", empty), 402)
			if protocol == "WebSocket" {
				return
			}
			body := "more than 10 bytes"
			if protocol == "gRPC" {
				body = frame(body)
			}
			is("max_request_bytes", ask(protocol, key, "POST", "/small/x", body), 413)
			is("max_response_bytes", ask(protocol, key, "GET", "/short/x", empty), 502)
			for path, want := range map[string]int64{"/v1/x": 1, "/priced/x": 7, "/weighed/x": 1, "/gratis/x": 0} {
				before := w.west.meter.len()
				is(path, ask(protocol, key, "GET", path, empty), 200)
				eventually(t, 20*time.Second, "a row", func() bool { return w.west.meter.len() > before })
				if row := w.west.meter.last(); row.Units != want || row.Requests != 1 {
					t.Errorf("%s: row %+v, want %d units", path, row, want)
				}
			}
			if protocol != "gRPC" {
				before := w.west.meter.len()
				is("OPTIONS", ask(protocol, key, "OPTIONS", "/v1/x", ""), 200)
				if row := w.west.meter.last(); w.west.meter.len() != before+1 || row.Units != 0 {
					t.Errorf("OPTIONS: row %+v, want no unit", row)
				}
			}
		})
	}
}

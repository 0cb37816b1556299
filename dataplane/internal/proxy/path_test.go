package proxy_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/quic-go/quic-go/http3"

	"bailiwick/dataplane/internal/gate"
	"bailiwick/dataplane/internal/proxy"
	"bailiwick/dataplane/internal/relay"
	"bailiwick/shared/lifecycle/porttest"
	"bailiwick/shared/usage"
)

func TestPath_AnswersAndCounts(t *testing.T) {
	w := newWorld(t, nil)
	for _, c := range []struct {
		name, method, path, body string
		header                   []string
		status                   int
		reason                   string
		outcome                  usage.Outcome // 0: no row
		units                    int64
	}{
		{"served", "GET", "/v1/x", "", nil, 200, "", usage.OutcomeSuccess, 1},
		{"head", "HEAD", "/v1/x", "", nil, 200, "", usage.OutcomeSuccess, 1},
		{"posted", "POST", "/v1/x", "hello", nil, 200, "", usage.OutcomeSuccess, 1},
		{"no key", "GET", "/v1/x", "", []string{"X-Api-Key", ""}, 401, gate.ReasonKeyMissing, 0, 0},
		{"bad key", "GET", "/v1/x", "", []string{"X-Api-Key", "", "Authorization", "Bearer bw_emea_x"}, 401, gate.ReasonKeyInvalid, 0, 0},
		{"not sold", "GET", "/v1/x", "", []string{"Host", "reports.test"}, 403, gate.ReasonNotEntitled, usage.OutcomeRefused, 0},
		{"unknown host", "GET", "/v1/x", "", []string{"Host", "nobody.test"}, 421, gate.ReasonHostUnknown, 0, 0},
		{"foreign host", "GET", "/v1/x", "", []string{"Host", "orders.us.test"}, 421, gate.ReasonHostForeign, 0, 0},
		{"host in capitals, with port and dot", "GET", "/v1/x", "", []string{"Host", "Orders.TEST.:8443"}, 200, "", usage.OutcomeSuccess, 1},
		{"body over the route's limit", "POST", "/small/x", "12345678901", nil, 413, gate.ReasonBodyTooLarge, usage.OutcomeRefused, 0},
		{"body at the limit", "POST", "/small/x", "1234567890", nil, 200, "", usage.OutcomeSuccess, 1},
		{"trace", "TRACE", "/v1/x", "", nil, 405, gate.ReasonMethod, 0, 0},
		{"a method in small letters", "delete", "/v1/x", "", nil, 405, gate.ReasonMethod, 0, 0},
		{"a method of which one letter is small", "DELETe", "/v1/x", "", nil, 405, gate.ReasonMethod, 0, 0},
		{"another method", "M-SEARCH", "/v1/x", "", nil, 200, "", usage.OutcomeSuccess, 1},
		{"websocket", "GET", "/v1/x", "", []string{"Upgrade", "websocket", "Connection", "upgrade"}, 501, gate.ReasonUpgrade, 0, 0},
		{"h2c is declined by silence", "GET", "/v1/x", "", []string{"Upgrade", "h2c", "Connection", "upgrade, http2-settings", "Http2-Settings", "AA"}, 200, "", usage.OutcomeSuccess, 1},
		{"encoded slash", "GET", "/v1/a%2fb", "", nil, 400, gate.ReasonPathAmbiguous, 0, 0},
		{"encoded dots", "GET", "/v1/%2e%2e/x", "", nil, 400, gate.ReasonPathAmbiguous, 0, 0},
		{"dot segments", "GET", "/v1/../x", "", nil, 400, gate.ReasonPathAmbiguous, 0, 0},
		{"dot segment with parameter", "GET", "/v1/..;a=b/x", "", nil, 400, gate.ReasonPathAmbiguous, 0, 0},
		{"double slash", "GET", "/v1//x", "", nil, 400, gate.ReasonPathAmbiguous, 0, 0},
		{"backslash", "GET", "/v1/%5cx", "", nil, 400, gate.ReasonPathAmbiguous, 0, 0},
		{"nul", "GET", "/v1/%00", "", nil, 400, gate.ReasonPathAmbiguous, 0, 0},
		{"a parameter in front of which another route ends", "POST", "/small;a=b/x", "12345678901", nil, 400, gate.ReasonPathAmbiguous, 0, 0},
		{"the same, encoded", "POST", "/small%3Ba=b/x", "12345678901", nil, 400, gate.ReasonPathAmbiguous, 0, 0},
		{"a segment of a parameter alone before another route", "POST", "/;a=b/small/x", "12345678901", nil, 400, gate.ReasonPathAmbiguous, 0, 0},
		{"a slash in two bytes", "POST", "/small%c0%afx", "12345678901", nil, 400, gate.ReasonPathAmbiguous, 0, 0},
		{"a slash in three", "POST", "/small%e0%80%afx", "12345678901", nil, 400, gate.ReasonPathAmbiguous, 0, 0},
		{"a slash in four", "POST", "/small%f0%80%80%afx", "12345678901", nil, 400, gate.ReasonPathAmbiguous, 0, 0},
		{"a slash in five", "POST", "/small%f8%80%80%80%afx", "12345678901", nil, 400, gate.ReasonPathAmbiguous, 0, 0},
		{"a slash in six", "POST", "/small%fc%80%80%80%80%afx", "12345678901", nil, 400, gate.ReasonPathAmbiguous, 0, 0},
		{"bytes that are no text pass", "GET", "/v1/%ff%e0", "", nil, 200, "", usage.OutcomeSuccess, 1},
		{"parameters that lead to no other route pass", "GET", "/v1/x;a=b/y;c", "", nil, 200, "", usage.OutcomeSuccess, 1},
		{"encoded twice", "GET", "/v1/%252e%252e/x", "", nil, 400, gate.ReasonPathAmbiguous, 0, 0},
		{"dots and a slash encoded twice", "GET", "/v1/..%252fadmin", "", nil, 400, gate.ReasonPathAmbiguous, 0, 0},
		{"encoded twice beside what is encoded once", "GET", "/v1/%252e%252e/%41", "", nil, 400, gate.ReasonPathAmbiguous, 0, 0},
		{"a letter encoded twice", "GET", "/v1/%2541", "", nil, 400, gate.ReasonPathAmbiguous, 0, 0},
		{"the same, its second part encoded too", "GET", "/v1/%25%34%31", "", nil, 400, gate.ReasonPathAmbiguous, 0, 0},
		{"encoded three times", "GET", "/v1/%25252e", "", nil, 400, gate.ReasonPathAmbiguous, 0, 0},
		{"a percent sign passes", "GET", "/v1/100%25", "", nil, 200, "", usage.OutcomeSuccess, 1},
		{"also before what is no number", "GET", "/v1/%25zz/%25", "", nil, 200, "", usage.OutcomeSuccess, 1},
		{"and beside what is encoded", "GET", "/v1/100%25/%41", "", nil, 200, "", usage.OutcomeSuccess, 1},
		{"other encodings pass", "GET", "/v1/a%20b%C3%A9?q=%2F..", "", nil, 200, "", usage.OutcomeSuccess, 1},
	} {
		before := w.west.meter.len()
		a := w.send(c.method, c.path, c.body, c.header...)
		if a.err != nil || a.status != c.status {
			t.Errorf("%s: got %d %v %s, want %d", c.name, a.status, a.err, a.body, c.status)
			continue
		}
		if !regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`).MatchString(a.header.Get("Bailiwick-Request-Id")) || a.header.Get("Bailiwick-Edge") != "eu-west" {
			t.Errorf("%s: got headers %v, want request id and edge", c.name, a.header)
		}
		if c.reason != "" {
			var p struct {
				Type, Reason, Title string
				Status              int
				RequestID           string `json:"request_id"`
			}
			if err := json.Unmarshal([]byte(a.body), &p); c.method != "HEAD" && (err != nil || p.Reason != c.reason || p.Type != gate.TypePrefix+c.reason || p.Status != c.status || p.Title == "" || p.RequestID != a.header.Get("Bailiwick-Request-Id")) {
				t.Errorf("%s: got problem %s, want reason %s", c.name, a.body, c.reason)
			}
			if a.served != "" || a.header.Get("Content-Type") != gate.ProblemType {
				t.Errorf("%s: got served by %q as %s", c.name, a.served, a.header.Get("Content-Type"))
			}
		}
		rows := w.west.meter.since(before)
		if c.outcome == 0 {
			if len(rows) != 0 {
				t.Errorf("%s: got rows %+v, want none", c.name, rows)
			}
			continue
		}
		if len(rows) != 1 || rows[0].Outcome != c.outcome || rows[0].Units != c.units || rows[0].Requests != 1 || rows[0].Customer != "acme" || rows[0].PlanRev != 7 {
			t.Errorf("%s: got rows %+v, want one %s", c.name, rows, c.outcome)
			continue
		}
		if r := rows[0]; c.status == 200 && (r.ServedRegion != "eu-west" || r.Product != "core" || r.API != "orders" || r.Route == "" || r.BytesIn != int64(len(c.body)) || c.method != "HEAD" && r.BytesOut != int64(len(a.body))) {
			t.Errorf("%s: got row %+v for an answer of %d bytes", c.name, r, len(a.body))
		}
	}
	for tries := 0; ; tries++ {
		start, a := time.Now(), answer{}
		for i := range 6 {
			a = w.send("GET", "/v1/x", "", "X-Api-Key", "", "X-Api-Key", w.free)
			if i < 5 && a.status != 200 {
				t.Errorf("request %d of a plan of 5: got %d, want 200", i, a.status)
			}
		}
		if took := time.Since(start); a.status == 200 && took > 150*time.Millisecond && tries < 50 { // slow enough for another one: once more, with all five
			time.Sleep(1100 * time.Millisecond)
			continue
		}
		if a.status != 429 || a.header.Get("Retry-After") != "1" || a.header["Ratelimit"] == nil || a.header["Ratelimit-Policy"][0] != `"plan";q=5;w=1` {
			t.Errorf("the sixth of a plan of 5: got %d, %v, want 429", a.status, a.header)
		}
		break
	}
	if n := w.west.meter.finals(t)[usage.OutcomeLimited]; n != 1 {
		t.Errorf("got %d limited rows, want 1", n)
	}
}

// What reaches the upstream: nothing the client says of itself that only an edge may say.
// What an upstream says in the edges' own words nobody hears, at home and behind a relay.
func TestPath_AnUpstreamDoesNotSpeakForTheEdge(t *testing.T) {
	w := newWorld(t, nil)
	says := func(rw http.ResponseWriter, _ *http.Request) {
		for name, value := range map[string]string{"Bailiwick-Edge": "us-east", "Bailiwick-Served": "us-east", "Bailiwick-Unsent": "1", "Bailiwick-Refused": "pair-closed", "Alt-Svc": `h3="elsewhere:443"`, "X-Mine": "kept"} {
			rw.Header().Set(name, value)
		}
		rw.Write([]byte("ok"))
	}
	w.west.up.does(says)
	w.central.up.does(says)
	for _, region := range []string{"eu-west", "eu-central"} {
		if region == "eu-central" {
			w.west.up.kill()
		}
		a := w.send("GET", "/v1/x", "")
		if a.status != 200 || a.served != region || a.header.Get("Bailiwick-Edge") != "eu-west" || a.header.Get("X-Mine") != "kept" {
			t.Errorf("got %d served by %q, edge %q, want 200 by %s at eu-west", a.status, a.served, a.header.Get("Bailiwick-Edge"), region)
		}
		for _, name := range []string{"Bailiwick-Unsent", "Bailiwick-Refused", "Alt-Svc"} {
			if v := a.header.Get(name); v != "" {
				t.Errorf("served by %s: the client got %s: %s", region, name, v)
			}
		}
	}
}

func TestPath_StripsWhatIsNotTheClients(t *testing.T) {
	w := newWorld(t, nil)
	a := w.send("GET", "/v1/a%20b?x=1&y=%2F", "", "Bailiwick-Relay-Api", "x", "Bailiwick-Home", "us", "bailiwick_home", "us", "Bailiwick_Served", "us", "BAILIWICK_SERVED", "us",
		"X-Forwarded-For", "9.9.9.9", "X_forwarded_for", "9.9.9.9", "X_api_key", "stolen", "Forwarded", "for=9.9.9.9", "X-Real-Ip", "9.9.9.9", "Proxy-Authorization", "x", "Te", "trailers",
		"Connection", "X-Secret, X-Forwarded-Proto", "X-Secret", "1", "X-Original-Url", "/admin", "X-Request-Id", "mine", "X-Mine", "kept", "Cookie", "kept=1", "Content_length", "5")
	if a.status != 200 || a.served != "eu-west" {
		t.Fatalf("got %d served by %q", a.status, a.served)
	}
	got, uri := w.west.up.last()
	for name, values := range got {
		switch name {
		case "X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "X-Request-Id", "Via", "X-Mine", "Cookie", "User-Agent", "Accept-Encoding":
		case "Bailiwick-Customer", "Bailiwick-Subscription", "Bailiwick-Plan", "Bailiwick-Key": // see TestPath_CallersAreKnown
		default:
			t.Errorf("upstream got %s: %v", name, values)
		}
	}
	if got.Get("X-Forwarded-For") != "127.0.0.1" || got.Get("X-Forwarded-Proto") != "http" || got.Get("X-Forwarded-Host") != "orders.test" || got.Get("X-Mine") != "kept" || got.Get("Via") != "1.1 bailiwick" {
		t.Errorf("upstream got %v", got)
	}
	if uri != "/v1/a%20b?x=1&y=%2F" {
		t.Errorf("upstream got %s", uri)
	}
	// A key in Authorization is ours; another scheme beside X-API-Key is the upstream's.
	w.send("GET", "/v1/x", "", "X-Api-Key", "", "Authorization", "Bearer "+w.key)
	if h, _ := w.west.up.last(); h.Get("Authorization") != "" {
		t.Error("the key went upstream")
	}
	w.send("GET", "/v1/x", "", "Authorization", "Basic dTpw")
	if h, _ := w.west.up.last(); h.Get("Authorization") != "Basic dTpw" || h.Get("X-Api-Key") != "" {
		t.Errorf("upstream got %v", h)
	}
	// The same across a relay.
	w.west.up.kill()
	if a := w.send("GET", "/v1/a%20b?x=1", "", "Bailiwick-Home", "us", "X-Mine", "kept"); a.served != "eu-central" {
		t.Fatalf("got %d by %q", a.status, a.served)
	}
	got, uri = w.central.up.last()
	for name := range got {
		if strings.HasPrefix(name, "Bailiwick-") && !slices.Contains(relay.Identity[:], name) || name == "X-Api-Key" || name == "Authorization" {
			t.Errorf("upstream abroad got %s", name)
		}
	}
	if got.Get("X-Mine") != "kept" || got.Get("X-Forwarded-For") != "127.0.0.1" || uri != "/v1/a%20b?x=1" {
		t.Errorf("upstream abroad got %s %v", uri, got)
	}
}

func TestPath_TheRowComesBeforeTheLastByte(t *testing.T) {
	w := newWorld(t, nil)
	for _, c := range []struct {
		name   string
		handle http.HandlerFunc
	}{
		{"declared, large", func(rw http.ResponseWriter, r *http.Request) {
			rw.Header().Set("Content-Length", "300000")
			rw.Write(make([]byte, 300000))
		}},
		{"declared, small", func(rw http.ResponseWriter, r *http.Request) { rw.Write([]byte("x")) }},
		{"chunked", func(rw http.ResponseWriter, r *http.Request) {
			for range 3 {
				rw.Write([]byte("part"))
				http.NewResponseController(rw).Flush()
			}
		}},
		{"no body", func(rw http.ResponseWriter, r *http.Request) { rw.WriteHeader(204) }},
	} {
		w.west.up.does(c.handle)
		for range 20 {
			before := w.west.meter.len()
			if a := w.send("GET", "/v1/x", ""); a.err != nil || a.status/100 != 2 {
				t.Fatalf("%s: got %d %v", c.name, a.status, a.err)
			}
			// No waiting: the client has the whole answer, so the row must be there.
			if n := w.west.meter.len() - before; n != 1 {
				t.Fatalf("%s: answer complete with %d rows", c.name, n)
			}
		}
	}
	// And a row that cannot be written means no complete answer.
	w.west.meter.mu.Lock()
	w.west.meter.err = errors.New("disk full")
	w.west.meter.mu.Unlock()
	for _, size := range []int{1, 300000} {
		w.west.up.does(func(rw http.ResponseWriter, r *http.Request) {
			rw.Header().Set("Content-Length", fmt.Sprint(size))
			rw.Write(make([]byte, size))
		})
		if a := w.send("GET", "/v1/x", ""); a.err == nil && (a.status == 200 || !strings.Contains(a.body, gate.ReasonUsage)) {
			t.Errorf("%d bytes uncounted: got %d and %d bytes, want an error", size, a.status, len(a.body))
		}
	}
	w.west.meter.mu.Lock()
	w.west.meter.err, w.west.meter.healthy = nil, errors.New("disk full")
	w.west.meter.mu.Unlock()
	before := w.west.up.count.Load()
	if a := w.send("GET", "/v1/x", ""); a.status != 503 || a.header.Get("Retry-After") == "" || w.west.up.count.Load() != before {
		t.Errorf("spool full: got %d, want 503 without asking the upstream", a.status)
	}
}

func TestPath_ServesUnbilledWhereToldTo(t *testing.T) {
	w := newWorld(t, func(c *proxy.Config) { c.OnSpoolError = proxy.ServeUnbilled })
	w.west.meter.mu.Lock()
	w.west.meter.err, w.west.meter.healthy = errors.New("disk full"), errors.New("disk full")
	w.west.meter.mu.Unlock()
	if a := w.send("GET", "/v1/x", ""); a.status != 200 || w.west.proxy.Unbilled() != 1 {
		t.Errorf("got %d with %d unbilled, want 200 and 1", a.status, w.west.proxy.Unbilled())
	}
}

func TestPath_LongAnswersWriteInterimRows(t *testing.T) {
	w := newWorld(t, func(c *proxy.Config) { c.InterimEvery = 20 * time.Millisecond })
	w.west.up.does(func(rw http.ResponseWriter, r *http.Request) {
		for range 10 {
			rw.Write([]byte("0123456789"))
			http.NewResponseController(rw).Flush()
			time.Sleep(10 * time.Millisecond)
		}
	})
	if a := w.send("GET", "/v1/x", ""); a.status != 200 || len(a.body) != 100 {
		t.Fatalf("got %d and %d bytes", a.status, len(a.body))
	}
	rows := w.west.meter.since(0)
	var out, requests, units int64
	for i, r := range rows {
		out, requests, units = out+r.BytesOut, requests+r.Requests, units+r.Units
		if r.RequestID != rows[0].RequestID || (r.Requests == 1) != (i == len(rows)-1) {
			t.Errorf("row %d: got %+v", i, r)
		}
	}
	if len(rows) < 3 || out != 100 || requests != 1 || units != 1 {
		t.Errorf("got %d rows of %d bytes, %d requests, %d units; want some, 100, 1, 1", len(rows), out, requests, units)
	}
}

func TestPath_HalfAnAnswerIsNoAnswer(t *testing.T) {
	w := newWorld(t, nil)
	for _, relayed := range []bool{false, true} {
		up := w.west.up
		if relayed {
			w.west.up.kill()
			up = w.central.up
		}
		for _, length := range []string{"20000", ""} {
			up.does(func(rw http.ResponseWriter, r *http.Request) {
				if length != "" {
					rw.Header().Set("Content-Length", length)
				}
				rw.Write(make([]byte, 8192)) // more than any buffer on the way holds back
				http.NewResponseController(rw).Flush()
				time.Sleep(20 * time.Millisecond)
				panic(http.ErrAbortHandler)
			})
			a := w.send("GET", "/v1/x", "")
			if a.err == nil {
				t.Errorf("relayed %v, length %q: got %d and %d bytes without error, want it broken off", relayed, length, a.status, len(a.body))
			}
			eventually(t, 2*time.Second, fmt.Sprintf("the row, relayed %v, length %q, of %+v", relayed, length, w.west.meter.last()), func() bool {
				r := w.west.meter.last()
				return r.Outcome == usage.OutcomeAborted && r.BytesOut == 8192 && r.ServedRegion == up.region
			})
		}
	}
	w.west.meter.finals(t)
}

func TestPath_AClientThatLeavesIsCountedOnce(t *testing.T) {
	w := newWorld(t, nil)
	w.west.up.does(func(rw http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	req, _ := http.NewRequestWithContext(ctx, "GET", w.west.server.URL+"/v1/x", nil)
	req.Host = "orders.test"
	req.Header.Set("X-Api-Key", w.key)
	if _, err := w.west.server.Client().Do(req); err == nil {
		t.Fatal("got an answer")
	}
	eventually(t, 2*time.Second, "one aborted row", func() bool { return w.west.meter.finals(t)[usage.OutcomeAborted] == 1 })
}

func TestPath_StreamsBothWays(t *testing.T) {
	w := newWorld(t, nil)
	big := strings.Repeat("0123456789abcdef", 64<<10/16*3) // not kept in memory
	if a := w.send("POST", "/v1/x", big); a.status != 200 || both2(w, big) != 1 {
		t.Errorf("large body: got %d, came %d times", a.status, both2(w, big))
	}
	w.west.up.kill()
	time.Sleep(50 * time.Millisecond) // on a connection that is just dying, it might have got through
	if a := w.send("POST", "/v1/x", big); a.status != 200 || a.served != "eu-central" || both2(w, big) != 2 {
		t.Errorf("large body after a refused dial: got %d by %q, came %d times in all, want the pair to get it whole", a.status, a.served, both2(w, big))
	}
}

func both2(w *world, body string) int {
	n := 0
	for _, u := range []*upstream{w.west.up, w.central.up} {
		u.mu.Lock()
		n += u.bodies[body]
		u.mu.Unlock()
	}
	return n
}

// The same request over three protocols: the same decision and the same row.
func TestPath_ProtocolsAgree(t *testing.T) {
	w := newWorld(t, nil)
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
	clients := map[string]http.RoundTripper{
		"h1": &http.Transport{Protocols: &h1, TLSClientConfig: insecure()}, "h2": &http.Transport{Protocols: &h2, TLSClientConfig: insecure()}, "h3": h3}
	for _, c := range []struct {
		name, method, path, host, key string
		reads                         int // headers beyond what is allowed, in KiB
		status                        int
	}{
		{"served", "GET", "/v1/x", "orders.test", w.key, 0, 200},
		{"posted", "POST", "/v1/x", "orders.test", w.key, 0, 200},
		{"no key", "GET", "/v1/x", "orders.test", "", 0, 401},
		{"no route for the plan", "GET", "/v1/x", "reports.test", w.key, 0, 421}, // another API on a connection made for orders
		{"another host of the API", "GET", "/v1/x", "orders2.test", w.key, 0, 200},
		{"dots", "GET", "/v1/%2e%2e/x", "orders.test", w.key, 0, 400},
		{"another route without the parameter", "POST", "/small;a/x", "orders.test", w.key, 0, 400},
		{"a slash in two bytes", "GET", "/v1%c0%afx", "orders.test", w.key, 0, 400},
		{"a method in small letters", "delete", "/v1/x", "orders.test", w.key, 0, 405},
		{"too large", "POST", "/small/x", "orders.test", w.key, 0, 413},
	} {
		for name, rt := range clients {
			before := w.west.meter.len()
			var body io.Reader
			if c.method == "POST" {
				body = strings.NewReader("twelve bytes")
			}
			req, _ := http.NewRequest(c.method, "https://"+l.Addr().String()+c.path, body)
			req.Host = c.host
			if c.key != "" {
				req.Header.Set("Authorization", "Bearer "+c.key)
			}
			resp, err := rt.RoundTrip(req)
			if err != nil {
				t.Errorf("%s over %s: %v", c.name, name, err)
				continue
			}
			io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			if resp.StatusCode != c.status {
				t.Errorf("%s over %s: got %d, want %d", c.name, name, resp.StatusCode, c.status)
			}
			rows := w.west.meter.since(before)
			if want := map[bool]int{true: 1}[c.status == 200 || c.status == 413]; len(rows) != want {
				t.Errorf("%s over %s: got %d rows, want %d", c.name, name, len(rows), want)
			} else if want == 1 && c.status == 200 && (rows[0].Outcome != usage.OutcomeSuccess || rows[0].Customer != "acme" || c.method == "POST" && rows[0].BytesIn != 12) {
				t.Errorf("%s over %s: got row %+v", c.name, name, rows[0])
			}
		}
	}
	// Headers beyond the limit are told so.
	conn, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{InsecureSkipVerify: true, ServerName: "orders.test", NextProtos: []string{"http/1.1"}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	go fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: orders.test\r\nX-Large: %s\r\n\r\n", strings.Repeat("a", 1<<20))
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil || resp.StatusCode != 431 {
		t.Errorf("1 MiB of headers: got %v %v, want 431", resp, err)
	}
}

func BenchmarkProxy_Get(b *testing.B) {
	w := newWorld(b, nil)
	rt := w.west.server.Client().Transport
	b.ReportAllocs()
	for b.Loop() {
		req, _ := http.NewRequest("GET", w.west.server.URL+"/v1/x", nil)
		req.Host = "orders.test"
		req.Header.Set("X-Api-Key", w.key)
		resp, err := rt.RoundTrip(req)
		if err != nil {
			b.Fatal(err)
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
	}
}

// BenchmarkProxy_Refuse is the path alone, up to the gate's no: what a flood of random keys costs.
func BenchmarkProxy_Refuse(b *testing.B) {
	w := newWorld(b, nil)
	req := httptest.NewRequest("GET", "http://orders.test/v1/x", nil)
	req.Header.Set("X-Api-Key", w.key[:len(w.key)-1]+"_")
	b.ReportAllocs()
	for b.Loop() {
		w.west.proxy.ServeHTTP(httptest.NewRecorder(), req)
	}
}

// What a client expects that nobody knows is refused like anything else: by a name to ask about, over each protocol, and nobody
// is asked or counted.
func TestPath_ExpectationsThatNobodyKnows(t *testing.T) {
	w := newWorld(t, nil)
	before, rows := w.west.up.count.Load(), w.west.meter.len()
	for _, v := range w.vias() {
		for _, expected := range [][]string{{"200-ok"}, {"100-continue", "x"}, {"100-continue", "100-continue"}, {""}} {
			req, err := http.NewRequestWithContext(t.Context(), "GET", v.base+"/v1/x", nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Host = "orders.test"
			req.Header.Set("X-Api-Key", w.key)
			req.Header["Expect"] = expected
			resp, err := v.rt.RoundTrip(req)
			if err != nil {
				t.Fatalf("over %s, %q: %v", v.name, expected, err)
			}
			text, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			id := resp.Header.Get("Bailiwick-Request-Id")
			if resp.StatusCode != 417 || id == "" || !strings.Contains(string(text), id) || !strings.Contains(string(text), gate.ReasonExpectation) {
				t.Errorf("over %s, %q: got %d %s, id %q", v.name, expected, resp.StatusCode, text, id)
			}
		}
	}
	if n := w.west.up.count.Load() - before; n != 0 || w.west.meter.len() != rows {
		t.Errorf("%d asked the upstream, %d rows, want none", n, w.west.meter.len()-rows)
	}
}

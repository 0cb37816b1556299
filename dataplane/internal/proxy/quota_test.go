package proxy_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/quic-go/quic-go/http3"

	"bailiwick/dataplane/internal/gate"
	"bailiwick/dataplane/internal/proxy"
	"bailiwick/dataplane/internal/quota"
	"bailiwick/shared/lifecycle/porttest"
	"bailiwick/shared/table"
	"bailiwick/shared/usage"
)

// lessor leases up to limit units, and remembers what the edge said last.
type lessor struct {
	mu    sync.Mutex
	limit int64
	last  quota.Ask
}

func (l *lessor) Exchange(_ context.Context, r *quota.Request) (*quota.Response, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := &quota.Response{Sequence: r.Sequence, LiveEdges: 1}
	for _, k := range r.Asks {
		l.last = k
		leased := min(l.limit, k.Ceiling+k.Want)
		out.States = append(out.States, quota.State{ID: k.ID, Period: 1_761_955_200, Leased: leased, Limit: l.limit, Leases: true, Exhausted: leased == l.limit})
	}
	return out, nil
}

// said waits until the edge says so of its units.
func (l *lessor) said(t *testing.T, spent, inFlight int64) {
	t.Helper()
	var last quota.Ask
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		l.mu.Lock()
		last = l.last
		l.mu.Unlock()
		if last.Spent == spent && last.InFlight == inFlight {
			return
		}
	}
	t.Errorf("the edge says it spent %d and has %d under way, want %d and %d", last.Spent, last.InFlight, spent, inFlight)
}

// metered is a world whose key has a strict quota.
func metered(t *testing.T, limit int64, mod func(*proxy.Config)) (*world, *lessor) {
	l := &lessor{limit: limit}
	w := newWorld(t, func(c *proxy.Config) {
		b, err := quota.New(quota.Config{Leader: l, Epoch: 1, Logger: slog.New(slog.DiscardHandler), Wait: quota.DefaultWait})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		wg.Go(func() { b.Run(ctx) })
		t.Cleanup(func() { cancel(); wg.Wait() })
		c.Gate.Quotas = b
		if mod != nil {
			mod(c)
		}
	})
	var key table.Object
	w.key, key = mint(t, "metered")
	plan, err := table.Encode(table.KindPlan, "metered", table.Plan{Name: "metered", Rev: 1, APIs: map[string]string{"orders": "core"}, QuotaUnits: limit, QuotaMode: "strict", QuotaPeriod: "month"})
	if err != nil {
		t.Fatal(err)
	}
	w.objects = append(w.objects, key, plan)
	w.west.tables.Swap(w.view(w.west, true))
	return w, l
}

func TestQuota_AUnitIsWhatAnUpstreamAnswered(t *testing.T) {
	w, l := metered(t, 100, nil)
	if a := w.send("GET", "/v1/x", ""); a.status != 200 || !strings.Contains(strings.Join(a.header["Ratelimit"], ""), `"quota";r=99`) {
		t.Errorf("got %d %v, want 200 and 99 left", a.status, a.header)
	}
	if row := w.west.meter.last(); row.Units != 1 || row.Period != 1_761_955_200 {
		t.Errorf("got %d units in period %d, want 1 in the lease's", row.Units, row.Period)
	}
	l.said(t, 1, 0)
	// An upstream's error is an answer; a body that is too large is none.
	w.west.up.answer(404)
	w.send("GET", "/v1/x", "")
	w.send("POST", "/small/x", "12345678901")
	if row := w.west.meter.last(); row.Units != 0 || row.Period != 0 || row.Outcome != usage.OutcomeRefused {
		t.Errorf("refused: got %+v, want no unit and no period", row)
	}
	l.said(t, 2, 0)
	// A row that may not be on disk: the unit is neither spent nor given back.
	w.west.meter.mu.Lock()
	w.west.meter.err = errors.New("disk full")
	w.west.meter.mu.Unlock()
	if a := w.send("GET", "/v1/x", ""); a.status != 503 {
		t.Errorf("got %d, want 503", a.status)
	}
	l.said(t, 2, 1)
	w.west.meter.mu.Lock()
	w.west.meter.err, w.west.meter.healthy = nil, errors.New("disk full")
	w.west.meter.mu.Unlock()
	w.send("GET", "/v1/x", "") // refused before an upstream was asked
	l.said(t, 2, 1)
	w.west.meter.mu.Lock()
	w.west.meter.healthy = nil
	w.west.meter.mu.Unlock()
	w.west.up.kill()
	w.central.up.kill()
	if a := w.send("GET", "/v1/x", ""); a.status != 503 || !strings.Contains(a.body, gate.ReasonNoRegion) {
		t.Errorf("got %d %s, want no region", a.status, a.body)
	}
	l.said(t, 2, 1)
}

func TestQuota_UnbilledRequestsSpendNothingTwice(t *testing.T) {
	w, l := metered(t, 100, func(c *proxy.Config) { c.OnSpoolError = proxy.ServeUnbilled })
	w.west.meter.mu.Lock()
	w.west.meter.err = errors.New("disk full")
	w.west.meter.mu.Unlock()
	if a := w.send("GET", "/v1/x", ""); a.status != 200 {
		t.Errorf("got %d, want 200", a.status)
	}
	l.said(t, 0, 1) // served, and not in the spool: the ledger will never hear of it, so it stays taken
}

// The same decision over three protocols, from one quota.
func TestQuota_ProtocolsShareIt(t *testing.T) {
	w, _ := metered(t, 3, nil)
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
	clients := []http.RoundTripper{&http.Transport{Protocols: &h1, TLSClientConfig: insecure()}, &http.Transport{Protocols: &h2, TLSClientConfig: insecure()}, h3}
	for round, want := range []int{200, 429} {
		for i, rt := range clients {
			before := w.west.meter.len()
			req, _ := http.NewRequest("GET", "https://"+l.Addr().String()+"/v1/x", nil)
			req.Host = "orders.test"
			req.Header.Set("X-Api-Key", w.key)
			resp, err := rt.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if resp.StatusCode != want || want == 429 && (!strings.Contains(string(body), gate.ReasonQuotaExceeded) || resp.Header.Get("Retry-After") == "") {
				t.Errorf("round %d over %d: got %d %s, want %d", round, i+1, resp.StatusCode, body, want)
			}
			rows := w.west.meter.since(before)
			if len(rows) != 1 {
				t.Fatalf("round %d over %d: got %d rows, want 1", round, i+1, len(rows))
			}
			if r := rows[0]; want == 429 && (r.Outcome != usage.OutcomeLimited || r.Flags != usage.FlagQuotaLimited || r.Units != 0) {
				t.Errorf("round %d over %d: got %+v, want a limited row of the quota", round, i+1, r)
			}
		}
	}
}

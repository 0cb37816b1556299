package proxy_test

import (
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"bailiwick/shared/table"
	"bailiwick/shared/usage"
)

// What a client says of its own request takes no limit of the route away, and blames nobody for what the client brought about itself.

// An upload is a stream of messages, of which each may be as long as the limit, where streams may be expected; where not, whatever it
// calls itself, all of it may.
func TestLimits_NoWordOfTheClientLiftsThem(t *testing.T) {
	w := newWorld(t, patient)
	var got atomic.Int64
	w.west.up.reads = true
	w.west.up.does(func(_ http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		got.Store(n)
	})
	vias := w.vias()
	body := strings.Repeat("\x00\x00\x00\x00\x05hello", 10_000)
	for name, c := range map[string]struct {
		of      func(*table.API)
		streams bool
	}{
		"REST":                          {func(*table.API) {}, false},
		"sells messages":                {func(a *table.API) { a.Routes[0].Units = &table.Units{PerMessages: 1000, Most: 50} }, true},
		"is asked by gRPC":              {func(a *table.API) { s := ""; a.HealthGRPC = &s }, true},
		"has an upstream of HTTP/2":     {func(a *table.API) { a.Protocols = map[string]string{"http://other.test": "h2c"} }, true},
		"has found upstreams of HTTP/2": {func(a *table.API) { a.Protocols = map[string]string{table.FoundTargets: "h2c"} }, true},
	} {
		w.shaped(func(a *table.API) {
			a.Routes = []table.Route{{Name: "all", MaxRequestBytes: 10}}
			c.of(a)
		})
		for _, kind := range []string{"application/grpc", "application/grpc-web", "application/connect+json", "application/json"} {
			for _, v := range vias {
				got.Store(-1)
				rows := w.west.meter.len()
				resp, err := v.ask(t.Context(), w, "POST", "/v1/x", struct{ io.Reader }{strings.NewReader(body)}, "Content-Type", kind)
				status := 0 // it may have been broken off while it was sent
				if err == nil {
					io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
					status = resp.StatusCode
				}
				eventually(t, 20*time.Second, "its row", func() bool { return w.west.meter.len() > rows })
				row := w.west.meter.last()
				if c.streams && kind != "application/json" {
					if status != 200 || row.Status != 200 || got.Load() != int64(len(body)) {
						t.Errorf("an API that %s, %s over %s: got %d, row %d, %d of %d bytes at the upstream", name, kind, v.name, status, row.Status, got.Load(), len(body))
					}
				} else if row.Status != 413 || got.Load() > 10 {
					t.Errorf("an API that %s, %s over %s: got %d, row %d, %d bytes at the upstream, want 413 in the row and 10 bytes at most", name, kind, v.name, status, row.Status, got.Load())
				}
			}
		}
	}
}

// A client whose own time is over while an upstream works is like one that has left: nobody is at fault, and nothing was unserved.
func TestDeadlines_TheClientsOwnIsNobodysFault(t *testing.T) {
	w := newWorld(t, patient)
	var did atomic.Int64
	w.west.up.does(func(http.ResponseWriter, *http.Request) {
		time.Sleep(600 * time.Millisecond)
		did.Add(1)
	})
	vias := w.vias()
	for i, v := range append(vias, vias[0]) {
		for _, c := range []struct {
			path, kind string
			say        []string
			want       usage.Outcome
		}{
			{"/v1/x", "Connect", []string{"Content-Type", "application/json", "Connect-Protocol-Version", "1", "Connect-Timeout-Ms", "200"}, usage.OutcomeAborted},
			{"/v1/x", "gRPC", []string{"Content-Type", "application/grpc", "Grpc-Timeout", "200m"}, usage.OutcomeAborted},
			{"/quick/x", "the route, sooner than the client's", []string{"Content-Type", "application/grpc", "Grpc-Timeout", "10S"}, usage.OutcomeUnserved},
		} {
			if c.want == usage.OutcomeUnserved && i < len(vias) { // once, at last: that is the upstream's fault, and is remembered
				continue
			}
			rows, before := w.west.meter.len(), did.Load()
			a := w.sendBy(t.Context(), v, "POST", c.path, "\x00\x00\x00\x00\x01x", c.say...)
			eventually(t, 20*time.Second, "its row", func() bool { return w.west.meter.len() > rows })
			if row := w.west.meter.last(); row.Outcome != c.want || row.Status != 504 || row.Units != 0 || row.Requests != 1 {
				t.Errorf("the time of %s over %s: got %d, row %v with status %d and %d units, want %v, 504 and none", c.kind, v.name, a.status, row.Outcome, row.Status, row.Units, c.want)
			}
			eventually(t, 20*time.Second, "the upstream", func() bool { return did.Load() > before })
		}
	}
}

// An upstream's word on the units is never cheaper for being larger than what can be counted.
func TestUnits_MoreThanCanBeCountedIsTheMost(t *testing.T) {
	w := newWorld(t, patient)
	var says atomic.Pointer[string]
	w.west.up.does(func(rw http.ResponseWriter, _ *http.Request) { rw.Header().Set("X-Units", *says.Load()) })
	for text, want := range map[string]int64{"7": 7, "0": 0, "51": 50, "4611686018427387903": 50, "4611686018427387904": 50, "99999999999999999999999999": 50, "-1": 1, "7.0": 1, "99999999999999999999999999x": 1, "": 1} {
		says.Store(&text)
		if a := w.send("GET", "/priced/x", ""); a.status != 200 || w.west.meter.last().Units != want || a.header["X-Units"] != nil {
			t.Errorf("%q: got %d, %d units, header %q, want %d and none", text, a.status, w.west.meter.last().Units, a.header["X-Units"], want)
		}
	}
}

// A request that one limit refuses takes nothing from the others, and is told so.
func TestLimits_ARefusalIsToldWhatIsLeft(t *testing.T) {
	w := newWorld(t, patient)
	w.west.plan = func(p *table.Plan) {
		p.RequestsPerSecond, p.Burst = 1, 2
		p.Windows = []table.Window{{Requests: 10, Per: time.Hour}}
	}
	w.west.tables.Swap(w.view(w.west, true))
	hour := ""
	for i := range 4 {
		a := w.send("GET", "/v1/x", "")
		left := a.header.Get("Ratelimit")
		_, now, _ := strings.Cut(left, `"3600s";`)
		switch now, _, _ = strings.Cut(now, ";"); {
		case (a.status == 200) != (i < 2):
			t.Fatalf("request %d: got %d", i+1, a.status)
		case a.status == 200:
			hour = now
		case now != hour:
			t.Errorf("a refusal says %q of the hour (%s), the answer before %q", now, left, hour)
		}
	}
	if hour != "r=8" {
		t.Errorf("two requests leave %q of the hour, want r=8", hour)
	}
}

// What a request costs does not depend on the road that it takes within the edge: what has come by way of others takes another one.
func TestFree_OnEachRoadAlike(t *testing.T) {
	w := newWorld(t, patient)
	vias := w.vias()
	for path, want := range map[string]int64{"/healthz": 0, "/healthz?": 1, "/healthz?a": 1, "/%68ealthz": 0, "/gratis/x?": 0} {
		for _, v := range vias {
			for _, by := range [][]string{nil, {"Via", "1.1 x"}} {
				rows := w.west.meter.len()
				a := w.sendBy(t.Context(), v, "GET", path, "", by...)
				eventually(t, 20*time.Second, "its row", func() bool { return w.west.meter.len() > rows })
				if row := w.west.meter.last(); a.status != 200 || row.Units != want || (row.Product == "") != (want == 0) {
					t.Errorf("GET %s %v over %s: got %d, %d units of product %q, want %d", path, by, v.name, a.status, row.Units, row.Product, want)
				}
			}
		}
	}
}

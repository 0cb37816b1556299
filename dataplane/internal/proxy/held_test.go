package proxy_test

import (
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"bailiwick/dataplane/internal/proxy"
	"bailiwick/shared/table"
)

// What a client gives hardly any time is held like what it takes back: who sets short times has no more worked on than who waits.
func TestHold_TheClientsOwnTime(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(cfg *proxy.Config) { patient(cfg); cfg.HedgeAfter = time.Minute })
	w.west.plan = func(p *table.Plan) { p.MaxConcurrent = 1 }
	w.west.tables.Swap(w.view(w.west, false))
	came, letGo := make(chan struct{}, 1), make(chan struct{})
	w.west.up.does(func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/S/M" { // it does not ask whether somebody still wants it
			came <- struct{}{}
			<-letGo
		}
	})
	for began := false; !began; {
		if a := w.send("POST", "/v1/S/M", "{}", "Content-Type", "application/json", "Connect-Protocol-Version", "1", "Connect-Timeout-Ms", "200"); a.status == 200 {
			t.Fatalf("a call that waits: got %d", a.status)
		}
		select {
		case <-came:
			began = true
		default: // its time was over before the upstream was asked
		}
	}
	if a := w.send("GET", "/v1/x", ""); a.status != 429 {
		t.Errorf("another while the upstream works on one whose time is over: got %d, want 429", a.status)
	}
	close(letGo)
	eventually(t, 20*time.Second, "the place", func() bool { return w.send("GET", "/v1/x", "").status == 200 })
}

// An attempt that lost to another's answer holds nothing of the customer's, who has its answer.
func TestHold_OfAHedgeThatLost(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(cfg *proxy.Config) { patient(cfg); cfg.HedgeAfter = time.Minute })
	w.west.plan = func(p *table.Plan) { p.MaxConcurrent = 1 }
	second := newUpstream(t, "eu-west")
	several(w, func(a *table.API) {
		a.Dispatch.Choice = "in-order"
		a.Routes = []table.Route{{Name: "all", HedgeAfter: 20 * time.Millisecond, Timeout: time.Minute}}
	}, w.west.up, second)
	letGo := make(chan struct{})
	defer close(letGo)
	var now atomic.Int32
	w.west.up.does(func(_ http.ResponseWriter, r *http.Request) { // it does not ask whether somebody still wants it
		now.Add(1)
		<-letGo
	})
	for range 3 {
		eventually(t, 20*time.Second, "the place, which the upstream has not let go of", func() bool { return w.send("GET", "/v1/x", "").status == 200 })
	}
	if now.Load() == 0 {
		t.Error("the first upstream was never asked")
	}
}

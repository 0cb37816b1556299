package proxy_test

import (
	"fmt"
	"net/http/httptest"
	"testing"
	"time"

	"bailiwick/dataplane/internal/gate"
	"bailiwick/shared/table"
)

// What is answered without a key is bounded for each address, and for no other because of one.
func TestGratis_IsBoundedForEachAddress(t *testing.T) {
	w := newWorld(t, nil)
	w.shaped(func(a *table.API) { a.CORS = &table.CORS{Origins: []string{"https://page.test"}} })
	p := w.west.proxy
	var apart []string // addresses that share no place
	seen := map[uint64]bool{p.GratisPlace("2001:db8::1"): true}
	for i := 1; len(apart) < 3; i++ {
		if from := fmt.Sprint("192.0.2.", i); !seen[p.GratisPlace(from)] {
			seen[p.GratisPlace(from)] = true
			apart = append(apart, from)
		}
	}
	if n := p.Gratis(apart[0], 1000, time.Hour); n != 400 {
		t.Errorf("%d of 1000 at once, want 400", n)
	}
	if n := p.Gratis(apart[0], 1000, time.Hour+time.Second); n != 200 {
		t.Errorf("%d of 1000 a second later, want 200", n)
	}
	if n := p.Gratis("2001:db8::1", 300, time.Hour) + p.Gratis("2001:db8::2", 300, time.Hour); n != 400 {
		t.Errorf("%d of 600 of one /64, want 400", n)
	}
	if n := p.Gratis("127.0.0.1", 10_000, time.Hour); n != 10_000 {
		t.Errorf("%d of 10000 from this machine", n)
	}
	preflight := func(from string) (status int) {
		r := httptest.NewRequest("OPTIONS", "/v1/x", nil)
		r.Host, r.RemoteAddr = "orders.test", from+":1234"
		r.Header.Set("Origin", "https://page.test")
		r.Header.Set("Access-Control-Request-Method", "GET")
		rec := httptest.NewRecorder()
		p.ServeHTTP(rec, r)
		if rec.Code == 429 && rec.Header().Get("Retry-After") == "" {
			t.Error("nobody says when to come back")
		}
		return rec.Code
	}
	if got := preflight(apart[1]); got != 204 {
		t.Errorf("the first: got %d, want 204", got)
	}
	p.Gratis(apart[1], 1000, p.Age()+time.Hour) // so that it lasts, however slow the machine
	if got := preflight(apart[1]); got != 429 {
		t.Errorf("of one that has had enough: got %d, want 429", got)
	}
	if got := preflight(apart[2]); got != 204 {
		t.Errorf("of another: got %d, want 204", got)
	}
	if n := p.Refused(gate.ReasonRateExceeded); n != 1 || w.west.meter.len() != 0 {
		t.Errorf("%d refusals and %d rows, want one and none", n, w.west.meter.len())
	}
}

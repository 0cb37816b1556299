package proxy_test

import (
	"net/http"
	"testing"
	"time"

	"bailiwick/dataplane/internal/proxy"
	"bailiwick/shared/usage"
)

// fixed gives every address the same pseudonym, but only if it is one.
type fixed struct{ t *testing.T }

func (f fixed) Of(address string, _ time.Time) uint64 {
	if address != "127.0.0.1" {
		f.t.Errorf("pseudonym of %q, want the client's address without a port", address)
	}
	return 42
}

func TestPath_RowsSayWhatDetailKeeps(t *testing.T) {
	w := newWorld(t, func(c *proxy.Config) { c.Pseudonyms = fixed{t} })
	w.west.up.does(func(rw http.ResponseWriter, r *http.Request) {
		time.Sleep(30 * time.Millisecond)
		rw.WriteHeader(404)
	})
	last := func() usage.Row {
		rows := w.west.meter.since(0)
		if len(rows) == 0 {
			t.Fatal("no row")
		}
		return rows[len(rows)-1]
	}
	w.send("GET", "/v1/x", "")
	if r := last(); r.Status != 404 || r.Attempts != 1 || r.UpstreamUS < 30_000 || r.UpstreamUS > r.LatencyUS || r.KeyID == "" || r.Address != 42 || r.Flags != 0 {
		t.Errorf("row = %+v, want one attempt of at least 30 ms, answered 404, with key and address", r)
	}
	w.west.up.kill()
	if a := w.send("GET", "/v1/x", ""); a.status != 200 {
		t.Fatalf("relayed: got %d", a.status)
	}
	if r := last(); r.Flags&usage.FlagRelayed == 0 || r.Attempts < 2 || r.Status != 200 || r.ServedRegion == "" {
		t.Errorf("row = %+v, want a relayed one of two attempts or more", r)
	}
}

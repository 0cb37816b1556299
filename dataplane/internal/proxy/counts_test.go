package proxy_test

import (
	"net/http"
	"testing"
	"time"

	"bailiwick/dataplane/internal/gate"
	"bailiwick/dataplane/internal/proxy"
	"bailiwick/shared/table"
)

// What metrics say of requests is what became of them, by protocol, and the time that those with a row took.
func TestCounts_SayWhatBecameOfRequests(t *testing.T) {
	w := newWorld(t, nil)
	_, at := w.secure()
	p := w.west.proxy
	ended := func(protocol, outcome string) int64 {
		for i, a := range proxy.CountedProtocols {
			for j, b := range proxy.CountedOutcomes {
				if a == protocol && b == outcome {
					return p.Ended(i, j)
				}
			}
		}
		t.Fatalf("no %s, %s", protocol, outcome)
		return 0
	}
	w.send("GET", "/v1/x", "")
	w.send("POST", "/v1/x", "body")
	w.send("GET", "/v1/x", "", "X-Api-Key", "")
	w.send("GET", "/scoped/x", "")
	overHTTP2(t, at, w.key)
	w.west.up.answer(404)
	w.send("GET", "/v1/x", "")
	w.west.up.kill()
	w.send("GET", "/v1/x", "") // by way of the other region
	want := map[[2]string]int64{{"1.1", "success"}: 3, {"1.1", "uncounted"}: 1, {"1.1", "refused"}: 1, {"1.1", "client_error"}: 1, {"2", "success"}: 1}
	eventually(t, 10*time.Second, "all of them counted", func() bool { // a client may have its answer before the request is over
		var n int64
		for i := range proxy.CountedProtocols[:4] {
			for j := range proxy.CountedOutcomes {
				n += p.Ended(i, j)
			}
		}
		return n == 7
	})
	for of, n := range want {
		if got := ended(of[0], of[1]); got != n {
			t.Errorf("%v: got %d, want %d", of, got, n)
		}
	}
	if n := p.Refused(gate.ReasonKeyMissing); n != 1 {
		t.Errorf("%d without a key, want 1", n)
	}
	if n := p.Refused(gate.ReasonScope); n != 1 {
		t.Errorf("%d without a scope, want 1", n)
	}
	each, sum := p.Took()
	var rows int64
	for _, n := range each {
		rows += n
	}
	if rows != 6 || sum <= 0 {
		t.Errorf("%d took %v, want 6", rows, sum)
	}
	central, n := w.central.proxy, int64(0)
	eventually(t, 10*time.Second, "the relay counted", func() bool { n = central.Ended(len(proxy.CountedProtocols)-1, 0); return n == 1 })
}

func TestCounts_SayWhatCameOfLookingForAKeptAnswer(t *testing.T) {
	w := caching(t, table.Cache{TTL: time.Hour}, false, func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Cache-Control", "max-age=60")
		rw.Write([]byte("kept"))
	})
	w.send("GET", "/v1/a", "")
	w.send("GET", "/v1/a", "")
	w.send("POST", "/v1/b", "x")
	got := map[string]int64{}
	eventually(t, 10*time.Second, "three looks", func() bool {
		var n int64
		for i, name := range proxy.CacheResults {
			got[name] = w.west.proxy.Looked(i)
			n += got[name]
		}
		return n == 3
	})
	if got["hit"] != 1 || got["uri-miss"] != 1 || got["method"] != 1 {
		t.Errorf("got %v", got)
	}
}

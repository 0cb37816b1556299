package proxy_test

import (
	"bufio"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net"
	"net/http"
	"testing"
	"time"

	"bailiwick/dataplane/internal/proxy"
	"bailiwick/shared/apikey"
	"bailiwick/shared/table"
)

// stall begins an upload of the region and stops in the middle of it; the answer, when it comes.
func (w *world) stall(t *testing.T, path string) *http.Response {
	c, err := net.Dial("tcp", w.west.server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(time.Minute))
	fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: orders.test\r\nX-Api-Key: %s\r\nContent-Length: 9000000\r\n\r\nhalf", path, w.key)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	return resp
}

// A client that stops in the middle of what another region is to get takes that region from nobody.
func TestBlame_AStalledUploadTakesNoRegion(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *proxy.Config) { c.HedgeAfter = time.Minute })
	w.west.up.kill()
	eventually(t, 20*time.Second, "another region", func() bool { return w.send("GET", "/v1/x", "").served == "eu-central" })
	for range 3 {
		if got := w.stall(t, "/quick/x").StatusCode; got != 408 {
			t.Errorf("half a body: %d, want 408", got)
		}
		if a := w.send("GET", "/v1/x", ""); a.status != 200 || a.served != "eu-central" {
			t.Fatalf("another's request right after it: %d from %q", a.status, a.served)
		}
	}
}

// Nor does one that gives a call no time, or that leaves.
func TestBlame_AClientInAHurryTakesNoRegion(t *testing.T) {
	w := newWorld(t, func(c *proxy.Config) { c.HedgeAfter = time.Minute })
	w.west.up.kill()
	eventually(t, 20*time.Second, "another region", func() bool { return w.send("GET", "/v1/x", "").served == "eu-central" })
	w.central.up.does(func(rw http.ResponseWriter, r *http.Request) {
		if r.Method == "POST" {
			<-r.Context().Done()
		}
	})
	for range 3 {
		w.send("POST", "/x.S/M", "\x00\x00\x00\x00\x00", "Content-Type", "application/grpc", "Grpc-Timeout", "20m")
		if a := w.send("GET", "/v1/x", ""); a.status != 200 || a.served != "eu-central" {
			t.Fatalf("another's request right after it: %d from %q", a.status, a.served)
		}
	}
}

// Connect says that a call's time is over by 504, which says nothing of who says it.
func TestBlame_TheTimeThatAClientGaveIsNoTargetsFault(t *testing.T) {
	w, mon := blameWorld(t)
	w.west.up.does(func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(504) })
	for range 5 {
		w.send("POST", "/x.S/M", "{}", "Content-Type", "application/json", "Connect-Protocol-Version", "1", "Connect-Timeout-Ms", "60000")
	}
	w.west.up.does(nil)
	well(t, w, mon)
}

// told is how many requests failed of all that are told of the API.
func (w *world) told() (failed int64) {
	_, told := w.west.proxy.Outcomes()
	for _, o := range told {
		failed += o.Failed
	}
	return failed
}

// What clients do makes no change of the catalog look bad: how long they let a call take, what strangers ask for that is not
// there, and what one customer of several does.
func TestBlame_NoClientMakesAChangeLookBad(t *testing.T) {
	w := newWorld(t, patient)
	speaking(t, w, nil)
	w.west.proxy.Turn()
	for range 8 {
		w.send("POST", "/grpc.testing.TestService/UnaryCall", "\x00\x00\x00\x00\x08\x1a\x06\x12\x04wait", "Content-Type", "application/grpc", "Grpc-Timeout", "10m")
	}
	if got := w.told(); got != 0 {
		t.Errorf("%d calls that were given no time are told of as failures", got)
	}
	w.west.orders = func(a *table.API) {
		a.Routes = []table.Route{{Name: "v1", PathPrefix: "/v1"}}
	}
	w.west.tables.Swap(w.view(w.west, true))
	w.west.proxy.Turn()
	for range 8 {
		if a := w.send("GET", "/nothing", "", "X-Api-Key", ""); a.status != 404 {
			t.Fatal(a.status)
		}
	}
	if got := w.told(); got != 0 {
		t.Errorf("%d requests of strangers for what is not there are told of as failures", got)
	}
	if a := w.send("GET", "/nothing", ""); a.status != 404 || w.told() != 1 {
		t.Errorf("a customer whose route is gone: %d, told %d, want 404 and 1", a.status, w.told())
	}
	as := func(key, path string) {
		own := w.key
		defer func() { w.key = own }()
		w.key = key
		w.send("GET", path, "")
	}
	keys := []string{w.key}
	for i := range 9 {
		id, text, err := apikey.Mint("emea", rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		d := apikey.Sum(pepper, text.Reveal())
		o, err := table.Encode(table.KindKey, id, table.Key{ID: id, DigestHex: hex.EncodeToString(d[:]), Customer: fmt.Sprint("customer ", i), Subscription: "main", Plan: "gold"})
		if err != nil {
			t.Fatal(err)
		}
		keys, w.objects = append(keys, text.Reveal()), append(w.objects, o)
	}
	w.west.tables.Swap(w.view(w.west, true))
	for _, key := range keys {
		as(key, "/v1/x")
	}
	for range 20 {
		w.send("GET", "/nothing", "")
	}
	if got := w.told(); got != 0 {
		t.Errorf("what one customer of ten does is told of as %d failures", got)
	}
	for _, key := range keys[1:] { // some share a bit, not all of nine
		as(key, "/nothing")
	}
	if got := w.told(); got != 30 {
		t.Errorf("what all meet is told of as %d failures, want 30", got)
	}
}

// Nor do those who fill a region's places for connections that last: its requests are served.
func TestBlame_FullPlacesForConnectionsTakeNoRegion(t *testing.T) {
	w := newLive(t, func(c *proxy.Config) {
		if c.HedgeAfter = time.Minute; c.Region == "eu-central" {
			c.MaxStreams = 1
		}
	}, nil)
	w.west.up.kill()
	eventually(t, 20*time.Second, "another region", func() bool { return w.send("GET", "/v1/x", "").served == "eu-central" })
	c := w.open(w.west)
	c.hear()
	if got := w.open(w.west); got.status != 502 && got.status != 503 {
		t.Errorf("a second connection: %d", got.status)
	}
	if a := w.send("GET", "/v1/x", ""); a.served != "eu-central" {
		t.Errorf("another's request right after it: %d from %q", a.status, a.served)
	}
}

package proxy_test

import (
	"context"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"
)

// leaves has the process that takes relays in a region drain, and its successor serve.
func (w *world) leaves(r *region) (drained <-chan struct{}) {
	done := make(chan struct{})
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	go func() {
		defer close(done)
		defer cancel()
		r.inbound.Drain(ctx)
	}()
	eventually(w.t, 5*time.Second, "nobody listens", func() bool {
		c, err := net.Dial("tcp", r.addr)
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	r.succeed()
	return done
}

// A region's edge is replaced: what it was relayed is answered, and what comes meanwhile goes to its successor at once, what cannot
// be repeated too.
func TestRelay_GoesToWhoeverComesAfterAnEdgeThatLeaves(t *testing.T) {
	w := newWorld(t, nil)
	w.west.up.kill()
	eventually(t, 10*time.Second, "another region", func() bool { return w.send("GET", "/v1/x", "").served == "eu-central" })
	asked, end := make(chan struct{}), make(chan struct{})
	begun := sync.OnceFunc(func() { close(asked) })
	w.central.up.does(func(rw http.ResponseWriter, r *http.Request) {
		begun()
		<-end
		rw.Write([]byte("late"))
	})
	slow := make(chan answer, 1)
	go func() { slow <- w.send("POST", "/v1/x", "{}") }()
	<-asked
	w.central.up.does(nil)
	drained := w.leaves(w.central)
	for _, method := range []string{"GET", "POST", "GET"} {
		if a := w.send(method, "/v1/x", map[string]string{"POST": "{}"}[method]); a.status != 200 || a.served != "eu-central" {
			t.Errorf("%s while an edge of the other region leaves: %d %s from %q, want its successor's answer", method, a.status, a.body, a.served)
		}
	}
	close(end)
	if a := <-slow; a.status != 200 || a.body != "late" {
		t.Errorf("the request that was under way: %d %q, want its answer", a.status, a.body)
	}
	<-drained
}

// A WebSocket through another region hears that the edge there goes, as one at its own edge does.
func TestSocket_HearsThatTheOtherRegionsEdgeGoes(t *testing.T) {
	w := newLive(t, nil, nil)
	w.west.up.kill()
	eventually(t, 10*time.Second, "another region", func() bool { return w.send("GET", "/live/x", "").served == "eu-central" })
	c := w.open(w.west)
	if _, text, err := c.hear(); text != "here is eu-central" {
		t.Fatalf("heard %q, %v", text, err)
	}
	began, drained := time.Now(), w.leaves(w.central)
	if code := c.closed(); code != 1001 {
		t.Errorf("closed with %d, want 1001", code)
	}
	<-drained
	if took := time.Since(began); took > 8*time.Second {
		t.Errorf("the other edge has waited for it for %s", took)
	}
}

package proxy_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"weak"

	"github.com/quic-go/quic-go/http3"

	"bailiwick/dataplane/internal/policy"
	"bailiwick/dataplane/internal/proxy"
	"bailiwick/shared/table"
	"bailiwick/shared/usage"
)

// via is a client of eu-west over one protocol.
type via struct {
	name string
	rt   http.RoundTripper
	base string
}

// vias are clients over each protocol that there is.
func (w *world) vias() []via {
	w.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for _, r := range []*region{w.west, w.central} {
		wg.Go(func() { r.proxy.Run(ctx) })
	}
	w.t.Cleanup(func() { cancel(); wg.Wait() })
	s, at := w.secure()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	go s.H3.Serve(pc)
	w.t.Cleanup(func() { pc.Close(); s.H3.Close() })
	insecure := func() *tls.Config { return &tls.Config{InsecureSkipVerify: true, ServerName: "orders.test"} }
	var one, two http.Protocols
	one.SetHTTP1(true)
	two.SetHTTP2(true)
	h1 := &http.Transport{Protocols: &one, TLSClientConfig: insecure(), ExpectContinueTimeout: time.Minute, DisableCompression: true}
	h2 := &http.Transport{Protocols: &two, TLSClientConfig: insecure(), ExpectContinueTimeout: time.Minute, DisableCompression: true}
	h3 := &http3.Transport{TLSClientConfig: insecure(), DisableCompression: true}
	w.t.Cleanup(func() { h1.CloseIdleConnections(); h2.CloseIdleConnections(); h3.Close() })
	return []via{{"HTTP/1.1", h1, "https://" + at}, {"HTTP/2", h2, "https://" + at}, {"HTTP/3", h3, "https://" + pc.LocalAddr().String()}}
}

// ask sends a request; its answer's body is the caller's to close.
func (v via) ask(ctx context.Context, w *world, method, path string, body io.Reader, header ...string) (*http.Response, error) {
	w.t.Helper()
	req, err := http.NewRequestWithContext(ctx, method, v.base+path, body)
	if err != nil {
		w.t.Fatal(err)
	}
	req.Host = "orders.test"
	req.Header.Set("X-Api-Key", w.key)
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	return v.rt.RoundTrip(req)
}

// tells is an upstream of endless answers: events without a length, one when the client has read the one before or a
// moment has passed, and downloads of a length that is never reached.
func (w *world) tells(r *region) {
	r.up.does(func(rw http.ResponseWriter, req *http.Request) {
		rc := http.NewResponseController(rw)
		if strings.HasPrefix(req.URL.Path, "/v1/download") {
			rw.Header().Set("Content-Length", strconv.Itoa(1<<40))
			piece := make([]byte, 64<<10)
			for range 16 << 20 / len(piece) { // more than waits anywhere for a client that reads nothing
				if _, err := rw.Write(piece); err != nil {
					return
				}
			}
			<-req.Context().Done()
			return
		}
		rw.Header().Set("Content-Type", "text/event-stream")
		for i := 0; ; i++ {
			if _, err := fmt.Fprintf(rw, "data: %d\n\n", i); err != nil || rc.Flush() != nil {
				return
			}
			select {
			case <-req.Context().Done():
				return
			case <-time.After(50 * time.Millisecond):
			}
		}
	})
}

// open is an endless answer: its first bytes have come.
type openAnswer struct {
	name string
	body io.ReadCloser
	in   *bufio.Reader
}

func (w *world) endless(ctx context.Context, v via, path string, header ...string) *openAnswer {
	w.t.Helper()
	resp, err := v.ask(ctx, w, "GET", path, nil, header...)
	if err != nil {
		w.t.Fatalf("%s over %s: %v", path, v.name, err)
	}
	if resp.StatusCode != 200 {
		w.t.Fatalf("%s over %s: got %d", path, v.name, resp.StatusCode)
	}
	o := &openAnswer{path + " over " + v.name, resp.Body, bufio.NewReaderSize(resp.Body, 16)}
	if _, err := o.in.Peek(2); err != nil {
		w.t.Fatalf("%s: %v", o.name, err)
	}
	w.t.Cleanup(func() { resp.Body.Close() })
	return o
}

// ends says how reading it ends, within so long.
func (o *openAnswer) ends(within time.Duration) error {
	timer := time.AfterFunc(within, func() { o.body.Close() })
	n, err := io.Copy(io.Discard, o.in)
	switch {
	case !timer.Stop():
		return fmt.Errorf("%s goes on after %v", o.name, within)
	case err == nil:
		return fmt.Errorf("%s looks whole after %d bytes", o.name, n)
	}
	return nil
}

func allEnd(t *testing.T, all []*openAnswer) {
	t.Helper()
	var wg sync.WaitGroup
	for _, o := range all {
		wg.Go(func() {
			if err := o.ends(30 * time.Second); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

// counted waits for so many final rows that were aborted and none else but so many that were served.
func (w *world) aborted(n int) {
	w.t.Helper()
	eventually(w.t, time.Minute, "rows of what was broken off", func() bool { return w.west.meter.finals(w.t)[usage.OutcomeAborted] == n })
}

// An answer that lasts ends with what its decision rested on, over each protocol, also where the client takes nothing just now;
// another customer's goes on.
func TestStreams_EndWithWhatTheyRestOn(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(w *world){
		"the key is revoked":   func(w *world) { w.objects = w.objects[1:] },
		"the key is suspended": func(w *world) { w.objects[0] = edited(w.t, w.objects[0], func(k *table.Key) { k.Suspended = true }) },
		"the plan sells it no more": func(w *world) {
			w.west.plan = func(p *table.Plan) { p.APIs = nil }
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, patient)
			w.tells(w.west)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var all []*openAnswer
			var others []*openAnswer
			for _, v := range w.vias() {
				all = append(all, w.endless(ctx, v, "/v1/events"), w.endless(ctx, v, "/v1/download"))
				others = append(others, w.endless(ctx, v, "/v1/events", "X-Api-Key", w.free))
			}
			change(w)
			w.west.tables.Swap(w.view(w.west, true))
			allEnd(t, all)
			w.aborted(len(all))
			for _, o := range others {
				for range 3 {
					if _, err := o.in.ReadString('\n'); err != nil {
						t.Errorf("another customer's: %s ends with %v", o.name, err)
					}
				}
			}
			_, told := w.west.proxy.Outcomes()
			for _, o := range told {
				if o.Failed > 0 {
					t.Errorf("it is told of as a failure of the API: %+v", o)
				}
			}
		})
	}
}

// An answer that lasts ends some time after its target was taken out of the catalog, here and where another region's edge has it
// from; one of a target that stays goes on.
func TestStreams_EndWithTheirTarget(t *testing.T) {
	t.Parallel()
	for _, far := range []bool{false, true} {
		t.Run(fmt.Sprint("relayed ", far), func(t *testing.T) {
			w := newWorld(t, func(c *proxy.Config) { c.UpstreamDrain = 200 * time.Millisecond })
			at := w.west
			if far {
				at = w.central
				w.west.up.kill()
				eventually(t, 10*time.Second, "another region", func() bool { return w.send("GET", "/v1/x", "").served == "eu-central" })
			}
			w.tells(at)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var all []*openAnswer
			for _, v := range w.vias() {
				all = append(all, w.endless(ctx, v, "/v1/events"), w.endless(ctx, v, "/v1/download"))
			}
			gone := at.up.addr
			second := newUpstream(t, at.name)
			at.orders = func(a *table.API) { a.Targets = []string{"http://" + second.addr, "http://" + gone} }
			at.tables.Swap(w.view(at, true))
			for _, o := range all {
				for range 3 * boolToInt(strings.HasPrefix(o.name, "/v1/events")) { // it is looked at meanwhile
					if _, err := o.in.ReadString('\n'); err != nil {
						t.Fatalf("%s ends although its target stays: %v", o.name, err)
					}
				}
			}
			at.orders = func(a *table.API) { a.Targets = []string{"http://" + second.addr} }
			at.tables.Swap(w.view(at, true))
			allEnd(t, all)
			w.aborted(len(all))
		})
	}
}

func boolToInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// Who stays for hours keeps no keys of the table that let it in: while keys change, each would keep those of another version.
func TestStreams_KeepNoTable(t *testing.T) {
	t.Parallel()
	old := func(t *testing.T, w *world) weak.Pointer[policy.Table] {
		before := w.west.tables.Load()
		if k := before.Keyless(); k.Key(w.objects[0].ID) != nil || k.Mark() != before.Mark() || k.Catalog() != before.Catalog() || k.Zone() != before.Zone() || k.Keyless() != k {
			t.Error("a table without its keys has some, or answers otherwise")
		}
		if key := before.Key(w.objects[0].ID); key == nil || proxy.KeepsID(before, key.ID) {
			t.Error("an id keeps those beside it in memory")
		}
		return weak.Make(before)
	}
	forgotten := func(t *testing.T, w *world, kept weak.Pointer[policy.Table]) {
		w.west.tables.Swap(w.view(w.west, true))
		eventually(t, 20*time.Second, "the table to be forgotten", func() bool {
			w.send("GET", "/v1/x", "", "Host", "nobody.test") // what serves next forgets what it served before
			time.Sleep(50 * time.Millisecond)
			runtime.GC()
			return kept.Value() == nil
		})
		w.objects = w.objects[1:]
		w.west.tables.Swap(w.view(w.west, true))
	}
	t.Run("answers", func(t *testing.T) {
		w := newWorld(t, patient)
		w.tells(w.west)
		var all []*openAnswer
		for _, v := range w.vias() {
			all = append(all, w.endless(t.Context(), v, "/v1/events"), w.endless(t.Context(), v, "/v1/download"))
		}
		forgotten(t, w, old(t, w))
		allEnd(t, all) // their key is revoked
	})
	t.Run("a WebSocket", func(t *testing.T) {
		w := newLive(t, nil, nil)
		ch := w.open(w.west)
		if _, text, err := ch.hear(); err != nil || !strings.HasPrefix(text, "here is") {
			t.Fatal(text, err)
		}
		forgotten(t, w, old(t, w))
		if code := ch.closed(); code != 1008 {
			t.Errorf("its key is revoked: closed with %d, want 1008", code)
		}
		ch.Close()
	})
}

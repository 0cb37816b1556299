package proxy_test

import (
	"context"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"bailiwick/dataplane/internal/gate"
	"bailiwick/dataplane/internal/proxy"
	"bailiwick/shared/table"
	"bailiwick/shared/usage"
)

// trickle is a body that comes piece by piece, n of them, one after each pause; n < 0: without end.
type trickle struct {
	ctx   context.Context
	piece string
	pause time.Duration
	n     int
}

func (b *trickle) Read(p []byte) (int, error) {
	if b.n == 0 {
		return 0, io.EOF
	}
	select {
	case <-b.ctx.Done():
		return 0, b.ctx.Err()
	case <-time.After(b.pause):
	}
	b.n--
	return copy(p, b.piece), nil
}

// An upload takes longer than the route's time, as long as it flows: over each protocol, here and across a relay.
func TestUploads_LastAsLongAsTheyFlow(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *proxy.Config) {
		if c.UploadRate = 1; c.Region == "eu-central" { // which does not judge another edge's clients
			c.UploadRate, c.UploadWindow = 1<<20, 100*time.Millisecond
		}
	})
	for _, r := range []*region{w.west, w.central} {
		r.orders = func(a *table.API) {
			a.Routes = append(a.Routes, table.Route{Name: "up", PathPrefix: "/up", Timeout: 2 * time.Second})
		}
		r.tables.Swap(w.view(r, true))
	}
	vias := w.vias()
	all := func(served string) {
		var wg sync.WaitGroup
		for _, v := range vias {
			wg.Go(func() {
				resp, err := v.ask(t.Context(), w, "POST", "/up/x", &trickle{t.Context(), "piece of " + served + v.name, 300 * time.Millisecond, 10})
				if err != nil {
					t.Errorf("over %s: %v", v.name, err)
					return
				}
				defer resp.Body.Close()
				if resp.StatusCode != 200 || resp.Header.Get("Bailiwick-Served") != served {
					text, _ := io.ReadAll(resp.Body)
					t.Errorf("over %s: got %d %s", v.name, resp.StatusCode, text)
				}
			})
		}
		wg.Wait()
	}
	all("eu-west")
	w.west.up.kill()
	eventually(t, 20*time.Second, "another region", func() bool { return w.send("GET", "/v1/x", "").served == "eu-central" })
	all("eu-central")
}

// Who sends a body too slowly is told so, over each protocol, and is no failure of the API's; others are served meanwhile.
func TestSlow_UploadsEnd(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *proxy.Config) { c.UploadRate, c.UploadWindow = 1000, 500*time.Millisecond })
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	vias := w.vias()
	for _, v := range vias {
		wg.Go(func() {
			resp, err := v.ask(ctx, w, "POST", "/v1/x", &trickle{ctx, "x", 20 * time.Millisecond, -1})
			if err != nil {
				t.Errorf("over %s: %v", v.name, err)
				return
			}
			defer resp.Body.Close()
			if text, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusRequestTimeout || !strings.Contains(string(text), gate.ReasonBodySlow) {
				t.Errorf("over %s: got %d %s", v.name, resp.StatusCode, text)
			}
		})
	}
	over := make(chan struct{})
	go func() { wg.Wait(); close(over) }()
	for n := 0; ; n++ {
		for _, v := range vias {
			resp, err := v.ask(ctx, w, "GET", "/v1/x", nil)
			if err != nil || resp.StatusCode != 200 {
				t.Fatalf("meanwhile over %s: %v", v.name, err)
			}
			resp.Body.Close()
		}
		select {
		case <-over:
			eventually(t, 10*time.Second, "rows of the slow ones", func() bool { return w.west.meter.finals(t)[usage.OutcomeRefused] == len(vias) })
			_, told := w.west.proxy.Outcomes()
			for _, o := range told {
				if o.Failed > 0 {
					t.Errorf("it is told of as a failure: %+v", o)
				}
			}
			return
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Who stops in the middle of a body is told so once the route's time is over, and not that it was malformed or the upstream late:
// a body that is kept, one that streams, one of no declared length, over each protocol, here and across a relay. What it is
// counted as does not depend on that.
func TestSlow_UploadsThatStopAreTold(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *proxy.Config) { c.HedgeAfter = time.Minute })
	vias := w.vias()
	rows := 0
	all := func(where string) {
		var wg sync.WaitGroup
		for _, v := range vias {
			for _, length := range []int64{100, 9_000_000, -1} {
				rows++
				wg.Go(func() {
					ctx, cancel := context.WithCancel(t.Context())
					defer cancel() // the library waits for whoever reads the body
					req, err := http.NewRequestWithContext(t.Context(), "POST", v.base+"/quick/x", io.MultiReader(strings.NewReader("half"), &trickle{ctx, "", time.Hour, 1}))
					if err != nil {
						t.Error(err)
						return
					}
					req.Host, req.ContentLength = "orders.test", length
					req.Header.Set("X-Api-Key", w.key)
					resp, err := v.rt.RoundTrip(req)
					if err != nil {
						t.Errorf("over %s, %d bytes, %s: %v", v.name, length, where, err)
						return
					}
					text, _ := io.ReadAll(resp.Body)
					cancel()
					resp.Body.Close()
					if resp.StatusCode != http.StatusRequestTimeout || !strings.Contains(string(text), gate.ReasonBodySlow) || v.name == "HTTP/1.1" && !resp.Close {
						t.Errorf("over %s, %d bytes, %s: got %d %s, the end is said %v", v.name, length, where, resp.StatusCode, text, resp.Close)
					}
				})
			}
		}
		wg.Wait()
		eventually(t, 10*time.Second, "rows of those that stopped", func() bool { return w.west.meter.finals(t)[usage.OutcomeRefused] == rows })
		if row := w.west.meter.last(); row.Units != 0 {
			t.Errorf("%s: got %+v, want no units", where, row)
		}
	}
	all("here")
	w.west.up.kill()
	eventually(t, 20*time.Second, "another region", func() bool { return w.send("GET", "/v1/x", "").served == "eu-central" })
	all("abroad")
}

// Who declares a body and sends it too slowly is not served on because its answer has begun, over each protocol. Who declares no
// length may only be listening.
func TestSlow_UploadsEndBesideTheirAnswer(t *testing.T) {
	w := newWorld(t, func(c *proxy.Config) { c.UploadRate, c.UploadWindow = 1000, 300*time.Millisecond })
	w.west.up.reads = true
	w.west.up.does(func(rw http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(rw)
		rc.EnableFullDuplex()
		go io.Copy(io.Discard, r.Body)
		for {
			if _, err := io.WriteString(rw, "data: x\n\n"); err != nil || rc.Flush() != nil {
				return
			}
			select {
			case <-r.Context().Done():
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	vias := w.vias()
	var slow, quiet, over sync.WaitGroup
	defer over.Wait()
	ended := make(chan struct{}) // the slow ones have
	for _, v := range vias {
		for _, length := range []int64{1 << 20, -1} {
			of := &slow
			if length < 0 {
				of = &quiet
			}
			of.Go(func() {
				req, err := http.NewRequestWithContext(ctx, "POST", v.base+"/v1/x", &trickle{ctx, "x", 20 * time.Millisecond, -1})
				if err != nil {
					t.Error(err)
					return
				}
				req.Host, req.ContentLength = "orders.test", length
				req.Header.Set("X-Api-Key", w.key)
				resp, err := v.rt.RoundTrip(req)
				if err != nil {
					t.Errorf("%d bytes over %s: %v", length, v.name, err)
					return
				}
				over.Go(func() { <-ctx.Done(); resp.Body.Close() })
				for after := 0; err == nil && after < 10; {
					_, err = resp.Body.Read(make([]byte, 512))
					select {
					case <-ended:
						after++ // its client hears more, although the others were ended that did the same for as long
					default:
					}
				}
				if length >= 0 && err == io.EOF || length < 0 && err != nil {
					t.Errorf("%d bytes over %s ended with: %v", length, v.name, err)
				}
			})
		}
	}
	slow.Wait()
	close(ended)
	quiet.Wait()
	eventually(t, 20*time.Second, "rows of the slow ones", func() bool { return w.west.meter.finals(t)[usage.OutcomeAborted] >= len(vias) })
	_, told := w.west.proxy.Outcomes()
	for _, o := range told {
		if o.Failed > 0 {
			t.Errorf("it is told of as a failure: %+v", o)
		}
	}
	cancel()
}

// A client is judged by the time that it was waited for, not by what the upstream does not take.
func TestPace_IsTheClientsAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate, window = 100, 10 * time.Second
		for _, c := range []struct {
			name        string
			waits, then time.Duration // for the client; for the upstream
			bytes       int
			slow        bool
		}{
			{"fast", time.Second, 0, 100, false},
			{"just too slow", time.Second, 0, 99, true},
			{"the upstream is slow", 10 * time.Millisecond, 5 * time.Second, 1, false},
			{"nothing comes", 5 * time.Second, 0, 0, true},
		} {
			p := proxy.NewPace()
			slow := false
			for range 60 {
				p.Wait(c.waits, c.bytes)
				time.Sleep(c.then)
				slow = slow || p.Slow(rate, window)
			}
			if slow != c.slow {
				t.Errorf("%s: slow %v, want %v", c.name, slow, c.slow)
			}
		}
		p := proxy.NewPace()
		p.Wait(2*window, 1)
		if p.Stop(); p.Slow(rate, window) {
			t.Error("a body that has come is too slow")
		}
	})
}

package proxy_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"bailiwick/dataplane/internal/proxy"
	"bailiwick/shared/table"
	"bailiwick/shared/usage"
)

// roads has an API's requests go over each road: what is common, an exchange, and a relay.
func roads(t *testing.T, does http.HandlerFunc, each func(t *testing.T, w *world, p protocol, path string)) {
	for _, road := range []string{"common", "exchange", "relay"} {
		t.Run(road, func(t *testing.T) {
			t.Parallel() // most of it is waiting
			w := newWorld(t, func(c *proxy.Config) { patient(c); c.HedgeAfter = time.Minute })
			path := "/v1/"
			if road == "exchange" {
				path = "/exchange/"
			}
			for _, r := range []*region{w.west, w.central} {
				r.orders = func(a *table.API) {
					a.HealthTimeout = time.Minute
					a.Routes = append(a.Routes, table.Route{Name: "exchange", PathPrefix: "/exchange", Deadline: time.Minute})
				}
				r.up.does(does)
				r.tables.Swap(w.view(r, true))
			}
			if road == "relay" {
				w.west.up.kill()
			}
			for _, p := range w.protocols(t) {
				eventually(t, time.Minute, "who serves", func() bool { // one that died is in doubt
					a := w.send("GET", path+"200", "")
					return a.status == 200 && (a.served == "eu-west") == (road != "relay")
				})
				each(t, w, p, path)
			}
		})
	}
}

// An upstream that dies within its answer when nothing of that has left is like one that gave none: the client hears so.
func TestDying_BeforeAnythingLeftIsSaid(t *testing.T) {
	roads(t, func(rw http.ResponseWriter, r *http.Request) {
		length := ""
		switch r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:] {
		case "200":
			return
		case "small":
			length = "100"
		case "long":
			length = fmt.Sprint(100 << 10)
		}
		rw.Header().Set("Content-Length", length)
		http.NewResponseController(rw).Flush()
		panic(http.ErrAbortHandler)
	}, func(t *testing.T, w *world, p protocol, path string) {
		for _, method := range []string{"GET", "POST"} {
			for _, size := range []string{"small", "long"} {
				before := w.west.meter.len()
				status, _, err := p.ask(t, w, method, path+size)
				if err != nil || status != 502 && (status != 503 || method == "POST") {
					t.Errorf("%s %s, %s: %d, %v; want 502", p.name, method, size, status, err)
				}
				rows := w.west.meter.since(before)
				if len(rows) != 1 || rows[0].Outcome != usage.OutcomeUnserved || rows[0].ServedRegion != "" || rows[0].BytesOut != 0 || rows[0].Units != 0 {
					t.Errorf("%s %s, %s: rows %+v, want one of who was not served", p.name, method, size, rows)
				}
				eventually(t, time.Minute, "a target that is well again", func() bool { return w.send("GET", path+"200", "").status == 200 })
			}
		}
	})
}

// ask makes a request of a protocol, whose answer comes whole.
func (p *protocol) ask(t *testing.T, w *world, method, path string) (status int, trailer http.Header, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var body io.Reader
	if method == "POST" {
		body = strings.NewReader("what is asked")
	}
	req, err := http.NewRequestWithContext(ctx, method, p.base+path, body)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = "orders.test"
	req.Header.Set("X-Api-Key", w.key)
	rt := p.rt
	if rt == nil { // a connection of its own: on another the library repeats what was not answered
		own := &http.Transport{}
		defer own.CloseIdleConnections()
		rt = own
	}
	resp, err := rt.RoundTrip(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, resp.Trailer, err
}

// An answer of which only a trailer comes is passed on with it.
func TestTrailers_EmptyAnswersKeepTheirTrailer(t *testing.T) {
	roads(t, func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set(http.TrailerPrefix+"X-Sum", "of nothing")
		http.NewResponseController(rw).Flush()
	}, func(t *testing.T, w *world, p protocol, path string) {
		if status, trailer, err := p.ask(t, w, "GET", path+"x"); err != nil || status != 200 || trailer.Get("X-Sum") != "of nothing" {
			t.Errorf("%s: %d, trailer %v, %v", p.name, status, trailer, err)
		}
	})
}

// One that asked for HTTP/1.0 has no trailer, and an end that it knows.
func TestTrailers_HTTP10HasNoTrailer(t *testing.T) {
	roads(t, func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set(http.TrailerPrefix+"X-Sum", "of nothing")
		http.NewResponseController(rw).Flush()
	}, func(t *testing.T, w *world, p protocol, path string) {
		if p.rt != nil {
			return
		}
		c, err := net.Dial("tcp", w.west.server.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		fmt.Fprintf(c, "GET %sx HTTP/1.0\r\nHost: orders.test\r\nX-Api-Key: %s\r\n\r\n", path, w.key)
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if n, err := io.Copy(io.Discard, resp.Body); err != nil || n != 0 || len(resp.TransferEncoding) > 0 {
			t.Errorf("%d bytes, %v, %v", n, resp.TransferEncoding, err)
		}
	})
}

// Whoever has sent his next request by then has that answered too: one byte of it was read while somebody watched for him to leave.
func TestDying_TheNextRequestIsServed(t *testing.T) {
	w := newWorld(t, func(c *proxy.Config) { patient(c); c.HedgeAfter = time.Minute })
	came, die := make(chan struct{}), make(chan struct{})
	w.west.orders = func(a *table.API) { a.HealthTimeout = time.Minute }
	w.west.up.does(func(rw http.ResponseWriter, r *http.Request) {
		if r.Method != "POST" {
			return
		}
		rw.Header().Set("Content-Length", fmt.Sprint(100<<10))
		http.NewResponseController(rw).Flush()
		close(came)
		<-die
		panic(http.ErrAbortHandler)
	})
	w.west.tables.Swap(w.view(w.west, true))
	c, r := w.dial()
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Minute))
	fmt.Fprintf(c, "POST /v1/x HTTP/1.1\r\nHost: orders.test\r\nX-Api-Key: %s\r\nContent-Length: 13\r\n\r\nwhat is asked", w.key)
	<-came
	fmt.Fprintf(c, "GET /v1/y HTTP/1.1\r\nHost: orders.test\r\nX-Api-Key: %s\r\n\r\n", w.key)
	time.Sleep(1500 * time.Millisecond) // from a second on somebody watches; where he comes later there is less to see
	close(die)
	for _, want := range []int{502, 200} {
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != want && (want == 502 || resp.StatusCode != 503) {
			t.Errorf("%d, %v; want %d", resp.StatusCode, err, want)
		}
	}
}

package http2

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	theirs "golang.org/x/net/http2"
)

// plain is a client of net/http's that speaks HTTP/2 in the clear.
func plain(t testing.TB) *http.Client {
	var p http.Protocols
	p.SetUnencryptedHTTP2(true)
	tr := &http.Transport{Protocols: &p}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

// Long bodies pass both ways at once, whole.
func TestHTTP_StreamsBothWays(t *testing.T) {
	at := serving(t, func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(w, r.Body); err != nil {
			panic(http.ErrAbortHandler)
		}
		w.Header().Set(http.TrailerPrefix+"X-Sum", fmt.Sprint(r.Trailer.Get("X-Client")))
	})
	client := plain(t)
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() {
			data := make([]byte, 3<<20+i*777)
			for j := range data {
				data[j] = byte(rand.Uint32())
			}
			req, _ := http.NewRequest("POST", "http://"+at.String(), io.NopCloser(bytes.NewReader(data)))
			req.ContentLength = map[bool]int64{true: int64(len(data)), false: -1}[i%2 == 0]
			req.Trailer = http.Header{"X-Client": {"told"}}
			resp, err := client.Do(req)
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			got, err := io.ReadAll(resp.Body)
			if err != nil || sha256.Sum256(got) != sha256.Sum256(data) {
				t.Errorf("%d bytes came back as %d: %v", len(data), len(got), err)
			}
			if sum := resp.Trailer.Get("X-Sum"); sum != "told" {
				t.Errorf("trailer: got %q", sum)
			}
		})
	}
	wg.Wait()
}

// A client that leaves ends the request's context, and a reader of its body.
func TestHTTP_CancelIsHeard(t *testing.T) {
	heard := make(chan error, 2)
	at := serving(t, func(w http.ResponseWriter, r *http.Request) {
		w.(http.Flusher).Flush()
		_, err := io.ReadAll(r.Body)
		heard <- err
		<-r.Context().Done()
		heard <- context.Cause(r.Context())
	})
	ctx, cancel := context.WithCancel(t.Context())
	body, _ := io.Pipe()
	req, _ := http.NewRequestWithContext(ctx, "POST", "http://"+at.String(), body)
	resp, err := plain(t).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	resp.Body.Close()
	for range 2 {
		if err := <-heard; err == nil {
			t.Errorf("nothing was heard")
		}
	}
}

// A client that waits to be told to send its body is told once somebody reads it, and not if nobody does.
func TestHTTP_ContinueIsSaidToWhoWaits(t *testing.T) {
	at := serving(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Link", "</a>")
		w.WriteHeader(http.StatusEarlyHints)
		w.Header().Del("Link")
		if r.URL.Path == "/read" {
			io.Copy(w, r.Body)
		}
	})
	for _, path := range []string{"/read", "/not"} {
		told, hints := false, 0
		ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got100Continue: func() { told = true },
			Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
				if code == 103 && h.Get("Link") == "</a>" {
					hints++
				}
				return nil
			}})
		req, _ := http.NewRequestWithContext(ctx, "POST", "http://"+at.String()+path, strings.NewReader("body"))
		req.Header.Set("Expect", "100-continue")
		client := plain(t)
		client.Transport.(*http.Transport).ExpectContinueTimeout = time.Minute
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		if read := path == "/read"; told != read || (string(body) == "body") != read || hints != 1 {
			t.Errorf("%s: told %v, got %q, %d hints", path, told, body, hints)
		}
	}
}

// Back-pressure: of a body that nobody reads a client may send so much and no more; what was read it may send anew, and whoever
// sends beyond it has his request ended, and no other.
func TestHTTP_ABodyThatNobodyReadsIsHeldBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		read := make(chan int)
		c, _, done := pipe(t, func(w http.ResponseWriter, r *http.Request) {
			for n := range read {
				if m, err := io.ReadFull(r.Body, make([]byte, n)); err != nil {
					t.Errorf("read %d of %d bytes: %v", m, n, err)
				}
			}
			<-r.Context().Done()
		})
		defer done()
		var mu sync.Mutex
		given, resets := map[uint32]int{}, map[uint32]theirs.ErrCode{}
		go func() {
			for {
				f, err := c.ReadFrame()
				if err != nil {
					return
				}
				mu.Lock()
				switch f := f.(type) {
				case *theirs.WindowUpdateFrame:
					given[f.StreamID] += int(f.Increment)
				case *theirs.RSTStreamFrame:
					resets[f.StreamID] = f.ErrCode
				}
				mu.Unlock()
			}
		}()
		hears := func(what string, of uint32, room int, reset theirs.ErrCode) {
			t.Helper()
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if given[of] != room || resets[of] != reset {
				t.Errorf("%s: room for %d bytes more, reset %v; want %d, %v", what, given[of], resets[of], room, reset)
			}
		}
		body := func(id uint32, n int) {
			for ; n > 0; n -= maxFrame {
				c.WriteData(id, false, make([]byte, min(n, maxFrame)))
			}
		}
		for _, id := range []uint32{1, 3} {
			c.open(id, false, ":method", "POST", ":scheme", "https", ":authority", "a.test", ":path", "/")
		}
		hears("at first", 0, connWindow-65535, 0) // what the connection is given beyond HTTP's own
		body(1, streamWindow)
		body(3, streamWindow)
		hears("nobody reads", 1, 0, 0)
		hears("nobody reads", 0, connWindow-65535, 0)
		read <- streamWindow / 2 // of one of the two
		synctest.Wait()
		mu.Lock()
		one, other := uint32(1), uint32(3)
		if given[3] > 0 {
			one, other = 3, 1
		}
		mu.Unlock()
		hears("half was read", one, streamWindow/2, 0)
		hears("and nothing of the other", other, 0, 0)
		body(one, streamWindow/2)
		hears("again nobody reads", one, streamWindow/2, 0)
		body(other, 1)
		hears("beyond", other, 0, theirs.ErrCodeFlowControl)
		hears("which is nothing to the first", one, streamWindow/2, 0)
		close(read)
	})
}

// A connection that drains loses no request: what was sent before the client heard of it is served, and what comes later may be
// sent elsewhere.
func TestConn_DrainLosesNothing(t *testing.T) {
	var served atomic.Int64
	var mu sync.Mutex
	var conns []*Conn
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var wg sync.WaitGroup
	v := New(Config{MaxHead: 64 << 10, Go: wg.Go, Panicked: func(p any) { t.Errorf("panic: %v", p) }})
	wg.Go(func() {
		for {
			raw, err := l.Accept()
			if err != nil {
				return
			}
			c := v.NewConn(raw, Peer{}, func(s *Stream) {
				s.HTTP(func(w http.ResponseWriter, r *http.Request) { hello(w, r); served.Add(1) })
			})
			mu.Lock()
			conns = append(conns, c)
			mu.Unlock()
			wg.Go(func() { c.Run(); raw.Close() })
		}
	})
	client := plain(t)
	const workers, each = 8, 60
	var clients sync.WaitGroup
	var finished atomic.Int64
	for range workers {
		clients.Go(func() {
			for range each {
				resp, err := client.Post("http://"+l.Addr().String(), "text/plain", strings.NewReader("x"))
				for err != nil && strings.Contains(err.Error(), "could not be established") { // it ended before anything was asked
					resp, err = client.Post("http://"+l.Addr().String(), "text/plain", strings.NewReader("x"))
				}
				if err != nil {
					t.Error(err)
					return
				}
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				finished.Add(1)
			}
		})
	}
	stop := make(chan struct{})
	drained := make(chan int)
	go func() {
		n := 0
		for {
			select {
			case <-stop:
				drained <- n
				return
			default:
			}
			mu.Lock()
			for _, c := range conns {
				c.Drain()
				n++
			}
			mu.Unlock()
			time.Sleep(time.Millisecond)
		}
	}()
	clients.Wait()
	close(stop)
	<-drained
	if n := served.Load(); n != workers*each || finished.Load() != n {
		t.Errorf("%d requests were served and %d answered, want %d", n, finished.Load(), workers*each)
	}
	mu.Lock()
	if len(conns) < 2 {
		t.Errorf("%d connections: nothing was drained", len(conns))
	}
	mu.Unlock()
	client.CloseIdleConnections()
	l.Close()
	mu.Lock()
	for _, c := range conns {
		c.rwc.Close()
	}
	mu.Unlock()
	v.Close()
	wg.Wait()
}

package http3

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	library "github.com/quic-go/quic-go/http3"
)

// usualClient is one of quic-go's.
func (d *door) usualClient(t testing.TB) *http.Client {
	tr := &library.Transport{TLSClientConfig: d.tls, DisableCompression: true}
	t.Cleanup(func() { tr.Close() })
	return &http.Client{Transport: tr, Timeout: time.Minute}
}

// Long bodies pass both ways at once, whole, with trailers behind them.
func TestHTTP_StreamsBothWays(t *testing.T) {
	d := serving(t, func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(w, r.Body); err != nil {
			panic(http.ErrAbortHandler)
		}
		w.Header().Set(http.TrailerPrefix+"X-Sum", fmt.Sprint(r.Trailer.Get("X-Client")))
	})
	client := d.usualClient(t)
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			data := make([]byte, 1<<20+i*777)
			for j := range data {
				data[j] = byte(rand.Uint32())
			}
			req, _ := http.NewRequest("POST", "https://"+d.at, io.NopCloser(bytes.NewReader(data)))
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

// Each event is there when it was sent, and not when all have been.
func TestHTTP_EventsArriveOneByOne(t *testing.T) {
	next := make(chan struct{})
	d := serving(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for i := range 5 {
			fmt.Fprintf(w, "data: %d\n\n", i)
			if err := http.NewResponseController(w).Flush(); err != nil {
				return
			}
			<-next
		}
	})
	resp, err := d.usualClient(t).Get("https://" + d.at)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	in := bufio.NewReader(resp.Body)
	for i := range 5 {
		line, err := in.ReadString('\n')
		if err != nil || line != fmt.Sprintf("data: %d\n", i) {
			t.Fatalf("event %d: got %q, %v", i, line, err)
		}
		in.ReadString('\n')
		next <- struct{}{}
	}
	if _, err := in.ReadByte(); err != io.EOF {
		t.Errorf("behind the last: %v", err)
	}
}

// A client that leaves ends the request's context, and a reader of its body.
func TestHTTP_CancelIsHeard(t *testing.T) {
	heard := make(chan error, 2)
	d := serving(t, func(w http.ResponseWriter, r *http.Request) {
		w.(http.Flusher).Flush()
		_, err := io.ReadAll(r.Body)
		heard <- err
		<-r.Context().Done()
		heard <- context.Cause(r.Context())
	})
	ctx, cancel := context.WithCancel(t.Context())
	body, end := io.Pipe()
	defer end.Close()
	req, _ := http.NewRequestWithContext(ctx, "POST", "https://"+d.at, body)
	resp, err := d.usualClient(t).Do(req)
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

// A client that waits to be told to send its body is told once somebody reads it, and not if nobody does; interim answers pass.
func TestHTTP_ContinueIsSaidToWhoWaits(t *testing.T) {
	d := serving(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Link", "</a>")
		w.WriteHeader(http.StatusEarlyHints)
		w.Header().Del("Link")
		if r.URL.Path == "/read" {
			io.Copy(w, r.Body)
		}
	})
	head := func(path string) []byte {
		return section(":method", "POST", ":scheme", "https", ":authority", "a.test", ":path", path, "expect", "100-continue", "content-length", "3")
	}
	c := d.dial(t)
	s := c.open(head("/read"), false)
	in := &reader{buf: make([]byte, 64)}
	for _, want := range []string{":status: 103", ":status: 100"} {
		f, err := in.frame(s)
		if err != nil {
			t.Fatal(err)
		}
		b, err := in.whole(s, int(f.length))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := theirs(b); err != nil || !strings.HasPrefix(got, want) {
			t.Fatalf("got %q, %v, want %s", got, err, want)
		}
	}
	s.Write(data("abc"))
	s.Close()
	if got := answer(s); got != "200 abc" {
		t.Errorf("got %q", got)
	}
	if got := answer(c.open(head("/not"), false)); got != "103200" {
		t.Errorf("where nobody reads: got %q, want no word about going on", got)
	}
	hints := 0
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
		if code == 103 && h.Get("Link") == "</a>" {
			hints++
		}
		return nil
	}})
	req, _ := http.NewRequestWithContext(ctx, "GET", "https://"+d.at, nil)
	resp, err := d.usualClient(t).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if resp.Body.Close(); hints != 1 || resp.Header.Get("Link") != "" {
		t.Errorf("%d hints; %v", hints, resp.Header)
	}
}

// What handlers get wrong never looks whole, and what an answer must not have is not in it.
func TestHTTP_AnswersAreWhatTheySay(t *testing.T) {
	d := serving(t, func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		switch r.URL.Path {
		case "/short":
			h.Set("Content-Length", "5")
			io.WriteString(w, "abc")
		case "/long":
			h.Set("Content-Length", "2")
			if _, err := io.WriteString(w, "abc"); err != http.ErrContentLength {
				t.Errorf("more than was declared: %v", err)
			}
		case "/aborts":
			io.WriteString(w, strings.Repeat("x", 8<<10))
			panic(http.ErrAbortHandler)
		case "/fields":
			h.Set("Connection", "close")
			h.Set("X-Line", "a\nb")
			h["X Bad"] = []string{"y"}
			h.Set("Upper-Case", "z")
			w.WriteHeader(http.StatusNoContent)
		case "/head":
			h.Set("Content-Length", "1000")
		case "/whole":
			h.Set("Content-Length", "2")
			io.WriteString(w, "ab")
			if err := r.Context().Err(); err != nil {
				t.Errorf("a client that has its answer counts as gone: %v", err)
			}
		case "/late":
			if err := http.NewResponseController(w).SetWriteDeadline(time.Unix(1, 0)); err != nil {
				t.Error(err)
			}
			if _, err := w.Write(make([]byte, 64<<10)); err == nil {
				t.Error("a time that is over has no end")
			}
		}
	})
	c := d.dial(t)
	ask := func(method, path string) string {
		return answer(c.open(section(":method", method, ":scheme", "https", ":authority", "a.test", ":path", path), true))
	}
	for path, want := range map[string]string{"/short": "stream: 102", "/long": "stream: 102", "/aborts": "stream: 102", "/late": "stream: 102", "/fields": "204", "/whole": "200 ab", "/": "200"} {
		if got := ask("GET", path); got != want {
			t.Errorf("%s: got %q, want %q", path, got, want)
		}
	}
	if got := ask("HEAD", "/head"); got != "200" {
		t.Errorf("HEAD: got %q", got)
	}
	resp, err := d.usualClient(t).Get("https://" + d.at + "/fields")
	if err != nil {
		t.Fatal(err)
	}
	if resp.Body.Close(); resp.Header.Get("Connection") != "" || resp.Header.Get("X-Line") != "a b" || resp.Header.Get("Upper-Case") != "z" || len(resp.Header) != 3 {
		t.Errorf("got %v", resp.Header)
	}
}

// A client that takes nothing holds up its own request, until its time is over.
func TestHTTP_ASlowClientHoldsUpItself(t *testing.T) {
	failed := make(chan error, 1)
	d := serving(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/long" {
			return
		}
		http.NewResponseController(w).SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
		var err error
		for range 1000 {
			if _, err = w.Write(make([]byte, 64<<10)); err != nil {
				break
			}
		}
		failed <- err
	})
	c := d.dial(t)
	long := c.open(section(":method", "GET", ":scheme", "https", ":authority", "a.test", ":path", "/long"), true)
	for range 20 {
		if got := answer(c.open(section(usual...), true)); got != "200" {
			t.Fatalf("beside it: got %q", got)
		}
	}
	if err := <-failed; err == nil {
		t.Error("64 MB went to a client that reads nothing")
	}
	if got := answer(long); got != "stream: 102" {
		t.Errorf("got %q", got)
	}
}

// Whoever ends a request that is just written to has the last word.
func TestHTTP_ADeadlineThatComesMeanwhileIsHeeded(t *testing.T) {
	for _, before := range []int64{0, time.Now().Add(time.Hour).UnixNano()} {
		var until atomic.Int64
		until.Store(before)
		var set time.Time
		heed(&until, func(at time.Time) error {
			if until.Load() == before { // it was read, and not set yet
				until.Store(time.Unix(1, 0).UnixNano())
			}
			set = at
			return nil
		})
		if !set.Equal(time.Unix(1, 0)) {
			t.Errorf("from %d: the deadline is %v, want the one that somebody set meanwhile", before, set)
		}
	}
}

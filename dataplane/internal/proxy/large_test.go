package proxy_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"bailiwick/shared/table"
	"bailiwick/shared/usage"
)

// pattern is n bytes that are never the same for long.
type pattern struct{ at, n int64 }

func (p *pattern) Read(b []byte) (int, error) {
	if p.at == p.n {
		return 0, io.EOF
	}
	n := int(min(int64(len(b)), p.n-p.at))
	for i := range b[:n] {
		x := p.at + int64(i)
		b[i] = byte(x ^ x>>8 ^ x>>16)
	}
	p.at += int64(n)
	return n, nil
}

// same reads all of r and says whether it is the pattern.
func same(r io.Reader, n int64) error {
	want, got := &pattern{n: n}, int64(0)
	a, b := make([]byte, 32<<10), make([]byte, 32<<10)
	for {
		m, err := r.Read(a)
		io.ReadFull(want, b[:m])
		if got += int64(m); !bytes.Equal(a[:m], b[:m]) {
			return fmt.Errorf("other bytes before %d", got)
		}
		if err == io.EOF && got == n {
			return nil
		} else if err != nil {
			return fmt.Errorf("%v after %d of %d", err, got, n)
		}
	}
}

// Large bodies pass up, down and both ways at once, whole and with constant memory, of known length and of none, over each
// protocol. BAILIWICK_LONG=1: 1 GiB each instead of 4 MiB.
func TestLarge_BodiesPassWithConstantMemory(t *testing.T) {
	size, room := int64(4<<20), uint64(64<<20)
	if os.Getenv("BAILIWICK_LONG") != "" {
		size = 1 << 30
	}
	w := newWorld(t, patient)
	w.west.orders = func(a *table.API) {
		a.Routes = append(a.Routes, table.Route{Name: "large", PathPrefix: "/large", MaxRequestBytes: 2 << 30, Timeout: time.Minute})
	}
	w.west.tables.Swap(w.view(w.west, false))
	w.west.up.reads = true
	w.west.up.does(func(rw http.ResponseWriter, r *http.Request) {
		down := strings.Contains(r.URL.Path, "down")
		http.NewResponseController(rw).EnableFullDuplex()
		if strings.Contains(r.URL.Path, "known") && down {
			rw.Header().Set("Content-Length", strconv.FormatInt(size, 10))
		}
		var wg sync.WaitGroup
		if down {
			wg.Go(func() { io.Copy(rw, &pattern{n: size}) })
		}
		if strings.Contains(r.URL.Path, "up") {
			if err := same(r.Body, size); err != nil && r.Context().Err() == nil {
				t.Errorf("%s at the upstream: %v", r.URL.Path, err)
			}
			if !down {
				io.WriteString(rw, "had all")
			}
		}
		wg.Wait()
	})
	var most atomic.Uint64
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	base := m.HeapInuse + m.StackInuse // other tests' too
	stop := make(chan struct{})
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		for {
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			most.Store(max(most.Load(), m.HeapInuse+m.StackInuse))
			select {
			case <-stop:
				return
			case <-time.After(100 * time.Millisecond):
			}
		}
	}()
	for _, v := range w.vias() {
		for _, path := range []string{"/large/down/known", "/large/down", "/large/up/known", "/large/up", "/large/up/down"} {
			var body io.Reader
			if strings.Contains(path, "up") {
				body = &pattern{n: size}
			}
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
			req, _ := http.NewRequestWithContext(ctx, "POST", v.base+path, body)
			req.Host = "orders.test"
			req.Header.Set("X-Api-Key", w.key)
			if strings.Contains(path, "up/known") {
				req.ContentLength = size
			}
			resp, err := v.rt.RoundTrip(req)
			if err != nil {
				t.Errorf("%s over %s: %v", path, v.name, err)
				cancel()
				continue
			}
			switch {
			case resp.StatusCode != 200:
				t.Errorf("%s over %s: got %d", path, v.name, resp.StatusCode)
			case strings.Contains(path, "down"):
				if err := same(resp.Body, size); err != nil {
					t.Errorf("%s over %s: %v", path, v.name, err)
				}
			default:
				if text, _ := io.ReadAll(resp.Body); string(text) != "had all" {
					t.Errorf("%s over %s: got %q", path, v.name, text)
				}
			}
			resp.Body.Close()
			cancel()
			var row usage.Row
			eventually(t, time.Minute, "the row", func() bool {
				row = w.west.meter.last()
				return row.Requests == 1 && row.Outcome == usage.OutcomeSuccess
			})
		}
	}
	close(stop)
	<-watched
	if n := w.west.meter.finals(t)[usage.OutcomeSuccess]; n != 15 {
		t.Errorf("%d of 15 counted as served", n)
	}
	if got := most.Load(); got > base+room {
		t.Errorf("edge, upstream and clients together had %d MiB of memory more than before, want %d at most", (got-base)>>20, room>>20)
	}
	t.Logf("%d MiB at most, %d before", most.Load()>>20, base>>20)
}

// What flows has its whole head, however long, and its trailer, over each protocol; nothing that is not the client's to see is in it.
func TestFlow_HeadsAndTrailersArrive(t *testing.T) {
	w := newWorld(t, patient)
	w.west.up.does(func(rw http.ResponseWriter, r *http.Request) {
		n, _ := strconv.Atoi(r.URL.Query().Get("head"))
		rw.Header().Set("X-Long", strings.Repeat("é", n/2))
		rw.Header().Set("Trailer", "X-Sum, X-Empty, Bailiwick-Served")
		rw.WriteHeader(http.StatusOK)
		http.NewResponseController(rw).Flush() // of a length that nobody knows
		io.Copy(rw, &pattern{n: 150_000})
		rw.Header().Set("X-Sum", "all of it")
		rw.Header().Set("X-Empty", "")
		rw.Header().Set("Bailiwick-Served", "forged")
	})
	for _, v := range w.vias() {
		for _, n := range []int{0, 100, 2000, 3800, 4000, 4096, 5000, 30_000} {
			before := w.west.meter.len()
			resp, err := v.ask(t.Context(), w, "GET", fmt.Sprintf("/v1/x?head=%d", n), nil)
			if err != nil {
				t.Fatalf("a head of %d over %s: %v", n, v.name, err)
			}
			if err := same(resp.Body, 150_000); err != nil {
				t.Errorf("a head of %d over %s: %v", n, v.name, err)
			}
			resp.Body.Close()
			if got := resp.Header.Get("X-Long"); resp.StatusCode != 200 || got != strings.Repeat("é", n/2) || resp.Header.Get("Bailiwick-Served") != "eu-west" {
				t.Errorf("a head of %d over %s: got %d and %d of it, served by %q", n, v.name, resp.StatusCode, len(got), resp.Header.Get("Bailiwick-Served"))
			}
			if got := resp.Trailer; got.Get("X-Sum") != "all of it" || got.Get("Bailiwick-Served") != "" {
				t.Errorf("a head of %d over %s: got the trailer %v", n, v.name, got)
			}
			if row := w.west.meter.last(); w.west.meter.len() != before+1 || row.Outcome != usage.OutcomeSuccess || row.BytesOut != 150_000 {
				t.Errorf("a head of %d over %s: row %+v", n, v.name, row)
			}
		}
	}
}

// A client that takes nothing of its answer is given up, over each protocol, and others are served meanwhile.
func TestSlow_ReadersEnd(t *testing.T) {
	w := newWorld(t, patient)
	long := make([]byte, 32<<20) // more than waits anywhere for who reads nothing
	w.west.up.does(func(rw http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/quick/long") {
			if strings.HasSuffix(r.URL.Path, "/known") {
				rw.Header().Set("Content-Length", strconv.Itoa(len(long)))
			}
			rw.Write(long)
			return
		}
		io.WriteString(rw, "ok")
	})
	vias := w.vias()
	var all []*openAnswer
	for _, v := range vias {
		all = append(all, w.endless(t.Context(), v, "/quick/long"), w.endless(t.Context(), v, "/quick/long/known"))
	}
	old, _ := w.dial() // of a client whose answer ends where its connection does
	io.WriteString(old, strings.Replace(w.head("GET", "/quick/long", "\r\n"), "1.1", "1.0", 1))
	eventually(t, time.Minute, "rows of those that read nothing", func() bool {
		for _, v := range vias {
			if v.name == "HTTP/1.1" { // on a connection of its own
				resp, err := v.ask(t.Context(), w, "GET", "/v1/x", nil)
				if err != nil || resp.StatusCode != 200 {
					t.Fatalf("meanwhile over %s: %v", v.name, err)
				}
				resp.Body.Close()
			}
		}
		return w.west.meter.finals(t)[usage.OutcomeAborted] == len(all)+1
	})
	allEnd(t, all)
	if n, err := io.Copy(io.Discard, old); err == nil {
		t.Errorf("over HTTP/1.0 %d of %d bytes and then the end, as if that were all", n, len(long))
	}
}

// Each event reaches the client before the next is made, and a client that leaves ends the upstream's request: over each protocol,
// here and across a relay.
func TestEvents_PassOneByOne(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	var mu sync.Mutex
	var next, gone chan struct{}
	tell := func(rw http.ResponseWriter, r *http.Request) {
		mu.Lock()
		next, gone := next, gone
		mu.Unlock()
		if next == nil {
			return
		}
		rw.Header().Set("Content-Type", "text/event-stream")
		rc := http.NewResponseController(rw)
		rc.Flush() // the head alone
		for i := 0; ; i++ {
			select {
			case <-next:
				fmt.Fprintf(rw, "data: %d\n\n", i)
				rc.Flush()
			case <-r.Context().Done():
				close(gone)
				return
			}
		}
	}
	w.west.up.does(tell)
	w.central.up.does(tell)
	vias := w.vias()
	all := func(served string) {
		t.Helper()
		for _, v := range vias {
			mu.Lock()
			next, gone = make(chan struct{}), make(chan struct{})
			mu.Unlock()
			ctx, cancel := context.WithCancel(t.Context())
			resp, err := v.ask(ctx, w, "GET", "/v1/events", nil)
			if err != nil || resp.StatusCode != 200 || resp.Header.Get("Bailiwick-Served") != served {
				t.Fatalf("over %s: %v %v", v.name, resp, err)
			}
			in := bufio.NewReader(resp.Body)
			for i := range 5 {
				next <- struct{}{}
				line, err := in.ReadString('\n')
				if err != nil || line != fmt.Sprintf("data: %d\n", i) {
					t.Fatalf("over %s: got %q, %v", v.name, line, err)
				}
				in.ReadString('\n')
			}
			cancel()
			resp.Body.Close()
			select {
			case <-gone:
			case <-time.After(30 * time.Second):
				t.Errorf("over %s: the upstream does not hear that the client left", v.name)
			}
		}
	}
	all("eu-west")
	mu.Lock()
	next = nil
	mu.Unlock()
	w.west.up.kill()
	eventually(t, 20*time.Second, "another region", func() bool { return w.send("GET", "/v1/x", "").served == "eu-central" })
	all("eu-central")
	w.aborted(2 * len(vias))
}

// Ranges pass as they are asked for and answered, one and several, and whole where what they were asked of has changed; an
// expectation is met before the body is sent.
func TestRanges_AndExpectationsPass(t *testing.T) {
	w := newWorld(t, patient)
	data := make([]byte, 200<<10)
	io.ReadFull(&pattern{n: int64(len(data))}, data)
	w.west.up.does(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("ETag", `"one"`)
		http.ServeContent(rw, r, "data.bin", time.Unix(1700000000, 0), bytes.NewReader(data))
	})
	for _, v := range w.vias() {
		get := func(header ...string) (*http.Response, []byte) {
			t.Helper()
			resp, err := v.ask(t.Context(), w, "GET", "/v1/data", nil, header...)
			if err != nil {
				t.Fatalf("over %s: %v", v.name, err)
			}
			defer resp.Body.Close()
			got, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatalf("over %s: %v", v.name, err)
			}
			return resp, got
		}
		if resp, got := get("Range", "bytes=100-99999"); resp.StatusCode != 206 || resp.Header.Get("Content-Range") != "bytes 100-99999/204800" || !bytes.Equal(got, data[100:100000]) {
			t.Errorf("one range over %s: got %d %q and %d bytes", v.name, resp.StatusCode, resp.Header.Get("Content-Range"), len(got))
		}
		resp, got := get("Range", "bytes=0-9,1000-1009")
		_, boundary, _ := strings.Cut(resp.Header.Get("Content-Type"), "boundary=")
		parts := multipart.NewReader(bytes.NewReader(got), boundary)
		for _, want := range [][]byte{data[:10], data[1000:1010]} {
			part, err := parts.NextPart()
			if resp.StatusCode != 206 || err != nil {
				t.Fatalf("two ranges over %s: got %d, %v", v.name, resp.StatusCode, err)
			}
			if got, _ := io.ReadAll(part); !bytes.Equal(got, want) {
				t.Errorf("two ranges over %s: got %x, want %x", v.name, got, want)
			}
		}
		if resp, got := get("Range", "bytes=0-9", "If-Range", `"one"`); resp.StatusCode != 206 || len(got) != 10 {
			t.Errorf("of what is the same over %s: got %d and %d bytes", v.name, resp.StatusCode, len(got))
		}
		if resp, got := get("Range", "bytes=0-9", "If-Range", `"another"`); resp.StatusCode != 200 || sha256.Sum256(got) != sha256.Sum256(data) {
			t.Errorf("of what has changed over %s: got %d and %d bytes", v.name, resp.StatusCode, len(got))
		}
		if resp, _ := get("Range", "bytes=9999999-"); resp.StatusCode != 416 || resp.Header.Get("Content-Range") != "bytes */204800" {
			t.Errorf("beyond the end over %s: got %d %q", v.name, resp.StatusCode, resp.Header.Get("Content-Range"))
		}
		// Refused before it is sent, and invited.
		if v.name == "HTTP/3" { // quic-go's client sends at once
			continue
		}
		sent := bytes.NewReader(make([]byte, 1<<20)) // of a length that is said
		resp, err := v.ask(t.Context(), w, "POST", "/small/x", sent, "Expect", "100-continue")
		if err != nil || resp.StatusCode != 413 || sent.Len() != 1<<20 {
			t.Errorf("what is too large over %s: %v %v, and %d bytes were sent", v.name, resp, err, 1<<20-sent.Len())
		} else {
			resp.Body.Close()
		}
		resp, err = v.ask(t.Context(), w, "POST", "/v1/x", strings.NewReader("small"), "Expect", "100-continue")
		if err != nil || resp.StatusCode != 200 {
			t.Errorf("what is invited over %s: %v %v", v.name, resp, err)
		} else {
			resp.Body.Close()
		}
	}
}

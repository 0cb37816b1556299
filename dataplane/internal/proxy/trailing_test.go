package proxy_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"bailiwick/shared/table"
)

// What a client says behind a body of no declared length goes on, over each protocol, to upstreams of both and across a relay: but
// for what had to come before the body.
func TestTrailers_OfRequestsGoOn(t *testing.T) {
	w := newWorld(t, nil)
	var mu sync.Mutex
	var got http.Header
	hear := func(rw http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		got = r.Trailer.Clone()
		for name, values := range got { // announced, and not said
			if len(values) == 0 {
				delete(got, name)
			}
		}
		io.WriteString(rw, "ok")
	}
	w.west.up.does(hear)
	w.central.up.does(hear)
	vias := w.vias()
	said := map[string]string{"X-Sum": "abc", "X_under": "u", "X-Api-Key": "other", "Content-Type": "text/html", "Cookie": "a=b", "X-Forwarded-For": "9.9.9.9",
		"Bailiwick-Customer": "other", "Bailiwick_Plan": "other", "X_Forwarded_Proto": "https", "If-Match": "x", "X-Head": "behind", "Via": "x"}
	want := "map[X-Sum:[abc] X_under:[u]]"
	path := "/v1/x"
	all := func(where string) {
		t.Helper()
		for _, v := range vias {
			r, out := io.Pipe()
			req, _ := http.NewRequestWithContext(t.Context(), "POST", v.base+path, r)
			req.Host = "orders.test"
			if path == "/v1/x" {
				req.Header.Set("X-Api-Key", w.key)
			}
			req.Header.Set("X-Head", "before")
			req.Trailer = http.Header{}
			for name := range said {
				req.Trailer[name] = nil
			}
			go func() {
				out.Write(bytes.Repeat([]byte("x"), 1000))
				for name := range req.Trailer {
					req.Trailer[name] = []string{said[name]}
				}
				out.Close()
			}()
			resp, err := v.rt.RoundTrip(req)
			if err != nil {
				t.Fatalf("%s over %s: %v", where, v.name, err)
			}
			resp.Body.Close()
			mu.Lock()
			if resp.StatusCode != 200 || fmt.Sprint(got) != want {
				t.Errorf("%s over %s: got %d and the trailer %v, want %s", where, v.name, resp.StatusCode, got, want)
			}
			mu.Unlock()
		}
	}
	all("here")

	// Not announced; and what frames or routes a message is refused.
	conn, in := w.dial()
	io.WriteString(conn, w.head("POST", "/v1/x", "Transfer-Encoding: chunked\r\n", "\r\n")+"3\r\nabc\r\n0\r\nX-Sum: abc\r\nX-Api-Key: other\r\nX_under: u\r\n\r\n")
	if resp, _ := read(t, in, "POST"); resp.StatusCode != 200 || fmt.Sprint(got) != want {
		t.Errorf("not announced: got %d and the trailer %v, want %s", resp.StatusCode, got, want)
	}
	before := w.west.up.count.Load()
	io.WriteString(conn, w.head("POST", "/v1/x", "Transfer-Encoding: chunked\r\n", "\r\n")+"3\r\nabc\r\n0\r\nHost: other.test\r\n\r\n")
	if resp, _ := read(t, in, "POST"); resp.StatusCode != 400 || w.west.up.count.Load() != before {
		t.Errorf("a host behind the body: got %d, %d more at the upstream", resp.StatusCode, w.west.up.count.Load()-before)
	}

	// Nobody reads of a body behind which a trailer comes while its head is written: the transport, which does so to find out
	// whether a GET has a body, would iterate over what is filled in at its end. An empty one that was not looked at has a trailer.
	for _, method := range []string{"GET", "DELETE", "OPTIONS"} {
		conn, in := w.dial()
		io.WriteString(conn, w.head(method, "/v1/x", "Transfer-Encoding: chunked\r\nTrailer: X-Sum\r\n", "\r\n")+"0\r\nX-Sum: abc\r\nX-More: d\r\n\r\n")
		if resp, _ := read(t, in, method); resp.StatusCode != 200 || fmt.Sprint(got) != "map[X-More:[d] X-Sum:[abc]]" {
			t.Errorf("%s, announced: got %d and the trailer %v", method, resp.StatusCode, got)
		}
		io.WriteString(conn, w.head(method, "/v1/x", "Transfer-Encoding: chunked\r\n", "\r\n")+"1\r\nx\r\n0\r\nX-Sum: abc\r\n\r\n")
		if resp, _ := read(t, in, method); resp.StatusCode != 200 || len(got) > 0 {
			t.Errorf("%s, not announced: got %d and the trailer %v", method, resp.StatusCode, got)
		}
	}

	// Where the key stands in the query, which is taken out.
	w.west.orders = func(a *table.API) { a.Auth = &table.Auth{KeyQuery: "key"} }
	w.west.tables.Swap(w.view(w.west, true))
	path = "/v1/x?key=" + w.key
	all("with a key in the query")
	path = "/v1/x"

	// An upstream that speaks HTTP/2.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var two http.Protocols
	two.SetUnencryptedHTTP2(true)
	srv := &http.Server{Handler: w.west.up, Protocols: &two}
	go srv.Serve(l)
	defer srv.Close()
	url := "http://" + l.Addr().String()
	w.west.orders = func(a *table.API) { a.Targets, a.Protocols = []string{url}, map[string]string{url: "h2c"} }
	w.west.tables.Swap(w.view(w.west, true))
	all("to HTTP/2")

	// One that takes, as many do, also what was not announced.
	raw, heard := hears2(t)
	url = "http://" + raw
	w.west.tables.Swap(w.view(w.west, true))
	conn, in = w.dial()
	for _, more := range []struct{ announced, behind, want string }{
		{"", "X-Sum: abc\r\nX-Api-Key: other\r\n", "x-sum=abc "}, {"Trailer: X-Sum\r\n", "X-Sum: abc\r\nX-More: d\r\n", "x-more=d x-sum=abc "}, {"", "", ""},
	} {
		for home := false; !home; { // a machine that is slow makes it look unwell, and the pair answers
			io.WriteString(conn, w.head("POST", "/v1/x", "Transfer-Encoding: chunked\r\n"+more.announced, "\r\n")+"3\r\nabc\r\n0\r\n"+more.behind+"\r\n")
			resp, _ := read(t, in, "POST")
			home = resp.StatusCode == 200 && resp.Header.Get("Bailiwick-Served") == "eu-west"
		}
		if got := <-heard; got != more.want {
			t.Errorf("an upstream over HTTP/2 hears %q behind a body, want %q", got, more.want)
		}
	}

	url = "http://" + l.Addr().String()
	w.west.tables.Swap(w.view(w.west, true))
	srv.Close()
	w.west.up.kill()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for w.send("POST", "/v1/x", "x").served != "eu-central" && ctx.Err() == nil {
		time.Sleep(10 * time.Millisecond)
	}
	all("relayed")
}

// hears2 is an upstream that speaks HTTP/2 in clear, frame by frame, and says what came behind each request's body, whether it was
// announced or not.
func hears2(t *testing.T) (addr string, heard <-chan string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	out := make(chan string, 16)
	serve := func(c net.Conn) {
		defer c.Close()
		if _, err := io.CopyN(io.Discard, c, int64(len(http2.ClientPreface))); err != nil {
			return
		}
		f := http2.NewFramer(c, c)
		f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
		f.WriteSettings()
		behind, asked := map[uint32]string{}, map[uint32]bool{}
		for {
			frame, err := f.ReadFrame()
			if err != nil {
				return
			}
			over := false
			switch fr := frame.(type) {
			case *http2.SettingsFrame:
				if !fr.IsAck() {
					f.WriteSettingsAck()
				}
			case *http2.PingFrame:
				if !fr.IsAck() {
					f.WritePing(true, fr.Data)
				}
			case *http2.MetaHeadersFrame:
				if over = fr.StreamEnded(); len(fr.PseudoFields()) > 0 {
					asked[fr.StreamID] = fr.PseudoValue("method") == "POST" // and no probe
				} else {
					fields := slices.Clone(fr.Fields)
					slices.SortFunc(fields, func(a, b hpack.HeaderField) int { return strings.Compare(a.Name, b.Name) })
					for _, hf := range fields {
						behind[fr.StreamID] += hf.Name + "=" + hf.Value + " "
					}
				}
			case *http2.DataFrame:
				over = fr.StreamEnded()
			}
			if over {
				id := frame.Header().StreamID
				f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: []byte{0x88}, EndHeaders: true, EndStream: true}) // :status 200
				if asked[id] {
					out <- behind[id]
				}
			}
		}
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go serve(c)
		}
	}()
	return l.Addr().String(), out
}

// A client announces fields of names that are none. They are dropped: net/http would send nothing at all, and whoever did so would
// have taken the upstream from all others.
func TestTrailers_AnnouncedUnderNamesThatAreNone(t *testing.T) {
	w := newWorld(t, nil)
	for range 20 {
		conn, in := w.dial()
		io.WriteString(conn, w.head("POST", "/v1/x", "Transfer-Encoding: chunked\r\nTrailer: a b, X-Sum, (c)\r\n", "\r\n")+"3\r\nabc\r\n0\r\nX-Sum: abc\r\n\r\n")
		if resp, _ := read(t, in, "POST"); resp.StatusCode != 200 || resp.Header.Get("Bailiwick-Served") != "eu-west" {
			t.Fatalf("got %d of %q, want the upstream at home to answer", resp.StatusCode, resp.Header.Get("Bailiwick-Served"))
		}
	}
	if got := w.send("POST", "/v1/x", "x"); got.served != "eu-west" {
		t.Errorf("another client was served by %q", got.served)
	}
}

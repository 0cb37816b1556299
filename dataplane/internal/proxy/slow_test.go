package proxy_test

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"bailiwick/dataplane/internal/proxy"
	"bailiwick/shared/apikey"
	"bailiwick/shared/lifecycle/porttest"
	"bailiwick/shared/usage"
)

// Clients that are slow in every way there is, and floods of resets, hold nothing that another client needs.
func TestSlow_NobodyElseWaits(t *testing.T) {
	w := newWorld(t, nil)
	long := bytes.Repeat([]byte("x"), 4<<20)
	w.west.up.does(func(rw http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/long") {
			rw.Write(long)
			return
		}
		io.WriteString(rw, "ok")
	})
	cert := httptest.NewUnstartedServer(nil)
	cert.StartTLS()
	defer cert.Close()
	servers := proxy.NewServers(proxy.ServersConfig{Handler: w.west.proxy, TLS: &tls.Config{Certificates: cert.TLS.Certificates}, Logger: slog.New(slog.DiscardHandler)})
	l, err := net.Listen("tcp", porttest.Addr(t))
	if err != nil {
		t.Fatal(err)
	}
	go servers.HTTPS.Serve(l)
	defer servers.HTTPS.Close()

	head := "Host: orders.test\r\nX-Api-Key: " + w.key + "\r\n"
	var held []net.Conn
	defer func() {
		for _, c := range held {
			c.Close()
		}
	}()
	const each = 10
	clear := func(text string) {
		for range each {
			c, err := net.Dial("tcp", w.west.server.Listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			c.(*net.TCPConn).SetReadBuffer(4 << 10)
			io.WriteString(c, text)
			held = append(held, c)
		}
	}
	clear("")                                                                                     // idle from the start
	clear("GET /v1/x HT")                                                                         // a head that never ends
	clear("POST /v1/x HTTP/1.1\r\n" + head + "Content-Length: 100\r\n\r\nhalf")                   // a small body that never ends
	clear("POST /v1/x HTTP/1.1\r\n" + head + "Content-Length: 9000000\r\n\r\nhalf")               // a large one
	clear("POST /v1/x HTTP/1.1\r\n" + head + "Transfer-Encoding: chunked\r\n\r\n5\r\nhe")         // a chunk
	clear("GET /long HTTP/1.1\r\n" + head + "\r\n")                                               // an answer that nobody reads
	clear("POST /v1/x HTTP/1.1\r\n" + head + "Expect: 100-continue\r\nContent-Length: 5\r\n\r\n") // an invitation that nobody follows
	speaks := &tls.Config{InsecureSkipVerify: true, ServerName: "orders.test", NextProtos: []string{"h2"}, ClientSessionCache: tls.NewLRUClientSessionCache(4)}
	var block bytes.Buffer
	e := hpack.NewEncoder(&block)
	for _, f := range [][2]string{{":method", "POST"}, {":scheme", "https"}, {":authority", "orders.test"}, {":path", "/long"}, {"x-api-key", w.key}} {
		e.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
	}
	var floods sync.WaitGroup
	for i := range 8 {
		c, err := tls.Dial("tcp", l.Addr().String(), speaks)
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, c)
		io.WriteString(c, http2.ClientPreface)
		fr := http2.NewFramer(c, c)
		fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0}) // no window: nobody reads
		for n := range uint32(50) {
			fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 2*n + 1, BlockFragment: block.Bytes(), EndHeaders: true, EndStream: n%2 == 0}) // every other body never comes
		}
		if i < 4 {
			continue
		}
		floods.Go(func() { // resets, one upon the other, until the edge has enough of it
			for n := uint32(51); n < 400; n++ {
				if fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 2*n + 1, BlockFragment: block.Bytes(), EndHeaders: true}) != nil || fr.WriteRSTStream(2*n+1, http2.ErrCodeCancel) != nil {
					return
				}
			}
		})
	}
	for range 100 {
		if a := w.send("GET", "/v1/x", ""); a.err != nil || a.status != 200 {
			t.Fatalf("beside %d slow clients one that behaves gets %d %s, %v", len(held), a.status, a.body, a.err)
		}
	}
	floods.Wait()
	h2 := &http.Client{Transport: &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: speaks.Clone()}}
	defer h2.CloseIdleConnections()
	for range 20 {
		req, _ := http.NewRequest("GET", "https://"+l.Addr().String()+"/v1/x", nil)
		req.Host = "orders.test"
		req.Header.Set("X-Api-Key", w.key)
		resp, err := h2.Do(req)
		if err != nil {
			t.Fatalf("after the floods one that behaves gets %v", err)
		}
		io.Copy(io.Discard, resp.Body)
		if resp.Body.Close(); resp.StatusCode != 200 {
			t.Fatalf("after the floods one that behaves gets %d", resp.StatusCode)
		}
	}
}

// Keys that nobody has, and hosts: a clear answer, and the edge grows by nothing.
func TestFlood_OfKeysAndHostsLeavesNothing(t *testing.T) {
	w := newWorld(t, nil)
	conn, err := net.Dial("tcp", w.west.server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	answer := make([]byte, 64<<10)
	var ask func(host, key string, status int)
	ask = func(host, key string, status int) {
		t.Helper()
		fmt.Fprintf(conn, "GET /v1/x HTTP/1.1\r\nHost: %s\r\nX-Api-Key: %s\r\n\r\n", host, key)
		conn.SetReadDeadline(time.Now().Add(time.Minute))
		n, err := conn.Read(answer) // one write, and a problem is short
		if err != nil {
			t.Fatal(err)
		}
		if want := fmt.Sprintf("HTTP/1.1 %d ", status); !bytes.HasPrefix(answer[:n], []byte(want)) {
			t.Fatalf("host %s: got %.40q, want %s", host, answer[:n], want)
		}
	}
	flood := func(n int) {
		for i := range n {
			_, key, err := apikey.Mint("emea", rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			ask("orders.test", key.Reveal(), 401)
			ask(fmt.Sprintf("nobody-%d.test", i), w.key, 421)
		}
	}
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	flood(200)
	before, rows := heap(), w.west.meter.len()
	const n = 3000
	flood(n)
	if grown := int64(heap()) - int64(before); grown > n*32 { // a map entry a key would be more
		t.Errorf("%d keys and hosts that nobody has left %d bytes", n, grown)
	}
	if got := w.west.meter.len() - rows; got != 0 {
		t.Errorf("%d rows of keys that nobody has", got)
	}
	if got := w.west.meter.finals(t)[usage.OutcomeSuccess]; got != 0 {
		t.Errorf("%d of them served", got)
	}
}

package proxy_test

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"bailiwick/dataplane/internal/proxy"
	"bailiwick/shared/lifecycle/porttest"
	"bailiwick/shared/usage"
)

// A client that shuts its sending half looks gone to the library, and still reads: what nobody served must not
// reach it as the library's own 200.
func TestMoney_NobodyAnsweredIsNoSuccess(t *testing.T) {
	w := newWorld(t, nil)
	w.west.up.pause()
	w.central.up.pause()
	c, err := net.Dial("tcp", w.west.server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "GET /v1/x HTTP/1.1\r\nHost: orders.test\r\nX-Api-Key: %s\r\n\r\n", w.key)
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err == nil && resp.StatusCode < 400 && resp.Header.Get("Bailiwick-Served") == "" {
		t.Errorf("the client got %s, and no upstream answered", resp.Status)
	}
	eventually(t, 5*time.Second, "a row", func() bool { return w.west.meter.len() > 0 })
	if got := w.west.meter.finals(t); got[usage.OutcomeAborted] != 1 || len(got) != 1 {
		t.Errorf("rows: got %v, want one that was aborted", got)
	}
}

// A client that stops reading for longer than it may is given up. If it comes back it must see that the
// answer is broken off, over each protocol: it is on record as aborted.
func TestMoney_GivenUpAnswersLookBroken(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.west.up.does(func(rw http.ResponseWriter, r *http.Request) { // no length: the end is the only sign of it
		chunk := make([]byte, 64<<10)
		for range 256 {
			if _, err := rw.Write(chunk); err != nil {
				return
			}
			rw.(http.Flusher).Flush()
		}
	})
	tlsServer := httptest.NewUnstartedServer(nil)
	tlsServer.StartTLS()
	cert := tlsServer.TLS.Certificates[0]
	tlsServer.Close()
	servers := proxy.NewServers(proxy.ServersConfig{Handler: w.west.proxy, TLS: &tls.Config{Certificates: []tls.Certificate{cert}}, Logger: slog.New(slog.DiscardHandler)})
	l, err := net.Listen("tcp", porttest.Addr(t))
	if err != nil {
		t.Fatal(err)
	}
	go servers.HTTPS.Serve(l)
	defer servers.HTTPS.Close()
	u, err := net.ListenPacket("udp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	go servers.H3.Serve(u)
	defer servers.H3.Close()
	var h1, h2 http.Protocols
	h1.SetHTTP1(true)
	h2.SetHTTP2(true)
	insecure := func() *tls.Config { return &tls.Config{InsecureSkipVerify: true, ServerName: "orders.test"} }
	h3 := &http3.Transport{TLSClientConfig: insecure(), QUICConfig: &quic.Config{InitialStreamReceiveWindow: 64 << 10, MaxStreamReceiveWindow: 64 << 10, InitialConnectionReceiveWindow: 128 << 10, MaxConnectionReceiveWindow: 128 << 10}}
	defer h3.Close()
	for name, rt := range map[string]http.RoundTripper{"h1": &http.Transport{Protocols: &h1, TLSClientConfig: insecure()}, "h2": &http.Transport{Protocols: &h2, TLSClientConfig: insecure()}, "h3": h3} {
		before := w.west.meter.len()
		req, _ := http.NewRequest("GET", "https://"+l.Addr().String()+"/quick/x", nil) // 300 ms
		req.Host = "orders.test"
		req.Header.Set("X-Api-Key", w.key)
		resp, err := rt.RoundTrip(req)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		eventually(t, 10*time.Second, name+": a row", func() bool { return w.west.meter.len() > before })
		if got := w.west.meter.last().Outcome; got != usage.OutcomeAborted {
			t.Errorf("%s: counted as %v, want aborted", name, got)
		}
		n, err := io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if err == nil || errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%s: the client read %d bytes to a clean end, the answer has %d", name, n, 256*64<<10)
		}
	}
}

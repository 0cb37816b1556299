package proxy_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"bailiwick/dataplane/internal/failover"
	"bailiwick/dataplane/internal/proxy"
	"bailiwick/shared/lifecycle/porttest"
	"bailiwick/shared/table"
	"bailiwick/shared/usage"
)

// blameWorld is one in which no probe is late, however slow the machine is.
func blameWorld(t *testing.T) (w *world, mon *failover.Monitor) {
	w = newWorld(t, func(c *proxy.Config) {
		if c.Region == "eu-west" {
			mon = c.Monitor
		}
	})
	w.west.orders = func(api *table.API) { api.HealthTimeout = time.Minute }
	w.west.tables.Swap(w.view(w.west, true))
	return w, mon
}

// well says that the region's upstream is believed to be, and serves.
func well(t *testing.T, w *world, mon *failover.Monitor) {
	t.Helper()
	for _, r := range mon.Reports() {
		if r.API == "orders" && r.Phase != "healthy" {
			t.Errorf("the target is %s, want healthy", r.Phase)
		}
	}
	if a := w.send("GET", "/v1/x", ""); a.err != nil || a.status != 200 || a.served != "eu-west" {
		t.Errorf("one that behaves gets %d from %q, %v; want 200 from the region's own", a.status, a.served, a.err)
	}
}

// Clients that stop in the middle of what they send have nobody but themselves wait: their requests end late, and no target is
// believed to be worse for it.
func TestBlame_BodiesThatStopAreNoUpstreamsFault(t *testing.T) {
	w, mon := blameWorld(t)
	var all sync.WaitGroup
	for _, framing := range []string{"Content-Length: 9000000\r\n\r\nhalf", "Transfer-Encoding: chunked\r\n\r\n5\r\nhe", "Content-Length: 9000000\r\n\r\nhalf", "Transfer-Encoding: chunked\r\n\r\n5\r\nhe"} {
		all.Go(func() {
			c, err := net.Dial("tcp", w.west.server.Listener.Addr().String())
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(time.Minute))
			fmt.Fprintf(c, "POST /quick/x HTTP/1.1\r\nHost: orders.test\r\nX-Api-Key: %s\r\n%s", w.key, framing)
			resp, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				t.Error(err)
				return
			}
			resp.Body.Close()
			if resp.StatusCode != 408 || !resp.Close {
				t.Errorf("half a body is answered with %d, and the connection's end is said: %v, want 408 and so", resp.StatusCode, resp.Close)
			}
		})
	}
	all.Wait()
	well(t, w, mon)
}

// A client that takes its requests back while upstreams work on them ends what was asked there, and no target is believed to be
// worse for it.
func TestBlame_ResetsAreNoUpstreamsFault(t *testing.T) {
	w, mon := blameWorld(t)
	const requests = 50
	var active atomic.Int64
	w.west.up.mu.Lock()
	w.west.up.state = func(_ net.Conn, s http.ConnState) {
		if s == http.StateActive {
			active.Add(1)
		}
	}
	w.west.up.mu.Unlock()
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
	c, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{InsecureSkipVerify: true, ServerName: "orders.test", NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	go io.Copy(io.Discard, c)
	var block bytes.Buffer
	e := hpack.NewEncoder(&block)
	for _, f := range [][2]string{{":method", "POST"}, {":scheme", "https"}, {":authority", "orders.test"}, {":path", "/v1/x"}, {"x-api-key", w.key}} {
		e.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
	}
	io.WriteString(c, http2.ClientPreface)
	fr := http2.NewFramer(c, c)
	fr.WriteSettings()
	for n := range uint32(requests) { // bodies that never come: nothing is answered
		fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 2*n + 1, BlockFragment: block.Bytes(), EndHeaders: true})
		fr.WriteData(2*n+1, false, []byte("half"))
	}
	eventually(t, time.Minute, "all at the upstream", func() bool { return active.Load() >= requests })
	for n := range uint32(requests) {
		fr.WriteRSTStream(2*n+1, http2.ErrCodeCancel)
	}
	eventually(t, time.Minute, "a row of each", func() bool { return w.west.meter.finals(t)[usage.OutcomeAborted] == requests })
	well(t, w, mon)
}

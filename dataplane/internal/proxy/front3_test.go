package proxy_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
	pb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/protobuf/proto"

	"bailiwick/dataplane/internal/proxy"
	"bailiwick/shared/usage"
)

// three is a client of the western region over HTTP/3.
func (w *world) three() via { return w.vias()[2] }

// A request over HTTP/3 takes the road of common requests, and what is not common another; each is counted once.
func TestHTTP3_BodiesRangesAndTrailers(t *testing.T) {
	w := newWorld(t, nil)
	content := bytes.Repeat([]byte("0123456789abcdef"), 192<<10) // 3 MiB
	w.west.up.does(func(rw http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasPrefix(r.URL.Path, "/v1/file"):
			http.ServeContent(rw, r, "x.bin", time.Unix(1, 0), bytes.NewReader(content))
		case strings.HasPrefix(r.URL.Path, "/v1/sum"): // its body was read already
		default:
			rw.Header().Set("X-Via", r.Header.Get("Via"))
		}
	})
	v := w.three()
	ask := func(method, path string, body io.Reader, header ...string) (*http.Response, string) {
		t.Helper()
		resp, err := v.ask(t.Context(), w, method, path, body, header...)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp, string(b)
	}
	if resp, _ := ask("GET", "/v1/x", nil); resp.StatusCode != 200 || resp.Header.Get("X-Via") != "3.0 bailiwick" || resp.Header.Get("Bailiwick-Served") != "eu-west" {
		t.Errorf("got %d %v", resp.StatusCode, resp.Header)
	}
	if _, got := ask("GET", "/v1/file", nil); got != string(content) {
		t.Errorf("a long answer: %d bytes", len(got))
	}
	if resp, got := ask("GET", "/v1/file", nil, "Range", "bytes=100000-100015"); resp.StatusCode != 206 || got != string(content[100000:100016]) {
		t.Errorf("a range: got %d, %q", resp.StatusCode, got)
	}
	if resp, got := ask("HEAD", "/v1/file", nil); resp.StatusCode != 200 || got != "" || resp.Header.Get("Content-Length") != fmt.Sprint(len(content)) {
		t.Errorf("HEAD: got %d, %d bytes, %v", resp.StatusCode, len(got), resp.Header)
	}
	for _, n := range []int{0, 3, 4096, 4097, len(content)} {
		ask("POST", "/v1/sum", bytes.NewReader(content[:n]))
		w.west.up.mu.Lock()
		if w.west.up.bodies[string(content[:n])] == 0 && n > 0 {
			t.Errorf("a body of %d did not come whole", n)
		}
		w.west.up.mu.Unlock()
	}
	told := false
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got100Continue: func() { told = true }})
	if resp, err := v.ask(ctx, w, "POST", "/v1/sum", strings.NewReader("abc"), "Expect", "100-continue"); err != nil || resp.StatusCode != 200 {
		t.Errorf("got %v, %v", resp, err)
	} else if resp.Body.Close(); !told {
		t.Error("a client that waits is not told to go on")
	}
	eventually(t, 30*time.Second, "rows", func() bool {
		return int64(w.west.meter.finals(t)[usage.OutcomeSuccess]) == w.west.up.count.Load()
	})
}

// A client over HTTP/3 that leaves is noticed at the upstream, and counted as such.
func TestHTTP3_CancelReachesTheUpstream(t *testing.T) {
	w := newWorld(t, nil)
	here, gone := make(chan struct{}, 1), make(chan struct{}, 1)
	w.west.up.does(func(rw http.ResponseWriter, r *http.Request) {
		here <- struct{}{}
		<-r.Context().Done()
		gone <- struct{}{}
	})
	v := w.three()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := v.ask(ctx, w, "POST", "/v1/x", strings.NewReader("{}"))
		ended <- err
	}()
	<-here
	cancel()
	if err := <-ended; err == nil {
		t.Error("an answer came")
	}
	select {
	case <-gone:
	case <-time.After(time.Minute):
		t.Fatal("the upstream is not told")
	}
	eventually(t, 30*time.Second, "a row of what was broken off", func() bool { return w.west.meter.finals(t)[usage.OutcomeAborted] == 1 })
}

// gRPC over HTTP/3: messages both ways in turn, and a status behind them.
func TestHTTP3_GRPC(t *testing.T) {
	w := newWorld(t, patient)
	speaking(t, w, nil)
	v := w.three()
	frame := func(m proto.Message) []byte {
		b, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(b))), b...)
	}
	out, in := io.Pipe()
	first := make(chan struct{})
	go func() {
		in.Write(frame(&pb.StreamingOutputCallRequest{Payload: &pb.Payload{Body: []byte("a")}}))
		<-first // it is answered before the next is sent
		in.Write(frame(&pb.StreamingOutputCallRequest{Payload: &pb.Payload{Body: []byte("bc")}}))
		in.Close()
	}()
	resp, err := v.ask(t.Context(), w, "POST", "/grpc.testing.TestService/FullDuplexCall", out, "Content-Type", "application/grpc", "Te", "trailers")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	for i := range 2 {
		var head [5]byte
		if _, err := io.ReadFull(resp.Body, head[:]); err != nil {
			t.Fatalf("message %d: %v; %v %v", i, err, resp.Header, resp.Trailer)
		}
		b := make([]byte, binary.BigEndian.Uint32(head[1:]))
		if _, err := io.ReadFull(resp.Body, b); err != nil {
			t.Fatal(err)
		}
		var m pb.StreamingOutputCallResponse
		if err := proto.Unmarshal(b, &m); err != nil || len(m.GetPayload().GetBody()) != i+1 {
			t.Errorf("message %d: got %v, %v", i, &m, err)
		}
		if i == 0 {
			close(first)
		}
	}
	if rest, err := io.ReadAll(resp.Body); err != nil || len(rest) > 0 {
		t.Errorf("behind the last: %q, %v", rest, err)
	}
	if got := resp.Trailer.Get("Grpc-Status"); got != "0" {
		t.Errorf("status %q of %v", got, resp.Trailer)
	}
	if row := w.west.meter.last(); row.Outcome != usage.OutcomeSuccess || row.Status != 200 {
		t.Errorf("got row %+v", row)
	}
}

// Answers over TCP say where HTTP/3 is as long as it is there: the socket's port, and nothing once its door is shut.
func TestHTTP3_IsAnnouncedWhereItIs(t *testing.T) {
	w := newWorld(t, nil)
	s, at := w.secure()
	one := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, ServerName: "orders.test"}}
	defer one.CloseIdleConnections()
	v := via{"HTTP/1.1", one, "https://" + at}
	alt := func() string {
		t.Helper()
		said := ""
		for i, path := range []string{"/v1/x", "/v1/%78"} { // the one is common, the other not
			resp, err := v.ask(t.Context(), w, "GET", path, nil)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if got := resp.Header.Get("Alt-Svc"); i > 0 && got != said {
				t.Errorf("%s says %q", path, got)
			} else {
				said = got
			}
		}
		return said
	}
	if got := alt(); got != "" {
		t.Errorf("before there is any: %q", got)
	}
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	ended := make(chan error, 1)
	go func() { ended <- s.H3.Serve(pc) }()
	want := fmt.Sprintf(`h3=":%d"; ma=3600`, pc.LocalAddr().(*net.UDPAddr).Port)
	eventually(t, 30*time.Second, "the port", func() bool { return alt() == want })
	if err := s.H3.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	<-ended
	if got := alt(); got != "" {
		t.Errorf("after its end: %q", got)
	}
}

// A door that shuts under load answers what it has taken, and counts it.
func TestHTTP3_DrainsUnderLoad(t *testing.T) {
	w := newWorld(t, nil)
	w.west.up.does(func(rw http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "slow") {
			time.Sleep(150 * time.Millisecond)
		}
	})
	s, _ := w.secure()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	go s.H3.Serve(pc)
	var answered atomic.Int64
	var shuts atomic.Bool
	var clients sync.WaitGroup
	for i := range 6 {
		tr := &http3.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, ServerName: "orders.test"},
			QUICConfig: &quic.Config{HandshakeIdleTimeout: 500 * time.Millisecond}}
		v := via{"HTTP/3", tr, "https://" + pc.LocalAddr().String()}
		t.Cleanup(func() { tr.Close() })
		for j := range 3 {
			clients.Go(func() {
				for n := 0; ; n++ {
					path := map[bool]string{true: "/v1/slow", false: "/v1/x"}[(i+j+n)%3 == 0]
					resp, err := v.ask(t.Context(), w, "POST", path, strings.NewReader("{}"))
					if err != nil { // it finds nobody any more
						if !shuts.Load() {
							t.Errorf("request %d: %v", n, err)
						}
						return
					}
					if resp.Body.Close(); resp.StatusCode == 200 {
						answered.Add(1)
					}
				}
			})
		}
	}
	eventually(t, time.Minute, "load", func() bool { return answered.Load() > 100 })
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	shuts.Store(true)
	if err := s.H3.Shutdown(ctx); err != nil {
		t.Errorf("it does not end: %v", err)
	}
	clients.Wait()
	rows := int64(w.west.meter.finals(t)[usage.OutcomeSuccess])
	if asked := w.west.up.count.Load(); asked != answered.Load() || rows != asked {
		t.Errorf("%d at the upstream, %d answered, %d counted", asked, answered.Load(), rows)
	}
}

// afar makes a door believe that its clients come from other addresses than they do.
type afar struct {
	net.PacketConn
	of sync.Map // the port of a client's socket → where it is said to be
}

func (a *afar) ReadFrom(b []byte) (int, net.Addr, error) {
	n, from, err := a.PacketConn.ReadFrom(b)
	if u, ok := from.(*net.UDPAddr); ok {
		if ip, ok := a.of.Load(u.Port); ok {
			from = &net.UDPAddr{IP: ip.(net.IP), Port: u.Port}
		}
	}
	return n, from, err
}

func (a *afar) WriteTo(b []byte, to net.Addr) (int, error) {
	return a.PacketConn.WriteTo(b, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: to.(*net.UDPAddr).Port})
}

// Connections over QUIC have their places among all clients', and of each address too; and a bound of their own, since they take
// memory and no files.
func TestHTTP3_BoundsConnections(t *testing.T) {
	t.Run("of all clients'", func(t *testing.T) { boundsConnections(t, 3, 2, func(*proxy.Door3) {}) })
	t.Run("of those over QUIC", func(t *testing.T) { boundsConnections(t, 1000, 1000, func(d *proxy.Door3) { d.Bound(3, 2) }) })
}

func boundsConnections(t *testing.T, all, each int, bound func(*proxy.Door3)) {
	cert := httptest.NewUnstartedServer(nil)
	cert.StartTLS()
	defer cert.Close()
	door := proxy.NewServers(proxy.ServersConfig{TLS: &tls.Config{Certificates: cert.TLS.Certificates}, Logger: slog.New(slog.DiscardHandler), MaxConnections: all, MaxPerAddress: each,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/hold" {
				http.NewResponseController(w).Flush()
				<-r.Context().Done()
			}
		})}).H3
	bound(door)
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	l := &afar{PacketConn: pc}
	go door.Serve(l)
	defer door.Close()
	open := func(ip, path string) (*http3.Transport, bool) {
		t.Helper()
		u, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { u.Close() })
		l.of.Store(u.LocalAddr().(*net.UDPAddr).Port, net.ParseIP(ip))
		tr := &http3.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, ServerName: "example.com"}, Dial: func(ctx context.Context, _ string, t *tls.Config, q *quic.Config) (*quic.Conn, error) {
			return quic.Dial(ctx, u, pc.LocalAddr(), t, q)
		}}
		t.Cleanup(func() { tr.Close() })
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		t.Cleanup(cancel)
		req, _ := http.NewRequestWithContext(ctx, "GET", "https://example.com"+path, nil)
		resp, err := tr.RoundTrip(req)
		return tr, err == nil && resp.StatusCode == 200
	}
	if _, ok := open("192.0.2.1", "/"); !ok {
		t.Fatal("the first is refused")
	}
	if _, ok := open("192.0.2.1", "/hold"); !ok {
		t.Fatal("the second is refused")
	}
	if _, ok := open("192.0.2.1", "/"); ok {
		t.Error("a third of one address is taken")
	}
	last, ok := open("192.0.2.2", "/hold")
	if !ok {
		t.Fatal("another address is refused")
	}
	// All places are taken. One that asks nothing goes.
	eventually(t, time.Minute, "the place of one that does nothing", func() bool { _, ok := open("192.0.2.3", "/hold"); return ok })
	if _, ok := open("192.0.2.9", "/hold"); ok {
		t.Error("one more than there may be is taken although all are busy")
	}
	last.Close()
	eventually(t, time.Minute, "a place", func() bool { _, ok := open("192.0.2.9", "/hold"); return ok })
	door.Close()
	eventually(t, time.Minute, "nobody to be counted any more", func() bool { all, quics := door.Guests(); return all == 0 && quics == 0 })
}

package proxy_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quic-go/qpack"
	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"bailiwick/dataplane/internal/proxy"
	"bailiwick/shared/lifecycle/porttest"
	"bailiwick/shared/usage"
)

var (
	tortureStreams = flag.Int("torture", 200, "mutated byte streams per protocol")
	tortureSeed    = flag.Uint64("torture-seed", 0, "of the mutations; 0: a new one")
)

// marks is a meter that keeps of a row only whose it is, and what upstreams saw.
type marks struct {
	mu     sync.Mutex // covers the maps
	finals map[[16]byte]int
	served map[[16]byte]bool
	asked  map[[16]byte]bool
	spoke  map[string]int // requests at upstreams, by what was spoken
	wild   int            // requests at an upstream that carry no id
}

func (m *marks) Append(r *usage.Row) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if r.Requests > 0 {
		m.finals[r.RequestID]++
		if r.ServedRegion != "" {
			m.served[r.RequestID] = true
		}
	}
	return nil
}

func (m *marks) Ready() bool    { return true }
func (m *marks) Healthy() error { return nil }

// saw is of a whole request at an upstream.
func (m *marks) saw(w http.ResponseWriter, r *http.Request) {
	raw, err := hex.DecodeString(strings.ReplaceAll(r.Header.Get("X-Request-Id"), "-", ""))
	m.mu.Lock()
	if err != nil || len(raw) != 16 || len(r.Header.Values("X-Request-Id")) != 1 {
		m.wild++
	} else {
		m.asked[[16]byte(raw)] = true
	}
	m.mu.Unlock()
	m.serve(w, r)
}

// law is what must hold: whatever an upstream saw has one row, and whatever is counted as served an upstream saw.
func (m *marks) law() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.wild > 0 {
		return fmt.Errorf("%d requests at upstreams have no id of ours", m.wild)
	}
	for id := range m.asked {
		if n := m.finals[id]; n != 1 {
			return fmt.Errorf("request %x was at an upstream and has %d rows", id, n)
		}
	}
	for id := range m.served {
		if !m.asked[id] {
			return fmt.Errorf("request %x is counted as served, and no upstream saw it", id)
		}
	}
	for id, n := range m.finals {
		if n != 1 {
			return fmt.Errorf("request %x has %d rows", id, n)
		}
	}
	return nil
}

// mutant is one of the seeds with up to five things wrong; one in eight has none.
func mutant(r *rand.Rand, seeds [][]byte) []byte {
	b := bytes.Clone(seeds[r.IntN(len(seeds))])
	odd := []byte("\r\n\x00 \t:,;%/\\?#0123456789abfF+-\x0b\x80\xff")
	for range r.IntN(8) * r.IntN(6) / 6 {
		if len(b) == 0 {
			break
		}
		at := r.IntN(len(b))
		end := min(len(b), at+1+r.IntN(24))
		switch r.IntN(9) {
		case 0:
			b[at] ^= 1 << r.IntN(8)
		case 1:
			b[at] = odd[r.IntN(len(odd))]
		case 2:
			b = append(b[:at], b[end:]...)
		case 3:
			b = append(b[:end:end], b[at:]...) // twice
		case 4:
			other := seeds[r.IntN(len(seeds))]
			from := r.IntN(len(other))
			b = append(b[:at:at], append(bytes.Clone(other[from:]), b[at:]...)...)
		case 5:
			b = b[:at]
		case 6:
			b = append(b[:at:at], append([]byte{odd[r.IntN(len(odd))]}, b[at:]...)...)
		case 7:
			b = bytes.Replace(b, []byte("\r\n"), [][]byte{[]byte("\n"), []byte("\r"), []byte("\r\n ")}[r.IntN(3)], 1+r.IntN(3))
		case 8:
			if len(b) < 1<<16 {
				b = append(b[:at:at], append(bytes.Repeat(b[at:end], 1+r.IntN(200)), b[at:]...)...)
			}
		}
	}
	return b
}

// streamsOfHTTP1 are well formed.
func streamsOfHTTP1(key string) (out [][]byte) {
	head := "Host: orders.test\r\nX-Api-Key: " + key + "\r\n"
	for _, s := range []string{
		"GET /v1/x HTTP/1.1\r\n" + head + "\r\n",
		"POST /v1/x?a=b HTTP/1.1\r\n" + head + "Content-Length: 5\r\n\r\nhello",
		"POST /v1/x HTTP/1.1\r\n" + head + "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
		"PUT /v1/x HTTP/1.1\r\n" + head + "Transfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n1\r\nx\r\n0\r\nX-T: 1\r\n\r\n",
		"POST /v1/x HTTP/1.1\r\n" + head + "Expect: 100-continue\r\nContent-Length: 2\r\n\r\nok",
		"HEAD /v1/x HTTP/1.1\r\n" + head + "\r\n", "OPTIONS /v1/x HTTP/1.1\r\n" + head + "\r\n",
		"GET /v1/x HTTP/1.0\r\n" + head + "Connection: keep-alive\r\n\r\n",
		"GET http://orders.test/v1/x HTTP/1.1\r\n" + head + "\r\n",
		"GET /v1/x HTTP/1.1\r\n" + head + "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n",
		"GET /v1/x HTTP/1.1\r\n" + head + "Range: bytes=0-1\r\nTE: trailers\r\nConnection: X-Api-Key, close\r\n\r\n",
	} {
		out = append(out, []byte(s))
	}
	return append(out, bytes.Join(out[:6], nil)) // one behind the other
}

// streamsOfHTTP2 are well formed, without the preface.
func streamsOfHTTP2(key string) (out [][]byte) {
	var all bytes.Buffer
	for i, method := range []string{"GET", "POST", "HEAD", "PUT"} {
		var b, block bytes.Buffer
		e := hpack.NewEncoder(&block)
		for _, f := range [][2]string{{":method", method}, {":scheme", "https"}, {":authority", "orders.test"}, {":path", "/v1/x"}, {"x-api-key", key}, {"te", "trailers"}} {
			e.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
		}
		for _, w := range []*bytes.Buffer{&b, &all} {
			fr := http2.NewFramer(w, nil)
			id := uint32(1)
			if w == &all {
				id = uint32(4*i + 1)
			} else {
				fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 16})
			}
			body := method == "POST" || method == "PUT"
			half := block.Len() / 2
			fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block.Bytes()[:half], EndStream: !body})
			fr.WriteContinuation(id, true, block.Bytes()[half:])
			if body {
				fr.WriteData(id, false, []byte("hello"))
				fr.WriteWindowUpdate(id, 100)
				fr.WriteData(id, true, nil)
			}
			fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id + 2, BlockFragment: block.Bytes(), EndHeaders: true})
			fr.WriteRSTStream(id+2, http2.ErrCodeCancel)
			fr.WritePriority(id, http2.PriorityParam{Weight: 3})
		}
		out = append(out, b.Bytes())
	}
	var settings bytes.Buffer
	http2.NewFramer(&settings, nil).WriteSettings()
	return append(out, append(settings.Bytes(), all.Bytes()...))
}

// streamsOfHTTP3 are requests on a stream each.
func streamsOfHTTP3(key string) (out [][]byte) {
	for _, method := range []string{"GET", "POST", "HEAD"} {
		var block bytes.Buffer
		e := qpack.NewEncoder(&block)
		for _, f := range [][2]string{{":method", method}, {":scheme", "https"}, {":authority", "orders.test"}, {":path", "/v1/x"}, {"x-api-key", key}} {
			e.WriteField(qpack.HeaderField{Name: f[0], Value: f[1]})
		}
		b := append([]byte{1, 0x40 | byte(block.Len()>>8), byte(block.Len())}, block.Bytes()...)
		if method == "POST" {
			b = append(b, "\x00\x05hello\x21\x02xx"...) // data, and a frame of a type nobody knows
		}
		out = append(out, b)
	}
	return out
}

const (
	tortureWait  = 150 * time.Millisecond // for an answer to what may have none
	tortureBusy  = 15 * time.Second       // from when the machine had no time for this process, in which it may refuse who behaves
	torturePause = 20 * time.Millisecond  // without one; then the client says that it has no more to say, and that ends what is half said
)

// TestTorture throws mutated byte streams at an edge's doors, and holds it to the law of usage. Whoever behaves is served
// meanwhile. `make torture` throws a million at each.
func TestTorture(t *testing.T) {
	seed := *tortureSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("-torture %d -torture-seed %d", *tortureStreams, seed)
	m := &marks{finals: map[[16]byte]int{}, served: map[[16]byte]bool{}, asked: map[[16]byte]bool{}, spoke: map[string]int{}}
	w := newWorld(t, func(c *proxy.Config) { // a starved machine makes no upstream look dead: what does is the streams' doing
		patient(c)
		c.Meter = m
	})
	for _, r := range []*region{w.west, w.central} {
		r.orders = tortured
		r.tables.Swap(w.view(r, true))
		u := r.up
		u.does(func(rw http.ResponseWriter, r *http.Request) {
			u.mu.Lock()
			clear(u.bodies) // it keeps them for other tests
			u.mu.Unlock()
			m.saw(rw, r)
		})
	}
	cert := httptest.NewUnstartedServer(nil)
	cert.StartTLS()
	defer cert.Close()
	servers := proxy.NewServers(proxy.ServersConfig{Handler: w.west.proxy, TLS: &tls.Config{Certificates: cert.TLS.Certificates}, Logger: slog.New(slog.DiscardHandler)})
	l, err := net.Listen("tcp", porttest.Addr(t))
	if err != nil {
		t.Fatal(err)
	}
	pc, err := net.ListenPacket("udp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	go servers.HTTPS.Serve(l)
	go servers.H3.Serve(pc)
	defer servers.HTTPS.Close()
	defer pc.Close()
	defer servers.H3.Close()
	at, sessions := l.Addr().String(), tls.NewLRUClientSessionCache(64)
	speaks := func(alpn string) *tls.Config {
		return &tls.Config{InsecureSkipVerify: true, ServerName: "orders.test", NextProtos: []string{alpn}, ClientSessionCache: sessions}
	}

	for _, c := range []struct {
		name  string
		seeds [][]byte
		throw func(r *rand.Rand, b []byte)
	}{
		{"HTTP/1.1", append(streamsOfHTTP1(w.key), callsOfHTTP1(w.key)...), func(_ *rand.Rand, b []byte) {
			if conn := dialed(w.west.server.Listener.Addr().String()); conn != nil {
				converse(conn, append(b, "GET /last HTTP/1.1\r\nHost: nobody.test\r\nConnection: close\r\n\r\n"...), nil)
			}
		}},
		{"TLS", append(append(streamsOfHTTP1(w.key), callsOfHTTP1(w.key)...), clientHello(t)), func(r *rand.Rand, b []byte) {
			conn := dialed(at)
			if conn == nil {
				return
			}
			if b[0] == 22 { // TLS itself
				converse(conn, b, nil)
				return
			}
			converse(tls.Client(conn, speaks("http/1.1")), append(b, "GET /last HTTP/1.1\r\nHost: nobody.test\r\nConnection: close\r\n\r\n"...), nil)
		}},
		{"HTTP/2", append(streamsOfHTTP2(w.key), callsOfHTTP2(w.key)...), func(_ *rand.Rand, b []byte) {
			if conn := dialed(at); conn != nil {
				ping := []byte("\x00\x00\x08\x06\x00\x00\x00\x00\x00torture!")
				converse(tls.Client(conn, speaks("h2")), append(append([]byte(http2.ClientPreface), b...), ping...), []byte("torture!"))
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			torture(t, w, m, seed, c.seeds, func() (func(*rand.Rand, []byte), func()) { return c.throw, func() {} })
		})
	}
	t.Run("HTTP/3", func(t *testing.T) {
		torture(t, w, m, seed, append(streamsOfHTTP3(w.key), callsOfHTTP3(w.key)...), func() (func(*rand.Rand, []byte), func()) {
			var conn *quic.Conn
			drop := func() {
				if conn != nil {
					conn.CloseWithError(0, "")
					conn = nil
				}
			}
			raw, err := net.Dial("udp", at)
			if err != nil {
				t.Fatal(err)
			}
			return func(r *rand.Rand, b []byte) {
				if len(b) == 0 {
					return
				}
				ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
				defer cancel()
				if r.IntN(8) == 0 { // a packet of nothing that QUIC knows
					raw.Write(append([]byte{0xc0 | byte(r.IntN(64)), 0, 0, 0, 1, 8}, b[:min(len(b), 1200)]...))
				}
				if conn == nil || conn.Context().Err() != nil || r.IntN(50) == 0 {
					drop()
					var err error
					if conn, err = quic.DialAddr(ctx, at, speaks(http3.NextProtoH3), nil); err != nil {
						conn = nil
						return
					}
				}
				if r.IntN(20) == 0 { // a control stream, or one of QPACK
					if s, err := conn.OpenUniStream(); err == nil {
						s.Write(append([]byte{byte(r.IntN(4))}, b...))
						s.Close()
					}
				}
				s, err := conn.OpenStreamSync(ctx)
				if err != nil {
					drop()
					return
				}
				s.SetDeadline(time.Now().Add(tortureWait))
				s.Write(b)
				s.Close()
				io.Copy(io.Discard, s)
				s.CancelRead(0)
			}, func() { drop(); raw.Close() }
		})
	})
	var mem runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&mem)
	t.Logf("%d requests at upstreams, %d rows; of them %v; %d MiB in use, %d goroutines", len(m.asked), len(m.finals), m.spoke, mem.HeapInuse>>20, runtime.NumGoroutine())
	for _, protocol := range spoken {
		if m.spoke[protocol] == 0 {
			t.Errorf("nothing of %s came through: the streams prove nothing about it", protocol)
		}
	}
	if mem.HeapInuse > 512<<20 {
		t.Errorf("%d MiB are in use after it", mem.HeapInuse>>20)
	}
}

// torture has workers throw streams, each in its own way, beside a client that behaves.
func torture(t *testing.T, w *world, m *marks, seed uint64, seeds [][]byte, thrower func() (throw func(*rand.Rand, []byte), done func())) {
	before := func() (asked, rows int) { m.mu.Lock(); defer m.mu.Unlock(); return len(m.asked), len(m.finals) }
	askedBefore, rowsBefore := before()
	var next, good atomic.Int64
	var wg sync.WaitGroup
	const workers = 24
	for range workers {
		throw, done := thrower()
		wg.Go(func() {
			defer done()
			for {
				n := next.Add(1)
				if n > int64(*tortureStreams) {
					return
				}
				r := rand.New(rand.NewPCG(seed, uint64(n)))
				if b := mutant(r, seeds); len(b) > 0 {
					throw(r, b)
				}
			}
		})
	}
	over, behaves := make(chan struct{}), make(chan struct{})
	// Who is not given the processor answers nobody, and what was asked of him looks dead for a while: no doing of the streams'.
	began, busy, waits := time.Now(), atomic.Int64{}, atomic.Int64{}
	busy.Store(-int64(tortureBusy))
	go func() {
		for {
			asleep := time.Now()
			select {
			case <-over:
				return
			case <-time.After(20 * time.Millisecond):
			}
			if time.Since(asleep) > 150*time.Millisecond {
				waits.Add(1)
				busy.Store(int64(time.Since(began)))
			}
		}
	}()
	go func() {
		defer close(behaves)
		for last := time.Now(); ; {
			a := w.send("GET", "/v1/x", "")
			switch free := time.Since(began)-time.Duration(busy.Load()) > tortureBusy; {
			case a.err == nil && a.status == 200:
				good.Add(1)
				last = time.Now()
			case free && a.took < time.Second, time.Since(last) > 2*time.Minute:
				t.Errorf("a client that behaves gets %d %s, %v after %v", a.status, a.body, a.err, a.took)
				return
			}
			select {
			case <-over:
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	}()
	wg.Wait()
	close(over)
	<-behaves
	var err error
	eventually(t, time.Minute, "one row for each request at an upstream", func() bool { err = m.law(); return err == nil })
	asked, rows := before()
	if asked -= askedBefore + int(good.Load()); asked < *tortureStreams/20 {
		t.Errorf("%d of %d streams came through: the others prove little", asked, *tortureStreams)
	}
	t.Logf("%d requests at upstreams out of %d streams, %d rows; %d of a client that behaves; %d times the machine was busy", asked, *tortureStreams, rows-rowsBefore-int(good.Load()), good.Load(), waits.Load())
}

// dialed is a connection that leaves nothing behind when it is closed: a million of them would use up the ports.
func dialed(addr string) net.Conn {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return nil
	}
	c.(*net.TCPConn).SetLinger(0)
	return c
}

// converse writes b and reads until the other side ends, says until, or is silent.
func converse(c net.Conn, b, until []byte) {
	defer func() {
		if t, ok := c.(*tls.Conn); ok {
			c = t.NetConn()
		}
		c.Close()
	}()
	if t, ok := c.(*tls.Conn); ok {
		c.SetDeadline(time.Now().Add(10 * time.Second))
		if t.Handshake() != nil {
			return
		}
	}
	c.SetDeadline(time.Now().Add(tortureWait))
	if _, err := c.Write(b); err != nil {
		return
	}
	var got, part = []byte(nil), make([]byte, 4<<10)
	raw := c
	if t, ok := c.(*tls.Conn); ok { // of which a read that has timed out is the last
		raw = t.NetConn()
		defer time.AfterFunc(torturePause, func() { raw.(*net.TCPConn).CloseWrite() }).Stop()
	} else {
		c.SetReadDeadline(time.Now().Add(torturePause))
	}
	for over := false; ; {
		n, err := c.Read(part)
		if errors.Is(err, os.ErrDeadlineExceeded) && !over && raw == c {
			over = true
			raw.(*net.TCPConn).CloseWrite()
			c.SetReadDeadline(time.Now().Add(tortureWait))
			continue
		}
		if got = append(got, part[:n]...); err != nil || len(until) > 0 && bytes.Contains(got, until) {
			return
		}
		if len(got) > 64<<10 {
			got = got[len(got)-64:]
		}
	}
}

// clientHello is what a TLS client sends first.
func clientHello(t *testing.T) []byte {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	go tls.Client(a, &tls.Config{ServerName: "orders.test", NextProtos: []string{"http/1.1"}}).Handshake()
	buf := make([]byte, 16<<10)
	b.SetReadDeadline(time.Now().Add(time.Minute))
	n, err := b.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return buf[:n]
}

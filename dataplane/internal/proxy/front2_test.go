package proxy_test

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"io"
	"log/slog"
	"net"
	"net/http/httptest"
	"runtime"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"bailiwick/dataplane/internal/proxy"
	"bailiwick/shared/usage"
)

// secure opens eu-west's doors over TLS.
func (w *world) secure() (s proxy.Servers, at string) { return w.securely(func(*proxy.Door) {}) }

func (w *world) securely(set func(*proxy.Door)) (s proxy.Servers, at string) {
	w.t.Helper()
	cert := httptest.NewUnstartedServer(nil)
	cert.StartTLS()
	w.t.Cleanup(cert.Close)
	s = proxy.NewServers(proxy.ServersConfig{Handler: w.west.proxy, TLS: &tls.Config{Certificates: cert.TLS.Certificates}, Logger: slog.New(slog.DiscardHandler)})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	set(s.HTTPS)
	go s.HTTPS.Serve(l)
	w.t.Cleanup(func() { s.HTTPS.Close() })
	return s, l.Addr().String()
}

// frames is a connection over HTTP/2 whose frames are written by hand.
func frames(t testing.TB, at string) (*tls.Conn, *http2.Framer) {
	t.Helper()
	conn, err := tls.Dial("tcp", at, &tls.Config{InsecureSkipVerify: true, ServerName: "orders.test", NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(60 * time.Second))
	f := http2.NewFramer(conn, conn)
	f.AllowIllegalWrites = true
	io.WriteString(conn, http2.ClientPreface)
	f.WriteSettings()
	return conn, f
}

func headerBlock(fields ...string) []byte {
	var b bytes.Buffer
	e := hpack.NewEncoder(&b)
	for i := 0; i < len(fields); i += 2 {
		e.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1], Sensitive: true})
	}
	return b.Bytes()
}

// A common request over HTTP/2 costs no memory either, from the client's bytes to the client's bytes.
func TestCommon_AllocatesNothingOverHTTP2(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector makes pools forget")
	}
	w := newWorld(t, tracesOthers(t))
	w.answersAlways(t)
	_, at := w.secure()
	conn, f := frames(t, at)
	var out bytes.Buffer
	http2.NewFramer(&out, nil).WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndStream: true, EndHeaders: true,
		BlockFragment: headerBlock(":method", "GET", ":scheme", "https", ":authority", "orders.test", ":path", "/v1/items/1?page=2", "x-api-key", w.key, "accept", "*/*", "traceparent", unchosen)})
	f.WriteWindowUpdate(0, 1<<20)
	request, answer, id := out.Bytes(), make([]byte, 16<<10), uint32(0)
	have := 0
	once := func() {
		binary.BigEndian.PutUint32(request[5:], 2*id+1)
		conn.Write(request)
		for ended := false; !ended; {
			n, err := conn.Read(answer[have:])
			if err != nil {
				t.Fatal(err)
			}
			have += n
			b := answer[:have]
			for len(b) >= 9 {
				size := 9 + int(b[0])<<16 + int(b[1])<<8 + int(b[2])
				if len(b) < size {
					break
				}
				if binary.BigEndian.Uint32(b[5:]) == 2*id+1 {
					switch {
					case b[3] == 1 && b[9] != 0x88:
						t.Fatalf("not 200: %q", b[9:size])
					case b[3] > 1:
						t.Fatalf("a frame of type %d", b[3])
					}
					ended = b[4]&1 != 0
				}
				b = b[size:]
			}
			have = copy(answer, b)
		}
		id++
	}
	// What the rest of the world does meanwhile is somewhere in it: a short round that it left alone says what a request costs.
	const requests = 200
	least := uint64(1 << 62)
	for n := 0; n < 5 || n < 200 && float64(least)/requests > 2.1; n++ {
		for range 200 {
			once()
		}
		w.west.meter.mu.Lock()
		w.west.meter.rows = make([]usage.Row, 0, requests+100)
		w.west.meter.mu.Unlock()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range requests {
			once()
		}
		runtime.ReadMemStats(&after)
		least = min(least, after.Mallocs-before.Mallocs)
	}
	// crypto/tls makes a reader for each record that it reads: one here, and one at the client.
	if each := float64(least) / requests; each > 2.1 {
		t.Errorf("got %.2f allocations a request, want none but crypto/tls's", each)
	}
}

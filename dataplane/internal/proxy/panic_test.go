package proxy_test

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/quic-go/quic-go/http3"

	"bailiwick/dataplane/internal/proxy"
	"bailiwick/shared/lifecycle/porttest"
	"bailiwick/shared/telemetry"
)

// locked is a log that the server and the test use at once.
type locked struct {
	mu sync.Mutex // covers b
	b  bytes.Buffer
}

func (l *locked) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *locked) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// A handler that panics ends its request, over each protocol. The log says where in the code, and nothing of what the
// request brought, also if the value that it panics with quotes the request.
func TestServers_APanicSaysNothingOfTheRequest(t *testing.T) {
	var log locked
	handler := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if strings.HasPrefix(r.URL.Path, "/CANARY-quoting") {
			panic(fmt.Errorf("cannot serve %s %v %q\ngoroutine 1 CANARY", r.URL, r.Header, body))
		}
		_ = body[len(body)+len(r.Header)] // out of range, with all of the request in the frame
	})
	cert := httptest.NewUnstartedServer(nil)
	cert.StartTLS()
	defer cert.Close()
	s := proxy.NewServers(proxy.ServersConfig{Handler: handler, TLS: &tls.Config{Certificates: cert.TLS.Certificates},
		Logger: telemetry.NewLogger(&log, "debug", "json", "bailiwick-edge", "n1")})
	l, err := net.Listen("tcp", porttest.Addr(t))
	if err != nil {
		t.Fatal(err)
	}
	pc, err := net.ListenPacket("udp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	go s.HTTPS.Serve(l)
	go s.H3.Serve(pc)
	defer s.HTTPS.Close()
	defer pc.Close()
	defer s.H3.Close()
	var h1, h2 http.Protocols
	h1.SetHTTP1(true)
	h2.SetHTTP2(true)
	insecure := func() *tls.Config { return &tls.Config{InsecureSkipVerify: true, ServerName: "orders.test"} }
	h3 := &http3.Transport{TLSClientConfig: insecure()}
	defer h3.Close()
	said := 0
	for name, rt := range map[string]http.RoundTripper{"h1": &http.Transport{Protocols: &h1, TLSClientConfig: insecure()}, "h2": &http.Transport{Protocols: &h2, TLSClientConfig: insecure()}, "h3": h3} {
		for _, path := range []string{"/CANARY-quoting", "/CANARY-frame"} {
			req, err := http.NewRequest("POST", "https://"+l.Addr().String()+path+"?q=CANARY-query", strings.NewReader("CANARY-body"))
			if err != nil {
				t.Fatal(err)
			}
			req.Host = "canary-host.test"
			req.Header.Set("X-Api-Key", "bw_emea_CANARY-key")
			req.Header.Set("Cookie", "CANARY-cookie")
			if resp, err := rt.RoundTrip(req); err == nil {
				t.Fatalf("%s %s: got %s, want the request ended", name, path, resp.Status)
			}
			said++
			for end := time.Now().Add(20 * time.Second); strings.Count(log.String(), "panic serving") < said; time.Sleep(5 * time.Millisecond) {
				if time.Now().After(end) {
					t.Fatalf("%s %s: the panic is not in the log: %s", name, path, log.String())
				}
			}
		}
	}
	text := log.String()
	if got := strings.ToLower(text); strings.Contains(got, "canary") || strings.Contains(got, "bw_emea") {
		t.Errorf("the log shows what the request brought: %s", text)
	}
	if n := strings.Count(text, "panic_test.go"); n < said { // the handler is in each trace
		t.Errorf("%d of %d panics say where they were: %s", n, said, text)
	}
}

package proxy_test

import (
	"bytes"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"bailiwick/dataplane/internal/proxy"
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

// A handler that panics ends its request. The log says where in the code, and nothing of what the request brought.
func TestServers_APanicSaysNothingOfTheRequest(t *testing.T) {
	var log locked
	handler := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		_ = body[len(body)+len(r.Header)] // out of range, with all of the request in the frame
	})
	s := proxy.NewServers(proxy.ServersConfig{Handler: handler, TLS: &tls.Config{}, Logger: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go s.HTTP.Serve(l)
	defer s.HTTP.Close()
	req, err := http.NewRequest("POST", "http://"+l.Addr().String()+"/CANARY-path?q=CANARY-query", strings.NewReader("CANARY-body"))
	if err != nil {
		t.Fatal(err)
	}
	req.Host = "canary-host.test"
	req.Header.Set("X-Api-Key", "bw_emea_CANARY-key")
	req.Header.Set("Cookie", "CANARY-cookie")
	if resp, err := http.DefaultTransport.RoundTrip(req); err == nil {
		t.Fatalf("got %s, want the connection closed", resp.Status)
	}
	for end := time.Now().Add(5 * time.Second); !strings.Contains(log.String(), "panic serving"); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the panic is not in the log: %s", log.String())
		}
	}
	if said := strings.ToLower(log.String()); strings.Contains(said, "canary") || strings.Contains(said, "bw_emea") {
		t.Errorf("the log shows what the request brought: %s", log.String())
	}
}

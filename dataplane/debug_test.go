package dataplane

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"bailiwick/dataplane/internal/policy"
)

func TestDebug_OnlyThisMachineIsTold(t *testing.T) {
	e := &Edge{tables: &policy.Holder{}, cfg: Config{Name: "eu-west-edge-1", HTTPS: ":443", Public: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, Logger: slog.New(slog.DiscardHandler),
		JoinTokenFile: "/secret/token", CAFile: "/secret/ca", ControlURLs: []string{"https://secret:1"}, Traces: Traces{Header: http.Header{"Authorization": {"secret"}}, RootsPEM: []byte("secret")}, ACME: ACME{Email: "secret@example.com", RootsPEM: []byte("secret")}}}
	mux := http.NewServeMux()
	e.debug(mux)
	for _, c := range []struct {
		from, host string
		status     int
	}{
		{"127.0.0.1:1234", "127.0.0.1:7900", 200}, {"[::1]:1234", "localhost:7900", 200}, {"[::1]:1234", "[::1]:7900", 200},
		{"192.0.2.7:1234", "127.0.0.1:7900", 403}, {"127.0.0.1:1234", "rebound.example:7900", 403}, {"127.0.0.1:1234", "192.0.2.1:7900", 403},
	} {
		r := httptest.NewRequest("GET", "/debug/config", nil)
		r.RemoteAddr, r.Host = c.from, c.host
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, r)
		if w.Code != c.status {
			t.Errorf("from %s to %s: %d, want %d", c.from, c.host, w.Code, c.status)
		}
		if strings.Contains(w.Body.String(), "secret") {
			t.Errorf("it tells a secret: %s", w.Body)
		}
		var got map[string]any
		if c.status == 200 && (json.Unmarshal(w.Body.Bytes(), &got) != nil || got["name"] != "eu-west-edge-1") {
			t.Errorf("not the configuration: %s", w.Body)
		}
	}
}

package telemetry_test

import (
	"context"
	"errors"
	"log/slog"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"bailiwick/shared/telemetry"
)

func TestNewLogger_RedactsByName(t *testing.T) {
	for _, format := range []string{"text", "json"} {
		var b strings.Builder
		log := telemetry.NewLogger(&b, "debug", format, "bailiwick-edge", "eu-west-edge-1")
		log.Debug("request", "key", "LEAK", "Authorization", "LEAK", "x-api-key", "LEAK", "join_token", "LEAK",
			slog.Group("auth", "secret", "LEAK"), "id", "id-123", "zone", "by-zone")
		got := b.String()
		if strings.Contains(got, "LEAK") {
			t.Errorf("%s: a secret is logged: %s", format, got)
		}
		for _, want := range []string{"id-123", "by-zone", "bailiwick-edge", "eu-west-edge-1"} {
			if !strings.Contains(got, want) {
				t.Errorf("%s: got %s, want it to hold %q", format, got, want)
			}
		}
	}
}

// What has a name that nobody put on the list is masked and counted, whoever logs it: a library's line, a logger made of
// ours, a member of a group.
func TestNewLogger_MasksWhatIsNotOnTheList(t *testing.T) {
	for _, format := range []string{"text", "json"} {
		var b strings.Builder
		log := telemetry.NewLogger(&b, "debug", format, "bailiwick-edge", "n1")
		log.Error("Malformed Content-Length", "value", "LEAK-1", "reason", "kept-1") // as http3 does with an upstream's header
		made := log.With("header", "LEAK-2", "zone", "kept-2").WithGroup("more")
		made.Warn("x", "path", "LEAK-3", "count", 7, slog.Group("deep", "query", "LEAK-4"))
		slog.NewLogLogger(made.Handler(), slog.LevelInfo).Print("kept-3")
		got := b.String()
		if strings.Contains(got, "LEAK") {
			t.Errorf("%s: %s", format, got)
		}
		for _, want := range []string{"kept-1", "kept-2", "kept-3", "bailiwick-edge", "n1"} {
			if !strings.Contains(got, want) {
				t.Errorf("%s: got %s, want it to hold %q", format, got, want)
			}
		}
		if n := telemetry.Masked(log); n != 4 || telemetry.Masked(made) != n {
			t.Errorf("%s: %d masked, want 4", format, n)
		}
	}
	if telemetry.Masked(slog.New(slog.DiscardHandler)) != 0 {
		t.Error("another logger has masked something")
	}
}

func TestNewLogger_RedactsKeysInTexts(t *testing.T) {
	const id, secret = "bw_emea_0123456789Ab_", "SECRETsecretSECRETsecretSECR012345"
	for _, format := range []string{"text", "json"} {
		var b strings.Builder
		log := telemetry.NewLogger(&b, "debug", format, "bailiwick-edge", "")
		log.Info("cannot read "+id+secret, "error", errors.New("parse \""+id+secret+"\": bad"), "url", "/x?key="+id+secret+"&a=b",
			"bytes", []byte(id+secret), "source", &url.URL{Path: "/" + id + secret[:20]}, "count", 7)
		got := b.String()
		if strings.Contains(got, secret[:8]) {
			t.Errorf("%s: a key's secret is logged: %s", format, got)
		}
		if n := strings.Count(got, id+"[redacted]"); n != 5 || !strings.Contains(got, "a=b") {
			t.Errorf("%s: got %s, want five ids that can be looked up, and the rest as it was", format, got)
		}
	}
}

func TestNewLogger_Level(t *testing.T) {
	for _, tt := range []struct {
		level string
		lines int
		valid bool
	}{{"", 1, true}, {"debug", 2, true}, {"WARN", 0, true}, {"loud", 1, false}} {
		var b strings.Builder
		log := telemetry.NewLogger(&b, tt.level, "", "p", "")
		log.Debug("a")
		log.Info("b")
		if got := strings.Count(b.String(), "\n"); got != tt.lines {
			t.Errorf("level %q: got %d lines, want %d", tt.level, got, tt.lines)
		}
		if err := telemetry.CheckLogging(tt.level, ""); (err == nil) != tt.valid {
			t.Errorf("CheckLogging(%q): got %v, want valid %v", tt.level, err, tt.valid)
		}
	}
	if err := telemetry.CheckLogging("", "xml"); err == nil {
		t.Error("CheckLogging accepts format xml")
	}
}

func TestAdminMux(t *testing.T) {
	var bad, worse error
	mux := telemetry.NewAdminMux(telemetry.NewRegistry(),
		func(context.Context) []telemetry.Check {
			return []telemetry.Check{{Name: "table", Detail: "12 objects"}, {Name: "upstream", Err: bad, Degraded: worse}}
		},
		func(context.Context) []string { return []string{"serves_alone_until 2026-12-01T00:00:00Z"} })
	get := func(path string) (int, string) {
		rec := httptest.NewRecorder()
		mux.ServeHTTP(rec, httptest.NewRequest("GET", path, nil))
		return rec.Code, rec.Body.String()
	}
	want := func(path string, code int, body string) {
		t.Helper()
		gotCode, gotBody := get(path)
		if gotCode != code || gotBody != body {
			t.Errorf("GET %s: got %d %q, want %d %q", path, gotCode, gotBody, code, body)
		}
	}
	want("/livez", 200, "ok\n")
	want("/healthz", 200, "ok\n")
	want("/readyz", 200, "ready\n")
	want("/readyz?verbose", 200, "table ok: 12 objects\nupstream ok\nserves_alone_until 2026-12-01T00:00:00Z\nready\n")
	worse = errors.New("one of\ntwo")
	want("/readyz", 200, "ready\n") // who goes on serving gets traffic
	want("/readyz?verbose", 200, "table ok: 12 objects\nupstream DEGRADED: one of two\nserves_alone_until 2026-12-01T00:00:00Z\nready\n")
	bad = errors.New("dial:\nrefused")
	want("/readyz", 503, "upstream FAIL: dial: refused\nnot ready: 1 of 2 checks fail\n")
	want("/readyz?verbose", 503, "table ok: 12 objects\nupstream FAIL: dial: refused\nserves_alone_until 2026-12-01T00:00:00Z\nnot ready: 1 of 2 checks fail\n")
	code, body := get("/metrics")
	if code != 200 || !strings.Contains(body, "bailiwick_build_info{") || !strings.Contains(body, "go_goroutines") {
		t.Errorf("GET /metrics: got %d and %d bytes without build_info or the Go collector", code, len(body))
	}
}

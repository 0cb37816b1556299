package dataplane

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bailiwick/dataplane/internal/beat"
	"bailiwick/dataplane/internal/enroll"
	"bailiwick/dataplane/internal/handover"
	"bailiwick/dataplane/internal/policy"
	"bailiwick/shared/identity"
	"bailiwick/shared/identity/identitytest"
)

// Who cannot serve by what he is told says so, and the process whose place he was to take serves on.
func TestEdge_ASuccessorThatCannotServeEndsNobody(t *testing.T) {
	source := identitytest.New(t, "test.example", "emea").Source(t, "emea", "eu-west", identity.Edge, "eu-west-edge-1")
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	for name, c := range map[string]struct {
		set  func(*Config)
		says string // "": nothing is wrong
	}{
		"nothing":                    {func(*Config) {}, ""},
		"upstream-allow":             {func(c *Config) { c.UpstreamAllow = "privat" }, `"privat"`},
		"upstream-allow-foreign":     {func(c *Config) { c.UpstreamAllowForeign = "10.0.0.0" }, `"10.0.0.0"`},
		"traces without certificate": {func(c *Config) { c.Traces = Traces{Endpoint: "https://c.test:4318", RootsPEM: []byte("none")} }, "RootsPEM"},
		"traces-ratio":               {func(c *Config) { c.Traces.Ratio = 0.1 }, "Endpoint"},
		"access-log-sample":          {func(c *Config) { c.AccessLog, c.AccessLogSample = "x", 2 }, "sample 2"},
		"acme-ca-file":               {func(c *Config) { c.ACME = ACME{Directory: "https://acme.test", RootsPEM: []byte("none")} }, "ACME"},
		"dns-ttl":                    {func(c *Config) { c.DNS = DNS{Listen: "127.0.0.1:0", TTL: time.Hour} }, "TTL"},
		"admin":                      {func(c *Config) { c.Admin = "127.0.0.1" }, "as admin"},
		"admin of another machine":   {func(c *Config) { c.Admin = "192.0.2.1:7900" }, "as admin"},
		"https":                      {func(c *Config) { c.HTTPS = "192.0.2.1:443" }, "as https"},
		"relay":                      {func(c *Config) { c.Relay = "127.0.0.1:no" }, "as relay"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			run := filepath.Join(dir, "run")
			if err := os.Mkdir(run, 0o700); err != nil {
				t.Fatal(err)
			}
			var sockets handover.Sockets
			https, err := sockets.Listen("https", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer https.Close()
			admin, err := sockets.Listen("admin", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer admin.Close()
			ctx, cancel := context.WithCancel(t.Context())
			offer, ended := handover.NewOffer(run, "the one before", &sockets), make(chan error, 1)
			go func() { ended <- offer.Run(ctx) }()
			for {
				if c, err := net.Dial("unix", filepath.Join(run, "successor")); err == nil {
					c.Close()
					break
				}
				time.Sleep(time.Millisecond)
			}
			cfg := Config{Dir: dir, Name: "eu-west-edge-1", Region: "eu-west", HTTPS: https.Addr().String(), Relay: "127.0.0.1:0", Admin: admin.Addr().String(), Takeover: true, Logger: log}
			c.set(&cfg)
			e := &Edge{cfg: cfg, log: log, state: &enroll.State{Source: source, CertSeal: make([]byte, 32)}, self: source.Name(), beat: beat.New(), tables: &policy.Holder{}}
			if e.control = e.state.NewClient(); e.control == nil {
				t.Fatal("no client")
			}
			said := make(chan error, 1)
			go func() { said <- e.succeed(ctx) }()
			if c.says == "" {
				if err := <-ended; !errors.Is(err, handover.ErrTaken) {
					t.Errorf("the one before ends with %v, want its place taken", err)
				}
				offer.Over()
				if err := <-said; err != nil {
					t.Error(err)
				}
				cancel()
				return
			}
			select {
			case err = <-said:
			case err := <-ended:
				t.Fatalf("the one before has ended: %v", err)
			}
			if err == nil || !strings.Contains(err.Error(), c.says) || !strings.HasSuffix(err.Error(), "serves on") {
				t.Errorf("it says %v, want %q of it, and that the one before serves on", err, c.says)
			}
			time.Sleep(20 * time.Millisecond)
			cancel()
			if err := <-ended; err != nil {
				t.Errorf("the one before ends with %v, want that it serves until it is stopped", err)
			}
		})
	}
}

func TestConfig_SaysWhatNoEdgeTakes(t *testing.T) {
	for says, set := range map[string]func(*Config){
		"OnSpoolError": func(c *Config) { c.OnSpoolError = "serve" },
		"QuotaWait":    func(c *Config) { c.QuotaWait = time.Minute },
		"Budget":       func(c *Config) { c.DetailBytes = 1 },
		"profiles":     func(c *Config) { c.Pprof = "0.0.0.0:6060" },
	} {
		c := Config{Dir: "d", Name: "n", Region: "r", HTTPS: ":443", Relay: ":7500", Logger: slog.New(slog.DiscardHandler)}
		set(&c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("got %v, want that %s is wrong", err, says)
		}
	}
}

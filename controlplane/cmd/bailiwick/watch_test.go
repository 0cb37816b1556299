package main

import (
	"bytes"
	"context"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"bailiwick/controlplane/internal/adminapi"
)

// lines is an output that somebody waits at.
type lines struct {
	mu   sync.Mutex // covers buf
	buf  bytes.Buffer
	live bool
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func (l *lines) Terminal() bool { return l.live }

func (l *lines) wait(t *testing.T, text string) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !strings.Contains(l.String(), text); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("no %q within a minute in:\n%s", text, l.String())
		}
	}
}

func TestUsageWatch_OutlivesAControlNodeAndEndsOnCtrlC(t *testing.T) {
	for _, live := range []bool{false, true} {
		d := seeded(t)
		zone := d.in.Zones["emea"]
		mortal := httptest.NewServer(zone.Server.Config.Handler)
		defer mortal.Close()
		d.env["BAILIWICK_ADMIN"] = mortal.URL + "," + zone.Server.URL
		cell := time.Now().UTC().Truncate(15 * time.Minute)
		used := func(success, limited int64) {
			zone.Usage.Set("acme", adminapi.UsageReport{CompleteThrough: time.Now(), Rows: []adminapi.UsageRow{
				{Cell: cell, API: "orders", Outcome: "success", Requests: success}, {Cell: cell, API: "orders", Outcome: "limited", Requests: limited}}})
		}
		used(100, 0)
		ctx, interrupt := context.WithCancel(t.Context())
		out, errs := &lines{live: live}, &lines{}
		done := make(chan int, 1)
		go func() {
			done <- run(ctx, []string{"usage", "watch", "--customer", "acme", "--every", "250ms"}, world{func(k string) string { return d.env[k] }, strings.NewReader(""), out, errs})
		}()
		if live {
			out.wait(t, "0.0 success")
		} else {
			out.wait(t, "success=0.0/s")
		}
		mortal.CloseClientConnections()
		mortal.Close()
		used(175, 25)
		out.wait(t, "25.0") // percent of limited, by the node that is left
		interrupt()
		if code := <-done; code != exitOK {
			t.Errorf("Ctrl-C: exit %d, want 0: %s", code, errs)
		}
		if live {
			for line := range strings.SplitSeq(out.String(), "\n") {
				if line = strings.TrimPrefix(line, "\x1b["); len([]rune(line)) > 80 {
					t.Errorf("a line of %d columns would be wrapped: %q", len([]rune(line)), line)
				}
			}
		}
		if escaped := strings.Contains(out.String(), "\x1b["); escaped != live {
			t.Errorf("live %v: escape sequences %v in %q", live, escaped, out)
		}
	}
}

func TestUsageWatch_SaysWhoIsUnknown(t *testing.T) {
	d := seeded(t)
	if code, _, errs := d.run("", "usage", "watch", "--customer", "nobody"); code != exitNotFound {
		t.Errorf("watch nobody: exit %d, want 3: %s", code, errs)
	}
	if code, _, _ := d.run("", "usage", "watch", "--customer", "acme", "--every", "1ms"); code != exitUsage {
		t.Errorf("watch every ms: exit %d, want 2", code)
	}
}

package accesslog_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"bailiwick/dataplane/internal/accesslog"
)

func entry() *accesslog.Entry {
	return &accesslog.Entry{At: time.Unix(1_800_000_000, 0), ID: [16]byte{15: 1}, API: "orders", Route: "all", Method: "GET", Customer: "acme", Subscription: "main", Plan: "gold", Key: "k1",
		Outcome: "success", Served: "eu-west", Status: 200, Attempts: 1, In: 10, Out: 256, Took: 1500 * time.Microsecond, Waited: time.Millisecond, Cached: true, Relayed: true}
}

func open(t *testing.T, mod func(*accesslog.Config)) (*accesslog.Log, string) {
	t.Helper()
	cfg := accesslog.Config{Path: filepath.Join(t.TempDir(), "access.log"), Logger: slog.New(slog.DiscardHandler)}
	if mod != nil {
		mod(&cfg)
	}
	l, err := accesslog.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return l, cfg.Path
}

func lines(t *testing.T, path string) []string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(string(data), "\n"), "\n")
}

func TestLog_WritesLinesThatPeopleRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, path := open(t, nil)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); l.Run(ctx) }()
		l.Log(entry())
		hostile := entry()
		hostile.Customer = "a\",\n\x00\\{" + strings.Repeat("x", 5000)
		l.Log(hostile)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		got := lines(t, path)
		if len(got) != 2 {
			t.Fatalf("%d lines, want 2: %q", len(got), got)
		}
		var m map[string]any
		if err := json.Unmarshal([]byte(got[0]), &m); err != nil {
			t.Fatal(err)
		}
		for name, want := range map[string]any{"time": "2027-01-15T08:00:00.000Z", "request_id": "00000000-0000-0000-0000-000000000001", "api": "orders", "route": "all", "method": "GET", "customer": "acme",
			"subscription": "main", "plan": "gold", "key_id": "k1", "outcome": "success", "served_region": "eu-west", "status": 200.0, "attempts": 1.0, "bytes_in": 10.0, "bytes_out": 256.0,
			"duration_us": 1500.0, "upstream_us": 1000.0, "cached": true, "relayed": true} {
			if m[name] != want {
				t.Errorf("%s: got %v, want %v", name, m[name], want)
			}
			delete(m, name)
		}
		if len(m) != 0 {
			t.Errorf("it says more: %v", m)
		}
		if err := json.Unmarshal([]byte(got[1]), &m); err != nil || len(got[1]) > 1000 {
			t.Errorf("a hostile name: %v, %d bytes", err, len(got[1]))
		}
		// Somebody moved the file: the next line is in a new one.
		if err := os.Rename(path, path+".moved"); err != nil {
			t.Fatal(err)
		}
		l.Log(entry())
		cancel() // what waits is written at the end
		<-done
		if n := len(lines(t, path)); n != 1 {
			t.Errorf("%d lines after the file was moved, want 1", n)
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%v %v, want a file for its owner alone", info, err)
		}
	})
}

func TestLog_DropsWhatFindsNoRoom(t *testing.T) {
	l, _ := open(t, func(c *accesslog.Config) { c.Buffer = 4096 })
	for range 100 { // nobody writes
		l.Log(entry())
	}
	if n := l.Dropped(); n < 80 || n >= 100 {
		t.Errorf("%d of 100 dropped, want most", n)
	}
}

func TestLog_CountsWhatTheDiskDidNotTake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, path := open(t, nil)
		if err := os.Mkdir(path, 0o700); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); l.Run(ctx) }()
		l.Log(entry())
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if n := l.Dropped(); n != 1 {
			t.Errorf("%d dropped, want 1", n)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		l.Log(entry())
		cancel()
		<-done
		if n := len(lines(t, path)); n != 1 {
			t.Errorf("%d lines once the disk takes them again, want 1", n)
		}
	})
}

func TestLog_MovesAFileThatIsFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, path := open(t, func(c *accesslog.Config) { c.MaxBytes = 100 })
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); l.Run(ctx) }()
		for range 3 {
			l.Log(entry())
			time.Sleep(2 * time.Second)
			synctest.Wait()
		}
		cancel()
		<-done
		if a, b := len(lines(t, path)), len(lines(t, path+".1")); a != 1 || b != 1 {
			t.Errorf("%d and %d lines, want 1 and 1", a, b)
		}
	})
}

// Of two processes that write to one file one alone moves it, and the other goes on in the new one: no line is lost.
func TestLog_SharedIsMovedByOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		full := func(c *accesslog.Config) { c.MaxBytes = 100 }
		before, path := open(t, full)
		after, _ := open(t, func(c *accesslog.Config) { full(c); c.Path = path })
		ctx, cancel := context.WithCancel(t.Context())
		var runs sync.WaitGroup
		runs.Go(func() { before.Run(ctx) })
		before.Log(entry())
		before.Share()
		for range 3 {
			before.Log(entry())
			time.Sleep(2 * time.Second)
			synctest.Wait()
		}
		if _, err := os.Stat(path + ".1"); err == nil || len(lines(t, path)) != 4 {
			t.Errorf("it moves a file that is another's too (%v), or loses lines of it: %d of 4", err, len(lines(t, path)))
		}
		runs.Go(func() { after.Run(ctx) })
		for range 2 { // the first finds a file that is full, and the second a new one
			after.Log(entry())
			time.Sleep(2 * time.Second)
			synctest.Wait()
		}
		before.Log(entry())
		time.Sleep(2 * time.Second)
		cancel()
		runs.Wait()
		if a, b := len(lines(t, path)), len(lines(t, path+".1")); a+b != 7 || b != 5 {
			t.Errorf("%d lines, and %d in what was moved, want 7 in all, 5 of them there", a, b)
		}
		var none *accesslog.Log
		none.Share()
	})
}

func TestLog_Samples(t *testing.T) {
	l, _ := open(t, func(c *accesslog.Config) { c.Sample = 0.25 })
	n := 0
	for i := range 1 << 16 {
		id := [16]byte{14: byte(i >> 8), 15: byte(i)}
		if l.Wants(id, 200) {
			n++
		}
		if !l.Wants(id, 502) {
			t.Fatal("a failure is not in the log")
		}
	}
	if n < 1<<14-2 || n > 1<<14+2 {
		t.Errorf("%d of %d, want a quarter", n, 1<<16)
	}
	all, _ := open(t, nil)
	if !all.Wants([16]byte{14: 255, 15: 255}, 200) {
		t.Error("without a sample one is not in the log")
	}
	if n := testing.AllocsPerRun(100, func() { all.Log(entry()) }); n > 1 {
		t.Errorf("%v allocations for a line, want none but the entry", n)
	}
}

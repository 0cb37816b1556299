package scenario_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"bailiwick/e2e/flood"
	"bailiwick/e2e/harness"
)

// roomForFloods is by how much an edge may grow, whatever is done to it.
const roomForFloods = 256 << 20

// An edge with nothing to ask exchanges once a second with its zone, and the zone's nodes read some 40 KiB a second, of each other
// and of their edges. While an edge is flooded there may be twice as much of both, by the clock and whatever is asked meanwhile,
// and a little more, since neither comes evenly: had the zone been asked for each of 5,000 requests a second, which is what the
// slowest of these floods sends on a quiet machine, it would have read ten times as much.
const (
	exchangesMost  = 2 // a second
	exchangesSpare = 2
	heardMost      = 2 // times what is heard without a flood
	heardSpare     = 32 << 10
)

// TestFloods: whatever is done to an edge, as fast as it can be or as slowly, it serves a client that behaves, stays within its
// memory and asks its zone nothing for it. `make floods` runs it, and its table is the report.
func TestFloods(t *testing.T) {
	long := os.Getenv("BAILIWICK_LONG")
	if long == "" {
		t.Skip("minutes: make floods")
	}
	each, err := time.ParseDuration(long)
	if err != nil {
		each = 10 * time.Second
	}
	s := harness.Start(t)
	const lines, few = "flood-lines.emea.example.test", "flood-few.emea.example.test"
	s.MustCLI("emea", "apply", "-f", writeFile(t, "lines.yaml", `kind: API
name: flood-lines
spec:
  zone: emea
  hosts: [`+lines+`]
  policy: gdpr-emea
  tcp: {}
  routes: [{name: all}]
  upstreams: [{region: eu-west, url: "tcp://`+strings.TrimPrefix(s.UpstreamURL("eu-west"), "http://")+`"}]
---
kind: API
name: flood-few
spec:
  zone: emea
  hosts: [`+few+`]
  policy: gdpr-emea
  routes: [{name: some, path_prefix: /v1}]
  upstreams: [{region: eu-west, url: "`+s.UpstreamURL("eu-west")+`"}]
---
kind: Customer
name: flooder
spec: {zone: emea, subscriptions: [{plan: unlimited}]}
`))
	e := edgeToFlood(s, ordersEMEA, s.Key("emea", "unlimited")) // whose upstream is a process of its own: this one is busy flooding
	e.Key, e.GuestKey = field(t, s.MustCLI("emea", "key", "create", "--customer", "flooder", "--plan", "unlimited", "-o", "json"), "key"), e.Key
	e.Lines, e.Few, e.Long = lines, few, "/v1/x?bytes=4000000"
	s.Eventually(time.Minute, "the edge has the APIs", func() error {
		for _, host := range []string{lines, few} {
			conn, err := tls.Dial("tcp", e.HTTPS, &tls.Config{RootCAs: s.Roots(), ServerName: host})
			if err != nil {
				return err
			}
			conn.Close()
		}
		return nil
	})
	floods(t, s, e, each, func(name string, v flood.Visit) {
		if v.Failed > 0 {
			t.Errorf("%s: %d of %d requests of a client that behaves failed: %v", name, v.Failed, v.Asked, v.Why)
		}
	})
}

func edgeToFlood(s *harness.Sandbox, host, key string) *flood.Edge {
	at := s.EdgeOf("eu-west")
	return &flood.Edge{HTTP: at.HTTP, HTTPS: at.HTTPS, H3: at.HTTPS, Host: host, Zone: "emea", Key: key}
}

func floods(t *testing.T, s *harness.Sandbox, e *flood.Edge, each time.Duration, judge func(name string, v flood.Visit)) {
	if runtime.GOOS != "linux" {
		t.Skip("reads /proc")
	}
	pid := 0
	for _, at := range s.Edges {
		if at.HTTPS == e.HTTPS {
			pid = at.PID
		}
	}
	exchanges := func() int64 {
		n, _ := s.Metric(s.EdgeOf("eu-west").Admin, "bailiwick_quota_exchanges_total")
		return int64(n)
	}
	heard := func() (bytes int64) {
		for _, c := range s.Controls {
			if c.Zone == e.Zone {
				bytes += taken(t, c.PID)
			}
		}
		return bytes
	}
	only := regexp.MustCompile(os.Getenv("BAILIWICK_ONLY"))
	guest := flood.NewGuest(e)
	defer guest.Close()
	alone, cancel := context.WithTimeout(t.Context(), each)
	began, exchanged, told := time.Now(), exchanges(), heard()
	v := guest.Run(alone, e) // and all his connections are there
	cancel()
	exchanged, told = exchanges()-exchanged, heard()-told
	idle := float64(told) / time.Since(began).Seconds()
	var table strings.Builder
	fmt.Fprintf(&table, "| flood | sent | answers | edge's memory, MiB: before, most, 1 s after | its CPU | exchanges | what its zone heard, KiB | good requests, failed | p50 | p99 | longest |\n|---|---|---|---|---|---|---|---|---|---|---|\n")
	fmt.Fprintf(&table, "| none | | | %d | | %d | %d | %d, %d | %v | %v | %v |\n", memory(t, pid)>>20, exchanged, told>>10, v.Asked, v.Failed, short(v.P50), short(v.P99), short(v.Max))
	first := memory(t, pid)
	for _, f := range flood.All(e) {
		if !only.MatchString(f.Name) {
			continue
		}
		before, most, cpu := memory(t, pid), memory(t, pid), processor(t, pid)
		began, exchanged, told := time.Now(), exchanges(), heard()
		ctx, cancel := context.WithTimeout(t.Context(), each)
		var wg sync.WaitGroup
		var tally *flood.Tally
		var v flood.Visit
		wg.Go(func() { tally = f.Run(ctx, e) })
		wg.Go(func() { v = guest.Run(ctx, e) })
		wg.Go(func() {
			for ctx.Err() == nil {
				most = max(most, memory(t, pid))
				select {
				case <-ctx.Done():
				case <-time.After(50 * time.Millisecond):
				}
			}
		})
		wg.Wait()
		cancel()
		passed := time.Since(began)
		cpu, exchanged, told = processor(t, pid)-cpu, exchanges()-exchanged, heard()-told
		if each > time.Second {
			time.Sleep(time.Second)
		}
		fmt.Fprintf(&table, "| %s | %d | %s | %d, %d, %d | %v | %d | %d | %d, %d | %v | %v | %v |\n", f.Name, tally.Sent(), tally.Answers(), before>>20, most>>20, memory(t, pid)>>20, cpu.Round(time.Millisecond),
			exchanged, told>>10, v.Asked, v.Failed, short(v.P50), short(v.P99), short(v.Max))
		if !f.Served && tally.Said("200") > 0 {
			t.Errorf("%s: %d were served", f.Name, tally.Said("200"))
		}
		if grown := most - first; grown > roomForFloods {
			t.Errorf("%s: the edge grew by %d MiB, want %d at most", f.Name, grown>>20, int64(roomForFloods)>>20)
		}
		if f.Answer != "" {
			if tally.Said(f.Answer) == 0 || tally.Others(f.Answer) > 0 {
				t.Errorf("%s: the answers are %s, want %s and nothing else", f.Name, tally.Answers(), f.Answer)
			}
		}
		if most := exchangesMost*passed.Seconds() + exchangesSpare; float64(exchanged) > most {
			t.Errorf("%s: %d exchanges with the zone in %v, want %.0f at most", f.Name, exchanged, passed, most)
		}
		// Of what is served and counted the zone hears; of a request that is refused like this it hears nothing.
		if most := heardMost*idle*passed.Seconds() + heardSpare; f.Answer != "" && float64(told) > most {
			t.Errorf("%s: the zone's nodes read %d KiB in %v, want %.0f at most", f.Name, told>>10, passed, most/1024)
		}
		judge(f.Name, v)
	}
	t.Logf("%s each\n%s", each, table.String())
	for _, protocol := range []string{harness.Clear, harness.HTTP1, harness.HTTP2, viaHTTP3} {
		client := overHTTP3(t, s, "eu-west")
		if protocol != viaHTTP3 {
			client = s.ClientFor(protocol, "eu-west")
		}
		s.Eventually(time.Minute, "the edge serves over "+protocol+" afterwards", func() error {
			return ok(s.Send(client, http.MethodGet, e.Host, "/v1/x", e.Key, nil), "eu-west")
		})
	}
	memory(t, pid) // it is the process that it was
}

func short(d time.Duration) time.Duration { return d.Round(100 * time.Microsecond) }

// memory is what a process holds of memory. The test ends if there is none.
func memory(t *testing.T, pid int) (rss int64) {
	status, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	if err != nil {
		t.Fatalf("the edge's memory: %v", err)
	}
	for line := range strings.Lines(string(status)) {
		if kib, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			n, _ := strconv.ParseInt(strings.Fields(kib)[0], 10, 64)
			rss += n << 10
		}
	}
	return rss
}

// taken is how many bytes a process has read, of connections over TCP and of files.
func taken(t *testing.T, pid int) (n int64) {
	io, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "io"))
	if err == nil {
		_, err = fmt.Sscanf(string(io), "rchar: %d", &n)
	}
	if err != nil {
		t.Fatalf("what a control node has read: %v", err)
	}
	return n
}

// processor is the time that a process has used.
func processor(t *testing.T, pid int) time.Duration {
	stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		t.Fatalf("the edge's processor time: %v", err)
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	fields := strings.Fields(rest)
	var ticks int64
	for _, f := range fields[11:13] {
		n, _ := strconv.ParseInt(f, 10, 64)
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

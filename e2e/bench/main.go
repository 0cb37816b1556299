// Command bench measures the floors and reports of the spine on a sandbox of its own: how fast a key begins
// and ceases to work, how soon a request is seen in usage and by other edges' quotas, how fast a pair takes over, how
// soon a tightening is in force and a lost region replaced, how soon another node leads, what a request costs the edge, and how big everything is.
// It prints one table and exits 1 when a floor is missed. It needs the programs in bin/: make bench.
package main

import (
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"bailiwick/e2e/harness"
)

const orders = "orders.emea.example.test"

// bench holds the sandbox and the rows of the report.
type bench struct {
	t       harness.T
	s       *harness.Sandbox
	samples int
	rows    [][4]string
	missed  bool
}

func main() {
	samples := flag.Int("samples", 200, "keys to create and revoke")
	kills := flag.Int("kills", 5, "upstream kills")
	leaderKills := flag.Int("leader-kills", 30, "kills of the node that leads a zone's store")
	seconds := flag.Int("seconds", 10, "load while the edge's CPU time is measured")
	only := flag.String("only", "", "sections to run, with commas between: idle, keys, visible, told, failover, border, raft, etcd, cost, sizes; empty: all")
	tightenings := flag.Int("tightenings", 100, "tightenings to wait for, all connected")
	flag.StringVar(&harness.Store, "store", "", "engine of the sandbox: raft, the default, or etcd")
	memberKills := flag.Int("member-kills", 9, "kills of members of the etcd that holds a zone's store, each in its turn; with -store etcd")
	cold := flag.Bool("cold", false, "also build everything with an empty build cache, as the first make run does")
	flag.Parse()
	b := &bench{samples: *samples}
	ok := harness.Main(os.Stderr, func(t harness.T) {
		b.t = t
		if *cold {
			b.build()
		}
		begun := time.Now()
		b.s = harness.Start(t)
		b.report("sandbox start to ready (built)", seconds1(time.Since(begun)), "", "")
		for _, section := range []struct {
			name string
			run  func()
		}{
			{"idle", b.idle},
			{"keys", b.keys},
			{"visible", func() { b.visible(b.samples / 2) }},
			{"told", func() { b.told(b.samples / 2) }},
			{"failover", func() { b.failover(*kills) }},
			{"border", func() { b.border(*tightenings) }},
			{"raft", func() { b.raft(*leaderKills) }},
			{"etcd", func() { b.etcd(*memberKills) }},
			{"cost", func() { b.cost(time.Duration(*seconds) * time.Second) }},
			{"sizes", b.sizes},
		} {
			if *only == "" || slices.Contains(strings.Split(*only, ","), section.name) {
				section.run()
			}
		}
	})
	fmt.Printf("%d CPUs, %s\n", runtime.NumCPU(), runtime.Version())
	fmt.Printf("%-44s %12s %12s  %s\n", "MEASURE", "P50/VALUE", "P99", "FLOOR")
	for _, r := range b.rows {
		fmt.Printf("%-44s %12s %12s  %s\n", r[0], r[1], r[2], r[3])
	}
	if !ok || b.missed {
		os.Exit(1)
	}
}

func (b *bench) report(measure, value, p99, floor string) {
	b.rows = append(b.rows, [4]string{measure, value, p99, floor})
}

// latency reports percentiles by nearest rank, against a floor for the p99.
func (b *bench) latency(measure string, samples []time.Duration, floor time.Duration) {
	if len(samples) == 0 {
		b.t.Fatalf("%s: nothing was measured", measure)
	}
	slices.Sort(samples)
	rank := func(p int) time.Duration { return samples[max(0, (len(samples)*p+99)/100-1)] }
	verdict := "≤ " + floor.String() + " met"
	if rank(99) > floor {
		verdict, b.missed = "≤ "+floor.String()+" MISSED", true
	}
	b.report(fmt.Sprintf("%s (%d)", measure, len(samples)), millis(rank(50)), millis(rank(99)), verdict)
}

func millis(d time.Duration) string {
	return strconv.FormatFloat(float64(d.Microseconds())/1000, 'f', 1, 64) + " ms"
}
func seconds1(d time.Duration) string { return strconv.FormatFloat(d.Seconds(), 'f', 1, 64) + " s" }

// until polls one edge until check holds, and returns when it did.
func (b *bench) until(region, key string, patience time.Duration, check func(harness.Answer) bool) time.Time {
	deadline := time.Now().Add(patience)
	for {
		a := b.s.Get(region, key)
		now := time.Now()
		if check(a) {
			return now
		}
		if now.After(deadline) {
			b.t.Fatalf("%s still answers %d after %s: %v", region, a.Status, patience, a.Err)
		}
		time.Sleep(time.Millisecond)
	}
}

// keys: from the moment the admin API has answered to the first request that is accepted or refused, at the
// slower of both emea edges.
func (b *bench) keys() {
	service := b.s.KeyService(b.s.AdminURLs("emea")[0])
	var created, revoked []time.Duration
	for range b.samples {
		id, key, err := harness.CreateKey(service, "initech", "unlimited")
		if err != nil {
			b.t.Fatalf("create key: %v", err)
		}
		created = append(created, b.both(key, func(a harness.Answer) bool { return a.Status == http.StatusOK }))
		if err := harness.RevokeKey(service, id); err != nil {
			b.t.Fatalf("revoke key: %v", err)
		}
		revoked = append(revoked, b.both(key, func(a harness.Answer) bool { return a.Status == http.StatusUnauthorized }))
	}
	b.latency("new key → first accepted, both edges", created, time.Second)
	b.latency("revoke → first refused, both edges", revoked, time.Second)
}

func (b *bench) both(key string, check func(harness.Answer) bool) time.Duration {
	from := time.Now()
	ends := make(chan time.Time, 2)
	for _, region := range []string{"eu-west", "eu-central"} {
		go func() {
			deadline := time.Now().Add(10 * time.Second)
			for !check(b.s.Get(region, key)) && time.Now().Before(deadline) {
				time.Sleep(time.Millisecond)
			}
			ends <- time.Now()
		}()
	}
	last := <-ends
	if other := <-ends; other.After(last) {
		last = other
	}
	if last.Sub(from) > 10*time.Second {
		b.t.Fatalf("a change of a key was not seen within 10 s")
	}
	return last.Sub(from)
}

// failover: from the kill of the home upstream to the first answer of its pair, as a client sees it who asks
// all the time.
func (b *bench) failover(kills int) {
	key := b.s.Key("emea", "unlimited")
	var took []time.Duration
	for range kills {
		b.until("eu-west", key, 30*time.Second, func(a harness.Answer) bool { return a.Served() == "eu-west" })
		seen := make(chan time.Time, 1)
		stop := make(chan struct{})
		go func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if a := b.s.Get("eu-west", key); a.Status == http.StatusOK && a.Served() == "eu-central" {
					seen <- time.Now()
					return
				}
			}
		}()
		killed := time.Now() // SIGKILL follows; the control_url's own time counts against us
		b.s.Act("kill", "orders@eu-west")
		select {
		case at := <-seen:
			took = append(took, at.Sub(killed))
		case <-time.After(15 * time.Second):
			close(stop)
			b.t.Fatalf("the pair has not answered 15 s after the kill")
		}
		b.s.Act("start", "orders@eu-west")
	}
	b.until("eu-west", key, 30*time.Second, func(a harness.Answer) bool { return a.Served() == "eu-west" })
	b.latency("upstream kill → first answer of the pair", took, 200*time.Millisecond)
}

// cost: CPU time of the edge for requests over 32 HTTPS connections that stay open, with key auth, a rate
// limit and metering.
func (b *bench) cost(length time.Duration) {
	// Gold is limited at 500 a second: enough of a limit to be computed, and the load stays below it.
	key := b.s.Key("emea", "gold")
	pid := 0
	for _, e := range b.s.Edges {
		if e.Region == "eu-west" {
			pid = e.PID
		}
	}
	var clients []*http.Client
	for range 32 {
		clients = append(clients, b.s.NewClient(b.s.HTTPS("eu-west")))
	}
	for _, c := range clients {
		if a := b.s.Send(c, http.MethodGet, orders, "/v1/orders", key, nil); a.Status != http.StatusOK {
			b.t.Fatalf("before the load: status %d, %v", a.Status, a.Err)
		}
	}
	free := make(chan *http.Client, len(clients))
	for _, c := range clients {
		free <- c
	}
	before, err := cpu(pid)
	if err != nil {
		b.report("CPU per request", "not known here", "", err.Error())
		return
	}
	began := time.Now()
	load := harness.StartLoad(32, 450, func(int64) error {
		c := <-free
		defer func() { free <- c }()
		a := b.s.Send(c, http.MethodGet, orders, "/v1/orders", key, nil)
		if a.Status != http.StatusOK {
			return fmt.Errorf("status %d, %v", a.Status, a.Err)
		}
		return nil
	})
	time.Sleep(length)
	failed, reasons := load.Stop()
	took := time.Since(began)
	after, err := cpu(pid)
	if err != nil {
		b.t.Fatalf("CPU time of process %d: %v", pid, err)
	}
	done := load.Sent.Load()
	if failed > 0 {
		b.t.Errorf("%d of %d requests failed: %v", failed, done, reasons)
	}
	if done == 0 {
		b.t.Fatalf("no request was sent")
	}
	b.report("edge CPU per request, HTTPS keep-alive", strconv.FormatInt((after-before).Microseconds()/done, 10)+" µs", "",
		fmt.Sprintf("%d requests, %.0f/s, 32 connections", done, float64(done)/took.Seconds()))
}

// build is what the first make run spends before the sandbox starts; modules are taken as downloaded.
func (b *bench) build() {
	cmd := exec.Command("go", "build", "-trimpath", "-o", b.t.TempDir()+"/", "./controlplane/cmd/...", "./dataplane/cmd/...", "./deploy/sandbox")
	cmd.Dir = harness.Root(b.t)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOCACHE="+b.t.TempDir())
	begun := time.Now()
	if out, err := cmd.CombinedOutput(); err != nil {
		b.t.Fatalf("build: %v: %s", err, out)
	}
	b.report("cold build of all programs", seconds1(time.Since(begun)), "", "with the start below: aim ≤ 240 s on 2 cores")
}

// cpu is the user and system time of a process so far.
func cpu(pid int) (time.Duration, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(data), ") ") // the name may hold anything
	fields := strings.Fields(rest)
	if len(fields) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields))
	}
	var ticks int64
	for _, f := range fields[11:13] { // utime, stime in USER_HZ, which is 100 on every Linux that Go runs on
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond, nil
}

// idle: memory of processes that nobody has asked anything yet.
func (b *bench) idle() {
	time.Sleep(3 * time.Second) // what starting allocated may be given back
	for _, e := range b.s.Edges[:1] {
		b.report("memory of an idle edge", rss(e.PID), "", e.Name)
	}
	for _, c := range b.s.Controls[:1] {
		b.report("memory of an idle control node", rss(c.PID), "", c.Name)
	}
}

func rss(pid int) string {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return "not known here"
	}
	for line := range strings.Lines(string(data)) {
		if value, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kb, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
			if err == nil {
				return megabytes(kb << 10)
			}
		}
	}
	return "not known here"
}

func megabytes(n int64) string {
	return strconv.FormatFloat(float64(n)/(1<<20), 'f', 1, 64) + " MiB"
}

func (b *bench) sizes() {
	for _, name := range []string{"bailiwick-control", "bailiwick-edge", "bailiwick"} {
		info, err := os.Stat(filepath.Join(b.s.Bin, name))
		if err != nil {
			b.t.Fatalf("size of %s: %v", name, err)
		}
		b.report("size of "+name, megabytes(info.Size()), "", "")
	}
}

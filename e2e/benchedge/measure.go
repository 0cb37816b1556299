package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// row is a way of loading the peers.
type row struct {
	name, title string
	tool        string // wrk, h2load, or a kind of load of this program
	scheme      string
	path        string
	args        []string // of h2load
	conns       int      // 0: -connections
	direct      bool     // the upstream is measured too, without anybody before it
	only        []string // the peers that can
	few         bool     // a thousand of the keys are used, however many there are
}

var rows = []row{
	{name: "http", title: "HTTP/1.1, keep-alive, 256 B", tool: "wrk", scheme: "http", path: "/items/"},
	{name: "https", title: "HTTPS, HTTP/1.1, keep-alive, 256 B", tool: "wrk", scheme: "https", path: "/items/"},
	{name: "http-few", title: "HTTP/1.1, keep-alive, 256 B, 1,000 of the keys", tool: "wrk", scheme: "http", path: "/items/", few: true},
	{name: "https-few", title: "HTTPS, HTTP/1.1, keep-alive, 256 B, 1,000 of the keys", tool: "wrk", scheme: "https", path: "/items/", few: true},
	{name: "h2", title: "HTTPS, HTTP/2, 16 connections of 4 streams, 256 B, one key", tool: "h2load", scheme: "https", path: "/items/", args: []string{"-c", "16", "-m", "4"}},
	{name: "h2keys", title: "HTTPS, HTTP/2, 16 connections of 4 streams, 256 B, all keys in turn", tool: "http2", scheme: "https", path: "/items/", conns: 16},
	{name: "h3", title: "HTTP/3, 16 connections of 4 streams, 256 B, one key (nethttp: a bare echo over quic-go's streams)", tool: "http3", scheme: "https", path: "/items/", conns: 16, only: []string{"edge", "before", "nethttp"}},
	{name: "handshakes", title: "a new TLS connection (X25519, P-256, no resumption) for each request", tool: "handshakes", scheme: "https", path: "/items/"},
	{name: "rate", title: "500 requests/s on one connection, HTTP/1.1", tool: "rate", scheme: "http", path: "/items/", direct: true},
	{name: "large", title: "HTTP/1.1, keep-alive, 64 KiB", tool: "wrk", scheme: "http", path: "/large/"},
	{name: "large-https", title: "HTTPS, HTTP/1.1, keep-alive, 64 KiB", tool: "wrk", scheme: "https", path: "/large/"},
	{name: "paced", title: "1,000 connections, HTTP/1.1, a request a second on each", tool: "paced", scheme: "http", path: "/items/", conns: 1000},
	{name: "idle", title: "10,000 idle HTTPS connections, a request on each before", tool: "idle", scheme: "https", path: "/items/", conns: 10_000},
}

func rowNames() (names []string) {
	for _, r := range rows {
		names = append(names, r.name)
	}
	return names
}

func rowOf(name string) (row, bool) {
	i := slices.IndexFunc(rows, func(r row) bool { return r.name == name })
	if i < 0 {
		return row{}, false
	}
	return rows[i], true
}

// sample is what one peer did once.
type sample struct {
	cpu      float64 // µs of the peer's processes a request
	kernel   float64 // of them in the kernel
	rate     float64
	p50, p99 float64 // ms; 0: the tool does not say
	rss      float64 // MB
	busy     float64 // of one CPU
	each     float64 // KiB of memory a connection that is held
	control  float64 // of one CPU, the control node beside it
}

// begun is what a load generator says on its second output when it has read its keys and the load is about to begin: a million of
// them take wrk some seconds, in which a peer's housekeeping is nobody's request.
const begun = "BEGIN\n"

// script sends all keys in turn, to an address that the name is not asked for.
const script = `local keys, n = {}, 0
function wrk.resolve(host, service) wrk.addrs = wrk.lookup("127.0.0.1", service) end
function init(args)
  for k in io.lines("%s") do keys[#keys + 1] = "?page=2 HTTP/1.1\r\nHost: ` + host + `\r\nX-API-Key: " .. k .. "\r\n\r\n" end
end
local function turn() n = n %% #keys + 1; return "GET %s" .. n %% 1000 .. keys[n] end
function request() io.stderr:write("BEGIN\n") request = turn; return turn() end
function done(summary, latency)
  local e = summary.errors
  io.write(string.format("RESULT %%d %%d %%d %%d %%d\n", summary.requests, summary.duration, latency:percentile(50), latency:percentile(99), e.connect + e.read + e.write + e.status + e.timeout))
end
`

func (b *bench) measure(ctx context.Context, r row) error {
	used := "used.keys"
	if r.few {
		used = "few.keys"
	}
	if err := b.write("wrk.lua", fmt.Sprintf(script, filepath.Join(b.dir, used), r.path)); err != nil {
		return err
	}
	if err := b.calm(ctx); err != nil {
		return err
	}
	got := map[string][]sample{}
	peers := slices.Clone(b.peers)
	if r.direct {
		peers = append(peers, &peer{name: "direct", proc: b.running[0], http: b.addr(portUpstream)})
	}
	if r.only != nil {
		peers = slices.DeleteFunc(peers, func(p *peer) bool { return !slices.Contains(r.only, strings.TrimRight(p.name, "0123456789")) })
	}
	rounds := b.rounds + 1 // the first only warms up
	if r.tool == "idle" {
		rounds = 1 // memory that was taken once is not given back soon
	}
	for round := range rounds {
		for i := range peers {
			p := peers[(i+round)%len(peers)]
			lasts := b.lasts
			if round == 0 && rounds > 1 {
				lasts = time.Second
			}
			s, err := b.once(ctx, r, p, lasts)
			if err != nil {
				return fmt.Errorf("%s: %w", p.name, err)
			}
			if round > 0 || rounds == 1 {
				got[p.name] = append(got[p.name], s)
			}
		}
	}
	b.print(r, peers, got)
	return nil
}

var h2loadCount = regexp.MustCompile(`requests: .* ([0-9]+) succeeded, ([0-9]+) failed, ([0-9]+) errored, ([0-9]+) timeout`)

func (b *bench) once(ctx context.Context, r row, p *peer, lasts time.Duration) (s sample, err error) {
	address := p.http
	if r.scheme == "https" {
		address = p.https
	}
	_, port, _ := strings.Cut(address, ":")
	target := r.scheme + "://" + host + ":" + port + r.path + "1?page=2"
	var command []string
	seconds := strconv.Itoa(max(1, int(lasts.Seconds())))
	switch r.tool {
	case "wrk":
		command = []string{"wrk", "-t1", "-c" + strconv.Itoa(b.conns), "-d" + seconds + "s", "-s", filepath.Join(b.dir, "wrk.lua"), target}
	default:
		conns := r.conns
		if conns == 0 {
			conns = b.conns
		}
		text, err := json.Marshal(loadConfig{Kind: r.tool, Address: address, Scheme: r.scheme, Path: r.path + "1", Key: b.used[0], Keys: filepath.Join(b.dir, "used.keys"), Lasts: lasts, Connections: conns})
		if err != nil {
			return s, err
		}
		self, err := os.Executable()
		if err != nil {
			return s, err
		}
		command = []string{self, "-load", string(text)}
	case "h2load":
		command = append([]string{"h2load", "-t1", "-D", seconds, "--connect-to=" + address, "-H", "x-api-key: " + b.used[0]}, append(r.args, target)...)
	}
	_, rest := b.places()
	command = rest.command(command[0], command[1:]...)
	pids := family(p.proc.cmd.Process.Pid)
	memory := rssOf(pids)
	var from meter
	from.read(pids, b.control)
	held := watchMemory(pids)
	said := &output{begin: func() { from.read(pids, b.control) }}
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Stdout, cmd.Stderr = said, said
	err = cmd.Run()
	most, out := held(), said.text.Bytes()
	var to meter
	to.read(pids, b.control)
	took := to.at.Sub(from.at)
	kernel := to.kernel - from.kernel
	spent := to.user - from.user + kernel
	s.control = (to.control - from.control).Seconds() / took.Seconds()
	if err != nil {
		return s, fmt.Errorf("%s: %w: %s", r.tool, err, out)
	}
	var requests, failed int64
	switch r.tool {
	default:
		var duration, p50, p99 int64
		i := strings.Index(string(out), "RESULT ")
		if i < 0 {
			return s, fmt.Errorf("%s printed no result: %s", r.tool, out)
		}
		if _, err := fmt.Sscanf(string(out[i:]), "RESULT %d %d %d %d %d", &requests, &duration, &p50, &p99, &failed); err != nil {
			return s, fmt.Errorf("read the result of %s: %w", r.tool, err)
		}
		s.rate, s.p50, s.p99 = float64(requests)/(float64(duration)/1e6), float64(p50)/1e3, float64(p99)/1e3
	case "h2load":
		m := h2loadCount.FindSubmatch(out)
		if m == nil {
			return s, fmt.Errorf("h2load printed no result: %s", out)
		}
		requests, _ = strconv.ParseInt(string(m[1]), 10, 64)
		for _, f := range m[2:] {
			n, _ := strconv.ParseInt(string(f), 10, 64)
			failed += n
		}
		s.rate = float64(requests) / lasts.Seconds()
		if strings.Contains(string(out), "status codes: 0 2xx") {
			failed = requests
		}
	}
	if requests == 0 || failed*1000 > requests {
		return s, fmt.Errorf("%d of %d requests failed: %s", failed, requests, out)
	}
	s.cpu = spent.Seconds() * 1e6 / float64(requests)
	s.kernel = kernel.Seconds() * 1e6 / float64(requests)
	s.busy = spent.Seconds() / took.Seconds()
	s.rss = rssOf(pids)
	if r.tool == "idle" {
		s.rss, s.each = most, (most-memory)*1024/float64(r.conns)
	}
	return s, nil
}

// meter is what peers had used at a moment, and the control node beside them.
type meter struct {
	at                    time.Time
	user, kernel, control time.Duration
}

func (m *meter) read(peer []int, control *process) {
	m.at = time.Now()
	m.user, m.kernel = cpuOf(peer)
	if control != nil {
		user, kernel := cpuOf([]int{control.cmd.Process.Pid})
		m.control = user + kernel
	}
}

// output is what a load generator writes, of which begun is told and not kept.
type output struct {
	begin func()
	text  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	rest, first := bytes.CutPrefix(p, []byte(begun))
	if first {
		o.begin()
	}
	o.text.Write(rest)
	return len(p), nil
}

// calm waits until the control node has done what it does after a million keys were made: it would take the processor from peers
// and load generator alike. How busy it was beside a row is in the row's table.
func (b *bench) calm(ctx context.Context) error {
	var before, now meter
	for range 120 {
		before.read(nil, b.control)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Second):
		}
		if now.read(nil, b.control); now.control-before.control < 150*time.Millisecond {
			return nil
		}
	}
	fmt.Fprintln(os.Stderr, "the control node is busy after two minutes: figures hold it")
	return nil
}

// watchMemory looks until it is asked how much it was at most.
func watchMemory(pids []int) (most func() float64) {
	stop, done, seen := make(chan struct{}), make(chan struct{}), rssOf(pids)
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			case <-time.After(250 * time.Millisecond):
				seen = max(seen, rssOf(pids))
			}
		}
	}()
	return func() float64 { close(stop); <-done; return seen }
}

// family is a process and all that came from it.
func family(pid int) (pids []int) {
	pids = []int{pid}
	for _, child := range children(pid) {
		pids = append(pids, family(child)...)
	}
	return pids
}

// cpuOf is user and system time, which Linux counts in hundredths of a second.
func cpuOf(pids []int) (user, kernel time.Duration) {
	for _, pid := range pids {
		data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		_, rest, _ := strings.Cut(string(data), ") ")
		fields := strings.Fields(rest)
		if len(fields) < 13 {
			continue
		}
		u, _ := strconv.ParseInt(fields[11], 10, 64)
		k, _ := strconv.ParseInt(fields[12], 10, 64)
		user += time.Duration(u) * 10 * time.Millisecond
		kernel += time.Duration(k) * 10 * time.Millisecond
	}
	return user, kernel
}

func rssOf(pids []int) (mb float64) {
	for _, pid := range pids {
		data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
		if fields := strings.Fields(string(data)); len(fields) > 1 {
			n, _ := strconv.ParseFloat(fields[1], 64)
			mb += n * float64(os.Getpagesize()) / (1 << 20)
		}
	}
	return mb
}

func median(samples []sample, of func(sample) float64) (mid, low, high float64) {
	values := make([]float64, len(samples))
	for i, s := range samples {
		values[i] = of(s)
	}
	slices.Sort(values)
	return values[len(values)/2], values[0], values[len(values)-1]
}

func (b *bench) print(r row, peers []*peer, got map[string][]sample) {
	load, _ := os.ReadFile("/proc/loadavg")
	class := ""
	if b.realtime {
		class = ", real-time class"
	}
	fmt.Printf("\n%s; %d keys, %d of them used, pinned: %s%s, %d rounds of %s, load average %.4s, at %s\n", r.title, b.keys, len(b.used), b.pin, class, b.rounds, b.lasts, load, time.Now().Format("15:04"))
	fmt.Printf("| peer | CPU µs/request (min–max) | in the kernel | × nginx | requests/s | p50 ms | p99 ms | RSS MB | of a CPU | control node | KiB a connection |\n|---|---|---|---|---|---|---|---|---|---|---|\n")
	cpu := func(s sample) float64 { return s.cpu }
	base := 0.0
	if n := got["nginx"]; len(n) > 0 {
		base, _, _ = median(n, cpu)
	}
	for _, p := range peers {
		s := got[p.name]
		mid, low, high := median(s, cpu)
		ratio := "-"
		if base > 0 {
			ratio = fmt.Sprintf("%.2f", mid/base)
		}
		one := func(of func(sample) float64) float64 { m, _, _ := median(s, of); return m }
		fmt.Printf("| %s | %.1f (%.1f–%.1f) | %.1f | %s | %.0f | %s | %s | %.0f | %.2f | %.2f | %.1f |\n", p.name, mid, low, high, one(func(s sample) float64 { return s.kernel }), ratio,
			one(func(s sample) float64 { return s.rate }), said(one(func(s sample) float64 { return s.p50 })), said(one(func(s sample) float64 { return s.p99 })),
			one(func(s sample) float64 { return s.rss }), one(func(s sample) float64 { return s.busy }), one(func(s sample) float64 { return s.control }), one(func(s sample) float64 { return s.each }))
	}
	if r.direct {
		b.printAdded(got)
	}
}

// said is a latency, ms, as far as the tool says any: h2load does not, nor do handshakes and idle connections.
func said(ms float64) string {
	if ms == 0 {
		return "–"
	}
	return fmt.Sprintf("%.3f", ms)
}

// printAdded says what each peer adds to the upstream's own latency.
func (b *bench) printAdded(got map[string][]sample) {
	of := map[string]func(sample) float64{"p50": func(s sample) float64 { return s.p50 }, "p99": func(s sample) float64 { return s.p99 }}
	fmt.Printf("\n| peer | p50 ms (min–max) | added | × nginx | p99 ms (min–max) | added | × nginx |\n|---|---|---|---|---|---|---|\n")
	added := func(name, q string) float64 {
		own, _, _ := median(got["direct"], of[q])
		mid, _, _ := median(got[name], of[q])
		return mid - own
	}
	for _, p := range b.peers {
		fmt.Printf("| %s |", p.name)
		for _, q := range []string{"p50", "p99"} {
			mid, low, high := median(got[p.name], of[q])
			ratio := "-"
			if len(got["nginx"]) > 0 {
				ratio = fmt.Sprintf("%.2f", added(p.name, q)/added("nginx", q))
			}
			fmt.Printf(" %.3f (%.3f–%.3f) | %.3f | %s |", mid, low, high, added(p.name, q), ratio)
		}
		fmt.Println()
	}
}

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"bailiwick/e2e/harness"
	"bailiwick/e2e/netlab"
)

// world is the sandbox with what the campaign knows of it.
type world struct {
	t   harness.T
	s   *harness.Sandbox
	o   options
	out io.Writer
	ctx context.Context

	upstreams map[string]*upstream
	customers []*customer    // of the load
	special   []*customer    // of single faults
	dir       string         // for manifests
	apart     *harness.Apart // nil: packets cannot be told apart by who sends them
	small     map[string]bool
	leftOut   map[string]string
	sent      atomic.Int64
	began     time.Time

	mu       sync.Mutex // covers the rest
	clients  map[string]*http.Client
	busy     map[string]bool // processes under a fault
	broken   []string
	slots    int // of added edges
	closed   int // epochs closed by the operator
	excused  map[string]bool
	measures map[string]float64
}

const (
	edgeDisk    = 96 << 20
	controlDisk = 256 << 20 // it takes 19 MiB in minutes of this, 37 right after a start: 18 for each WAL that pebble sets aside
)

func newWorld(t harness.T, o options, out io.Writer) *world {
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	w := &world{t: t, o: o, out: out, ctx: ctx, upstreams: map[string]*upstream{}, dir: t.TempDir(), small: map[string]bool{}, leftOut: map[string]string{},
		clients: map[string]*http.Client{}, busy: map[string]bool{}, excused: map[string]bool{}, measures: map[string]float64{}}
	for _, region := range []string{"eu-west", "eu-central", "us-east", "us-west"} {
		u, err := newUpstream(ctx, region)
		if err != nil {
			t.Fatal(err)
		}
		w.upstreams[region] = u
	}
	for _, c := range []*customer{{name: "ada", zone: "emea"}, {name: "bert", zone: "emea"}, {name: "cleo", zone: "emea"}, {name: "quiet", zone: "emea", quiet: true},
		{name: "dora", zone: "us"}, {name: "emil", zone: "us"}, {name: "still", zone: "us", quiet: true},
		// Strict quotas, one used up early and one late.
		{name: "capped", zone: "emea", limit: max(20, o.requests/60)}, {name: "wide", zone: "us", limit: max(20, o.requests/15)}} {
		w.customers = append(w.customers, c)
	}
	bin := w.wrap()
	w.s = harness.StartWith(t, harness.Options{Bin: bin, Args: []string{"-manifests", w.manifests()}})
	w.smallDisks()
	for _, c := range w.customers {
		w.admit(c, c.plan())
		for _, e := range w.s.Edges {
			if e.Zone == c.zone {
				c.edges = append(c.edges, e.HTTPS)
			}
		}
	}
	w.s.Settle()
	return w
}

// wrap gives each daemon a user id of its own.
func (w *world) wrap() (bin string) {
	err := errors.New("no network of its own")
	if netlab.Inside() {
		w.apart, err = harness.NewApart(w.t)
	}
	if err != nil {
		w.apart = nil
		w.leftOut["partition"], w.leftOut["fsync"] = err.Error(), err.Error()
		return ""
	}
	if err := harness.Strace(); err != nil {
		w.leftOut["fsync"] = err.Error()
	}
	return w.apart.Bin
}

func (w *world) manifests() string {
	dir := filepath.Join(w.dir, "manifests")
	if err := os.Mkdir(dir, 0o755); err != nil {
		w.t.Fatal(err)
	}
	var b strings.Builder
	b.WriteString("kind: LegalBasis\nname: gdpr\nspec: {kind: same-law}\n---\nkind: LegalBasis\nname: us-law\nspec: {kind: same-law}\n---\n" +
		"kind: Policy\nname: gdpr-emea\nspec: {zone: emea, within_zone: {basis: gdpr}}\n---\nkind: Policy\nname: us\nspec: {zone: us, within_zone: {basis: us-law}}\n---\n")
	for _, z := range []struct {
		zone, policy string
		regions      []string
	}{{"emea", "gdpr-emea", []string{"eu-west", "eu-central"}}, {"us", "us", []string{"us-east", "us-west"}}} {
		fmt.Fprintf(&b, "kind: API\nname: orders\nspec:\n  zone: %s\n  hosts: [orders.%s.example.test]\n  policy: %s\n  routes: [{name: all, path_prefix: /}]\n  upstreams:\n", z.zone, z.zone, z.policy)
		for _, r := range z.regions {
			fmt.Fprintf(&b, "    - {region: %s, url: \"http://%s\"}\n", r, w.upstreams[r].address)
		}
		b.WriteString("---\n")
	}
	b.WriteString("kind: Product\nname: commerce\nspec: {apis: [orders]}\n---\nkind: Plan\nname: unlimited\nspec: {products: [commerce]}\n")
	for _, c := range w.customers {
		if c.limit > 0 {
			fmt.Fprintf(&b, "---\nkind: Plan\nname: %s\nspec: {products: [commerce], quota: {units: %d, mode: strict}}\n", c.plan(), c.limit)
		}
		fmt.Fprintf(&b, "---\nkind: Customer\nname: %s\nspec: {zone: %s, subscriptions: [{plan: %s}]}\n", c.name, c.zone, c.plan())
	}
	if err := os.WriteFile(filepath.Join(dir, "all.yaml"), []byte(b.String()), 0o644); err != nil {
		w.t.Fatal(err)
	}
	return dir
}

// admit gives a customer its key.
func (w *world) admit(c *customer, plan string) { _, c.key = w.s.NewKey(c.zone, c.name, plan) }

// smallDisks puts the edges and one control node of each zone on file systems that can be filled.
func (w *world) smallDisks() {
	if !netlab.Inside() {
		w.leftOut["full disk"] = "no mount table of its own"
		return
	}
	sizes := map[string]int{"emea-3": controlDisk, "us-3": controlDisk}
	for _, e := range w.s.Edges {
		sizes[e.Name] = edgeDisk
	}
	for name, size := range sizes {
		dir := filepath.Join(w.s.Dir, name)
		aside := dir + ".aside"
		w.s.Act("stop", name)
		err := os.Rename(dir, aside)
		if err == nil {
			err = os.Mkdir(dir, 0o700)
		}
		if err == nil {
			err = netlab.Disk(dir, size)
		}
		if err == nil {
			err = exec.Command("cp", "-a", aside+"/.", dir).Run()
		}
		if err == nil {
			err = os.RemoveAll(aside)
		}
		if err != nil {
			w.t.Fatalf("put %s on a small disk: %v", name, err)
		}
		w.small[name] = true
		w.s.Act("start", name)
	}
}

// act asks the sandbox to do something to a process. 409 is an error: it was not as thought.
func (w *world) act(verb, name string) error {
	response, err := http.Post(w.s.ControlURL+"/v1/"+verb+"/"+name, "", nil)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if body, _ := io.ReadAll(response.Body); response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s %s: %s: %.200s", verb, name, response.Status, body)
	}
	return nil
}

// admin is where a process answers of its health.
func (w *world) admin(name string) string {
	for _, e := range w.s.Edges {
		if e.Name == name {
			return e.Admin
		}
	}
	for _, c := range w.s.Admin {
		if c.Name == name {
			return c.URL
		}
	}
	return ""
}

func (w *world) breach(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	fmt.Fprintf(w.out, "%s BREACH: %s\n", w.clock(), text)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.broken = append(w.broken, text)
}

func (w *world) clock() string { return fmt.Sprintf("[%7.1fs]", time.Since(w.began).Seconds()) }

// run is the campaign itself.
func (w *world) run() summary {
	w.began = time.Now()
	s := summary{Seed: w.o.seed, Kinds: map[string]*tally{}, LeftOut: w.leftOut}
	loadCtx, stop := context.WithCancel(w.ctx)
	var loaded sync.WaitGroup
	loaded.Go(func() { w.load(loadCtx, 64, w.o.rate) })
	told := w.newHistory()
	loaded.Go(func() { told.run(loadCtx, w) })
	deadline := w.began.Add(time.Duration(w.o.minutes * float64(time.Minute)))

	w.injectAll(&s, deadline)
	for w.sent.Load() < w.o.requests && time.Now().Before(deadline) {
		time.Sleep(50 * time.Millisecond)
	}
	stop()
	loaded.Wait()
	s.Requests, s.Seconds = w.sent.Load(), time.Since(w.began).Seconds()
	if s.Requests < w.o.requests || s.Faults < w.o.faults {
		w.breach("only %d of %d requests and %d of %d faults in %.0f minutes", s.Requests, w.o.requests, s.Faults, w.o.faults, w.o.minutes)
	}
	settling := time.Now()
	names := w.allControls()
	for _, e := range w.s.Edges {
		names = append(names, e.Name)
	}
	if err := w.alive(names...); err != nil {
		w.breach("after all faults: %v", err)
	}
	w.s.Settle()
	for _, c := range w.customers {
		if c.limit > 0 {
			w.useUp(c)
		}
	}
	w.judge(&s)
	told.judge(w)
	s.SettledIn = time.Since(settling).Seconds()
	w.panics()
	s.Breaches, s.Measures, s.Closed = w.broken, w.measures, w.closed
	return s
}

// panics looks for what no fault explains.
func (w *world) panics() {
	files, _ := filepath.Glob(filepath.Join(w.s.Dir, "logs", "*.log"))
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(text)) {
			if strings.HasPrefix(line, "panic:") || strings.HasPrefix(line, "fatal error:") || strings.Contains(line, "goroutine panicked") {
				w.breach("%s: %s", filepath.Base(f), strings.TrimSpace(line))
			}
		}
	}
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

func (w *world) rngFor(n int) *rand.Rand { return rand.New(rand.NewPCG(w.o.seed, uint64(n))) }

var errSkip = errors.New("nothing to break")

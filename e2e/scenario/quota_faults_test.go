package scenario_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"bailiwick/e2e/harness"
	"bailiwick/e2e/netlab"
)

const thousand = 1000

// TestQuotaUnderFaults: a strict quota of 1,000 over two regions of two edges each, with 90, 5, 5 and no percent
// of the load, while one edge is cut off and another is killed with units in hand. Never more than 1,000 are
// served, and exactly 1,000 once the killed edge is back, or an operator has closed its epoch. Requests are POSTs
// with a name each, which no edge tries twice: an upstream has each at most once, every one that was served and
// none that was refused. It runs in a network of its own, where packets are cut by who sends them.
func TestQuotaUnderFaults(t *testing.T) {
	t.Parallel()
	if !netlab.Inside() {
		if err := reexecInNamespace(t); err != nil {
			t.Skipf("no network namespace here: %v", err)
		}
		return
	}
	if err := netlab.Up(); err != nil {
		t.Fatal(err)
	}
	apart, err := harness.NewApart(t)
	if err != nil {
		t.Logf("SKIPPED: %v", err)
		return
	}
	upstreams := ownUpstreams(t)
	s := harness.StartWith(t, harness.Options{Bin: apart.Bin, Args: []string{"-manifests", zoneManifests(t, upstreams)}})
	for _, name := range []string{"eu-west-edge-2", "eu-central-edge-2"} {
		apart.UID(name)
	}
	q := &quotaRun{s: s, apart: apart, upstreams: upstreams, edges: []string{s.HTTPS("eu-west"),
		s.AddEdge("eu-west", "eu-west-edge-2", 10).HTTPS, s.HTTPS("eu-central"), s.AddEdge("eu-central", "eu-central-edge-2", 11).HTTPS}}
	s.MustCLI("emea", "apply", "--now", "--reason", "a test", "-f", writeFile(t, "plan.yaml", fmt.Sprintf("kind: Plan\nname: thousand\nspec: {products: [commerce], quota: {units: %d, mode: strict}}\n", thousand)))
	t.Run("the edge comes back", func(t *testing.T) { q.run(t, "returns", true) })
	t.Run("its epoch is closed", func(t *testing.T) { q.run(t, "closed", false) })
}

type quotaRun struct {
	s         *harness.Sandbox
	apart     *harness.Apart
	upstreams map[string]*harness.Upstream
	edges     []string // addresses: west 1 and 2, central 1 and 2

	key, customer string
	asked         atomic.Int64 // names of requests
	completed     atomic.Int64
	flight        sync.RWMutex // held for writing while an edge is killed: nothing is in flight then

	mu    sync.Mutex
	ended map[string]ending // how each request of this customer ended, by its path
}

// ending of a request: its status, 0 without an answer, and the region that served it.
type ending struct {
	status int
	served string
}

const victim = "eu-west-edge-1"

func (q *quotaRun) ask(edge int) int {
	q.flight.RLock()
	defer q.flight.RUnlock()
	path := fmt.Sprintf("/cust/%s/%d", q.customer, q.asked.Add(1))
	a := q.s.Send(q.s.Client(q.edges[edge]), http.MethodPost, ordersEMEA, path, q.key, nil)
	e := ending{a.Status, a.Served()}
	if a.Err != nil {
		e = ending{}
	} else if e.served != "" {
		q.completed.Add(1)
	}
	q.mu.Lock()
	q.ended[path] = e
	q.mu.Unlock()
	return e.status
}

// answered holds what the upstreams were asked against what clients were told. Of a request that failed (no answer,
// or an error of the edge's) an upstream may have heard: it is not served, and costs no unit.
func (q *quotaRun) answered(t *testing.T) {
	q.mu.Lock()
	defer q.mu.Unlock()
	times := map[string]int{}
	for _, u := range q.upstreams {
		for what, n := range u.Seen() {
			if _, path, _ := strings.Cut(what, " "); strings.HasPrefix(path, "/cust/"+q.customer+"/") {
				times[path] += n
			}
		}
	}
	failed := 0
	for path, n := range times {
		switch e, known := q.ended[path]; {
		case n != 1:
			t.Errorf("%s reached upstreams %d times", path, n)
		case !known:
			t.Errorf("%s reached an upstream, and nobody sent it", path)
		case e.served != "":
		case e.status == 0 || e.status >= http.StatusInternalServerError:
			failed++
			t.Logf("%s reached an upstream, and its caller got %d", path, e.status)
		default:
			t.Errorf("%s was refused with %d, and reached an upstream", path, e.status)
		}
	}
	for path, e := range q.ended {
		if e.served != "" && times[path] == 0 {
			t.Errorf("%s was answered by %s, whose upstream never had it", path, e.served)
		}
	}
	if n := len(times) - failed; n != thousand {
		t.Errorf("upstreams answered %d requests that were served, want exactly %d", n, thousand)
	}
}

func (q *quotaRun) run(t *testing.T, customer string, back bool) {
	s := q.s.With(t)
	q.customer = customer
	q.completed.Store(0)
	q.mu.Lock()
	q.ended = map[string]ending{}
	q.mu.Unlock()
	s.MustCLI("emea", "apply", "-f", writeFile(t, "customer.yaml", "kind: Customer\nname: "+customer+"\nspec: {zone: emea, subscriptions: [{name: main, plan: thousand}]}\n"))
	_, q.key = s.NewKey("emea", customer, "thousand")
	for i := range q.edges {
		s.Eventually(20*time.Second, "the key works everywhere", func() error {
			if status := q.ask(i); status != http.StatusOK {
				return fmt.Errorf("%d", status)
			}
			return nil
		})
	}
	share := func() int {
		switch n := rand.IntN(100); {
		case n < 90:
			return 0
		case n < 95:
			return 1
		}
		return 2
	}
	dead := atomic.Bool{} // the victim's share goes to the others
	load := harness.StartLoad(16, 120, func(int64) error {
		e := share()
		if dead.Load() {
			e = 1 + rand.IntN(3)
		}
		q.ask(e)
		return nil
	})
	q.reach(t, 200)
	heal, err := netlab.Make(q.off("eu-central-edge-1", 0)...)
	if err != nil {
		t.Fatal(err)
	}
	q.reach(t, 300)
	if err := heal(); err != nil {
		t.Fatal(err)
	}
	q.reach(t, 400)
	// The victim is cut off and spends what it holds. When it is to come back it dies with rows that nobody has;
	// when it is not, only its quota exchange is cut and its usage arrives, so that closing its epoch loses nothing.
	protocol := 0
	if !back {
		protocol = 6
	}
	heal, err = netlab.Make(q.off(victim, protocol)...)
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(150 * time.Millisecond)
	q.flight.Lock()
	dead.Store(true)
	if !back {
		s.Eventually(20*time.Second, "what the victim served is counted", func() error {
			u, err := s.Usage("emea", customer)
			if err == nil && u.Answered() != q.completed.Load() {
				err = fmt.Errorf("%d counted of %d", u.Answered(), q.completed.Load())
			}
			return err
		})
	}
	before := q.completed.Load()
	s.Act("kill", victim)
	q.flight.Unlock()
	if err := heal(); err != nil {
		t.Fatal(err)
	}
	// The others go on, and stop short of what the dead one holds.
	last, still := int64(-1), time.Now()
	for time.Since(still) < 3*time.Second {
		if n := q.completed.Load(); n != last {
			last, still = n, time.Now()
		}
		time.Sleep(20 * time.Millisecond)
	}
	held := q.quota(t).Held
	t.Logf("%d served when the edge was killed, %d before it is back, %d units held by it", before, last, held)
	if last >= thousand || held == 0 {
		t.Errorf("%d of %d are served and %d held while an edge is away: it died with nothing in hand, so the test proves nothing", last, thousand, held)
	}
	if last > thousand {
		t.Fatalf("%d served of %d", last, thousand)
	}
	if back {
		s.Act("start", victim)
	} else {
		q.closeEpoch(t)
	}
	s.Eventually(40*time.Second, "all of the quota is served", func() error {
		if n := q.completed.Load(); n < thousand {
			return fmt.Errorf("%d, quota %+v", n, q.quota(t))
		}
		return nil
	})
	time.Sleep(2 * time.Second) // one more would come now
	load.Stop()
	if completed := q.completed.Load(); completed != thousand {
		t.Errorf("%d completed, want exactly %d", completed, thousand)
	}
	q.answered(t)
	if !back {
		s.Act("start", victim)
	}
	s.Eventually(60*time.Second, "usage is what was served", func() error {
		u, err := s.Usage("emea", customer)
		if err == nil && (u.Total.Units != thousand || u.Answered() != thousand) {
			err = fmt.Errorf("%d units of %d requests", u.Total.Units, u.Answered())
		}
		return err
	})
	if st := q.quota(t); st.Used != thousand || st.Remaining != 0 {
		t.Errorf("quota show says %+v, want %d used and nothing left", st, thousand)
	}
}

// reach waits until so many are served.
func (q *quotaRun) reach(t *testing.T, n int64) {
	t.Helper()
	q.s.With(t).Eventually(60*time.Second, fmt.Sprint(n, " served"), func() error {
		if got := q.completed.Load(); got < n {
			return fmt.Errorf("%d", got)
		}
		return nil
	})
}

// off cuts an edge from every control node, by one protocol or all.
func (q *quotaRun) off(edge string, protocol int) (out []netlab.Cut) {
	for _, c := range q.s.ControlsOf("emea") {
		out = append(out, netlab.Cut{UID: q.apart.UID(edge), Port: q.s.PeerPort(c), Protocol: protocol})
	}
	return out
}

type quotaShown struct {
	Customer                     string
	Limit, Used, Held, Remaining int64
}

func (q *quotaRun) quota(t *testing.T) quotaShown {
	t.Helper()
	out, stderr, code := q.s.CLI("emea", "quota", "show", "--customer", q.customer, "-o", "json")
	var list []quotaShown
	if err := json.Unmarshal([]byte(out), &list); code != 0 || err != nil || len(list) == 0 {
		t.Fatalf("quota show: exit code %d, %v: %s%s", code, err, out, stderr)
	}
	return list[0]
}

// closeEpoch is the operator who gives the dead edge up.
func (q *quotaRun) closeEpoch(t *testing.T) {
	t.Helper()
	s := q.s.With(t)
	var list []struct {
		Epoch  uint64
		Status string
	}
	if err := json.Unmarshal([]byte(s.MustCLI("emea", "usage", "epochs", "--edge", victim, "-o", "json")), &list); err != nil || len(list) == 0 {
		t.Fatalf("usage epochs: %v, %d of them", err, len(list))
	}
	var last error
	s.Eventually(60*time.Second, "the epoch can be closed", func() error { // one that was heard of just now is in use
		last = nil
		_, stderr, code := s.CLI("emea", "usage", "close-epoch", victim, fmt.Sprint(list[len(list)-1].Epoch), "--zone", "emea", "--reason", "the machine is gone")
		if code != 0 {
			last = errors.New(strings.TrimSpace(stderr))
		}
		return last
	})
}

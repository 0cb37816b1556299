package scenario_test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"bailiwick/e2e/harness"
)

// TestQuota: the flow as published, and how soon a top-up, an upgrade and a suspension change what each region
// decides.
func TestQuota(t *testing.T) {
	t.Parallel()
	s := harness.Start(t)
	q := &quotas{s: s, dir: t.TempDir()}
	q.apply(t, `kind: Plan
name: four
spec: {products: [commerce], quota: {units: 4, mode: strict}}
---
kind: Plan
name: more
spec: {products: [commerce], quota: {units: 1000000, mode: strict}}
---
kind: Plan
name: balance
spec: {products: [commerce], quota: {period: prepaid, mode: strict}}
---
kind: Plan
name: rated
spec: {products: [commerce], rate_limit: {requests_per_second: 50, burst: 10}}
`)
	t.Run("published", func(t *testing.T) { q.published(t) })
	t.Run("prepaid", func(t *testing.T) { q.prepaid(t) })
	t.Run("shared", func(t *testing.T) { q.sharedRate(t) })
	t.Run("changes", func(t *testing.T) { q.changes(t) })
}

type quotas struct {
	s   *harness.Sandbox
	dir string
}

var homes = []string{"eu-west", "eu-central"}

func (q *quotas) apply(t *testing.T, manifest string) {
	t.Helper()
	file := filepath.Join(q.dir, "manifest.yaml")
	if err := os.WriteFile(file, []byte(manifest), 0o600); err != nil {
		t.Fatal(err)
	}
	q.s.With(t).MustCLI("emea", "apply", "--now", "--reason", "a test", "-f", file)
}

// customer writes a customer with one subscription, and makes his key.
func (q *quotas) customer(t *testing.T, name, plan string) (key string) {
	t.Helper()
	q.apply(t, customerManifest(name, plan, "active"))
	_, key = q.s.With(t).NewKey("emea", name, plan)
	// Known everywhere: refused for another reason than the key. An unknown host's answer would not tell.
	for _, region := range homes {
		q.s.With(t).Eventually(10*time.Second, "the key in "+region, func() error {
			if a := q.s.Do(region, http.MethodGet, reportsEMEA, "/", key, nil); a.Err != nil || a.Status != http.StatusForbidden {
				return fmt.Errorf("%d %v", a.Status, a.Err)
			}
			return nil
		})
	}
	return key
}

func customerManifest(name, plan, status string) string {
	return fmt.Sprintf("kind: Customer\nname: %s\nspec: {zone: emea, status: %s, subscriptions: [{name: main, plan: %s}]}\n", name, status, plan)
}

// ask sends a POST, which no edge tries twice: an upstream has it once at most. Who serves it may be the pair, whose
// home's upstream is late.
func (q *quotas) ask(region, key string) harness.Answer {
	return q.s.Do(region, http.MethodPost, ordersEMEA, "/v1/orders", key, nil)
}

// published: a limit of 4, three requests in one region and two in another: exactly 4 are served.
func (q *quotas) published(t *testing.T) {
	key := q.customer(t, "pub", "four")
	before := q.s.Count("eu-west") + q.s.Count("eu-central")
	served := 0
	for _, region := range []string{"eu-west", "eu-west", "eu-west", "eu-central", "eu-central"} {
		var a harness.Answer
		q.s.With(t).Eventually(10*time.Second, region+" knows whether units are left", func() error { // it waits for the word as long as -quota-wait says
			if a = q.ask(region, key); refused(a, 503, "quota-unconfirmed") == nil {
				return fmt.Errorf("%.200s", a.Body)
			}
			return nil
		})
		if err := ok(a, homes...); err == nil {
			served++
			if got := a.Header.Get("RateLimit"); !strings.Contains(got, `"quota";r=`) || !strings.Contains(a.Header.Get("RateLimit-Policy"), `"quota";q=4;w=`) {
				t.Errorf("%s: headers are %q and %q, want the whole quota of 4", region, got, a.Header.Get("RateLimit-Policy"))
			}
		} else {
			t.Logf("%s, when %d were served: %v", region, served, err) // who finds fewer than 4 wants to know who was refused, and why
		}
	}
	if served != 4 {
		t.Errorf("got %d of five requests served, want 4", served)
	}
	q.exhausted(t, key, 429, "quota-exceeded")
	if got := q.s.Count("eu-west") + q.s.Count("eu-central") - before; got != 4 {
		t.Errorf("the upstreams answered %d requests, want 4", got)
	}
	u := q.s.With(t).UsageThrough("emea", "pub", time.Now(), 30*time.Second)
	if u.Total.Units != 4 || u.Total.Billable != 4 {
		t.Errorf("usage says %d units, %d billable, want 4 of each", u.Total.Units, u.Total.Billable)
	}
}

// exhausted waits until every region refuses with that word: 503 is allowed before, as long as units are under way.
func (q *quotas) exhausted(t *testing.T, key string, status int, reason string) {
	t.Helper()
	for _, region := range homes {
		q.s.With(t).Eventually(10*time.Second, region+" refuses", func() error {
			a := q.ask(region, key)
			if err := refused(a, status, reason); err != nil {
				return err
			}
			if retry := a.Header.Get("Retry-After"); (retry != "") != (status == 429) {
				return fmt.Errorf("%d with Retry-After %q", status, retry)
			}
			return nil
		})
	}
}

// prepaid: a balance serves as many as were bought, by whatever region.
func (q *quotas) prepaid(t *testing.T) {
	key := q.customer(t, "pre", "balance")
	q.exhausted(t, key, 402, "prepaid-exhausted")
	before := q.s.Count("eu-west") + q.s.Count("eu-central")
	bought := int64(0)
	for _, units := range []int64{3, 2} {
		q.s.With(t).MustCLI("emea", "quota", "top-up", "--customer", "pre", "--units", fmt.Sprint(units))
		bought += units
		q.s.With(t).Eventually(20*time.Second, fmt.Sprint(bought, " served"), func() error {
			for _, region := range homes {
				q.ask(region, key)
			}
			if got := q.s.Count("eu-west") + q.s.Count("eu-central") - before; got != bought {
				return fmt.Errorf("got %d", got)
			}
			return nil
		})
		q.exhausted(t, key, 402, "prepaid-exhausted")
	}
	if got := q.s.Count("eu-west") + q.s.Count("eu-central") - before; got != bought {
		t.Errorf("the upstreams answered %d requests, want the %d that were bought", got, bought)
	}
}

// sharedRate: two edges of one region admit together what the plan's rate says, also when all requests move from
// one to the other.
func (q *quotas) sharedRate(t *testing.T) {
	const rate, burst, each = 50, 10, 150 // each edge is offered three times the rate
	key := q.customer(t, "rat", "rated")
	second := q.s.With(t).AddEdge("eu-west", "eu-west-edge-2", 10)
	clients := []*http.Client{q.s.Client(q.s.HTTPS("eu-west")), q.s.Client(second.HTTPS)}
	q.s.With(t).Eventually(20*time.Second, "the second edge has its certificate", func() error {
		return refused(q.s.Send(clients[1], http.MethodGet, ordersEMEA, "/v1/orders", "", nil), 401, "key-missing")
	})
	// send offers requests to some edges for a while and counts what they admit in its second half, when each
	// knows its share. It says what a single bucket would have admitted of the requests as they were sent, and for how long an edge
	// answered nothing: who finds too few wants to know whether all stood still, this test too.
	send := func(name string, edges ...int) {
		const length = 6 * time.Second
		var passed, wrong atomic.Int64
		began := time.Now()
		answered := make([]gaps, len(clients))
		var mu sync.Mutex // covers sent
		var sent []time.Duration
		var wg sync.WaitGroup
		for _, e := range edges {
			answered[e].last = length / 2
			tick := time.NewTicker(time.Second / each)
			defer tick.Stop()
			wg.Go(func() {
				for time.Since(began) < length {
					<-tick.C
					wg.Go(func() {
						at := time.Since(began)
						mu.Lock()
						sent = append(sent, at)
						mu.Unlock()
						a := q.s.Send(clients[e], http.MethodGet, ordersEMEA, "/v1/orders", key, nil)
						answered[e].add(time.Since(began), length)
						switch {
						case ok(a) == nil && at > length/2:
							passed.Add(1)
						case ok(a) != nil && refused(a, 429, "rate-exceeded") != nil:
							if wrong.Add(1) == 1 {
								t.Logf("edge %d after %v: %d %v %.200s", e+1, at, a.Status, a.Err, a.Body)
							}
						}
					})
				}
			})
		}
		wg.Wait()
		seconds := length.Seconds() / 2
		could := bucket(sent, rate, burst, length/2)
		least, most := int64(rate*seconds*8/10), int64(rate*seconds)+burst
		still := time.Duration(0)
		for i := range answered {
			still = max(still, answered[i].sum)
		}
		t.Logf("%s: %d admitted in %v s at a rate of %d, of %d that could be; no answer in %v of them", name, passed.Load(), seconds, rate, could, still.Round(time.Millisecond))
		if n := passed.Load(); n < least || n > most || wrong.Load() > 0 {
			t.Errorf("%s: %d admitted, want %d to %d; %d answered otherwise than with 200 or 429", name, n, least, most, wrong.Load())
		}
	}
	send("both edges", 0, 1)
	send("one edge", 0)
	send("the other", 1)
}

// bucket is how many of the requests sent at these times a bucket admits of those behind after.
func bucket(sent []time.Duration, rate, burst float64, after time.Duration) (n int64) {
	slices.Sort(sent)
	tokens, last := burst, time.Duration(0)
	for _, at := range sent {
		tokens, last = min(burst, tokens+(at-last).Seconds()*rate), at
		if tokens >= 1 {
			if tokens--; at > after {
				n++
			}
		}
	}
	return n
}

func TestBucket(t *testing.T) {
	var steady []time.Duration
	for i := range 900 {
		steady = append(steady, time.Duration(i)*time.Second/150)
	}
	if n := bucket(slices.Clone(steady), 50, 10, 3*time.Second); n < 149 || n > 150 {
		t.Errorf("three times the rate for 6 s: %d in the second half, want 150", n)
	}
	still := slices.DeleteFunc(steady, func(at time.Duration) bool { return at > 4*time.Second && at < 5*time.Second })
	if n := bucket(still, 50, 10, 3*time.Second); n < 108 || n > 111 { // of the second in which nothing is sent a burst is left
		t.Errorf("nothing sent for one of them: %d, want 110", n)
	}
}

// gaps sums up for how long nothing was answered of what comes 150 times a second.
type gaps struct {
	mu   sync.Mutex // covers the rest
	last time.Duration
	sum  time.Duration
}

// add takes an answer at that time of a half that ends at end.
func (g *gaps) add(at, end time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if at = min(at, end); at-g.last > 50*time.Millisecond {
		g.sum += at - g.last
	}
	g.last = max(g.last, at)
}

// changes measures from the operator's answer to each region's first changed decision.
func (q *quotas) changes(t *testing.T) {
	rounds := 6
	if long() {
		rounds = 15
	}
	key := q.customer(t, "chg", "four")
	q.drain(t, key)
	measure := func(name string, within time.Duration, change func(), back func(), changed func(harness.Answer) bool) {
		var took []time.Duration
		for range rounds {
			took = append(took, q.until(t, key, change, changed)...)
			back()
		}
		slices.Sort(took)
		p50, p99 := took[len(took)/2], took[(len(took)*99+99)/100-1]
		t.Logf("%s: first changed decision of %d regions after p50 %v, p99 %v", name, len(took), p50.Round(time.Millisecond), p99.Round(time.Millisecond))
		if p99 > within {
			t.Errorf("%s: p99 is %v, want %v at most", name, p99, within)
		}
	}
	served := func(a harness.Answer) bool { return a.Err == nil && a.Status == 200 }
	measure("top-up", 2*time.Second, func() {
		q.s.With(t).MustCLI("emea", "quota", "top-up", "--customer", "chg", "--units", "20")
	}, func() { q.drain(t, key) }, served)
	status := func(plan, status string) func() {
		return func() { q.apply(t, customerManifest("chg", plan, status)) }
	}
	measure("upgrade", 2*time.Second, status("more", "active"), func() {
		status("four", "active")()
		q.drain(t, key)
	}, served)
	status("more", "active")()
	q.wait(t, key, served)
	again := func() { status("more", "active")(); q.wait(t, key, served) }
	measure("suspension", time.Second, status("more", "suspended"), again, func(a harness.Answer) bool { return refused(a, 403, "key-suspended") == nil })
	measure("overdue", time.Second, status("more", "overdue"), again, func(a harness.Answer) bool { return refused(a, 402, "payment-overdue") == nil })
}

// until polls every region while a change is made, and says how long after the change's answer each decided
// anew; 0 if before.
func (q *quotas) until(t *testing.T, key string, change func(), changed func(harness.Answer) bool) (took []time.Duration) {
	t.Helper()
	at := make([]time.Time, len(homes))
	var wg sync.WaitGroup
	for i, region := range homes {
		wg.Go(func() {
			for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
				if changed(q.s.Get(region, key)) {
					at[i] = time.Now()
					return
				}
			}
		})
	}
	time.Sleep(300 * time.Millisecond) // the polls before the change see none
	began := time.Now()
	change()
	answered := time.Now()
	wg.Wait()
	for i, region := range homes {
		switch {
		case at[i].IsZero():
			t.Fatalf("%s: no changed decision within 20 s", region)
		case at[i].Before(began):
			t.Fatalf("%s: decided anew before the change", region)
		}
		took = append(took, max(0, at[i].Sub(answered)))
	}
	return took
}

// drain uses up the quota until every region says so.
func (q *quotas) drain(t *testing.T, key string) {
	t.Helper()
	q.wait(t, key, func(a harness.Answer) bool { return refused(a, 429, "quota-exceeded") == nil })
}

// wait asks every region until all decide so, again and again: units that one gives back are another's next.
func (q *quotas) wait(t *testing.T, key string, as func(harness.Answer) bool) {
	t.Helper()
	const times = 4
	inARow := 0
	q.s.With(t).Eventually(20*time.Second, "every region decides so", func() error {
		for _, region := range homes {
			if a := q.s.Get(region, key); !as(a) {
				inARow = 0
				return fmt.Errorf("%s: %d %v %.100s", region, a.Status, a.Err, a.Body)
			}
		}
		if inARow++; inARow < times {
			return fmt.Errorf("%d times in a row", inARow)
		}
		return nil
	})
}

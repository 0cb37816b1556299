package scenario_test

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"bailiwick/e2e/harness"
)

type death string

const (
	byKill  death = "kill"
	byPause death = "pause"
	by503   death = "503"
)

const (
	loadWorkers = 8
	loadRate    = 150
	backHome    = 15 * time.Second
)

// tolerated is how many of n requests may fail when at least 99.9 % must succeed.
func tolerated(n int64) int64 { return n / 1000 }

// upstreamFails: the home upstream answers 503, its pair takes over, and nothing is relayed once relays are turned off.
func upstreamFails(t *testing.T, s *harness.Sandbox) {
	key := s.Key("emea", "unlimited")
	us, pair := usCounts(s), s.Count("eu-central")
	comesHome(t, s, key, "eu-west") // before the fault: a failover would prove nothing
	s.Fail("eu-west", http.StatusServiceUnavailable)
	served := int64(0)
	within(t, time.Now(), 5*time.Second, "the pair serves", func() error {
		a := s.Get("eu-west", key)
		if a.Served() == "eu-central" {
			served++
		}
		return ok(a, "eu-central")
	})
	if got := s.Count("eu-central") - pair; got < served {
		t.Errorf("eu-central served %d by its header and %d by its count, want the count not smaller", served, got)
	}
	relayOff(t, s, key)
	s.Fail("eu-west", 0)
	comesHome(t, s, key, "eu-west")
	if got := usCounts(s) - us; got != 0 {
		t.Errorf("%d requests reached a us upstream", got)
	}
}

// relayOff throws the kill switch of relays at eu-west while the pair serves for it: nothing leaves the region any more.
func relayOff(t *testing.T, s *harness.Sandbox, key string) {
	s.MustCLI("emea", "apply", "-f", switchDoc(t, "relay", true), "--now", "--reason", "thrown by a test")
	within(t, time.Now(), 3*time.Second, "relay is off", func() error {
		return refused(s.Get("eu-west", key), http.StatusServiceUnavailable, "no-compatible-region")
	})
	pair := s.Count("eu-central")
	for range 50 {
		if a := s.Get("eu-west", key); a.Served() == "eu-central" {
			t.Fatal("relayed to eu-central while relay is turned off")
		}
	}
	if got := s.Count("eu-central") - pair; got != 0 {
		t.Errorf("%d requests reached the pair's upstream while relay is turned off", got)
	}
	s.MustCLI("emea", "apply", "-f", switchDoc(t, "relay", false), "--now", "--reason", "thrown by a test")
	within(t, time.Now(), 5*time.Second, "relay is on again", func() error { return ok(s.Get("eu-west", key), "eu-central") })
}

// comesHome waits for traffic to return to its own region, in each of the regions, and stay there.
func comesHome(t *testing.T, s *harness.Sandbox, key string, regions ...string) {
	t.Helper()
	took := homeAgain(t, s, "traffic returns home", func() error {
		for range 5 { // a ramp sends some home before all
			for _, region := range regions {
				if err := ok(s.Get(region, key), region); err != nil {
					return err
				}
			}
		}
		return nil
	})
	t.Logf("home again after %s", took.Round(time.Millisecond))
}

// bothUpstreamsDie: there is no panic mode. Nothing compatible is healthy, so the answer is 503, here and now.
func bothUpstreamsDie(t *testing.T, s *harness.Sandbox) {
	key := s.Key("emea", "unlimited")
	us := usCounts(s)
	s.ActAll("kill", "orders@eu-west", "orders@eu-central")
	within(t, time.Now(), 5*time.Second, "the answer without any upstream", func() error {
		return refused(s.Get("eu-west", key), http.StatusServiceUnavailable, "no-compatible-region")
	})
	for i := range 200 {
		region := []string{"eu-west", "eu-central"}[i%2]
		a := s.Get(region, key)
		if err := refused(a, http.StatusServiceUnavailable, "no-compatible-region"); err != nil {
			t.Fatalf("request %d at %s with every compatible upstream dead: %v", i, region, err)
		}
		if n, err := strconv.Atoi(a.Header.Get("Retry-After")); err != nil || n < 1 {
			t.Fatalf("Retry-After is %q, want whole seconds from 1", a.Header.Get("Retry-After"))
		}
	}
	if got := usCounts(s) - us; got != 0 {
		t.Errorf("%d requests reached a us upstream", got)
	}
	if err := ok(s.Get("us-east", s.Key("us", "unlimited")), "us-east", "us-west"); err != nil || usCounts(s) == us {
		t.Errorf("a us request at home: %v, counted %d: the counters above would have seen nothing", err, usCounts(s)-us)
	}
	s.ActAll("start", "orders@eu-west", "orders@eu-central")
	// Each serves its own as the last resort, and after a second of that for good: neither sends them to the other.
	comesHome(t, s, key, "eu-west", "eu-central")
	time.Sleep(2 * time.Second)
	comesHome(t, s, key, "eu-west", "eu-central")
	s.Settle()
}

// starved is what a request may take whose way has no fault before the machine is said to have no time: what is then not
// judged is judged in addition to what always is.
const starved = 300 * time.Millisecond

// watchNeighbour asks an edge whose upstream is well, ten times a second until calm is called, which tells the longest it took.
func watchNeighbour(s *harness.Sandbox, region, key string) (calm func() time.Duration) {
	stop, slowest := make(chan struct{}), make(chan time.Duration, 1)
	go func() {
		var longest time.Duration
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for due := time.Now(); ; {
			a := s.Do(region, http.MethodGet, ordersEMEA, "/calm", key, nil)
			longest = max(longest, time.Since(due))
			if ok(a, region) != nil {
				longest = time.Hour
			}
			select {
			case due = <-tick.C:
			case <-stop:
				slowest <- longest
				return
			}
		}
	}()
	return func() time.Duration { close(stop); return <-slowest }
}

// posts: the home upstream dies in one way under GETs and POSTs, on upstreams that remember each POST, and its pair takes over.
// Callers see next to nothing of it, and no POST whose body reached an upstream reaches one again.
func posts(t *testing.T, s *harness.Sandbox, upstreams map[string]*harness.Upstream, key string, how death) {
	west, central := upstreams["eu-west"], upstreams["eu-central"]
	us := upstreams["us-east"].Total() + upstreams["us-west"].Total()
	prefix := "/posts/" + string(how) + "/"
	var mu sync.Mutex
	answered := map[string]bool{}
	gets, getsFailed, getsLate, served := 0, 0, 0, map[string]int{}
	calm := watchNeighbour(s, "eu-central", key)
	var struck atomic.Bool
	late := map[string]bool{} // POSTs that began after the fault and failed
	ask := func(method, path, body string) error {
		after := struck.Load()
		a := s.Do("eu-west", method, ordersEMEA, path, key, strings.NewReader(body))
		err := ok(a, "eu-west", "eu-central")
		mu.Lock()
		defer mu.Unlock()
		if method == http.MethodGet {
			gets++
			if err != nil {
				getsFailed++
			}
		} else if err == nil {
			answered[path] = true
		}
		if err == nil {
			served[a.Served()]++
			return nil
		}
		switch {
		case after && method == http.MethodPost:
			late[path] = true
		case after:
			getsLate++
		}
		return fmt.Errorf("%s: %w", method, err)
	}
	// POSTs have half of the workers: so many may be at the upstream when it dies, and are lost with it.
	loads := []*harness.Load{
		harness.StartLoad(loadWorkers/2, loadRate, func(n int64) error {
			return ask(http.MethodPost, prefix+strconv.FormatInt(n, 10), `{"amount":`+strconv.FormatInt(n, 10)+`}`)
		}),
		harness.StartLoad(loadWorkers/2, loadRate, func(int64) error { return ask(http.MethodGet, "/gets/"+string(how), "") }),
	}
	sent := func() int64 { return loads[0].Sent.Load() + loads[1].Sent.Load() }
	within(t, time.Now(), time.Minute, "100 requests before the fault", func() error {
		if n := sent(); n < 100 {
			return fmt.Errorf("%d were sent", n)
		}
		return nil
	})
	time.Sleep(2 * time.Second)
	switch how {
	case byKill:
		west.Kill()
	case byPause:
		west.Pause()
	case by503:
		west.Break(true)
	}
	struck.Store(true)
	begun := sent()
	time.Sleep(10 * time.Second) // found within one, and then for good
	inTime := sent() - begun
	// What is at the upstream when it dies is lost, up to a POST for each of their workers, and a slow machine sends less
	// meanwhile: a thousandth is of a thousand requests for each of those.
	within(t, time.Now(), time.Minute, "4,000 requests", func() error {
		if n := sent(); n < 1000*loadWorkers/2 {
			return fmt.Errorf("%d were sent", n)
		}
		return nil
	})
	within(t, time.Now(), time.Minute, "100 POSTs after the fault", func() error {
		mu.Lock()
		defer mu.Unlock()
		if n := served["eu-central"]; n < 200 {
			return fmt.Errorf("the pair served %d", n)
		}
		return nil
	})
	failed, reasons := loads[0].Stop()
	getFailed, getReasons := loads[1].Stop()
	failed, reasons = failed+getFailed, append(reasons, getReasons...)
	slowest := calm()
	switch how { // before counting: what waits in a stopped process is done when it goes on
	case byKill:
		if err := west.Start(); err != nil {
			t.Fatal(err)
		}
	case byPause:
		west.Resume()
	case by503:
		west.Break(false)
	}
	comesHome(t, s, key, "eu-west")

	total := sent()
	t.Logf("%s: %d of %d failed, %d of %d GETs among them %v; served %v; the neighbour took at most %s", how, failed, total, getsFailed, gets, reasons, served, slowest)
	if most := tolerated(total); int64(failed) > most {
		t.Errorf("%s: %d of %d requests failed, %d POSTs of them begun after the fault, want at most %d: %v", how, failed, total, len(late), most, reasons)
	}
	if getsLate > 0 && slowest <= starved || how == byKill && getsFailed > 0 {
		t.Errorf("%s: %d of %d GETs failed, %d of them begun after the fault, want none: %v", how, getsFailed, gets, getsLate, reasons)
	}
	if inTime < loadRate*3 && slowest <= starved {
		t.Errorf("%s: only %d requests were sent in the 10 s after the fault: callers stood still", how, inTime)
	}
	if served["eu-west"] == 0 || served["eu-central"] == 0 {
		t.Errorf("%s: served %v, want both regions to have served", how, served)
	}
	reached := map[string]int{}
	for _, u := range []*harness.Upstream{west, central} {
		for what, n := range u.Seen() {
			if path, ok := strings.CutPrefix(what, "POST "); ok && strings.HasPrefix(path, prefix) {
				reached[path] += n
			}
		}
	}
	if len(reached) < 100 {
		t.Errorf("%s: %d POSTs reached an upstream: too few to prove anything", how, len(reached))
	}
	for path, n := range reached {
		if n > 1 {
			t.Errorf("%s: POST %s reached upstreams %d times", how, path, n)
		}
	}
	for path := range late {
		if how == by503 && slowest <= starved && reached[path] == 0 { // the others take along what they had got
			t.Errorf("%s: POST %s failed and reached no upstream: it could have gone to the pair", how, path)
		}
	}
	for path := range answered {
		if reached[path] == 0 {
			t.Errorf("%s: POST %s was answered 200 and reached no upstream", how, path)
		}
	}
	if got := upstreams["us-east"].Total() + upstreams["us-west"].Total() - us; got != 0 {
		t.Errorf("%s: %d requests reached a us upstream", how, got)
	}
}

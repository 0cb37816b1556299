package scenario_test

import (
	"fmt"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"bailiwick/e2e/harness"
	"bailiwick/e2e/netlab"
)

// TestRecorded runs on upstreams of the test's own, which know what reached them: POSTs are never sent twice
// (b), and what is counted lies between what clients got and what upstreams answered (g).
func TestRecorded(t *testing.T) {
	t.Parallel()
	upstreams := ownUpstreams(t)
	s := harness.StartWith(t, harness.Options{Args: []string{"-manifests", zoneManifests(t, upstreams, "quiet", "one", "two", "three", "poster")}})
	_, key := s.NewKey("emea", "poster", "unlimited")
	s.Eventually(20*time.Second, "the edges serve", func() error {
		for _, region := range []string{"eu-west", "eu-central"} {
			if err := ok(s.Get(region, key), region); err != nil {
				return err
			}
		}
		return nil
	})
	for _, how := range []death{byKill, byPause, by503} {
		t.Run("b_posts_"+string(how), func(t *testing.T) { posts(t, s.With(t), upstreams, key, how) })
	}
	t.Run("g_law", func(t *testing.T) { usageLaw(t, s.With(t), upstreams) })
}

// customer is one account's side of the law.
type customer struct {
	name, key string
	completed atomic.Int64 // answers of an upstream, read whole by the client
}

// ask sends one request of the customer through a region's edge. An error is not a failure of the test: the
// law speaks of what was completed.
func (c *customer) ask(s *harness.Sandbox, region string) error {
	a := s.Do(region, http.MethodGet, ordersEMEA, "/cust/"+c.name+"/x", c.key, nil)
	if a.Err == nil && a.Served() != "" {
		c.completed.Add(1)
	}
	return ok(a)
}

// law waits until the ledger is complete, and checks completed ≤ counted ≤ answered by upstreams.
func (c *customer) law(t *testing.T, s *harness.Sandbox, upstreams map[string]*harness.Upstream, exact bool) {
	t.Helper()
	u := s.UsageThrough("emea", c.name, time.Now(), 60*time.Second)
	completed, counted := c.completed.Load(), u.Answered()
	answered := upstreams["eu-west"].Under("/cust/"+c.name+"/") + upstreams["eu-central"].Under("/cust/"+c.name+"/")
	t.Logf("%s: completed %d ≤ counted %d ≤ answered %d; complete through %s", c.name, completed, counted, answered, u.CompleteThrough.Format(time.RFC3339Nano))
	if completed == 0 || completed > counted || counted > answered {
		t.Errorf("%s: the law wants 0 < %d completed ≤ %d counted ≤ %d answered", c.name, completed, counted, answered)
	}
	if exact && completed != counted {
		t.Errorf("%s: nothing was in flight at a fault, so %d completed must be %d counted", c.name, completed, counted)
	}
	var success int64
	for _, r := range u.Rows {
		if r.Outcome == "success" {
			success += r.Requests
		}
	}
	if u.Total.Billable != success || u.Total.Units < success {
		t.Errorf("%s: billable %d and %d units, want the %d successes", c.name, u.Total.Billable, u.Total.Units, success)
	}
}

func newCustomers(s *harness.Sandbox, names ...string) (out []*customer) {
	for _, n := range names {
		_, key := s.NewKey("emea", n, "unlimited")
		out = append(out, &customer{name: n, key: key})
	}
	return out
}

// usageLaw: edges and the ledger's leader are killed under load.
func usageLaw(t *testing.T, s *harness.Sandbox, upstreams map[string]*harness.Upstream) {
	regions := []string{"eu-west", "eu-central"}
	quiet := newCustomers(s, "quiet")[0]
	s.Eventually(5*time.Second, "the key works at both", func() error {
		if err := quiet.ask(s, "eu-west"); err != nil {
			return err
		}
		return quiet.ask(s, "eu-central")
	})
	load := harness.StartLoad(8, 200, func(n int64) error { return quiet.ask(s, regions[n%2]) })
	time.Sleep(5 * time.Second)
	if failed, reasons := load.Stop(); failed > 0 {
		t.Errorf("without faults %d requests failed: %v", failed, reasons)
	}
	quiet.law(t, s, upstreams, true)

	customers := newCustomers(s, "one", "two", "three")
	for _, c := range customers {
		s.Eventually(5*time.Second, "the key works at both", func() error {
			if err := c.ask(s, "eu-west"); err != nil {
				return err
			}
			return c.ask(s, "eu-central")
		})
	}
	load = harness.StartLoad(12, 200, func(n int64) error { return customers[n%3].ask(s, regions[n/3%2]) })
	edge := s.EdgeOf("eu-west").Name
	kill := func(name string, away time.Duration) {
		time.Sleep(2 * time.Second) // load between the faults
		s.Act("kill", name)
		time.Sleep(away)
		s.Act("start", name)
	}
	kill(edge, 2*time.Second)
	kill(s.Leader("ledger/emea"), 5*time.Second)
	kill(edge, time.Second)
	kill(s.EdgeOf("eu-central").Name, time.Second)
	time.Sleep(2 * time.Second)
	failed, _ := load.Stop()
	t.Logf("%d requests under faults, %d failed", load.Sent.Load(), failed)
	if failed == 0 {
		t.Error("no request failed: were the edges killed at all?")
	}
	for _, c := range customers {
		c.law(t, s, upstreams, false)
	}
	// After the faults all is exact again: the same customers, from where they stand.
	u := s.UsageThrough("emea", "one", time.Now(), 30*time.Second)
	before, base := u.Answered(), customers[0].completed.Load()
	for range 100 {
		if err := customers[0].ask(s, "eu-west"); err != nil {
			t.Errorf("after the faults: %v", err)
		}
	}
	u = s.UsageThrough("emea", "one", time.Now(), 30*time.Second)
	if grown, sent := u.Answered()-before, customers[0].completed.Load()-base; grown != sent {
		t.Errorf("after the faults %d requests were completed and %d counted", sent, grown)
	}
}

// TestQUICPathCut: the way up over UDP is cut for a while. Usage goes on over a stream of TCP, and in the end
// is what it would have been. It runs in a network namespace of its own, in a process of its own.
func TestQUICPathCut(t *testing.T) {
	t.Parallel()
	var heal func() error
	cut := func() (err error) { heal, err = netlab.Make(netlab.UDP); return err }
	if !netlab.Inside() {
		switch err := reexecInNamespace(t); {
		case err == nil:
			return
		default:
			// Without the right to a namespace the whole road up is cut instead: its ledger's nodes stand still.
			t.Logf("no network namespace here (%v): the control nodes are paused instead", err)
			cut = nil
		}
	} else if err := netlab.Up(); err != nil {
		t.Fatal(err)
	}
	upstreams := ownUpstreams(t)
	s := harness.StartWith(t, harness.Options{Args: []string{"-manifests", zoneManifests(t, upstreams, "cut")}})
	overTCP := cut != nil
	if cut == nil {
		cut = func() error { s.ActAll("pause", s.ControlsOf("emea")...); return nil }
		heal = func() error { s.ActAll("resume", s.ControlsOf("emea")...); return nil }
	}
	regions := []string{"eu-west", "eu-central"}
	c := newCustomers(s, "cut")[0]
	s.Eventually(10*time.Second, "the key works at both", func() error {
		if err := c.ask(s, "eu-west"); err != nil {
			return err
		}
		return c.ask(s, "eu-central")
	})
	s.UsageThrough("emea", "cut", time.Now(), 30*time.Second)
	length := 12 * time.Second
	if long() {
		length = time.Minute
	}
	load := harness.StartLoad(8, 100, func(n int64) error { return c.ask(s, regions[n%2]) })
	if err := cut(); err != nil {
		t.Fatal(err)
	}
	started := time.Now()
	if overTCP {
		if err := udpWorks(); err == nil {
			t.Fatal("UDP works although it is cut")
		}
		before := c.completed.Load()
		within(t, started, 15*time.Second, "usage arrives over TCP", func() error {
			u, err := s.Usage("emea", "cut")
			if err != nil {
				return err
			}
			if u.Answered() <= before || u.CompleteThrough.Before(started) {
				return fmt.Errorf("%d counted through %s", u.Answered(), u.CompleteThrough.Format(time.RFC3339))
			}
			return nil
		})
	}
	time.Sleep(length - time.Since(started))
	if err := heal(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(5 * time.Second)
	if failed, reasons := load.Stop(); failed > 0 {
		t.Errorf("%d of %d requests failed: the road up is nothing that serving needs: %v", failed, load.Sent.Load(), reasons)
	}
	c.law(t, s, upstreams, true)
}

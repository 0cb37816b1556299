package scenario_test

import (
	"encoding/json"
	"net/http"
	"testing"
	"time"

	"bailiwick/e2e/harness"
)

// homeAgain waits until traffic is at home as check wants it, for the 15 s that a region is promised which is well again: 10 s of good
// probes without a break, half a second to the first, and a ramp of 3 s. An edge that finds its upstream ill once more meanwhile, as a
// machine makes it that has no time for a health page, begins anew, as it should, and so does the promise. beside are admin URLs of
// edges that the sandbox does not know.
func homeAgain(t *testing.T, s *harness.Sandbox, what string, check func() error, beside ...string) time.Duration {
	t.Helper()
	began := time.Now()
	since, looked := began, time.Time{}
	for {
		err := check()
		took := time.Since(since)
		if err == nil && took <= backHome {
			return took
		}
		if err == nil || time.Since(began) > 4*backHome {
			t.Fatalf("%s: after %s, %s of them without a break; want it within %s: %v", what, time.Since(began).Round(time.Millisecond), took.Round(time.Millisecond), backHome, err)
		}
		if time.Since(looked) > 200*time.Millisecond {
			looked = time.Now()
			if at := illAt(s, beside); at.After(since.Add(time.Second)) {
				t.Logf("%s: an upstream was found ill %s after the beginning", what, at.Sub(began).Round(time.Millisecond))
				since = at
			}
		}
		if took > backHome {
			t.Fatalf("%s: not within %s of the last time that an upstream was found ill, but after %s: %v", what, backHome, took.Round(time.Millisecond), err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// illAt is when an edge last found an upstream of its zone's orders ill, by what it says of those that have not returned yet.
func illAt(s *harness.Sandbox, edges []string) (last time.Time) {
	for _, e := range s.Edges {
		if e.Zone == "emea" {
			edges = append(edges, e.Admin)
		}
	}
	client := &http.Client{Timeout: 2 * time.Second}
	for _, admin := range edges {
		response, err := client.Get(admin + "/debug/upstreams")
		if err != nil {
			continue // of an edge that is not there nobody waits for the upstream
		}
		var all []struct {
			API, State string
			GoodFor    string `json:"good_for"`
		}
		err = json.NewDecoder(response.Body).Decode(&all)
		response.Body.Close()
		now := time.Now()
		for _, u := range all {
			if err != nil || u.API != "emea/orders" || u.State != "ejected" {
				continue
			}
			at := now
			if d, err := time.ParseDuration(u.GoodFor); err == nil {
				at = now.Add(-d - 500*time.Millisecond) // of the probe before the first good one
			}
			if at.After(last) {
				last = at
			}
		}
	}
	return last
}

package scenario_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"bailiwick/e2e/harness"
)

// TestGrowth runs with node certificates of 20 seconds: a region and two edges join a running installation,
// everybody's certificate changes under traffic that sees no error, and an edge that is removed is off at once.
func TestGrowth(t *testing.T) {
	t.Parallel()
	s := harness.Start(t, "-identity-ttl", "20s")
	key := s.Key("emea", "unlimited")
	s.Settle()
	regions := []string{"eu-west", "eu-central", "us-east", "us-west"}
	keys := map[string]string{"emea": key, "us": s.Key("us", "unlimited")}
	// An upstream that stalls for a moment, as on a busy machine, is no error: a pair answers, as it may.
	var home atomic.Int64
	mates := map[string][]string{"emea": {"eu-west", "eu-central", "eu-south"}, "us": {"us-east", "us-west"}}
	load := harness.StartLoad(8, 40, func(n int64) error {
		region := regions[n%4]
		a := s.Get(region, keys[s.ZoneOf(region)])
		if a.Served() == region {
			home.Add(1)
		}
		return ok(a, mates[s.ZoneOf(region)]...)
	})
	began := time.Now()
	first := serials(t, s)

	// The README's three commands: apply, join-token create, bailiwick-edge.
	south := harness.NewUpstream(t, "eu-south")
	upstreams := []string{fmt.Sprintf("{region: eu-south, url: \"http://%s\"}", south.Address)}
	for _, region := range []string{"eu-west", "eu-central"} {
		upstreams = append(upstreams, fmt.Sprintf("{region: %s, url: %q}", region, s.UpstreamURL(region)))
	}
	s.MustCLI("emea", "apply", "--now", "--reason", "a test", "-f", writeFile(t, "eu-south.yaml", `kind: Region
name: eu-south
spec: {zone: emea, country: IT, jurisdiction: EEA, provider: sandbox}
---
kind: API
name: orders
spec:
  zone: emea
  hosts: [orders.emea.example.test]
  policy: gdpr-emea
  summary: Orders of European customers
  routes: [{name: all, path_prefix: /}]
  upstreams: [`+strings.Join(upstreams, ", ")+"]\n"))
	southEdge := s.AddEdge("eu-south", "eu-south-edge-1", 10)
	client := s.Client(southEdge.HTTPS)
	get := func(c *http.Client) harness.Answer {
		return s.Send(c, http.MethodGet, ordersEMEA, "/v1/orders", key, nil)
	}
	within(t, time.Now(), 10*time.Second, "eu-south serves", func() error { return ok(get(client), "eu-south") })
	if south.Total() == 0 {
		t.Error("eu-south is said to have served, and its upstream has seen nothing")
	}
	if got := get(client).Header.Get("Bailiwick-Edge"); got != "eu-south" {
		t.Errorf("Bailiwick-Edge is %q, want eu-south", got)
	}
	south.Kill() // it is a region like any other: its pairs take over
	within(t, time.Now(), 10*time.Second, "eu-south fails over", func() error { return ok(get(client), "eu-west", "eu-central") })
	if err := south.Start(); err != nil {
		t.Fatal(err)
	}
	// Coming home is a ramp: for some seconds a pair still serves a share, and then none at all.
	homeAgain(t, s, "eu-south is home again, wholly", func() error {
		for range 50 {
			if err := ok(get(client), "eu-south"); err != nil {
				return err
			}
		}
		return nil
	}, southEdge.Admin)

	second := s.AddEdge("eu-west", "eu-west-edge-2", 11)
	within(t, time.Now(), 10*time.Second, "the second edge in eu-west serves", func() error { return ok(get(s.Client(second.HTTPS)), "eu-west") })
	s.Act("replace", "eu-west-edge-1") // the load goes on, and sees no error

	most, least := 60*time.Second, time.Duration(0)
	if long() {
		most, least = 5*time.Minute, 5*time.Minute
	}
	edges := []string{"eu-west-edge-1", "eu-central-edge-1", "us-east-edge-1", "us-west-edge-1", "eu-south-edge-1"}
	seen := map[string]map[string]bool{} // edge → serials
	few := func(name string) bool { return len(seen[name]) < 3 }
	for time.Since(began) < least || time.Since(began) < most && slices.ContainsFunc(edges, few) {
		for name, serial := range serials(t, s) {
			if seen[name] == nil {
				seen[name] = map[string]bool{first[name]: true}
			}
			seen[name][serial] = true
		}
		if err := ok(get(client), mates["emea"]...); err != nil {
			t.Errorf("eu-south meanwhile: %v", err)
		}
		time.Sleep(2 * time.Second) // the time that certificates live is the point
	}
	for _, name := range edges {
		if few(name) {
			t.Errorf("%s had %d certificates of 20 s in %s, want at least 3", name, len(seen[name]), most)
		}
	}
	if failed, reasons := load.Stop(); failed > 0 {
		t.Errorf("%d of %d requests failed: %v", failed, load.Sent.Load(), reasons)
	}
	if sent := load.Sent.Load(); home.Load() < sent*9/10 {
		t.Errorf("%d of %d requests were served at home, want nearly all", home.Load(), sent)
	}
	relayed(t, s, key) // the pair's mutual TLS still stands, on certificates that did not exist at the start

	fresh := s.NewClient(second.HTTPS)
	if err := ok(get(fresh), mates["emea"]...); err != nil {
		t.Fatalf("the second edge before its removal: %v", err)
	}
	s.MustCLI("emea", "node", "remove", second.Name)
	took := within(t, time.Now(), time.Second, "the removed edge is off", func() error {
		a := get(fresh)
		if a.Err == nil && a.Status != http.StatusServiceUnavailable {
			return fmt.Errorf("status %d", a.Status)
		}
		return nil
	})
	t.Logf("off %s after its removal", took.Round(time.Millisecond))
	for range 20 {
		if a := get(fresh); a.Err == nil && a.Status == http.StatusOK {
			t.Fatal("the removed edge served once more")
		}
		time.Sleep(50 * time.Millisecond)
	}
	// Its upstream died above and comes home on a ramp.
	homeAgain(t, s, "its neighbour serves at home", func() error { return ok(s.Get("eu-west", key), "eu-west") })
}

// serials are the certificates of all edges, by name.
func serials(t *testing.T, s *harness.Sandbox) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, zone := range []string{"emea", "us"} {
		nodes, err := s.Nodes(zone)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range nodes {
			if n.Kind == "edge" && n.Zone == zone && n.Serial != "" {
				out[n.Name] = n.Serial
			}
		}
	}
	return out
}

// relayed shows that eu-west can reach eu-central, and leaves everything at home.
func relayed(t *testing.T, s *harness.Sandbox, key string) {
	t.Helper()
	s.Fail("eu-west", http.StatusServiceUnavailable)
	within(t, time.Now(), 5*time.Second, "relay", func() error { return ok(s.Get("eu-west", key), "eu-central", "eu-south") })
	s.Fail("eu-west", 0)
	comesHome(t, s, key, "eu-west")
}

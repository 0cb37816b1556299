package scenario_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"bailiwick/e2e/harness"
)

// fifths are paths of equal traffic.
var fifths = []string{"/a", "/b", "/c", "/d", "/e"}

// ordersDoc is the API of the sandbox with other routes.
func ordersDoc(t *testing.T, s *harness.Sandbox, prefixes ...string) string {
	t.Helper()
	var b strings.Builder
	b.WriteString("kind: API\nname: orders\nspec:\n  zone: emea\n  hosts: [orders.emea.example.test]\n  policy: gdpr-emea\n  routes:\n")
	for i, p := range prefixes {
		fmt.Fprintf(&b, "    - {name: r%d, path_prefix: %s}\n", i, p)
	}
	b.WriteString("  upstreams:\n")
	for _, r := range []string{"eu-west", "eu-central"} {
		fmt.Fprintf(&b, "    - {region: %s, url: %q}\n", r, s.UpstreamURL(r))
	}
	return write(t, b.String())
}

func write(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "doc.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

type rolledOut struct {
	Name, State, Why, Edge, API string
}

// killConductor kills whoever advances the roll-out under way once it is with a canary of emea. It may lead the zone's store as
// well, and then judges too: the next one has the record, and nothing of what was watched.
func killConductor(t *testing.T, s *harness.Sandbox) (name string) {
	t.Helper()
	within(t, time.Now(), 10*time.Second, "a canary is named", func() error {
		var r struct {
			Zones []struct{ Zone string }
		}
		if err := json.Unmarshal([]byte(s.MustCLI("emea", "rollout", "get", "-o", "json")), &r); err != nil || len(r.Zones) == 0 {
			return fmt.Errorf("zones %v, %w", r.Zones, err)
		}
		return nil
	})
	name = s.Leader("catalog")
	s.Act("kill", name)
	if len(s.Stores) > 0 { // and on etcd its leader, which holds the record that is advanced
		member := etcdLeader(t, s, catalogCluster(s))
		s.Act("kill", member)
		t.Cleanup(func() { s.Act("start", member) })
	}
	return name
}

// catalogCluster is the etcd that holds the catalog.
func catalogCluster(s *harness.Sandbox) string {
	for _, m := range s.Stores {
		if m.Cluster == "catalog" {
			return m.Cluster
		}
	}
	return "emea" // with the primary zone's store
}

// rollouts: a change by which a fifth of the requests fails is stopped at one edge of each zone and taken back by itself, also
// when the catalog's leader is killed meanwhile; a good one reaches all; and a switch turns a feature off, and on again.
func rollouts(t *testing.T, s *harness.Sandbox) {
	key := s.Key("emea", "unlimited")
	before := s.MustCLI("emea", "get", "apis", "emea/orders", "-o", "yaml")
	var sent, failed [2]atomic.Int64
	var mu sync.Mutex
	kinds := map[string]int{}
	regions := []string{"eu-west", "eu-central"}
	load := harness.StartLoad(6, 150, func(n int64) error {
		at := n % 2
		a := s.Do(regions[at], http.MethodGet, ordersEMEA, fifths[n/2%5], key, nil)
		sent[at].Add(1)
		if a.Err != nil || a.Status != http.StatusOK {
			failed[at].Add(1)
			mu.Lock()
			kinds[fmt.Sprintf("%s %s %d %s %v", regions[at], fifths[n/2%5], a.Status, a.Problem().Type, a.Err)]++
			mu.Unlock()
		}
		return a.Err
	})
	time.Sleep(time.Second) // what was before is what the change is compared with
	began := time.Now()
	s.MustCLI("emea", "apply", "-f", ordersDoc(t, s, fifths[:4]...), "--soak", "8s")
	killed := killConductor(t, s)
	out, errs, code := s.CLI("emea", "rollout", "watch", "--wait", "60s")
	took := time.Since(began)
	var last struct{ rolledOut }
	if err := json.Unmarshal([]byte(s.MustCLI("emea", "rollout", "get", "-o", "json")), &last); err != nil {
		t.Fatal(err)
	}
	time.Sleep(500 * time.Millisecond)
	was := [2]int64{failed[0].Load(), failed[1].Load()}
	time.Sleep(500 * time.Millisecond)
	_, reasons := load.Stop()
	t.Logf("a fifth fails: taken back after %v; failed %d of %d at one edge, %d of %d at the other", took.Round(time.Millisecond), was[0], sent[0].Load(), was[1], sent[1].Load())
	t.Logf("what failed: %v", kinds)
	if code != 1 || last.State != "rolled-back" || last.Why != "FAILING" || last.API != "orders" {
		t.Fatalf("rollout watch: exit %d, %+v\n%s%s%v", code, last, out, errs, reasons)
	}
	if touched := min(was[0], 1) + min(was[1], 1); touched != 1 {
		t.Errorf("requests failed at %d edges of the zone, want at the canary alone: %v", touched, was)
	}
	if now := [2]int64{failed[0].Load(), failed[1].Load()}; now != was {
		t.Errorf("requests go on failing after it was taken back: %v, then %v", was, now)
	}
	if after := s.MustCLI("emea", "get", "apis", "emea/orders", "-o", "yaml"); spec(after) != spec(before) {
		t.Errorf("the API is\n%s\nand was\n%s", after, before)
	}
	if text := s.MustCLI("emea", "history"); strings.Count(text, "rollout/"+last.Name) != 1 {
		t.Errorf("the history tells %d times of what was taken back, want once:\n%s", strings.Count(text, "rollout/"+last.Name), text)
	}
	s.Act("start", killed)
	s.Settle()

	if out, errs, code := s.CLI("emea", "apply", "-f", ordersDoc(t, s, "/"), "--wait"); code != 0 {
		t.Fatalf("a good change: exit %d\n%s%s", code, out, errs)
	}
	if err := ok(s.Get("eu-central", key), regions...); err != nil {
		t.Error(err)
	}
	switches(t, s, key)
}

// spec leaves out what a rewrite changes.
func spec(doc string) string {
	_, rest, _ := strings.Cut(doc, "spec:")
	return rest
}

// switchDoc turns a feature off at eu-west, or on again.
func switchDoc(t *testing.T, feature string, off bool) string {
	return write(t, fmt.Sprintf("kind: Switch\nname: no-%s\nspec: {feature: %s, off: %v, region: eu-west, reason: thrown by a test}\n", feature, feature, off))
}

// switches are thrown once each: by rings, and at once for one region. relay is thrown in upstreamFails, detail in privacy.
func switches(t *testing.T, s *harness.Sandbox, key string) {
	for _, c := range []struct {
		feature string
		off     func() error // nil: it is
	}{
		{"http3", func() error {
			if alt := s.Get("eu-west", key).Header.Get("Alt-Svc"); alt != "clear" {
				return fmt.Errorf("the edge still announces HTTP/3: Alt-Svc %q", alt)
			}
			return nil
		}},
		{"dns", func() error {
			if got, err := harness.Resolve(s.DNS("eu-west"), ordersEMEA, "udp"); err == nil {
				return fmt.Errorf("the edge still answers DNS: %v", got)
			}
			return nil
		}},
	} {
		doc := func(off bool) string { return switchDoc(t, c.feature, off) }
		if err := c.off(); err == nil {
			t.Errorf("%s is off before it is turned off", c.feature)
		}
		s.MustCLI("emea", "apply", "-f", doc(true), "--now", "--reason", "thrown by a test")
		s.Eventually(3*time.Second, c.feature+" is off", c.off)
		s.MustCLI("emea", "apply", "-f", doc(false), "--wait")
		s.Eventually(3*time.Second, c.feature+" is on again", func() error {
			if c.off() == nil {
				return fmt.Errorf("%s is still off", c.feature)
			}
			return nil
		})
	}
}

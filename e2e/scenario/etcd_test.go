package scenario_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"bailiwick/e2e/harness"
)

// TestEtcd is the spine's story in short on the etcd engine: a change of the catalog, a key made and taken away, failover,
// a closure, the etcd's leader and the control node that leads killed, and usage that is right to the request. The whole
// story on it: make e2e ARGS='-run TestStory -store etcd'.
func TestEtcd(t *testing.T) {
	if harness.Store != "" {
		t.Skip("the story is told on -store etcd already")
	}
	t.Parallel()
	s := harness.Start(t, "-store", "etcd")
	us := usCounts(s)

	out := s.MustCLI("emea", "cluster", "members")
	for _, group := range []string{"catalog", "store/emea", "ledger/emea"} {
		if !regexp.MustCompile(group + ` +emea-\d`).MatchString(out) {
			t.Errorf("cluster members shows no node for %s:\n%s", group, out)
		}
	}
	for _, c := range []struct{ args, instead string }{{"backup store/emea", "etcdctl snapshot save"}, {"cluster transfer store/emea emea-2", "etcdctl move-leader"}} {
		if _, stderr, code := s.CLI("emea", strings.Fields(c.args)...); code == 0 || !strings.Contains(stderr, c.instead) {
			t.Errorf("%s: exit code %d, %q, want that it names %s", c.args, code, stderr, c.instead)
		}
	}
	product := writeFile(t, "product.yaml", "kind: Product\nname: kept-in-etcd\nspec: {apis: [orders], summary: Written to etcd}\n")
	s.MustCLI("emea", "apply", "-f", product, "--now", "--reason", "a drill")
	s.Eventually(10*time.Second, "the other zone sees the catalog's change", func() error {
		out, stderr, code := s.CLI("us", "get", "products", "-o", "json")
		if code != 0 || !strings.Contains(out, "kept-in-etcd") {
			return fmt.Errorf("exit code %d: %s%s", code, out, stderr)
		}
		return nil
	})

	customer := writeFile(t, "customer.yaml", "kind: Customer\nname: counted\nspec: {zone: emea, subscriptions: [{plan: unlimited}]}\n")
	s.MustCLI("emea", "apply", "-f", customer)
	served := int64(0)
	get := func(region, key string) harness.Answer {
		a := s.Get(region, key)
		if a.Served() != "" {
			served++
		}
		return a
	}
	id, key := s.NewKey("emea", "counted", "unlimited")
	_, lasting := s.NewKey("emea", "counted", "unlimited")
	for _, region := range []string{"eu-west", "eu-central"} {
		for _, k := range []string{key, lasting} {
			within(t, time.Now(), 3*time.Second, "a new key works at "+region, func() error { return ok(get(region, k), region) })
		}
	}

	// A member of the zone's etcd that leads dies: another leads, and nobody but who writes waits.
	leader := etcdLeader(t, s, "emea")
	s.Act("kill", leader)
	killed := time.Now()
	within(t, killed, 10*time.Second, "a key is revoked without "+leader, func() error {
		if _, stderr, code := s.CLI("emea", "key", "revoke", id); code != 0 {
			return fmt.Errorf("exit code %d: %s", code, stderr)
		}
		return nil
	})
	for _, region := range []string{"eu-west", "eu-central"} {
		within(t, time.Now(), 3*time.Second, "a revoked key is refused at "+region, func() error { return refused(get(region, key), 401, "key-invalid") })
	}
	s.Act("start", leader)

	// The control node that leads the zone's store dies; what it alone did, granting and closing, another does.
	old := s.Leader("store/emea")
	s.Act("kill", old)
	s.Eventually(30*time.Second, "another node leads the store", func() error {
		if now := s.Leaders()["store/emea"]; now == "" || now == old {
			return fmt.Errorf("store/emea is led by %q", now)
		}
		return nil
	})
	s.Fail("eu-west", http.StatusServiceUnavailable)
	within(t, time.Now(), 15*time.Second, "eu-central takes over", func() error { return ok(get("eu-west", lasting), "eu-central") })
	closure := writeFile(t, "closure.yaml", "kind: Closure\nname: west-shut\nspec: {zone: emea, from: eu-west, to: eu-central, reason: drill}\n")
	s.MustCLI("emea", "apply", "-f", closure)
	within(t, time.Now(), 10*time.Second, "the closure holds", func() error {
		return refused(get("eu-west", lasting), http.StatusServiceUnavailable, "no-compatible-region")
	})
	s.Eventually(15*time.Second, "the closure is in force, signed", func() error { return inForce(s, "eu-west", "eu-central") })
	s.MustCLI("emea", "delete", "closure", "west-shut")
	s.Fail("eu-west", 0)
	if got := usCounts(s) - us; got != 0 {
		t.Errorf("%d requests reached a us upstream", got)
	}
	s.Act("start", old)
	s.Settle()

	if u := s.UsageThrough("emea", "counted", time.Now(), 30*time.Second); u.Answered() != served {
		t.Errorf("usage is %d, want the %d that were served", u.Answered(), served)
	}
}

// etcdLeader is the member of an etcd that leads it, once there is one.
func etcdLeader(t *testing.T, s *harness.Sandbox, cluster string) (name string) {
	t.Helper()
	s.Eventually(30*time.Second, "the etcd of "+cluster+" has a leader", func() (err error) {
		name, err = leadsEtcd(s, cluster)
		return err
	})
	return name
}

func leadsEtcd(s *harness.Sandbox, cluster string) (string, error) {
	for _, m := range s.Stores {
		if m.Cluster != cluster {
			continue
		}
		response, err := http.Post(m.URL+"/v3/maintenance/status", "application/json", bytes.NewReader([]byte("{}")))
		if err != nil {
			return "", fmt.Errorf("ask %s for its leader: %w", m.Name, err)
		}
		var status struct {
			Header struct {
				Member string `json:"member_id"`
			}
			Leader string
		}
		err = json.NewDecoder(response.Body).Decode(&status)
		response.Body.Close()
		if err != nil {
			return "", fmt.Errorf("ask %s for its leader: %w", m.Name, err)
		}
		if status.Leader != "" && status.Leader == status.Header.Member {
			return m.Name, nil
		}
	}
	return "", fmt.Errorf("no member of the etcd of %s leads", cluster)
}

// inForce is nil once the zone emea has it on record that nothing is relayed over a pair.
func inForce(s *harness.Sandbox, from, to string) error {
	var zones []struct {
		Zone        string
		Tightenings []struct {
			From, To string
			InForce  string `json:"in_force_at"`
		}
	}
	out := s.MustCLI("emea", "border", "status", "-o", "json")
	if err := json.Unmarshal([]byte(out), &zones); err != nil {
		return err
	}
	for _, z := range zones {
		for _, x := range z.Tightenings {
			if z.Zone == "emea" && x.From == from && x.To == to && x.InForce != "" {
				return nil
			}
		}
	}
	return fmt.Errorf("border status says:\n%s", out)
}

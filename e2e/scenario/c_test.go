package scenario_test

import (
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"bailiwick/e2e/harness"
)

const regionLoss = 5 * time.Second

// regionDies: edge, upstream and control node of a region are killed at once. The pair accepts, serves, counts,
// makes keys and takes them away, all within five seconds of the kill.
func regionDies(t *testing.T, s *harness.Sandbox, dead, alive string) {
	id, key := s.NewKey("emea", "initech", "unlimited") // made before: it must be revocable after
	within(t, time.Now(), 5*time.Second, "the key works", func() error { return ok(s.Get(alive, key), alive) })
	us := usCounts(s)
	var admin string // of the region that lives: an operator's CLI may know more, but needs no more
	for _, a := range s.Admin {
		if a.Region == alive {
			admin = a.URL
		}
	}
	keys, usage := s.KeyService(admin), s.UsageAt(admin, "initech") // not by the CLI, whose starts would be in what is measured
	before, err := usage()
	if err != nil {
		t.Fatal(err)
	}

	killed := time.Now()
	s.Act("kill", "region:"+dead)
	accepts := within(t, killed, regionLoss, alive+" accepts and serves", func() error { return ok(s.Get(alive, key), alive) })
	var newID, newKey string
	creates := within(t, killed, regionLoss, alive+" makes a key", func() (err error) {
		newID, newKey, err = harness.CreateKey(keys, "initech", "unlimited")
		return err
	})
	within(t, killed, regionLoss, "the new key works", func() error { return ok(s.Get(alive, newKey), alive) })
	revokes := within(t, killed, regionLoss, alive+" revokes a key", func() error { return harness.RevokeKey(keys, id) })
	within(t, killed, regionLoss, "the revoked key is refused", func() error { return refused(s.Get(alive, key), 401, "key-invalid") })
	counts := within(t, killed, regionLoss, alive+" counts", func() error {
		if err := ok(s.Get(alive, newKey), alive); err != nil {
			return err
		}
		u, err := usage()
		if err != nil {
			return err
		}
		if u.Answered() <= before.Answered() {
			return fmt.Errorf("usage is %d and was %d before the kill", u.Answered(), before.Answered())
		}
		return nil
	})
	t.Logf("%s dead: accepts %s, creates %s, revokes %s, counts %s after the kill", dead, accepts.Round(time.Millisecond),
		creates.Round(time.Millisecond), revokes.Round(time.Millisecond), counts.Round(time.Millisecond))
	// And by an operator's CLI that knows this one node.
	if _, stderr, code := s.CLIAt(admin, "key", "revoke", newID); code != 0 {
		t.Errorf("key revoke at %s: exit code %d: %s", admin, code, stderr)
	}
	out, stderr, code := s.CLIAt(admin, "key", "create", "--customer", "initech", "--plan", "unlimited", "-o", "json")
	if code != 0 {
		t.Fatalf("key create at %s: exit code %d: %s", admin, code, stderr)
	}
	newID, newKey = field(t, out, "id"), field(t, out, "key")
	if got := usCounts(s) - us; got != 0 {
		t.Errorf("%d requests reached a us upstream", got)
	}

	s.Act("start", "region:"+dead)
	s.Settle()
	// The region has caught up with what it missed.
	if err := ok(s.Get(dead, newKey), dead, alive); err != nil {
		t.Errorf("the key made meanwhile, at %s: %v", dead, err)
	}
	if err := refused(s.Get(dead, key), 401, "key-invalid"); err != nil {
		t.Errorf("the key revoked meanwhile, at %s: %v", dead, err)
	}
	s.MustCLI("emea", "key", "revoke", newID)
}

// usControlDies: another zone's control plane is nothing that emea needs.
func usControlDies(t *testing.T, s *harness.Sandbox) {
	s.ActAll("kill", s.ControlsOf("us")...)
	product := writeFile(t, "product.yaml", "kind: Product\nname: us-away\nspec: {apis: [orders], summary: Written while us was away}\n")
	s.Eventually(10*time.Second, "apply without us", func() error {
		if _, stderr, code := s.CLI("emea", "apply", "-f", product, "--now", "--reason", "a drill"); code != 0 {
			return fmt.Errorf("exit code %d: %s", code, stderr)
		}
		return nil
	})
	if got := s.MustCLI("emea", "get", "products", "-o", "json"); !strings.Contains(got, "us-away") {
		t.Errorf("products are %s, want us-away among them", got)
	}
	s.MustCLI("emea", "delete", "product", "us-away")
	id, key := s.NewKey("emea", "initech", "unlimited")
	for _, region := range []string{"eu-west", "eu-central"} {
		within(t, time.Now(), 3*time.Second, "a key made without us works at "+region, func() error { return ok(s.Get(region, key), region) })
	}
	s.Fail("eu-west", http.StatusServiceUnavailable)
	within(t, time.Now(), 5*time.Second, "relay without us", func() error { return ok(s.Get("eu-west", key), "eu-central") })
	s.Fail("eu-west", 0)
	s.MustCLI("emea", "key", "revoke", id)
	for _, region := range []string{"eu-west", "eu-central"} {
		within(t, time.Now(), 3*time.Second, "a key revoked without us is refused at "+region, func() error { return refused(s.Get(region, key), 401, "key-invalid") })
	}
	if err := ok(s.Get("us-east", s.Key("us", "unlimited")), "us-east", "us-west"); err != nil {
		t.Errorf("a us edge without its control plane: %v", err)
	}
	if _, _, code := s.CLI("us", "key", "create", "--customer", "stark", "--plan", "unlimited", "-o", "json"); code != 6 {
		t.Errorf("key create in us exits %d, want 6: were its control nodes really dead?", code)
	}
	s.ActAll("start", s.ControlsOf("us")...)
	s.Settle()
}

// emeaControlDies: losing the primary zone stops catalog changes and nothing else.
func emeaControlDies(t *testing.T, s *harness.Sandbox) {
	closure := writeFile(t, "closure.yaml", "kind: Closure\nname: west-shut\nspec: {zone: us, from: us-east, to: us-west, reason: drill}\n")
	key := s.Key("us", "unlimited")
	old, oldKey := s.NewKey("emea", "initech", "unlimited")
	rotated := s.MustCLI("emea", "key", "rotate", old, "--overlap", "15s", "-o", "json")
	heir := field(t, rotated, "key")
	// Whose table has the new key has the old one's end: one transaction. Both work, so an answer of the pair is no late
	// revocation: the step before let eu-west's upstream fail, and a region comes back by a ramp (ten good seconds, then three).
	for _, region := range []string{"eu-west", "eu-central"} {
		within(t, time.Now(), 5*time.Second, "the key in the old one's place works at "+region, func() error { return ok(s.Get(region, heir), region) })
		within(t, time.Now(), 5*time.Second, "the old key while both work, at "+region, func() error { return ok(s.Get(region, oldKey), region) })
	}
	dead := append(s.ControlsOf("emea"), s.StoresOf("catalog")...) // an etcd of the catalog stands in the primary zone too
	s.ActAll("kill", dead...)

	id, fresh := s.NewKey("us", "stark", "unlimited")
	for _, region := range []string{"us-east", "us-west"} {
		within(t, time.Now(), 3*time.Second, "a us key made without emea works at "+region, func() error { return ok(s.Get(region, fresh), region) })
	}
	s.MustCLI("us", "key", "revoke", id)
	for _, region := range []string{"us-east", "us-west"} {
		within(t, time.Now(), 3*time.Second, "a us key revoked without emea is refused at "+region, func() error { return refused(s.Get(region, fresh), 401, "key-invalid") })
	}

	s.Fail("us-east", http.StatusServiceUnavailable)
	within(t, time.Now(), 5*time.Second, "relay in us without emea", func() error { return ok(s.Get("us-east", key), "us-west") })
	s.MustCLI("us", "apply", "-f", closure)
	within(t, time.Now(), 5*time.Second, "a closure without emea is in force", func() error {
		return refused(s.Get("us-east", key), http.StatusServiceUnavailable, "no-compatible-region")
	})
	for range 50 {
		if a := s.Get("us-east", key); a.Served() != "" {
			t.Fatalf("served by %s through a closed pair", a.Served())
		}
	}
	s.MustCLI("us", "delete", "closure", "west-shut")
	within(t, time.Now(), 15*time.Second, "relay after the closure is gone", func() error { return ok(s.Get("us-east", key), "us-west") })
	s.Fail("us-east", 0)

	plan := writeFile(t, "plan.yaml", "kind: Plan\nname: nobody\nspec: {products: [commerce]}\n")
	out, stderr, code := s.CLI("us", "apply", "-f", plan, "--now", "--reason", "a drill")
	if code != 6 || !regexp.MustCompile(`(?i)catalog`).MatchString(stderr) || !regexp.MustCompile(`(?i)leader|quorum`).MatchString(stderr) {
		t.Errorf("apply of a catalog object without the primary zone: exit code %d, %q %q; want 6 and that the catalog has no leader", code, out, stderr)
	}
	for _, region := range []string{"eu-west", "eu-central"} {
		if err := ok(s.Get(region, s.Key("emea", "unlimited")), "eu-west", "eu-central"); err != nil {
			t.Errorf("an emea edge without its control plane: %v", err)
		}
	}
	for _, region := range []string{"eu-west", "eu-central"} {
		within(t, time.Now(), 30*time.Second, "the rotated key ends at "+region+" without its control plane", func() error { return refused(s.Get(region, oldKey), 401, "key-ended") })
		if err := ok(s.Get(region, heir), "eu-west", "eu-central"); err != nil {
			t.Errorf("the key that took its place: %v", err)
		}
	}
	s.ActAll("start", dead...)
	s.Settle()
	if names := s.MustCLI("emea", "get", "plans", "-o", "json"); strings.Contains(names, "nobody") {
		t.Error("the plan whose apply exited 6 is there")
	}
	s.MustCLI("us", "apply", "-f", plan, "--now", "--reason", "a drill") // and now it can be written
	s.MustCLI("us", "delete", "plan", "nobody")
	if leaders := s.Leaders(); !slices.Contains(s.ControlsOf("emea"), leaders["catalog"]) {
		t.Errorf("the catalog is led by %q, want a node of the primary zone", leaders["catalog"])
	}
}

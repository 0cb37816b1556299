package scenario_test

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"bailiwick/e2e/harness"
)

const (
	ordersEMEA  = "orders.emea.example.test"
	ordersUS    = "orders.us.example.test"
	reportsEMEA = "reports.emea.example.test"
)

func init() {
	flag.StringVar(&harness.Store, "store", "", "engine of the sandboxes: raft, the default, or etcd: make e2e ARGS='-run TestStory -store etcd'")
}

// TestStory tells the points one after another on one sandbox, each ending with everything at home again. One
// alone: make e2e ARGS='-run TestStory/c'. The ways in which one upstream dies under load are TestRecorded's.
func TestStory(t *testing.T) {
	t.Parallel()
	s := harness.Start(t)
	for _, step := range []struct {
		name string
		run  func(*testing.T, *harness.Sandbox)
	}{
		{"a/requests", requests},
		{"a/protocols", protocols},
		{"a/every", every},
		{"e/residency", residency},
		{"p/privacy", privacy},
		{"p/canaries", keptInPlace},
		{"r/rollouts", rollouts},
		{"i/manifests", badManifests},
		{"i/tokens", badTokens},
		{"i/requests", badRequests},
		{"i/blocks", badBlocks},
		{"i/peers", badPeers},
		{"b/fails", upstreamFails},
		{"b/both", bothUpstreamsDie},
		{"d/leaders", leadersDie},
		{"c/eu-west", func(t *testing.T, s *harness.Sandbox) { regionDies(t, s, "eu-west", "eu-central") }},
		{"c/eu-central", func(t *testing.T, s *harness.Sandbox) { regionDies(t, s, "eu-central", "eu-west") }},
		{"c/us", usControlDies},
		{"c/emea", emeaControlDies},
		{"f/alone", controlStops},
		{"f/flips", flippedTables},
	} {
		passed := t.Run(strings.ReplaceAll(step.name, "/", "_"), func(t *testing.T) {
			step.run(t, s.With(t))
		})
		if !passed {
			mend(s)
		}
	}
}

// mend brings everything back after a step that failed, which may have left dead what it had killed: the steps behind it
// are to tell of themselves. A step that passes leaves all as it found it, and nothing is mended behind it.
func mend(s *harness.Sandbox) {
	names := s.ControlsOf("")
	for _, cluster := range []string{"catalog", "emea", "us"} {
		names = append(names, s.StoresOf(cluster)...)
	}
	for _, u := range s.Upstreams {
		names = append(names, u.Name)
	}
	for _, e := range s.Edges {
		names = append(names, e.Name)
	}
	for _, name := range names {
		_ = s.Try("resume", name) // whichever of the two it wants: the other is refused
		_ = s.Try("start", name)
	}
	for _, e := range s.Edges {
		s.Eventually(30*time.Second, "the upstream of "+e.Region+" listens", func() error {
			response, err := http.Get(s.UpstreamURL(e.Region) + "/__count")
			if err == nil {
				response.Body.Close()
			}
			return err
		})
		s.Fail(e.Region, 0)
	}
	s.Settle()
}

// zoneManifests writes the sandbox's catalog with upstreams of the test's own and unlimited customers.
func zoneManifests(t *testing.T, upstreams map[string]*harness.Upstream, customers ...string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "manifests")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	b.WriteString(`kind: LegalBasis
name: gdpr
spec: {kind: same-law}
---
kind: LegalBasis
name: us-law
spec: {kind: same-law}
---
kind: Policy
name: gdpr-emea
spec: {zone: emea, within_zone: {basis: gdpr}}
---
kind: Policy
name: us
spec: {zone: us, within_zone: {basis: us-law}}
---
` + ordersAPI("emea", "gdpr-emea", upstreams["eu-west"], upstreams["eu-central"]) + "---\n" +
		ordersAPI("us", "us", upstreams["us-east"], upstreams["us-west"]) + `---
kind: Product
name: commerce
spec: {apis: [orders]}
---
kind: Plan
name: unlimited
spec: {products: [commerce]}
`)
	for _, c := range customers {
		fmt.Fprintf(&b, "---\nkind: Customer\nname: %s\nspec: {zone: emea, subscriptions: [{plan: unlimited}]}\n", c)
	}
	if err := os.WriteFile(filepath.Join(dir, "10-all.yaml"), []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// ordersAPI is the manifest of a zone's orders API on given upstreams.
func ordersAPI(zone, policy string, upstreams ...*harness.Upstream) string {
	var b strings.Builder
	fmt.Fprintf(&b, "kind: API\nname: orders\nspec:\n  zone: %s\n  hosts: [orders.%s.example.test]\n  policy: %s\n  routes: [{name: all, path_prefix: /}]\n  upstreams:\n", zone, zone, policy)
	for _, u := range upstreams {
		fmt.Fprintf(&b, "    - {region: %s, url: \"http://%s\"}\n", u.Region, u.Address)
	}
	return b.String()
}

// ownUpstreams are recording upstreams for the four serving regions.
func ownUpstreams(t *testing.T) map[string]*harness.Upstream {
	out := map[string]*harness.Upstream{}
	for _, region := range []string{"eu-west", "eu-central", "us-east", "us-west"} {
		out[region] = harness.NewUpstream(t, region)
	}
	return out
}

// writeFile puts text into a file of the test.
func writeFile(t *testing.T, name, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// ok is an error unless the answer is 200, served by one of regions (any, when none is given).
func ok(a harness.Answer, regions ...string) error {
	if a.Err != nil {
		return a.Err
	}
	if a.Status != http.StatusOK {
		return fmt.Errorf("status %d: %.200s", a.Status, a.Body)
	}
	if len(regions) == 0 {
		return nil
	}
	for _, r := range regions {
		if a.Served() == r {
			return nil
		}
	}
	return fmt.Errorf("served by %q, want %v", a.Served(), regions)
}

// refused is an error unless the answer is the edge's own problem with a status and reason.
func refused(a harness.Answer, status int, reason string) error {
	if a.Err != nil {
		return a.Err
	}
	if a.Status != status {
		return fmt.Errorf("status %d, want %d: %.200s", a.Status, status, a.Body)
	}
	if got := a.Header.Get("Content-Type"); !strings.HasPrefix(got, "application/problem+json") {
		return fmt.Errorf("content type %q, want application/problem+json", got)
	}
	var p map[string]any
	if err := json.Unmarshal(a.Body, &p); err != nil {
		return fmt.Errorf("problem %.200q: %w", a.Body, err)
	}
	for _, member := range []string{"type", "title", "status", "reason", "request_id"} {
		if p[member] == nil || p[member] == "" {
			return fmt.Errorf("problem lacks %s: %s", member, a.Body)
		}
	}
	switch {
	case p["reason"] != reason:
		return fmt.Errorf("reason %q, want %q", p["reason"], reason)
	case p["status"] != float64(status):
		return fmt.Errorf("problem member status %v, want %d", p["status"], status)
	case p["request_id"] != a.Header.Get("Bailiwick-Request-Id"):
		return fmt.Errorf("request id %q in the body and %q in the header", p["request_id"], a.Header.Get("Bailiwick-Request-Id"))
	case a.Served() != "":
		return fmt.Errorf("served by %q although the edge refused", a.Served())
	}
	return nil
}

// within polls check until it returns nil, and fails the test with its last error after patience; it returns
// how long it took. Unlike Sandbox.Eventually it measures from a moment that lies back.
func within(t *testing.T, since time.Time, patience time.Duration, what string, check func() error) time.Duration {
	t.Helper()
	for {
		err := check()
		took := time.Since(since)
		if err == nil && took <= patience {
			return took
		}
		if err == nil {
			err = errors.New("it came too late")
		}
		if took > patience {
			t.Fatalf("%s: not within %s but after %s: %v", what, patience, took.Round(time.Millisecond), err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// usCounts are the requests that the us upstreams have answered: what must not move in any emea failover.
func usCounts(s *harness.Sandbox) int64 { return s.Count("us-east") + s.Count("us-west") }

// field reads one text field of a JSON object that the CLI printed.
func field(t *testing.T, out, name string) string {
	t.Helper()
	var object map[string]any
	if err := json.Unmarshal([]byte(out), &object); err != nil {
		t.Fatalf("the CLI printed %d bytes that are no JSON object: %v", len(out), err)
	}
	text, _ := object[name].(string)
	if text == "" {
		t.Fatalf("the CLI printed no %s", name)
	}
	return text
}

// long says whether what lasts is to last as long as it is promised to, or only as long as it takes to be seen.
func long() bool { return os.Getenv("BAILIWICK_LONG") == "1" }

func sortedNames(files map[string][]byte) []string { return slices.Sorted(maps.Keys(files)) }

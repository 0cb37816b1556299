package scenario_test

import (
	"fmt"
	"io"
	"net/http"
	"sync"
	"testing"
	"time"

	"bailiwick/e2e/harness"
)

// TestLinger_WhatIsBrokenOffCounts stops an edge in order beside which events go on in the process before, for longer than they may:
// they are broken off there, and count as what is broken off at any stop.
func TestLinger_WhatIsBrokenOffCounts(t *testing.T) {
	t.Parallel()
	s := harness.Start(t)
	up := newLastingUpstream(t)
	const region, edge, under = "eu-west", "eu-west-edge-1", 6
	s.MustCLI("emea", "apply", "--now", "--reason", "a test", "-f", writeFile(t, "lasting.yaml", fmt.Sprintf(`kind: API
name: lasting
spec:
  zone: emea
  hosts: [%s]
  policy: gdpr-emea
  routes: [{name: all, path_prefix: /, timeout: 60s}]
  upstreams: [{region: eu-west, url: %q}]
---
kind: Product
name: lasting
spec: {apis: [lasting]}
---
kind: Plan
name: lasting
spec: {products: [lasting]}
---
kind: Customer
name: lasting
spec: {zone: emea, subscriptions: [{plan: lasting}]}
`, lastingHost, up.URL)))
	_, key := s.NewKey("emea", "lasting", "lasting")
	serves := func() error { return ok(s.Do(region, http.MethodGet, lastingHost, "/", key, nil), region) }
	s.Eventually(30*time.Second, "the API at its edge", serves)
	counted := s.UsageThrough("emea", "lasting", time.Now(), time.Minute).Answered()
	var clients sync.WaitGroup
	for _, c := range []*http.Client{once(s, region, false), once(s, region, true), overHTTP3(t, s, region)} {
		c.Timeout = 0
		for range under / 3 {
			clients.Go(func() {
				if err := lasting(c, http.MethodGet, "/events", key, nil, func(r *http.Response) error {
					_, err := io.Copy(io.Discard, r.Body)
					return err
				}); err == nil {
					t.Error("it ended as if it were well")
				}
			})
		}
	}
	s.Eventually(20*time.Second, "all are at the upstream", func() error { return up.holds(under) })
	s.Act("replace", edge)
	s.Act("stop", edge)
	clients.Wait()
	s.Act("start", edge)
	if got := s.UsageThrough("emea", "lasting", time.Now(), time.Minute).Answered() - counted; got != under {
		t.Errorf("%d of %d answers that were broken off are counted", got, under)
	}
}

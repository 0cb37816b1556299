package relay_test

import (
	"strings"
	"testing"
	"time"

	"bailiwick/dataplane/internal/policy"
	"bailiwick/dataplane/internal/relay"
	"bailiwick/shared/table"
)

// Here the first check is made wrong, at both ends: it reads a table in which the pair is open. The sentinel
// reads the true one. In virtual time: what is late and what is wrong is told by a second.
func TestSentinel_StopsWhatAMisledFirstCheckLetsPass(t *testing.T) {
	for _, c := range []struct {
		name  string
		truth func(t *testing.T, b *border, truth *policy.Holder)
		rule  string
	}{
		{"no such pair", func(t *testing.T, b *border, truth *policy.Holder) { truth.Swap(view(t, "eu-west", nil, nil)) }, "sentinel-pair"},
		{"another pair", func(t *testing.T, b *border, truth *policy.Holder) {
			truth.Swap(view(t, "eu-west", []string{"eu-west>eu-south", "eu-central>eu-west"}, nil))
		}, "sentinel-pair"},
		{"a warm session, and the pair is closed", func(t *testing.T, b *border, truth *policy.Holder) {
			resp, err := b.do(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			truth.Swap(view(t, "eu-west", nil, nil))
			eventually(t, time.Second, "the sentinel has read it", func() bool { return b.sentinel.Upstream("127.0.0.1:9") == nil })
			time.Sleep(1100 * time.Millisecond) // within a second it would be late, not wrong
		}, "sentinel-pair"},
	} {
		bubble(t, c.name, func(t *testing.T) {
			truth := &policy.Holder{}
			truth.Swap(view(t, "eu-west", []string{"eu-west>eu-central"}, []table.Node{westNode}))
			b := newVirtualBorderWith(t, truth, nil)
			c.truth(t, b, truth)
			time.Sleep(1100 * time.Millisecond)
			served, before := b.local.count(), b.sentinel.Violations()
			resp, err := b.do(t.Context(), strings.NewReader("secret"))
			if err == nil {
				resp.Body.Close()
			}
			// A session that is there is stopped at the request, one that is not at its handshake.
			if err == nil || rule(err) != relay.RuleSentinel && !strings.Contains(err.Error(), "dial: sentinel: ") || b.local.count() != served || b.local.body.Len() != 0 {
				t.Fatalf("got %v, %d served; want it stopped by the sentinel, nothing served", err, b.local.count()-served)
			}
			if n := b.sentinel.Violations() - before; n < 1 {
				t.Errorf("got %d violations counted, want it counted", n)
			}
			b.said.mu.Lock()
			defer b.said.mu.Unlock()
			if said := b.said.String(); !strings.Contains(said, "level=ERROR") || !strings.Contains(said, "rule="+c.rule+" from=eu-west to=eu-central") {
				t.Errorf("logged %q, want an error with rule, from and to", said)
			}
		})
	}
}

// The same at the other end: the server reads a table in which the sender may relay here, and its sentinel the true one.
func TestSentinel_StopsWhatAMisledReceiverLetsPass(t *testing.T) {
	for _, c := range []struct {
		name  string
		pairs []string
		nodes []table.Node
		rule  string
	}{
		{"no such pair", nil, []table.Node{westNode}, "sentinel-pair"},
		{"the other way", []string{"eu-central>eu-west"}, []table.Node{westNode}, "sentinel-pair"},
		{"the sender has left the registry", []string{"eu-west>eu-central"}, nil, "sentinel-peer"},
		{"the sender is of another region", []string{"eu-west>eu-central"}, []table.Node{{Name: westNode.Name, Zone: "emea", Region: "eu-north"}}, "sentinel-peer"},
	} {
		bubble(t, c.name, func(t *testing.T) {
			truth := &policy.Holder{}
			truth.Swap(view(t, "eu-central", []string{"eu-west>eu-central"}, []table.Node{westNode}))
			b := newVirtualBorderWith(t, nil, truth)
			resp, err := b.do(t.Context(), nil)
			if err != nil {
				t.Fatalf("while both are right: %v", err)
			}
			resp.Body.Close()
			truth.Swap(view(t, "eu-central", c.pairs, c.nodes))
			served := b.local.count()
			if _, err := b.do(t.Context(), nil); rule(err) != relay.RuleSentinel || b.arrivals.Violations() != 0 || b.arrivals.Late() != 1 {
				t.Errorf("at once: got %v, %d violations, %d late; want it stopped, and late", err, b.arrivals.Violations(), b.arrivals.Late())
			}
			time.Sleep(1100 * time.Millisecond)
			if _, err := b.do(t.Context(), strings.NewReader("secret")); rule(err) != relay.RuleSentinel || b.arrivals.Violations() != 1 {
				t.Errorf("a second later: got %v, %d violations; want it stopped and counted", err, b.arrivals.Violations())
			}
			if b.local.count() != served || b.local.body.Len() != 0 {
				t.Errorf("%d served, want none", b.local.count()-served)
			}
			b.said.mu.Lock()
			defer b.said.mu.Unlock()
			if said := b.said.String(); !strings.Contains(said, "rule="+c.rule+" from=eu-west to=eu-central") {
				t.Errorf("logged %q, want an error with rule, from and to", said)
			}
		})
	}
}

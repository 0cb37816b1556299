package failover_test

import (
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"bailiwick/dataplane/internal/failover"
	"bailiwick/dataplane/internal/policy"
	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"
)

// What this region takes from another zone it sends nowhere else, were a policy of that name to have pairs from here.
func TestRouter_SendsNoForeignAPIOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &policy.Holder{}
		h.Swap(edgeTable(t, 1, nil, "eu-central"))
		m, err := failover.New(failover.Config{Tables: h, Prober: &pages{down: map[string]bool{}}, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		r := failover.NewRouter(m, start(t, &leader{grants: []*syncv1.SignedGrant{sign(t, grantTo("eu-central"))}}, h), "eu-west")
		time.Sleep(time.Second)
		own := h.Load().API("orders.test")
		foreign := *own
		foreign.Foreign = true
		for _, c := range []struct {
			api  *policy.API
			want bool
		}{{own, true}, {&foreign, false}} {
			a := r.Start(c.api, nil, false)
			if to, ok := a.Next(t.Context()); ok != c.want {
				t.Errorf("foreign %t: goes to %q, %t; want %t", c.api.Foreign, to.To, ok, c.want)
			}
			a = r.Start(c.api, nil, false)
			if got := a.CanHedge(); got != c.want {
				t.Errorf("foreign %t: may be sent to a second region: %t, want %t", c.api.Foreign, got, c.want)
			}
		}
	})
}

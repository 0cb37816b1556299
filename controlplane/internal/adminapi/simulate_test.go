package adminapi_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"bailiwick/controlplane/internal/adminapi/apitest"
	"bailiwick/controlplane/internal/model"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/proto/gen/bailiwick/admin/v1/adminv1connect"
	"bailiwick/shared/fault"
)

// What is simulated is what the zone has adopted less its closures; a foreign region is refused whatever is down.
func TestBorder_Simulate(t *testing.T) {
	in := apitest.New(t, 2*time.Second)
	emea := in.Zones["emea"]
	put := func(key string, v any) { in.Catalog.Put(key, model.Encode(v)) }
	put(model.PrefixAPI+"emea.orders", model.API{Name: "orders", Zone: "emea", Hosts: []string{"orders.emea.test"}, Policy: "gdpr-emea",
		Upstreams: []model.Upstream{{Region: "eu-west", URL: "http://w"}, {Region: "eu-central", URL: "http://c"}, {Region: "us-east", URL: "http://u"}}})
	put(model.PrefixProduct+"core", model.Product{Name: "core", APIs: []string{"orders"}})
	put(model.PrefixPlan+"gold", model.Plan{Name: "gold", Products: []string{"core"}})
	put(model.PrefixPlan+"none", model.Plan{Name: "none"})
	emea.Store.Put(model.PrefixCustomer+"acme", model.Encode(model.Customer{Name: "acme", Zone: "emea"}))
	for id, k := range map[string]model.Key{"k1": {Plan: "gold", Status: "active"}, "k2": {Plan: "gold", Status: "revoked"}, "k3": {Plan: "none", Status: "active"}} {
		k.ID, k.Customer, k.DigestHex = id, "acme", strings.Repeat("0", 64)
		emea.Store.Put(model.PrefixKey+id, model.Encode(k))
	}
	emea.Store.Put(model.KeyAdopted, model.Encode(model.Adopted{
		Regions:  []model.Region{{Name: "eu-west", Zone: "emea"}, {Name: "eu-central", Zone: "emea"}, {Name: "us-east", Zone: "us"}},
		Bases:    []model.LegalBasis{{Name: "gdpr", Kind: "same-law", Status: "active"}},
		Policies: []model.Policy{{Name: "gdpr-emea", Zone: "emea", WithinZone: &model.WithinZone{Basis: "gdpr"}}}}))
	ask := func(zone string, req *adminv1.SimulateRequest) (string, error) {
		resp, err := adminv1connect.NewBorderServiceClient(apitest.Client(apitest.Viewer), in.Zones[zone].Server.URL, faults).Simulate(t.Context(), req)
		var b strings.Builder
		for _, c := range resp.GetCourses() {
			fmt.Fprintf(&b, "%s@%s %s %s %s led %v", c.Api, c.Home, c.Outcome, c.ServedBy, c.Basis, c.LedTo)
			if c.Drain != "" {
				fmt.Fprintf(&b, " drained (%s)", c.Drain)
			}
			b.WriteString(";")
			for _, p := range c.Passed {
				if p.Region == "us-east" && (p.Permitted || p.Why == "") {
					t.Errorf("us-east: %v", p)
				}
			}
			if c.Why == "" {
				t.Errorf("no reason: %v", c)
			}
		}
		return b.String(), err
	}
	for _, c := range []struct {
		req  *adminv1.SimulateRequest
		want string
	}{
		{&adminv1.SimulateRequest{Host: "ORDERS.emea.test."}, "orders@eu-central home eu-central  led [eu-west];orders@eu-west home eu-west  led [eu-central];"},
		{&adminv1.SimulateRequest{Down: []string{"eu-west"}}, "orders@eu-central home eu-central  led [];orders@eu-west relay eu-central gdpr led [eu-central];"},
		{&adminv1.SimulateRequest{From: "eu-west", Down: []string{"eu-west", "eu-central"}}, "orders@eu-west no-region   led [];"},
		{&adminv1.SimulateRequest{From: "us-east"}, "orders@us-east not-home   led [eu-central eu-west];"},
		{&adminv1.SimulateRequest{From: "eu-west", KeyId: "k1"}, "orders@eu-west home eu-west  led [eu-central];"},
		{&adminv1.SimulateRequest{From: "eu-west", KeyId: "k2"}, "orders@eu-west key   led [eu-central];"},
		{&adminv1.SimulateRequest{From: "eu-west", KeyId: "k3"}, "orders@eu-west key   led [eu-central];"},
		{&adminv1.SimulateRequest{From: "eu-west", KeyId: "k4"}, "orders@eu-west key   led [eu-central];"},
	} {
		if got, err := ask("emea", c.req); err != nil || got != c.want {
			t.Errorf("%v: %q, %v; want %q", c.req, got, err, c.want)
		}
	}
	emea.Store.Put(model.PrefixClosure+"c", model.Encode(model.Closure{Name: "c", Zone: "emea", From: "eu-west", To: "eu-central"}))
	if got, err := ask("emea", &adminv1.SimulateRequest{From: "eu-west", Down: []string{"eu-west"}}); err != nil || got != "orders@eu-west no-region   led [eu-central];" {
		t.Errorf("with the pair closed: %q, %v", got, err)
	}
	// A drain moves clients and decides no relay: what home accepts it serves.
	emea.Store.Put(model.PrefixDrain+"eu-west", model.Encode(model.Drain{Name: "eu-west", Zone: "emea", Reason: "new kernel"}))
	for _, c := range []struct {
		req  *adminv1.SimulateRequest
		want string
	}{
		{&adminv1.SimulateRequest{}, "orders@eu-central home eu-central  led [eu-west];orders@eu-west home eu-west  led [eu-central] drained (new kernel);"},
		{&adminv1.SimulateRequest{From: "eu-west", Down: []string{"eu-central"}}, "orders@eu-west home eu-west  led [eu-west] drained (new kernel);"},
	} {
		if got, err := ask("emea", c.req); err != nil || got != c.want {
			t.Errorf("drained, %v: %q, %v; want %q", c.req, got, err, c.want)
		}
	}
	put(model.PrefixRegion+"eu-central", model.Region{Name: "eu-central", Zone: "emea", Drain: "disks"})
	if got, err := ask("emea", &adminv1.SimulateRequest{}); err != nil || got != "orders@eu-central home eu-central  led [eu-central eu-west] drained (disks);orders@eu-west home eu-west  led [eu-central eu-west] drained (new kernel);" {
		t.Errorf("all drained: %q, %v", got, err)
	}
	for want, req := range map[string]*adminv1.SimulateRequest{"REGION_UNKNOWN": {Down: []string{"eu-west", "x"}}, "HOST_NOT_FOUND": {Host: "x.test"}} {
		if _, err := ask("emea", req); fault.ReasonOf(err) != want {
			t.Errorf("%v: %v, want %s", req, err, want)
		}
	}
	if _, err := ask("us", &adminv1.SimulateRequest{Host: "orders.emea.test"}); fault.ReasonOf(err) != "WRONG_ZONE" {
		t.Errorf("asked of us: %v", err)
	}
}

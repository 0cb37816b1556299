package adminapi_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"bailiwick/controlplane/internal/adminapi/apitest"
	"bailiwick/controlplane/internal/model"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/shared/fault"
)

func TestDescribe(t *testing.T) {
	in := seeded(t, time.Second)
	z := in.Zones["emea"]
	for name, region := range map[string]string{"w1": "eu-west", "c1": "eu-central"} {
		in.Catalog.Put(model.PrefixNode+name, model.Encode(model.Node{Name: name, Kind: "edge", Region: region, Zone: "emea"}))
	}
	alone := "kind: API\nname: alone\nspec: {zone: emea, hosts: [alone.test], upstreams: [{region: eu-west, url: \"http://127.0.0.1:1\"}]}"
	apply(t, z, alone)
	describe := func(token, kind, name string) *adminv1.DescribeResponse {
		t.Helper()
		d, err := resourcesAt(z, token).Describe(t.Context(), &adminv1.DescribeRequest{Kind: kind, Name: name})
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	refs := func(list []*adminv1.Reference) (out []string) {
		for _, r := range list {
			out = append(out, r.Kind+" "+r.Name)
		}
		return out
	}
	d := describe(apitest.Admin, "apis", "emea/alone")
	if len(d.Holders) != 0 || !slices.ContainsFunc(d.Notes, func(n string) bool { return strings.Contains(n, "roll-out r1") }) {
		t.Errorf("a roll-out has reached no edge yet: held by %v, notes %v", d.Holders, d.Notes)
	}
	if _, err := resourcesAt(z, apitest.Admin).Apply(t.Context(), &adminv1.ApplyRequest{Resources: parse(t, strings.Replace(alone, "alone.test", "alone.example.test", 1)), Now: true, Reason: "nothing goes from ring to ring here"}); err != nil {
		t.Fatal(err)
	}
	d = describe(apitest.Admin, "apis", "emea/alone")
	if got := refs(d.RefersTo); !slices.Equal(got, []string{"Zone emea", "Region eu-west"}) {
		t.Errorf("refers to %v", got)
	}
	if !slices.ContainsFunc(d.Notes, func(n string) bool { return strings.Contains(n, "cannot fail over") }) {
		t.Errorf("notes: %v", d.Notes)
	}
	if len(d.Holders) != 3 { // the other region knows that it is not at home there
		t.Errorf("held by %v", d.Holders)
	}
	d = describe(apitest.Admin, "plans", "gold")
	if got := refs(d.ReferredBy); !slices.Contains(got, "Customer acme") {
		t.Errorf("gold is referred to by %v, want customer acme", got)
	}
	if d = describe(apitest.Auditor, "plans", "gold"); slices.ContainsFunc(refs(d.ReferredBy), func(s string) bool { return strings.HasPrefix(s, "Customer") }) {
		t.Error("an auditor, who may not read customers, is told of them")
	}
	if d = describe(apitest.Admin, "regions", "eu-west"); len(d.Holders) == 0 || !slices.Contains(refs(d.ReferredBy), "Node w1") || !slices.Contains(refs(d.ReferredBy), "API emea/alone") {
		t.Errorf("region: %v held by %v", refs(d.ReferredBy), d.Holders)
	}
	if _, err := resourcesAt(z, apitest.Auditor).Describe(t.Context(), &adminv1.DescribeRequest{Kind: "customers", Name: "acme"}); fault.KindOf(err) != fault.Denied {
		t.Errorf("an auditor describes a customer: %v", err)
	}
	in.Catalog.SetDown(true) // it is asked when things are down
	if d = describe(apitest.Admin, "apis", "emea/alone"); d.Resource.GetName() != "alone" {
		t.Error("nothing without the catalog's quorum")
	}
}

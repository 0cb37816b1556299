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

// Labels sort what operators have: lists are filtered by them, and a rotated key keeps its own. They go where the thing rests
// that bears them, and no further; no roll-out begins for one.
func TestLabels_RestWithWhatBearsThem(t *testing.T) {
	in := seeded(t, time.Second)
	z := in.Zones["emea"]
	if r := now(t, in); r.Name() != "r0" {
		if _, err := steer(t, z, apitest.Admin, r.Name(), "promote"); err != nil {
			t.Fatal(err)
		}
	}
	get := func(kind, name string) *adminv1.Resource {
		resp, err := resourcesAt(z, apitest.Admin).Get(t.Context(), &adminv1.GetRequest{Kind: kind, Name: name})
		if err != nil {
			t.Fatal(err)
		}
		r := resp.GetResource()
		r.Etag = ""
		return r
	}
	customer, api, region := get("customer", "acme"), get("api", "emea/orders"), get("region", "eu-west")
	customer.GetCustomer().Labels = []string{"tier=1", "team=secret-team"}
	api.GetApi().Labels, region.GetRegion().Labels = []string{"team=billing"}, []string{"site=dublin"}
	resp, err := resourcesAt(z, apitest.Admin).Apply(t.Context(), &adminv1.ApplyRequest{Resources: []*adminv1.Resource{customer, api, region}})
	if err != nil || resp.Rollout != "" {
		t.Fatalf("got %v, roll-out %q; want none for labels", err, resp.GetRollout())
	}
	again, err := resourcesAt(z, apitest.Admin).Apply(t.Context(), &adminv1.ApplyRequest{Resources: []*adminv1.Resource{get("customer", "acme"), get("api", "emea/orders"), region}})
	if err != nil || slices.ContainsFunc(again.GetChanges(), func(c *adminv1.Change) bool { return c.Action != "unchanged" }) {
		t.Errorf("what is shown, applied again: %v, %v", again.GetChanges(), err)
	}
	for _, c := range []struct{ kind, filter, want string }{
		{"customers", "labels.team=secret-team", "acme"}, {"customers", "labels.tier=1 NOT labels.owner:*", "acme"}, {"customers", "labels.team=billing", ""},
		{"apis", "labels.team=billing", "orders"}, {"apis", "labels.team:*", "orders"}, {"regions", "labels.site=dub*", "eu-west"},
	} {
		got, err := resourcesAt(z, apitest.Admin).List(t.Context(), &adminv1.ListRequest{Kind: c.kind, Filter: c.filter})
		var names []string
		for _, r := range got.GetResources() {
			names = append(names, r.Name)
		}
		if err != nil || strings.Join(names, " ") != c.want {
			t.Errorf("%s with %s: got %v, %v; want %s", c.kind, c.filter, names, err, c.want)
		}
	}

	made, err := keysAt(z, apitest.Admin).CreateKey(t.Context(), &adminv1.CreateKeyRequest{Customer: "acme", Plan: "gold", Labels: []string{"use=secret-use", "app=web"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := keysAt(z, apitest.Admin).RotateKey(t.Context(), &adminv1.RotateKeyRequest{Id: made.Id}); err != nil {
		t.Fatal(err)
	}
	keys, err := keysAt(z, apitest.Admin).ListKeys(t.Context(), &adminv1.ListKeysRequest{Customer: "acme", Filter: "labels.use=secret-use"})
	if err != nil || len(keys.GetKeys()) != 2 || strings.Join(keys.Keys[0].Labels, " ") != "app=web use=secret-use" {
		t.Errorf("got %v, %v; want the key and its successor, with both labels", keys.GetKeys(), err)
	}
	for _, bad := range [][]string{{"use"}, {"use=a", "use=b"}, {"use=somebody@example.test"}} {
		if _, err := keysAt(z, apitest.Admin).CreateKey(t.Context(), &adminv1.CreateKeyRequest{Customer: "acme", Plan: "gold", Labels: bad}); fault.KindOf(err) != fault.Invalid {
			t.Errorf("%q: got %v", bad, err)
		}
	}

	for name, dump := range map[string]string{"the catalog": in.Catalog.Dump(), "the other zone": in.Zones["us"].Store.Dump()} {
		if strings.Contains(dump, "secret-") {
			t.Errorf("%s holds labels of a customer or key of emea", name)
		}
	}
	kv, _ := z.Store.Local().Get(model.PrefixCustomer + "acme")
	if !strings.Contains(string(kv.Value), `"labels":["team=secret-team","tier=1"]`) {
		t.Errorf("stored is %s", kv.Value)
	}
}

package controlplane

import (
	"testing"

	"bailiwick/controlplane/internal/adminapi/apitest"
	"bailiwick/controlplane/internal/model"
)

// What was of the zone a minute ago may still be billed: its usage is on its way.
func TestZoneFacts(t *testing.T) {
	catalog, store := apitest.NewStore("catalog"), apitest.NewStore("store/emea")
	region := func(name, zone string) []byte { return model.Encode(model.Region{Name: name, Zone: zone}) }
	catalog.Put("regions/eu-west", region("eu-west", "emea"))
	catalog.Put("regions/us-east", region("us-east", "us"))
	catalog.Put("regions/ca-east", region("ca-east", "ca"))
	catalog.Put("regions/jp-east", region("jp-east", "jp"))
	catalog.Put("regions/br-south", region("br-south", "br"))
	catalog.Put("gone/regions/eu-south", region("eu-south", "emea"))
	catalog.Put("policies/p", model.Encode(model.Policy{Name: "p", Zone: "emea", Pairs: []model.Pair{{From: "eu-west", To: "ca-east", Status: "closed"}}}))
	catalog.Put("policies/q", model.Encode(model.Policy{Name: "q", Zone: "us", Pairs: []model.Pair{{From: "us-east", To: "br-south"}}}))
	catalog.Put("apis/emea/orders", []byte("{}"))
	catalog.Put("gone/apis/emea/old", []byte("{}"))
	catalog.Put("apis/us/american", []byte("{}"))
	store.Put("inforce/1", model.Encode(model.InForce{From: "eu-west", To: "jp-east"}))
	store.Put("customers/acme", []byte("{}"))
	store.Put("gone/globex", []byte("{}"))
	f := zoneFacts{zone: "emea", store: store.Local(), catalog: catalog.Local()}
	for _, c := range []struct {
		what string
		got  bool
		want bool
	}{
		{"customer", f.Customer("acme"), true}, {"customer that is gone", f.Customer("globex"), true}, {"nobody", f.Customer("umbrella"), false},
		{"region of the zone", f.Region("eu-west"), true}, {"region that is gone", f.Region("eu-south"), true}, {"region behind a closed pair", f.Region("ca-east"), true},
		{"region of a pair that was removed", f.Region("jp-east"), true}, {"region without a pair", f.Region("us-east"), false},
		{"region of another zone's pair", f.Region("br-south"), false}, {"no region", f.Region("moon"), false},
		{"API", f.API("orders"), true}, {"API that is gone", f.API("old"), true}, {"another zone's API", f.API("american"), false},
	} {
		if c.got != c.want {
			t.Errorf("%s: got %v, want %v", c.what, c.got, c.want)
		}
	}
}

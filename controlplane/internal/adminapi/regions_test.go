package adminapi_test

import (
	"testing"
	"time"

	"bailiwick/controlplane/internal/adminapi/apitest"
	"bailiwick/controlplane/internal/model"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/proto/gen/bailiwick/admin/v1/adminv1connect"
	"bailiwick/shared/fault"
)

// What a drain has come to is told by what edges hold and answer: one that has not heard of it still names the region.
func TestDNS_Regions(t *testing.T) {
	in := apitest.New(t, 2*time.Second)
	put := func(key string, v any) { in.Catalog.Put(key, model.Encode(v)) }
	doors := func(addr string) *model.Doors {
		return &model.Doors{Addresses: []string{addr}, HTTPSPort: 443, DNS: true}
	}
	put(model.PrefixNode+"eu-west-edge-1", model.Node{Name: "eu-west-edge-1", Kind: "edge", Region: "eu-west", Zone: "emea", Doors: doors("192.0.2.1")})
	put(model.PrefixNode+"eu-central-edge-1", model.Node{Name: "eu-central-edge-1", Kind: "edge", Region: "eu-central", Zone: "emea", Doors: doors("192.0.2.2")})
	ask := func() map[string]*adminv1.RegionState {
		resp, err := adminv1connect.NewDNSServiceClient(apitest.Client(apitest.Viewer), in.Zones["emea"].Server.URL, faults).Regions(t.Context(), &adminv1.RegionsRequest{})
		if err != nil {
			t.Fatal(err)
		}
		out := map[string]*adminv1.RegionState{}
		for _, r := range resp.GetRegions() {
			if out[r.GetName()] = r; r.GetZone() != "emea" {
				t.Errorf("region %s of zone %s: another zone's edges are unknown here", r.GetName(), r.GetZone())
			}
		}
		return out
	}
	// eu-west's edge is the one that reports, and holds the catalog up to 9; eu-central's is registered and silent.
	put(model.PrefixRegion+"eu-central", model.Region{Name: "eu-central", Zone: "emea"})
	west, central := ask()["eu-west"], ask()["eu-central"]
	if west.GetEdges() != 1 || west.GetEdgesConnected() != 1 || west.GetEdgesAlive() != 1 || west.GetNames() != 1 || west.GetNaming() != 1 {
		t.Errorf("eu-west: %v, want one edge, connected, that names it", west)
	}
	if central.GetEdges() != 1 || central.GetEdgesConnected() != 0 || central.GetEdgesAlive() != 1 {
		t.Errorf("eu-central: %v, want one edge that is not connected", central)
	}
	if central.GetState() != model.RegionUnknown {
		t.Errorf("a region that nobody watches is %q, want %s", central.GetState(), model.RegionUnknown)
	}
	drain := func() uint64 {
		put(model.PrefixRegion+"eu-west", model.Region{Name: "eu-west", Zone: "emea", Drain: "work"})
		kv, _ := in.Catalog.Local().Get(model.PrefixRegion + "eu-west")
		return kv.ModIndex
	}
	at := drain()
	for ; at <= 9; at = drain() {
		if west = ask()["eu-west"]; west.GetDrain() != "work" || west.GetState() != model.RegionDrained || west.GetEdgesAcked() != 1 {
			t.Errorf("drained at %d, with the edge at 9: %v, want it to know", at, west)
		}
	}
	if west = ask()["eu-west"]; west.GetEdgesAcked() != 0 || west.GetNaming() != 1 {
		t.Errorf("drained at %d, with the edge at 9: %v, want it not to know, and to name the region still", at, west)
	}
	// The zone's own drain is in force as the catalog's is, and an edge tells itself whether it has heard of it.
	in = apitest.New(t, 2*time.Second)
	put(model.PrefixNode+"eu-west-edge-1", model.Node{Name: "eu-west-edge-1", Kind: "edge", Region: "eu-west", Zone: "emea", Doors: doors("192.0.2.1")})
	in.Zones["emea"].Store.Put(model.PrefixDrain+"eu-west", model.Encode(model.Drain{Name: "eu-west", Zone: "emea", Reason: "by the zone"}))
	if west = ask()["eu-west"]; west.GetDrain() != "by the zone" || west.GetState() != model.RegionDrained || west.GetEdgesAcked() != 0 || west.GetNaming() != 1 {
		t.Errorf("drained by the zone, and the edge has not said that it knows: %v", west)
	}
}

// Who drains what is judged as for any other change of a zone.
func TestApply_Drain(t *testing.T) {
	in := apitest.New(t, 2*time.Second)
	z := in.Zones["emea"]
	in.Catalog.SetDown(true)
	apply(t, z, "kind: Drain\nname: eu-west\nspec: {zone: emea, reason: work}\n")
	if d := stored[model.Drain](t, z.Store, model.PrefixDrain+"eu-west"); d.Reason != "work" || d.At.IsZero() {
		t.Errorf("stored %+v", d)
	}
	for _, c := range []struct{ name, manifest, reason string }{
		{"a region of another zone", "kind: Drain\nname: us-east\nspec: {zone: emea, reason: work}\n", "REGION_UNKNOWN"},
		{"of another zone", "kind: Drain\nname: us-east\nspec: {zone: us, reason: work}\n", "WRONG_ZONE"},
		{"no region", "kind: Drain\nname: nowhere\nspec: {zone: emea, reason: work}\n", "REGION_UNKNOWN"},
	} {
		_, err := resourcesAt(z, apitest.Admin).Apply(t.Context(), &adminv1.ApplyRequest{Resources: parse(t, c.manifest)})
		if fault.ReasonOf(err) != c.reason {
			t.Errorf("%s: %v, want %s", c.name, err, c.reason)
		}
	}
}

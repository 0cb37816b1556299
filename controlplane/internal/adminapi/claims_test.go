package adminapi_test

import (
	"strings"
	"testing"
	"time"

	"bailiwick/controlplane/internal/adminapi/apitest"
	"bailiwick/controlplane/internal/evidence"
	"bailiwick/controlplane/internal/model"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/proto/gen/bailiwick/admin/v1/adminv1connect"
	"bailiwick/shared/fault"
)

const cluster = "0123456789abcdef"

func claimsAt(z *apitest.Zone, token string) adminv1connect.ClusterServiceClient {
	return adminv1connect.NewClusterServiceClient(apitest.Client(token), z.Server.URL, faults)
}

// A claim is released by an operator who may, with a reason, on record under his pseudonym; what nobody claimed is told apart.
func TestClaims_AreReleased(t *testing.T) {
	in := apitest.New(t, time.Second)
	z := in.Zones["us"]
	in.Catalog.Put(model.PrefixCluster+cluster, model.Encode(model.Cluster{ID: cluster, Zone: "emea"}))
	for _, c := range []struct {
		name, token, id, why, reason string
	}{
		{"no reason", apitest.Admin, cluster, "", "FIELD_INVALID"},
		{"no id", apitest.Admin, "emea", "a typo", "FIELD_INVALID"},
		{"who may only look", apitest.Viewer, cluster, "a typo", "ROLE_INSUFFICIENT"},
		{"of no zone", apitest.Admin, strings.Repeat("0", 16), "a typo", "CLUSTER_NOT_CLAIMED"},
	} {
		_, err := claimsAt(z, c.token).ReleaseClaim(t.Context(), &adminv1.ReleaseClaimRequest{Cluster: c.id, Reason: c.why})
		if fault.ReasonOf(err) != c.reason {
			t.Errorf("%s: %v, want %s", c.name, err, c.reason)
		}
	}
	in.Catalog.Put(model.PrefixRelease+strings.Repeat("1", 16), model.Encode(model.Release{ID: strings.Repeat("1", 16), Zone: "us", Status: model.ReleaseDone, Reason: "of old"}))
	got, err := claimsAt(z, apitest.Viewer).Claims(t.Context(), &adminv1.ClaimsRequest{})
	if err != nil || len(got.GetClaims()) != 2 || got.GetClaims()[0].GetStatus() != "held" || got.GetClaims()[0].GetZone() != "emea" || got.GetClaims()[1].GetStatus() != "released" {
		t.Errorf("claims: %v, %v", got, err)
	}
	done, err := claimsAt(z, apitest.Admin).ReleaseClaim(t.Context(), &adminv1.ReleaseClaimRequest{Cluster: cluster, Reason: "a typo in endpoints"})
	if err != nil || done.GetClaim().GetStatus() != "released" {
		t.Fatalf("release: %v, %v", done, err)
	}
	snap := in.Catalog.Local()
	if _, ok := snap.Get(model.PrefixCluster + cluster); ok {
		t.Error("it is claimed still")
	}
	kv, _ := snap.Get(model.PrefixRelease + cluster)
	r, err := model.Decode[model.Release](kv.Key, kv.Value)
	by := evidence.Pseudonym(apitest.Pepper, "us", "admin")
	if err != nil || r.By != by || r.Zone != "emea" || r.From != "us" || r.Reason != "a typo in endpoints" || r.At.IsZero() {
		t.Errorf("the record is %+v, %v", r, err)
	}
	kv, _ = snap.Get(model.KeyAudit)
	audit, err := model.Decode[model.Audit](kv.Key, kv.Value)
	if err != nil || audit.Operator != by || audit.Call != "cluster" {
		t.Errorf("who made it: %+v, %v", audit, err)
	}
}

// A call whose node died after it had asked is made again at another: that one finishes what the first began, and says of nothing
// that it is released which is not.
func TestClaims_ACallThatIsMadeAgain(t *testing.T) {
	in := apitest.New(t, time.Second)
	in.Catalog.Put(model.PrefixCluster+cluster, model.Encode(model.Cluster{ID: cluster, Zone: "us"}))
	call := func() (*adminv1.ReleaseClaimResponse, error) {
		return claimsAt(in.Zones["us"], apitest.Admin).ReleaseClaim(t.Context(), &adminv1.ReleaseClaimRequest{Cluster: cluster, Reason: "a typo", RequestId: "one"})
	}
	first := in.Catalog.Local()
	if _, err := call(); err != nil {
		t.Fatal(err)
	}
	kv, _ := in.Catalog.Local().Get(model.PrefixRelease + cluster)
	r, err := model.Decode[model.Release](kv.Key, kv.Value)
	if err != nil {
		t.Fatal(err)
	}
	row, _ := first.Get(model.PrefixCluster + cluster)
	r.Status = model.ReleaseUnder
	in.Catalog.Put(row.Key, row.Value) // as it was when the first had asked, and its node died
	in.Catalog.Put(model.PrefixRelease+cluster, model.Encode(r))
	if got, err := call(); err != nil || got.GetClaim().GetStatus() != "released" {
		t.Errorf("made again: %v, %v", got, err)
	}
	if _, ok := in.Catalog.Local().Get(model.PrefixCluster + cluster); ok {
		t.Error("it says that the claim is released, and it is held")
	}
}

// Where a policy of the zone asks for two operators, the tokens of one person are one.
func TestClaims_TwoOperators(t *testing.T) {
	in, z := guarded(t)
	in.Catalog.Put(model.PrefixCluster+cluster, model.Encode(model.Cluster{ID: cluster, Zone: "emea"}))
	for _, step := range []struct{ token, status string }{{apitest.Admin, "waiting"}, {apitest.Other, "waiting"}, {apitest.Second, "released"}} {
		got, err := claimsAt(z, step.token).ReleaseClaim(t.Context(), &adminv1.ReleaseClaimRequest{Cluster: cluster, Reason: "a typo"})
		if err != nil || got.GetClaim().GetStatus() != step.status {
			t.Errorf("by %s: %v, %v, want %s", step.token, got, err, step.status)
		}
		if _, ok := in.Catalog.Local().Get(model.PrefixCluster + cluster); ok != (step.status == "waiting") {
			t.Errorf("by %s: claimed: %v", step.token, ok)
		}
	}
	in.Catalog.Put(model.PrefixCluster+cluster, model.Encode(model.Cluster{ID: cluster, Zone: "us"}))
	got, err := claimsAt(z, apitest.Admin).ReleaseClaim(t.Context(), &adminv1.ReleaseClaimRequest{Cluster: cluster, Reason: "a typo"})
	if err != nil || got.GetClaim().GetStatus() != "released" {
		t.Errorf("of a zone whose policies ask for one: %v, %v", got, err)
	}
}

package adminapi_test

import (
	"strings"
	"testing"
	"time"

	"bailiwick/controlplane/internal/adminapi/apitest"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/shared/fault"
)

func plan(units int64, rate int32) *adminv1.Resource {
	p := &adminv1.Plan{Quota: &adminv1.Quota{Units: units}}
	if rate > 0 {
		p.RateLimit = &adminv1.RateLimit{RequestsPerSecond: rate}
	}
	return &adminv1.Resource{Name: "free", Spec: &adminv1.Resource_Plan{Plan: p}}
}

func TestApply_AMaskWritesItsFieldsAlone(t *testing.T) {
	in := seeded(t, time.Second)
	z := in.Zones["emea"]
	res := resourcesAt(z, apitest.Admin)
	get := func() *adminv1.Resource {
		r, err := res.Get(t.Context(), &adminv1.GetRequest{Kind: "plans", Name: "free"})
		if err != nil {
			t.Fatal(err)
		}
		return r.Resource
	}
	before := get()
	resp, err := res.Apply(t.Context(), &adminv1.ApplyRequest{Resources: []*adminv1.Resource{plan(77, 9)}, UpdateMask: []string{"spec.quota.units"}, RequestId: "m1"})
	if err != nil || len(resp.Changes) != 1 || len(resp.Changes[0].Fields) != 1 || resp.Changes[0].Fields[0].Field != "spec.quota.units" {
		t.Fatalf("got %v, %v; want one field changed", resp, err)
	}
	if after := get().GetPlan(); after.Quota.Units != 77 || after.RateLimit.RequestsPerSecond != before.GetPlan().RateLimit.RequestsPerSecond || len(after.Products) == 0 || after.Quota.Mode != before.GetPlan().Quota.Mode {
		t.Errorf("after: %v, before: %v", after, before)
	}
	if _, err = res.Apply(t.Context(), &adminv1.ApplyRequest{Resources: []*adminv1.Resource{plan(78, 0)}, UpdateMask: []string{"spec.rate_limit"}}); err != nil {
		t.Fatal(err)
	}
	if after := get().GetPlan(); after.RateLimit != nil || after.Quota.Units != 77 {
		t.Errorf("a masked field that the request leaves out is unset: got %v", after)
	}
	// Somebody else's change between reading and writing is kept: the patch is merged anew.
	once := true
	in.Catalog.Before = func() {
		if once {
			once = false
			in.Catalog.Before = nil
			apply(t, z, "kind: Plan\nname: free\nspec: {products: [commerce], rate_limit: {requests_per_second: 5}, quota: {units: 5, mode: strict}, price: \"9\"}")
		}
	}
	if _, err := res.Apply(t.Context(), &adminv1.ApplyRequest{Resources: []*adminv1.Resource{plan(80, 0)}, UpdateMask: []string{"spec.quota.units"}}); err != nil {
		t.Fatal(err)
	}
	if after := get().GetPlan(); after.Price != "9" || after.Quota.Units != 80 {
		t.Errorf("the other's change is lost: %v", after)
	}
	was := in.Catalog.Dump()
	stale, older := plan(81, 0), plan(81, 0)
	stale.Etag = "1"
	epoch, index, ok := strings.Cut(get().GetEtag(), ".")
	if !ok || epoch != "1" {
		t.Fatalf("etag %s, want it to name the store's epoch", get().GetEtag())
	}
	older.Etag = "0." + index // of before a restore: the index means another transaction now
	for name, c := range map[string]struct {
		resources []*adminv1.Resource
		mask      string
		reason    string
	}{
		"stale etag":       {[]*adminv1.Resource{stale}, "spec.quota.units", "ETAG_MISMATCH"},
		"of another epoch": {[]*adminv1.Resource{older}, "spec.quota.units", "ETAG_MISMATCH"},
		"no such field":    {[]*adminv1.Resource{plan(1, 0)}, "spec.quota.colour", "MASK_INVALID"},
		"the name":         {[]*adminv1.Resource{plan(1, 0)}, "name", "MASK_INVALID"},
		"below a scalar":   {[]*adminv1.Resource{plan(1, 0)}, "spec.quota.units.x", "MASK_INVALID"},
		"below a list":     {[]*adminv1.Resource{plan(1, 0)}, "spec.products.x", "MASK_INVALID"},
		"two resources":    {[]*adminv1.Resource{plan(1, 0), plan(2, 0)}, "spec.quota", "MASK_NEEDS_ONE"},
		"not there":        {[]*adminv1.Resource{{Name: "nobody", Spec: plan(1, 0).Spec}}, "spec.quota", "PLAN_NOT_FOUND"},
		"the whole is bad": {[]*adminv1.Resource{plan(-1, 0)}, "spec.quota.units", "FIELD_INVALID"},
		"unset required":   {[]*adminv1.Resource{plan(1, 0)}, "spec.products", "FIELD_INVALID"},
		"no spec":          {[]*adminv1.Resource{{Name: "free"}}, "spec.products", "SPEC_MISSING"},
	} {
		_, err := res.Apply(t.Context(), &adminv1.ApplyRequest{Resources: c.resources, UpdateMask: []string{c.mask}})
		if fault.ReasonOf(err) != c.reason {
			t.Errorf("%s: %v (%s), want %s", name, err, fault.ReasonOf(err), c.reason)
		}
	}
	if in.Catalog.Dump() != was {
		t.Error("a refused patch changed the catalog")
	}
}

func TestApply_ARequestIdIsOfOneChange(t *testing.T) {
	in := seeded(t, time.Second)
	res := resourcesAt(in.Zones["emea"], apitest.Admin)
	req := func(units int64) *adminv1.ApplyRequest {
		return &adminv1.ApplyRequest{Resources: []*adminv1.Resource{plan(units, 0)}, UpdateMask: []string{"spec.quota.units"}, RequestId: "same"}
	}
	if _, err := res.Apply(t.Context(), req(11)); err != nil {
		t.Fatal(err)
	}
	if _, err := res.Apply(t.Context(), req(11)); err != nil {
		t.Errorf("the same once more: %v", err)
	}
	was := in.Catalog.Dump()
	if _, err := res.Apply(t.Context(), req(12)); fault.ReasonOf(err) != "REQUEST_ID_REUSED" || in.Catalog.Dump() != was {
		t.Errorf("the same id for something else: %v, want REQUEST_ID_REUSED and nothing changed", err)
	}
}

// A script that always has one id must not hear that it closed what is open.
func TestApply_ARequestIdOfBeforeDoesNotPassForNow(t *testing.T) {
	in := seeded(t, time.Second)
	z := in.Zones["emea"]
	res := resourcesAt(z, apitest.Admin)
	shut := &adminv1.ApplyRequest{RequestId: "runbook-1", Resources: parse(t, "kind: Closure\nname: shut\nspec: {zone: emea, from: eu-west, to: eu-central, reason: drill}")}
	open := func(id string) error {
		_, err := res.Delete(t.Context(), &adminv1.DeleteRequest{Kind: "closure", Name: "shut", RequestId: id})
		return err
	}
	z.Store.Lose.Store(1) // committed, and the answer lost inside: it is this call's own
	if _, err := res.Apply(t.Context(), shut); err != nil {
		t.Fatal(err)
	}
	z.Store.Lose.Store(1)
	if err := open("open-1"); err != nil {
		t.Fatal(err)
	}
	if _, err := res.Apply(t.Context(), shut); fault.ReasonOf(err) != "REQUEST_ID_REUSED" {
		t.Errorf("the same closure under the same id after it was taken away: %v, want REQUEST_ID_REUSED: it is not closed", err)
	}
	shut.RequestId = "runbook-2"
	if _, err := res.Apply(t.Context(), shut); err != nil {
		t.Fatal(err)
	}
	if err := open("open-1"); fault.ReasonOf(err) != "REQUEST_ID_REUSED" {
		t.Errorf("the same deletion under the same id after it was made anew: %v, want REQUEST_ID_REUSED", err)
	}
}

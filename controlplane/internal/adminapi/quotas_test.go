package adminapi_test

import (
	"strings"
	"testing"
	"time"

	"bailiwick/controlplane/internal/adminapi/apitest"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/proto/gen/bailiwick/admin/v1/adminv1connect"
	"bailiwick/shared/fault"
)

func quotasAt(z *apitest.Zone, token string) adminv1connect.QuotaServiceClient {
	return adminv1connect.NewQuotaServiceClient(apitest.Client(token), z.Server.URL, faults)
}

func TestTopUp_AddsOnceARequestID(t *testing.T) {
	in := seeded(t, 2*time.Second)
	z := in.Zones["emea"]
	apply(t, z, "kind: Customer\nname: two\nspec: {zone: emea, time_zone: Asia/Kathmandu, subscriptions: [{plan: gold}, {plan: free}, {plan: unlimited}]}")
	req := &adminv1.TopUpRequest{Customer: "two", Subscription: "free", Units: 500, RequestId: "r1", Reason: "goodwill"}
	for i, repeated := range []bool{false, true} {
		resp, err := quotasAt(z, apitest.Admin).TopUp(t.Context(), req)
		if err != nil || resp.Repeated != repeated || resp.Quota.GetLimit() != 10_500 || resp.Quota.GetToppedUp() != 500 || resp.Quota.GetRemaining() != 10_500 {
			t.Fatalf("top-up %d: got %v, %v, want 500 above 10000, once", i+1, resp, err)
		}
		if _, offset := resp.Quota.PeriodStart.AsTime().In(mustZone(t, "Asia/Kathmandu")).Zone(); offset != 20700 || resp.Quota.PeriodStart.AsTime().Minute() != 15 {
			t.Errorf("period starts at %s, want midnight in Kathmandu", resp.Quota.PeriodStart.AsTime())
		}
	}
	list, err := quotasAt(z, apitest.Viewer).GetQuotas(t.Context(), &adminv1.GetQuotasRequest{Customer: "two"})
	if err != nil || len(list.Quotas) != 2 || list.Quotas[0].Mode != "soft" || list.Quotas[1].Limit != 10_500 {
		t.Errorf("quotas: got %v, %v, want gold's and free's", list, err)
	}
	// What was added is listed, of this customer alone; all of it stays findable when the customer is erased.
	if n := list.GetTopUps(); len(n) != 1 || n[0].Units != 500 || n[0].Reason != "goodwill" || n[0].By != "admin" || n[0].RequestId != "r1" || n[0].Subscription != "free" {
		t.Errorf("top-ups: got %v", n)
	}
	if other, err := quotasAt(z, apitest.Viewer).GetQuotas(t.Context(), &adminv1.GetQuotasRequest{Customer: "acme"}); err != nil || len(other.TopUps) != 0 {
		t.Errorf("another customer's top-ups: got %v, %v", other.GetTopUps(), err)
	}
	for _, c := range []struct {
		token, reason string
		req           *adminv1.TopUpRequest
	}{
		{apitest.Viewer, "ROLE_INSUFFICIENT", req},
		{apitest.Admin, "REQUEST_ID_REUSED", &adminv1.TopUpRequest{Customer: "two", Subscription: "gold", Units: 500, RequestId: "r1"}},
		{apitest.Admin, "REQUEST_ID_REUSED", &adminv1.TopUpRequest{Customer: "two", Subscription: "free", Units: 501, RequestId: "r1"}},
		{apitest.Admin, "SUBSCRIPTION_REQUIRED", &adminv1.TopUpRequest{Customer: "two", Units: 1, RequestId: "r2"}},
		{apitest.Admin, "NO_QUOTA", &adminv1.TopUpRequest{Customer: "two", Subscription: "unlimited", Units: 1, RequestId: "r2"}},
		{apitest.Admin, "SUBSCRIPTION_NOT_FOUND", &adminv1.TopUpRequest{Customer: "two", Subscription: "silver", Units: 1, RequestId: "r2"}},
		{apitest.Admin, "CUSTOMER_NOT_FOUND", &adminv1.TopUpRequest{Customer: "nobody", Units: 1, RequestId: "r2"}},
	} {
		if _, err := quotasAt(z, c.token).TopUp(t.Context(), c.req); fault.ReasonOf(err) != c.reason {
			t.Errorf("top-up %v: got %v, want %s", c.req, err, c.reason)
		}
	}
	for _, bad := range []*adminv1.TopUpRequest{{Customer: "two", Units: -5, RequestId: "r2"}, {Customer: "two", Units: 5}} {
		if _, err := quotasAt(z, apitest.Admin).TopUp(t.Context(), bad); fault.KindOf(err) != fault.Invalid {
			t.Errorf("top-up %v: got %v, want it refused as invalid", bad, err)
		}
	}
}

func mustZone(t *testing.T, name string) *time.Location {
	t.Helper()
	l, err := time.LoadLocation(name)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestApply_RefusesQuotasAndZonesThatCannotBe(t *testing.T) {
	in := seeded(t, time.Second)
	z := in.Zones["emea"]
	for _, c := range []struct{ doc, reason, text string }{
		{"kind: Customer\nname: lost\nspec: {zone: emea, time_zone: Europe/Atlantis}", "TIME_ZONE_UNKNOWN", "Europe/Atlantis"},
		{"kind: Customer\nname: lost\nspec: {zone: emea, time_zone: Local}", "TIME_ZONE_UNKNOWN", "Local"},
		{"kind: Customer\nname: lost\nspec: {zone: emea, time_zone: ../etc/passwd}", "TIME_ZONE_UNKNOWN", "IANA"},
		{"kind: Plan\nname: p\nspec: {products: [commerce], quota: {units: 0, period: month}}", "QUOTA_INVALID", "sells nothing"},
		{"kind: Plan\nname: p\nspec: {products: [commerce], quota: {units: 5, period: rolling}}", "QUOTA_INVALID", "window"},
		{"kind: Plan\nname: p\nspec: {products: [commerce], quota: {units: 5, period: rolling, window: 50m}}", "QUOTA_INVALID", "multiple of 15 minutes"},
		{"kind: Plan\nname: p\nspec: {products: [commerce], quota: {units: 5, period: day, window: 30m}}", "QUOTA_INVALID", "only a rolling quota"},
		{"kind: Plan\nname: p\nspec: {products: [commerce], quota: {units: 5, mode: strict, grace_percent: 5}}", "QUOTA_INVALID", "only a soft quota"},
	} {
		_, err := resourcesAt(z, apitest.Admin).Apply(t.Context(), &adminv1.ApplyRequest{Resources: parse(t, c.doc)})
		if fault.ReasonOf(err) != c.reason || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: got %v, want %s naming %q", c.doc, err, c.reason, c.text)
		}
	}
	apply(t, z, "kind: Plan\nname: p\nspec: {products: [commerce], quota: {units: 0, period: prepaid, mode: strict}}\n---\nkind: Plan\nname: q\nspec: {products: [commerce], quota: {units: 5, period: rolling, window: 45m, grace_percent: 10}}")
	got, err := resourcesAt(z, apitest.Viewer).Get(t.Context(), &adminv1.GetRequest{Kind: "Plan", Name: "q"})
	if q := got.GetResource().GetPlan().GetQuota(); err != nil || q.GetWindow().AsDuration() != 45*time.Minute || q.GetGracePercent() != 10 || q.GetMode() != "soft" {
		t.Errorf("plan q: got %v, %v", got, err)
	}
}

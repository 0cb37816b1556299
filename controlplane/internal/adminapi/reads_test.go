package adminapi_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"bailiwick/controlplane/internal/adminapi"
	"bailiwick/controlplane/internal/adminapi/apitest"
	"bailiwick/controlplane/internal/evidence"
	"bailiwick/controlplane/internal/model"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/proto/gen/bailiwick/admin/v1/adminv1connect"
	"bailiwick/shared/fault"

	"connectrpc.com/connect"
)

// Every procedure is classified, and so is the reading that an answer is for.
func TestReads_EveryProcedureIsClassified(t *testing.T) {
	told := adminapi.Readings()
	services := adminv1.File_bailiwick_admin_v1_services_proto.Services()
	seen := map[string]bool{}
	for i := range services.Len() {
		for j := range services.Get(i).Methods().Len() {
			m := services.Get(i).Methods().Get(j)
			p := "/" + string(services.Get(i).FullName()) + "/" + string(m.Name())
			seen[p] = true
			tells, ok := told[p]
			if !ok {
				t.Errorf("%s is new: say in reads.go whose data its answer tells, so that reading it is on record", p)
			}
			// Whoever takes the name of a customer in a request either reads of him or changes him.
			if named := m.Input().Fields().ByName("customer") != nil; named && readOnly(m) && !tells {
				t.Errorf("%s asks about a customer, and is said to tell nothing of any", p)
			}
		}
	}
	for p := range told {
		if !seen[p] {
			t.Errorf("%s is classified and does not exist", p)
		}
	}
}

// reader makes calls to a zone, and tells the record that each leaves.
type reader struct {
	t     *testing.T
	z     *apitest.Zone
	token string
	index uint64
}

func (r *reader) last() (*model.Read, string) {
	r.t.Helper()
	kv, ok := r.z.Store.Local().Get(model.KeyRead)
	if !ok || kv.ModIndex <= r.index {
		return nil, ""
	}
	r.index = kv.ModIndex
	read, err := model.Decode[model.Read](kv.Key, kv.Value)
	if err != nil {
		r.t.Fatal(err)
	}
	by, _ := r.z.Store.Local().Get(model.KeyAudit)
	a, err := model.Decode[model.Audit](by.Key, by.Value)
	if err != nil || by.ModIndex != kv.ModIndex || a.Call != "read" {
		r.t.Errorf("a record of reading without whose it is in the same transaction: %+v at %d, want %d; %v", a, by.ModIndex, kv.ModIndex, err)
	}
	return &read, a.Operator
}

func TestReads_LeaveARecordBeforeTheAnswer(t *testing.T) {
	in := apitest.New(t, time.Second)
	z := in.Zones["emea"]
	apply(t, z, sample(t, "10-catalog.yaml"))
	const acme = "kind: Customer\nname: acme\nspec: {zone: emea, subscriptions: [{name: main, plan: gold}]}\n"
	apply(t, z, acme)
	key, err := keysAt(z, apitest.Admin).CreateKey(t.Context(), &adminv1.CreateKeyRequest{Customer: "acme"})
	if err != nil {
		t.Fatal(err)
	}
	z.Usage.Set("acme", adminapi.UsageReport{Rows: []adminapi.UsageRow{{Cell: time.Now(), API: "orders", Plan: "gold", Outcome: "success", Requests: 1}}})
	mask, err := evidence.MaskKey(apitest.Pepper)
	if err != nil {
		t.Fatal(err)
	}
	http := apitest.Client(apitest.Admin)
	opts := faults
	url := z.Server.URL
	resources, keys := adminv1connect.NewResourceServiceClient(http, url, opts), adminv1connect.NewKeyServiceClient(http, url, opts)
	usage, ledgers := adminv1connect.NewUsageServiceClient(http, url, opts), adminv1connect.NewLedgerServiceClient(http, url, opts)
	r := &reader{t: t, z: z}
	is := evidence.CustomerDigest(mask, "acme")
	for _, c := range []struct {
		name string
		call func(context.Context) error
		want string // procedure; "": no record
		of   string // customer's digest; "": of everyone
	}{
		{"get customer", func(ctx context.Context) error {
			_, err := resources.Get(ctx, &adminv1.GetRequest{Kind: "customers", Name: "acme"})
			return err
		}, "ResourceService.Get", is},
		{"list customers", func(ctx context.Context) error {
			_, err := resources.List(ctx, &adminv1.ListRequest{Kind: "Customer"})
			return err
		}, "ResourceService.List", ""},
		{"list plans", func(ctx context.Context) error {
			_, err := resources.List(ctx, &adminv1.ListRequest{Kind: "plans"})
			return err
		}, "", ""},
		{"diff", func(ctx context.Context) error {
			_, err := resources.Apply(ctx, &adminv1.ApplyRequest{Resources: parse(t, acme), DryRun: true})
			return err
		}, "ResourceService.Apply", is},
		{"diff of nobody", func(ctx context.Context) error {
			_, err := resources.Apply(ctx, &adminv1.ApplyRequest{Resources: parse(t, strings.ReplaceAll(acme, "acme", "new")), DryRun: true})
			return err
		}, "", ""},
		{"refused deletion", func(ctx context.Context) error {
			if _, err := resources.Delete(ctx, &adminv1.DeleteRequest{Kind: "plans", Name: "gold"}); fault.ReasonOf(err) != "IN_USE" {
				t.Errorf("deleting a plan that acme uses: %v", err)
			}
			return nil
		}, "ResourceService.Delete", ""},
		{"keys of one", func(ctx context.Context) error {
			_, err := keys.ListKeys(ctx, &adminv1.ListKeysRequest{Customer: "acme"})
			return err
		}, "KeyService.ListKeys", is},
		{"keys of all", func(ctx context.Context) error {
			_, err := keys.ListKeys(ctx, &adminv1.ListKeysRequest{})
			return err
		}, "KeyService.ListKeys", ""},
		{"usage", func(ctx context.Context) error {
			_, err := usage.QueryUsage(ctx, &adminv1.QueryUsageRequest{Customer: "acme"})
			return err
		}, "UsageService.QueryUsage", is},
		{"usage again", func(ctx context.Context) error {
			_, err := usage.QueryUsage(ctx, &adminv1.QueryUsageRequest{Customer: "acme"})
			return err
		}, "", ""},
		{"usage of nobody", func(ctx context.Context) error {
			if _, err := usage.QueryUsage(ctx, &adminv1.QueryUsageRequest{Customer: "nobody"}); fault.KindOf(err) != fault.NotFound {
				t.Errorf("usage of nobody: %v", err)
			}
			return nil
		}, "", ""},
		{"totals", func(ctx context.Context) error {
			_, err := usage.QueryTotals(ctx, &adminv1.QueryTotalsRequest{})
			return err
		}, "", ""},
		{"trace", func(ctx context.Context) error {
			_, err := usage.TraceUsage(ctx, &adminv1.TraceUsageRequest{Customer: "acme"})
			return err
		}, "UsageService.TraceUsage", is},
		{"corrections", func(ctx context.Context) error {
			_, err := ledgers.ListCorrections(ctx, &adminv1.ListCorrectionsRequest{Customer: "acme"})
			return err
		}, "LedgerService.ListCorrections", is},
		{"whose key", func(ctx context.Context) error {
			_, err := adminv1connect.NewBorderServiceClient(http, url, opts).Simulate(ctx, &adminv1.SimulateRequest{KeyId: key.Id})
			return err
		}, "BorderService.Simulate", is},
		{"export", func(ctx context.Context) error {
			s, err := customersAt(z, apitest.Admin).Export(ctx, &adminv1.ExportRequest{Customer: "acme"})
			if err != nil {
				return err
			}
			defer s.Close()
			if !s.Receive() {
				return s.Err()
			}
			if kv, _ := z.Store.Local().Get(model.KeyRead); kv.ModIndex <= r.index {
				t.Error("the first piece of an export goes out before its record is written")
			}
			for s.Receive() {
			}
			return s.Err()
		}, "CustomerService.Export", is},
	} {
		if err := c.call(t.Context()); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		got, by := r.last()
		switch {
		case got == nil && c.want != "":
			t.Errorf("%s leaves no record", c.name)
		case got != nil && (got.Procedure != c.want || got.Customer != c.of || by != "admin"):
			t.Errorf("%s: record %+v by %q, want %s of %q by admin", c.name, got, by, c.want, c.of)
		}
	}
	// Nothing is shown that nobody would know of: this call reads without a quorum, and its record cannot be written.
	z.Store.SetDown(true)
	asked := time.Now()
	forecast, err := usage.Forecast(t.Context(), &adminv1.ForecastRequest{Customer: "acme"})
	z.Store.SetDown(false)
	if fault.KindOf(err) != fault.Unavailable || !strings.Contains(err.Error(), "log") {
		t.Errorf("a forecast without a record: %v, %v", forecast, err)
	}
	if took := time.Since(asked); took > 30*time.Second {
		t.Errorf("a forecast without a record: refused after %v, want as soon as any write, though the call itself may take longer", took)
	}
	if _, err := usage.Forecast(t.Context(), &adminv1.ForecastRequest{Customer: "acme"}); err != nil {
		t.Error(err)
	}
	if got, _ := r.last(); got == nil || got.Procedure != "UsageService.Forecast" {
		t.Errorf("after that: record %+v", got)
	}
}

// withReason is an interceptor of clients that say why.
func withReason(text string) connect.ClientOption {
	return connect.WithInterceptors(connect.UnaryInterceptorFunc(func(next connect.UnaryFunc) connect.UnaryFunc {
		return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
			req.Header().Set(adminapi.ReasonHeader, text)
			return next(ctx, req)
		}
	}))
}

func TestReads_AZoneMayWantAReason(t *testing.T) {
	in := apitest.New(t, time.Second)
	z := in.Zones["emea"]
	apply(t, z, sample(t, "10-catalog.yaml"))
	apply(t, z, "kind: Customer\nname: acme\nspec: {zone: emea, subscriptions: [{name: main, plan: gold}]}\n")
	apply(t, z, "kind: Zone\nname: emea\nspec: {reads_need_reason: true}\n")
	r := &reader{t: t, z: z}
	r.last()
	list := func(kind string, opts ...connect.ClientOption) error {
		_, err := adminv1connect.NewResourceServiceClient(apitest.Client(apitest.Viewer), z.Server.URL, append(opts, faults)...).List(t.Context(), &adminv1.ListRequest{Kind: kind})
		return err
	}
	if err := list("customers"); fault.ReasonOf(err) != "REASON_REQUIRED" || !strings.Contains(err.Error(), adminapi.ReasonHeader) {
		t.Errorf("customers without a reason: %v", err)
	}
	if got, _ := r.last(); got != nil {
		t.Errorf("a refused reading leaves %+v", got)
	}
	if err := list("plans"); err != nil {
		t.Errorf("plans without a reason: %v", err)
	}
	for _, bad := range []string{strings.Repeat("x", 257), "  ", "\xff"} {
		if err := list("customers", withReason(bad)); err == nil {
			t.Errorf("reason %q is taken", bad)
		}
	}
	if err := list("customers", withReason("ticket 4711")); err != nil {
		t.Error(err)
	}
	if got, by := r.last(); got == nil || got.Reason != "ticket 4711" || by != "viewer" {
		t.Errorf("record %+v by %q, want the reason", got, by)
	}
	s, err := customersAt(z, apitest.Admin).Export(t.Context(), &adminv1.ExportRequest{Customer: "acme"})
	if err == nil {
		for s.Receive() {
			t.Error("an export without a reason brings something")
		}
		err = s.Err()
		s.Close()
	}
	if fault.ReasonOf(err) != "REASON_REQUIRED" {
		t.Errorf("an export without a reason: %v", err)
	}
	// What a change says of itself is a reason too, and a text with a bell in it is no way around.
	if _, err := quotasAt(z, apitest.Admin).TopUp(t.Context(), &adminv1.TopUpRequest{Customer: "acme", Units: 5, Reason: "good\awill", RequestId: "t1"}); err != nil {
		t.Fatal(err)
	}
	if got, _ := r.last(); got == nil || got.Reason != "good will" {
		t.Errorf("record %+v, want the top-up's reason", got)
	}
	if _, err := quotasAt(z, apitest.Admin).GetQuotas(t.Context(), &adminv1.GetQuotasRequest{Customer: "acme"}); fault.ReasonOf(err) != "REASON_REQUIRED" {
		t.Errorf("quotas without a reason: %v", err)
	}
	if err := func() error {
		_, err := resourcesAt(in.Zones["us"], apitest.Viewer).List(t.Context(), &adminv1.ListRequest{Kind: "customers"})
		return err
	}(); err != nil {
		t.Errorf("another zone wants no reason: %v", err)
	}
}

package adminapi_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"bailiwick/controlplane/internal/adminapi/apitest"
	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/shared/fault"
)

// resources are the catalog's documents as text.
func catalogText(in *apitest.Installation) string {
	var b strings.Builder
	for kv := range in.Catalog.Local().List("") {
		for _, p := range []string{"regions/", "bases/", "policies/", "apis/", "products/", "plans/"} {
			if strings.HasPrefix(kv.Key, p) {
				b.WriteString(kv.Key + "=" + string(kv.Value) + "\n")
			}
		}
	}
	return b.String()
}

func TestRollback_AppliesWhatWas(t *testing.T) {
	in := seeded(t, time.Second)
	z := in.Zones["emea"]
	calls := resourcesAt(z, apitest.Admin)
	was, at := catalogText(in), in.Catalog.Local().Revision().Index
	apply(t, z, "kind: Plan\nname: gold\nspec: {products: [commerce], rate_limit: {requests_per_second: 7}}\n---\nkind: Product\nname: extra\nspec: {apis: [orders]}\n")
	apply(t, z, "kind: Plan\nname: extra\nspec: {products: [extra]}\n")
	changed := catalogText(in)

	hist, err := calls.History(t.Context(), &adminv1.HistoryRequest{Limit: 2})
	if err != nil || len(hist.Revisions) != 2 || hist.Revisions[1].By != "admin" || hist.Revisions[1].Call != "apply" || len(hist.Revisions[1].Changes) != 2 {
		t.Fatalf("history: got %v, %v", hist, err)
	}
	diff, err := calls.Compare(t.Context(), &adminv1.CompareRequest{From: at})
	if err != nil || len(diff.Changes) != 3 {
		t.Fatalf("compare: got %v, %v", diff, err)
	}
	req := &adminv1.RollbackRequest{Revision: at, DryRun: true}
	if resp, err := calls.Rollback(t.Context(), req); err != nil || len(resp.Changes) != 3 || catalogText(in) != changed {
		t.Fatalf("dry run: got %v, %v", resp, err)
	}
	req.DryRun = false
	resp, err := calls.Rollback(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	if now := catalogText(in); now != was {
		t.Errorf("after the rollback:\n%s\nwant\n%s", now, was)
	}
	actions := map[string]string{}
	for _, c := range resp.Changes {
		actions[c.Kind+" "+c.Name] = c.Action
	}
	if actions["Plan gold"] != "updated" || actions["Plan extra"] != "deleted" || actions["Product extra"] != "deleted" {
		t.Errorf("it says %v", actions)
	}
	// It is a change like any other, and can be undone itself, one resource alone if so wanted.
	hist, err = calls.History(t.Context(), &adminv1.HistoryRequest{})
	if err != nil || !strings.HasPrefix(hist.Revisions[0].Call, "rollback/") {
		t.Fatalf("history: got %v, %v", hist, err)
	}
	before := hist.Revisions[0].Revision - 1
	if _, err := calls.Rollback(t.Context(), &adminv1.RollbackRequest{Revision: before, Only: []string{"Plan gold"}}); err != nil {
		t.Fatal(err)
	}
	if now := catalogText(in); !strings.Contains(now, `"requests_per_second":7`) || strings.Contains(now, "plans/extra") {
		t.Errorf("only plan gold was to come back: %s", now)
	}
}

func TestRollback_IsWholeOrNotAtAll(t *testing.T) {
	in := seeded(t, time.Second)
	z := in.Zones["emea"]
	calls := resourcesAt(z, apitest.Admin)
	at := in.Catalog.Local().Revision().Index
	apply(t, z, "kind: Plan\nname: extra\nspec: {products: [commerce]}\n---\nkind: Plan\nname: gold\nspec: {products: [commerce]}\n")
	apply(t, z, "kind: Customer\nname: newbie\nspec: {zone: emea, subscriptions: [{plan: extra}]}\n")
	was := in.Catalog.Dump()
	if _, err := calls.Rollback(t.Context(), &adminv1.RollbackRequest{Revision: at}); fault.ReasonOf(err) != "IN_USE" || in.Catalog.Dump() != was {
		t.Errorf("a plan with a customer was to go: got %v", err)
	}
	if _, err := calls.Rollback(t.Context(), &adminv1.RollbackRequest{Revision: 1}); fault.ReasonOf(err) != "REVISION_UNREACHED" {
		t.Errorf("before anything is remembered: got %v", err)
	}
	if _, err := calls.Rollback(t.Context(), &adminv1.RollbackRequest{Revision: at, Only: []string{"Plan free"}}); fault.ReasonOf(err) != "NOTHING_TO_ROLL_BACK" {
		t.Errorf("a plan that did not change: got %v", err)
	}
}

// What was taken once and would be refused today is not put in force again, and need not keep an operator from rolling back all
// else: it stays as it is, if he says so, and is named.
func TestRollback_LeavesOutWhatIsRefusedToday(t *testing.T) {
	in := seeded(t, time.Second)
	z := in.Zones["emea"]
	calls := resourcesAt(z, apitest.Admin)
	const cafe = "kind: API\nname: cafe\nspec: {zone: emea, hosts: [cafe.emea.example.test], routes: [{name: all, timeout: %s}], upstreams: [{region: eu-west, url: \"http://127.0.0.1:7301\"}]}\n"
	apply(t, z, fmt.Sprintf(cafe, "2s"))
	kv, ok := in.Catalog.Local().Get(model.APIKey("emea", "cafe"))
	old, err := model.Decode[model.API](kv.Key, kv.Value)
	if err != nil || !ok {
		t.Fatal(err)
	}
	old.Routes = append(old.Routes, model.Route{Name: "percent", PathPrefix: "/caf%C3%A9"})
	if _, err := in.Catalog.Txn(t.Context(), group.Txn{RequestID: "old", Ops: []group.Op{{Key: kv.Key, Value: model.Encode(old)}}}); err != nil { // as a program before this one stored it
		t.Fatal(err)
	}
	at := in.Catalog.Local().Revision().Index
	apply(t, z, "kind: Plan\nname: gold\nspec: {products: [commerce], rate_limit: {requests_per_second: 7}}\n---\n"+fmt.Sprintf(cafe, "3s"))
	good, _ := in.Catalog.Local().Get(kv.Key)
	was := in.Catalog.Dump()

	_, err = calls.Rollback(t.Context(), &adminv1.RollbackRequest{Revision: at})
	if fault.ReasonOf(err) != "PATH_INVALID" || !strings.Contains(err.Error(), "--without-refused") || !strings.Contains(err.Error(), "API cafe") || in.Catalog.Dump() != was {
		t.Errorf("as a whole: got %v", err)
	}
	for _, dry := range []bool{true, false} {
		resp, err := calls.Rollback(t.Context(), &adminv1.RollbackRequest{Revision: at, WithoutRefused: true, DryRun: dry})
		if err != nil || len(resp.Changes) != 1 || resp.Changes[0].Name != "gold" || !slices.ContainsFunc(resp.Warnings, func(w string) bool {
			return strings.Contains(w, "API cafe") && strings.Contains(w, "stays as it is now") && strings.Contains(w, "/caf%C3%A9")
		}) {
			t.Errorf("without what is refused, dry %v: got %v, %v", dry, resp, err)
		}
	}
	now, _ := in.Catalog.Local().Get(kv.Key)
	if gold, _ := in.Catalog.Local().Get(model.PrefixPlan + "gold"); strings.Contains(string(gold.Value), `"requests_per_second":7`) || string(now.Value) != string(good.Value) {
		t.Errorf("after it: plan %s, API %s, want the plan as it was and the API as it is", gold.Value, now.Value)
	}
}

// Who tightened a policy alone cannot loosen it alone by undoing that.
func TestRollback_WaitsForASecondOperator(t *testing.T) {
	in, z := guarded(t)
	calls := resourcesAt(z, apitest.Admin)
	at := in.Catalog.Local().Revision().Index
	apply(t, z, edited("{from: eu-west, to: us-east, basis: scc}", "{from: eu-west, to: us-east, basis: scc, status: closed}"))
	adopt(t, in, z)
	policy := func() string {
		kv, _ := in.Catalog.Local().Get(model.PrefixPolicy + "gdpr-emea")
		return string(kv.Value)
	}
	closed := func() bool { return strings.Count(policy(), `"status":"closed"`) == 2 }
	if !closed() {
		t.Fatalf("the tightening was not made: %s", policy())
	}
	resp, err := calls.Rollback(t.Context(), &adminv1.RollbackRequest{Revision: at})
	if err != nil || len(resp.Pending) != 1 || !closed() {
		t.Fatalf("got %v, %v, want that it waits", resp, err)
	}
	if _, err := approvalsAt(z, apitest.Second).Approve(t.Context(), &adminv1.ApproveRequest{Id: resp.Pending[0].Id}); err != nil {
		t.Fatal(err)
	}
	if closed() {
		t.Error("approved, it is not made")
	}
}

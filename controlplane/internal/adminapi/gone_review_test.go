package adminapi_test

import (
	"testing"
	"time"

	"bailiwick/controlplane/internal/adminapi/apitest"
	"bailiwick/controlplane/internal/model"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/proto/gen/bailiwick/admin/v1/adminv1connect"
)

// A customer's deletion leaves, in its own transaction, the trace by which usage that is still on its way is
// known to be the zone's; and his usage can still be asked for.
func TestDelete_CustomerLeavesATrace(t *testing.T) {
	in := apitest.New(t, time.Second)
	z := in.Zones["emea"]
	apply(t, z, sample(t, "10-catalog.yaml"))
	apply(t, z, "kind: Customer\nname: bygone\nspec: {zone: emea, subscriptions: [{name: main, plan: gold}]}\n")
	before := z.Store.Local().Revision().Index
	if _, err := resourcesAt(z, apitest.Admin).Delete(t.Context(), &adminv1.DeleteRequest{Kind: "customers", Name: "bygone"}); err != nil {
		t.Fatal(err)
	}
	snap := z.Store.Local()
	if _, ok := snap.Get(model.PrefixCustomer + "bygone"); ok {
		t.Error("the customer is still there")
	}
	kv, ok := snap.Get(model.PrefixGone + "bygone")
	if !ok {
		t.Fatal("nothing is left of the customer: usage that an edge still holds would be refused as foreign")
	}
	if g, err := model.Decode[model.Gone](kv.Key, kv.Value); err != nil || g.Name != "bygone" || g.At.IsZero() {
		t.Errorf("got %+v, %v", g, err)
	}
	if got := snap.Revision().Index; got != before+1 {
		t.Errorf("the deletion took %d transactions, want 1", got-before)
	}
	usage := adminv1connect.NewUsageServiceClient(apitest.Client(apitest.Admin), z.Server.URL, faults)
	if _, err := usage.QueryUsage(t.Context(), &adminv1.QueryUsageRequest{Customer: "bygone"}); err != nil {
		t.Errorf("usage of a customer that was deleted: %v", err)
	}
}

package adminapi_test

import (
	"context"
	"net/http/httptest"
	"testing"
	"time"

	"bailiwick/controlplane/internal/adminapi"
	"bailiwick/controlplane/internal/adminapi/apitest"
	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/proto/gen/bailiwick/admin/v1/adminv1connect"
	"bailiwick/shared/fault"
)

// behind is a store of which this node has applied only what a snapshot holds, as a follower may.
type behind struct {
	*apitest.Store
	local group.Snapshot
}

func (b behind) Local() group.Snapshot                       { return b.local }
func (b behind) WaitFor(ctx context.Context, _ uint64) error { return ctx.Err() }

// A customer subscribed through one node a moment ago; a plan that he uses must not go through another node that
// has not heard of him: his keys would be refused by every edge.
func TestDelete_APlanInUseThatThisNodeHasNotHeardOf(t *testing.T) {
	in := apitest.New(t, time.Second)
	z := in.Zones["emea"]
	apply(t, z, sample(t, "10-catalog.yaml"))
	old := z.Store.Local()
	apply(t, z, "kind: Customer\nname: fresh\nspec: {zone: emea, subscriptions: [{name: main, plan: gold}]}\n")
	h, err := adminapi.Handler(adminapi.Config{Zone: "emea", Node: "emea-2", PrimaryZone: "emea", Catalog: in.Catalog,
		Store: behind{z.Store, old}, Pepper: apitest.Pepper, Wait: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(h)
	defer server.Close()
	client := adminv1connect.NewResourceServiceClient(apitest.Client(apitest.Admin), server.URL, faults)
	if _, err := client.Delete(t.Context(), &adminv1.DeleteRequest{Kind: "plans", Name: "gold"}); fault.ReasonOf(err) != "IN_USE" {
		t.Errorf("got %v, want IN_USE", err)
	}
	if _, ok := in.Catalog.Local().Get(model.PrefixPlan + "gold"); !ok {
		t.Error("the plan is gone")
	}
}

package syncserver_test

import (
	"context"
	"testing"
	"time"

	"bailiwick/controlplane/internal/model"
	"bailiwick/controlplane/internal/syncserver"
	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"
	"bailiwick/shared/fault"
	"bailiwick/shared/table"
)

const pairOut = "gdpr/eu-west>eu-central"

// A record that does not read must not keep a closed pair in tables of a place in the log from which the
// zone's leader takes it for closed.
func TestRebuild_AViewThatCannotBeBuiltKeepsNoPair(t *testing.T) {
	w := newWorld(t, nil)
	e := w.edge("w1").connect()
	eventually(t, "the pair", func() bool { return e.at() && e.has(table.KindPair, pairOut) })
	// Built twice from two records: the view cannot be built.
	w.catalog.put("apis/twin", model.API{Name: "orders", Zone: "emea", Hosts: []string{"twin.test"}, Policy: "gdpr", Upstreams: []model.Upstream{{Region: "eu-west", URL: "http://w"}}})
	w.zone.put(model.PrefixClosure+"c", model.Closure{Name: "c", Zone: "emea", From: "eu-west", To: "eu-central"})
	eventually(t, "the newest position", e.at)
	if w.server.Stats().BuildErrors.Load() == 0 {
		t.Fatal("the view was built: the test tests nothing")
	}
	if e.has(table.KindPair, pairOut) {
		t.Error("the edge acknowledged the closure's place in the log and still holds the pair")
	}
	if !e.has(table.KindAPI, "orders") {
		t.Error("home traffic lost its API")
	}
	w.catalog.put("apis/twin", nil)
	w.zone.put(model.PrefixClosure+"c", nil)
	eventually(t, "the pair again", func() bool { return e.has(table.KindPair, pairOut) })
}

// Clocks differ between control nodes: what the leader noticed as ended is ended in every table from there on.
func TestRebuild_ANodeWhoseClockIsBehindFollowsTheLeader(t *testing.T) {
	w := newWorld(t, func(c *syncserver.Config) { c.Now = func() time.Time { return time.Now().Add(-1000 * time.Hour) } })
	e := w.edge("w1").connect()
	eventually(t, "the pair", func() bool { return e.at() && e.has(table.KindPair, pairOut) })
	w.zone.put(model.KeyPermitted, model.Permitted{Pairs: []model.PermittedPair{}})
	eventually(t, "the newest position", e.at)
	if e.has(table.KindPair, pairOut) {
		t.Error("the edge acknowledged the place where the leader noticed the pair's end and still holds it")
	}
}

type granting struct{}

func (granting) Grant(context.Context, string, string, *syncv1.RequestGrantsRequest) (*syncv1.RequestGrantsResponse, error) {
	return &syncv1.RequestGrantsResponse{}, nil
}

// A node that has less of the catalog than the edge cannot call it withdrawn: the edge would drop its grants.
func TestRequestGrants_ALaggingCatalogWithdrawsNobody(t *testing.T) {
	w := newWorld(t, func(c *syncserver.Config) { c.Granter = granting{} })
	c := w.catalog.Local().Revision()
	for _, x := range []struct {
		index  uint64
		reason string
	}{{c.Index + 1, "CATALOG_BEHIND"}, {c.Index, "EDGE_WITHDRAWN"}} {
		_, err := w.client("emea/eu-west/edge/new").RequestGrants(context.Background(), &syncv1.RequestGrantsRequest{Catalog: &syncv1.Position{Epoch: c.Epoch, Index: x.index}})
		if fault.ReasonOf(err) != x.reason {
			t.Errorf("the edge has seen catalog %d, the node %d: reason %q, want %s", x.index, c.Index, fault.ReasonOf(err), x.reason)
		}
	}
}

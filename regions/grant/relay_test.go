package grant_test

import (
	"slices"
	"testing"
	"time"

	"bailiwick/regions"
	"bailiwick/regions/grant"
	"bailiwick/shared/revision"
)

// paper is a table written down: pairs as "policy:from>to", APIs as "zone/api" with their policies.
type paper struct {
	at    grant.At
	pairs []string
	apis  map[string]string
}

func (p paper) At() grant.At { return p.at }
func (p paper) Permits(policy, from, to string) bool {
	return slices.Contains(p.pairs, policy+":"+from+">"+to)
}
func (p paper) PolicyOf(zone, api string) (string, bool) {
	policy, ok := p.apis[zone+"/"+api]
	return policy, ok
}

func epochs(catalog, store uint64) grant.At {
	return grant.At{Catalog: revision.Revision{Epoch: catalog, Index: 5}, Store: revision.Revision{Epoch: store, Index: 5}}
}

func written() paper {
	return paper{at: epochs(2, 2), pairs: []string{"gdpr:west>central"}, apis: map[string]string{"emea/orders": "gdpr"}}
}

var (
	asked = time.Unix(1000, 0)
	trip  = grant.Flight{Zone: "emea", API: "orders", Policy: "gdpr", From: "west", To: "central", Peer: "central-1"}
)

func given() grant.Grant {
	return grant.Grant{ID: "g", Zone: "emea", Process: grant.Process{Edge: "west-1"}, From: "west", To: "central", Policies: []string{"gdpr"}, Catalog: epochs(2, 2).Catalog, Store: epochs(2, 2).Store,
		TTL: 30 * time.Second, OfflineTTL: time.Hour, Peers: []grant.Peer{{Edge: "central-1"}, {Edge: "central-2"}}, Asked: asked}
}

// Each line breaks one thing that a relay needs at the sender, and nothing else.
func TestHeld_LeaveAndKeep(t *testing.T) {
	for _, x := range []struct {
		name  string
		spoil func(p *paper, g *grant.Grant, f *grant.Flight, now *time.Time)
		leave string
		kept  bool
	}{
		{"nothing", func(*paper, *grant.Grant, *grant.Flight, *time.Time) {}, "", true},
		{"no such API", func(p *paper, _ *grant.Grant, _ *grant.Flight, _ *time.Time) { p.apis = nil }, grant.NoAPI, false},
		{"API under another policy", func(p *paper, _ *grant.Grant, _ *grant.Flight, _ *time.Time) {
			p.apis["emea/orders"] = "wide"
			p.pairs = append(p.pairs, "wide:west>central")
		}, grant.NoAPI, false},
		{"pair closed", func(p *paper, _ *grant.Grant, _ *grant.Flight, _ *time.Time) { p.pairs = []string{"gdpr:central>west"} }, grant.NoPair, false},
		{"pair of another policy", func(p *paper, _ *grant.Grant, _ *grant.Flight, _ *time.Time) { p.pairs = []string{"wide:west>central"} }, grant.NoPair, false},
		{"grant for another target", func(_ *paper, g *grant.Grant, _ *grant.Flight, _ *time.Time) { g.To = "south" }, grant.NoGrant, false},
		{"grant for another policy", func(_ *paper, g *grant.Grant, _ *grant.Flight, _ *time.Time) { g.Policies = []string{"wide"} }, grant.NoGrant, false},
		{"grant over", func(_ *paper, _ *grant.Grant, _ *grant.Flight, now *time.Time) { *now = asked.Add(30 * time.Second) }, grant.NoGrant, false},
		{"catalog recovered", func(p *paper, _ *grant.Grant, _ *grant.Flight, _ *time.Time) { p.at = epochs(3, 2) }, grant.NoGrant, false},
		{"store recovered", func(p *paper, _ *grant.Grant, _ *grant.Flight, _ *time.Time) { p.at = epochs(2, 3) }, grant.NoGrant, false},
		{"peer removed", func(_ *paper, g *grant.Grant, _ *grant.Flight, _ *time.Time) { g.Peers = g.Peers[1:] }, "", false},
	} {
		p, g, f, now := written(), given(), trip, asked.Add(29*time.Second)
		x.spoil(&p, &g, &f, &now)
		h := (&grant.Held{}).Step(grant.Given, []*grant.Grant{&g}, grant.Take{}, asked)
		got, rule := h.Leave(f, p, now)
		if rule != x.leave || (got == nil) == (rule == "") {
			t.Errorf("%s: leave says %q with grant %v, want %q", x.name, rule, got, x.leave)
		}
		if kept := h.Keep(f, p, now); kept != x.kept {
			t.Errorf("%s: kept %v, want %v", x.name, kept, x.kept)
		}
	}
}

// The receiver's half, the same way.
func TestAdmit(t *testing.T) {
	for _, x := range []struct {
		name  string
		spoil func(p *paper, g *grant.Grant, peer *grant.Party, api *string)
		rule  string
	}{
		{"nothing", func(*paper, *grant.Grant, *grant.Party, *string) {}, ""},
		{"grant of another zone than the peer's", func(_ *paper, _ *grant.Grant, peer *grant.Party, _ *string) { peer.Zone = "us" }, grant.Zone},
		{"another edge's grant", func(_ *paper, _ *grant.Grant, peer *grant.Party, _ *string) { peer.Edge = "west-2" }, grant.Edge},
		{"from another region", func(_ *paper, _ *grant.Grant, peer *grant.Party, _ *string) { peer.Region = "south" }, grant.From},
		{"to another region", func(_ *paper, g *grant.Grant, _ *grant.Party, _ *string) { g.To = "south" }, grant.To},
		{"before the catalog's recovery", func(p *paper, _ *grant.Grant, _ *grant.Party, _ *string) { p.at = epochs(3, 2) }, grant.Epoch},
		{"before the store's recovery", func(p *paper, _ *grant.Grant, _ *grant.Party, _ *string) { p.at = epochs(2, 3) }, grant.Epoch},
		{"unknown API", func(_ *paper, _ *grant.Grant, _ *grant.Party, api *string) { *api = "reports" }, grant.NoAPI},
		{"API under a policy that the grant does not cover", func(p *paper, _ *grant.Grant, _ *grant.Party, _ *string) {
			p.apis["emea/orders"] = "wide"
			p.pairs = append(p.pairs, "wide:west>central")
		}, grant.Policy},
		{"pair closed here", func(p *paper, _ *grant.Grant, _ *grant.Party, _ *string) {
			p.pairs = []string{"gdpr:central>west", "wide:west>central"}
		}, grant.NoPair},
	} {
		p, g, peer, api := written(), given(), grant.Party{Zone: "emea", Region: "west", Process: grant.Process{Edge: "west-1"}}, "orders"
		x.spoil(&p, &g, &peer, &api)
		policy, rule := grant.Admit(&g, api, peer, grant.Party{Zone: "emea", Region: "central", Process: grant.Process{Edge: "central-1"}}, p)
		if rule != x.rule || (policy == "gdpr") != (rule == "") {
			t.Errorf("%s: admitted under %q, refused by %q, want %q", x.name, policy, rule, x.rule)
		}
	}
}

func TestGrant_Mine(t *testing.T) {
	for _, x := range []struct {
		name               string
		zone, edge, region string
		at                 grant.At
		reason             string
	}{
		{"it is", "emea", "west-1", "west", epochs(2, 2), ""},
		{"of a later epoch than the table", "emea", "west-1", "west", epochs(1, 1), ""},
		{"another zone's", "us", "west-1", "west", epochs(2, 2), grant.Zone},
		{"another edge's", "emea", "west-2", "west", epochs(2, 2), grant.Edge},
		{"another region's", "emea", "west-1", "south", epochs(2, 2), grant.From},
		{"before the catalog's recovery", "emea", "west-1", "west", epochs(3, 2), grant.Epoch},
		{"before the store's recovery", "emea", "west-1", "west", epochs(2, 3), grant.Epoch},
	} {
		g := given()
		if got := g.Mine(grant.Party{Zone: x.zone, Region: x.region, Process: grant.Process{Edge: x.edge}}, x.at); got != x.reason {
			t.Errorf("%s: reason %q, want %q", x.name, got, x.reason)
		}
	}
}

func TestAt_Behind(t *testing.T) {
	at := func(ce, ci, se, si uint64) grant.At {
		return grant.At{Catalog: revision.Revision{Epoch: ce, Index: ci}, Store: revision.Revision{Epoch: se, Index: si}}
	}
	floor := at(2, 5, 2, 5)
	for _, x := range []struct {
		to  grant.At
		log string
	}{{floor, ""}, {at(2, 6, 2, 6), ""}, {at(3, 1, 3, 1), ""}, {at(2, 4, 2, 6), "catalog"}, {at(1, 9, 2, 6), "catalog"}, {at(2, 6, 2, 4), "zone"}, {at(2, 6, 1, 9), "zone"}} {
		if got := x.to.Behind(floor); got != x.log {
			t.Errorf("%v under a floor of %v: behind in %q, want %q", x.to, floor, got, x.log)
		}
	}
}

// One grant a target; unasked it lives as long as the strictest of its policies allows, and the record says so; what
// was closed while it was logged is not in it, policy by policy.
func TestOffers(t *testing.T) {
	permitted := []regions.Permitted{
		{Policy: "gdpr", From: "west", To: "central", OfflineGrant: time.Hour},
		{Policy: "gdpr", From: "central", To: "west", OfflineGrant: time.Hour},
		{Policy: "gdpr", From: "west", To: "empty", OfflineGrant: time.Hour},
		{Policy: "wide", From: "west", To: "central", OfflineGrant: time.Minute},
		{Policy: "wide", From: "west", To: "us", OfflineGrant: 0},
	}
	offers := grant.Offers(permitted, "west", 30*time.Second, func(to string) bool { return to != "empty" })
	if len(offers) != 2 || offers[0].To != "central" || !slices.Equal(offers[0].Policies, []string{"gdpr", "wide"}) || offers[0].OfflineTTL != time.Minute ||
		offers[1].To != "us" || offers[1].OfflineTTL != 30*time.Second || offers[1].TTL != 30*time.Second {
		t.Fatalf("offers are %+v", offers)
	}
	if lives := grant.Lives(offers); !slices.Equal(lives, []grant.Life{{To: "central", Lasts: time.Minute}, {To: "us", Lasts: 30 * time.Second}}) {
		t.Errorf("lives are %+v", lives)
	}
	still := []regions.Permitted{{Policy: "wide", From: "west", To: "central"}, {Policy: "gdpr", From: "central", To: "west"}, {Policy: "wide", From: "south", To: "us"}}
	if !offers[0].Confirm("west", still) || !slices.Equal(offers[0].Policies, []string{"wide"}) {
		t.Errorf("confirmed under %v, want wide alone", offers[0].Policies)
	}
	if offers[1].Confirm("west", still) {
		t.Errorf("confirmed under %v although nothing of it is permitted still", offers[1].Policies)
	}
}

// Every edge of a region must have acknowledged, or have lost its grants: one of two is not enough.
func TestBook_OneOfTwoIsNotEnough(t *testing.T) {
	ground := grant.Ground{Own: func(string) (bool, bool) { return true, true },
		Members: func(region string) []string { return []string{region + "-1", region + "-2"} }}
	shut := grant.Tightening{From: "west", To: "central", Epoch: 1, Barrier: 9}
	for _, half := range []string{"senders", "receivers"} {
		region := map[string]string{"senders": "west", "receivers": "central"}[half]
		b := grant.Open(grant.Past{Edges: map[string]string{"west-1": "west", "west-2": "west"}, Rules: []grant.Life{{To: "central", Lasts: time.Hour}}}, 30*time.Second, asked)
		hear := func(edge string, after time.Duration) string {
			now := asked.Add(after)
			b.Hear(grant.Word{Process: grant.Process{Edge: edge}, Region: region, By: "emea-1", Connected: true, Epoch: 1, Index: 9}, now)
			by, _ := b.InForce(shut, ground, now)
			return by
		}
		for i, want := range []string{"", "", "", "", half} {
			edge := region + "-1"
			if i >= 3 {
				edge = region + "-2"
			}
			if by := hear(edge, time.Duration(i)*time.Second); by != want {
				t.Errorf("%s after %d s: in force by %q, want %q", half, i, by, want)
			}
		}
	}
}

// A question that is still under way is no silence: until it is known to have no answer the ordinary lifetime counts.
func TestHeld_TheOfflineLifetimeCountsInSilenceAlone(t *testing.T) {
	g := given()
	h := (&grant.Held{}).Step(grant.Given, []*grant.Grant{&g}, grant.Take{}, asked)
	end := asked.Add(g.TTL)
	if h.Live("gdpr", "central", epochs(2, 2), end.Add(-1)) == nil {
		t.Error("the grant is over before its end")
	}
	if h.Live("gdpr", "central", epochs(2, 2), end) != nil {
		t.Error("the grant outlives its ordinary lifetime while nobody knows that the control plane is silent")
	}
	if h.Step(grant.Silent, nil, grant.Take{}, end).Live("gdpr", "central", epochs(2, 2), end) == nil {
		t.Error("in silence the grant has no offline lifetime")
	}
	// Ends says the same instants beforehand.
	for name, held := range map[string]*grant.Held{"while answered": h, "in silence": h.Step(grant.Silent, nil, grant.Take{}, asked)} {
		end := held.Ends(&g)
		if held.Live("gdpr", "central", epochs(2, 2), end.Add(-1)) == nil || held.Live("gdpr", "central", epochs(2, 2), end) != nil {
			t.Errorf("%s: the grant does not end at %v, of which Ends speaks", name, end.Sub(asked))
		}
	}
}

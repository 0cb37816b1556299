package view_test

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
	"bailiwick/controlplane/internal/view"
	"bailiwick/shared/fault"
	"bailiwick/shared/revision"
	"bailiwick/shared/table"
)

// snap is a fake snapshot.
type snap map[string]any

func (s snap) Revision() group.Revision { return group.Revision{Epoch: 1, Index: uint64(len(s))} }
func (s snap) Len() int                 { return len(s) }
func (s snap) Get(key string) (group.KV, bool) {
	v, ok := s[key]
	return group.KV{Key: key, Value: model.Encode(v), ModIndex: 7}, ok
}
func (s snap) List(prefix string) iter.Seq[group.KV] {
	return func(yield func(group.KV) bool) {
		for _, k := range slices.Sorted(maps.Keys(s)) {
			if kv, _ := s.Get(k); strings.HasPrefix(k, prefix) && !yield(kv) {
				return
			}
		}
	}
}

var now = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func world() (catalog, zone snap) {
	regions := []model.Region{
		{Name: "eu-west", Zone: "emea"}, {Name: "eu-central", Zone: "emea"}, {Name: "eu-north", Zone: "emea", ControlOnly: true},
		{Name: "uk-south", Zone: "uk"}, {Name: "us-east", Zone: "us"},
	}
	bases := []model.LegalBasis{{Name: "gdpr", Kind: "same-law", Status: "active"}, {Name: "uk-adequacy", Kind: "adequacy", Status: "active", Expires: "2026-12-27"}}
	policies := []model.Policy{
		{Name: "gdpr-emea", Zone: "emea", WithinZone: &model.WithinZone{Basis: "gdpr"}, Pairs: []model.Pair{{From: "eu-west", To: "uk-south", Basis: "uk-adequacy", Priority: 5}}},
		{Name: "uk", Zone: "uk", Pairs: []model.Pair{{From: "uk-south", To: "eu-west", Basis: "uk-adequacy"}}},
	}
	catalog = snap{}
	for _, r := range regions {
		catalog[model.PrefixRegion+r.Name] = r
	}
	for _, z := range []string{"emea", "uk", "us"} {
		catalog[model.PrefixZone+z] = model.Zone{Name: z, SigningKey: []byte(fmt.Sprintf("%032s", z))}
	}
	for _, n := range []model.Node{
		{Name: "w1", Kind: "edge", Region: "eu-west", Zone: "emea"}, {Name: "c1", Kind: "edge", Region: "eu-central", Zone: "emea"},
		{Name: "uk1", Kind: "edge", Region: "uk-south", Zone: "uk"}, {Name: "us1", Kind: "edge", Region: "us-east", Zone: "us"},
		{Name: "emea-2", Kind: "control", Region: "eu-central", Zone: "emea"},
	} {
		catalog[model.PrefixNode+n.Name] = n
	}
	up := func(regions ...string) (out []model.Upstream) {
		for _, r := range regions {
			out = append(out, model.Upstream{Region: r, URL: "http://" + r})
		}
		return out
	}
	for _, a := range []model.API{
		{Name: "orders", Zone: "emea", Hosts: []string{"orders.emea.test"}, Policy: "gdpr-emea", Upstreams: up("eu-west", "eu-central", "uk-south")},
		{Name: "far", Zone: "emea", Hosts: []string{"far.emea.test"}, Upstreams: up("uk-south")},
		{Name: "orders", Zone: "uk", Hosts: []string{"Orders.uk.test"}, Policy: "uk", Upstreams: up("uk-south", "eu-west")},
		{Name: "secret", Zone: "uk", Hosts: []string{"secret.uk.test"}, Policy: "none", Upstreams: up("uk-south", "eu-west")},
		{Name: "orders", Zone: "us", Hosts: []string{"orders.us.test"}, Upstreams: up("us-east")},
	} {
		catalog[model.PrefixAPI+a.Zone+"."+a.Name] = a
	}
	catalog[model.PrefixProduct+"core"] = model.Product{Name: "core", APIs: []string{"orders", "unknown"}}
	catalog[model.PrefixProduct+"more"] = model.Product{Name: "more", APIs: []string{"orders", "far"}}
	catalog[model.PrefixPlan+"gold"] = model.Plan{Name: "gold", Products: []string{"core", "more"}, RateLimit: &model.RateLimit{RequestsPerSecond: 5}, Quota: &model.Quota{Units: 9}}
	zone = snap{
		model.KeyAdopted: model.Adopted{Regions: regions, Bases: bases, Policies: policies},
		"customers/acme": model.Customer{Name: "acme", Zone: "emea", Subscriptions: []model.Subscription{{Name: "main", Plan: "gold"}}},
		"keys/k1":        key("k1", "acme", "active"), "keys/k2": key("k2", "acme", "revoked"), "keys/k3": key("k3", "nobody", "active"),
	}
	return catalog, zone
}

func key(id, customer, status string) model.Key {
	return model.Key{ID: id, DigestHex: hex.EncodeToString(fmt.Appendf(nil, "%032s", id)), Customer: customer, Subscription: "main", Plan: "old", Status: status}
}

func edge(name, region, zone string) model.Node {
	return model.Node{Name: name, Kind: "edge", Region: region, Zone: zone}
}

func ids(v *view.View) (out []string) {
	for k := range v.Objects {
		out = append(out, k.Kind.String()+" "+k.ID)
	}
	slices.Sort(out)
	return out
}

func build(t *testing.T, catalog, zone snap, e model.Node, at time.Time) *view.View {
	t.Helper()
	v, err := view.Build(catalog, zone, e, table.Current, at)
	if err != nil {
		t.Fatal(err)
	}
	var c, z revision.Sum
	for _, o := range v.Objects {
		if o.Kind.Scope() == table.ScopeZone {
			z = z.Add(o.Sum())
		} else {
			c = c.Add(o.Sum())
		}
	}
	if c != v.CatalogSum || z != v.PairSum {
		t.Errorf("sums: got %v %v, want %v %v", v.CatalogSum, v.PairSum, c, z)
	}
	return v
}

func get[T any](t *testing.T, v *view.View, kind table.Kind, id string) (out T) {
	t.Helper()
	if err := table.Decode(v.Objects[table.ObjectKey{Kind: kind, ID: id}], &out); err != nil {
		t.Fatalf("%s %s: %v", kind, id, err)
	}
	return out
}

func TestBuild_HoldsWhatTheRegionMayHoldAndNoMore(t *testing.T) {
	catalog, zone := world()
	v := build(t, catalog, zone, edge("w1", "eu-west", "emea"), now)
	want := []string{
		"api orders", "api uk/orders", "directory uk/orders", "directory uk/secret", "directory us/orders", "doors c1", "doors w1",
		"node c1", "node uk1", "pair gdpr-emea/eu-central>eu-west", "pair gdpr-emea/eu-west>eu-central", "pair gdpr-emea/eu-west>uk-south", "pair uk/uk-south>eu-west",
		"plan gold", "region eu-central", "region eu-west", "settings settings", "zone-key emea", "zone-key uk",
	}
	if got := ids(v); !slices.Equal(got, want) {
		t.Errorf("got %v\nwant %v", got, want)
	}
	own := get[table.API](t, v, table.KindAPI, "orders")
	if !slices.Equal(own.Targets, []string{"http://eu-west"}) || !slices.Equal(own.Regions, []string{"eu-central", "eu-west", "uk-south"}) || own.Foreign {
		t.Errorf("own api: got %+v", own)
	}
	foreign := get[table.API](t, v, table.KindAPI, "uk/orders")
	if !foreign.Foreign || len(foreign.Hosts) != 0 || !slices.Equal(foreign.Targets, []string{"http://eu-west"}) || !slices.Equal(foreign.Regions, []string{"eu-west"}) {
		t.Errorf("foreign api: got %+v", foreign)
	}
	plan := get[table.Plan](t, v, table.KindPlan, "gold")
	if !maps.Equal(plan.APIs, map[string]string{"orders": "core", "far": "more"}) || plan.Burst != 5 || plan.Rev != 7 || plan.QuotaMode != "soft" || plan.QuotaPeriod != "month" {
		t.Errorf("plan: got %+v", plan)
	}
	pair := get[table.Pair](t, v, table.KindPair, "gdpr-emea/eu-west>uk-south")
	if pair.FromZone != "emea" || pair.ToZone != "uk" || pair.Priority != 5 || pair.OfflineGrant != 0 || !slices.Equal(pair.Classes, []string{"request"}) {
		t.Errorf("pair: got %+v", pair)
	}
	if hosts := get[table.Directory](t, v, table.KindDirectory, "uk/orders").Hosts; !slices.Equal(hosts, []string{"orders.uk.test"}) {
		t.Errorf("directory: got %v", hosts)
	}
	if wantAt := time.Date(2026, 12, 28, 0, 0, 0, 0, time.UTC); !v.NextChange.Equal(wantAt) {
		t.Errorf("next change: got %v, want %v", v.NextChange, wantAt)
	}
	all, _ := json.Marshal(v)
	if strings.Contains(string(all), "us-east") || strings.Contains(string(all), "http://uk-south") {
		t.Error("the view names an upstream or region it has no business with")
	}
}

func TestBuild_ClosuresExpiryAndAdoptionClose(t *testing.T) {
	e := edge("w1", "eu-west", "emea")
	check := func(name string, v *view.View, gone ...string) {
		t.Helper()
		for _, id := range gone {
			if slices.Contains(ids(v), id) {
				t.Errorf("%s: view still has %s", name, id)
			}
		}
	}
	uk := []string{"pair uk/uk-south>eu-west", "api uk/orders", "node uk1", "zone-key uk"}
	catalog, zone := world()
	before := build(t, catalog, zone, e, now)
	zone["closures/x"] = model.Closure{Name: "x", Zone: "emea", From: "uk-south", To: "eu-west"}
	after := build(t, catalog, zone, e, now)
	check("closure of a foreign zone's pair", after, uk...)
	if !slices.Contains(ids(after), "pair gdpr-emea/eu-west>uk-south") {
		t.Error("the closure closed the other direction too")
	}
	if got := view.Diff(before, after); len(got) != 4 {
		t.Errorf("diff: got %v, want the four objects that went", got)
	}
	if got := view.Diff(after, before); len(got) != 4 {
		t.Errorf("diff back: got %v, want four", got)
	}

	catalog, zone = world()
	zone["closures/x"] = model.Closure{Name: "x", Zone: "emea", Basis: "uk-adequacy"}
	check("closure of a basis", build(t, catalog, zone, e, now), append(uk, "pair gdpr-emea/eu-west>uk-south")...)

	catalog, zone = world()
	end := build(t, catalog, zone, e, now).NextChange
	if !slices.Contains(ids(build(t, catalog, zone, e, end.Add(-1))), uk[0]) {
		t.Error("the pair is gone before its basis ends")
	}
	v := build(t, catalog, zone, e, end)
	check("expiry", v, append(uk, "pair gdpr-emea/eu-west>uk-south")...)
	if !v.NextChange.IsZero() {
		t.Errorf("next change after the last expiry: got %v, want none", v.NextChange)
	}

	catalog, zone = world()
	delete(zone, model.KeyAdopted)
	check("nothing adopted", build(t, catalog, zone, e, now), append(uk, "pair gdpr-emea/eu-west>eu-central", "node c1")...)

	catalog, zone = world()
	delete(catalog, model.PrefixNode+"uk1")
	check("withdrawn sender", build(t, catalog, zone, e, now), "node uk1")
}

func TestBuild_Refuses(t *testing.T) {
	catalog, zone := world()
	for _, c := range []struct {
		name string
		e    model.Node
		kind fault.Kind
	}{
		{"control-only", edge("n", "eu-north", "emea"), fault.Denied}, {"unknown region", edge("n", "mars", "emea"), fault.Denied},
		{"other zone", edge("n", "us-east", "emea"), fault.Denied}, {"no edge", model.Node{Name: "n", Kind: "control", Region: "eu-west", Zone: "emea"}, fault.Denied},
	} {
		if _, err := view.Build(catalog, zone, c.e, table.Current, now); err == nil || fault.KindOf(err) != c.kind {
			t.Errorf("%s: got %v, want kind %v", c.name, err, c.kind)
		}
	}
	catalog["plans/bad"] = map[string]any{"name": "bad", "a_field_of_tomorrow": 1}
	if _, err := view.Build(catalog, zone, edge("w1", "eu-west", "emea"), table.Current, now); fault.KindOf(err) != fault.Internal {
		t.Errorf("malformed record: got %v, want an internal fault", err)
	}
}

func event(k string, v any) group.Event {
	if v == nil {
		return group.Event{Delete: true, KV: group.KV{Key: k}}
	}
	return group.Event{KV: group.KV{Key: k, Value: model.Encode(v)}}
}

func TestKeys_FollowEventsLikeABuildFromScratch(t *testing.T) {
	_, zone := world()
	k := view.NewKeys(zone)
	if k.Len() != 1 {
		t.Fatalf("got %d keys, want the active one of a known customer", k.Len())
	}
	o, _ := k.Get("k1")
	var got table.Key
	if err := table.Decode(o, &got); err != nil || got.Plan != "gold" || got.Customer != "acme" || got.Suspended {
		t.Errorf("got %+v %v, want plan gold of the subscription", got, err)
	}
	bound := key("k4", "acme", "active")
	bound.Scopes, bound.AllowFrom = []string{"orders:read", "orders:write"}, []string{"192.0.2.0/24"}
	labelled := bound
	labelled.Labels = []string{"team=billing"}
	steps := []struct {
		key     string
		value   any
		changed int
	}{
		{"keys/k4", key("k4", "acme", "active"), 1},
		{"keys/k4", key("k4", "acme", "active"), 0},
		{"keys/k4", bound, 1},
		{"keys/k4", bound, 0},
		{"keys/k4", labelled, 0}, // no edge gets a label
		{"customers/acme", model.Customer{Name: "acme", Status: "suspended", Subscriptions: []model.Subscription{{Name: "main", Plan: "gold"}}}, 2},
		{"customers/acme", model.Customer{Name: "acme", Status: "suspended", DisplayName: "x", Labels: []string{"team=billing"}, Subscriptions: []model.Subscription{{Name: "main", Plan: "gold"}}}, 0},
		{"customers/nobody", model.Customer{Name: "nobody"}, 1},
		{"keyends/k4", model.KeyEnd{ID: "k4", At: time.Unix(5000, 0)}, 1},
		{"keyends/k4", model.KeyEnd{ID: "k4", At: time.Unix(5000, 0), ReplacedBy: "k7"}, 0},
		{"keyends/k4", map[string]string{"tomorrow": "x"}, 1}, // a key that is to end, nobody knows when, has ended
		{"keyends/k4", nil, 1},
		{"keyends/nobody", model.KeyEnd{ID: "nobody", At: time.Unix(5000, 0)}, 0},
		{"keys/k1", key("k1", "acme", "revoked"), 1},
		{"customers/nobody", nil, 1},
		{"customers/nobody", model.Customer{Name: "nobody"}, 1},
		{"keys/k3", nil, 1},
		{"keys/k5", model.Key{ID: "k5", DigestHex: "short", Customer: "acme", Plan: "p", Status: "active"}, 0},
		{"keys/k6", map[string]string{"id": "k6", "tomorrow": "x"}, 0},
		{"grants/w1", model.GrantRecord{}, 0},
	}
	for i, s := range steps {
		if s.value == nil {
			delete(zone, s.key)
		} else {
			zone[s.key] = s.value
		}
		if got := k.Update([]group.Event{event(s.key, s.value)}); len(got) != s.changed {
			t.Errorf("step %d (%s): got %v changed, want %d", i, s.key, got, s.changed)
		}
		if fresh := view.NewKeys(zone); fresh.Sum() != k.Sum() || fresh.Len() != k.Len() || len(view.DiffKeys(fresh, k)) != 0 {
			t.Errorf("step %d (%s): got %d keys, built from scratch %d, or other sums", i, s.key, k.Len(), fresh.Len())
		}
		if o, ok := k.Get("k4"); ok && i >= 2 {
			if table.Decode(o, &got); got.Scopes != "orders:read orders:write" || got.From != "192.0.2.0/24" {
				t.Errorf("step %d (%s): k4 is bound to %q from %q, want what its record says", i, s.key, got.Scopes, got.From)
			}
		}
	}
	if k.Malformed() != 3 {
		t.Errorf("malformed: got %d, want 3", k.Malformed())
	}
	if got := view.DiffKeys(nil, k); len(got) != k.Len() {
		t.Errorf("diff from nothing: got %d, want %d", len(got), k.Len())
	}
}

// Where clients reach an edge is known to the edges of its zone and to nobody else: what an edge does not hold
// it cannot answer.
func TestBuild_DoorsStayInTheirZone(t *testing.T) {
	catalog, zone := world()
	for name, region := range map[string]string{"w1": "eu-west", "c1": "eu-central", "uk1": "uk-south"} {
		n := catalog[model.PrefixNode+name].(model.Node)
		n.Doors = &model.Doors{Addresses: []string{"192.0.2.1"}, HTTPSPort: 443, DNS: true}
		catalog[model.PrefixNode+name] = n
		r := catalog[model.PrefixRegion+region].(model.Region)
		r.ClientSubnets, r.Drain = []string{"198.51.100.0/24"}, "a test"
		catalog[model.PrefixRegion+region] = r
	}
	v, err := view.Build(catalog, zone, model.Node{Name: "w1", Kind: "edge", Region: "eu-west", Zone: "emea"}, table.Current, now)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for key, o := range v.Objects {
		switch key.Kind {
		case table.KindDoors, table.KindRegion:
			got = append(got, key.Kind.String()+" "+key.ID+" "+string(o.Data))
		}
	}
	slices.Sort(got)
	want := []string{
		`doors c1 {"edge":"c1","region":"eu-central","zone":"emea","addresses":["192.0.2.1"],"https_port":443,"dns":true}`,
		`doors w1 {"edge":"w1","region":"eu-west","zone":"emea","addresses":["192.0.2.1"],"https_port":443,"dns":true}`,
		`region eu-central {"name":"eu-central","zone":"emea","clients":["198.51.100.0/24"],"drain":"a test"}`,
		`region eu-west {"name":"eu-west","zone":"emea","clients":["198.51.100.0/24"],"drain":"a test"}`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// What a zone drains reaches its edges by its own store, of its own serving regions alone.
func TestBuild_ZoneDrains(t *testing.T) {
	catalog, zone := world()
	for _, region := range []string{"eu-west", "eu-north", "us-east", "nowhere"} { // serving, control only, another zone's, gone
		zone[model.PrefixDrain+region] = model.Drain{Name: region, Zone: "emea", Reason: "work"}
	}
	v := build(t, catalog, zone, model.Node{Name: "w1", Kind: "edge", Region: "eu-west", Zone: "emea"}, now)
	var got []string
	for key, o := range v.Objects {
		if key.Kind == table.KindDrain {
			got = append(got, key.ID+" "+string(o.Data))
		}
	}
	if want := []string{`eu-west {"region":"eu-west","reason":"work"}`}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if !view.Depends(model.PrefixDrain + "eu-west") {
		t.Error("edges are not told of a drain")
	}
}

// What a zone purges and what it found reach the edges that may keep answers of the API and have upstreams of it.
func TestBuild_PurgesAndTargets(t *testing.T) {
	catalog, zone := world()
	var own string
	for key, v := range catalog {
		if a, ok := v.(model.API); ok && a.Zone == "emea" && slices.ContainsFunc(a.Upstreams, func(u model.Upstream) bool { return u.Region == "eu-west" }) {
			a.Dispatch.Discovery = "etcd"
			catalog[key], own = a, a.Name
			break
		}
	}
	for _, api := range []string{own, "nowhere"} {
		zone[model.PrefixPurge+api] = model.Purges{API: api, Seq: 4, All: 2, Of: []model.Purge{{Seq: 4, What: "x", Soft: true, At: now}}}
		zone[model.PrefixTargets+api] = model.Targets{API: api, Of: []model.DiscoveredURLs{{Region: "eu-central", URLs: []string{"http://c"}}, {Region: "eu-west", URLs: []string{"http://w"}}}}
	}
	v := build(t, catalog, zone, model.Node{Name: "w1", Kind: "edge", Region: "eu-west", Zone: "emea"}, now)
	got := map[table.Kind]string{}
	for key, o := range v.Objects {
		if key.Kind == table.KindPurges || key.Kind == table.KindTargets {
			got[key.Kind] += string(o.Data)
		}
	}
	if want := `{"api":"` + own + `","all":2,"of":[{"seq":4,"what":"x","soft":true}]}`; got[table.KindPurges] != want {
		t.Errorf("purges: got %s, want %s", got[table.KindPurges], want)
	}
	if want := `{"api":"` + own + `","urls":["http://w"]}`; got[table.KindTargets] != want {
		t.Errorf("targets: got %s, want %s", got[table.KindTargets], want)
	}
	if !view.Depends(model.PrefixPurge+own) || !view.Depends(model.PrefixTargets+own) {
		t.Error("edges are not told of either")
	}
}

// Upstreams that are found speak what those of the region do that are named, also drained ones; where these differ, HTTP/1.1.
func TestBuild_FoundUpstreamsSpeakAsTheNamedDo(t *testing.T) {
	of := func(region, protocol string, drain bool) model.Upstream {
		return model.Upstream{Region: region, URL: "https://" + region + protocol + ".test", Protocol: protocol, Drain: drain}
	}
	for _, c := range []struct {
		discovery string
		upstreams []model.Upstream
		want      string
	}{
		{"etcd", []model.Upstream{of("eu-west", "h2", true), of("eu-central", "http1", false)}, "h2"},
		{"etcd", []model.Upstream{of("eu-west", "h2", true), of("eu-west", "h2", false)}, "h2"},
		{"etcd", []model.Upstream{of("eu-west", "h2", true), of("eu-west", "http1", false)}, ""},
		{"etcd", []model.Upstream{of("eu-west", "", true), of("eu-west", "h2", false)}, ""},
		{"dns", []model.Upstream{of("eu-west", "h2", false)}, ""},
	} {
		catalog, zone := world()
		for key, v := range catalog {
			if a, ok := v.(model.API); ok && a.Name == "orders" && a.Zone == "emea" {
				a.Dispatch.Discovery, a.Upstreams = c.discovery, c.upstreams
				catalog[key] = a
			}
		}
		var a table.API
		for key, o := range build(t, catalog, zone, model.Node{Name: "w1", Kind: "edge", Region: "eu-west", Zone: "emea"}, now).Objects {
			if key.Kind == table.KindAPI && key.ID == "orders" {
				if err := table.Decode(o, &a); err != nil {
					t.Fatal(err)
				}
			}
		}
		if got := a.Protocols[table.FoundTargets]; a.Name == "" || got != c.want {
			t.Errorf("%+v: got %q of %q, want %q", c.upstreams, got, a.Name, c.want)
		}
	}
}

// An edge of before levels would serve by what it knows of an object: it gets none that forbids more.
func TestBuild_AnOldEdgeGetsNothingThatItWouldServeWithout(t *testing.T) {
	catalog, zone := world()
	api := catalog[model.PrefixAPI+"emea.orders"].(model.API)
	api.Routes = []model.Route{{Name: "all", PathPrefix: "/", Scope: "read"}}
	plan := catalog[model.PrefixPlan+"gold"].(model.Plan)
	plan.MaxConcurrent = 1
	catalog[model.PrefixAPI+"emea.orders"], catalog[model.PrefixPlan+"gold"] = api, plan
	foreign := catalog[model.PrefixAPI+"uk.orders"].(model.API)
	foreign.Concurrency = &model.Concurrency{Max: 1}
	catalog[model.PrefixAPI+"uk.orders"] = foreign
	restricted := []string{"api orders", "api uk/orders", "plan gold"}
	for _, level := range []table.Level{0, table.Current, table.Current + 1} {
		v, err := view.Build(catalog, zone, edge("w1", "eu-west", "emea"), level, now)
		if err != nil {
			t.Fatal(err)
		}
		for _, id := range restricted {
			if has := slices.Contains(ids(v), id); has != (level > 0) {
				t.Errorf("an edge of level %d gets %s: %v", level, id, has)
			}
		}
	}
	v := build(t, catalog, zone, edge("w1", "eu-west", "emea"), now)
	if needs := get[table.API](t, v, table.KindAPI, "orders").Needs; needs != 1 {
		t.Errorf("the object says that it needs level %d, want 1: an edge must find out by itself when it is set back", needs)
	}
}

// An edge of before levels would count these to the catalog's sum, and refuse every table from then on: no key would end there.
func TestBuild_AnOldEdgeGetsNoKindThatWouldSpoilItsSums(t *testing.T) {
	catalog, zone := world()
	api := catalog[model.PrefixAPI+"emea.orders"].(model.API)
	api.Dispatch.Discovery = "etcd"
	catalog[model.PrefixAPI+"emea.orders"] = api
	zone[model.PrefixPurge+"orders"] = model.Purges{API: "orders", Seq: 1, All: 1}
	zone[model.PrefixTargets+"orders"] = model.Targets{API: "orders", Of: []model.DiscoveredURLs{{Region: "eu-west", URLs: []string{"http://w"}}}}
	for _, level := range []table.Level{0, table.Current} {
		v, err := view.Build(catalog, zone, edge("w1", "eu-west", "emea"), level, now)
		if err != nil {
			t.Fatal(err)
		}
		for _, id := range []string{"purges orders", "targets orders"} {
			if has := slices.Contains(ids(v), id); has != (level > 0) {
				t.Errorf("an edge of level %d gets %s: %v", level, id, has)
			}
		}
		if !slices.Contains(ids(v), "api orders") {
			t.Errorf("an edge of level %d does not get the API", level)
		}
	}
}

// An edge is told of which APIs a plan's cache hits are free: of those that the product gives away on which they are booked.
func TestBuild_SaysWhichHitsAreFree(t *testing.T) {
	for _, c := range []struct {
		core, more bool
		want       []string
	}{{false, false, nil}, {true, false, []string{"orders"}}, {false, true, nil}} {
		catalog, zone := world()
		catalog[model.PrefixProduct+"core"] = model.Product{Name: "core", APIs: []string{"orders", "unknown"}, FreeCacheHits: c.core}
		catalog[model.PrefixProduct+"more"] = model.Product{Name: "more", APIs: []string{"orders"}, FreeCacheHits: c.more}
		v := build(t, catalog, zone, edge("w1", "eu-west", "emea"), now)
		if got := get[table.Plan](t, v, table.KindPlan, "gold").FreeHits; !slices.Equal(got, c.want) {
			t.Errorf("core gives its hits away %v, more %v: got %v, want %v", c.core, c.more, got, c.want)
		}
	}
}

package policy_test

import (
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"bailiwick/dataplane/internal/policy"
	"bailiwick/shared/fault"
	"bailiwick/shared/revision"
	"bailiwick/shared/table"
)

func enc(t testing.TB, kind table.Kind, id string, v any) table.Object {
	t.Helper()
	o, err := table.Encode(kind, id, v)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func key(t testing.TB, id string, n int) table.Object {
	return enc(t, table.KindKey, id, table.Key{ID: id, DigestHex: hex.EncodeToString(fmt.Appendf(nil, "%032d", n)), Customer: "acme", Subscription: "main", Plan: "gold"})
}

func sums(objects []table.Object) (catalog, zone revision.Revision) {
	catalog, zone = revision.Revision{Epoch: 1, Index: 1}, revision.Revision{Epoch: 1, Index: 1}
	for _, o := range objects {
		if o.Kind.Scope() == table.ScopeZone {
			zone.Sum = zone.Sum.Add(o.Sum())
		} else {
			catalog.Sum = catalog.Sum.Add(o.Sum())
		}
	}
	return catalog, zone
}

func build(t testing.TB, objects ...table.Object) *policy.Table {
	t.Helper()
	c, z := sums(objects)
	tab, err := policy.NewTable(objects, c, z)
	if err != nil {
		t.Fatal(err)
	}
	return tab
}

func sample(t testing.TB) []table.Object {
	return []table.Object{
		enc(t, table.KindSettings, "settings", table.Settings{Zone: "emea", Region: "eu-west"}),
		enc(t, table.KindAPI, "orders", table.API{Name: "orders", Zone: "emea", Hosts: []string{"Orders.example.test"}, Policy: "gdpr", Routes: []table.Route{
			{Name: "root"}, {Name: "v1-read", Methods: []string{"GET"}, PathPrefix: "/v1/"}, {Name: "v1-write", Methods: []string{"POST"}, PathPrefix: "/v1"}, {Name: "deep", PathPrefix: "/v1/items"},
		}}),
		enc(t, table.KindAPI, "bare", table.API{Name: "bare", Zone: "emea", Hosts: []string{"bare.example.test"}}),
		enc(t, table.KindAPI, "uk/orders", table.API{Name: "orders", Zone: "uk", Foreign: true}),
		enc(t, table.KindPlan, "gold", table.Plan{Name: "gold", Rev: 3, APIs: map[string]string{"orders": "core"}}),
		enc(t, table.KindPair, "gdpr/eu-west>uk-south", table.Pair{Policy: "gdpr", From: "eu-west", To: "uk-south", FromZone: "emea", ToZone: "uk"}),
		enc(t, table.KindPair, "gdpr/eu-west>eu-north", table.Pair{Policy: "gdpr", From: "eu-west", To: "eu-north", FromZone: "emea", ToZone: "emea", Priority: 2}),
		enc(t, table.KindPair, "gdpr/eu-west>zz-local", table.Pair{Policy: "gdpr", From: "eu-west", To: "zz-local", FromZone: "emea", ToZone: "emea"}),
		enc(t, table.KindPair, "gdpr/eu-north>eu-west", table.Pair{Policy: "gdpr", From: "eu-north", To: "eu-west", FromZone: "emea", ToZone: "emea"}),
		enc(t, table.KindDirectory, "us/orders", table.Directory{API: "orders", Zone: "us", Hosts: []string{"orders.us.example.test"}}),
		enc(t, table.KindNode, "eu-north-edge-1", table.Node{Name: "eu-north-edge-1", Zone: "emea", Region: "eu-north"}),
		enc(t, table.KindZoneKey, "emea", table.ZoneKey{Zone: "emea", PublicKey: make([]byte, 32)}),
		enc(t, table.Kind(99), "later", map[string]int{"from a newer": 1}),
		key(t, "k1", 1), key(t, "k2", 2),
	}
}

// Whoever serves for another zone asks the upstream for what that zone says, also where it says so of the API itself.
func TestTable_AForeignAPIIsRewritten(t *testing.T) {
	tab := build(t, append(sample(t), enc(t, table.KindAPI, "uk/moved", table.API{Name: "moved", Zone: "uk", Foreign: true, Rewrite: &table.Rewrite{Put: "/tenant"}}))...)
	if r, m := tab.APIOf("uk", "moved").Route("GET", "/x"); m != policy.RouteFound || r.Rewrite == nil || r.Rewrite.Put != "/tenant" {
		t.Errorf("got %+v %v, want a route that rewrites", r, m)
	}
}

func TestTable_Lookups(t *testing.T) {
	tab := build(t, sample(t)...)
	orders := tab.API("orders.example.test")
	if orders == nil || orders.Name != "orders" || tab.API("uk") != nil || tab.API("") != nil {
		t.Fatalf("got api %+v, want orders", orders)
	}
	for _, c := range []struct {
		method, path, route string
		match               policy.Match
	}{
		{"GET", "/v1", "v1-read", policy.RouteFound}, {"HEAD", "/v1/x", "v1-read", policy.RouteFound}, {"POST", "/v1/x", "v1-write", policy.RouteFound},
		{"DELETE", "/v1/x", "", policy.MethodNotAllowed}, {"DELETE", "/v10", "root", policy.RouteFound}, {"PUT", "/v1/items/1", "deep", policy.RouteFound},
		{"GET", "/v1/itemsx", "v1-read", policy.RouteFound}, {"GET", "/", "root", policy.RouteFound}, {"GET", "", "root", policy.RouteFound},
	} {
		r, m := orders.Route(c.method, c.path)
		name := ""
		if r != nil {
			name = r.Name
		}
		if m != c.match || name != c.route {
			t.Errorf("%s %s: got %q %v, want %q %v", c.method, c.path, name, m, c.route, c.match)
		}
	}
	if got, want := orders.Allowed("/v1/x"), []string{"GET", "HEAD", "POST"}; !slices.Equal(got, want) {
		t.Errorf("allowed: got %v, want %v", got, want)
	}
	if r, m := tab.API("bare.example.test").Route("PATCH", "/any"); m != policy.RouteFound || r.Name != "default" {
		t.Errorf("api without routes: got %v %v, want the default route", r, m)
	}
	if _, m := tab.APIOf("uk", "orders").Route("GET", "/"); m != policy.RouteNotFound {
		t.Errorf("foreign api: got %v, want no route", m)
	}
	if k := tab.Key("k1"); k == nil || k.Customer != "acme" || k.Digest[31] != '1' || tab.Key("k3") != nil {
		t.Errorf("got key %+v, want k1 of acme", k)
	}
	if p, ok := tab.Plan("gold").Includes("orders"); !ok || p != "core" {
		t.Errorf("got %q %v, want core", p, ok)
	}
	if _, ok := tab.Plan("gold").Includes("reports"); ok || tab.Plan("none") != nil {
		t.Error("plan includes what it does not sell")
	}
	var to []string
	for _, p := range tab.Pairs("gdpr", "eu-west") {
		to = append(to, p.To)
	}
	if want := []string{"zz-local", "uk-south", "eu-north"}; !slices.Equal(to, want) {
		t.Errorf("pairs: got %v, want %v", to, want)
	}
	if !tab.Permits("gdpr", "eu-north", "eu-west") || tab.Permits("gdpr", "uk-south", "eu-west") || tab.Permits("other", "eu-west", "eu-north") {
		t.Error("permits differs from the pairs")
	}
	if in := tab.Inbound(); len(in) != 1 || in[0].From != "eu-north" {
		t.Errorf("inbound: got %v, want eu-north", in)
	}
	if h := tab.Directory("orders", "us"); len(h) != 1 || tab.DirectoryByHost(h[0]).API != "orders" || len(tab.DirectoryByZone("us")) != 1 || tab.Directory("orders", "emea") != nil {
		t.Errorf("directory: got %v", h)
	}
	if tab.Node("eu-north-edge-1") == nil || tab.Node("x") != nil || tab.ZoneKey("emea") == nil || tab.ZoneKey("us") != nil {
		t.Error("nodes or zone keys differ from the objects")
	}
	if got, want := tab.Hosts(), []string{"bare.example.test", "orders.example.test"}; !slices.Equal(got, want) {
		t.Errorf("hosts: got %v, want %v", got, want)
	}
	if n, m := tab.Size(); n != 2 || m != len(sample(t))-2 {
		t.Errorf("size: got %d keys %d objects", n, m)
	}
}

// What a key is bound to is part of what its owner is interned by, of its sum, and of what it answers.
func TestTable_KeysAreBound(t *testing.T) {
	free := table.Key{ID: "a", DigestHex: strings.Repeat("01", 32), Customer: "acme", Subscription: "main", Plan: "gold"}
	bound := free
	bound.ID, bound.Scopes, bound.From = "b", "orders:read orders:write", "192.0.2.0/24,2001:db8::/32"
	broken := free
	broken.ID, broken.From = "c", "192.0.2.0/99"
	var objects []table.Object
	var zone revision.Sum
	settings, _ := table.Encode(table.KindSettings, table.SettingsID, table.Settings{Zone: "emea", Region: "eu-west"})
	for _, k := range []table.Key{free, bound, broken} {
		o, err := table.Encode(table.KindKey, k.ID, k)
		if err != nil {
			t.Fatal(err)
		}
		objects, zone = append(objects, o), zone.Add(o.Sum())
	}
	at := revision.Revision{Epoch: 1, Index: 1}
	catalogAt, zoneAt := at, at
	catalogAt.Sum, zoneAt.Sum = settings.Sum(), zone
	tab, err := policy.NewTable(append(objects, settings), catalogAt, zoneAt)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		key, from    string
		takes, scope bool
	}{
		{"a", "203.0.113.9", true, false}, {"b", "192.0.2.9", true, true}, {"b", "::ffff:192.0.2.9", true, true}, {"b", "2001:db8::1", true, true},
		{"b", "203.0.113.9", false, true}, {"b", "2001:db9::1", false, true}, {"c", "192.0.2.9", false, false},
	} {
		k := tab.Key(c.key)
		if got := k.Takes(netip.MustParseAddr(c.from)); got != c.takes {
			t.Errorf("key %s from %s: got %v, want %v", c.key, c.from, got, c.takes)
		}
		if got := k.HasScope("orders:write"); got != c.scope || k.HasScope("orders") || k.HasScope("orders:read orders:write") {
			t.Errorf("key %s: has the scope %v, want %v, and no part of one", c.key, got, c.scope)
		}
	}
	// Taking it out again leaves what was: the sum made anew from the entry is that of the object that came.
	zoneAt.Sum = zone.Sub(objects[1].Sum())
	zoneAt.Index++
	if _, err := tab.Apply(nil, []table.ObjectKey{objects[1].Key()}, catalogAt, zoneAt); err != nil {
		t.Errorf("remove the bound key: %v", err)
	}
}

func TestTable_NilHoldsNothing(t *testing.T) {
	var tab *policy.Table
	if tab.API("h") != nil || tab.Key("k") != nil || tab.Plan("p") != nil || tab.Permits("p", "a", "b") || tab.Pairs("p", "a") != nil || len(tab.Hosts()) != 0 || !tab.Zone().IsZero() {
		t.Error("a nil table answers something")
	}
}

func TestTable_LookupsDoNotAllocate(t *testing.T) {
	tab := build(t, sample(t)...)
	host, id := "orders.example.test", "k1"
	n := testing.AllocsPerRun(100, func() {
		a := tab.API(host)
		a.Route("GET", "/v1/items/1")
		k := tab.Key(id)
		tab.Plan(k.Plan).Includes(a.Name)
		tab.Pairs(a.Policy, "eu-west")
		tab.Permits(a.Policy, "eu-west", "eu-north")
		tab.Directory(a.Name, "us")
		tab.Node("eu-north-edge-1")
		tab.APIOf("uk", "orders")
	})
	if n != 0 {
		t.Errorf("got %v allocations a request, want 0", n)
	}
}

func TestNewTable_Refuses(t *testing.T) {
	base := sample(t)
	cat, zone := sums(base[1:])
	if _, err := policy.NewTable(base[1:], cat, zone); fault.ReasonOf(err) != "SETTINGS_MISSING" {
		t.Errorf("no settings: got %v, want SETTINGS_MISSING", err)
	}
	if _, err := policy.NewTable(nil, revision.Revision{}, revision.Revision{}); err == nil {
		t.Error("empty table: got nil, want an error")
	}
	cat, zone = sums(base)
	if _, err := policy.NewTable(base[:len(base)-1], cat, zone); fault.ReasonOf(err) != policy.ReasonSumMismatch {
		t.Errorf("lost object: got %v, want %s", err, policy.ReasonSumMismatch)
	}
}

// Any run of updates ends with the sums of a table built at once, and leaves older versions as they were.
func TestApply_IsIncrementalAndPersistent(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	held := map[table.ObjectKey]table.Object{}
	for _, o := range sample(t) {
		held[o.Key()] = o
	}
	tab := build(t, sample(t)...)
	first, firstSum := tab, tab.Zone()
	for i := range 2000 {
		var up []table.Object
		var rm []table.ObjectKey
		for range 1 + r.IntN(3) {
			id := fmt.Sprintf("r%d", r.IntN(200))
			switch r.IntN(6) {
			case 0, 1:
				up = append(up, key(t, id, i))
			case 4: // of no use
				up = append(up, table.Object{Kind: table.KindKey, ID: id, Data: []byte("{")})
			case 5: // of another program
				o := key(t, id, i)
				o.Data = append([]byte(`{"later":1,`), o.Data[1:]...)
				up = append(up, o)
			case 2:
				up = append(up, enc(t, table.KindPlan, id, table.Plan{Name: id, Rev: uint64(i)}))
			case 3:
				rm = append(rm, table.ObjectKey{Kind: []table.Kind{table.KindKey, table.KindPlan}[r.IntN(2)], ID: id})
			}
		}
		for _, o := range up {
			held[o.Key()] = o
		}
		for _, k := range rm {
			delete(held, k)
		}
		var all []table.Object
		for _, o := range held {
			all = append(all, o)
		}
		c, z := sums(all)
		next, err := tab.Apply(up, rm, c, z)
		if err != nil {
			t.Fatalf("update %d: %v", i, err)
		}
		tab = next
	}
	for i := range 200 {
		id := fmt.Sprintf("r%d", i)
		o, want := held[table.ObjectKey{Kind: table.KindKey, ID: id}]
		want = want && len(o.Data) > 1
		if got := tab.Key(id) != nil; got != want {
			t.Errorf("key %s: got %v, want %v", id, got, want)
		}
		if first.Key(id) != nil {
			t.Errorf("the first table has key %s of a later one", id)
		}
	}
	if first.Zone() != firstSum {
		t.Error("the first table changed")
	}
}

func TestApply_OneKeyOfManyCopiesLittle(t *testing.T) {
	objects := sample(t)[:1]
	for i := range 100_000 {
		objects = append(objects, key(t, fmt.Sprintf("key%09d", i), i))
	}
	tab := build(t, objects...)
	gone := objects[5]
	c, z := tab.Catalog(), tab.Zone()
	z.Sum = z.Sum.Sub(gone.Sum())
	var next *policy.Table
	bytes := testing.Benchmark(func(b *testing.B) {
		b.ReportAllocs()
		for range b.N {
			next, _ = tab.Apply(nil, []table.ObjectKey{gone.Key()}, c, z)
		}
	}).AllocedBytesPerOp()
	if next == nil || next.Key(gone.ID) != nil || tab.Key(gone.ID) == nil {
		t.Fatal("the key is not gone from the new table alone")
	}
	if bytes > 64<<10 {
		t.Errorf("got %d bytes for one change of 100,000 keys, want at most 64 KiB", bytes)
	}
}

func TestHolder_ChangedClosesOncePerSwap(t *testing.T) {
	var h policy.Holder
	if h.Load() != nil {
		t.Fatal("a new holder holds something")
	}
	a, b := h.Changed(), h.Changed()
	tab := build(t, sample(t)...)
	h.Swap(tab)
	<-a
	<-b
	select {
	case <-h.Changed():
		t.Error("changed without a swap")
	default:
	}
	if h.Load() != tab {
		t.Error("load: got another table")
	}
}

// What is kept of a table's answers is kept by its Mark: a key moves the table and not the Mark, anything else, and a
// new epoch of either log, moves both.
func TestTable_MarkIsItsRules(t *testing.T) {
	objects := sample(t)
	old := build(t, objects...)
	var none *policy.Table
	if old.Mark() == (policy.Mark{}) || none.Mark() == (policy.Mark{}) || none.Mark() == old.Mark() {
		t.Error("no table has the zero Mark, and none another's")
	}
	apply := func(catalog, zone uint64, upserts []table.Object, removals ...table.ObjectKey) *policy.Table {
		t.Helper()
		rest := slices.DeleteFunc(slices.Clone(objects), func(o table.Object) bool {
			return slices.Contains(removals, o.Key()) || slices.ContainsFunc(upserts, func(u table.Object) bool { return u.Key() == o.Key() })
		})
		c, z := sums(append(rest, upserts...))
		c.Epoch, z.Epoch = catalog, zone
		next, err := old.Apply(upserts, removals, c, z)
		if err != nil {
			t.Fatal(err)
		}
		return next
	}
	for _, c := range []struct {
		name string
		next *policy.Table
		same bool
	}{
		{"nothing", apply(1, 1, nil), true},
		{"a key", apply(1, 1, []table.Object{key(t, "new", 77)}), true},
		{"an API as it was", apply(1, 1, []table.Object{enc(t, table.KindAPI, "bare", table.API{Name: "bare", Zone: "emea", Hosts: []string{"bare.example.test"}})}), false},
		{"an API less", apply(1, 1, nil, table.ObjectKey{Kind: table.KindAPI, ID: "bare"}), false},
		{"the catalog's epoch", apply(2, 1, nil), false},
		{"the zone's epoch", apply(1, 2, nil), false},
	} {
		if got := c.next.Mark() == old.Mark(); got != c.same {
			t.Errorf("%s: the same Mark: %t, want %t", c.name, got, c.same)
		}
	}
}

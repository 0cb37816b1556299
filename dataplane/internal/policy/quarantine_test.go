package policy_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"bailiwick/dataplane/internal/limit"
	"bailiwick/dataplane/internal/policy"
	"bailiwick/shared/fault"
	"bailiwick/shared/table"
)

// after is a table with objects put on top of others, one by one in one update.
func after(t *testing.T, tab *policy.Table, base, up []table.Object) (*policy.Table, []table.Object) {
	t.Helper()
	all := slices.Clone(base)
	for _, o := range up {
		all = append(slices.DeleteFunc(all, func(x table.Object) bool { return x.Key() == o.Key() }), o)
	}
	c, z := sums(all)
	next, err := tab.Apply(up, nil, c, z)
	if err != nil {
		t.Fatal(err)
	}
	return next, all
}

// One bad object holds nothing up: the others of its update count, it is told with its reason, and once it is good again
// nothing is left of it.
func TestApply_QuarantinesOneObject(t *testing.T) {
	base := sample(t)
	for _, c := range []struct {
		name   string
		reason policy.Reason
		bad    table.Object
		kept   bool
	}{
		{"json", policy.ReasonMalformed, table.Object{Kind: table.KindPlan, ID: "x", Data: []byte("{")}, false},
		{"json of a plan that is there", policy.ReasonMalformed, table.Object{Kind: table.KindPlan, ID: "gold", Data: []byte("{")}, true},
		{"blank", policy.ReasonMisnamed, table.Object{Kind: table.KindAPI, ID: "x", Data: []byte("{}")}, false},
		{"no id", policy.ReasonMisnamed, table.Object{Kind: table.KindPlan, Data: []byte("{}")}, false},
		{"other id", policy.ReasonMisnamed, enc(t, table.KindPlan, "x", table.Plan{Name: "y"}), false},
		{"a key's id", policy.ReasonMisnamed, enc(t, table.KindKey, "k1", table.Key{ID: "k2", DigestHex: strings.Repeat("00", 32), Customer: "c", Plan: "p"}), false},
		{"digest", policy.ReasonUnfit, enc(t, table.KindKey, "k1", table.Key{ID: "k1", DigestHex: "00", Customer: "c", Plan: "p"}), false},
		{"digest text", policy.ReasonUnfit, enc(t, table.KindKey, "x", table.Key{ID: "x", DigestHex: strings.Repeat("zz", 32), Customer: "c", Plan: "p"}), false},
		{"zone key", policy.ReasonUnfit, enc(t, table.KindZoneKey, "emea", table.ZoneKey{Zone: "emea", PublicKey: []byte{1}}), false},
		{"a schema that is none", policy.ReasonUnfit, enc(t, table.KindAPI, "bad", table.API{Name: "bad", Zone: "emea", Validation: &table.Validation{Schema: "type: text"}}), false},
		{"a document that is none", policy.ReasonUnfit, enc(t, table.KindAPI, "bad", table.API{Name: "bad", Zone: "emea", OpenAPI: "{", Validation: &table.Validation{OpenAPI: true}}), false},
		{"foreign with hosts", policy.ReasonUnfit, enc(t, table.KindAPI, "us/a", table.API{Name: "a", Zone: "us", Foreign: true, Hosts: []string{"h"}}), false},
		{"pair of others", policy.ReasonUnfit, enc(t, table.KindPair, "p/a>b", table.Pair{Policy: "p", From: "a", To: "b"}), false},
		{"host twice", policy.ReasonHostTaken, enc(t, table.KindAPI, "two", table.API{Name: "two", Zone: "emea", Hosts: []string{"bare.example.test", "two.example.test"}}), true},
		{"drain", policy.ReasonMalformed, table.Object{Kind: table.KindDrain, ID: "eu-west", Data: []byte("{")}, true},
		{"more windows than there is room for", policy.ReasonUnfit, enc(t, table.KindPlan, "x", table.Plan{Name: "x", Windows: slices.Repeat([]table.Window{{Requests: 1, Per: time.Hour}}, limit.MaxWindows+1)}), false},
		{"a window of no time", policy.ReasonUnfit, enc(t, table.KindPlan, "x", table.Plan{Name: "x", Windows: []table.Window{{Requests: 1}}}), false},
		{"a window of no requests", policy.ReasonUnfit, enc(t, table.KindPlan, "x", table.Plan{Name: "x", Windows: []table.Window{{Per: time.Hour}}}), false},
		{"a plan of a newer release", policy.ReasonNewer, enc(t, table.KindPlan, "gold", table.Plan{Name: "gold", Needs: table.Current + 1}), false},
		{"an API of a newer release", policy.ReasonNewer, enc(t, table.KindAPI, "orders", table.API{Name: "orders", Zone: "emea", Needs: table.Current + 1}), false},
		{"a key of a newer release", policy.ReasonNewer, enc(t, table.KindKey, "k1", table.Key{ID: "k1", DigestHex: strings.Repeat("00", 32), Customer: "c", Plan: "p", Needs: table.Current + 1}), false},
		{"a drain of a newer release", policy.ReasonNewer, table.Object{Kind: table.KindDrain, ID: "eu-west", Data: []byte(`{"region":"eu-west","reason":"r","needs":99}`)}, true},
		{"settings", policy.ReasonMalformed, table.Object{Kind: table.KindSettings, ID: "settings", Data: []byte("{")}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			beside := key(t, "beside", 7)
			tab, all := after(t, build(t, base...), base, []table.Object{c.bad, beside})
			want := []policy.Quarantined{{Key: c.bad.Key(), Reason: c.reason, Kept: c.kept}}
			if got := tab.Quarantined(); !slices.Equal(got, want) {
				t.Fatalf("quarantined: got %v, want %v", got, want)
			}
			if tab.Key("beside") == nil {
				t.Error("what came with it is not there")
			}
			if tab.API("bare.example.test").Name != "bare" {
				t.Error("a host went to another API")
			}
			// The same from a snapshot, which keeps what the table before has.
			c1, z1 := sums(all)
			e := (*policy.Table)(nil).Edit()
			for _, o := range all {
				e.Put(policy.Prepare(o))
			}
			whole, err := e.Table(tab, c1, z1)
			if err != nil || !slices.Equal(whole.Quarantined(), want) {
				t.Errorf("from a snapshot: got %v, %v, want %v", whole.Quarantined(), err, want)
			}
			// Gone again, and good again.
			c2, z2 := sums(slices.DeleteFunc(slices.Clone(all), func(o table.Object) bool { return o.Key() == c.bad.Key() }))
			if c.bad.Kind != table.KindSettings {
				if gone, err := tab.Apply(nil, []table.ObjectKey{c.bad.Key()}, c2, z2); err != nil || len(gone.Quarantined()) > 0 {
					t.Errorf("removed: got %v, %v", gone.Quarantined(), err)
				}
			}
			if i := slices.IndexFunc(base, func(o table.Object) bool { return o.Key() == c.bad.Key() }); i >= 0 {
				if good, _ := after(t, tab, all, base[i:i+1]); len(good.Quarantined()) > 0 {
					t.Errorf("good again: got %v", good.Quarantined())
				}
			}
		})
	}
}

// An edge acknowledges positions with quarantined objects in them, and the zone takes that for the word that what they
// forbid has ended: nothing may stay that permits a relay, and no key.
func TestQuarantine_KeepsNothingThatPermits(t *testing.T) {
	base := sample(t)
	tab := build(t, base...)
	if tab.API("orders.example.test").Policy == "" || !tab.Permits("gdpr", "eu-west", "uk-south") || !tab.Permits("gdpr", "eu-north", "eu-west") ||
		tab.Node("eu-north-edge-1") == nil || tab.ZoneKey("emea") == nil || tab.APIOf("uk", "orders") == nil || tab.Key("k1") == nil {
		t.Fatal("the sample permits too little to show anything")
	}
	var bad []table.Object
	for _, o := range base {
		if o.Kind != 99 {
			bad = append(bad, table.Object{Kind: o.Kind, ID: o.ID, Data: []byte("{")})
		}
	}
	now, all := after(t, tab, base, bad)
	c, z := sums(all)
	e := (*policy.Table)(nil).Edit()
	for _, o := range all {
		e.Put(policy.Prepare(o))
	}
	whole, err := e.Table(now, c, z)
	if err != nil {
		t.Fatal(err)
	}
	for name, tab := range map[string]*policy.Table{"update": now, "snapshot": whole} {
		api := tab.API("orders.example.test")
		if api == nil {
			t.Fatalf("%s: the own API does not serve at home any more", name)
		}
		if api.Policy != "" || tab.APIOf("emea", "orders").Policy != "" {
			t.Errorf("%s: the API is still under policy %q", name, api.Policy)
		}
		if tab.Permits("gdpr", "eu-west", "uk-south") || tab.Permits("gdpr", "eu-north", "eu-west") || len(tab.Pairs("gdpr", "eu-west")) > 0 || len(tab.Inbound()) > 0 {
			t.Errorf("%s: a pair stays", name)
		}
		if tab.Node("eu-north-edge-1") != nil || tab.ZoneKey("emea") != nil || tab.APIOf("uk", "orders") != nil {
			t.Errorf("%s: an edge, a zone's key or a foreign API stays", name)
		}
		if tab.Key("k1") != nil {
			t.Errorf("%s: a key stays, which may have been suspended", name)
		}
		if tab.Plan("gold") == nil {
			t.Errorf("%s: the plan is gone", name)
		}
		for key, value := range tab.All() {
			switch v := value.(type) {
			case *table.Pair, *table.Node, *table.ZoneKey:
				t.Errorf("%s: %v stays for whoever reads all objects", name, key)
			case *policy.API:
				if v.Policy != "" || v.Foreign {
					t.Errorf("%s: %v stays under a policy", name, key)
				}
			}
		}
	}
}

func TestApply_RefusesATableOfNoUse(t *testing.T) {
	base := sample(t)
	tab := build(t, base...)
	for kind, n := range map[table.Kind]int{table.KindPlan: policy.MaxQuarantined, table.KindKey: policy.MaxQuarantinedKeys} {
		for _, more := range []int{0, 1} {
			up := make([]table.Object, 0, n+1)
			for i := range n + more {
				up = append(up, table.Object{Kind: kind, ID: fmt.Sprint("bad", i), Data: []byte("{")})
			}
			c, z := sums(append(slices.Clone(base), up...))
			_, err := tab.Apply(up, nil, c, z)
			if want := []string{"", policy.ReasonQuarantineFull}[more]; fault.ReasonOf(err) != want {
				t.Errorf("%d objects of kind %s: got %v, want %q", n+more, kind, err, want)
			}
		}
	}
}

// A kill switch that does not read leaves its feature off, with a table before it and without: what somebody turned off in
// an outage does not come back by a bad byte. Only its removal turns the feature on.
func TestQuarantine_ASwitchStaysThrown(t *testing.T) {
	for _, c := range []struct {
		id      string
		was     table.Switch
		off, on func(*policy.Table) bool // what is off by it; what stays on
	}{
		{"http3", table.Switch{Feature: "http3"}, func(t *policy.Table) bool { return t.Off("http3") }, func(t *policy.Table) bool { return !t.Off("dns") }},
		{"detail", table.Switch{Feature: "detail"}, func(t *policy.Table) bool { return t.Off("detail") }, func(t *policy.Table) bool { return !t.Off("http3") }},
		{"dns", table.Switch{Feature: "dns"}, func(t *policy.Table) bool { return t.Off("dns") }, func(t *policy.Table) bool { return !t.Off("relay") }},
		{"relay", table.Switch{Feature: "relay"}, func(t *policy.Table) bool { return t.RelayOff(&t.API("bare.example.test").API) }, func(t *policy.Table) bool { return !t.Off("detail") }},
		{"relay/emea/orders", table.Switch{Feature: "relay", API: "emea/orders"}, func(t *policy.Table) bool { return t.RelayOff(&t.API("orders.example.test").API) },
			func(t *policy.Table) bool { return !t.RelayOff(&t.API("bare.example.test").API) }},
	} {
		t.Run(strings.ReplaceAll(c.id, "/", "_"), func(t *testing.T) {
			base := sample(t)
			tab := build(t, base...)
			if c.off(tab) {
				t.Fatal("it is off before it is turned off")
			}
			thrown, all := after(t, tab, base, []table.Object{enc(t, table.KindSwitch, c.id, c.was)})
			if !c.off(thrown) || !c.on(thrown) {
				t.Fatalf("thrown: off %v, want it and nothing else", c.off(thrown))
			}
			bad := table.Object{Kind: table.KindSwitch, ID: c.id, Data: []byte("{")}
			kept, all := after(t, thrown, all, []table.Object{bad})
			unseen, _ := after(t, tab, base, []table.Object{bad})
			c1, z1 := sums(all)
			e := (*policy.Table)(nil).Edit()
			for _, o := range all {
				e.Put(policy.Prepare(o))
			}
			restarted, err := e.Table(nil, c1, z1)
			if err != nil {
				t.Fatal(err)
			}
			for name, tab := range map[string]*policy.Table{"the one before was good": kept, "there was none before": unseen, "after a restart": restarted} {
				if !c.off(tab) || !c.on(tab) {
					t.Errorf("%s: off %v, want it and nothing else", name, c.off(tab))
				}
				if want := []policy.Quarantined{{Key: bad.Key(), Reason: policy.ReasonMalformed, Kept: true}}; !slices.Equal(tab.Quarantined(), want) {
					t.Errorf("%s: quarantined %v, want %v: nobody would be told", name, tab.Quarantined(), want)
				}
			}
			c2, z2 := sums(base)
			if gone, err := kept.Apply(nil, []table.ObjectKey{bad.Key()}, c2, z2); err != nil || c.off(gone) {
				t.Errorf("taken away: %v, off %v", err, err == nil && c.off(gone))
			}
		})
	}
}

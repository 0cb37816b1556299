package relay_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"bailiwick/dataplane/internal/policy"
	"bailiwick/dataplane/internal/relay"
	"bailiwick/regions/grant"
	"bailiwick/shared/revision"
	"bailiwick/shared/table"
)

// rulesOf is eu-west's table with APIs a0, a1, … each under its policy, and pairs by "policy to".
func rulesOf(t testing.TB, epoch uint64, policies []string, pairs [][2]string) *policy.Table {
	t.Helper()
	var objects []table.Object
	add := func(kind table.Kind, id string, v any) {
		o, err := table.Encode(kind, id, v)
		if err != nil {
			t.Fatal(err)
		}
		objects = append(objects, o)
	}
	add(table.KindSettings, table.SettingsID, table.Settings{Zone: "emea", Region: "eu-west"})
	for i, p := range policies {
		name := fmt.Sprint("a", i)
		add(table.KindAPI, name, table.API{Name: name, Zone: "emea", Hosts: []string{name + ".test"}, Policy: p})
	}
	for _, p := range pairs {
		add(table.KindPair, table.PairID(p[0], "eu-west", p[1]), table.Pair{Policy: p[0], From: "eu-west", To: p[1], FromZone: "emea", ToZone: "emea"})
	}
	catalog, zone := revision.Revision{Epoch: epoch, Index: 1}, revision.Revision{Epoch: 1, Index: 1}
	for _, o := range objects {
		if o.Kind.Scope() == table.ScopeZone {
			zone.Sum = zone.Sum.Add(o.Sum())
		} else {
			catalog.Sum = catalog.Sum.Add(o.Sum())
		}
	}
	tab, err := policy.NewTable(objects, catalog, zone)
	if err != nil {
		t.Fatal(err)
	}
	return tab
}

// What is kept of an answer changes nothing: whatever becomes of tables, grants and time, every question gets what it
// would get if nothing were kept. So a closed pair, an API under another policy, an ended grant, a denial and a
// recovery are seen by the very next attempt.
func TestAnswers_AreThoseOfTheCore(t *testing.T) {
	var (
		born    = time.Now()
		targets = []string{"eu-central", "eu-north", "us-north"} // the last two share a place
		names   = []string{"gdpr", "wide"}
	)
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 1))
	var all []*policy.Table
	for epoch := uint64(1); epoch <= 2; epoch++ {
		for i := range 12 {
			policies := []string{names[r.IntN(2)], names[r.IntN(2)], names[r.IntN(2)]}
			var pairs [][2]string
			for _, p := range names {
				for _, to := range targets {
					if i == 0 || r.IntN(3) > 0 {
						pairs = append(pairs, [2]string{p, to})
					}
				}
			}
			tab := rulesOf(t, epoch, policies, pairs)
			all = append(all, tab)
			if epoch == 1 { // the same objects after a recovery
				moved, err := tab.Apply(nil, nil, revision.Revision{Epoch: 2, Index: 1, Sum: tab.Catalog().Sum}, tab.Zone())
				if err != nil {
					t.Fatal(err)
				}
				all = append(all, moved)
			}
		}
	}
	var (
		as        relay.Answers
		held      = &grant.Held{}
		tab       = all[0]
		now       time.Duration
		left, hit int
		minted    int
	)
	for step := range 60_000 {
		switch r.IntN(12) {
		case 0:
			tab = all[r.IntN(len(all))]
		case 1:
			var given []*grant.Grant
			for _, to := range targets {
				for range r.IntN(3) {
					minted++
					ttl := time.Duration(1+r.IntN(40)) * time.Millisecond
					given = append(given, &grant.Grant{ID: fmt.Sprint(minted), Zone: "emea", From: "eu-west", To: to, Policies: names[:1+r.IntN(2)],
						Catalog: revision.Revision{Epoch: 1 + uint64(r.IntN(2))}, Store: revision.Revision{Epoch: 1},
						TTL: ttl, OfflineTTL: ttl + time.Duration(r.IntN(40))*time.Millisecond, Asked: born.Add(now - time.Duration(r.IntN(5))*time.Millisecond)})
				}
			}
			held = held.Step(grant.Given, given, grant.Take{}, born.Add(now))
		case 2:
			held = held.Step([]grant.Answer{grant.Silent, grant.Silent, grant.Behind, grant.Denied}[r.IntN(4)], nil, grant.Take{}, born.Add(now))
		case 3:
			now += time.Duration(r.IntN(5)) * time.Millisecond
		case 4:
			as.Drop(tab, held, now)
		}
		// By the API of the newest table, or of one that a request began with.
		from := tab
		if r.IntN(4) == 0 {
			from = all[r.IntN(len(all))]
		}
		api, to := from.API(fmt.Sprintf("a%d.test", r.IntN(3))), targets[r.IntN(len(targets))]
		before := as.Kept()
		got, gotRule := as.Leave(tab, held, api, "eu-west", to, born, now)
		want, wantRule := relay.Anew(tab, held, api, "eu-west", to, born.Add(now))
		if got != want || gotRule != wantRule {
			t.Fatalf("seed %d, step %d: %s of %s to %s gets grant %v and %q, want %v and %q", seed, step, api.Name, api.Policy, to, got, gotRule, want, wantRule)
		}
		if want != nil {
			left++
			if as.Kept() == before {
				hit++
			}
		}
	}
	if left < 6_000 || hit < 3_000 {
		t.Errorf("of 60000 questions %d were permitted and %d of them left what is kept as it was: too few to tell anything", left, hit)
	}
}

// A table that is not in force any more, and grants that are not held, go from memory with the next sweep.
func TestAnswers_KeepNothingOfBefore(t *testing.T) {
	born := time.Now()
	tab := rulesOf(t, 1, []string{"gdpr"}, [][2]string{{"gdpr", "eu-central"}})
	next := rulesOf(t, 1, []string{"gdpr"}, [][2]string{{"gdpr", "eu-central"}})
	give := func() *grant.Held {
		g := &grant.Grant{ID: "g", To: "eu-central", Policies: []string{"gdpr"}, Catalog: revision.Revision{Epoch: 1}, Store: revision.Revision{Epoch: 1}, TTL: time.Second, OfflineTTL: time.Second, Asked: born}
		return (&grant.Held{}).Step(grant.Given, []*grant.Grant{g}, grant.Take{}, born)
	}
	held := give()
	for _, c := range []struct {
		name string
		tab  *policy.Table
		held *grant.Held
		now  time.Duration
		want int
	}{{"nothing changed", tab, held, 0, 1}, {"another table", next, held, 0, 0}, {"other grants", tab, give(), 0, 0}, {"the grant has ended", tab, held, time.Second, 0}} {
		var as relay.Answers
		if _, rule := as.Leave(tab, held, tab.API("a0.test"), "eu-west", "eu-central", born, 0); rule != "" {
			t.Fatal(rule)
		}
		as.Drop(c.tab, c.held, c.now)
		if got := as.Kept(); got != c.want {
			t.Errorf("%s: %d answers kept, want %d", c.name, got, c.want)
		}
	}
}

// BenchmarkBorderCheckManyAPIs is the border check where 200 APIs are relayed at a time, some of which share a place.
func BenchmarkBorderCheckManyAPIs(b *testing.B) {
	var policies []string
	for range 200 {
		policies = append(policies, "gdpr")
	}
	tab := rulesOf(b, 1, policies, [][2]string{{"gdpr", "eu-central"}, {"gdpr", "eu-north"}})
	born := time.Now()
	var given []*grant.Grant
	for _, to := range []string{"eu-central", "eu-north"} {
		given = append(given, &grant.Grant{ID: to, To: to, Policies: []string{"gdpr"}, Catalog: revision.Revision{Epoch: 1}, Store: revision.Revision{Epoch: 1}, TTL: time.Hour, OfflineTTL: time.Hour, Asked: born})
	}
	held := (&grant.Held{}).Step(grant.Given, given, grant.Take{}, born)
	var apis []*policy.API
	for i := range policies {
		apis = append(apis, tab.API(fmt.Sprintf("a%d.test", i)))
	}
	var as relay.Answers
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		to := "eu-central"
		if i&1 == 1 {
			to = "eu-north"
		}
		if g, rule := as.Leave(tab, held, apis[i%len(apis)], "eu-west", to, born, time.Since(born)); g == nil {
			b.Fatal(rule)
		}
		i++
	}
}

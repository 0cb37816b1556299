package grant_test

import (
	"encoding/json"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"

	"bailiwick/regions/grant"
)

const atMost = 3 * time.Second

var (
	lendTargets  = []string{"central", "us"}
	lendPolicies = []string{"gdpr", "wide"}
	lendPeers    = []string{"p1", "p2", "p3"}
)

// someHeld is what an edge holds after a random life, and when that was.
func someHeld(r *rand.Rand) (h *grant.Held, now time.Time) {
	h, now = &grant.Held{}, asked
	for range 1 + r.IntN(6) {
		now = now.Add(time.Duration(r.IntN(4000)) * time.Millisecond)
		switch r.IntN(6) {
		case 0:
			h = h.Step(grant.Silent, nil, grant.Take{}, now)
			continue
		case 1:
			h = h.Step(grant.Behind, nil, grant.Take{}, now)
			continue
		}
		var given []*grant.Grant
		for _, to := range lendTargets {
			if r.IntN(4) == 0 {
				continue
			}
			g := &grant.Grant{To: to, Policies: some(r, lendPolicies), Asked: now.Add(-time.Duration(r.IntN(500)) * time.Millisecond), TTL: time.Duration(500+r.IntN(8000)) * time.Millisecond}
			g.OfflineTTL = g.TTL + time.Duration(r.IntN(3))*3*time.Second
			g.Catalog.Epoch, g.Store.Epoch = uint64(1+r.IntN(2)), uint64(1+r.IntN(2))
			for _, p := range some(r, lendPeers) {
				g.Peers = append(g.Peers, grant.Peer{Edge: p, Addr: p + ":1"})
			}
			given = append(given, g)
		}
		var take grant.Take
		if r.IntN(4) > 0 {
			take = grant.Take{Asked: now.Add(-time.Duration(r.IntN(500)) * time.Millisecond), Lasts: time.Duration(r.IntN(8000)) * time.Millisecond}
		}
		h = h.Step(grant.Given, given, take, now)
	}
	return h, now.Add(time.Duration(r.IntN(5000)) * time.Millisecond)
}

func some(r *rand.Rand, all []string) (out []string) {
	for _, x := range all {
		if r.IntN(3) > 0 {
			out = append(out, x)
		}
	}
	return out
}

// lend lends over a connection.
func lend(t *testing.T, h *grant.Held, at grant.At, now time.Time) grant.Lent {
	t.Helper()
	l := h.Lend(at, now, atMost)
	raw, err := json.Marshal(l)
	if err != nil {
		t.Fatal(err)
	}
	var came grant.Lent
	if err := json.Unmarshal(raw, &came); err != nil || !reflect.DeepEqual(l, came) {
		t.Fatalf("of %+v comes %+v, %v", l, came, err)
	}
	return came
}

// Whatever the one before may do by what it was lent, the lender may do itself at that moment; and it ends by itself. Moments are those at
// which something ends, one before each, and others.
func TestLent_AllowsNothingThatTheLenderMayNot(t *testing.T) {
	lives, keeps, takes := 0, 0, 0
	for seed := range uint64(20_000) {
		r := rand.New(rand.NewPCG(seed, 1))
		h, now := someHeld(r)
		at := epochs(uint64(1+r.IntN(2)), uint64(1+r.IntN(2)))
		l := lend(t, h, at, now)
		said := now.Add(-time.Duration(r.IntN(3000)) * time.Millisecond)
		lent := l.Held(said)
		moments := []time.Time{said, now, now.Add(atMost), said.Add(l.TakeLasts - l.TakeAge), said.Add(l.TakeLasts - l.TakeAge - 1)}
		for _, p := range l.Pairs {
			if p.Lasts <= 0 || p.Lasts > atMost {
				t.Fatalf("seed %d: %s is lent for %v, want at most %v", seed, p.To, p.Lasts, atMost)
			}
			moments = append(moments, said.Add(p.Lasts), said.Add(p.Lasts-1))
		}
		for range 4 {
			moments = append(moments, said.Add(time.Duration(r.IntN(4000))*time.Millisecond))
		}
		later := epochs(at.Catalog.Epoch+uint64(r.IntN(2)), at.Store.Epoch+uint64(r.IntN(2))) // a recovery may come meanwhile
		for _, when := range moments {
			if when.Before(said) {
				continue
			}
			over := !when.Before(now.Add(atMost))
			shown := &grant.Grant{OfflineTTL: time.Duration(r.IntN(10_000)) * time.Millisecond}
			if lent.Takes(shown, when) {
				if takes++; over || !h.Takes(shown, when) {
					t.Errorf("seed %d: %v after it was lent it takes a relay under a grant of %v; over: %v", seed, when.Sub(now), shown.OfflineTTL, over)
				}
			}
			for _, to := range lendTargets {
				for _, policy := range lendPolicies {
					if lent.Live(policy, to, later, when) != nil {
						if lives++; over || h.Live(policy, to, later, when) == nil {
							t.Errorf("seed %d: %v after it was lent %s to %s is live; over: %v", seed, when.Sub(now), policy, to, over)
						}
					}
					if when.Before(now) { // it cannot be there yet, and the newest of now may not be the newest of then
						continue
					}
					p := paper{at: later, pairs: []string{policy + ":west>" + to}, apis: map[string]string{"emea/orders": policy}}
					for _, peer := range lendPeers {
						f := grant.Flight{Zone: "emea", API: "orders", Policy: policy, From: "west", To: to, Peer: peer}
						if lent.Keep(f, p, when) {
							if keeps++; !h.Keep(f, p, when) {
								t.Errorf("seed %d: %v after it was lent a relay to %s under %s is kept, and the lender would cut it", seed, when.Sub(now), peer, policy)
							}
						}
					}
				}
			}
		}
		if t.Failed() {
			return
		}
	}
	if lives < 10_000 || keeps < 10_000 || takes < 10_000 {
		t.Errorf("%d grants were live, %d relays kept, %d taken: it saw too little", lives, keeps, takes)
	}
}

// What was answered a moment ago is of use: all that the lender may do then, in the clock of who asked.
func TestLent_AllowsWhatTheLenderMay(t *testing.T) {
	for seed := range uint64(2000) {
		r := rand.New(rand.NewPCG(seed, 2))
		h, now := someHeld(r)
		at := epochs(1, 1)
		lent := lend(t, h, at, now).Held(now)
		for _, to := range lendTargets {
			for _, policy := range lendPolicies {
				mine, its := h.Live(policy, to, at, now), lent.Live(policy, to, at, now)
				if (mine == nil) != (its == nil) || mine != nil && (!slices.Equal(mine.Peers, its.Peers) || !slices.Equal(mine.Policies, its.Policies) || mine.Catalog.Epoch != its.Catalog.Epoch || mine.Store.Epoch != its.Store.Epoch) {
					t.Fatalf("seed %d: of %+v is lent %+v", seed, mine, its)
				}
			}
		}
		shown := &grant.Grant{OfflineTTL: time.Duration(r.IntN(10_000)) * time.Millisecond}
		if mine, its := h.Takes(shown, now), lent.Takes(shown, now); mine != its {
			t.Fatalf("seed %d: the lender takes a relay: %v, and the one before: %v", seed, mine, its)
		}
	}
}

// A peer that the newest grant does not name has left the registry, whatever older ones say.
func TestLent_TheNewestGrantNamesThePeer(t *testing.T) {
	h := &grant.Held{}
	for i, peers := range [][]grant.Peer{{{Edge: "central-1"}}, {{Edge: "central-1"}, {Edge: "central-2"}}, {{Edge: "central-2"}}} {
		g := given()
		g.Asked, g.Peers = asked.Add(time.Duration(i)*time.Second), peers
		h = h.Step(grant.Given, []*grant.Grant{&g}, grant.Take{}, g.Asked)
	}
	now := asked.Add(3 * time.Second)
	l := lend(t, h, epochs(2, 2), now)
	if len(l.Pairs) != 3 {
		t.Fatalf("%d grants are lent, want three", len(l.Pairs))
	}
	lent := l.Held(now)
	for peer, want := range map[string]bool{"central-1": false, "central-2": true} {
		f := trip
		f.Peer = peer
		if h.Keep(f, written(), now) != want || lent.Keep(f, written(), now) != want {
			t.Errorf("%s: the lender keeps a relay to it: %v, by what it lent it is kept: %v; want %v", peer, h.Keep(f, written(), now), lent.Keep(f, written(), now), want)
		}
	}
}

// The newest grant may be the first to end, where the zone gives shorter ones than before. The older one does not speak for its peers
// while the lender still goes by the newest.
func TestLent_AnOlderGrantDoesNotOutliveTheNewest(t *testing.T) {
	older, newest := given(), given()
	newest.Asked, newest.TTL, newest.OfflineTTL, newest.Peers = asked.Add(time.Second), 2*time.Second, 2*time.Second, []grant.Peer{{Edge: "central-2"}}
	h := (&grant.Held{}).Step(grant.Given, []*grant.Grant{&older}, grant.Take{}, older.Asked).Step(grant.Given, []*grant.Grant{&newest}, grant.Take{}, newest.Asked)
	now := asked.Add(2 * time.Second) // the newest has a second
	lent := lend(t, h, epochs(2, 2), now).Held(now.Add(-500 * time.Millisecond))
	if when := now.Add(600 * time.Millisecond); h.Keep(trip, written(), when) || lent.Keep(trip, written(), when) {
		t.Errorf("a relay to who left the registry is kept: %v by the lender, %v by what it lent", h.Keep(trip, written(), when), lent.Keep(trip, written(), when))
	}
	now = asked.Add(3 * time.Second)
	if lent := lend(t, h, epochs(2, 2), now).Held(now); !h.Keep(trip, written(), now) || !lent.Keep(trip, written(), now) {
		t.Error("once the newest has ended the older one does not count")
	}
}

// Who is lent nothing may nothing.
func TestLent_NothingAllowsNothing(t *testing.T) {
	for name, l := range map[string]grant.Lent{"the zero value": {}, "of who holds nothing": (&grant.Held{}).Lend(epochs(2, 2), asked, time.Minute), "of who was denied": (&grant.Held{}).Step(grant.Denied, nil, grant.Take{}, asked).Lend(epochs(2, 2), asked, time.Minute)} {
		if raw, err := json.Marshal(l); err != nil || string(raw) != "{}" {
			t.Errorf("%s: it goes over as %s, %v", name, raw, err)
		}
		h := l.Held(asked)
		for _, when := range []time.Time{asked, asked.Add(1), asked.Add(time.Hour)} {
			if g := given(); h.Live("gdpr", "central", grant.At{}, when) != nil || h.Keep(trip, written(), when) || h.Takes(&g, when) || len(h.All(grant.At{}, when)) != 0 {
				t.Errorf("%s: %v later it allows something", name, when.Sub(asked))
			}
		}
	}
}

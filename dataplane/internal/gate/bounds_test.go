package gate_test

import (
	"crypto/rand"
	"encoding/hex"
	"strings"
	"testing"
	"time"

	"bailiwick/dataplane/internal/gate"
	"bailiwick/dataplane/internal/limit"
	"bailiwick/shared/apikey"
	"bailiwick/shared/table"
	"bailiwick/shared/usage"
)

// bound adds a key with bounds.
func (w *world) bound(plan, scopes, from string) string {
	id, text, err := apikey.Mint("emea", rand.Reader)
	if err != nil {
		w.t.Fatal(err)
	}
	d := apikey.Sum(pepper, text.Reveal())
	w.add(table.KindKey, id, table.Key{ID: id, DigestHex: hex.EncodeToString(d[:]), Customer: "acme", Subscription: "main", Plan: plan, Scopes: scopes, From: from})
	return text.Reveal()
}

func TestGate_HoldsKeysToTheirBounds(t *testing.T) {
	w := sample(t)
	w.add(table.KindAPI, "scoped", table.API{Name: "scoped", Zone: "emea", Hosts: []string{"scoped.emea.test"}, Targets: []string{"http://up"}, Routes: []table.Route{
		{Name: "read", PathPrefix: "/", Scope: "orders:read"}, {Name: "open", PathPrefix: "/open"}}})
	w.add(table.KindPlan, "wide", table.Plan{Name: "wide", Rev: 9, APIs: map[string]string{"scoped": "core"}})
	plain, reads, writes := w.bound("wide", "", ""), w.bound("wide", "orders:read orders:write", ""), w.bound("wide", "orders:write orders:read:all", "")
	office, unread := w.bound("wide", "orders:read", "192.0.2.0/24,2001:db8::/32"), w.bound("wide", "orders:read", "somewhere")
	tab := w.table()
	g := &gate.Gate{Hasher: apikey.NewHasher(pepper), Limits: limit.NewMap()}
	for _, c := range []struct {
		name, key, path, remote string
		reason                  string
	}{
		{"no scope asked for", plain, "/open", "203.0.113.1:999", ""},
		{"no scope given", plain, "/x", "203.0.113.1:999", gate.ReasonScope},
		{"scope given", reads, "/x", "203.0.113.1:999", ""},
		{"others given", writes, "/x", "203.0.113.1:999", gate.ReasonScope},
		{"from the office", office, "/x", "192.0.2.77:999", ""},
		{"from it in IPv6 clothes", office, "/x", "[::ffff:192.0.2.77]:999", ""},
		{"from its IPv6", office, "/x", "[2001:db8::1]:999", ""},
		{"from elsewhere", office, "/x", "192.0.3.1:999", gate.ReasonAddress},
		{"from elsewhere, to what needs nothing", office, "/open", "192.0.3.1:999", gate.ReasonAddress},
		{"from nowhere", office, "/x", "", gate.ReasonAddress},
		{"a block that does not read", unread, "/x", "192.0.2.77:999", gate.ReasonAddress},
	} {
		v := g.Admit(tab, &gate.Request{Host: "scoped.emea.test", Method: "GET", Path: c.path, APIKey: []string{c.key}, Remote: c.remote}, time.Second)
		if v.Problem.Reason != c.reason || !v.Counted || v.PlanRev != 9 {
			t.Errorf("%s: got %q, counted %v under revision %d; want %q, counted under 9", c.name, v.Problem.Reason, v.Counted, v.PlanRev, c.reason)
		}
		if c.reason != "" && (v.Problem.Status != 403 || v.Outcome != usage.OutcomeRefused || v.Problem.Title == "") {
			t.Errorf("%s: got %d %v %q, want 403, refused and a title", c.name, v.Problem.Status, v.Outcome, v.Problem.Title)
		}
	}
}

func TestGate_SeveralWindows(t *testing.T) {
	w := sample(t)
	w.add(table.KindPlan, "wide", table.Plan{Name: "wide", APIs: map[string]string{"orders": "core"}, RequestsPerSecond: 3, Burst: 3,
		Windows: []table.Window{{Requests: 60, Per: time.Minute, Burst: 10}, {Requests: 5, Per: time.Hour}}, MaxConcurrent: 2})
	key := w.bound("wide", "", "")
	tab := w.table()
	g := &gate.Gate{Hasher: apikey.NewHasher(pepper), Limits: limit.NewMap()}
	r := gate.Request{Host: "orders.emea.test", Method: "GET", Path: "/v1", APIKey: []string{key}}
	now := time.Second
	first := g.Admit(tab, &r, now)
	if want := `"plan";q=3;w=1, "60s";q=10;w=10, "3600s";q=5;w=3600`; !first.Admitted() || policyOf(&first) != want {
		t.Fatalf("got %v and %s, want %s", first.Problem, policyOf(&first), want)
	}
	if want := `"plan";r=2;t=1, "60s";r=9;t=1, "3600s";r=4;t=720`; limitOf(&first) != want {
		t.Errorf("got %s, want %s", limitOf(&first), want)
	}
	second := g.Admit(tab, &r, now)
	third := g.Admit(tab, &r, now)
	if !second.Admitted() || third.Problem.Reason != gate.ReasonCrowded || third.Problem.Status != 429 || third.Outcome != usage.OutcomeLimited || gate.Seconds(third.RetryAfter) != 1 {
		t.Errorf("got %v and %v, want a third one too many at once", second.Problem, third.Problem)
	}
	first.Pass.Leave()
	second.Pass.Leave()
	third.Pass.Leave() // nothing
	// What the rate a second refuses takes nothing from the hour: 3 of 5 are left, and pass one by one.
	for i := range 20 {
		v := g.Admit(tab, &r, now)
		if v.Admitted() != (i == 0) {
			t.Fatalf("request %d: got %v", i, v.Problem)
		}
		v.Pass.Leave()
	}
	passed := 0
	for range 10 {
		now += time.Second
		v := g.Admit(tab, &r, now)
		if v.Admitted() {
			passed++
			v.Pass.Leave()
		} else if v.Problem.Reason != gate.ReasonRateExceeded || v.RetryAfter < 10*time.Minute || !strings.Contains(limitOf(&v), `"3600s";r=0`) {
			t.Errorf("got %v after %v, %s; want the hour to be used up", v.Problem, v.RetryAfter, limitOf(&v))
		}
	}
	if passed != 2 {
		t.Errorf("%d more passed, want the 2 that were left of the hour", passed)
	}
}

func BenchmarkGate_AdmitBound(b *testing.B) {
	w := sample(b)
	w.add(table.KindPlan, "wide", table.Plan{Name: "wide", APIs: map[string]string{"orders": "core"},
		Windows: []table.Window{{Requests: 1e9, Per: time.Minute}, {Requests: 1e9, Per: time.Hour}}, MaxConcurrent: 2})
	key := w.bound("wide", "orders:read", "192.0.2.0/24")
	tab := w.table()
	g := &gate.Gate{Hasher: apikey.NewHasher(pepper), Limits: limit.NewMap()}
	r := gate.Request{Host: "orders.emea.test", Method: "GET", Path: "/v1", APIKey: []string{key}, Remote: "192.0.2.1:1234"}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		v := g.Admit(tab, &r, time.Duration(i)*time.Second)
		if !v.Admitted() {
			b.Fatal(v.Problem)
		}
		v.Pass.Leave()
	}
}

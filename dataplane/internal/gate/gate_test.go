package gate_test

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"bailiwick/dataplane/internal/gate"
	"bailiwick/dataplane/internal/limit"
	"bailiwick/dataplane/internal/policy"
	"bailiwick/shared/apikey"
	"bailiwick/shared/revision"
	"bailiwick/shared/table"
	"bailiwick/shared/usage"
)

var pepper = make([]byte, apikey.PepperLen)

type world struct {
	t       testing.TB
	objects []table.Object
}

func (w *world) add(kind table.Kind, id string, v any) {
	o, err := table.Encode(kind, id, v)
	if err != nil {
		w.t.Fatal(err)
	}
	w.objects = append(w.objects, o)
}

func (w *world) key(zone, customer, plan string, suspended bool) string {
	id, text, err := apikey.Mint(zone, rand.Reader)
	if err != nil {
		w.t.Fatal(err)
	}
	d := apikey.Sum(pepper, text.Reveal())
	w.add(table.KindKey, id, table.Key{ID: id, DigestHex: hex.EncodeToString(d[:]), Customer: customer, Subscription: "main", Plan: plan, Suspended: suspended})
	return text.Reveal()
}

func (w *world) table() *policy.Table {
	c, z := revision.Revision{Epoch: 1, Index: 1}, revision.Revision{Epoch: 1, Index: 1}
	for _, o := range w.objects {
		if o.Kind.Scope() == table.ScopeZone {
			z.Sum = z.Sum.Add(o.Sum())
		} else {
			c.Sum = c.Sum.Add(o.Sum())
		}
	}
	t, err := policy.NewTable(w.objects, c, z)
	if err != nil {
		w.t.Fatal(err)
	}
	return t
}

func sample(t testing.TB) *world {
	w := &world{t: t}
	w.add(table.KindSettings, table.SettingsID, table.Settings{Zone: "emea", Region: "eu-west"})
	w.add(table.KindAPI, "orders", table.API{Name: "orders", Zone: "emea", Hosts: []string{"orders.emea.test"}, Targets: []string{"http://up"}, Routes: []table.Route{
		{Name: "items", PathPrefix: "/items", Methods: []string{"GET", "POST"}}, {Name: "all", PathPrefix: "/v1"}}})
	w.add(table.KindAPI, "reports", table.API{Name: "reports", Zone: "emea", Hosts: []string{"reports.emea.test"}, Targets: []string{"http://up"}})
	w.add(table.KindAPI, "away", table.API{Name: "away", Zone: "emea", Hosts: []string{"away.emea.test"}})
	w.add(table.KindPlan, "free", table.Plan{Name: "free", Rev: 4, APIs: map[string]string{"orders": "core"}, RequestsPerSecond: 5, Burst: 5})
	w.add(table.KindPlan, "strict", table.Plan{Name: "strict", Rev: 2, APIs: map[string]string{"orders": "core"}, MaxKeyStaleness: time.Minute})
	w.add(table.KindDirectory, table.DirectoryID("us", "orders"), table.Directory{API: "orders", Zone: "us", Hosts: []string{"orders.us.test"}})
	return w
}

func TestGate_Verdicts(t *testing.T) {
	w := sample(t)
	free, strict := w.key("emea", "acme", "free", false), w.key("emea", "acme", "strict", false)
	suspended, planless := w.key("emea", "acme", "free", true), w.key("emea", "acme", "gone", false)
	foreign := w.key("us", "acme-us", "free", false) // even if a table held it, the hint decides
	nowhere := w.key("uk", "acme-uk", "free", false)
	_, unknown, _ := apikey.Mint("emea", rand.Reader)
	// The secret of one key under the id of another, with a right checksum, is a wrong secret: mint until done
	// is impossible from outside, so the table holds another digest for the id instead.
	wrongID, wrong, _ := apikey.Mint("emea", rand.Reader)
	w.add(table.KindKey, wrongID, table.Key{ID: wrongID, DigestHex: strings.Repeat("ab", 32), Customer: "acme", Plan: "free"})
	tab := w.table()

	for _, c := range []struct {
		name    string
		host    string
		method  string
		path    string
		auth    []string
		key     []string
		age     time.Duration
		status  int
		reason  string
		counted usage.Outcome // 0: no row
	}{
		{name: "bearer", auth: []string{"Bearer " + free}},
		{name: "scheme in any case", auth: []string{"bEARER  " + free}},
		{name: "x-api-key", key: []string{free}},
		{name: "both alike", auth: []string{"Bearer " + free}, key: []string{free}},
		{name: "another scheme is the upstream's", auth: []string{"Basic dTpw"}, key: []string{free}},
		{name: "no key", status: 401, reason: gate.ReasonKeyMissing},
		{name: "basic only", auth: []string{"Basic dTpw"}, status: 401, reason: gate.ReasonKeyMissing},
		{name: "blank bearer", auth: []string{"Bearer  "}, status: 401, reason: gate.ReasonKeyMissing},
		{name: "two bearers", auth: []string{"Bearer " + free, "Bearer " + free}, status: 401, reason: gate.ReasonKeyConflict},
		{name: "two keys", key: []string{free, strict}, status: 401, reason: gate.ReasonKeyConflict},
		{name: "two that differ", auth: []string{"Bearer " + free}, key: []string{strict}, status: 401, reason: gate.ReasonKeyConflict},
		{name: "joined in one header", key: []string{free + ", " + free}, status: 401, reason: gate.ReasonKeyInvalid},
		{name: "noise", key: []string{"bw_emea_noise"}, status: 401, reason: gate.ReasonKeyInvalid},
		{name: "one letter off", key: []string{free[:len(free)-1] + "!"}, status: 401, reason: gate.ReasonKeyInvalid},
		{name: "unknown id", key: []string{unknown.Reveal()}, status: 401, reason: gate.ReasonKeyInvalid},
		{name: "wrong secret", key: []string{wrong.Reveal()}, status: 401, reason: gate.ReasonKeyInvalid},
		{name: "foreign zone", key: []string{foreign}, status: 421, reason: gate.ReasonKeyForeign},
		{name: "zone nobody knows", key: []string{nowhere}, status: 401, reason: gate.ReasonKeyInvalid},
		{name: "foreign zone without that API", host: "reports.emea.test", key: []string{foreign}, status: 401, reason: gate.ReasonKeyInvalid},
		{name: "suspended", key: []string{suspended}, status: 403, reason: gate.ReasonKeySuspended, counted: usage.OutcomeRefused},
		{name: "not entitled", host: "reports.emea.test", key: []string{free}, status: 403, reason: gate.ReasonNotEntitled, counted: usage.OutcomeRefused},
		{name: "plan that is gone", key: []string{planless}, status: 403, reason: gate.ReasonNotEntitled, counted: usage.OutcomeRefused},
		{name: "fresh enough", key: []string{strict}, age: time.Minute},
		{name: "stale", key: []string{strict}, age: time.Minute + 1, status: 403, reason: gate.ReasonKeyStale, counted: usage.OutcomeRefused},
		{name: "stale does not matter", key: []string{free}, age: time.Hour},
		{name: "unknown host", host: "x.test", key: []string{free}, status: 421, reason: gate.ReasonHostUnknown},
		{name: "another zone's host", host: "orders.us.test", key: []string{free}, status: 421, reason: gate.ReasonHostForeign},
		{name: "not deployed here", host: "away.emea.test", key: []string{free}, status: 421, reason: gate.ReasonNotHome},
		{name: "no route", path: "/other", key: []string{free}, status: 404, reason: gate.ReasonRouteUnknown},
		{name: "no method", path: "/items/1", method: "DELETE", key: []string{free}, status: 405, reason: gate.ReasonMethodUnknown},
	} {
		g := &gate.Gate{Hasher: apikey.NewHasher(pepper), Limits: limit.NewMap()}
		or := func(s, def string) string {
			if s == "" {
				return def
			}
			return s
		}
		r := gate.Request{Host: or(c.host, "orders.emea.test"), Method: or(c.method, "GET"), Path: or(c.path, "/v1/x"), Authorization: c.auth, APIKey: c.key, TableAge: c.age}
		v := g.Admit(tab, &r, time.Second)
		if v.Problem.Status != c.status || v.Problem.Reason != c.reason {
			t.Errorf("%s: got %d %q, want %d %q", c.name, v.Problem.Status, v.Problem.Reason, c.status, c.reason)
		}
		if c.status != 0 && (v.Counted != (c.counted != 0) || v.Outcome != c.counted && v.Counted || v.Problem.Title == "") {
			t.Errorf("%s: got counted %v as %v, title %q; want outcome %d", c.name, v.Counted, v.Outcome, v.Problem.Title, c.counted)
		}
		if c.status == 0 && (!v.Counted || v.Customer != "acme" || v.Subscription != "main" || v.Product != "core" || v.PlanRev == 0 || v.API.Name != "orders" || v.Route.Name != "all") {
			t.Errorf("%s: got %+v, want all of the account", c.name, v)
		}
		if c.status == 0 && v.KeyInBearer != (len(c.auth) > 0 && strings.EqualFold(c.auth[0][:6], "bearer")) {
			t.Errorf("%s: got key in bearer %v", c.name, v.KeyInBearer)
		}
		if c.name == "foreign zone" && !slices.Equal(v.Problem.Hosts, []string{"orders.us.test"}) {
			t.Errorf("%s: got hosts %v", c.name, v.Problem.Hosts)
		}
	}
	g := &gate.Gate{Hasher: apikey.NewHasher(pepper), Limits: limit.NewMap()}
	if v := g.Admit(nil, &gate.Request{Host: "orders.emea.test"}, 0); v.Problem.Status != 503 || v.RetryAfter == 0 {
		t.Errorf("no table: got %+v, want 503 with a time to retry", v.Problem)
	}
}

// The end of a rotated key is in the table that the edge holds: it comes true without a word from anybody, to the second.
func TestGate_ARotatedKeyEndsByItself(t *testing.T) {
	w := sample(t)
	id, text, err := apikey.Mint("emea", rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	d := apikey.Sum(pepper, text.Reveal())
	w.add(table.KindKey, id, table.Key{ID: id, DigestHex: hex.EncodeToString(d[:]), Customer: "acme", Subscription: "main", Plan: "free", Ends: 1000})
	_, wrong, _ := apikey.Mint("emea", rand.Reader)
	g := &gate.Gate{Hasher: apikey.NewHasher(pepper), Limits: limit.NewMap()}
	tab := w.table()
	for _, c := range []struct {
		unix   int64
		key    string
		status int
		reason string
	}{{999, text.Reveal(), 0, ""}, {1000, text.Reveal(), 401, gate.ReasonKeyEnded}, {1 << 40, text.Reveal(), 401, gate.ReasonKeyEnded}, {1000, wrong.Reveal(), 401, gate.ReasonKeyInvalid}} {
		v := g.Admit(tab, &gate.Request{Host: "orders.emea.test", Method: "GET", Path: "/v1", APIKey: []string{c.key}, Unix: c.unix, TableAge: 1000 * time.Hour}, 0)
		if v.Problem.Status != c.status || v.Problem.Reason != c.reason {
			t.Errorf("at %d: got %d %s, want %d %s", c.unix, v.Problem.Status, v.Problem.Reason, c.status, c.reason)
		}
		if c.status != 0 && (v.Counted || v.Customer != "") {
			t.Errorf("at %d: a refused key is counted, or its customer named", c.unix)
		}
	}
}

func TestGate_LimitsAndSaysSo(t *testing.T) {
	w := sample(t)
	key, other := w.key("emea", "acme", "free", false), w.key("emea", "acme", "free", false)
	tab := w.table()
	g := &gate.Gate{Hasher: apikey.NewHasher(pepper), Limits: limit.NewMap()}
	r := gate.Request{Host: "orders.emea.test", Method: "GET", Path: "/v1", APIKey: []string{key}}
	for i, want := range []string{`"plan";r=4;t=1`, `"plan";r=3;t=1`, `"plan";r=2;t=1`, `"plan";r=1;t=1`, `"plan";r=0;t=1`} {
		v := g.Admit(tab, &r, time.Second)
		if !v.Admitted() || limitOf(&v) != want || policyOf(&v) != `"plan";q=5;w=1` {
			t.Fatalf("request %d: got %v %s %s, want %s", i, v.Problem, limitOf(&v), policyOf(&v), want)
		}
	}
	r.APIKey = []string{other} // another key of the same subscription draws from the same limit
	v := g.Admit(tab, &r, time.Second)
	if v.Problem.Status != 429 || v.Problem.Reason != gate.ReasonRateExceeded || v.Outcome != usage.OutcomeLimited || !v.Counted || gate.Seconds(v.RetryAfter) != 1 || limitOf(&v) == "" {
		t.Errorf("sixth: got %+v, want 429, a limited row and a second to wait", v)
	}
	if v := g.Admit(tab, &r, time.Second+v.RetryAfter); !v.Admitted() {
		t.Errorf("after the wait: got %+v, want admitted", v.Problem)
	}
}

func TestGate_RandomKeysCostNothingThatStays(t *testing.T) {
	w := sample(t)
	tab := w.table()
	limits := limit.NewMap()
	g := &gate.Gate{Hasher: apikey.NewHasher(pepper), Limits: limits}
	_, text, _ := apikey.Mint("emea", rand.Reader)
	r := gate.Request{Host: "orders.emea.test", Method: "GET", Path: "/v1", APIKey: []string{text.Reveal()}}
	if n := testing.AllocsPerRun(100, func() { g.Admit(tab, &r, time.Second) }); n != 0 && !raceDetector {
		t.Errorf("got %v allocations for a random key, want 0", n)
	}
	if limits.Len() != 0 {
		t.Errorf("got %d limiters, want none", limits.Len())
	}
}

// Each reason that the code names has a title, and so stands in the list that metrics are made of.
func TestReasons_AreAll(t *testing.T) {
	src, err := os.ReadFile("problem.go")
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile(`(?m)^\tReason[A-Za-z]+ += "([a-z-]+)"`).FindAllStringSubmatch(string(src), -1)
	for _, m := range named {
		if !slices.Contains(gate.Reasons(), m[1]) || gate.NewProblem(400, m[1], "").Title == "" {
			t.Errorf("%s has no title", m[1])
		}
	}
	if len(named) != len(gate.Reasons()) || len(named) < 40 {
		t.Errorf("%d are named, %d listed", len(named), len(gate.Reasons()))
	}
}

func TestProblem_JSON(t *testing.T) {
	p := gate.NewProblem(421, gate.ReasonKeyForeign, "go there")
	p.Hosts = []string{"orders.us.test"}
	var got map[string]any
	if err := json.Unmarshal(p.JSON("id-1"), &got); err != nil {
		t.Fatal(err)
	}
	if got["type"] != "urn:bailiwick:problem:key-foreign" || got["status"] != 421.0 || got["reason"] != "key-foreign" || got["request_id"] != "id-1" || got["hosts"].([]any)[0] != "orders.us.test" {
		t.Errorf("got %v", got)
	}
}

func BenchmarkGate_Admit(b *testing.B) {
	w := sample(b)
	key := w.key("emea", "acme", "free", false)
	tab := w.table()
	g := &gate.Gate{Hasher: apikey.NewHasher(pepper), Limits: limit.NewMap()}
	r := gate.Request{Host: "orders.emea.test", Method: "GET", Path: "/v1", APIKey: []string{key}}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		g.Admit(tab, &r, time.Duration(i)*time.Second)
	}
}

func limitOf(v *gate.Verdict) string  { l, _ := v.Limits(); return string(l) }
func policyOf(v *gate.Verdict) string { _, p := v.Limits(); return string(p) }

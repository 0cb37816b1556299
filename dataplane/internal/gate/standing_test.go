package gate_test

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"bailiwick/dataplane/internal/gate"
	"bailiwick/dataplane/internal/limit"
	"bailiwick/dataplane/internal/policy"
	"bailiwick/shared/apikey"
	"bailiwick/shared/table"
)

// timed takes the token "good", until a moment.
type timed struct{ until int64 }

func (t timed) Verify(api string, auth *table.Auth, raw, from string, unix int64) (issuer, subject, scopes string, until int64, err error) {
	if raw != "good" || unix >= t.until {
		return "", "", "", 0, errors.New("its time is over")
	}
	return "https://id.test", "acme", "", t.until, nil
}

// What a request was admitted on stands exactly as long as it would be admitted again.
func TestStanding_EndsWithWhatWasShown(t *testing.T) {
	const now, until = 1_000, 1_060
	w := &world{t: t}
	w.add(table.KindSettings, table.SettingsID, table.Settings{Zone: "emea", Region: "eu-west"})
	w.add(table.KindPlan, "gold", table.Plan{Name: "gold", Rev: 1, APIs: map[string]string{"orders": "core"}})
	id, d := apikey.NewHasher(pepper).Bound(apikey.KindToken, apikey.TokenText("https://id.test", "acme"))
	w.add(table.KindKey, id, table.Key{ID: id, DigestHex: hex.EncodeToString(d[:]), Customer: "acme", Subscription: "main", Plan: "gold"})
	api := table.API{Name: "orders", Zone: "emea", Hosts: []string{"orders.test"}, Policy: "gdpr", Targets: []string{"http://127.0.0.1:9"}}
	with := func(change func(a *table.API)) *world {
		v, a := *w, api
		a.Auth = &table.Auth{Issuers: []table.Issuer{{Issuer: "https://id.test", Algorithms: []string{"ES256"}}}}
		change(&a)
		v.objects = append([]table.Object(nil), w.objects...)
		v.add(table.KindAPI, "orders", a)
		return &v
	}
	t0 := with(func(*table.API) {}).table()
	g := &gate.Gate{Hasher: apikey.NewHasher(pepper), Limits: limit.NewMap(), Tokens: timed{until}}
	r := &gate.Request{Host: "orders.test", Method: "GET", Path: "/x", Authorization: []string{"Bearer good"}, Remote: "192.0.2.1:1", Shown: nothing{}, Unix: now}
	v := g.Admit(t0, r, 0)
	if !v.Admitted() {
		t.Fatalf("refused: %+v", v.Problem)
	}
	s := v.Standing(t0, r)
	for name, c := range map[string]struct {
		table  *world
		unix   int64
		reason string
	}{
		"as it was":                           {with(func(*table.API) {}), until - 1, ""},
		"the token's time is over":            {with(func(*table.API) {}), until, gate.ReasonTokenInvalid},
		"its issuer is trusted no more":       {with(func(a *table.API) { a.Auth.Issuers[0].Issuer = "https://other.test" }), now, gate.ReasonTokenInvalid},
		"no token is taken any more":          {with(func(a *table.API) { a.Auth = nil }), now, gate.ReasonTokenInvalid},
		"its upstreams are what zone found":   {withTargets(with(func(a *table.API) { a.Targets, a.Dispatch.Discovery = nil, "etcd" })), now, ""},
		"it has no upstreams here any more":   {with(func(a *table.API) { a.Targets = nil }), now, gate.ReasonNotHome},
		"another key has its name":            {rekeyed(with(func(*table.API) {})), now, gate.ReasonKeyInvalid},
		"its host is another API's meanwhile": {with(func(a *table.API) { a.Name = "reports" }), now, gate.ReasonHostUnknown},
	} {
		if _, _, p := s.Stands(c.table.table(), time.Second, c.unix); p.Reason != c.reason {
			t.Errorf("%s: %q, want %q", name, p.Reason, c.reason)
		}
	}
	if strings.Contains(fmt.Sprintf("%+v", s), "good") {
		t.Error("what stands keeps the token")
	}
}

// rekeyed is w with other secrets under the same names.
func rekeyed(w *world) *world {
	for i, o := range w.objects {
		var k table.Key
		if o.Kind != table.KindKey || table.Decode(o, &k) != nil {
			continue
		}
		k.DigestHex = strings.Repeat("ab", 32)
		w.objects = append(w.objects[:i:i], w.objects[i+1:]...)
		w.add(table.KindKey, k.ID, k)
		break
	}
	return w
}

func withTargets(w *world) *world {
	w.add(table.KindTargets, "orders", table.Targets{API: "orders", URLs: []string{"http://127.0.0.1:9"}})
	return w
}

type nothing struct{}

func (nothing) Header(string) []string               { return nil }
func (nothing) Query(string) []string                { return nil }
func (nothing) Certificate() ([32]byte, int64, bool) { return [32]byte{}, 0, false }

// certificate is one that is shown, and its time.
type certificate struct {
	nothing
	until int64
}

func (c certificate) Certificate() ([32]byte, int64, bool) { return [32]byte{1}, c.until, true }

func TestStanding_EndsWithItsCertificate(t *testing.T) {
	w := &world{t: t}
	w.add(table.KindSettings, table.SettingsID, table.Settings{Zone: "emea", Region: "eu-west"})
	w.add(table.KindPlan, "gold", table.Plan{Name: "gold", Rev: 1, APIs: map[string]string{"orders": "core"}})
	id, d := apikey.NewHasher(pepper).Bound(apikey.KindCertificate, "01"+strings.Repeat("00", 31))
	w.add(table.KindKey, id, table.Key{ID: id, DigestHex: hex.EncodeToString(d[:]), Customer: "acme", Subscription: "main", Plan: "gold"})
	tables := map[bool]*policy.Table{}
	for _, taken := range []bool{true, false} {
		v := *w
		v.objects = append([]table.Object(nil), w.objects...)
		v.add(table.KindAPI, "orders", table.API{Name: "orders", Zone: "emea", Hosts: []string{"orders.test"}, Policy: "gdpr", Targets: []string{"http://127.0.0.1:9"}, Auth: &table.Auth{Certificates: taken}})
		tables[taken] = v.table()
	}
	g := &gate.Gate{Hasher: apikey.NewHasher(pepper), Limits: limit.NewMap()}
	for name, c := range map[string]struct {
		until, unix int64
		taken       bool
		reason      string
	}{
		"in its time":                        {1_060, 1_059, true, ""},
		"its time is over":                   {1_060, 1_060, true, gate.ReasonKeyMissing},
		"it does not end":                    {0, 1 << 40, true, ""},
		"no certificates are taken any more": {1_060, 1_000, false, gate.ReasonKeyMissing},
	} {
		r := &gate.Request{Host: "orders.test", Method: "GET", Path: "/x", Remote: "192.0.2.1:1", Shown: certificate{until: c.until}, Unix: 1_000}
		v := g.Admit(tables[true], r, 0)
		if !v.Admitted() {
			t.Fatalf("%s: refused: %+v", name, v.Problem)
		}
		s := v.Standing(tables[true], r)
		if _, _, p := s.Stands(tables[c.taken], time.Second, c.unix); p.Reason != c.reason {
			t.Errorf("%s: %q, want %q", name, p.Reason, c.reason)
		}
	}
}

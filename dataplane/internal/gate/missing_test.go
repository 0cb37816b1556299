package gate_test

import (
	"testing"

	"bailiwick/dataplane/internal/gate"
	"bailiwick/dataplane/internal/limit"
	"bailiwick/shared/apikey"
	"bailiwick/shared/table"
)

// Who sent nothing is told how this API takes it.
func TestGate_SaysHowAKeyComes(t *testing.T) {
	const always = "Send the key as Authorization: Bearer or as X-API-Key."
	for want, auth := range map[string]*table.Auth{
		always: nil,
		"Send the key as Authorization: Bearer, as X-API-Key or as X-Partner-Key.":           {KeyHeader: "X-Partner-Key", KeyQuery: "api_key"},
		always + " A token of an issuer that the API trusts comes as Authorization: Bearer.": {Issuers: []table.Issuer{{Issuer: "https://id.test", Algorithms: []string{"ES256"}}}},
		always + " A client certificate that a key is bound to needs neither.":               {Certificates: true},
	} {
		w := &world{t: t}
		w.add(table.KindSettings, table.SettingsID, table.Settings{Zone: "emea", Region: "eu-west"})
		w.add(table.KindAPI, "orders", table.API{Name: "orders", Zone: "emea", Hosts: []string{"orders.test"}, Targets: []string{"http://up"}, Auth: auth})
		g := &gate.Gate{Hasher: apikey.NewHasher(pepper), Limits: limit.NewMap()}
		v := g.Admit(w.table(), &gate.Request{Host: "orders.test", Method: "GET", Path: "/x", Remote: "192.0.2.1:1", Shown: nothing{}, Unix: 1}, 0)
		if v.Problem.Reason != gate.ReasonKeyMissing || v.Problem.Detail != want {
			t.Errorf("%+v: got %s, %q; want %q", auth, v.Problem.Reason, v.Problem.Detail, want)
		}
	}
}

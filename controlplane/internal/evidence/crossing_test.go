package evidence

import (
	"strings"
	"testing"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
)

// A zone that lies about a recovery is found out: what crosses zones is not permitted in the new epoch before somebody
// approved it there.
func TestReplay_ARecoveryClosesWhatCrossesZones(t *testing.T) {
	abroad := rulesV1
	abroad.Bases = append(abroad.Bases[:1:1], model.LegalBasis{Name: "scc", Kind: "scc", Status: "active"})
	abroad.Policies = []model.Policy{{Name: "gdpr-emea", Zone: "emea", WithinZone: &model.WithinZone{Basis: "gdpr"},
		Pairs: []model.Pair{{From: "eu-west", To: "us-east", Basis: "scc"}}}}
	westEast := model.PermittedPair{Policy: "gdpr-emea", From: "eu-west", To: "us-east", Basis: "scc"}
	all := model.Permitted{Pairs: []model.PermittedPair{centralWest, westCentral, westEast}}
	recovered := abroad
	recovered.CatalogEpoch = 4
	for _, c := range []struct {
		name  string
		epoch uint64
		rules model.Adopted
		after []op
		wrong string
	}{
		{"the same epochs", 7, abroad, nil, ""},
		{"the store recovered", 8, abroad, nil, "is not permitted"},
		{"the catalog recovered", 7, recovered, nil, "is not permitted"},
		{"and approved", 8, recovered, []op{{model.KeyAudit, model.Audit{Operator: "bob", Call: "approve"}}, {model.KeyCrossing, model.Crossing{CatalogEpoch: 4, StoreEpoch: 8, By: "bob"}}}, ""},
		{"approved by nobody", 8, recovered, []op{{model.KeyCrossing, model.Crossing{CatalogEpoch: 4, StoreEpoch: 8}}}, "by nobody"},
		{"approved for ever", 8, recovered, []op{{model.KeyAudit, model.Audit{Operator: "bob", Call: "approve"}}, {model.KeyCrossing, model.Crossing{CatalogEpoch: 4, StoreEpoch: 1 << 60, By: "bob"}}}, "not there yet"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHistory(t)
			w := newReplay("emea", nil)
			var wrong []string
			txn := func(epoch uint64, ops ...op) {
				var events []group.Event
				h.index++
				for _, o := range ops {
					events = append(events, group.Event{Index: h.index, Time: h.at, KV: group.KV{Key: o.key, Value: model.Encode(o.value)}})
				}
				records, err := recordsOf(events, epoch, h.log.mask)
				if err != nil {
					t.Fatal(err)
				}
				for _, r := range records {
					wrong = append(wrong, w.apply(r.open())...)
				}
			}
			txn(7, op{model.KeyAdopted, abroad})
			txn(7, op{model.KeyCrossing, model.Crossing{CatalogEpoch: 3, StoreEpoch: 7}})
			txn(7, op{model.KeyPermitted, all})
			h.at = h.at.Add(settle * 2)
			txn(c.epoch, op{model.KeyAdopted, c.rules})
			if c.after != nil {
				txn(c.epoch, c.after...)
			}
			h.at = h.at.Add(settle * 2) // before that, what held until now may still be logged
			txn(c.epoch, op{model.KeyPermitted, all})
			if got := strings.Join(wrong, "; "); c.wrong == "" && got != "" || !strings.Contains(got, c.wrong) {
				t.Errorf("found %q, want %q", got, c.wrong)
			}
		})
	}
}

package evidence

import (
	"strings"
	"testing"
	"time"

	"bailiwick/controlplane/internal/approval"
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
		{"and approved", 8, recovered, []op{{model.KeyAudit, model.Audit{Operator: "bob", Call: "approve"}}, {model.KeyCrossing, model.Crossing{CatalogEpoch: 4, StoreEpoch: 8}}}, ""},
		{"approved by nobody", 8, recovered, []op{{model.KeyCrossing, model.Crossing{CatalogEpoch: 4, StoreEpoch: 8}}}, "by nobody"},
		{"approved for ever", 8, recovered, []op{{model.KeyAudit, model.Audit{Operator: "bob", Call: "approve"}}, {model.KeyCrossing, model.Crossing{CatalogEpoch: 4, StoreEpoch: 1 << 60}}}, "not there yet"},
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

// What a store went back to may be of before its first approval: one that nobody made is then no birth.
func TestReplay_ARecoveryIsNoBirth(t *testing.T) {
	h := newHistory(t)
	for _, recovered := range []bool{false, true} {
		w := newReplay("emea", nil)
		events := []group.Event{{Index: 1, Time: h.at, KV: group.KV{Key: model.KeyAdopted, Value: model.Encode(rulesV1)}}}
		if recovered {
			events = append(events, group.Event{Index: 2, Time: h.at, KV: group.KV{Key: model.PrefixRecovery + "7", Value: model.Encode(model.Recovery{Zone: "emea"})}})
		}
		events = append(events, group.Event{Index: 3, Time: h.at, KV: group.KV{Key: model.KeyCrossing, Value: model.Encode(model.Crossing{CatalogEpoch: rulesV1.CatalogEpoch, StoreEpoch: 7})}})
		var last string
		for _, e := range events {
			records, err := recordsOf([]group.Event{e}, 7, h.log.mask)
			if err != nil || len(records) != 1 {
				t.Fatal(records, err)
			}
			last = strings.Join(w.apply(records[0].open()), "; ")
		}
		if recovered != strings.Contains(last, "by nobody") {
			t.Errorf("approved by nobody, after a recovery: %t: found %q", recovered, last)
		}
	}
}

// Who decided a proposal is another than who made it, and the record that says so was written by who it names.
func TestReplay_AProposalIsDecidedByAnother(t *testing.T) {
	docs := []model.ProposedDoc{{Kind: "Closure", Name: "stop", Key: model.PrefixClosure + "stop"}}
	at := time.Date(2026, 11, 25, 9, 0, 0, 0, time.UTC)
	whole := func(status, decided string, change func(*model.Proposal)) model.Proposal {
		p := model.Proposal{ID: approval.ID("emea", docs, "base"), Zone: "emea", Docs: docs, Base: "base", By: "alice", At: at, Expires: at.Add(time.Hour), Status: status, DecidedBy: decided}
		if decided != "" {
			p.DecidedAt = at.Add(time.Minute)
		}
		if change != nil {
			change(&p)
		}
		return p
	}
	for _, c := range []struct {
		name, by string
		p        model.Proposal
		wrong    string
	}{
		{"made", "alice", whole("pending", "", nil), ""},
		{"made in another's name", "bob", whole("pending", "", nil), "was written by bob"},
		{"approved", "bob", whole("approved", "bob", nil), ""},
		{"done", "bob", whole("done", "bob", nil), ""},
		{"approved by who made it", "alice", whole("approved", "alice", nil), "is approved by alice"},
		{"by who made it, spelt otherwise", "Alice", whole("done", "Alice", nil), "is approved by Alice"},
		{"approved in another's name", "alice", whole("approved", "bob", nil), "is approved by bob"},
		{"too late", "bob", whole("approved", "bob", func(p *model.Proposal) { p.DecidedAt = at.Add(2 * time.Hour) }), "after it had ended"},
		{"of other content", "bob", whole("approved", "bob", func(p *model.Proposal) { p.Base = "other" }), "does not say what its name stands for"},
	} {
		h := newHistory(t)
		records, err := recordsOf([]group.Event{
			{Index: 1, Time: h.at, KV: group.KV{Key: model.KeyAudit, Value: model.Encode(model.Audit{Operator: c.by, Call: "approve"})}},
			{Index: 1, Time: h.at, KV: group.KV{Key: model.PrefixApproval + c.p.ID, Value: model.Encode(c.p)}}}, 7, h.log.mask)
		if err != nil || len(records) != 1 {
			t.Fatal(records, err)
		}
		if got := strings.Join(newReplay("emea", nil).apply(records[0].open()), "; "); c.wrong == "" && got != "" || !strings.Contains(got, c.wrong) {
			t.Errorf("%s: found %q, want %q", c.name, got, c.wrong)
		}
	}
}

package evidence

import (
	"fmt"
	"iter"
	"strings"
	"testing"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
)

// What became of the catalog is told whole and in order, with who did it: by name in the log of his zone, and by a
// pseudonym in every other.
func TestCatalogWrite_SaysWhoDidWhat(t *testing.T) {
	pepper := []byte("0123456789abcdef0123456789abcdef")
	before, after := model.Region{Name: "eu-west", Zone: "emea"}, model.Region{Name: "eu-west", Zone: "emea", Drain: "flood"}
	events := []group.Event{
		{Index: 9, KV: group.KV{Key: model.KeyAudit, Value: model.Encode(model.Audit{Operator: Pseudonym(pepper, "emea", "alice"), Call: "apply", RequestSHA256: "aa"})}},
		{Index: 9, KV: group.KV{Key: model.PrefixRegion + "eu-west", Value: model.Encode(after)}, Prev: &group.KV{Value: model.Encode(before)}},
		{Index: 9, Delete: true, KV: group.KV{Key: model.PrefixPolicy + "old"}, Prev: &group.KV{Value: model.Encode(model.Policy{Name: "old"})}},
		{Index: 9, KV: group.KV{Key: "meta/apply", Value: []byte("x")}},
	}
	for zone, name := range map[string]string{"emea": "alice", "us": ""} {
		l := &Log{cfg: Config{Zone: zone, Pepper: pepper, Store: zoneStore{names: []string{"alice", "bob"}}}}
		w, err := l.catalogWrite(events)
		if err != nil {
			t.Fatal(err)
		}
		if w.Index != 9 || w.Name != name || strings.Contains(w.By, "alice") || w.Call != "apply" || len(w.Changes) != 2 {
			t.Fatalf("in %s: %+v", zone, w)
		}
		region, policy := w.Changes[0], w.Changes[1]
		if region.Drain == nil || *region.Drain != "flood" || region.Before != sum(model.Encode(before)) || region.After != sum(model.Encode(after)) {
			t.Errorf("the drain: %+v", region)
		}
		if policy.Name != "old" || policy.Before == "" || policy.After != "" || policy.Drain != nil {
			t.Errorf("the deletion: %+v", policy)
		}
	}
}

// zoneStore is a zone store that holds operators and nothing else.
type zoneStore struct {
	group.Store
	names []string
}

func (s zoneStore) Local() group.Snapshot { return staffed{names: s.names} }

type staffed struct {
	group.Snapshot
	names []string
}

func (s staffed) List(string) iter.Seq[group.KV] {
	return func(yield func(group.KV) bool) {
		for _, n := range s.names {
			if !yield(group.KV{Key: model.PrefixOperator + n, Value: model.Encode(model.Operator{Name: n})}) {
				return
			}
		}
	}
}

func TestReplay_TheCatalogIsToldWhole(t *testing.T) {
	writes := func(epoch uint64, indexes ...uint64) model.CatalogSeen {
		s := model.CatalogSeen{Epoch: epoch}
		for _, i := range indexes {
			s.Writes, s.Through = append(s.Writes, model.CatalogWrite{Index: i}), i
		}
		return s
	}
	for _, c := range []struct {
		name  string
		told  []model.CatalogSeen
		wrong string
	}{
		{"whole", []model.CatalogSeen{writes(3, 1, 2), writes(3, 3)}, ""},
		{"one left out", []model.CatalogSeen{writes(3, 1, 2), writes(3, 4)}, "catalog transactions 3 to 3 are left out"},
		{"the first left out", []model.CatalogSeen{writes(3, 2)}, "catalog transactions 1 to 1 are left out"},
		{"told twice", []model.CatalogSeen{writes(3, 1, 2), writes(3, 2)}, "never backwards"},
		{"a gap that is said", []model.CatalogSeen{writes(3, 1), {Epoch: 3, Through: 7, Gap: true}, writes(3, 8)}, ""},
		{"a gap that is not", []model.CatalogSeen{writes(3, 1), {Epoch: 3, Through: 7}, writes(3, 8)}, "does not add up"},
		{"a recovery", []model.CatalogSeen{writes(3, 1), {Epoch: 4, Through: 2}, writes(4, 3)}, ""},
		{"a recovery that lost some", []model.CatalogSeen{writes(3, 1, 2, 3), {Epoch: 4, Through: 2, Gap: true}, writes(4, 3)}, ""},
		{"a recovery in which more happened", []model.CatalogSeen{writes(3, 1), {Epoch: 4, Through: 5}}, "does not add up"},
	} {
		w := newReplay("emea", nil)
		var wrong []string
		for i, s := range c.told {
			records, err := recordsOf([]group.Event{{Index: uint64(i + 1), KV: group.KV{Key: model.KeyCatalogSeen, Value: model.Encode(s)}}}, 7, nil)
			if err != nil {
				t.Fatal(err)
			}
			wrong = append(wrong, w.apply(records[0].open())...)
		}
		if got := strings.Join(wrong, "; "); c.wrong == "" && got != "" || !strings.Contains(got, c.wrong) {
			t.Errorf("%s: found %q, want %q", c.name, got, c.wrong)
		}
	}
}

// Who tells another history of the catalog is found out, whichever zone or node it is, and a gap is said.
func TestAgree_FindsWhoTellsOtherwise(t *testing.T) {
	record := func(call, name string) Record {
		return Record{Kind: KindCatalog, Value: model.Encode(model.CatalogSeen{Epoch: 3, Through: 5, Writes: []model.CatalogWrite{{Index: 5, By: "emea/ff", Name: name, Call: call}}})}
	}
	emea := record("apply", "alice")
	gap := Record{Kind: KindCatalog, Value: model.Encode(model.CatalogSeen{Epoch: 3, Through: 9, Gap: true})}
	type told struct {
		zone string
		r    Record
	}
	for _, c := range []struct {
		what                        string
		bundles                     []told
		compared, differences, gaps int
	}{
		{"another zone, the same", []told{{"emea", emea}, {"us", record("apply", "")}}, 1, 0, 0},
		{"another zone, another call", []told{{"emea", emea}, {"us", record("delete", "")}}, 1, 1, 0},
		{"another zone first", []told{{"us", record("delete", "")}, {"emea", emea}}, 1, 1, 0},
		{"the same zone, the same", []told{{"emea", emea}, {"emea", emea}}, 1, 0, 0},
		{"the same zone, another call", []told{{"emea", emea}, {"emea", record("delete", "alice")}}, 1, 1, 0},
		{"the same zone, another name", []told{{"emea", emea}, {"emea", record("apply", "bob")}}, 1, 1, 0},
		{"a third zone", []told{{"emea", emea}, {"us", record("apply", "")}, {"apac", record("delete", "")}}, 2, 1, 0},
		{"a gap", []told{{"emea", emea}, {"us", record("apply", "")}, {"us", gap}}, 1, 0, 1},
	} {
		var a Agree
		for i, b := range c.bundles {
			bundle := fmt.Sprint(i)
			if string(b.r.Value) == string(gap.Value) {
				bundle = fmt.Sprint(i - 1)
			}
			if err := a.Add(bundle, b.zone, b.r); err != nil {
				t.Fatal(err)
			}
		}
		if a.Compared != c.compared || len(a.Differences) != c.differences || len(a.Gaps) != c.gaps {
			t.Errorf("%s: %+v, want %d compared, %d differences, %d gaps", c.what, a, c.compared, c.differences, c.gaps)
		}
	}
}

package evidence

import (
	"bytes"
	"slices"
	"testing"

	"bailiwick/controlplane/internal/model"
)

// A drain by the zone is a record of its own: who drained what, and why, and who ended it.
func TestReport_Drains(t *testing.T) {
	h := newHistory(t)
	h.rules()
	by := func(operator string) op {
		return op{model.KeyAudit, model.Audit{Operator: operator, Call: "apply", RequestSHA256: operator}}
	}
	h.txn(by("alice"), op{model.PrefixDrain + "eu-west", model.Drain{Name: "eu-west", Zone: "emea", Reason: "work on the building"}})
	h.txn(by("bob"), op{model.PrefixDrain + "eu-west", nil})
	h.head()
	r, err := ReportOn(bytes.NewReader(h.export()), h.trust())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, d := range r.Decisions {
		if d.Operator != "" {
			got = append(got, d.Operator+": "+d.What)
		}
	}
	if want := []string{"alice: region eu-west was drained: work on the building", "bob: the drain of region eu-west was ended"}; !slices.Equal(got, want) {
		t.Errorf("decisions %q, want %q", got, want)
	}
	h.txn(op{model.PrefixDrain + "eu-west", model.Drain{Name: "eu-west", Zone: "emea", Reason: "work on the building"}})
	h.head()
	if v, err := Verify(bytes.NewReader(h.export()), h.trust()); err != nil || v.Total != 1 {
		t.Errorf("a drain that nobody made: %+v, %v; want it found", v, err)
	}
}

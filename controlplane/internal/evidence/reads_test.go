package evidence

import (
	"bytes"
	"testing"

	"bailiwick/controlplane/internal/model"
)

// Reads of customers' data are records with who read, and a report sums them up by operator and procedure. The name of no
// customer is in the log, and who changes his record is seen to have changed the same one.
func TestReport_Reads(t *testing.T) {
	h := newHistory(t)
	h.rules()
	h.write("acme")
	by := func(operator string) op {
		return op{model.KeyAudit, model.Audit{Operator: operator, Call: "read", RequestSHA256: "aa"}}
	}
	acme := CustomerDigest([]byte("0123456789abcdef"), "acme")
	h.txn(by("eve"), op{model.KeyRead, model.Read{Procedure: "UsageService.QueryUsage", Customer: acme, Reason: "ticket 1"}})
	h.txn(by("eve"), op{model.KeyRead, model.Read{Procedure: "UsageService.QueryUsage", Customer: acme}})
	h.txn(by("eve"), op{model.KeyRead, model.Read{Procedure: "UsageService.QueryUsage", Customer: "bb"}})
	h.txn(by("eve"), op{model.KeyRead, model.Read{Procedure: "KeyService.ListKeys"}})
	h.txn(by("bob"), op{model.KeyRead, model.Read{Procedure: "UsageService.QueryUsage", Customer: acme}})
	h.head()
	file := h.export()
	r, err := ReportOn(bytes.NewReader(file), h.trust())
	if err != nil || r.Verdict.Total != 0 {
		t.Fatalf("%+v, %v", r, err)
	}
	for i, want := range []ReportReads{
		{Operator: "bob", Procedure: "UsageService.QueryUsage", Records: 1, Customers: 1, NoReason: 1},
		{Operator: "eve", Procedure: "KeyService.ListKeys", Records: 1, Everyone: 1, NoReason: 1},
		{Operator: "eve", Procedure: "UsageService.QueryUsage", Records: 3, Customers: 2, NoReason: 2},
	} {
		if len(r.Reads) != 3 {
			t.Fatalf("reads %+v, want three", r.Reads)
		}
		got := r.Reads[i]
		if got.First.IsZero() || got.Last.Before(got.First) {
			t.Errorf("times of %+v", got)
		}
		if got.First, got.Last = want.First, want.Last; got != want {
			t.Errorf("reads %+v, want %+v", got, want)
		}
	}
	for _, o := range r.Operators {
		if o.Operator == "eve" {
			t.Errorf("reads are counted among changes: %+v", o)
		}
	}
	if bytes.Contains(file, []byte(`"acme"`)) || !bytes.Contains(file, []byte(`"name":"`+acme)) {
		t.Error("the log names a customer, or names him otherwise where he is changed than where he is read")
	}
	h.txn(op{model.KeyRead, model.Read{Procedure: "UsageService.QueryUsage", Customer: acme}})
	h.head()
	if v, err := Verify(bytes.NewReader(h.export()), h.trust()); err != nil || v.Total != 1 {
		t.Errorf("a reading by nobody: %+v, %v; want it found", v, err)
	}
}

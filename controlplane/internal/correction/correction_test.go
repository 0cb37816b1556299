package correction_test

import (
	"bytes"
	"crypto/ed25519"
	"reflect"
	"testing"

	"bailiwick/controlplane/internal/correction"
)

func sample() correction.Correction {
	return correction.Correction{Producer: "ann", RequestID: "r/1", Kind: correction.Booked, Customer: "acme", Reason: "billed twice", By: "ann", Node: "emea-1",
		AtMS: 5, Rows: []correction.Row{{Start: 900, Subscription: "s", Plan: "gold", Product: "core", API: "orders", Outcome: "success", Requests: -1, Units: -2}}}
}

// A signature holds for exactly one correction: whatever else is said, it does not verify.
func TestCorrection_SignatureCoversEveryField(t *testing.T) {
	key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{1}, 32))
	public := key.Public().(ed25519.PublicKey)
	c := sample()
	if err := c.Sign(key); err != nil {
		t.Fatal(err)
	}
	b, err := c.Encode()
	if err != nil {
		t.Fatal(err)
	}
	back, err := correction.Decode(b)
	if err != nil || !reflect.DeepEqual(*back, c) || !back.Verify(public) {
		t.Fatalf("decoded: got %+v, %v, want it as it was, and verified", back, err)
	}
	if c.Verify(ed25519.NewKeyFromSeed(make([]byte, 32)).Public().(ed25519.PublicKey)) {
		t.Error("another key: got it verified")
	}
	change := func(v reflect.Value, name string) {
		f := v.FieldByName(name)
		switch f.Kind() {
		case reflect.String:
			f.SetString(f.String() + "x")
		case reflect.Int64:
			f.SetInt(f.Int() + 1)
		default:
			t.Fatalf("field %s is of a kind that this test does not know", name)
		}
	}
	for _, f := range reflect.VisibleFields(reflect.TypeFor[correction.Correction]()) {
		if f.Name == "Signature" || f.Name == "Rows" {
			continue
		}
		forged := c
		change(reflect.ValueOf(&forged).Elem(), f.Name)
		if forged.Verify(public) {
			t.Errorf("%s changed: got it verified", f.Name)
		}
	}
	for _, f := range reflect.VisibleFields(reflect.TypeFor[correction.Row]()) {
		forged := c
		forged.Rows = append([]correction.Row(nil), c.Rows...)
		change(reflect.ValueOf(&forged.Rows[0]).Elem(), f.Name)
		if forged.Verify(public) {
			t.Errorf("a row's %s changed: got it verified", f.Name)
		}
	}
}

func TestCorrection_Validate(t *testing.T) {
	for name, change := range map[string]func(*correction.Correction){
		"no rows":           func(c *correction.Correction) { c.Rows = nil },
		"a slash in a name": func(c *correction.Correction) { c.Producer = "a/b" },
		"no request id":     func(c *correction.Correction) { c.RequestID = "" },
		"no reason":         func(c *correction.Correction) { c.Reason = "" },
		"another kind":      func(c *correction.Correction) { c.Kind = "late" },
		"no outcome":        func(c *correction.Correction) { c.Rows[0].Outcome = "" },
		"between cells":     func(c *correction.Correction) { c.Rows[0].Start = 901 },
		"too much":          func(c *correction.Correction) { c.Rows[0].Units = -correction.MaxQuantity - 1 },
		"nothing":           func(c *correction.Correction) { c.Rows[0].Units, c.Rows[0].Requests = 0, 0 },
		"zero in customer":  func(c *correction.Correction) { c.Customer = "a\x00b" },
	} {
		c := sample()
		change(&c)
		if c.Validate() == nil {
			t.Errorf("%s: got nil, want an error", name)
		}
	}
	if c := sample(); c.Validate() != nil {
		t.Errorf("sample: got %v, want nil", c.Validate())
	}
}

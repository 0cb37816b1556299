package table_test

import (
	"encoding/hex"
	"encoding/json"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"bailiwick/shared/table"
)

// The short way writes what Encode writes, and reads nothing else.
func TestKey_ShortWayIsTheCanonicalOne(t *testing.T) {
	text := rapid.OneOf(rapid.StringMatching(`[a-zA-Z0-9_.-]{0,20}`), rapid.String())
	rapid.Check(t, func(t *rapid.T) {
		k := table.Key{ID: text.Draw(t, "id"), Customer: text.Draw(t, "customer"), Subscription: text.Draw(t, "subscription"), Plan: text.Draw(t, "plan"),
			Suspended: rapid.Bool().Draw(t, "suspended"), Overdue: rapid.Bool().Draw(t, "overdue"), Ends: rapid.OneOf(rapid.Just(int64(0)), rapid.Int64()).Draw(t, "ends"),
			Scopes: rapid.OneOf(rapid.Just(""), text).Draw(t, "scopes"), From: rapid.OneOf(rapid.Just(""), text).Draw(t, "from")}
		copy(k.Digest[:], rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "digest"))
		whole := k
		whole.DigestHex = hex.EncodeToString(k.Digest[:])
		want, err := table.Encode(table.KindKey, k.ID, &whole)
		if err != nil {
			t.Fatal(err)
		}
		data := table.AppendKey(nil, &k)
		if string(data) != string(want.Data) {
			t.Fatalf("got %s, want %s", data, want.Data)
		}
		var back table.Key
		if table.ReadKey(string(data), &back) && back != k {
			t.Fatalf("read %+v, want %+v", back, k)
		}
		// Whatever the short way takes, it gives back byte for byte.
		if i := rapid.IntRange(0, len(data)-1).Draw(t, "at"); true {
			data[i] = rapid.Byte().Draw(t, "byte")
		}
		if table.ReadKey(string(data), &back) && string(table.AppendKey(nil, &back)) != string(data) {
			t.Fatalf("it takes %s, which is not canonical", data)
		}
	})
}

// A program of before levels reads a key with bounds as a suspended one; any other reads what it is.
func TestKey_WithBoundsIsSuspendedWhereTheyAreNotKnown(t *testing.T) {
	for _, k := range []table.Key{{ID: "k", Scopes: "a b"}, {ID: "k", From: "192.0.2.0/24"}, {ID: "k", Scopes: "a", Suspended: true}, {ID: "k", Needs: table.Current + 1}} {
		data := table.AppendKey(nil, &k)
		var old struct{ Suspended bool }
		if err := json.Unmarshal(data, &old); err != nil || !old.Suspended {
			t.Errorf("%s: an old program takes it for good (%v)", data, err)
		}
		var back table.Key
		if err := table.Decode(table.Object{Kind: table.KindKey, ID: k.ID, Data: data}, &back); err != nil || back.Suspended != k.Suspended || back.Scopes != k.Scopes || back.From != k.From || back.Needs != k.Needs {
			t.Errorf("%s: read %+v, %v, want %+v", data, back, err, k)
		}
		if short := table.ReadKey(string(data), &back); short != (k.Needs == 0) || short && back.Suspended != k.Suspended {
			t.Errorf("%s: the short way says %v, %+v", data, short, back)
		}
	}
	free := table.Key{ID: "k"}
	if data := string(table.AppendKey(nil, &free)); strings.Contains(data, "suspended") || strings.Contains(data, "needs") {
		t.Errorf("a key without bounds is sent as %s", data)
	}
}

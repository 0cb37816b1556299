package table_test

import (
	"strings"
	"testing"
	"time"

	"bailiwick/shared/fault"
	"bailiwick/shared/table"
)

func TestEncode_IsDeterministicAndReadsBack(t *testing.T) {
	plan := table.Plan{Name: "gold", Rev: 7, APIs: map[string]string{"b": "p2", "a": "p1", "c": "p3"}, MaxKeyStaleness: time.Hour}
	first, err := table.Encode(table.KindPlan, "gold", plan)
	if err != nil {
		t.Fatal(err)
	}
	for range 50 {
		again, _ := table.Encode(table.KindPlan, "gold", plan)
		if string(again.Data) != string(first.Data) || again.Sum() != first.Sum() {
			t.Fatalf("got %s, want %s", again.Data, first.Data)
		}
	}
	var back table.Plan
	if err := table.Decode(first, &back); err != nil || back.APIs["c"] != "p3" || back.MaxKeyStaleness != time.Hour {
		t.Errorf("got %+v %v, want %+v", back, err, plan)
	}
}

// The bytes are a wire contract: both ends hash them, so a renamed field makes every edge refuse every delta.
func TestEncode_BytesAreFixed(t *testing.T) {
	for _, c := range []struct {
		kind  table.Kind
		value any
		want  string
	}{
		{table.KindSettings, table.Settings{Zone: "z", Region: "r"}, `{"zone":"z","region":"r"}`},
		{table.KindKey, table.Key{ID: "k", DigestHex: "00", Customer: "c", Subscription: "s", Plan: "p"},
			`{"id":"k","digest":"00","customer":"c","subscription":"s","plan":"p"}`},
		{table.KindPair, table.Pair{Policy: "p", From: "a", To: "b", FromZone: "z", ToZone: "y", Basis: "l"},
			`{"policy":"p","from":"a","to":"b","from_zone":"z","to_zone":"y","basis":"l"}`},
		{table.KindDirectory, table.Directory{API: "a", Zone: "z", Hosts: []string{"h"}}, `{"api":"a","zone":"z","hosts":["h"]}`},
		{table.KindAPI, table.API{Name: "a", Zone: "z", Foreign: true}, `{"name":"a","zone":"z","foreign":true}`},
	} {
		o, err := table.Encode(c.kind, "id", c.value)
		if err != nil || string(o.Data) != c.want {
			t.Errorf("%s: got %s %v, want %s", c.kind, o.Data, err, c.want)
		}
	}
}

func TestDecode_NamesTheObjectAndTakesUnknownFields(t *testing.T) {
	var key table.Key
	err := table.Decode(table.Object{Kind: table.KindKey, ID: "abc", Data: []byte("{")}, &key)
	if fault.KindOf(err) != fault.Invalid || !strings.Contains(err.Error(), "key abc") {
		t.Errorf("got %v, want an invalid fault that names key abc", err)
	}
	err = table.Decode(table.Object{Kind: table.KindKey, ID: "abc", Data: []byte(`{"id":"abc","later":1}`)}, &key)
	if err != nil || key.ID != "abc" {
		t.Errorf("unknown field: got %v %+v, want it ignored", err, key)
	}
}

func TestScope_WhatIsTheZones(t *testing.T) {
	for k := table.Kind(1); k < 20; k++ {
		want := table.ScopeCatalog
		if k == table.KindKey || k == table.KindPair || k == table.KindDrain || k == table.KindPurges || k == table.KindTargets {
			want = table.ScopeZone
		}
		if got := k.Scope(); got != want {
			t.Errorf("%s: got scope %d, want %d", k, got, want)
		}
	}
}

func TestSum_TellsKindIDAndDataApart(t *testing.T) {
	a := table.Object{Kind: table.KindAPI, ID: "ab", Data: []byte("c")}
	b := table.Object{Kind: table.KindAPI, ID: "a", Data: []byte("bc")}
	c := table.Object{Kind: table.KindPlan, ID: "ab", Data: []byte("c")}
	if a.Sum() == b.Sum() || a.Sum() == c.Sum() {
		t.Error("different objects have one sum")
	}
	if got, want := table.PairID("p", "a", "b")+table.DirectoryID("z", "x"), "p/a>bz/x"; got != want {
		t.Errorf("got ids %s, want %s", got, want)
	}
	if f, own := table.APIID(&table.API{Name: "a", Zone: "z", Foreign: true}), table.APIID(&table.API{Name: "a", Zone: "z"}); f != "z/a" || own != "a" {
		t.Errorf("got api ids %s and %s, want z/a and a", f, own)
	}
}

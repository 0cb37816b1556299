package main

import (
	"testing"

	"bailiwick/controlplane/internal/manifest"
	"bailiwick/shared/fault"
)

// A field stands once in what a person reads, with its file and line.
func TestLocate_SaysTheFieldOnce(t *testing.T) {
	docs, err := manifest.Parse("a.yaml", []byte("kind: Plan\nname: gold\nspec:\n  products: [core]\n  max_concurrent: -1\n"))
	if err != nil {
		t.Fatal(err)
	}
	f := fault.New(fault.Invalid, "FIELD_INVALID", "resources[0].spec.max_concurrent: must be more").At("resources[0].spec.max_concurrent")
	got := locate(f, docs)
	if want := "a.yaml:5: spec.max_concurrent: must be more"; got.Error() != want || fault.ReasonOf(got) != "FIELD_INVALID" {
		t.Errorf("got %v, want %s", got, want)
	}
	if f.Message != "resources[0].spec.max_concurrent: must be more" {
		t.Errorf("the error itself says %q now", f.Message)
	}
}

package main

import (
	"slices"
	"testing"
)

// Each edit has its place in the code of today, and no two bugs are the same one.
func TestBugs_FindTheirPlaces(t *testing.T) {
	root, err := moduleRoot()
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, b := range bugs() {
		if seen[b.name] || b.breaks == "" || len(b.edits) == 0 || len(b.checks) == 0 {
			t.Errorf("%s: twice, or without a promise, an edit or a check", b.name)
		}
		seen[b.name] = true
		if _, err := b.overlay(root, t.TempDir()); err != nil {
			t.Error(err)
		}
	}
	if len(seen) < 60 {
		t.Errorf("%d bugs, want at least 60", len(seen))
	}
}

// A few of them, fast ones of each part; make mutants runs all.
func TestBugs_SomeAreCaught(t *testing.T) {
	if testing.Short() {
		t.Skip("builds a test binary for each bug")
	}
	root, err := moduleRoot()
	if err != nil {
		t.Fatal(err)
	}
	smoke := []string{"symmetric-pairs", "partitions-join", "grant-off-by-one", "view-by-its-own-clock", "grant-counts-from-the-answer",
		"denial-is-silence", "sender-remembers-table", "recheck-skipped-after-dial", "table-goes-backwards", "session-tickets"}
	for _, b := range bugs() {
		if !slices.Contains(smoke, b.name) {
			continue
		}
		smoke = slices.DeleteFunc(smoke, func(name string) bool { return name == b.name })
		if err := b.caught(root, b.checks[:1]); err != nil {
			t.Errorf("%s: %v", b.name, err)
		}
	}
	for _, name := range smoke {
		t.Errorf("there is no bug %s", name)
	}
}

// The harness itself: a bug that changes nothing is said to have survived, one that does not build is no bug.
func TestCaught_TellsASurvivor(t *testing.T) {
	root, err := moduleRoot()
	if err != nil {
		t.Fatal(err)
	}
	harmless := bug{name: "harmless", edits: []edit{{setFile, "func key(from, to uint32) uint64 {", "func key(from, to uint32) uint64 { // harmless\n\t"}}}
	if err := harmless.caught(root, []check{{"regions", "TestSet_Permits"}}); err == nil {
		t.Error("a comment: said to be caught, want survived")
	}
	harmless.harmless = true
	harmless.edits[0].new = "func key(from, to uint32) uint64 {\n\tto = from"
	if err := harmless.caught(root, []check{{"regions", "TestSet_Permits"}}); err == nil {
		t.Error("a bug that is said to be harmless: not found out")
	}
	harmless.harmless = false
	broken := bug{name: "broken", edits: []edit{{setFile, "func key(from, to uint32) uint64 {", "func key(from, to uint32) uint64 { nonsense"}}}
	if err := broken.caught(root, []check{{"regions", "TestSet_Permits"}}); err == nil {
		t.Error("code that does not build: said to be caught, want an error")
	}
}

package incarnation_test

import (
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"bailiwick/dataplane/internal/incarnation"
	"bailiwick/regions/grant"
)

func begin(t *testing.T, dir, boot string) *incarnation.Run {
	t.Helper()
	r, err := incarnation.Begin(dir, boot, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func copied(t *testing.T, from string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	return to
}

func TestBegin_ARestartKnowsThatTheRunBeforeHasEnded(t *testing.T) {
	dir := t.TempDir()
	first := begin(t, dir, "boot-1")
	first.Crash()
	second := begin(t, dir, "boot-1")
	if second.ID == first.ID {
		t.Fatalf("two runs drew %s", first.ID)
	}
	if !slices.Equal(second.Dead(), []string{first.ID}) {
		t.Errorf("after a crash the next run names %v, want %s", second.Dead(), first.ID)
	}
	second.Crash() // before it told anybody
	if third := begin(t, dir, "boot-1"); !slices.Equal(third.Dead(), []string{second.ID, first.ID}) {
		t.Errorf("the third run names %v, want both before it", third.Dead())
	}
}

func TestBegin_OneDirectoryOneProcess(t *testing.T) {
	dir := t.TempDir()
	begin(t, dir, "boot-1")
	if r, err := incarnation.Begin(dir, "boot-1", slog.New(slog.DiscardHandler)); err == nil {
		t.Fatalf("run %s began beside another in one directory", r.ID)
	}
}

// The run that a copy was taken of may go on: nobody may say that it has ended.
func TestBegin_ACopySaysNothingOfTheOriginal(t *testing.T) {
	dir := t.TempDir()
	zeroth := begin(t, dir, "boot-1")
	zeroth.Crash()
	original := begin(t, dir, "boot-1")
	for _, c := range []struct{ name, boot string }{
		{"the copy of a directory on the same machine", "boot-1"},
		{"the copy of a disk in another machine", "boot-2"},
		{"a system that cannot name its boot", ""},
	} {
		twin := begin(t, copied(t, dir), c.boot)
		if slices.Contains(twin.Dead(), original.ID) {
			t.Errorf("%s: its run names %v, and %s goes on", c.name, twin.Dead(), original.ID)
		}
		if !slices.Contains(twin.Dead(), zeroth.ID) {
			t.Errorf("%s: its run names %v, want %s, which is over everywhere", c.name, twin.Dead(), zeroth.ID)
		}
		if twin.ID == original.ID {
			t.Errorf("%s: it draws the original's number", c.name)
		}
	}
	// A block device under another machine keeps the directory's place.
	original.Crash()
	if twin := begin(t, dir, "boot-2"); slices.Contains(twin.Dead(), original.ID) {
		t.Errorf("the same place under another boot names %v: it may be a copy of the device", twin.Dead())
	}
}

func TestRun_EndIsTrueOfEveryCopy(t *testing.T) {
	dir := t.TempDir()
	first := begin(t, dir, "boot-1")
	before := copied(t, dir)
	if err := first.End(); err != nil {
		t.Fatal(err)
	}
	if r := begin(t, copied(t, dir), "boot-2"); !slices.Contains(r.Dead(), first.ID) {
		t.Errorf("a run names %v, want %s, which wrote that it ended", r.Dead(), first.ID)
	}
	if r := begin(t, before, "boot-2"); slices.Contains(r.Dead(), first.ID) {
		t.Errorf("a run from a copy taken before names %v", r.Dead())
	}
}

func TestBegin_KeepsWhatOneMayName(t *testing.T) {
	dir := t.TempDir()
	for range grant.MaxDead + 4 {
		begin(t, dir, "boot-1").Crash()
	}
	r := begin(t, dir, "boot-1")
	if len(r.Dead()) != grant.MaxDead || !(grant.Process{Edge: "e", Incarnation: r.ID}).Reads(r.Dead()) {
		t.Errorf("after %d crashes a run names %d, want %d that read", grant.MaxDead+4, len(r.Dead()), grant.MaxDead)
	}
	r.Crash()
	if err := os.WriteFile(filepath.Join(dir, "run.json"), []byte(`{"id":"*"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := begin(t, dir, "boot-1"); len(r.Dead()) != 0 || r.ID == "" {
		t.Errorf("from a note that does not read a run %q names %v, want a number and nobody", r.ID, r.Dead())
	}
}

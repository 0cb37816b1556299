package incarnation_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"bailiwick/dataplane/internal/incarnation"
	"bailiwick/regions/grant"
)

// stay has a run go on behind the next.
func stay(t *testing.T, r *incarnation.Run) (over func()) {
	t.Helper()
	over, err := r.Stay()
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Leave(); err != nil {
		t.Fatal(err)
	}
	return over
}

func TestRun_ThatStaysIsNotOver(t *testing.T) {
	dir := t.TempDir()
	first := begin(t, dir, "boot-1")
	over := stay(t, first)
	second := begin(t, dir, "boot-1")
	if len(second.Dead()) != 0 || !second.Stays() || second.Look() {
		t.Fatalf("while the run before goes on the next names %v, says that one stays: %v", second.Dead(), second.Stays())
	}
	over()
	over() // is no harm
	if left, err := filepath.Glob(filepath.Join(dir, "stays-*")); err != nil || len(left) != 0 {
		t.Errorf("%v is left, %v", left, err)
	}
	if len(second.Dead()) != 0 || !second.Stays() {
		t.Errorf("before it has looked it names %v", second.Dead())
	}
	if !second.Look() || second.Stays() || !slices.Equal(second.Dead(), []string{first.ID}) {
		t.Errorf("once it is over the next names %v, says that one stays: %v; want %s", second.Dead(), second.Stays(), first.ID)
	}
	if second.Look() {
		t.Error("it says so twice")
	}
	// It is written down, so it is true of every copy.
	if r := begin(t, copied(t, dir), "boot-2"); !slices.Equal(r.Dead(), []string{first.ID}) {
		t.Errorf("a run from a copy names %v, want %s", r.Dead(), first.ID)
	}
	second.Crash()
	if third := begin(t, dir, "boot-1"); !slices.Equal(third.Dead(), []string{second.ID, first.ID}) {
		t.Errorf("the third run names %v, want both before it", third.Dead())
	}
}

// Two may go on behind the third, and the last need not be the first to end.
func TestRun_ThatStaysIsKnownToAllThatFollow(t *testing.T) {
	for _, crashes := range []bool{false, true} {
		t.Run(fmt.Sprintf("the second crashes: %v", crashes), func(t *testing.T) {
			dir := t.TempDir()
			first := begin(t, dir, "boot-1")
			firstOver := stay(t, first)
			second := begin(t, dir, "boot-1")
			secondOver, dead := func() {}, []string{second.ID}
			if crashes {
				second.Crash()
			} else {
				secondOver, dead = stay(t, second), nil
			}
			third := begin(t, dir, "boot-1")
			if !slices.Equal(third.Dead(), dead) || !third.Stays() {
				t.Fatalf("the third names %v, says that one stays: %v; want %v", third.Dead(), third.Stays(), dead)
			}
			secondOver()
			if third.Look() == crashes || !slices.Equal(third.Dead(), []string{second.ID}) || !third.Stays() {
				t.Errorf("the second is over and the first is not: the third names %v, says that one stays: %v", third.Dead(), third.Stays())
			}
			firstOver()
			if !third.Look() || !slices.Equal(third.Dead(), []string{first.ID, second.ID}) || third.Stays() {
				t.Errorf("both are over: the third names %v, says that one stays: %v", third.Dead(), third.Stays())
			}
		})
	}
}

// One that is over before the next begins is dead for that one at once.
func TestRun_ThatStayedIsOver(t *testing.T) {
	dir := t.TempDir()
	first := begin(t, dir, "boot-1")
	stay(t, first)()
	if second := begin(t, dir, "boot-1"); !slices.Equal(second.Dead(), []string{first.ID}) || second.Stays() {
		t.Errorf("the next names %v, says that one stays: %v; want %s", second.Dead(), second.Stays(), first.ID)
	}
}

// TestStayer is a process with a run that stays until it is killed.
func TestStayer(t *testing.T) {
	dir := os.Getenv("STAYER")
	if dir == "" {
		t.Skip("is run by another test")
	}
	r := begin(t, dir, "boot-1")
	stay(t, r)
	fmt.Println("stays", r.ID)
	io.Copy(io.Discard, os.Stdin)
}

// The kernel gives the lock back of who is killed, whatever it left in the directory.
func TestRun_ThatStaysEndsWithItsProcess(t *testing.T) {
	dir := t.TempDir()
	stayer := exec.Command(os.Args[0], "-test.run=^TestStayer$", "-test.v")
	stayer.Env = append(os.Environ(), "STAYER="+dir)
	if _, err := stayer.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := stayer.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := stayer.Start(); err != nil {
		t.Fatal(err)
	}
	id := ""
	for lines := bufio.NewScanner(out); id == "" && lines.Scan(); {
		_, id, _ = strings.Cut(lines.Text(), "stays ")
	}
	second := begin(t, dir, "boot-1")
	if id == "" || len(second.Dead()) != 0 || !second.Stays() || second.Look() {
		t.Errorf("while run %q goes on the next names %v, says that one stays: %v", id, second.Dead(), second.Stays())
	}
	stayer.Process.Kill()
	stayer.Wait()
	if _, err := os.Stat(filepath.Join(dir, "stays-"+id)); err != nil {
		t.Errorf("what it left is not there: %v", err)
	}
	if !second.Look() || second.Stays() || !slices.Equal(second.Dead(), []string{id}) {
		t.Errorf("once it was killed the next names %v, says that one stays: %v; want %s", second.Dead(), second.Stays(), id)
	}
	if _, err := os.Stat(filepath.Join(dir, "stays-"+id)); err == nil {
		t.Error("what it left is there still")
	}
}

// What stays in one place cannot be looked at from another: in a copy nobody holds the lock.
func TestRun_ACopySaysNothingOfWhatStays(t *testing.T) {
	dir := t.TempDir()
	first := begin(t, dir, "boot-1")
	firstOver := stay(t, first)
	second := begin(t, dir, "boot-1")
	for _, ended := range []bool{false, true} { // the second in the copy: that of a run that goes on, or of one that wrote that it ended
		if ended {
			if err := second.End(); err != nil {
				t.Fatal(err)
			}
		}
		for _, boot := range []string{"boot-1", "boot-2", ""} {
			twin := begin(t, copied(t, dir), boot)
			if looked := twin.Look(); looked || twin.Stays() || slices.Contains(twin.Dead(), first.ID) || slices.Contains(twin.Dead(), second.ID) != ended {
				t.Errorf("a copy under boot %q names %v, says that one stays: %v, that one has ended: %v; %s goes on, and %s has ended: %v", boot, twin.Dead(), twin.Stays(), looked, first.ID, second.ID, ended)
			}
		}
	}
	if third := begin(t, dir, "boot-1"); !slices.Equal(third.Dead(), []string{second.ID}) || !third.Stays() {
		t.Errorf("here the next names %v, says that one stays: %v; want %s, and that %s does", third.Dead(), third.Stays(), second.ID, first.ID)
	}
	firstOver()
}

// A run that leaves has written nothing of its end: here its lock says it, and nowhere else anything.
func TestRun_LeaveIsNoEnd(t *testing.T) {
	for _, c := range []struct {
		name      string
		let       func(*incarnation.Run) error
		elsewhere bool
	}{{"it leaves", (*incarnation.Run).Leave, false}, {"it ends", (*incarnation.Run).End, true}} {
		dir := t.TempDir()
		first := begin(t, dir, "boot-1")
		if err := c.let(first); err != nil {
			t.Fatal(err)
		}
		if r := begin(t, copied(t, dir), "boot-1"); slices.Contains(r.Dead(), first.ID) != c.elsewhere {
			t.Errorf("%s: a run from a copy names %v", c.name, r.Dead())
		}
		if r := begin(t, dir, "boot-1"); !slices.Equal(r.Dead(), []string{first.ID}) || r.Stays() {
			t.Errorf("%s: the next run here names %v, want %s", c.name, r.Dead(), first.ID)
		}
	}
}

// Whatever the note says: no file is looked at but those of runs, and nothing goes on to the zone that it would refuse.
func TestBegin_ANoteThatNamesWhatCannotStay(t *testing.T) {
	for _, c := range []struct {
		name string
		stay func(id string) []string
		read bool
	}{
		{"a run that has ended", func(string) []string { return []string{"0a"} }, true},
		{"no number", func(string) []string { return []string{"*"} }, false},
		{"a path", func(string) []string { return []string{"../run/lock"} }, false},
		{"nothing", func(string) []string { return []string{""} }, false},
		{"itself", func(id string) []string { return []string{id} }, false},
		{"more than one may name", func(string) []string {
			var all []string
			for i := range grant.MaxDead + 1 {
				all = append(all, fmt.Sprintf("%04x", i))
			}
			return all
		}, false},
	} {
		dir := t.TempDir()
		first := begin(t, dir, "boot-1")
		first.Crash()
		path := filepath.Join(dir, "run.json")
		raw, err := os.ReadFile(path)
		note := map[string]any{}
		if err == nil {
			err = json.Unmarshal(raw, &note)
		}
		if err == nil {
			note["stay"] = c.stay(first.ID)
			raw, err = json.Marshal(note)
		}
		if err == nil {
			err = os.WriteFile(path, raw, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		var want []string
		if c.read {
			want = append([]string{first.ID}, c.stay("")...)
		}
		if r := begin(t, dir, "boot-1"); !slices.Equal(r.Dead(), want) || r.Stays() {
			t.Errorf("%s: the next names %v, says that one stays: %v; want %v", c.name, r.Dead(), r.Stays(), want)
		}
	}
}

// However many go on, what a run writes the next one reads; of the oldest it says nothing then, which lapse by time.
func TestBegin_KeepsWhatMayStay(t *testing.T) {
	dir := t.TempDir()
	begin(t, dir, "boot-1").Crash()
	var overs []func()
	var last *incarnation.Run
	for range grant.MaxDead + 4 {
		last = begin(t, dir, "boot-1")
		overs = append(overs, stay(t, last))
	}
	r := begin(t, dir, "boot-1")
	if len(r.Dead()) != 1 || !r.Stays() {
		t.Errorf("the next names %v, says that one stays: %v", r.Dead(), r.Stays())
	}
	for _, over := range overs {
		over()
	}
	if !r.Look() || len(r.Dead()) != grant.MaxDead || r.Dead()[0] != last.ID || r.Stays() {
		t.Errorf("of %d that are over it names %d, says that one stays: %v; want %d, the latest first", len(overs), len(r.Dead()), r.Stays(), grant.MaxDead)
	}
}

package dataplane

import (
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"bailiwick/dataplane/internal/evidence"
	"bailiwick/dataplane/internal/linger"
	"bailiwick/dataplane/internal/policy"
	"bailiwick/shared/revision"
	"bailiwick/shared/table"
)

func newRecords(t *testing.T) *records {
	t.Helper()
	log, err := evidence.Open(evidence.Config{Dir: t.TempDir(), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return &records{log: log}
}

// inLog is how many refusals are in the evidence.
func (r *records) inLog() (n int64) {
	for _, x := range r.log.Refused(time.Now().Add(time.Hour)) {
		n += x.Count
	}
	return n
}

func sum(refused []linger.Refusal) (n int) {
	for _, x := range refused {
		n += x.Count
	}
	return n
}

// As long as the process serves the evidence is its own, and another's refusals go there too.
func TestRecords_OfTheProcessThatServes(t *testing.T) {
	r := newRecords(t)
	for range 3 {
		r.Refuse("relay-cut", "a", "b", "id")
	}
	if err := r.Relay("id", "g", "a", "b"); err != nil {
		t.Error(err)
	}
	(&Edge{records: records{log: r.log}}).toldOf(linger.Heed{Refused: []linger.Refusal{{Rule: "relay-cut", From: "a", To: "b", Sample: "id2", Count: 2}, {Rule: "grant-none", From: "a", To: "c", Count: -1}, {Rule: "grant-none", From: "a", To: "d", Count: 1 << 40}}})
	if n := r.inLog(); n != 3+2+maxCounts {
		t.Errorf("%d refusals are in the evidence, want three, two of the process before, and no more than %d that it says of one", n, maxCounts)
	}
	if cuts, refused := r.take(); len(cuts)+len(refused) != 0 {
		t.Errorf("%v and %v are kept for another", cuts, refused)
	}
}

// Once another has the evidence nothing is relayed without a record of its own, and refusals are kept for that one, once.
func TestRecords_OfAProcessWhosePlaceWasTaken(t *testing.T) {
	r := newRecords(t)
	r.close()
	if err := r.Relay("id", "g", "a", "b"); !errors.Is(err, errRecordsClosed) {
		t.Errorf("a relay is recorded: %v", err)
	}
	for i := range 3 {
		r.Refuse("relay-cut", "a", "b", fmt.Sprint("id", i))
	}
	r.Refuse("relay-cut", "a", "a", "id3")
	r.Refuse("grant-none", "b", "a", "id4")
	r.cut([]string{"b>c", "a>b", "b>c"})
	cuts, refused := r.take()
	want := []linger.Refusal{{Rule: "grant-none", From: "b", To: "a", Sample: "id4", Count: 1}, {Rule: "relay-cut", From: "a", To: "a", Sample: "id3", Count: 1}, {Rule: "relay-cut", From: "a", To: "b", Sample: "id2", Count: 3}}
	if fmt.Sprint(cuts, refused) != fmt.Sprint([]string{"a>b", "b>c"}, want) {
		t.Errorf("kept are %v and %+v, want %+v", cuts, refused, want)
	}
	if cuts, refused := r.take(); len(cuts)+len(refused) != 0 {
		t.Errorf("and once more %v and %v", cuts, refused)
	}
	r.Refuse("relay-cut", "a", "b", "id5")
	if _, refused := r.take(); sum(refused) != 1 {
		t.Errorf("then %+v, want the one since", refused)
	}
	if n := r.inLog(); n != 0 {
		t.Errorf("%d are in the evidence, which is another's", n)
	}
}

// Whatever is refused, what is kept is bounded; what is known is counted on.
func TestRecords_KeepsSoManyAtMost(t *testing.T) {
	r := newRecords(t)
	r.close()
	for range 2 {
		for i := range 2 * maxCounts {
			r.Refuse("relay-cut", "a", fmt.Sprint(i), "id")
			r.cut([]string{fmt.Sprint("a>", i)})
		}
	}
	cuts, refused := r.take()
	if len(cuts) != maxCounts || len(refused) != maxCounts || sum(refused) != 2*maxCounts {
		t.Errorf("kept are %d pairs and %d kinds of %d refusals, want %d, %d and %d", len(cuts), len(refused), sum(refused), maxCounts, maxCounts, 2*maxCounts)
	}
	if r.cut(cuts); len(r.cuts) != maxCounts {
		t.Errorf("of %d pairs %d are kept", maxCounts, len(r.cuts))
	}
}

// What an edge says of itself to its control plane has the pairs that were cut, and takes nothing that is another process's to tell.
func TestRecords_PairsAloneAreOfTheStatus(t *testing.T) {
	r := newRecords(t)
	r.close()
	r.Refuse("relay-cut", "a", "b", "id")
	r.cut([]string{"a>b"})
	if cuts := r.takeCuts(); fmt.Sprint(cuts) != "[a>b]" {
		t.Errorf("cut were %v", cuts)
	}
	if cuts, refused := r.take(); len(cuts) != 0 || sum(refused) != 1 {
		t.Errorf("then %v and %+v are left, want the refusal", cuts, refused)
	}
}

// Keys change often, and forbid no pair: who waits for others to cut is told of rules alone.
func TestRules_Changed(t *testing.T) {
	var r rules
	var mark []policy.Mark
	for range 2 {
		settings, err := table.Encode(table.KindSettings, table.SettingsID, table.Settings{Zone: "emea", Region: "eu-west"})
		if err != nil {
			t.Fatal(err)
		}
		one := revision.Revision{Epoch: 1, Index: 1}
		zone := one
		if settings.Kind.Scope() == table.ScopeZone {
			zone.Sum = zone.Sum.Add(settings.Sum())
		} else {
			one.Sum = one.Sum.Add(settings.Sum())
		}
		tab, err := policy.NewTable([]table.Object{settings}, one, zone)
		if err != nil {
			t.Fatal(err)
		}
		mark = append(mark, tab.Mark())
	}
	for i, c := range []struct {
		at   int
		want bool
	}{{0, true}, {0, false}, {1, true}, {1, false}, {0, true}} {
		if got := r.changed(mark[c.at]); got != c.want {
			t.Errorf("step %d: changed is %v, want %v", i, got, c.want)
		}
	}
}

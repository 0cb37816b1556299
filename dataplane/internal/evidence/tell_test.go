package evidence

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"testing"
	"time"

	"bailiwick/shared/checkpoint"
)

func openTold(t *testing.T, dir string) (*Log, func()) {
	t.Helper()
	l, err := Open(Config{Dir: dir, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	return l, func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// Every row is told once, in one chain, whenever the edge ends and whichever answers are lost.
func TestTold_EveryRowOnceAcrossRestarts(t *testing.T) {
	dir := t.TempDir()
	l, stop := openTold(t, dir)
	for i := range 7 {
		if err := l.Relay(fmt.Sprintf("r%d", i), fmt.Sprintf("g%d", i%2), "eu-west", "eu-central"); err != nil {
			t.Fatal(err)
		}
	}
	if got := l.Untold(time.Unix(l.tell.minute, 0)); len(got) != 0 {
		t.Errorf("the minute is not over and is told: %+v", got)
	}
	later := time.Now().Add(2 * time.Minute)
	first := l.Untold(later)
	if len(first) != 2 || first[0].Count != 4 || first[1].Count != 3 || first[0].Seq != 1 || !bytes.Equal(first[1].Prev, first[0].Digest) {
		t.Fatalf("got %+v", first)
	}
	stop() // the answer never came
	l, stop = openTold(t, dir)
	again := l.Untold(later)
	if len(again) != 2 || !bytes.Equal(again[1].Digest, first[1].Digest) || again[1].Epoch != first[1].Epoch {
		t.Fatalf("after a restart the same rows are told as %+v, before as %+v", again, first)
	}
	if err := l.Told(again[:1]); err != nil { // half a minute is known to be told
		t.Fatal(err)
	}
	stop()
	l, stop = openTold(t, dir)
	if got := l.Untold(later); len(got) != 2 || !bytes.Equal(got[1].Digest, first[1].Digest) {
		t.Fatalf("half a minute was told, then %+v", got)
	}
	if err := l.Told(again); err != nil {
		t.Fatal(err)
	}
	stop()
	l, stop = openTold(t, dir)
	defer stop()
	if got := l.Untold(later); len(got) != 0 {
		t.Fatalf("told and told again: %+v", got)
	}
	if l.tell.seq != 2 || !bytes.Equal(l.tell.last, first[1].Digest) {
		t.Errorf("the chain goes on after entry %d", l.tell.seq)
	}
}

// An edge that nobody hears keeps a bounded state and loses no count.
func TestTold_Bounded(t *testing.T) {
	dir := t.TempDir()
	l, stop := openTold(t, dir)
	defer stop()
	at := time.Now().UnixMicro()
	const rows = maxMinutes + 500
	u := under{"g", "eu-west", "eu-central"}
	for i := range rows {
		second := at/1e6 + int64(i)*60
		l.mu.Lock()
		if l.tell.full(second, u) {
			if err := l.seal(); err != nil {
				t.Fatal(err)
			}
		}
		l.tell.add([]byte("row"), second, u)
		l.mu.Unlock()
	}
	if len(l.tell.wait) > maxMinutes || len(l.tell.open) > maxOpen {
		t.Errorf("%d entries wait, %d are open", len(l.tell.wait), len(l.tell.open))
	}
	var sum int64
	for {
		got := l.Untold(time.UnixMicro(at + 2*rows*60e6))
		if len(got) == 0 {
			break
		}
		for _, m := range got {
			sum += m.Count
		}
		if err := l.Told(got); err != nil {
			t.Fatal(err)
		}
	}
	if sum != rows {
		t.Errorf("%d rows told, %d written", sum, rows)
	}
}

// What is handed out is what the digests cover, across restarts, rotation and a segment that was damaged before its rows had
// their entries.
func TestRows_AreThoseThatWereTold(t *testing.T) {
	dir := t.TempDir()
	cfg := Config{Dir: dir, Segment: 600, Logger: slog.New(slog.DiscardHandler)}
	l, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 40 {
		if err := l.Relay(fmt.Sprintf("r%02d", i), fmt.Sprintf("g%d", i%3), "eu-west", "eu-central"); err != nil {
			t.Fatal(err)
		}
		if i%17 == 16 { // a kill: no Run, no close
			if l, err = Open(cfg); err != nil {
				t.Fatal(err)
			}
		}
		if i == 20 { // the current segment is damaged behind its rows
			f, err := os.OpenFile(l.path(l.number), os.O_WRONLY|os.O_APPEND, 0)
			if err != nil {
				t.Fatal(err)
			}
			f.Write([]byte{9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9})
			f.Close()
			if l, err = Open(cfg); err != nil {
				t.Fatal(err)
			}
		}
	}
	later := time.Now().Add(2 * time.Minute)
	told := map[uint64]Minute{}
	var sum int64
	var last []byte
	for _, m := range l.Untold(later) {
		if !bytes.Equal(m.Prev, last) {
			t.Errorf("entry %d does not follow the one before", m.Seq)
		}
		told[m.Seq], last = m, m.Digest
		sum += m.Count
	}
	if sum != 40 {
		t.Errorf("%d rows are told, 40 were written", sum)
	}
	seen := map[string]bool{}
	err = l.Rows(t.Context(), later.Add(-time.Hour), later, func(m Minute, rows [][]byte) error {
		d := checkpoint.NewDigest()
		for _, raw := range rows {
			d.Add(raw)
			r, err := checkpoint.ParseRow(raw)
			if err != nil || seen[r.RequestID] {
				t.Errorf("row %+v: %v, or handed out twice", r, err)
			}
			seen[r.RequestID] = true
		}
		if !bytes.Equal(d.Sum(m.Prev), told[m.Seq].Digest) || int64(len(rows)) != m.Count {
			t.Errorf("entry %d: %d rows do not come to what was told: %+v", m.Seq, len(rows), told[m.Seq])
		}
		delete(told, m.Seq)
		return nil
	})
	if err != nil || len(told) != 0 || len(seen) != 40 {
		t.Errorf("%v; not handed out: %v; %d rows of 40", err, told, len(seen))
	}
	if err := l.Rows(t.Context(), later, later.Add(time.Hour), func(m Minute, _ [][]byte) error { return fmt.Errorf("entry %d", m.Seq) }); err != nil {
		t.Errorf("of another hour: %v", err)
	}
}

// A segment whose rows are older than Keep goes, and only that.
func TestLog_KeepDropsTheOld(t *testing.T) {
	dir := t.TempDir()
	cfg := Config{Dir: dir, Segment: 600, Keep: time.Hour, Logger: slog.New(slog.DiscardHandler)}
	l, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 30 {
		if err := l.Relay(fmt.Sprintf("r%02d", i), "g", "eu-west", "eu-central"); err != nil {
			t.Fatal(err)
		}
	}
	before, _ := l.segments()
	old := time.Now().Add(-2 * time.Hour)
	if err := os.Chtimes(l.path(before[0]), old, old); err != nil {
		t.Fatal(err)
	}
	if err := l.tidy(time.Now()); err != nil {
		t.Fatal(err)
	}
	after, _ := l.segments()
	if len(before) < 3 || len(after) != len(before)-1 || after[0] != before[1] || l.DroppedSegments() != 0 {
		t.Errorf("segments %v, then %v", before, after)
	}
}

// Refusals are told by the minute in which they were, with a sample, again until they are known, and outlive a kill.
func TestRefusals(t *testing.T) {
	dir := t.TempDir()
	l, stop := openTold(t, dir)
	at := time.Unix(1_800_000_000, 0)
	const id = "0190f5c2-0000-7000-8000-000000000001"
	for i := range 3 {
		l.refused.add(at.Add(time.Duration(i)*25*time.Second), "grant-none", "eu-west", "us-east", id)
	}
	l.refused.add(at, "pair-closed", "us-east", "eu-west", "<script>")
	if got := l.Refused(at); len(got) != 0 {
		t.Errorf("the minute is not over and is told: %+v", got)
	}
	want := []Refused{{Start: 1_800_000_000, Rule: "grant-none", From: "eu-west", To: "us-east", Count: 3, Sample: id},
		{Start: 1_800_000_000, Rule: "pair-closed", From: "us-east", To: "eu-west", Count: 1}}
	if got := l.Refused(at.Add(time.Minute)); !slices.Equal(got, want) {
		t.Fatalf("got %+v, want %+v", got, want)
	}
	if err := l.refused.saveNow(time.Now()); err != nil {
		t.Fatal(err)
	}
	again, _ := Open(Config{Dir: dir, Logger: slog.New(slog.DiscardHandler)}) // what a kill leaves
	if got := again.Refused(at.Add(time.Minute)); !slices.Equal(got, want) {
		t.Errorf("after a kill: %+v", got)
	}
	l.ToldRefused(want[:1])
	stop()
	again, _ = Open(Config{Dir: dir, Logger: slog.New(slog.DiscardHandler)})
	if got := again.Refused(at.Add(time.Minute)); !slices.Equal(got, want[1:]) {
		t.Errorf("after one was told: %+v", got)
	}
}

// Strangers cannot fill it, and none of theirs goes uncounted.
func TestRefusals_Bounded(t *testing.T) {
	l, stop := openTold(t, t.TempDir())
	defer stop()
	at := time.Unix(1_800_000_000, 0)
	const refusals = 3 * maxRefusals
	for i := range refusals {
		l.refused.add(at.Add(time.Duration(i)*time.Minute), fmt.Sprintf("rule-%d", i), "a", "b", "")
	}
	if n := len(l.refused.wait); n > maxRefusals+1 {
		t.Errorf("%d entries wait", n)
	}
	var sum int64
	for {
		got := l.Refused(at.Add(2 * refusals * time.Minute))
		if len(got) == 0 {
			break
		}
		for _, x := range got {
			sum += x.Count
		}
		l.ToldRefused(got)
	}
	if sum != refusals {
		t.Errorf("%d told, %d were refused", sum, refusals)
	}
}

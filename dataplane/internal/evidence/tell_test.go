package evidence

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"
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
	for i := range rows {
		l.tell.add([]byte("row"), at+int64(i)*60e6, under{"g", "eu-west", "eu-central"})
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

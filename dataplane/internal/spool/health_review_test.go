package spool_test

import (
	"errors"
	"testing"
	"time"

	"bailiwick/dataplane/internal/spool"
	"bailiwick/shared/durable"
	"bailiwick/shared/usage"
)

// A disk that was full when nothing but an acknowledgement was to be written: with space again the spool must
// say that it is well, or an edge that refuses what it cannot count would refuse for ever.
func TestSpool_WellAgainAfterAFullDiskAtAck(t *testing.T) {
	sick := &sickFS{FS: durable.OS(), left: -1}
	s := open(t, spool.Config{Dir: t.TempDir(), FS: sick})
	add(t, s, "acme", 3)
	seal(t, s)
	blocks := pending(t, s)
	last := blocks[len(blocks)-1]
	sick.left, sick.full = 0, 1
	if err := s.Ack(last.Epoch, last.Seq, last.Hash); !errors.Is(err, spool.ErrFull) {
		t.Fatalf("ack on a full disk: got %v, want ErrFull", err)
	}
	if s.Healthy() == nil {
		t.Fatal("Healthy says nothing of the full disk")
	}
	if err := s.Ack(last.Epoch, last.Seq, last.Hash); err != nil {
		t.Fatalf("ack with space again: %v", err)
	}
	seal(t, s)
	if err := s.Healthy(); err != nil {
		t.Errorf("with space again: still %v", err)
	}
}

// A new epoch is complete up to its beginning: no row of it may seem to have finished before, whatever the
// clock does in its first moment.
func TestSpool_NoRowBeforeTheEpochsBeginning(t *testing.T) {
	now := time.Date(2026, 11, 23, 12, 15, 0, 0, time.UTC)
	s := open(t, spool.Config{Dir: t.TempDir(), Now: func() time.Time { return now }})
	said := s.SealedThrough()
	now = now.Add(-time.Minute)
	r := row("acme")
	if err := s.Append(&r); err != nil {
		t.Fatal(err)
	}
	if r.EndUnixMS < said.At.UnixMilli() {
		t.Errorf("usage was said to be complete through %v, then a row is stamped %v", said.At.UTC(), time.UnixMilli(r.EndUnixMS).UTC())
	}
	if got, want := r.Cell().Start, usage.CellStart(said.At.UnixMilli()); got < want {
		t.Errorf("it is counted in the cell %d, which ended before %d", got, want)
	}
}

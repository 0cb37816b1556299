package spool_test

import (
	"testing"

	"bailiwick/dataplane/internal/spool"
)

// An acknowledgement outlives the journal file of the blocks that it was for. Forgotten, the ledger's word of what it
// has would look like a fork, and what comes behind it in the epoch would not be shipped.
func TestSpool_AckOutlivesTheFileOfItsBlocks(t *testing.T) {
	for name, behind := range map[string]int{"to the next process": 0, "blocks behind": 2} {
		dir := t.TempDir()
		s := open(t, spool.Config{Dir: dir, JournalBytes: 700}) // a file is begun when there are a few blocks in it
		for range 3 {
			add(t, s, "acme", 1)
			seal(t, s)
		}
		old, _ := files(t, dir, "journal-")
		for range 20 {
			if now, _ := files(t, dir, "journal-"); len(now) > len(old) {
				break
			}
			add(t, s, "acme", 1)
			seal(t, s)
		}
		epoch := s.Epochs()[0]
		for range behind {
			add(t, s, "acme", 1)
			seal(t, s)
		}
		blocks := pending(t, s)
		acked := blocks[epoch.Sealed-1]
		if behind == 0 {
			s.Abandon()
			s = open(t, spool.Config{Dir: dir})
		}
		if err := s.Ack(epoch.Epoch, acked.Seq, acked.Hash); err != nil {
			t.Fatal(err)
		}
		if now, _ := files(t, dir, "journal-"); len(now) != 1 || now[0] == old[0] {
			t.Fatalf("%s: files = %v: the one with the blocks is still there, and the test does not reach what it is about", name, now)
		}
		s.Abandon()
		s = open(t, spool.Config{Dir: dir})
		if e := s.Epochs()[0]; e.Epoch == epoch.Epoch && (behind == 0 || e.Oldest != acked.Seq+1) {
			t.Errorf("%s: after a restart the epoch is %+v; blocks up to %d were acknowledged", name, e, acked.Seq)
		}
		if err := s.Ack(epoch.Epoch, acked.Seq, acked.Hash); err != nil {
			t.Errorf("%s: the ledger says again what it has: %v", name, err)
		}
		if behind > 0 {
			wrong := acked.Hash
			wrong[0]++
			if s.Ack(epoch.Epoch, acked.Seq, wrong) == nil {
				t.Errorf("%s: a ledger with another block is believed", name)
			}
		}
		if got := pending(t, s); len(got) != behind {
			t.Errorf("%s: %d blocks wait, want %d", name, len(got), behind)
		}
	}
}

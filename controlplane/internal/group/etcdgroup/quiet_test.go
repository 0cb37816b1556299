package etcdgroup

import (
	"path/filepath"
	"testing"
	"time"

	"bailiwick/controlplane/internal/group"
)

// A transaction that changes nothing asks for the time: the answer is of now however long nobody has written, or locks and
// tokens of a quiet zone would never end.
func TestTxn_TellsTheTimeOfAQuietGroup(t *testing.T) {
	t.Parallel()
	c := newEtcd(t, 1)
	s, _ := c.node("n1", "p/")
	other, _ := c.node("n2", "p/")
	first := put(t, s, "a", "1")
	time.Sleep(maxStale + 500*time.Millisecond)
	ask := func(s group.Store) group.Result {
		r, err := s.Txn(short(t), group.Txn{Compares: []group.Compare{{Key: "a", Exists: true}}})
		if err != nil || !r.Succeeded || r.Revision != first.Revision {
			t.Fatalf("a transaction that only compares: got %+v, %v", r, err)
		}
		return r
	}
	asked := time.Now()
	r := ask(other)
	if r.Time.Before(asked.Add(-maxStale)) {
		t.Errorf("the time of a group that was quiet since %v: got %v, want about %v", first.Time, r.Time, asked)
	}
	if again := ask(s); again.Time.Before(r.Time) {
		t.Errorf("the time went back: %v after %v at the other node", again.Time, r.Time)
	}
	if next := put(t, s, "a", "2"); next.Revision.Index != first.Revision.Index+1 || next.Time.Before(r.Time) {
		t.Errorf("the next write: got %+v after %+v", next, r)
	}
}

// An etcd that was set back counts its revisions from before: what it says then of the leader is news all the same, or
// nobody would lead until it has counted up to where it was.
func TestLeader_AfterEtcdsRevisionsWentBack(t *testing.T) {
	t.Parallel()
	c := newEtcd(t, 1)
	s, _ := c.node("n1", "p/")
	put(t, s, "a", "1")
	leads(t, s)
	s.leader.is("of-before", 1<<40, 1<<40)
	eventually(t, "it does not lead", func() bool { _, self := s.Leader(); return !self })
	leads(t, s)
	if err := s.VerifyLeader(short(t)); err != nil {
		t.Errorf("verify: %v", err)
	}
}

// A node that has seen what is not in etcd's history says so, although etcd holds more commits by now than it has seen:
// others, who knew of less, went on first.
func TestRestore_IsFoundAlthoughOthersWentOn(t *testing.T) {
	t.Parallel()
	c := newEtcd(t, 1)
	s, end := c.node("n1", "p/")
	put(t, s, "a", "1")
	ours := *s.pos
	for range 4 {
		put(t, s, "a", "2")
	}
	end()
	other := ours.head
	other.nonce = "another"
	for _, x := range []struct {
		name string
		seen head
		want bool // a new epoch
	}{
		{"the same history", ours.head, false},
		{"another", other, true},
	} {
		file := filepath.Join(t.TempDir(), "seen")
		m := &Store{cfg: Config{Name: "g", Seen: file}}
		m.pos = &position{head: x.seen, raw: x.seen.encode()}
		m.remember()
		again, stop := c.node("n1", "p/", func(cfg *Config) { cfg.Seen = file })
		_, rev, err := again.List(short(t), "")
		if err != nil || (rev.Epoch > ours.head.rev.Epoch) != x.want {
			t.Errorf("a node started that remembers %s: got %v, %v after epoch %d", x.name, rev, err, ours.head.rev.Epoch)
		}
		if !x.want { // and one that runs
			known := ours
			l, err := again.list(short(t), 0)
			if err != nil {
				t.Fatal(err)
			}
			if why, err := again.strayed(short(t), &known, l); why != "" || err != nil {
				t.Errorf("what this node has seen is there: got %q, %v", why, err)
			}
			known.raw = other.encode()
			if why, err := again.strayed(short(t), &known, l); why == "" || err != nil {
				t.Errorf("what this node has seen is not there: got %q, %v", why, err)
			}
		}
		stop()
	}
}

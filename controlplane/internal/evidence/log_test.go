package evidence

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"pgregory.net/rapid"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
	"bailiwick/shared/checkpoint"
)

func (l *Log) leavesAll(t testing.TB) [][]byte {
	t.Helper()
	var out [][]byte
	err := l.scan(l.segments, 0, func(tag byte, _ int64, body []byte) error {
		if tag == tagLeaf {
			out = append(out, bytes.Clone(body))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// A node that dies at any byte of its file and hears its store's history again from where it stood has the same log as
// one that never died.
func TestLog_EveryCutOfTheFileHeals(t *testing.T) {
	h := day(t)
	want := h.log.leavesAll(t)
	path := h.log.path(h.log.current())
	if err := h.log.file.Sync(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for cut := int64(len(whole)); cut >= 64; cut -= 19 {
		other := newHistory(t)
		other.log.file.Close()
		if err := os.WriteFile(filepath.Join(other.dir, filepath.Base(path)), whole[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		other.log = other.open()
		for _, events := range h.txns {
			if events[0].Index > other.log.through {
				if err := other.log.transaction(events, 7); err != nil {
					t.Fatal(err)
				}
			}
		}
		if got := other.log.leavesAll(t); len(got) != len(want) || !bytes.Equal(bytes.Join(got, nil), bytes.Join(want, nil)) {
			t.Fatalf("cut at %d of %d: %d records, want %d", cut, len(whole), len(got), len(want))
		}
		if other.log.broken != nil {
			t.Fatalf("cut at %d: %v", cut, other.log.broken)
		}
		other.log.file.Close()
	}
}

// store tells a history from an index on, like a node that restored a snapshot.
type store struct {
	group.Store
	local group.Snapshot
}

func (s store) Local() group.Snapshot { return s.local }

type snap struct {
	group.Snapshot
	rev group.Revision
	kv  map[string]group.KV
}

func (s snap) Revision() group.Revision            { return s.rev }
func (s snap) Get(k string) (kv group.KV, ok bool) { kv, ok = s.kv[k]; return kv, ok }

func TestLog_WhatItsStoreNoLongerTellsComesFromANeighbour(t *testing.T) {
	h := day(t)
	late := newHistory(t)
	late.log.cfg.Store = store{local: snap{rev: group.Revision{Epoch: 7, Index: h.index}, kv: h.kv}}
	late.log.cfg.Peers = func(_ context.Context, from int64) (Piece, error) { return h.log.Leaves(from, 5) }
	for range 3 {
		if err := late.log.catchUp(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if late.log.through != h.index || late.log.tree.size != h.log.tree.size {
		t.Fatalf("it stands at %d with %d records, want %d and %d", late.log.through, late.log.tree.size, h.index, h.log.tree.size)
	}
	if err := late.log.catchUp(t.Context()); err == nil {
		t.Error("nobody has more and the store begins later: that is no error")
	}
}

func TestLog_AnotherHistoryIsRefused(t *testing.T) {
	h := day(t)
	other := newHistory(t)
	other.rules()
	other.write("else")
	other.grant()
	if err := other.log.committed(h.kv[model.KeyCheckpoint].Value); err != nil {
		t.Fatal(err)
	}
	if _, broken := other.log.Size(); broken == nil {
		t.Fatal("a head of another history was taken")
	}
	if _, _, err := other.log.Checkpoint(0); err == nil {
		t.Error("a node with another history serves heads")
	}
	if err := other.exportTo(io.Discard, time.Time{}, time.Now()); err == nil {
		t.Error("a node with another history exports")
	}
}

func TestLog_ABundleFromAStateIsSound(t *testing.T) {
	h := newHistory(t)
	h.rules()
	for range h.every {
		h.grant(1)
	}
	h.close()
	h.reopen()
	h.grant(2)
	h.head()
	if h.log.state == 0 {
		t.Fatal("no state")
	}
	var b bytes.Buffer
	if err := h.exportTo(&b, h.at.Add(-5*time.Second), h.at); err != nil {
		t.Fatal(err)
	}
	v := verdict(t, b.Bytes(), h.trust())
	if v.Total != 0 || v.First == 0 || v.Records[KindState] != 1 {
		t.Fatalf("from %d, %v, findings %+v", v.First, v.Records, v.Findings)
	}
	// The head of the first record of all lies before it, and that is said.
	root, _ := h.log.tree.root(3)
	note, _ := checkpoint.Sign(h.key, checkpoint.Checkpoint{Zone: "emea", Size: 3, Root: root, At: h.at})
	trust := h.trust()
	trust.Held = [][]byte{note}
	if v := verdict(t, b.Bytes(), trust); v.Total != 1 {
		t.Errorf("a head from before the bundle: %+v", v.Findings)
	}
}

// Any history of the zone is sound, any two heads of it are consistent, and the climber agrees with tlog at every size.
func TestLog_AnyHistory(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		h := newHistory(t)
		defer h.log.file.Close()
		h.rules()
		shut := false
		for range rapid.IntRange(1, 40).Draw(r, "steps") {
			switch rapid.IntRange(0, 4).Draw(r, "step") {
			case 0:
				if shut = !shut; shut {
					h.close()
				} else {
					h.reopen()
				}
			case 1:
				h.write(rapid.StringMatching("[a-z]{3}").Draw(r, "name"))
			case 2:
				h.head()
			default:
				if !shut {
					h.grant(int64(rapid.IntRange(1, 9).Draw(r, "relays")))
				}
			}
		}
		h.head()
		file := h.export()
		if v := verdict(t, file, h.trust()); v.Total != 0 {
			r.Fatalf("findings %+v", v.Findings)
		}
		heads := h.heads()
		i := rapid.IntRange(0, len(heads)-1).Draw(r, "older")
		older, newest := heads[i].Checkpoint, heads[len(heads)-1].Checkpoint
		_, proof, err := h.log.Checkpoint(older.Size)
		if err != nil {
			r.Fatal(err)
		}
		if err := checkpoint.Continues(older, newest, proof); err != nil {
			r.Fatal(err)
		}
		c, _ := newClimber(0, nil)
		for n, leaf := range h.log.leavesAll(t) {
			c.add(leaf)
			if want, _ := h.log.tree.root(int64(n + 1)); c.root() != want {
				r.Fatalf("root of %d records differs from tlog's", n+1)
			}
		}
		// One record changed, whichever: found.
		b := apart(t, file)
		k := rapid.IntRange(0, len(b.records)-1).Draw(r, "changed")
		b.records[k] = bytes.Replace(b.records[k], []byte(`"at":"2026`), []byte(`"at":"2025`), 1)
		if v := verdict(t, b.together(t, h.key, false), h.trust()); v.Total == 0 {
			r.Fatalf("record %d was changed, nothing found", k)
		}
	})
}

// BenchmarkVerify tells what a record costs; with BAILIWICK_LONG=1 there are a million: go test -bench Verify -benchtime 1x.
func BenchmarkVerify(b *testing.B) {
	records := int64(100_000)
	if os.Getenv("BAILIWICK_LONG") == "1" {
		records = 1_000_000
	}
	h := newHistoryWith(b, StateEvery)
	h.rules()
	for h.log.tree.size < records {
		h.grant(1)
		if h.log.tree.size%1000 == 0 {
			h.head()
		}
	}
	h.head()
	var out bytes.Buffer
	if err := h.exportTo(&out, time.Time{}, h.at); err != nil {
		b.Fatal(err)
	}
	var before, after syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &before); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if v := verdict(b, out.Bytes(), h.trust()); v.Total != 0 || v.Size-v.First < records {
			b.Fatal(v.Size, v.First, v.Findings)
		}
	}
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &after); err != nil {
		b.Fatal(err)
	}
	// On a machine that does other things too, time says little and this much.
	cpu := after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano()
	b.ReportMetric(float64(cpu)/1e3/float64(b.N)/float64(h.log.tree.size), "cpu-µs/record")
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/float64(h.log.tree.size), "µs/record")
	b.ReportMetric(float64(out.Len())/1e6, "MB")
}

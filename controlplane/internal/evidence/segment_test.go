package evidence

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
	"bailiwick/shared/checkpoint"
	"bailiwick/shared/durable"
)

// long is a history of n segments and a bit, with heads.
func long(t testing.TB, n int) *history {
	h := newHistory(t)
	h.rules()
	for len(h.log.segments) <= n {
		h.grant(1)
		if h.log.tree.size%8 == 0 {
			h.head()
		}
	}
	h.grant(1)
	h.head()
	return h
}

// reopened is the log as a start finds it.
func (h *history) reopened() *Log {
	h.t.Helper()
	if err := h.log.file.Sync(); err != nil {
		h.t.Fatal(err)
	}
	l := h.open()
	h.t.Cleanup(func() { l.file.Close() })
	return l
}

func sameLog(t *testing.T, got, want *Log) {
	t.Helper()
	root, err := got.tree.root(got.tree.size)
	if err != nil {
		t.Fatal(err)
	}
	other, err := want.tree.root(want.tree.size)
	if err != nil || got.tree.size != want.tree.size || root != other || got.broken != nil {
		t.Fatalf("%d records with root %s, want %d with %s (%v, %v)", got.tree.size, root, want.tree.size, other, err, got.broken)
	}
}

// neighbour answers as another node of the zone does.
func neighbour(of *Log) func(context.Context, int64) (Piece, error) {
	return func(_ context.Context, from int64) (Piece, error) { return of.Leaves(from, 50) }
}

func damage(t *testing.T, path string, at float64) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[int(at*float64(len(data)-1))] ^= 1
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// A log of several segments starts from the last alone, proves any two heads, and goes on as if it had never ended.
func TestSegments(t *testing.T) {
	h := long(t, 2)
	all := h.heads()
	bundle := h.export()
	if v := verdict(t, bundle, h.trust()); v.Total != 0 || v.First != 0 || v.Heads < 50 {
		t.Fatalf("from %d, %d heads, findings %+v", v.First, v.Heads, v.Findings)
	}
	l := h.reopened()
	sameLog(t, l, h.log)
	if l.through < h.log.through-2 || l.through > h.log.through || string(l.newest.note) != string(h.log.newest.note) || len(l.tree.recent) > 4*4*int(h.every) {
		t.Errorf("it stands at %d with %d hashes in memory, want %d", l.through, len(l.tree.recent), h.log.through)
	}
	for _, i := range []int{0, 1, len(all) / 2, len(all) - 2} {
		note, proof, err := l.Checkpoint(all[i].Size)
		if err != nil {
			t.Fatal(err)
		}
		newest, err := checkpoint.Open("emea", h.log.key, note)
		if err != nil {
			t.Fatal(err)
		}
		if err := checkpoint.Continues(all[i].Checkpoint, newest, proof); err != nil {
			t.Errorf("head %d: %v", i, err)
		}
	}
	if string(model.Encode(l.replay.snapshot(h.at))) != string(model.Encode(h.log.replay.snapshot(h.at))) {
		t.Error("begun at the last segment's state, it would tell another state than the one that saw it all")
	}
	c, err := l.Check(t.Context())
	if err != nil || c.First != 0 || c.Records != l.tree.size || len(c.Mended)+len(c.Damaged) != 0 || c.Heads == 0 {
		t.Errorf("checked %+v, %v", c, err)
	}
}

// Whatever is damaged comes back: at the start what is in the newest segment, by the scrubber what is in older ones.
func TestSegments_DamageHeals(t *testing.T) {
	whole := long(t, 2)
	for _, c := range []struct {
		name string
		hurt func(t *testing.T, h *history)
	}{
		{"newest, in a record", func(t *testing.T, h *history) { damage(t, h.log.path(h.log.segments[2]), 0.9) }},
		{"newest, in its beginning", func(t *testing.T, h *history) { damage(t, h.log.path(h.log.segments[2]), 0.05) }},
		{"newest, in its header", func(t *testing.T, h *history) { damage(t, h.log.path(h.log.segments[2]), 0) }},
		{"newest is missing", func(t *testing.T, h *history) { os.Remove(h.log.path(h.log.segments[2])) }},
		{"middle, in a record", func(t *testing.T, h *history) { damage(t, h.log.path(h.log.segments[1]), 0.5) }},
		{"oldest, in a record", func(t *testing.T, h *history) { damage(t, h.log.path(h.log.segments[0]), 0.5) }},
		{"hashes", func(t *testing.T, h *history) { damage(t, filepath.Join(h.dir, treeName), 0.3) }},
		{"hashes cut", func(t *testing.T, h *history) {
			if err := os.Truncate(filepath.Join(h.dir, treeName), 5000); err != nil {
				t.Fatal(err)
			}
		}},
		{"hashes are missing", func(t *testing.T, h *history) { os.Remove(filepath.Join(h.dir, treeName)) }},
		{"all but hashes are missing", func(t *testing.T, h *history) {
			for _, s := range h.log.segments {
				os.Remove(h.log.path(s))
			}
		}},
		{"everything is missing", func(t *testing.T, h *history) {
			files, _ := filepath.Glob(filepath.Join(h.dir, "*"))
			for _, f := range files {
				os.Remove(f)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHistory(t)
			h.log.file.Close()
			files, _ := filepath.Glob(filepath.Join(whole.dir, "*"))
			for _, f := range files {
				data, err := os.ReadFile(f)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(h.dir, filepath.Base(f)), data, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			h.log.segments = whole.log.segments
			c.hurt(t, h)
			l := h.open()
			defer l.file.Close()
			l.cfg.Peers = neighbour(whole.log)
			l.cfg.Store = store{local: snap{rev: group.Revision{Epoch: 7, Index: whole.index}, kv: whole.kv}}
			for tries := 0; l.tree.size < whole.log.tree.size; tries++ {
				if err := l.catchUp(t.Context()); err != nil || tries > 20 {
					t.Fatal(tries, err)
				}
			}
			if _, err := l.Check(t.Context()); err != nil {
				t.Fatal(err)
			}
			again, err := l.Check(t.Context())
			if err != nil || len(again.Mended)+len(again.Damaged) != 0 || again.Records != whole.log.tree.size || again.First != 0 {
				t.Fatalf("not whole: %+v, %v", again, err)
			}
			sameLog(t, l, whole.log)
			if got, want := l.leavesAll(t), whole.log.leavesAll(t); !bytes.Equal(bytes.Join(got, nil), bytes.Join(want, nil)) {
				t.Error("its records are others")
			}
		})
	}
}

// A neighbour that hands out other records than the hashes say mends nothing.
func TestSegments_AForgedNeighbourMendsNothing(t *testing.T) {
	h := long(t, 1)
	l := h.reopened()
	damage(t, l.path(l.segments[0]), 0.5)
	l.cfg.Peers = func(context.Context, int64) (c Piece, err error) {
		for range 300 {
			c.Leaves = append(c.Leaves, []byte(`{"kind":"write","epoch":7,"index":1,"at":"2026-11-25T09:00:01Z","key":"key","name":"x","after":"y"}`))
		}
		return c, err
	}
	c, err := l.Check(t.Context())
	if err != nil || len(c.Damaged) != 1 || !strings.Contains(c.Damaged[0], "does not come to the same hashes") {
		t.Errorf("got %+v, %v", c, err)
	}
}

// Old segments go by age and by size; what is left is sound, proofs from old heads still hold, and a node that begins now
// begins where the others do.
func TestSegments_Trim(t *testing.T) {
	h := long(t, 3)
	old := h.heads()[3]
	h.log.cfg.Keep = h.at.Sub(h.log.segments[2].at) - time.Second
	if err := h.log.trim(h.at); err != nil {
		t.Fatal(err)
	}
	if n := len(h.log.segments); n != 2 {
		t.Fatalf("%d segments are left, want 2", n)
	}
	v := verdict(t, h.export(), h.trust())
	if v.Total != 0 || v.First != h.log.segments[0].first || !v.From.Equal(h.log.segments[0].at) {
		t.Errorf("from record %d and %v, findings %+v", v.First, v.From, v.Findings)
	}
	note, proof, err := h.log.Checkpoint(old.Size)
	if err != nil {
		t.Fatal(err)
	}
	newest, err := checkpoint.Open("emea", h.log.key, note)
	if err != nil {
		t.Fatal(err)
	}
	if err := checkpoint.Continues(old.Checkpoint, newest, proof); err != nil {
		t.Errorf("from a head of what was dropped: %v", err)
	}
	late := newHistory(t)
	late.log.cfg.Peers = neighbour(h.log)
	late.log.cfg.Store = store{local: snap{rev: group.Revision{Epoch: 7, Index: h.index}, kv: h.kv}}
	for late.log.tree.size < h.log.tree.size {
		if err := late.log.catchUp(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	sameLog(t, late.log, h.log)
	again := late.reopened()
	sameLog(t, again, h.log)
	h.log.cfg.Budget = 1
	if err := h.log.trim(h.at); err != nil || len(h.log.segments) != 1 {
		t.Errorf("over its budget %d segments are left: %v", len(h.log.segments), err)
	}
}

// An export that breaks off at any place goes on there, to the same bytes, though the log grows meanwhile.
// A bundle tells from when on it is whole: a zone that says another time leaves out what lies between.
func TestVerify_ABundleThatBeginsLaterThanItSays(t *testing.T) {
	h := long(t, 2)
	b := func(from time.Time) *bundle {
		var out bytes.Buffer
		if err := h.exportTo(&out, from, h.at.Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
		if v := verdict(t, out.Bytes(), h.trust()); v.Total != 0 {
			t.Fatalf("from %s: findings %+v", from, v.Findings)
		}
		return apart(t, out.Bytes())
	}
	honest := b(h.at)
	if honest.heading.First == 0 {
		t.Fatal("the bundle begins with the log")
	}
	honest.heading.From = h.at.Add(-24 * time.Hour)
	if v := verdict(t, honest.together(t, h.key, false), h.trust()); v.Total != 1 || !strings.Contains(v.Findings[0].What, "what lies between is missing") {
		t.Errorf("of a day and begins some minutes before its end: findings %+v", v.Findings)
	}
	// A node whose copy begins later, as after a restore, says so by itself.
	h.log.segments = h.log.segments[1:]
	h.log.segments[0].at = time.Time{}
	if got := b(h.at.Add(-24 * time.Hour)).heading; got.First == 0 || !got.From.After(h.at.Add(-time.Hour)) {
		t.Errorf("a bundle of record %d on says that it is from %s on", got.First, got.From)
	}
}

func TestExport_Resumes(t *testing.T) {
	h := long(t, 1)
	x, err := h.log.NewExport("n", "", h.at.Add(-time.Hour), h.at, nil)
	if err != nil {
		t.Fatal(err)
	}
	var whole bytes.Buffer
	if err := x.WriteTo(&whole, 0); err != nil {
		t.Fatal(err)
	}
	from, to := h.at.Add(-time.Hour), h.at
	h.grant(1)
	h.head()
	for _, part := range []float64{0, 0.001, 0.5, 0.9999, 1} {
		offset := int64(part * float64(whole.Len()))
		y, err := h.log.NewExport("n", "", from, to, &Export{At: x.At, First: x.First, Size: x.Size})
		if err != nil {
			t.Fatal(err)
		}
		rest := bytes.NewBuffer(bytes.Clone(whole.Bytes()[:offset]))
		if err := y.WriteTo(rest, offset); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(rest.Bytes(), whole.Bytes()) {
			t.Errorf("gone on at byte %d: other bytes", offset)
		}
	}
	if _, err := h.log.NewExport("n", "", from, to, &Export{At: x.At, First: x.First, Size: 1 << 40}); err == nil {
		t.Error("an export of records that are not there goes on")
	}
}

// The one file of an earlier version becomes segments, and an end in the middle of that is no harm.
func TestSegments_TakeOverTheOneFile(t *testing.T) {
	h := long(t, 1)
	old := filepath.Join(t.TempDir(), oldName)
	v1 := durable.Header{Magic: "bwtlog", Version: 1, Program: "bailiwick-control"}
	f, _, err := durable.OpenLog(durable.OS(), old, v1, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = h.log.scan(h.log.segments, 0, func(tag byte, _ int64, body []byte) error {
		if tag == tagBegin {
			return nil
		}
		return f.Append(append([]byte{tag}, body...))
	})
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	data, err := os.ReadFile(old)
	if err != nil {
		t.Fatal(err)
	}
	late := newHistory(t) // with a segment that an earlier try left
	late.log.file.Close()
	if err := os.WriteFile(filepath.Join(late.dir, oldName), data, 0o600); err != nil {
		t.Fatal(err)
	}
	l := late.open()
	sameLog(t, l, h.log)
	l.file.Close()
	if _, err := os.Stat(filepath.Join(late.dir, oldName)); err == nil {
		t.Error("the old file is still there")
	}
	l = late.open()
	defer l.file.Close()
	sameLog(t, l, h.log)
	if string(l.newest.note) != string(h.log.newest.note) || len(l.segments) != 2 {
		t.Errorf("%d segments, newest head %.20q", len(l.segments), l.newest.note)
	}
}

// A crash within a transaction that would be the 4096th record must not put a state where other nodes have none.
func TestLog_NoStateWithinATransaction(t *testing.T) {
	h := newHistory(t)
	h.rules()
	for h.log.tree.size-h.log.state < h.every-1 {
		h.grant()
	}
	h.write("acme") // one record: the next transaction would begin with a state
	last := h.txns[len(h.txns)-1]
	two := append([]group.Event{}, last[1], last[1])
	two[0].Index, two[1].Index = last[1].Index+1, last[1].Index+1
	two[1].KV.Key += "x"
	before := newHistory(t)
	for _, events := range h.txns[:len(h.txns)-1] {
		if err := before.log.transaction(events, 7); err != nil {
			t.Fatal(err)
		}
	}
	two[0].Index, two[1].Index = last[0].Index, last[0].Index
	if err := before.log.transaction(two[:1], 7); err != nil { // a crash after the first of both
		t.Fatal(err)
	}
	if err := before.log.transaction(two, 7); err != nil {
		t.Fatal(err)
	}
	for _, leaf := range before.log.leavesAll(t) {
		if bytes.HasPrefix(leaf, stateBegins) {
			t.Error("there is a state within a transaction")
		}
	}
}

// What a backup has beside the zone store comes back as the same log, also of one that was trimmed, and cut at the
// transaction of the store.
func TestBackup(t *testing.T) {
	for _, trimmed := range []bool{false, true} {
		h := long(t, 2)
		for range 5 {
			h.grant(1)
		}
		h.head()
		if trimmed {
			h.log.cfg.Budget = 1
			if err := h.log.trim(h.at); err != nil {
				t.Fatal(err)
			}
		}
		through := h.log.last - 3
		var entries [][]byte
		if err := h.log.Copy(t.Context(), through, func(e []byte) error { entries = append(entries, bytes.Clone(e)); return nil }); err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		i := 0
		if err := Write(durable.OS(), dir, func() ([]byte, error) {
			if i++; i > len(entries) {
				return nil, io.EOF
			}
			return entries[i-1], nil
		}); err != nil {
			t.Fatal(err)
		}
		restored := &history{t: t, key: h.key, dir: dir, every: h.every}
		l := restored.open()
		if l.through != through || l.tree.size >= h.log.tree.size || l.segments[0].first != h.log.segments[0].first {
			t.Errorf("restored through %d with %d records from %d on", l.through, l.tree.size, l.segments[0].first)
		}
		for _, events := range h.txns { // the store's own log tells the rest
			if events[0].Index > l.through {
				if err := l.transaction(events, 7); err != nil {
					t.Fatal(err)
				}
			}
		}
		sameLog(t, l, h.log)
		if err := Write(durable.OS(), dir, nil); err == nil {
			t.Error("a log that is there is written over")
		}
		l.file.Close()
	}
}

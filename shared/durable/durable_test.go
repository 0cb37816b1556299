package durable_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"bailiwick/shared/durable"
	"bailiwick/shared/durable/durabletest"
)

var head = durable.Header{Magic: "bwtest", Version: 2, Program: "bailiwick-test 0.1"}

func open(t *testing.T, fsys durable.FS, h durable.Header) (*durable.Log, []string, durable.LogState, error) {
	t.Helper()
	var got []string
	l, st, err := durable.OpenLog(fsys, "/d/log", h, func(_ int64, p []byte) error {
		got = append(got, string(p))
		return nil
	})
	return l, got, st, err
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newFS(t *testing.T) *durabletest.FS {
	t.Helper()
	m := durabletest.New()
	must(t, m.MkdirAll("/d", durable.DirPerm))
	return m
}

// write makes a log of n records and returns them and the offset of each end.
func write(t *testing.T, fsys durable.FS, n int) (recs []string, ends []int64) {
	t.Helper()
	l, _, st, err := open(t, fsys, head)
	must(t, err)
	if !st.Created {
		t.Fatal("log existed already")
	}
	ends = append(ends, l.Size())
	for i := range n {
		rec := strings.Repeat(string(rune('a'+i)), i*7) // the first is empty
		must(t, l.Append([]byte(rec)))
		recs, ends = append(recs, rec), append(ends, l.Size())
	}
	must(t, l.Sync())
	must(t, l.Close())
	return recs, ends
}

func TestLog_SurvivesACrashAfterSync(t *testing.T) {
	m := newFS(t)
	recs, _ := write(t, m, 5)
	m.Crash()
	l, got, st, err := open(t, m, head)
	must(t, err)
	if !slices.Equal(got, recs) || st.Records != 5 || st.Torn != 0 || st.Created {
		t.Errorf("got %q %+v, want %q and nothing torn", got, st, recs)
	}
	must(t, l.Append([]byte("unsynced")))
	m.Crash()
	if err := l.Append(nil); !errors.Is(err, durabletest.ErrCrashed) {
		t.Errorf("append through a crashed handle: got %v, want ErrCrashed", err)
	}
	_, got, _, err = open(t, m, head)
	must(t, err)
	if !slices.Equal(got, recs) {
		t.Errorf("after the second crash: got %q, want %q", got, recs)
	}
}

// Cut at every byte: all whole records are there, the rest is cut and reported,
// and the log takes new records at the cut.
func TestLog_CutsATornTailAtEveryLength(t *testing.T) {
	m := newFS(t)
	recs, ends := write(t, m, 4)
	whole, err := durable.ReadFile(m, "/d/log", 0)
	must(t, err)
	for cut := ends[0]; cut <= int64(len(whole)); cut++ {
		must(t, m.Corrupt("/d/log", func([]byte) []byte { return whole[:cut] }))
		l, got, st, err := open(t, m, head)
		if err != nil {
			t.Fatalf("cut at %d: %v", cut, err)
		}
		n := 0
		for n+1 < len(ends) && ends[n+1] <= cut {
			n++
		}
		if !slices.Equal(got, recs[:n]) || st.Torn != cut-ends[n] || l.Size() != ends[n] {
			t.Fatalf("cut at %d: got %d records, torn %d, size %d, want %d, %d, %d", cut, len(got), st.Torn, l.Size(), n, cut-ends[n], ends[n])
		}
		must(t, l.Append([]byte("next")))
		must(t, l.Sync())
		m.Crash()
		_, got, st, err = open(t, m, head)
		must(t, err)
		if want := append(slices.Clone(recs[:n]), "next"); !slices.Equal(got, want) || st.Torn != 0 {
			t.Fatalf("cut at %d, appended: got %q torn %d, want %q torn 0", cut, got, st.Torn, want)
		}
	}
	for cut := range ends[0] {
		must(t, m.Corrupt("/d/log", func([]byte) []byte { return whole[:cut] }))
		if _, _, _, err := open(t, m, head); !errors.Is(err, durable.ErrCorrupt) {
			t.Fatalf("header cut at %d: got %v, want ErrCorrupt", cut, err)
		}
	}
}

func TestLog_RefusesEveryFlippedBit(t *testing.T) {
	m := newFS(t)
	_, ends := write(t, m, 4)
	whole, err := durable.ReadFile(m, "/d/log", 0)
	must(t, err)
	for i := range whole {
		for bit := range 8 {
			must(t, m.Corrupt("/d/log", func([]byte) []byte {
				b := bytes.Clone(whole)
				b[i] ^= 1 << bit
				return b
			}))
			_, _, _, err := open(t, m, head)
			if !errors.Is(err, durable.ErrCorrupt) {
				t.Fatalf("byte %d bit %d: got %v, want ErrCorrupt", i, bit, err)
			}
			var c *durable.CorruptError
			if !errors.As(err, &c) || c.Path != "/d/log" || c.Offset > int64(i) || int64(i) >= ends[0] && c.Offset < ends[0] {
				t.Fatalf("byte %d bit %d: offset %d does not lead to it", i, bit, c.Offset)
			}
		}
	}
	if n := len(m.Files("/d")); n != 1 {
		t.Errorf("got %d files, want the log alone", n)
	}
}

func TestLog_ZeroTailIsTorn(t *testing.T) {
	m := newFS(t)
	recs, _ := write(t, m, 3)
	for _, n := range []int{1, 7, 8, 4096, 100_000} {
		must(t, m.Corrupt("/d/log", func(b []byte) []byte { return append(b, make([]byte, n)...) }))
		_, got, st, err := open(t, m, head)
		if err != nil || !slices.Equal(got, recs) || st.Torn != int64(n) {
			t.Errorf("%d zeros: got %d records torn %d (%v), want %d torn %d", n, len(got), st.Torn, err, len(recs), n)
		}
	}
	must(t, m.Corrupt("/d/log", func(b []byte) []byte { return append(append(b, make([]byte, 4096)...), 1) }))
	if _, _, _, err := open(t, m, head); !errors.Is(err, durable.ErrCorrupt) {
		t.Errorf("zeros and then something: got %v, want ErrCorrupt", err)
	}
}

func TestLog_Versions(t *testing.T) {
	m := newFS(t)
	write(t, m, 1)
	old := head
	old.Version, old.Program = 1, "bailiwick-test 0.0"
	_, _, _, err := open(t, m, old)
	if !errors.Is(err, durable.ErrNewer) || !strings.Contains(err.Error(), head.Program) {
		t.Errorf("newer file: got %v, want ErrNewer naming %q", err, head.Program)
	}
	later := head
	later.Version, later.Program = 3, "bailiwick-test 0.2"
	_, _, st, err := open(t, m, later)
	if err != nil || st.Header != head {
		t.Errorf("older file: got %+v %v, want the header of its writer %+v", st.Header, err, head)
	}
	other := head
	other.Magic = "bwother"
	if _, _, _, err := open(t, m, other); !errors.Is(err, durable.ErrCorrupt) {
		t.Errorf("another kind of file: got %v, want ErrCorrupt", err)
	}
	for _, bad := range []durable.Header{{Version: 1, Program: "p"}, {Magic: "ninechars", Version: 1, Program: "p"}, {Magic: "m", Program: "p"}, {Magic: "m", Version: 1}} {
		if _, _, _, err := open(t, m, bad); err == nil {
			t.Errorf("header %+v: got nil, want an error", bad)
		}
	}
}

func TestLog_FailedSyncPoisons(t *testing.T) {
	m := newFS(t)
	l, _, _, err := open(t, m, head)
	must(t, err)
	must(t, l.Append([]byte("a")))
	eio := errors.New("input/output error")
	m.Inject(func(op, _ string) error {
		if op == "sync" {
			return eio
		}
		return nil
	})
	if err := l.Sync(); !errors.Is(err, eio) {
		t.Errorf("sync: got %v, want %v", err, eio)
	}
	m.Inject(nil)
	if err := l.Sync(); !errors.Is(err, eio) {
		t.Errorf("sync again: got %v, want the first error for ever", err)
	}
	if err := l.Append([]byte("b")); !errors.Is(err, eio) {
		t.Errorf("append: got %v, want the first error for ever", err)
	}
}

func TestLog_Truncate(t *testing.T) {
	m := newFS(t)
	l, _, _, err := open(t, m, head)
	must(t, err)
	empty := l.Size()
	must(t, l.Append([]byte("a")))
	one := l.Size()
	must(t, l.Append([]byte("b")))
	must(t, l.Sync())
	must(t, l.Truncate(one))
	must(t, l.Append([]byte("c")))
	must(t, l.Sync())
	m.Crash()
	l, got, _, err := open(t, m, head)
	must(t, err)
	if want := []string{"a", "c"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	must(t, l.Truncate(empty))
	m.Crash()
	if _, got, _, err = open(t, m, head); err != nil || len(got) != 0 {
		t.Errorf("emptied: got %q %v, want none", got, err)
	}
	if err := l.Truncate(1 << 20); err == nil {
		t.Error("truncate past the end: got nil, want an error")
	}
}

func TestLog_CallbackErrorEndsOpening(t *testing.T) {
	m := newFS(t)
	write(t, m, 2)
	stop := errors.New("stop")
	if _, _, err := durable.OpenLog(m, "/d/log", head, func(int64, []byte) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("got %v, want %v", err, stop)
	}
}

// At whatever moment the machine dies, every acked record is there, in order,
// and nothing that was never appended.
func TestLog_AnyCrashKeepsWhatWasSynced(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 1))
		m := newFS(t)
		var appended []string
		synced := 0
		for range 6 {
			l, got, _, err := open(t, m, head)
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			if len(got) < synced || len(got) > len(appended) || !slices.Equal(got, appended[:len(got)]) {
				t.Fatalf("seed %d: got %d records, synced %d, appended %d", seed, len(got), synced, len(appended))
			}
			appended, synced = got, len(got)
			for range r.IntN(8) {
				rec := fmt.Sprintf("%d-%s", r.Uint32(), strings.Repeat("x", r.IntN(40)))
				must(t, l.Append([]byte(rec)))
				appended = append(appended, rec)
				if r.IntN(3) == 0 {
					must(t, l.Sync())
					synced = len(appended)
				}
			}
			m.CrashTorn(r)
		}
	}
}

// Fail or crash at every single operation of the replacement: the file is
// always the old or the new, never a mixture, never gone.
func TestWriteFileAtomic_OldOrNewAtEveryStep(t *testing.T) {
	for step := 0; ; step++ {
		m := newFS(t)
		must(t, durable.WriteFileAtomic(m, "/d/f", []byte("old"), durable.FilePerm))
		n := 0
		m.Inject(func(string, string) error {
			if n++; n > step {
				return errors.New("power is gone")
			}
			return nil
		})
		werr := durable.WriteFileAtomic(m, "/d/f", []byte("new!"), durable.FilePerm)
		m.Inject(nil)
		m.Crash()
		got, err := durable.ReadFile(m, "/d/f", 0)
		if err != nil || string(got) != "old" && string(got) != "new!" {
			t.Fatalf("step %d: got %q %v", step, got, err)
		}
		if werr == nil {
			if string(got) != "new!" {
				t.Fatalf("step %d: acked and lost: got %q", step, got)
			}
			if step < 4 {
				t.Fatalf("done after %d operations: a sync is missing", step)
			}
			break
		}
	}
}

func TestSealed_RoundTripsAndRefusesDamage(t *testing.T) {
	m := newFS(t)
	for _, blob := range [][]byte{{}, []byte("x"), bytes.Repeat([]byte("table"), 50)} {
		must(t, durable.WriteSealed(m, "/d/s", head, blob))
		m.Crash()
		got, h, err := durable.ReadSealed(m, "/d/s", head, 0)
		if err != nil || !bytes.Equal(got, blob) || h != head {
			t.Fatalf("got %d bytes %+v %v, want %d bytes %+v", len(got), h, err, len(blob), head)
		}
		whole, err := durable.ReadFile(m, "/d/s", 0)
		must(t, err)
		damaged := func(what string, b []byte) {
			must(t, m.Corrupt("/d/s", func([]byte) []byte { return b }))
			if _, _, err := durable.ReadSealed(m, "/d/s", head, 0); !errors.Is(err, durable.ErrCorrupt) {
				t.Fatalf("%s: got %v, want ErrCorrupt", what, err)
			}
		}
		for i := range whole {
			b := bytes.Clone(whole)
			b[i] ^= 1 << (i % 8)
			damaged(fmt.Sprint("flip in byte ", i), b)
			damaged(fmt.Sprint("cut at ", i), whole[:i])
		}
		damaged("trailing byte", append(bytes.Clone(whole), 0))
	}
	must(t, durable.WriteSealed(m, "/d/s", head, []byte("abc")))
	if _, _, err := durable.ReadSealed(m, "/d/s", head, 10); err == nil || errors.Is(err, durable.ErrCorrupt) {
		t.Errorf("over the limit: got %v, want a size error", err)
	}
	old := head
	old.Version = 1
	if _, _, err := durable.ReadSealed(m, "/d/s", old, 0); !errors.Is(err, durable.ErrNewer) {
		t.Errorf("newer: got %v, want ErrNewer", err)
	}
	if _, _, err := durable.ReadSealed(m, "/d/none", head, 0); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("absent: got %v, want fs.ErrNotExist", err)
	}
}

func TestOS_BehavesLikeTheModel(t *testing.T) {
	osfs, dir := durable.OS(), t.TempDir()
	deep := filepath.Join(dir, "a", "b", "c")
	must(t, osfs.MkdirAll(deep, durable.DirPerm))
	must(t, osfs.MkdirAll(deep, durable.DirPerm))
	path := filepath.Join(deep, "log")
	l, st, err := durable.OpenLog(osfs, path, head, nil)
	must(t, err)
	if !st.Created {
		t.Error("created: got false, want true")
	}
	must(t, l.Append([]byte("one")))
	must(t, l.Append([]byte("two")))
	must(t, l.Sync())
	must(t, l.Close())
	if err := l.Append(nil); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("append after close: got %v, want fs.ErrClosed", err)
	}
	f, err := osfs.OpenFile(path, 2, 0)
	must(t, err)
	info, err := f.Stat()
	must(t, err)
	if info.Mode().Perm() != durable.FilePerm {
		t.Errorf("mode: got %v, want %v", info.Mode().Perm(), durable.FilePerm)
	}
	must(t, f.Truncate(info.Size()-1))
	must(t, f.Close())
	var got []string
	l, st, err = durable.OpenLog(osfs, path, head, func(_ int64, p []byte) error { got = append(got, string(p)); return nil })
	must(t, err)
	defer l.Close()
	if !slices.Equal(got, []string{"one"}) || st.Torn != 14 {
		t.Errorf("got %q torn %d, want [one] torn 14", got, st.Torn)
	}
	if _, err := osfs.Open(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("open: got %v, want fs.ErrNotExist", err)
	}
	if err := osfs.MkdirAll(path, durable.DirPerm); err == nil {
		t.Error("mkdir over a file: got nil, want an error")
	}
	must(t, durable.WriteFileAtomic(osfs, filepath.Join(deep, "f"), []byte("1"), durable.FilePerm))
	must(t, durable.WriteFileAtomic(osfs, filepath.Join(deep, "f"), []byte("22"), durable.FilePerm))
	entries, err := osfs.ReadDir(deep)
	must(t, err)
	if len(entries) != 2 {
		t.Errorf("got %d entries, want log and f and no leftovers", len(entries))
	}
}

// A log whose maker could not sync its name is found by the next opening; what is appended and synced then must
// survive a crash.
func TestOpenLog_NameSurvivesTooIfItsMakerFailed(t *testing.T) {
	fs := durabletest.New()
	if err := fs.MkdirAll("/d", durable.DirPerm); err != nil {
		t.Fatal(err)
	}
	fs.Inject(func(op, _ string) error {
		if op == "syncdir" {
			return errors.New("the disk does not answer")
		}
		return nil
	})
	if _, _, err := durable.OpenLog(fs, "/d/log", head, nil); err == nil {
		t.Fatal("a log whose name is not on disk opens")
	}
	fs.Inject(nil)
	l, _, err := durable.OpenLog(fs, "/d/log", head, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(l.Append([]byte("kept")), l.Sync()); err != nil {
		t.Fatal(err)
	}
	fs.Crash()
	n := 0
	if _, _, err := durable.OpenLog(fs, "/d/log", head, func(int64, []byte) error { n++; return nil }); err != nil || n != 1 {
		t.Errorf("after the crash: %d records, %v, want 1", n, err)
	}
}

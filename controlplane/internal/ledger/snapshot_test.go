package ledger_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"bailiwick/controlplane/internal/ledger"
)

func snapshot(t testing.TB, m *ledger.Machine) []byte {
	t.Helper()
	write, release, err := m.Snapshot()
	if err != nil {
		t.Fatalf("snapshot: %v", err)
	}
	defer release()
	var b bytes.Buffer
	if err := write(&b); err != nil {
		t.Fatalf("write snapshot: %v", err)
	}
	return b.Bytes()
}

func filled(t testing.TB, m *ledger.Machine, edge string, blocks int) *chain {
	t.Helper()
	c := &chain{edge: edge, epoch: 1}
	for i := range blocks {
		apply(t, m, c.next(one(fmt.Sprintf("customer-%d", i%7), i, int64(i))))
	}
	return c
}

func TestMachine_SnapshotIsTheStateAtItsCall(t *testing.T) {
	src := openMem(t)
	c := filled(t, src, "e", 60)
	applyCmd(t, src, ledger.EncodeSealed([]ledger.Said{{Edge: "e", Epoch: 1, Sealed: 70, Seq: 70, MS: 99}}))
	want := stateHash(t, src)
	write, release, err := src.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	after := apply(t, src, c.next(one("acme", 1, 1))) // Apply goes on before write
	var b bytes.Buffer
	if err := write(&b); err != nil {
		t.Fatal(err)
	}
	release()

	mem := vfs.NewMem()
	dst := open(t, mem)
	filled(t, dst, "other", 3) // to be replaced
	v, err := dst.View()       // a reader must not be cut off, nor hold Restore up for ever
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- dst.Restore(bytes.NewReader(b.Bytes())) }()
	if w, err := v.Watermark("other", 1); err != nil || w.Applied != 3 {
		t.Errorf("view during restore: got %+v, %v, want watermark 3", w, err)
	}
	v.Close()
	if err := <-done; err != nil {
		t.Fatalf("restore: %v", err)
	}
	if stateHash(t, dst) != want {
		t.Error("state hash after restore differs")
	}
	if dst.Applied() != src.Applied()-1 {
		t.Errorf("applied after restore: got %d, want %d", dst.Applied(), src.Applied()-1)
	}
	b62 := block("e", 1, 61, [32]byte{}, nil)
	b62.Hash = after[0].Head
	if got := apply(t, dst, b62)[0]; got.Reason != ledger.ReasonWrongChain {
		t.Errorf("block 61 with a false chain after restore: got %q, want %s", got.Reason, ledger.ReasonWrongChain)
	}
	again := stateHash(t, dst)
	shut(t, dst)
	dst = open(t, mem)
	defer shut(t, dst)
	if stateHash(t, dst) != again {
		t.Error("state hash after restore and reopening differs")
	}
	names, err := mem.List("ledger")
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		if n == "db-1" {
			t.Errorf("directory after restore: %v still holds the replaced database", names)
		}
	}
}

func TestMachine_DamagedSnapshotReplacesNothing(t *testing.T) {
	src := openMem(t)
	filled(t, src, "e", 20)
	good := snapshot(t, src)
	try := func(name string, r io.Reader) {
		mem := vfs.NewMem()
		m := open(t, mem)
		filled(t, m, "other", 3)
		want := stateHash(t, m)
		if err := m.Restore(r); err == nil {
			t.Errorf("%s: got nil, want an error", name)
		}
		shut(t, m)
		m = open(t, mem)
		if stateHash(t, m) != want {
			t.Errorf("%s: the old state is gone", name)
		}
		shut(t, m)
	}
	step := max(1, len(good)/150)
	for i := 0; i < len(good); i += step {
		bad := bytes.Clone(good)
		bad[i] ^= 1 << (i % 8)
		try(fmt.Sprintf("flip at %d of %d", i, len(good)), bytes.NewReader(bad))
		try(fmt.Sprintf("cut at %d of %d", i, len(good)), bytes.NewReader(good[:i]))
	}
	try("something behind", io.MultiReader(bytes.NewReader(good), strings.NewReader("x")))
	broken := errors.New("the carrier's own checksum differs")
	try("the carrier fails at its end", io.MultiReader(bytes.NewReader(good), failing{broken}))
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// crashFS takes what a crash would leave before and after every change of the
// directory.
type crashFS struct {
	*vfs.MemFS
	at func()
}

func (c crashFS) Create(name string, k vfs.DiskWriteCategory) (vfs.File, error) {
	c.at()
	defer c.at()
	return c.MemFS.Create(name, k)
}

func (c crashFS) Remove(name string) error {
	c.at()
	defer c.at()
	return c.MemFS.Remove(name)
}

func (c crashFS) RemoveAll(name string) error {
	c.at()
	defer c.at()
	return c.MemFS.RemoveAll(name)
}

func (c crashFS) Rename(o, n string) error {
	c.at()
	defer c.at()
	return c.MemFS.Rename(o, n)
}

func TestMachine_CrashInsideRestoreLeavesOldOrNew(t *testing.T) {
	src := openMem(t)
	filled(t, src, "e", 40)
	snap, after := snapshot(t, src), stateHash(t, src)

	for _, unsynced := range []int{0, 30, 70, 100} {
		t.Run(fmt.Sprintf("%d%% of unsynced data survives", unsynced), func(t *testing.T) {
			var clones []*vfs.MemFS
			rng := rand.New(rand.NewPCG(1, uint64(unsynced)))
			mem := vfs.NewCrashableMem()
			record := false
			fsys := crashFS{MemFS: mem, at: func() {
				if record {
					clones = append(clones, mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: unsynced, RNG: rng}))
				}
			}}
			m := open(t, fsys)
			filled(t, m, "other", 5)
			before := stateHash(t, m)
			if err := m.Flush(); err != nil { // as the snapshot of index 5 would
				t.Fatal(err)
			}
			record = true
			if err := m.Restore(bytes.NewReader(snap)); err != nil {
				t.Fatal(err)
			}
			record = false
			shut(t, m)
			olds, news := 0, 0
			for i, c := range clones {
				m := open(t, c)
				switch stateHash(t, m) {
				case before:
					olds++
				case after:
					news++
				default:
					t.Errorf("crash %d of %d: neither the old nor the new state", i, len(clones))
				}
				shut(t, m)
			}
			if olds == 0 || news == 0 {
				t.Errorf("crashes: got %d old and %d new, want some of each: the test misses the swap", olds, news)
			}
		})
	}
}

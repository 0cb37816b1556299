package ledger_test

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"bailiwick/controlplane/internal/ledger"
	"bailiwick/shared/usage"
)

// apply runs one entry of blocks and returns the acks.
func apply(t testing.TB, m *ledger.Machine, blocks ...ledger.Block) []ledger.Ack {
	t.Helper()
	out, err := m.Apply(m.Applied()+1, base, ledger.EncodeAppend(blocks))
	if err != nil {
		t.Fatalf("apply: %v", err)
	}
	acks, err := ledger.DecodeAcks(out, blocks)
	if err != nil {
		t.Fatalf("decode acks: %v", err)
	}
	return acks
}

func applyCmd(t testing.TB, m *ledger.Machine, cmd []byte) {
	t.Helper()
	if err := m.Check(cmd); err != nil {
		t.Fatalf("check: %v", err)
	}
	if _, err := m.Apply(m.Applied()+1, base, cmd); err != nil {
		t.Fatalf("apply: %v", err)
	}
}

// total is the customer's requests over all time.
func requests(t testing.TB, m *ledger.Machine, customer string) int64 {
	t.Helper()
	v, err := m.View()
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	r, err := v.Usage(context.Background(), customer, time.Unix(0, 0), base.AddDate(10, 0, 0))
	if err != nil {
		t.Fatal(err)
	}
	return r.Total.Requests
}

func TestMachine_ApplyRule(t *testing.T) {
	one := func(n int64) []byte { return usage.EncodePayload(one("acme", 0, n)) }
	b1 := block("e1", 2, 1, [32]byte{}, one(1))
	b2 := block("e1", 2, 2, b1.Hash, one(10))
	b3 := block("e1", 2, 3, b2.Hash, one(100))
	change := func(b ledger.Block, f func(*ledger.Block)) ledger.Block { f(&b); return b }
	rehash := func(b *ledger.Block) { b.Hash = usage.HashBlock(b.Edge, b.Epoch, b.Seq, b.Prev, b.Payload) }

	for _, c := range []struct {
		name    string
		block   ledger.Block
		reason  string
		applied uint64 // of the block's epoch afterwards; the state holds b1, b2
		sum     int64
	}{
		{"next applies", b3, "", 3, 111},
		{"last again", b2, "", 2, 11},
		{"older again", b1, "", 2, 11},
		{"older again with another hash is vouched for by the chain", change(b1, func(b *ledger.Block) { b.Hash[0]++ }), "", 2, 11},
		{"another block with the last number", block("e1", 2, 2, b1.Hash, one(7)), ledger.ReasonFork, 2, 11},
		{"the last number with a false hash", change(b2, func(b *ledger.Block) { b.Hash[5]++ }), ledger.ReasonWrongChain, 2, 11},
		{"gap", block("e1", 2, 4, b3.Hash, one(1)), ledger.ReasonGap, 2, 11},
		{"far gap", block("e1", 2, math.MaxUint64, b3.Hash, one(1)), ledger.ReasonGap, 2, 11},
		{"wrong prev", change(b3, func(b *ledger.Block) { b.Prev[0]++; rehash(b) }), ledger.ReasonFork, 2, 11},
		{"another older block", block("e1", 2, 1, [32]byte{}, one(7)), ledger.ReasonFork, 2, 11},
		{"wrong hash", change(b3, func(b *ledger.Block) { b.Hash[31]++ }), ledger.ReasonWrongChain, 2, 11},
		{"payload changed on the way", change(b3, func(b *ledger.Block) { b.Payload = one(5) }), ledger.ReasonWrongChain, 2, 11},
		{"hash of another edge", change(b3, func(b *ledger.Block) { b.Edge = "e2"; b.Seq = 1; b.Prev = [32]byte{} }), ledger.ReasonWrongChain, 0, 11},
		{"garbage payload", block("e1", 2, 3, b2.Hash, []byte("\xff\xfegarbage")), ledger.ReasonMalformed, 2, 11},
		{"blank customer", block("e1", 2, 3, b2.Hash, usage.EncodePayload(map[usage.Cell]usage.Sums{cell("", 0): {Requests: 1}})), ledger.ReasonMalformed, 2, 11},
		{"zero byte in customer", block("e1", 2, 3, b2.Hash, usage.EncodePayload(map[usage.Cell]usage.Sums{cell("a\x00b", 0): {Requests: 1}})), ledger.ReasonMalformed, 2, 11},
		{"negative units beside good rows", block("e1", 2, 3, b2.Hash, usage.EncodePayload(map[usage.Cell]usage.Sums{
			cell("acme", 1): {Requests: 1, Units: -1}, cell("acme", 2): {Requests: 1}})), ledger.ReasonMalformed, 2, 11},
		{"sequence number zero", block("e1", 2, 0, [32]byte{}, one(1)), ledger.ReasonMalformed, 2, 11},
		{"epoch zero", block("e1", 0, 1, [32]byte{}, one(1)), ledger.ReasonMalformed, 0, 11},
		{"older epoch that never began", block("e1", 1, 1, [32]byte{}, one(1)), ledger.ReasonEpochClosed, 0, 11},
		{"newer epoch begins at 1", block("e1", 3, 1, [32]byte{}, one(1)), "", 1, 12},
		{"newer epoch not at 1", block("e1", 3, 2, [32]byte{}, one(1)), ledger.ReasonGap, 0, 11},
		{"other edge, same epoch", block("e2", 2, 1, [32]byte{}, one(1)), "", 1, 12},
		{"closed epoch", block("gone", 1, 1, [32]byte{}, one(1)), ledger.ReasonEpochClosed, 0, 11},
		{"epoch older than a closed one", block("gone2", 4, 1, [32]byte{}, one(1)), ledger.ReasonEpochClosed, 0, 11},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := openMem(t)
			for i, a := range apply(t, m, b1, b2) {
				if a.Reason != "" || a.Applied != uint64(i+1) {
					t.Fatalf("block %d: got %q at %d, want it applied", i+1, a.Reason, a.Applied)
				}
			}
			applyCmd(t, m, ledger.EncodeClose("gone", 1, 3))
			applyCmd(t, m, ledger.EncodeClose("gone2", 5, 0))
			before := stateHash(t, m)
			a := apply(t, m, c.block)[0]
			if a.Reason != c.reason {
				t.Errorf("reason: got %q (%s), want %q", a.Reason, a.Detail, c.reason)
			}
			if a.Applied != c.applied {
				t.Errorf("applied: got %d, want %d", a.Applied, c.applied)
			}
			if got := requests(t, m, "acme"); got != c.sum {
				t.Errorf("requests: got %d, want %d", got, c.sum)
			}
			if a.Index != m.Applied() || a.Edge != c.block.Edge || a.Epoch != c.block.Epoch {
				t.Errorf("ack: got %+v, want index %d and the block's edge and epoch", a, m.Applied())
			}
			if c.reason != "" && c.reason != ledger.ReasonFork { // only the index moved
				ref := openMem(t)
				apply(t, ref, b1, b2)
				applyCmd(t, ref, ledger.EncodeClose("gone", 1, 3))
				applyCmd(t, ref, ledger.EncodeClose("gone2", 5, 0))
				if stateHash(t, ref) != before {
					t.Error("state hash: two machines fed the same log differ")
				}
				applyCmd(t, ref, ledger.EncodeSealed(nil))
				if stateHash(t, ref) != stateHash(t, m) {
					t.Error("state hash: a refused block changed more than the index")
				}
			}
		})
	}
}

// An edge that crashed finishes its old epoch first; both are accepted after
// the newer has begun as long as the older had begun too.
func TestMachine_OlderEpochIsFinished(t *testing.T) {
	m := openMem(t)
	old, young := &chain{edge: "e", epoch: 1}, &chain{edge: "e", epoch: 2}
	a1, a2, b1 := old.next(one("acme", 0, 1)), old.next(one("acme", 0, 1)), young.next(one("acme", 0, 1))
	for i, b := range []ledger.Block{a1, b1, a2} {
		if a := apply(t, m, b)[0]; a.Reason != "" {
			t.Errorf("block %d: got %s, want it applied", i, a.Reason)
		}
	}
	if got := requests(t, m, "acme"); got != 3 {
		t.Errorf("requests: got %d, want 3", got)
	}
}

func TestMachine_HeartbeatDoesNotBeginAnEpoch(t *testing.T) {
	m := openMem(t)
	applyCmd(t, m, ledger.EncodeSealed([]ledger.Said{{Edge: "e", Epoch: 7, Sealed: 2, Seq: 2, MS: 5}}))
	c := &chain{edge: "e", epoch: 6}
	if a := apply(t, m, c.next(one("acme", 0, 1)))[0]; a.Reason != "" {
		t.Errorf("older epoch: got %s, want it applied: the newer one has no block yet", a.Reason)
	}
}

func TestMachine_SumsSaturate(t *testing.T) {
	m := openMem(t)
	c := &chain{edge: "e", epoch: 1}
	huge := map[usage.Cell]usage.Sums{cell("acme", 0): {Requests: math.MaxInt64 - 1, Units: 1}}
	apply(t, m, c.next(huge), c.next(huge))
	if err := m.Flush(); err != nil {
		t.Fatal(err)
	}
	apply(t, m, c.next(huge))
	if got := requests(t, m, "acme"); got != math.MaxInt64 {
		t.Errorf("requests: got %d, want %d", got, int64(math.MaxInt64))
	}
}

func TestMachine_UnknownCommandStopsLoudly(t *testing.T) {
	good := ledger.EncodeAppend([]ledger.Block{block("e", 1, 1, [32]byte{}, usage.EncodePayload(one("acme", 0, 1)))})
	newer := bytes.Clone(good)
	newer[0] = 3
	early := []byte{1, 4, 1, 'e', 1, 1, 0, 0, 0, 0}
	kind := bytes.Clone(good)
	kind[1] = 99
	for name, cmd := range map[string][]byte{
		"newer version": newer, "a kind of version 2 in a log of version 1": early, "unknown kind": kind, "empty": nil, "cut short": good[:len(good)-1], "too long": append(bytes.Clone(good), 0),
		"blank edge": ledger.EncodeClose("", 1, 1), "zero byte in edge": ledger.EncodeClose("a\x00", 1, 1),
		"lying count": {1, 1, 0xff, 0xff, 0xff, 0xff, 0x0f},
	} {
		t.Run(name, func(t *testing.T) {
			m := openMem(t)
			if err := m.Check(cmd); err == nil {
				t.Error("Check: got nil, want an error")
			}
			if _, err := m.Apply(1, base, cmd); err == nil {
				t.Error("Apply: got nil, want an error")
			}
			if _, err := m.Apply(1, base, good); err == nil {
				t.Error("Apply after a failed one: got nil, want an error: memory may be ahead of the disk")
			}
		})
	}
}

func TestMachine_ReplayFromAnEarlierIndexChangesNothing(t *testing.T) {
	mem := vfs.NewMem()
	m := open(t, mem)
	c := &chain{edge: "e", epoch: 1}
	var log [][]byte
	for i := range 50 {
		log = append(log, ledger.EncodeAppend([]ledger.Block{c.next(one("acme", i, 1))}))
	}
	for i, cmd := range log {
		if _, err := m.Apply(uint64(i+1), base, cmd); err != nil {
			t.Fatal(err)
		}
	}
	want := stateHash(t, m)
	shut(t, m)
	m = open(t, mem)
	defer shut(t, m)
	if m.Applied() != 50 {
		t.Fatalf("applied after reopening: got %d, want 50", m.Applied())
	}
	for i := 9; i < 50; i++ {
		if _, err := m.Apply(uint64(i+1), base, log[i]); err != nil {
			t.Fatal(err)
		}
	}
	if stateHash(t, m) != want {
		t.Error("state hash differs after a replay")
	}
	// The mirror in memory is the disk's: the next block goes on.
	if a := apply(t, m, c.next(one("acme", 0, 1)))[0]; a.Reason != "" || a.Applied != 51 {
		t.Errorf("next block: got %q at %d, want it applied as 51", a.Reason, a.Applied)
	}
}

func TestMachine_FilesArePrivate(t *testing.T) {
	dir := realDir(t)
	m, err := ledger.OpenMachine(ledger.MachineConfig{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	c := &chain{edge: "e", epoch: 1}
	apply(t, m, c.next(one("acme", 0, 1)))
	if err := m.Flush(); err != nil {
		t.Fatal(err)
	}
	shut(t, m)
	n := 0
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		n++
		want := os.FileMode(0o600)
		if d.IsDir() {
			want = 0o700
		}
		if info.Mode().Perm() != want {
			t.Errorf("%s: got mode %o, want %o", path, info.Mode().Perm(), want)
		}
		return nil
	})
	if err != nil || n < 5 {
		t.Fatalf("walked %d files, error %v", n, err)
	}
}

// Damage is an error or is healed from the log, never a panic and never other
// sums.
func TestMachine_FlippedBytesAreNeverServed(t *testing.T) {
	src := realDir(t)
	m, err := ledger.OpenMachine(ledger.MachineConfig{Dir: src})
	if err != nil {
		t.Fatal(err)
	}
	c := &chain{edge: "e", epoch: 1}
	for i := range 200 {
		apply(t, m, c.next(one(fmt.Sprintf("customer-%d", i%20), i, 1)))
	}
	if err := m.Flush(); err != nil {
		t.Fatal(err)
	}
	want := stateHash(t, m)
	shut(t, m)
	db := filepath.Join(src, "db-1")
	names, err := filepath.Glob(filepath.Join(db, "*.sst"))
	if err != nil || len(names) == 0 {
		t.Fatalf("tables: got %v, %v, want some", names, err)
	}
	noticed := 0
	for _, name := range names {
		content, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for off := 0; off < len(content); off += max(1, len(content)/60) {
			dir := realDir(t)
			if err := os.CopyFS(dir, os.DirFS(src)); err != nil {
				t.Fatal(err)
			}
			bad := bytes.Clone(content)
			bad[off] ^= 0x40
			if err := os.WriteFile(filepath.Join(dir, "db-1", filepath.Base(name)), bad, 0o600); err != nil {
				t.Fatal(err)
			}
			m, err := ledger.OpenMachine(ledger.MachineConfig{Dir: dir})
			if err != nil {
				noticed++
				continue
			}
			_, got, err := m.StateHash()
			if err != nil {
				noticed++
			} else if got != want {
				t.Errorf("%s offset %d: a flipped byte changed the state unnoticed", filepath.Base(name), off)
			}
			m.Close()
		}
	}
	if noticed == 0 {
		t.Error("no flipped byte was noticed: the test reads nothing")
	}
}

func TestOpenMachine_RefusesADatabaseThatNoMarkerNames(t *testing.T) {
	mem := vfs.NewMem()
	shut(t, open(t, mem))
	names, err := mem.List("ledger")
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		if strings.HasPrefix(n, "marker.") {
			if err := mem.Remove("ledger/" + n); err != nil {
				t.Fatal(err)
			}
		}
	}
	if m, err := ledger.OpenOn(mem, ledger.MachineConfig{Dir: "ledger"}); err == nil {
		m.Close()
		t.Error("open: got nil, want an error: an empty ledger would begin in silence")
	}
}

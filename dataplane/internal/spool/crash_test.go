package spool_test

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bailiwick/dataplane/internal/spool"
	"bailiwick/shared/durable"
)

// TestMain is also the child that the kill test kills.
func TestMain(m *testing.M) {
	if dir := os.Getenv("SPOOL_TEST_CHILD"); dir != "" {
		child(dir)
		return
	}
	os.Exit(m.Run())
}

// child appends rows for ever and prints how many were taken, one byte each.
func child(dir string) {
	s, err := spool.Open(spool.Config{Dir: dir, Edge: edge, SegmentBytes: 64 << 10, GroupCommit: time.Millisecond, SealEvery: 3 * time.Millisecond, MaxUnacked: 8})
	if err != nil {
		fmt.Fprintln(os.Stderr, "child: open:", err)
		os.Exit(1)
	}
	go s.Run(context.Background())
	fmt.Println("ready")
	for {
		r := row("acmes")
		if err := s.Append(&r); err != nil {
			fmt.Fprintln(os.Stderr, "child: append:", err)
			os.Exit(1)
		}
		if _, err := os.Stdout.Write([]byte{'.'}); err != nil {
			os.Exit(1)
		}
	}
}

// A row whose Append returned is counted exactly once, whenever the process is killed.
func TestSpool_KillLosesNothing(t *testing.T) {
	dir := t.TempDir()
	kills := 25
	if testing.Short() {
		kills = 5
	}
	var took int64
	for i := range kills {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "SPOOL_TEST_CHILD="+dir)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		in := bufio.NewReader(out)
		if line, err := in.ReadString('\n'); err != nil || line != "ready\n" {
			t.Fatalf("child says %q, %v", line, err)
		}
		time.AfterFunc(time.Duration(1+i*7%60)*time.Millisecond, func() { cmd.Process.Kill() })
		n, err := io.Copy(io.Discard, in)
		if err != nil {
			t.Fatal(err)
		}
		cmd.Wait()
		took += n
	}
	s := open(t, spool.Config{Dir: dir})
	got := requests(t, pending(t, s))["acmes"]
	// Killed between an Append and its byte on the pipe, a row is there that nobody was told of.
	if got < took || got > took+int64(kills) {
		t.Errorf("counted %d rows, %d appends returned; want at most one more for each of %d kills", got, took, kills)
	}
	if took < int64(kills) {
		t.Errorf("only %d appends in %d lives: the test shows nothing", took, kills)
	}
}

// fastDir is in memory where there is such a place: these tests open hundreds of
// spools, each with its syncs, and what a disk does then is not their subject.
func fastDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "spool")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// crashed makes a directory as a kill leaves it, with sealed rows and rows behind them.
func crashed(t *testing.T, sealed, behind int, commit bool) (dir, file string, end int) {
	t.Helper()
	dir = fastDir(t)
	s := open(t, spool.Config{Dir: dir})
	add(t, s, "acmes", sealed)
	seal(t, s)
	add(t, s, "acmes", behind)
	if commit {
		if err := s.GroupCommit(); err != nil {
			t.Fatal(err)
		}
	}
	file, end = s.RowEnd()
	s.Abandon()
	return dir, file, end
}

func change(t *testing.T, file string, f func([]byte) []byte) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, f(b), 0o600); err != nil {
		t.Fatal(err)
	}
}

// The last record torn at each of its bytes: cut short, or zeros from there on. The rows before it stay.
func TestSpool_TornTailAtEveryByte(t *testing.T) {
	_, _, before := crashed(t, 3, 4, false)
	_, _, after := crashed(t, 3, 5, false)
	for cut := before; cut < after; cut++ {
		for _, how := range []string{"cut", "zeros", "garbage"} {
			dir, file, end := crashed(t, 3, 5, false)
			if end != after {
				t.Fatalf("rows end at %d, want %d", end, after)
			}
			change(t, file, func(b []byte) []byte {
				switch how {
				case "cut":
					return b[:cut]
				case "zeros":
					clear(b[cut:])
				case "garbage": // payload pages reached the disk, the word and more did not
					clear(b[before : before+8])
				}
				return b
			})
			log, lines := logged()
			s, err := spool.Open(fill(spool.Config{Dir: dir, Logger: log}))
			if err != nil {
				t.Fatalf("%s at byte %d: open: %v", how, cut-before, err)
			}
			want := int64(7)
			if padding := after - cut; how != "garbage" && padding <= pad(t) {
				want = 8 // only the padding is gone
			}
			if got := requests(t, pending(t, s))["acmes"]; got != want {
				t.Errorf("%s at byte %d: counted %d rows, want %d", how, cut-before, got, want)
			}
			torn := s.Stats().BytesTorn
			s.Abandon()
			if said := strings.Contains(lines.String(), "torn tail"); said != (torn > 0) || want == 7 && how == "garbage" && torn == 0 {
				t.Errorf("%s at byte %d: %d bytes torn, said so: %v", how, cut-before, torn, said)
			}
		}
	}
}

// pad is how many bytes of padding end the rows of this test.
func pad(t *testing.T) int {
	t.Helper()
	r := row("acmes")
	n := (8 - (72+len(r.Customer+r.Subscription+r.KeyID))%8) % 8
	if n == 0 {
		t.Fatal("the row behind another has no padding")
	}
	return n
}

// Each flipped byte of a row in the middle refuses to start, whether others lean on it or it on them: a kill leaves no holes, so it
// is damage.
func TestSpool_FlippedByteInTheMiddleIsRefused(t *testing.T) {
	_, _, a := crashed(t, 3, 0, false)
	_, _, middle := crashed(t, 3, 1, false)
	_, _, b := crashed(t, 3, 2, false)
	r := row("acmes")
	whole := 96 + 25 + 14 + len(r.Customer+r.Subscription+r.Plan+r.Product+r.API+r.Route+r.ServedRegion+r.KeyID)
	for _, commit := range []bool{false, true} {
		for off := a; off < b-pad(t); off++ {
			if off >= a+8+whole && off < middle { // padding
				continue
			}
			dir, file, _ := crashed(t, 3, 4, commit)
			change(t, file, func(b []byte) []byte { b[off] ^= 0x40; return b })
			s, err := spool.Open(fill(spool.Config{Dir: dir}))
			if !errors.Is(err, durable.ErrCorrupt) {
				s.Abandon()
				t.Fatalf("byte %d flipped (synced: %v): open = %v, want ErrCorrupt", off-a, commit, err)
			}
			if _, err := os.Stat(file); err != nil {
				t.Fatalf("the damaged file is gone: %v", err)
			}
		}
	}
}

// The last row too, once it was synced: the record of the sync proves that it was whole.
func TestSpool_FlippedByteInTheLastSyncedRowIsRefused(t *testing.T) {
	dir, file, end := crashed(t, 3, 4, true)
	change(t, file, func(b []byte) []byte { b[end-20] ^= 1; return b })
	if s, err := spool.Open(fill(spool.Config{Dir: dir})); !errors.Is(err, durable.ErrCorrupt) {
		s.Abandon()
		t.Errorf("open = %v, want ErrCorrupt", err)
	}
}

// After a power cut pages of the last moments may be missing with later ones there: that is no damage.
func TestSpool_HoleAfterPowerCutIsCut(t *testing.T) {
	_, _, a := crashed(t, 3, 1, false)
	for _, commit := range []bool{false, true} {
		dir, file, _ := crashed(t, 3, 4, commit)
		change(t, file, func(b []byte) []byte {
			clear(b[a : a+16])
			return otherBoot(b)
		})
		s, err := spool.Open(fill(spool.Config{Dir: dir}))
		switch {
		case commit && !errors.Is(err, durable.ErrCorrupt):
			t.Errorf("a hole in what was synced: open = %v, want ErrCorrupt", err)
		case !commit && err != nil:
			t.Errorf("a hole in what was not synced: open = %v", err)
		case !commit:
			want(t, requests(t, pending(t, s)), "acmes", 4)
		}
		if err == nil {
			s.Abandon()
		}
	}
}

func TestSpool_DamagedHeaderAndMissingSegmentsAreRefused(t *testing.T) {
	many := func() (string, []string) {
		dir := t.TempDir()
		s := open(t, spool.Config{Dir: dir})
		add(t, s, "acmes", 2000) // several segments
		s.Abandon()
		names, _ := files(t, dir, "rows-")
		return dir, names
	}
	for _, k := range []int{0, 1} {
		dir, names := many()
		os.Remove(names[k])
		if s, err := spool.Open(fill(spool.Config{Dir: dir})); !errors.Is(err, durable.ErrCorrupt) {
			s.Abandon()
			t.Errorf("segment %d missing: open = %v, want ErrCorrupt", k, err)
		}
		dir, names = many()
		change(t, names[k], func(b []byte) []byte { b[20]++; return b })
		if s, err := spool.Open(fill(spool.Config{Dir: dir})); !errors.Is(err, durable.ErrCorrupt) {
			s.Abandon()
			t.Errorf("header of segment %d damaged: open = %v, want ErrCorrupt", k, err)
		}
	}
	dir, _ := many()
	want(t, requests(t, pending(t, open(t, spool.Config{Dir: dir}))), "acmes", 2000)
}

// The journal cut at every byte: whatever is left, each row is in exactly one block.
func TestSpool_JournalTornAtEveryByte(t *testing.T) {
	build := func() (string, string) {
		dir := fastDir(t)
		s := open(t, spool.Config{Dir: dir})
		add(t, s, "acmes", 3)
		seal(t, s)
		add(t, s, "acmes", 4)
		seal(t, s)
		s.Abandon()
		names, _ := files(t, dir, "journal-")
		return dir, names[0]
	}
	_, name := build()
	whole, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	opened := 0
	for cut := range len(whole) {
		dir, name := build()
		change(t, name, func(b []byte) []byte { return b[:min(cut, len(b))] })
		s, err := spool.Open(fill(spool.Config{Dir: dir}))
		if err != nil {
			if !errors.Is(err, durable.ErrCorrupt) {
				t.Fatalf("cut at %d: open = %v, want ErrCorrupt or nothing", cut, err)
			}
			continue // the header, the state or the epoch is gone, and there are rows: refused
		}
		opened++
		want(t, requests(t, pending(t, s)), "acmes", 7)
		s.Abandon()
	}
	if opened < 100 {
		t.Errorf("only %d of %d cuts opened: the test shows little", opened, len(whole))
	}
}

// A kill between a seal and the removal of the checkpoint before it: what the checkpoint holds is in the block.
func TestSpool_CheckpointOlderThanTheSealIsNotCounted(t *testing.T) {
	dir := fastDir(t)
	cfg := spool.Config{Dir: dir, MaxUnacked: 1}
	s := open(t, cfg)
	add(t, s, "acmes", 1)
	seal(t, s)
	add(t, s, "acmes", 1000)
	seal(t, s)
	if s.Stats().Checkpoints != 1 {
		t.Fatalf("%d checkpoints, want 1", s.Stats().Checkpoints)
	}
	old, err := os.ReadFile(dir + "/open")
	if err != nil {
		t.Fatal(err)
	}
	first := pending(t, s)[0]
	if err := s.Ack(first.Epoch, 1, first.Hash); err != nil {
		t.Fatal(err)
	}
	seal(t, s)
	add(t, s, "acmes", 5)
	s.Abandon()
	if err := os.WriteFile(dir+"/open", old, 0o600); err != nil {
		t.Fatal(err)
	}
	want(t, requests(t, pending(t, open(t, cfg))), "acmes", 1005)
}

// On a full disk Append says so, Healthy before it; what was taken is counted, and with space it goes on.
func TestSpool_FullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		testFull(t, t.TempDir(), 0)
		return
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4m"); err != nil {
		t.Logf("no tmpfs here (%v): only the free run", err)
		testFull(t, dir, 0)
		return
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	testFull(t, dir, 4<<20)
}

func testFull(t *testing.T, dir string, size int64) {
	s := open(t, spool.Config{Dir: dir + "/spool", SegmentBytes: 1 << 20})
	seal(t, s)
	ballast := dir + "/ballast"
	if size > 0 { // leave nothing
		f, err := os.Create(ballast)
		if err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 4096)
		for {
			if _, err := f.Write(buf); err != nil {
				break
			}
		}
		f.Close()
	}
	took := int64(0)
	unwell := false
	for {
		r := row("acmes")
		r.Route = fmt.Sprintf("route-%x", sha256.Sum256([]byte{byte(took), byte(took % 1000 >> 8)})) // the block needs more than the journal's last page has
		err := s.Append(&r)
		if err == nil {
			took++
			if took%500 == 0 {
				s.GroupCommit()
			}
			unwell = unwell || s.Healthy() != nil
			if size == 0 && took > 30_000 {
				break
			}
			continue
		}
		if !errors.Is(err, spool.ErrFull) {
			t.Fatalf("append on a full disk = %v, want ErrFull", err)
		}
		break
	}
	if size > 0 {
		if !unwell && s.Healthy() == nil {
			t.Error("Healthy says nothing of the full disk")
		}
		// The reserve is enough to seal, and sealing frees segments.
		if err := s.Seal(); !errors.Is(err, spool.ErrFull) {
			t.Errorf("the first seal on a full disk = %v, want ErrFull: the test does not reach what it is about", err)
		}
		seal(t, s)
		if st := s.Stats(); st.Seq == 0 {
			t.Error("nothing could be sealed on the full disk: it would stay full")
		}
		blocks := pending(t, s)
		if err := s.Ack(blocks[0].Epoch, blocks[0].Seq, blocks[0].Hash); err != nil {
			t.Errorf("ack on the full disk: %v", err)
		}
		want(t, requests(t, blocks), "acmes", took)
		took = 0
		if err := os.Remove(ballast); err != nil {
			t.Fatal(err)
		}
	}
	add(t, s, "acmes", 10)
	took += 10
	seal(t, s)
	if err := s.Healthy(); err != nil {
		t.Errorf("with space again: %v", err)
	}
	s.Abandon()
	s = open(t, spool.Config{Dir: dir + "/spool", SegmentBytes: 1 << 20})
	want(t, requests(t, pending(t, s)), "acmes", took)
}

// otherBoot rewrites a segment's header as if the machine had been started anew since.
func otherBoot(b []byte) []byte {
	for i := 32; i < 48; i++ {
		b[i] ^= 0xff
	}
	return spool.SumHeader(b)
}

// At a power cut the journal may be on the disk and the rows that a seal took may not: nobody needs them any more, and no row behind
// them may lean on one.
func TestSpool_NoRowLeansOnOneThatASealTook(t *testing.T) {
	dir := t.TempDir()
	s := open(t, spool.Config{Dir: dir})
	add(t, s, "acmes", 5)
	file, sealed := s.RowEnd()
	seal(t, s)
	before := s.Stats().RowBytes
	add(t, s, "acmes", 1)
	first := s.Stats().RowBytes - before
	add(t, s, "acmes", 6)
	if second := s.Stats().RowBytes - before - first; second >= 6*first {
		t.Fatalf("a row takes %d bytes and six behind it %d: none leans on it", first, second)
	}
	s.Abandon()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	clear(b[spool.SegmentHeader:sealed])
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	s = open(t, spool.Config{Dir: dir})
	want(t, requests(t, pending(t, s)), "acmes", 12)
}

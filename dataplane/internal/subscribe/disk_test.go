package subscribe_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"strings"
	"testing"

	"bailiwick/dataplane/internal/policy"
	"bailiwick/dataplane/internal/subscribe"
	"bailiwick/shared/durable"
	"bailiwick/shared/durable/durabletest"
	"bailiwick/shared/revision"
	"bailiwick/shared/table"
)

// written leaves a table of a base and n updates on the disk.
func written(t *testing.T, src *source, n int) *durabletest.FS {
	t.Helper()
	fs, node := memory(t), newNode(t)
	e := run(t, src, node, fs, nil)
	s := node.next()
	s.recv()
	s.send(src.parts(2)...)
	s.ack(src)
	for i := range n {
		s.send(src.delta([]table.Object{src.key(fmt.Sprint("n", i), "gold")}))
		s.ack(src)
	}
	e.stop()
	return fs
}

// files copies the table's files.
func files(t *testing.T, fs *durabletest.FS) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	for _, name := range fs.Files("/table") {
		if !strings.HasPrefix(name, "/") {
			name = "/table/" + name
		}
		b, err := durable.ReadFile(fs, name, 0)
		if err != nil {
			t.Fatal(err)
		}
		out[name] = b
	}
	if len(out) != 3 {
		t.Fatalf("got files %v, want base, log and mark", fs.Files("/table"))
	}
	return out
}

func diskOf(t *testing.T, files map[string][]byte) *durabletest.FS {
	t.Helper()
	fs := memory(t)
	if err := fs.MkdirAll("/table", durable.DirPerm); err != nil {
		t.Fatal(err)
	}
	for name, b := range files {
		if err := durable.WriteFileAtomic(fs, name, bytes.Clone(b), durable.FilePerm); err != nil {
			t.Fatal(err)
		}
	}
	return fs
}

func TestDisk_EveryFlippedByteIsRefused(t *testing.T) {
	src := newSource(t)
	good := files(t, written(t, src, 8))
	if tab := loaded(t, src, diskOf(t, good)); tab == nil || !at(tab, src) {
		t.Fatal("the files as written do not load")
	}
	r := rand.New(rand.NewPCG(1, 1))
	names := []string{}
	for name := range good {
		names = append(names, name)
	}
	for range 1000 {
		name := names[r.IntN(len(names))]
		i, bit := r.IntN(len(good[name])), byte(1)<<r.IntN(8)
		fs := diskOf(t, good)
		if err := fs.Corrupt(name, func(b []byte) []byte { b[i] ^= bit; return b }); err != nil {
			t.Fatal(err)
		}
		if tab := loaded(t, src, fs); tab != nil {
			t.Fatalf("%s byte %d bit %d: a table is served", name, i, bit)
		}
		if _, err := fs.Stat(name + ".refused"); err != nil {
			t.Fatalf("%s byte %d: it is not set aside: %v", name, i, err)
		}
		if loaded(t, src, fs) != nil {
			t.Fatalf("%s byte %d: a table is served at the second start", name, i)
		}
	}
}

func TestDisk_EveryCutIsRefused(t *testing.T) {
	src := newSource(t)
	good := files(t, written(t, src, 3))
	for name, whole := range good {
		for cut := range whole {
			fs := diskOf(t, good)
			if err := fs.Corrupt(name, func(b []byte) []byte { return b[:cut] }); err != nil {
				t.Fatal(err)
			}
			if loaded(t, src, fs) != nil {
				t.Fatalf("%s cut to %d of %d bytes: a table is served", name, cut, len(whole))
			}
		}
		fs := diskOf(t, good)
		if err := fs.Remove(name); err != nil {
			t.Fatal(err)
		}
		if loaded(t, src, fs) != nil {
			t.Errorf("%s removed: a table is served", name)
		}
	}
}

// A file of another edge, or of the same with its checksums made right again, is not signed for this one.
func TestDisk_ForeignTableIsRefused(t *testing.T) {
	src := newSource(t)
	fs := written(t, src, 2)
	other := newSource(t)
	if loaded(t, other, fs) != nil {
		t.Error("a table signed by another zone is served")
	}
}

// After damage the edge waits for a snapshot, and not for an old one.
func TestDisk_DamagedTableHealsForwardOnly(t *testing.T) {
	src := newSource(t)
	fs := written(t, src, 3)
	for name := range files(t, fs) {
		if strings.Contains(name, "base") {
			if err := fs.Corrupt(name, func(b []byte) []byte { b[len(b)/2] ^= 4; return b }); err != nil {
				t.Fatal(err)
			}
		}
	}
	n := newNode(t)
	var log bytes.Buffer
	e := run(t, src, n, fs, func(c *subscribe.Config) { c.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
	s := n.next()
	if h := s.recv().GetHello(); h.Zone != nil {
		t.Errorf("hello: got %v, want nothing held", h)
	}
	src.zon.Index--
	s.send(src.snapshot())
	s.nack(subscribe.ReasonStale, false)
	src.zon.Index++
	s = n.next()
	s.recv()
	s.send(src.snapshot())
	s.ack(src)
	e.stop()
	if got := log.String(); !strings.Contains(got, "base-1") || !strings.Contains(got, "offset=") || e.client.Stats().Refused.Load() != 1 {
		t.Errorf("the log does not name file and offset: %s", got)
	}
	if tab := loaded(t, src, fs); tab == nil || !at(tab, src) {
		t.Error("the healed table does not load")
	}
}

func TestDisk_UnfinishedUpdateIsCut(t *testing.T) {
	src := newSource(t)
	good := files(t, written(t, src, 2))
	for name := range good {
		if !strings.Contains(name, "log") {
			continue
		}
		fs := diskOf(t, good)
		if err := fs.Corrupt(name, func(b []byte) []byte { return append(b, 1, 2, 3) }); err != nil {
			t.Fatal(err)
		}
		if tab := loaded(t, src, fs); tab == nil || !at(tab, src) {
			t.Error("a torn tail after all that was acked costs the table")
		}
	}
}

func TestDisk_NewerProgramIsNotTouched(t *testing.T) {
	src := newSource(t)
	fs := memory(t)
	if err := fs.MkdirAll("/table", durable.DirPerm); err != nil {
		t.Fatal(err)
	}
	if err := durable.WriteSealed(fs, "/table/mark", durable.Header{Magic: "bwmark", Version: 2, Program: "bailiwick-edge 9"}, []byte("{}")); err != nil {
		t.Fatal(err)
	}
	c, err := subscribe.New(subscribe.Config{Dir: "/table", Edge: "w1", Region: "eu-west", Zone: "emea", SigningKey: src.priv.Public().(ed25519.PublicKey), Holder: new(policy.Holder),
		Addrs: func() []string { return nil }, HTTPClient: func(string) *http.Client { return nil }, FS: fs, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Run(context.Background()); !errors.Is(err, durable.ErrNewer) || !strings.Contains(err.Error(), "bailiwick-edge 9") {
		t.Errorf("got %v, want ErrNewer naming the program", err)
	}
	if _, err := fs.Stat("/table/mark"); errors.Is(err, os.ErrNotExist) {
		t.Error("the file is gone")
	}
}

// The machine dies at any moment: what was acked is there, or more, never less.
func TestDisk_AnyCrashKeepsWhatWasAcked(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 9))
	for round := range 40 {
		src, fs, n := newSource(t), memory(t), newNode(t)
		left := r.IntN(60)
		armed := false
		fs.Inject(func(string, string) error {
			if armed {
				if left--; left < 0 {
					return errors.New("power is gone")
				}
			}
			return nil
		})
		e := run(t, src, n, fs, func(c *subscribe.Config) { c.LogRecords = 3 })
		s := n.next()
		s.recv()
		s.send(src.snapshot())
		s.ack(src)
		armed = true
		acked := src.zon
		placesSeen := map[revision.Revision]bool{acked: true}
		for i := 0; ; i++ {
			s.send(src.delta([]table.Object{src.key(fmt.Sprint("n", i), "gold")}))
			placesSeen[src.zon] = true
			m := s.recv()
			for m.GetHello() != nil {
				s.send(src.snapshot())
				m = s.recv()
			}
			if m.GetAck() == nil {
				break
			}
			if m.GetAck().Zone.Index > acked.Index {
				acked.Index = m.GetAck().Zone.Index
			}
		}
		e.stop()
		fs.Inject(nil)
		fs.CrashTorn(r)
		tab := loaded(t, src, fs)
		if tab == nil || tab.Zone().Index < acked.Index || !placesSeen[tab.Zone()] {
			t.Fatalf("round %d: got %v, want at least %s", round, tab.Zone(), acked)
		}
	}
}

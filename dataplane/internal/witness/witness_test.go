package witness_test

import (
	"crypto/ed25519"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"bailiwick/dataplane/internal/witness"
	"bailiwick/shared/checkpoint"
)

// history is a log of records, as a zone keeps it.
type history struct {
	key    ed25519.PrivateKey
	size   int64
	hashes []tlog.Hash
}

func (h *history) ReadHashes(at []int64) (out []tlog.Hash, err error) {
	for _, i := range at {
		out = append(out, h.hashes[i])
	}
	return out, nil
}

func (h *history) grow(t *testing.T, n int, word string) {
	for range n {
		more, err := tlog.StoredHashes(h.size, fmt.Appendf(nil, "%s %d", word, h.size), h)
		if err != nil {
			t.Fatal(err)
		}
		h.hashes, h.size = append(h.hashes, more...), h.size+1
	}
}

func (h *history) head(t *testing.T, from int64) (note []byte, proof [][]byte) {
	root, err := tlog.TreeHash(h.size, h)
	if err != nil {
		t.Fatal(err)
	}
	if note, err = checkpoint.Sign(h.key, checkpoint.Checkpoint{Zone: "emea", Size: h.size, Root: root, At: time.Unix(1e9, 0)}); err != nil {
		t.Fatal(err)
	}
	if from > 0 && from < h.size {
		hashes, err := tlog.ProveTree(h.size, from, h)
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range hashes {
			proof = append(proof, x[:])
		}
	}
	return note, proof
}

func keyOf(name string) ed25519.PrivateKey {
	seed := sha256.Sum256([]byte(name))
	return ed25519.NewKeyFromSeed(seed[:])
}

func open(t *testing.T, dir string) *witness.Witness {
	t.Helper()
	w, err := witness.Open(witness.Config{Dir: dir, Zone: "emea", Key: keyOf("emea").Public().(ed25519.PublicKey), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func TestWitness_TakesOneHistoryAlone(t *testing.T) {
	dir := t.TempDir()
	w := open(t, dir)
	h := &history{key: keyOf("emea")}
	var old []byte
	for held := int64(0); held < 50; held = h.size {
		h.grow(t, int(held%7)+1, "a")
		note, proof := h.head(t, held)
		if err := w.Take(held, note, proof); err != nil {
			t.Fatal(err)
		}
		if w = open(t, dir); old == nil { // across restarts too
			old = note
		}
		if size, refused := w.Held(); size != h.size || refused != nil {
			t.Fatalf("held %d, refused %v, want %d", size, refused, h.size)
		}
	}
	held := h.size
	if err := w.Take(0, old, nil); err != nil {
		t.Errorf("the head of a node that is behind is reported: %v", err)
	}
	if size, _ := w.Held(); size != held {
		t.Fatalf("an older head set it back to %d", size)
	}

	other := &history{key: keyOf("emea")}
	other.grow(t, int(held), "b")
	note, _ := other.head(t, 0)
	if w.Take(held, note, nil) == nil {
		t.Error("another log of the same size is taken")
	}
	other.grow(t, 10, "b")
	note, proof := other.head(t, held)
	if w.Take(held, note, proof) == nil {
		t.Error("the continuation of another log is taken")
	}
	if w.Take(held, note, nil) == nil {
		t.Error("a head without a proof is taken")
	}
	if w.Take(held, note, [][]byte{{1}}) == nil {
		t.Error("a proof that is none is taken")
	}
	forged := &history{key: keyOf("us")}
	forged.grow(t, int(held)+1, "a")
	note, proof = forged.head(t, held)
	if w.Take(held, note, proof) == nil {
		t.Error("a head under another zone's key is taken")
	}
	if size, refused := w.Held(); size != held || refused == nil || w.Refused() != 5 {
		t.Errorf("held %d, refused %v, %d times", size, refused, w.Refused())
	}

	h.grow(t, 3, "a")
	note, proof = h.head(t, held)
	if err := w.Take(held-1, note, proof); err != nil {
		t.Errorf("a proof that came too late is reported: %v", err)
	}
	if size, _ := w.Held(); size != held {
		t.Error("a head was taken on a proof from another one")
	}
	if err := w.Take(held, note, proof); err != nil {
		t.Fatal(err)
	}
	if size, refused := w.Held(); size != h.size || refused != nil {
		t.Errorf("held %d, refused %v after the true log went on", size, refused)
	}
}

func TestWitness_ADamagedFileIsNoFreshStart(t *testing.T) {
	dir := t.TempDir()
	w := open(t, dir)
	h := &history{key: keyOf("emea")}
	h.grow(t, 3, "a")
	note, _ := h.head(t, 0)
	if err := w.Take(0, note, nil); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "checkpoint")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := witness.Open(witness.Config{Dir: dir, Zone: "emea", Key: keyOf("emea").Public().(ed25519.PublicKey), Logger: slog.New(slog.DiscardHandler)}); err == nil {
		t.Error("a damaged head opens")
	}
}

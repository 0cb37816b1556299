// Package witness keeps an edge's copy of the newest signed head of its zone's Merkle log, and takes no head that does
// not continue the one it holds: a zone cannot rewrite what it decided without its own edges noticing (invariant 46).
//
// The head survives restarts; it is never set back. It judges heads and nothing else: what an edge may do does not
// depend on it. Safe for use by several goroutines at once.
package witness

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"sync"

	"golang.org/x/mod/sumdb/tlog"

	"bailiwick/shared/checkpoint"
	"bailiwick/shared/durable"
	"bailiwick/shared/fault"
)

// ReasonProof: what came beside a head is no proof.
const ReasonProof = "CHECKPOINT_PROOF"

// Config of a Witness; every field but FS is required.
type Config struct {
	Dir    string
	Zone   string
	Key    ed25519.PublicKey // the zone's
	FS     durable.FS        // nil: durable.OS()
	Logger *slog.Logger
}

// Witness holds one head.
type Witness struct {
	cfg  Config
	path string

	// mu covers all below. It is held while a head is written: heads come every few seconds, one after another.
	mu      sync.Mutex
	held    checkpoint.Checkpoint
	refused error // why the newest was not taken
	count   int64
}

var header = durable.Header{Magic: "bwhead", Version: 1, Program: "bailiwick-edge"}

// Open reads the head that was held. A file that does not read is an error: to begin anew would be to forget.
func Open(cfg Config) (*Witness, error) {
	if cfg.Dir == "" || cfg.Zone == "" || len(cfg.Key) != ed25519.PublicKeySize || cfg.Logger == nil {
		return nil, errors.New("witness: Dir, Zone, Key and Logger are required")
	}
	if cfg.FS == nil {
		cfg.FS = durable.OS()
	}
	if err := cfg.FS.MkdirAll(cfg.Dir, durable.DirPerm); err != nil {
		return nil, fmt.Errorf("open witness: %w", err)
	}
	w := &Witness{cfg: cfg, path: filepath.Join(cfg.Dir, "checkpoint")}
	note, _, err := durable.ReadSealed(cfg.FS, w.path, header, checkpoint.MaxText)
	if errors.Is(err, fs.ErrNotExist) {
		return w, nil
	}
	if err == nil {
		w.held, err = checkpoint.Open(cfg.Zone, cfg.Key, note)
	}
	if err != nil {
		return nil, fmt.Errorf("open witness: %w", err)
	}
	return w, nil
}

// Take judges a newer head, with the proof that it continues the one of from records. An older head, of a node that is
// behind, is passed over: it says nothing about the newer one. So is a proof from a head that is no longer held; one from
// the right head follows as soon as the control node has heard which that is.
func (w *Witness) Take(from int64, note []byte, proof [][]byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	next, err := checkpoint.Open(w.cfg.Zone, w.cfg.Key, note)
	if err == nil && (next.Size < w.held.Size || next.Size > w.held.Size && from != w.held.Size) {
		return nil
	}
	if err == nil {
		err = w.continues(next, proof)
	}
	if err == nil && next.Size > w.held.Size {
		err = durable.WriteSealed(w.cfg.FS, w.path, header, note)
	}
	if err != nil {
		w.count++
		if w.refused == nil {
			w.cfg.Logger.Error("head of the zone's evidence log is refused", "zone", w.cfg.Zone, "held", w.held.Size, "error", err)
		}
		w.refused = err
		return err
	}
	w.held, w.refused = next, nil
	return nil
}

func (w *Witness) continues(next checkpoint.Checkpoint, proof [][]byte) error {
	if w.held.Size == 0 {
		return nil
	}
	var hashes []tlog.Hash
	for _, b := range proof {
		if len(b) != tlog.HashSize || len(hashes) >= checkpoint.MaxProof {
			return fault.New(fault.Invalid, ReasonProof, "the proof that comes with the head is no list of hashes")
		}
		hashes = append(hashes, tlog.Hash(b))
	}
	return checkpoint.Continues(w.held, next, hashes)
}

// Held is how many records the held head is of, 0 for none, and why a newer one is refused, nil if none is. Its reason is
// ReasonProof, one of package checkpoint, or none: this edge's disk.
func (w *Witness) Held() (size int64, refused error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.held.Size, w.refused
}

// Refused counts heads that were not taken.
func (w *Witness) Refused() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.count
}

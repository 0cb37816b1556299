// Package checkpoint owns the signed heads of a zone's Merkle log: how one is written and signed, how it is read, and
// whether a newer one continues an older one. Control nodes sign them, edges hold them, auditors check them. It also owns
// how the rows that edges keep of their relays come to the digests in the log.
//
// The tree is RFC 6962's and the text is the transparency log world's checkpoint: origin, size, root, then extension
// lines, under a signed note. Both come from golang.org/x/mod/sumdb, which Go itself rests its module checksums on:
// proofs are easy to get subtly wrong, and an auditor can check ours with tools that are not ours.
//
// Pure: no I/O, no clock, no state; safe for use by any number of goroutines.
package checkpoint

import (
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"bailiwick/shared/fault"
)

// MaxText bounds the text of a checkpoint, and MaxProof its consistency proof in hashes: a tree has at most 63 levels.
const (
	MaxText  = 4 << 10
	MaxProof = 130
)

// Reasons of what is refused.
const (
	ReasonInvalid      = "CHECKPOINT_INVALID"      // not signed by the zone, or no head at all
	ReasonInconsistent = "CHECKPOINT_INCONSISTENT" // two histories
)

// Checkpoint is a log's head.
type Checkpoint struct {
	Zone string
	Size int64
	Root tlog.Hash
	At   time.Time // the signer's clock, whole milliseconds
}

func origin(zone string) string { return "bailiwick/" + zone }

// signer is note.Signer over a key that does not rest in note's own text form.
type signer struct {
	note.Verifier
	key ed25519.PrivateKey
}

func (s signer) Sign(msg []byte) ([]byte, error) { return ed25519.Sign(s.key, msg), nil }

func verifier(zone string, key ed25519.PublicKey) (note.Verifier, error) {
	if len(key) != ed25519.PublicKeySize {
		return nil, fault.New(fault.Invalid, "CHECKPOINT_KEY", "the key of zone %s has %d bytes, want %d", zone, len(key), ed25519.PublicKeySize)
	}
	text, err := note.NewEd25519VerifierKey(origin(zone), key)
	if err != nil {
		return nil, fmt.Errorf("key of zone %s: %w", zone, err)
	}
	return note.NewVerifier(text)
}

// Sign writes a checkpoint.
func Sign(key ed25519.PrivateKey, c Checkpoint) ([]byte, error) {
	v, err := verifier(c.Zone, key.Public().(ed25519.PublicKey))
	if err != nil {
		return nil, err
	}
	text := fmt.Sprintf("%s\n%d\n%s\ntime %s\n", origin(c.Zone), c.Size, base64.StdEncoding.EncodeToString(c.Root[:]), c.At.UTC().Truncate(time.Millisecond).Format(time.RFC3339Nano))
	return note.Sign(&note.Note{Text: text}, signer{v, key})
}

// Open reads a checkpoint and checks that the zone's key signed exactly it.
func Open(zone string, key ed25519.PublicKey, text []byte) (c Checkpoint, err error) {
	bad := func(format string, args ...any) (Checkpoint, error) {
		return Checkpoint{}, fault.New(fault.Invalid, ReasonInvalid, "checkpoint of zone %s: %w", zone, fmt.Errorf(format, args...))
	}
	if len(text) > MaxText {
		return bad("%d bytes, at most %d are read", len(text), MaxText)
	}
	v, err := verifier(zone, key)
	if err != nil {
		return c, err
	}
	n, err := note.Open(text, note.VerifierList(v))
	if err != nil {
		return bad("%w", err)
	}
	// One signature and nothing else: unsigned bytes beside it would be room for two texts of one head.
	if len(n.UnverifiedSigs) > 0 {
		return bad("it carries a signature that is not the zone's")
	}
	lines := strings.Split(n.Text, "\n")
	if len(lines) != 5 || lines[4] != "" || lines[0] != origin(zone) {
		return bad("its text is not one of %s", origin(zone))
	}
	if c.Size, err = strconv.ParseInt(lines[1], 10, 64); err != nil || c.Size < 0 || strconv.FormatInt(c.Size, 10) != lines[1] {
		return bad("size %q is not a number of records", lines[1])
	}
	root, err := base64.StdEncoding.DecodeString(lines[2])
	if err != nil || len(root) != tlog.HashSize {
		return bad("root %q is not a hash", lines[2])
	}
	c.Zone, c.Root = zone, tlog.Hash(root)
	if c.At, err = time.Parse("time "+time.RFC3339Nano, lines[3]); err != nil {
		return bad("%w", err)
	}
	return c, nil
}

// Continues checks that the log whose head is newer begins with the whole log whose head is older. A proof of the
// same size is empty: the roots must be equal.
func Continues(older, newer Checkpoint, proof []tlog.Hash) error {
	refuse := func(why string) error {
		return fault.New(fault.Conflict, ReasonInconsistent, "the log of zone %s shows two histories: the head of %d records (root %s) does not continue the one of %d (root %s): %s",
			older.Zone, newer.Size, newer.Root, older.Size, older.Root, why)
	}
	switch {
	case older.Zone != newer.Zone:
		return refuse("it is of zone " + newer.Zone)
	case newer.Size < older.Size:
		return refuse("it is an older one")
	case newer.Size == older.Size && newer.Root != older.Root:
		return refuse("they are equally long and differ")
	case newer.Size == older.Size || older.Size == 0:
		return nil
	case len(proof) > MaxProof:
		return refuse("the proof is too long")
	}
	if err := tlog.CheckTree(tlog.TreeProof(proof), newer.Size, newer.Root, older.Size, older.Root); err != nil {
		return refuse(err.Error())
	}
	return nil
}

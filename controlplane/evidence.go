package controlplane

import (
	"context"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"bailiwick/controlplane/internal/evidence"
	"bailiwick/controlplane/internal/pki"
)

// openEvidence opens this node's copy of the zone's Merkle log.
func (n *Node) openEvidence(ca *pki.CA) error {
	chain, err := ca.CertifySigner(n.secrets.Signer.Public().(ed25519.PublicKey), time.Now())
	if err != nil {
		return err
	}
	n.chain = string(chain)
	mask, err := hkdf.Key(sha256.New, n.secrets.Pepper, nil, "bailiwick evidence digests 1", 32)
	if err != nil {
		return fmt.Errorf("derive the key of evidence digests: %w", err)
	}
	n.evidence, err = evidence.New(evidence.Config{Zone: n.self.Zone, Dir: filepath.Join(n.cfg.Dir, "evidence"), Store: n.store, Signer: n.secrets.Signer,
		Mask: mask, Peers: n.leavesOfOthers, Logger: n.log})
	return err
}

// leavesOfOthers asks the zone's other nodes in turn; one that has more, or knows for a later time that there is no
// more, is enough.
func (n *Node) leavesOfOthers(ctx context.Context, from int64) (leaves [][]byte, through uint64, err error) {
	var errs []error
	for _, c := range n.in.InZone(n.self.Zone) {
		if c.Name == n.self.Name {
			continue
		}
		attempt, cancel := context.WithTimeout(ctx, 5*time.Second)
		more, whole, err := n.carrier.Leaves(attempt, c.Name, from)
		cancel()
		if err != nil {
			errs = append(errs, fmt.Errorf("node %s: %w", c.Name, err))
			continue
		}
		if len(more) > 0 {
			return more, whole, nil
		}
		through = max(through, whole)
	}
	if through > 0 {
		return nil, through, nil
	}
	return nil, 0, errors.Join(errs...)
}

// zoneEvidence implements adminapi.Evidence.
type zoneEvidence struct{ *Node }

func (z zoneEvidence) Export(w io.Writer, from, to time.Time) error {
	return z.evidence.Export(w, z.self.Name, z.chain, from, to)
}

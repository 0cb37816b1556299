package controlplane

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"time"

	"bailiwick/controlplane/internal/evidence"
	"bailiwick/controlplane/internal/model"
	"bailiwick/controlplane/internal/pki"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	peerv1 "bailiwick/proto/gen/bailiwick/peer/v1"
	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"
	"bailiwick/shared/fault"

	"golang.org/x/mod/sumdb/tlog"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// openEvidence opens this node's copy of the zone's Merkle log.
func (n *Node) openEvidence(ca *pki.CA) error {
	chain, err := ca.CertifySigner(n.secrets.Signer.Public().(ed25519.PublicKey), time.Now())
	if err != nil {
		return err
	}
	n.chain = string(chain)
	mask, err := evidence.MaskKey(n.secrets.Pepper)
	if err != nil {
		return err
	}
	n.evidence, err = evidence.New(evidence.Config{Zone: n.self.Zone, Dir: filepath.Join(n.cfg.Dir, "evidence"), Store: n.store, Catalog: n.catalog, Pepper: n.secrets.Pepper, Signer: n.secrets.Signer,
		Mask: mask, Peers: n.leavesOfOthers, Keep: n.cfg.EvidenceKeep, Budget: n.cfg.EvidenceBytes, Logger: n.log})
	return err
}

// leavesOfOthers asks the zone's other nodes in turn; one that has more, or knows for a later time that there is no
// more, is enough. One whose copy goes back far enough is better than one that begins later.
func (n *Node) leavesOfOthers(ctx context.Context, from int64) (evidence.Piece, error) {
	var errs []error
	var best evidence.Piece
	for _, c := range n.zoneNodes(n.self.Zone) {
		if c.Name == n.self.Name {
			continue
		}
		attempt, cancel := context.WithTimeout(ctx, 5*time.Second)
		answer, err := n.carrier.Leaves(attempt, c.Name, from)
		cancel()
		theirs := evidence.Piece{Leaves: answer.GetLeaves(), Through: answer.GetThrough(), First: answer.GetFirst()}
		for _, h := range answer.GetFrontier() {
			if len(h) != tlog.HashSize {
				err = fault.New(fault.Internal, "FRONTIER_MALFORMED", "a hash of %d bytes", len(h))
				break
			}
			theirs.Frontier = append(theirs.Frontier, tlog.Hash(h))
		}
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("node %s: %w", c.Name, err))
		case len(theirs.Leaves) > 0 && theirs.First <= from:
			return theirs, nil
		case len(theirs.Leaves) > 0 && (len(best.Leaves) == 0 || theirs.First < best.First):
			best = theirs
		case len(best.Leaves) == 0:
			best.Through = max(best.Through, theirs.Through)
		}
	}
	if len(best.Leaves) > 0 || best.Through > 0 {
		return best, nil
	}
	return best, errors.Join(errs...)
}

// zoneEvidence implements adminapi.Evidence.
type zoneEvidence struct{ *Node }

// Export implements adminapi.Evidence.
func (z zoneEvidence) Export(from, to time.Time, resume *adminv1.EvidenceExport) (*adminv1.EvidenceExport, func(w io.Writer, offset int64) error, error) {
	var begun *evidence.Export
	if resume != nil {
		begun = &evidence.Export{At: resume.GetExportedAt().AsTime(), First: resume.GetFirst(), Size: resume.GetSize()}
	}
	x, err := z.evidence.NewExport(z.self.Name, z.chain, from, to, begun)
	if err != nil {
		return nil, nil, err
	}
	return &adminv1.EvidenceExport{ExportedAt: timestamppb.New(x.At), First: x.First, Size: x.Size}, x.WriteTo, nil
}

// Check implements adminapi.Evidence.
func (z zoneEvidence) Check(ctx context.Context) (*adminv1.CheckEvidenceResponse, error) {
	c, err := z.evidence.Check(ctx)
	return &adminv1.CheckEvidenceResponse{Node: z.self.Name, First: c.First, Records: c.Records, Heads: c.Heads, Mended: c.Mended, Damaged: c.Damaged}, err
}

// Rows implements adminapi.Evidence: every edge of a region of this zone is asked, through the node that it follows. One
// that is not reached is named in the file.
func (z zoneEvidence) Rows(ctx context.Context, w io.Writer, region string, from, to time.Time) error {
	edges := map[string]string{} // and why their rows are not there
	for kv := range z.catalog.Local().List(model.PrefixNode) {
		n, err := model.Decode[model.Node](kv.Key, kv.Value)
		if err == nil && n.Kind == "edge" && n.Zone == z.self.Zone && n.Region == region {
			edges[n.Name] = "no control node of the zone is connected to it"
		}
	}
	if len(edges) == 0 {
		return fault.New(fault.NotFound, "NO_EDGES", "region %s has no edge in zone %s", region, z.self.Zone)
	}
	out, err := evidence.NewRowsWriter(w, evidence.RowsHeading{Zone: z.self.Zone, Region: region, From: from.UTC(), To: to.UTC(), Exported: time.Now().UTC()})
	if err != nil {
		return err
	}
	req := &peerv1.EdgeRowsRequest{Region: region, From: from.Unix(), To: to.Unix()}
	a := rowsOf{out: out, edges: edges, written: map[entryOf]bool{}}
	for _, node := range z.in.InZone(z.self.Zone) {
		a.rows = nil
		if node.Name == z.self.Name {
			err = ownEvidence(z).EdgeRows(ctx, req, a.take)
		} else {
			err = z.carrier.EdgeRows(ctx, node.Name, req, a.take)
		}
		if a.err != nil || ctx.Err() != nil {
			return errors.Join(a.err, ctx.Err())
		}
		if err != nil {
			z.log.Warn("a node does not hand out its edges' rows", "peer", node.Name, "error", err)
		}
	}
	for _, edge := range slices.Sorted(maps.Keys(edges)) {
		if err := out.Missing(edge, edges[edge]); err != nil {
			return err
		}
	}
	return out.Close()
}

// rowsOf puts nodes' answers into the file. An edge that changes nodes meanwhile is asked twice, and each entry is written
// once.
type rowsOf struct {
	out     *evidence.RowsWriter
	edges   map[string]string // that have not told all, and why
	written map[entryOf]bool
	rows    [][]byte // of the entry that is coming in
	err     error    // of the file
}

type entryOf struct {
	edge  string
	epoch int64
	seq   uint64
}

func (a *rowsOf) take(m *peerv1.EdgeRowsResponse) error {
	edge, told := m.GetEdge(), m.GetTold()
	if _, waits := a.edges[edge]; !waits { // another node's word on it was whole
		return nil
	}
	switch e := told.GetEntry(); {
	case told.GetFailed() != "":
		a.edges[edge], a.rows = told.GetFailed(), nil
	case told.GetDone():
		delete(a.edges, edge)
	case e != nil:
		a.rows = append(a.rows, told.GetRows()...)
		if told.GetMore() {
			return nil
		}
		rows, key := a.rows, entryOf{edge, e.GetEpoch(), e.GetSeq()}
		if a.rows = nil; a.written[key] {
			return nil
		}
		a.written[key] = true
		m := model.RelayMinute{Epoch: e.GetEpoch(), Seq: e.GetSeq(), Minute: time.Unix(e.GetMinute(), 0).UTC(), Grant: e.GetGrant(), From: e.GetFrom(), To: e.GetTo(), Count: e.GetCount(), Prev: e.GetPrev(), Digest: e.GetDigest()}
		a.err = a.out.Entry(edge, m, rows)
	}
	return a.err
}

// ownEvidence implements carrier.Evidence.
type ownEvidence struct{ *Node }

func (o ownEvidence) Leaves(from int64, limit int) (*peerv1.EvidenceLeavesResponse, error) {
	c, err := o.evidence.Leaves(from, limit)
	out := &peerv1.EvidenceLeavesResponse{Leaves: c.Leaves, Through: c.Through, First: c.First}
	for _, h := range c.Frontier {
		out.Frontier = append(out.Frontier, h[:])
	}
	return out, err
}

func (o ownEvidence) EdgeRows(ctx context.Context, req *peerv1.EdgeRowsRequest, send func(*peerv1.EdgeRowsResponse) error) error {
	for _, edge := range o.sync.Connected(req.GetRegion()) {
		err := o.sync.Rows(ctx, edge, req.GetFrom(), req.GetTo(), func(m *syncv1.TellRowsRequest) error {
			return send(&peerv1.EdgeRowsResponse{Edge: edge, Told: m})
		})
		if ctx.Err() != nil {
			return ctx.Err()
		}
		last := &syncv1.TellRowsRequest{Done: err == nil}
		if err != nil {
			last.Failed = err.Error()
		}
		if err := send(&peerv1.EdgeRowsResponse{Edge: edge, Told: last}); err != nil {
			return err
		}
	}
	return nil
}

package adminapi

import (
	"context"
	"io"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/shared/fault"
)

// Evidence writes bundles of the zone's Merkle log.
type Evidence interface {
	// Export says what fixes the bytes of a bundle, and writes them from any of them on. resume is that of one begun before.
	Export(from, to time.Time, resume *adminv1.EvidenceExport) (*adminv1.EvidenceExport, func(w io.Writer, offset int64) error, error)
	// Rows fetches what edges of a region keep of their relays.
	Rows(ctx context.Context, w io.Writer, region string, from, to time.Time) error
	Check(ctx context.Context) (*adminv1.CheckEvidenceResponse, error)
}

// ExportEvidence streams a bundle. It is signed as a whole, so one that breaks off is none until it has been gone on with.
func (s *server) ExportEvidence(ctx context.Context, req *adminv1.ExportEvidenceRequest, stream *connect.ServerStream[adminv1.ExportEvidenceResponse]) error {
	if err := s.evidenceOf(req.GetFrom(), req.GetTo()); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, exportLimit)
	defer cancel()
	fixed, write, err := s.Evidence.Export(req.GetFrom().AsTime(), req.GetTo().AsTime(), req.GetResume())
	if err != nil {
		return err
	}
	return write(chunks{ctx, func(p []byte) error {
		m := &adminv1.ExportEvidenceResponse{Chunk: p, Export: fixed}
		fixed = nil // said once
		return stream.Send(m)
	}}, max(0, req.GetOffset()))
}

// ExportRelayRows streams a file of rows. Its end says that it is whole.
func (s *server) ExportRelayRows(ctx context.Context, req *adminv1.ExportRelayRowsRequest, stream *connect.ServerStream[adminv1.ExportRelayRowsResponse]) error {
	if err := s.evidenceOf(req.GetFrom(), req.GetTo()); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, exportLimit)
	defer cancel()
	return s.Evidence.Rows(ctx, chunks{ctx, func(p []byte) error { return stream.Send(&adminv1.ExportRelayRowsResponse{Chunk: p}) }}, req.GetRegion(), req.GetFrom().AsTime(), req.GetTo().AsTime())
}

// CheckEvidence reads this node's whole log.
func (s *server) CheckEvidence(ctx context.Context, _ *adminv1.CheckEvidenceRequest) (*adminv1.CheckEvidenceResponse, error) {
	if s.Evidence == nil {
		return nil, s.evidenceOff()
	}
	return s.Evidence.Check(ctx)
}

func (s *server) evidenceOff() error {
	return fault.New(fault.Unimplemented, "EVIDENCE_OFF", "node %s keeps no evidence", s.Node)
}

func (s *server) evidenceOf(from, to *timestamppb.Timestamp) error {
	if s.Evidence == nil {
		return s.evidenceOff()
	}
	if from == nil || to == nil || !from.AsTime().Before(to.AsTime()) {
		return fault.New(fault.Invalid, "INTERVAL_INVALID", "from must lie before to").At("from")
	}
	return nil
}

// chunks sends what is written, and ends with the call.
type chunks struct {
	ctx  context.Context
	send func([]byte) error
}

func (c chunks) Write(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return len(p), c.send(p)
}

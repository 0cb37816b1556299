package adminapi

import (
	"io"
	"time"

	"context"

	"connectrpc.com/connect"

	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/shared/fault"
)

// Evidence writes bundles of the zone's Merkle log.
type Evidence interface {
	Export(w io.Writer, from, to time.Time) error
}

// ExportEvidence streams a bundle. It is signed as a whole, so one that breaks off is none.
func (s *server) ExportEvidence(ctx context.Context, req *adminv1.ExportEvidenceRequest, stream *connect.ServerStream[adminv1.ExportEvidenceResponse]) error {
	if s.Evidence == nil {
		return fault.New(fault.Unimplemented, "EVIDENCE_OFF", "node %s keeps no evidence", s.Node)
	}
	if req.GetFrom() == nil || req.GetTo() == nil || !req.GetFrom().AsTime().Before(req.GetTo().AsTime()) {
		return fault.New(fault.Invalid, "INTERVAL_INVALID", "from must lie before to").At("from")
	}
	ctx, cancel := context.WithTimeout(ctx, exportLimit)
	defer cancel()
	return s.Evidence.Export(chunks{ctx, stream}, req.GetFrom().AsTime(), req.GetTo().AsTime())
}

// chunks sends what is written, and ends with the call.
type chunks struct {
	ctx    context.Context
	stream *connect.ServerStream[adminv1.ExportEvidenceResponse]
}

func (c chunks) Write(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return len(p), c.stream.Send(&adminv1.ExportEvidenceResponse{Chunk: p})
}

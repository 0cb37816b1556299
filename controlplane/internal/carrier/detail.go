package carrier

import (
	"context"

	"connectrpc.com/connect"

	peerv1 "bailiwick/proto/gen/bailiwick/peer/v1"
)

// Detail is what a node answers from the detail on its own disk.
type Detail interface {
	// Trace gives its answer in pieces; the last has facts.
	Trace(ctx context.Context, req *peerv1.TraceRequest, send func(*peerv1.TraceResponse) error) error
	Erase(ctx context.Context, req *peerv1.EraseDetailRequest) (*peerv1.EraseDetailResponse, error)
}

// Trace asks a node of this zone for a customer's detail.
func (c *Carrier) Trace(ctx context.Context, node string, req *peerv1.TraceRequest, each func(*peerv1.TraceResponse) error) error {
	stream, err := c.ledger(node).Trace(ctx, req)
	if err != nil {
		return err
	}
	defer stream.Close()
	for stream.Receive() {
		if err := each(stream.Msg()); err != nil {
			return err
		}
	}
	return stream.Err()
}

// EraseDetail has a node of this zone remove an erased customer's detail.
func (c *Carrier) EraseDetail(ctx context.Context, node string, req *peerv1.EraseDetailRequest) (*peerv1.EraseDetailResponse, error) {
	return c.ledger(node).EraseDetail(ctx, req)
}

func (d ledgerDoor) Trace(ctx context.Context, req *peerv1.TraceRequest, stream *connect.ServerStream[peerv1.TraceResponse]) error {
	if err := d.neighbour(ctx); err != nil {
		return err
	}
	return d.Detail.Trace(ctx, req, stream.Send)
}

func (d ledgerDoor) EraseDetail(ctx context.Context, req *peerv1.EraseDetailRequest) (*peerv1.EraseDetailResponse, error) {
	if err := d.neighbour(ctx); err != nil {
		return nil, err
	}
	return d.Detail.Erase(ctx, req)
}

package carrier

import (
	"context"

	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	peerv1 "bailiwick/proto/gen/bailiwick/peer/v1"
	"bailiwick/proto/gen/bailiwick/peer/v1/peerv1connect"
	usagev1 "bailiwick/proto/gen/bailiwick/usage/v1"
	"bailiwick/shared/fault"
)

// Lessor is what the zone ledger's leader answers about quotas.
type Lessor interface {
	Quotas(ctx context.Context, customer string) ([]*adminv1.QuotaStatus, error)
	Exchange(ctx context.Context, edge, region string, req *usagev1.ExchangeRequest) (*usagev1.ExchangeResponse, error)
}

// Ledger is what a node answers about its zone's ledger, by the methods of LedgerService.
type Ledger struct {
	Lessor Lessor // required
	Detail Detail // required
	// Checkpoint is this node's hash of the ledger at an index, of the newest it has for 0; ok is false while it has
	// none. Required.
	Checkpoint func(index uint64) (at uint64, sum [32]byte, ok bool)
}

func (c *Carrier) ledger(node string) peerv1connect.LedgerServiceClient {
	return peerv1connect.NewLedgerServiceClient(c.cfg.Client(node), base(node), options()...)
}

// Exchange carries an edge's word on its leases, as this node authenticated the edge, to the ledger's leader.
func (c *Carrier) Exchange(ctx context.Context, leader, edge, region string, req *usagev1.ExchangeRequest) (*usagev1.ExchangeResponse, error) {
	response, err := c.ledger(leader).ExchangeFor(ctx, &peerv1.ExchangeForRequest{Edge: edge, Region: region, Request: req})
	return response.GetResponse(), err
}

type ledgerDoor struct {
	*Carrier
	Ledger
}

func (d ledgerDoor) ExchangeFor(ctx context.Context, req *peerv1.ExchangeForRequest) (*peerv1.ExchangeForResponse, error) {
	if err := d.neighbour(ctx); err != nil {
		return nil, err
	}
	if req.Edge == "" || req.Region == "" {
		return nil, fault.New(fault.Invalid, "EDGE_REQUIRED", "edge and region are required")
	}
	response, err := d.Lessor.Exchange(ctx, req.Edge, req.Region, req.Request)
	if err != nil {
		return nil, err
	}
	return &peerv1.ExchangeForResponse{Response: response}, nil
}

// Quotas asks the ledger's leader for its word on a customer's quotas.
func (c *Carrier) Quotas(ctx context.Context, leader, customer string) ([]*adminv1.QuotaStatus, error) {
	response, err := c.ledger(leader).QuotaHolders(ctx, &peerv1.QuotaHoldersRequest{Customer: customer})
	return response.GetQuotas(), err
}

func (d ledgerDoor) QuotaHolders(ctx context.Context, req *peerv1.QuotaHoldersRequest) (*peerv1.QuotaHoldersResponse, error) {
	if err := d.neighbour(ctx); err != nil {
		return nil, err
	}
	quotas, err := d.Lessor.Quotas(ctx, req.Customer)
	if err != nil {
		return nil, err
	}
	return &peerv1.QuotaHoldersResponse{Quotas: quotas}, nil
}

// StateHash asks a node for its hash of the ledger at a checkpoint; ok is false while it has none.
func (c *Carrier) StateHash(ctx context.Context, node string, index uint64) (sum [32]byte, ok bool, err error) {
	response, err := c.ledger(node).StateHash(ctx, &peerv1.StateHashRequest{Index: index})
	if err != nil || response.GetIndex() != index || len(response.GetSum()) != len(sum) {
		return sum, false, err
	}
	return [32]byte(response.GetSum()), true, nil
}

func (d ledgerDoor) StateHash(ctx context.Context, req *peerv1.StateHashRequest) (*peerv1.StateHashResponse, error) {
	if err := d.neighbour(ctx); err != nil {
		return nil, err
	}
	index, sum, ok := d.Checkpoint(req.Index)
	if !ok {
		return &peerv1.StateHashResponse{Index: index}, nil
	}
	return &peerv1.StateHashResponse{Index: index, Sum: sum[:]}, nil
}

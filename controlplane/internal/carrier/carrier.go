// Package carrier carries requests between control nodes over the peer port: a transaction to the leader of
// its group, an edge's wish for grants and what nodes know of their edges to the leader of the zone store, an
// edge's word on its quota leases to the leader of the zone ledger, and sums without a customer column
// between zones.
//
// It carries and checks who asks; it decides nothing else and keeps nothing. The doors refuse any peer that
// is not a control node of a zone that may hold the group's data. Safe for use by several goroutines at once.
package carrier

import (
	"context"
	"log/slog"
	"net/http"
	"strings"
	"sync"

	"bailiwick/controlplane/internal/group/raftgroup"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	peerv1 "bailiwick/proto/gen/bailiwick/peer/v1"
	"bailiwick/proto/gen/bailiwick/peer/v1/peerv1connect"
	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"
	"bailiwick/shared/fault"
	"bailiwick/shared/fault/rpcfault"
	"bailiwick/shared/identity"

	"connectrpc.com/connect"
)

// maxMessage bounds what crosses: a proposed command is at most 512 KiB of values with their keys.
const maxMessage = 8 << 20

// Group is a replicated group's door on this node, which only its leader answers but for Status.
type Group interface {
	HandlePropose(ctx context.Context, command []byte) ([]byte, error)
	HandleReadIndex(ctx context.Context) (uint64, error)
	Transfer(ctx context.Context, to string) error
	Status() raftgroup.Status // which any node answers
}

// Zone is what the zone store's leader answers.
type Zone interface {
	Grant(ctx context.Context, edge, region string, req *syncv1.RequestGrantsRequest) (*syncv1.RequestGrantsResponse, error)
	Report(edges []*peerv1.EdgeReport) error
	Reports() ([]*peerv1.EdgeReport, error)
	Tightenings() ([]*adminv1.Tightening, error)
}

// Evidence is a node's copy of the zone's Merkle log, and what the edges connected to it keep of relays.
type Evidence interface {
	Leaves(from int64, limit int) (*peerv1.EvidenceLeavesResponse, error)
	EdgeRows(ctx context.Context, req *peerv1.EdgeRowsRequest, send func(*peerv1.EdgeRowsResponse) error) error
}

// maxLeaves is how many leaves one answer carries.
const maxLeaves = 4096

// Config of a Carrier; all fields are required.
type Config struct {
	Zone   string
	Client func(node string) *http.Client // reaches exactly that control node
	Peer   func(ctx context.Context) (identity.Name, bool)
	Logger *slog.Logger
}

// Carrier is one node's end of it: client of the others, and their door.
type Carrier struct {
	cfg Config

	// mu covers groups, which are registered while the node starts.
	mu     sync.Mutex
	groups map[string]Group
}

// New returns a Carrier without groups; a door to an unknown group answers NotFound.
func New(cfg Config) *Carrier { return &Carrier{cfg: cfg, groups: map[string]Group{}} }

// Serve opens the door of a group.
func (c *Carrier) Serve(name string, g Group) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.groups[name] = g
}

func base(node string) string { return "https://" + node }

func (c *Carrier) group(node string) peerv1connect.GroupServiceClient {
	return peerv1connect.NewGroupServiceClient(c.cfg.Client(node), base(node), options()...)
}

func (c *Carrier) zone(node string) peerv1connect.ZoneServiceClient {
	return peerv1connect.NewZoneServiceClient(c.cfg.Client(node), base(node), options()...)
}

func options() []connect.ClientOption {
	return []connect.ClientOption{connect.WithInterceptors(rpcfault.Client()), connect.WithReadMaxBytes(maxMessage)}
}

// Propose implements raftgroup.Forwarder.
func (c *Carrier) Propose(ctx context.Context, node, group string, command []byte) ([]byte, error) {
	response, err := c.group(node).Propose(ctx, &peerv1.ProposeRequest{Group: group, Command: command})
	return response.GetResult(), err
}

// ReadIndex implements raftgroup.Forwarder.
func (c *Carrier) ReadIndex(ctx context.Context, node, group string) (uint64, error) {
	response, err := c.group(node).ReadIndex(ctx, &peerv1.ReadIndexRequest{Group: group})
	return response.GetIndex(), err
}

// Describe implements raftgroup.Forwarder.
func (c *Carrier) Describe(ctx context.Context, node, group string) (raftgroup.Status, error) {
	r, err := c.group(node).Describe(ctx, &peerv1.DescribeRequest{Group: group})
	if err != nil {
		return raftgroup.Status{}, err
	}
	var made []raftgroup.Checkpoint
	for _, c := range r.Checkpoints {
		if len(c.Sum) == 32 {
			made = append(made, raftgroup.Checkpoint{Epoch: c.Epoch, Index: c.Index, Sum: [32]byte(c.Sum)})
		}
	}
	return raftgroup.Status{Checkpoints: made, Node: r.Node, Server: r.Server, Incarnation: r.Incarnation, Version: r.Version, State: r.State, Leader: r.Leader, Term: r.Term,
		FirstLog: r.FirstLog, LastLog: r.LastLog, Applied: r.Applied, Snapshot: r.Snapshot, Commands: r.Commands, ClockMs: r.ClockUnixMs}, nil
}

// Transfer asks a group's leader to hand it over.
func (c *Carrier) Transfer(ctx context.Context, leader, group, to string) error {
	_, err := c.group(leader).Transfer(ctx, &peerv1.TransferRequest{Group: group, Node: to})
	return err
}

// Grant carries an edge's request, as this node authenticated the edge, to the leader.
func (c *Carrier) Grant(ctx context.Context, leader, edge, region string, req *syncv1.RequestGrantsRequest) (*syncv1.RequestGrantsResponse, error) {
	response, err := c.zone(leader).GrantFor(ctx, &peerv1.GrantForRequest{Edge: edge, Region: region, Request: req})
	return response.GetResponse(), err
}

// Report tells the leader of this node's edges.
func (c *Carrier) Report(ctx context.Context, leader string, edges []*peerv1.EdgeReport) error {
	_, err := c.zone(leader).ReportEdges(ctx, &peerv1.ReportEdgesRequest{Edges: edges})
	return err
}

// Reports asks the leader what is known of the zone's edges and tightenings.
func (c *Carrier) Reports(ctx context.Context, leader string) ([]*peerv1.EdgeReport, []*adminv1.Tightening, error) {
	response, err := c.zone(leader).EdgeReports(ctx, &peerv1.EdgeReportsRequest{})
	return response.GetEdges(), response.GetTightenings(), err
}

// Leaves asks one node of this zone for its copy of the zone's Merkle log.
func (c *Carrier) Leaves(ctx context.Context, node string, from int64) (*peerv1.EvidenceLeavesResponse, error) {
	return c.zone(node).EvidenceLeaves(ctx, &peerv1.EvidenceLeavesRequest{From: from})
}

// EdgeRows asks one node of this zone for what its edges keep of relays.
func (c *Carrier) EdgeRows(ctx context.Context, node string, req *peerv1.EdgeRowsRequest, each func(*peerv1.EdgeRowsResponse) error) error {
	stream, err := c.zone(node).EdgeRows(ctx, req)
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

// Totals asks one node of another zone for that zone's sums.
func (c *Carrier) Totals(ctx context.Context, node string, req *peerv1.TotalsRequest) (*adminv1.ZoneTotals, error) {
	client := peerv1connect.NewCentralServiceClient(c.cfg.Client(node), base(node), options()...)
	response, err := client.Totals(ctx, req)
	return response.GetTotals(), err
}

// Register mounts the doors. totals answers for this zone alone.
func (c *Carrier) Register(mux *http.ServeMux, zone Zone, evidence Evidence, ledger Ledger, totals func(ctx context.Context, req *peerv1.TotalsRequest) (*adminv1.ZoneTotals, error)) {
	handler := []connect.HandlerOption{connect.WithInterceptors(rpcfault.Server(c.cfg.Logger)), connect.WithReadMaxBytes(maxMessage)}
	mux.Handle(peerv1connect.NewGroupServiceHandler(groupDoor{c}, handler...))
	mux.Handle(peerv1connect.NewZoneServiceHandler(zoneDoor{c, zone, evidence}, handler...))
	mux.Handle(peerv1connect.NewLedgerServiceHandler(ledgerDoor{Carrier: c, Ledger: ledger}, handler...))
	mux.Handle(peerv1connect.NewCentralServiceHandler(centralDoor{c, totals}, handler...))
}

// control says who the calling control node is; an edge or a stranger is refused.
func (c *Carrier) control(ctx context.Context) (identity.Name, error) {
	n, ok := c.cfg.Peer(ctx)
	if !ok || n.Kind != identity.Control {
		return n, fault.New(fault.Denied, "NOT_A_CONTROL_NODE", "only control nodes may call this")
	}
	return n, nil
}

func (c *Carrier) neighbour(ctx context.Context) error {
	n, err := c.control(ctx)
	if err == nil && n.Zone != c.cfg.Zone {
		err = fault.New(fault.Denied, "FOREIGN_ZONE", "control node %s of zone %s has no part in zone %s", n.Node, n.Zone, c.cfg.Zone)
	}
	return err
}

type groupDoor struct{ *Carrier }

// door finds a group. The catalog is everybody's; a zone's groups are open to nodes of that zone alone.
func (d groupDoor) door(ctx context.Context, name string) (Group, error) {
	n, err := d.control(ctx)
	if err != nil {
		return nil, err
	}
	if _, zone, owned := strings.Cut(name, "/"); owned && zone != n.Zone {
		return nil, fault.New(fault.Denied, "FOREIGN_ZONE", "control node %s of zone %s has no part in group %s", n.Node, n.Zone, name)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	g := d.groups[name]
	if g == nil {
		return nil, fault.New(fault.Unavailable, "GROUP_NOT_HERE", "this node has no part in group %s, or has not started it yet", name)
	}
	return g, nil
}

func (d groupDoor) Propose(ctx context.Context, req *peerv1.ProposeRequest) (*peerv1.ProposeResponse, error) {
	g, err := d.door(ctx, req.Group)
	if err != nil {
		return nil, err
	}
	result, err := g.HandlePropose(ctx, req.Command)
	if err != nil {
		return nil, err
	}
	return &peerv1.ProposeResponse{Result: result}, nil
}

func (d groupDoor) ReadIndex(ctx context.Context, req *peerv1.ReadIndexRequest) (*peerv1.ReadIndexResponse, error) {
	g, err := d.door(ctx, req.Group)
	if err != nil {
		return nil, err
	}
	index, err := g.HandleReadIndex(ctx)
	if err != nil {
		return nil, err
	}
	return &peerv1.ReadIndexResponse{Index: index}, nil
}

func (d groupDoor) Describe(ctx context.Context, req *peerv1.DescribeRequest) (*peerv1.DescribeResponse, error) {
	g, err := d.door(ctx, req.Group)
	if err != nil {
		return nil, err
	}
	s := g.Status()
	var made []*peerv1.StateHash
	for _, c := range s.Checkpoints {
		made = append(made, &peerv1.StateHash{Epoch: c.Epoch, Index: c.Index, Sum: c.Sum[:]})
	}
	return &peerv1.DescribeResponse{ClockUnixMs: s.ClockMs, Checkpoints: made, Node: s.Node, Server: s.Server, Incarnation: s.Incarnation, Version: s.Version, State: s.State, Leader: s.Leader, Term: s.Term,
		FirstLog: s.FirstLog, LastLog: s.LastLog, Applied: s.Applied, Snapshot: s.Snapshot, Commands: s.Commands}, nil
}

func (d groupDoor) Transfer(ctx context.Context, req *peerv1.TransferRequest) (*peerv1.TransferResponse, error) {
	if err := d.neighbour(ctx); err != nil {
		return nil, err
	}
	g, err := d.door(ctx, req.Group)
	if err != nil {
		return nil, err
	}
	if err := g.Transfer(ctx, req.Node); err != nil {
		return nil, err
	}
	return &peerv1.TransferResponse{}, nil
}

type zoneDoor struct {
	*Carrier
	zone     Zone
	evidence Evidence
}

func (d zoneDoor) GrantFor(ctx context.Context, req *peerv1.GrantForRequest) (*peerv1.GrantForResponse, error) {
	if err := d.neighbour(ctx); err != nil {
		return nil, err
	}
	response, err := d.zone.Grant(ctx, req.Edge, req.Region, req.Request)
	if err != nil {
		return nil, err
	}
	return &peerv1.GrantForResponse{Response: response}, nil
}

func (d zoneDoor) ReportEdges(ctx context.Context, req *peerv1.ReportEdgesRequest) (*peerv1.ReportEdgesResponse, error) {
	if err := d.neighbour(ctx); err != nil {
		return nil, err
	}
	if err := d.zone.Report(req.Edges); err != nil {
		return nil, err
	}
	return &peerv1.ReportEdgesResponse{}, nil
}

func (d zoneDoor) EdgeReports(ctx context.Context, _ *peerv1.EdgeReportsRequest) (*peerv1.EdgeReportsResponse, error) {
	if err := d.neighbour(ctx); err != nil {
		return nil, err
	}
	edges, err := d.zone.Reports()
	if err != nil {
		return nil, err
	}
	tightenings, err := d.zone.Tightenings()
	if err != nil {
		return nil, err
	}
	return &peerv1.EdgeReportsResponse{Edges: edges, Tightenings: tightenings}, nil
}

func (d zoneDoor) EvidenceLeaves(ctx context.Context, req *peerv1.EvidenceLeavesRequest) (*peerv1.EvidenceLeavesResponse, error) {
	if err := d.neighbour(ctx); err != nil {
		return nil, err
	}
	return d.evidence.Leaves(req.From, maxLeaves)
}

func (d zoneDoor) EdgeRows(ctx context.Context, req *peerv1.EdgeRowsRequest, stream *connect.ServerStream[peerv1.EdgeRowsResponse]) error {
	if err := d.neighbour(ctx); err != nil {
		return err
	}
	return d.evidence.EdgeRows(ctx, req, stream.Send)
}

type centralDoor struct {
	*Carrier
	totals func(ctx context.Context, req *peerv1.TotalsRequest) (*adminv1.ZoneTotals, error)
}

func (d centralDoor) Totals(ctx context.Context, req *peerv1.TotalsRequest) (*peerv1.TotalsResponse, error) {
	if _, err := d.control(ctx); err != nil {
		return nil, err
	}
	if req.Since == nil || req.Until == nil {
		return nil, fault.New(fault.Invalid, "TIME_REQUIRED", "since and until are required")
	}
	totals, err := d.totals(ctx, req)
	if err != nil { // what it says may name a customer, and the caller may be of another zone: kind and reason go
		d.cfg.Logger.WarnContext(ctx, "sum up usage for another node", "error", err)
		reason := fault.ReasonOf(err)
		if reason == "" {
			reason = "TOTALS_FAILED"
		}
		return nil, fault.New(fault.KindOf(err), reason, "zone %s cannot sum up its usage now; the log of the node that was asked says why", d.cfg.Zone)
	}
	totals.Error = "" // texts for an operator's client are written by the node that he asks
	for _, r := range totals.GetRows() {
		r.Time = ""
	}
	return &peerv1.TotalsResponse{Totals: totals}, nil
}

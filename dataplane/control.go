package dataplane

import (
	"context"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"bailiwick/dataplane/internal/enroll"
	"bailiwick/dataplane/internal/failover"
	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"
	"bailiwick/proto/gen/bailiwick/sync/v1/syncv1connect"
	"bailiwick/shared/fault"
	"bailiwick/shared/fault/rpcfault"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
)

func (e *Edge) controlAddrs() []string {
	var addrs []string
	for _, p := range e.state.Peers {
		addrs = append(addrs, p.Addr)
	}
	return addrs
}

// usageAddrs has the control nodes of the edge's own region first: detail stays there while one of them is up.
// An edge that joined before it was told regions knows none, and takes them as they come.
func (e *Edge) usageAddrs() []string {
	var own, others []string
	for _, p := range e.state.Peers {
		if p.Region == e.self.Region {
			own = append(own, p.Addr)
		} else {
			others = append(others, p.Addr)
		}
	}
	return append(own, others...)
}

// peerAt finds the control node of an address; whoever else answers there is refused by its certificate.
func (e *Edge) peerAt(addr string) enroll.Peer {
	for _, p := range e.state.Peers {
		if p.Addr == addr {
			return p
		}
	}
	return enroll.Peer{Addr: addr} // no certificate has an empty name: nobody is accepted
}

func (e *Edge) controlHTTP(addr string) *http.Client {
	return enroll.HTTPClient(e.state.Source, e.peerAt(addr))
}

// requester asks for grants at whichever control node answers, the last one that did first.
type requester struct {
	e    *Edge
	once sync.Once
	all  []syncv1connect.SyncServiceClient
	last atomic.Int32
}

// grantAttempt bounds one question: with three nodes an edge knows within ten seconds, a third of a grant,
// whether anybody answers.
const grantAttempt = 3 * time.Second

func (r *requester) RequestGrants(ctx context.Context, req *syncv1.RequestGrantsRequest) (*syncv1.RequestGrantsResponse, error) {
	asked := time.Now()
	response, err := r.request(ctx, req)
	switch kind := fault.KindOf(err); {
	case err == nil:
		var signed [][]byte // for the sentinel, which reads grants itself
		for _, g := range response.GetGrants() {
			if raw, err := proto.Marshal(g); err == nil {
				signed = append(signed, raw)
			}
		}
		r.e.sentinel.Answered(asked, signed)
	case kind == fault.Denied, kind == fault.Unauthenticated, failover.IsAnswer(err):
		r.e.sentinel.Answered(asked, nil)
	default:
		r.e.sentinel.Silent()
	}
	return response, err
}

func (r *requester) request(ctx context.Context, req *syncv1.RequestGrantsRequest) (*syncv1.RequestGrantsResponse, error) {
	r.once.Do(func() {
		for _, p := range r.e.state.Peers {
			r.all = append(r.all, syncv1connect.NewSyncServiceClient(enroll.HTTPClient(r.e.state.Source, p), p.URL(),
				connect.WithInterceptors(rpcfault.Client()), connect.WithReadMaxBytes(1<<20)))
		}
	})
	relays, refusals := r.e.tell(req)
	err := error(fault.New(fault.Unavailable, "NO_CONTROL_NODE", "edge %s knows no control node", r.e.self.Node))
	first := int(r.last.Load())
	for i := range r.all {
		n := (first + i) % len(r.all)
		attempt, cancel := context.WithTimeout(ctx, grantAttempt)
		var response *syncv1.RequestGrantsResponse
		response, err = r.all[n].RequestGrants(attempt, req)
		cancel()
		if err == nil {
			r.last.Store(int32(n))
			r.e.told(relays, refusals, req.Sentinel)
			return response, nil
		}
		if fault.KindOf(err) == fault.Denied || failover.IsAnswer(err) || ctx.Err() != nil {
			break // every node would say the same
		}
	}
	return nil, err
}

// status is what the edge tells control nodes of itself.
func (e *Edge) status() *syncv1.Status {
	source := e.state.Source
	until := source.NotAfter() // relays and usage need it; home traffic needs the hosts' certificates
	if hosts := e.tls.Expires(); !hosts.IsZero() {
		until = hosts
	}
	size, refused := e.witness.Held()
	sum, outcomes := e.outcomes()
	bad := e.tables.Load().Quarantined()
	relaysOut, relaysIn := e.crossing()
	cuts := e.records.takeCuts() // not the refusals: once there are any, they are for the process that took this one's place
	return &syncv1.Status{Outcomes: outcomes, OutcomesSum: sum, Quarantined: quarantined(bad), QuarantinedTotal: int64(len(bad)), UsageTrouble: usageTrouble(e.ship.StuckBy()), SentinelViolations: e.sentinel.Violations(), SentinelLate: e.sentinel.Late(), CheckpointSize: size, CheckpointRefusal: checkpointRefusal(refused), Ready: e.ready() == nil, ServesAloneUntilUnix: until.Unix(), CertificateExpiresUnix: source.NotAfter().Unix(),
		CertificateSerial: source.Serial(), CutPairs: slices.Concat(cuts, e.relays.CutPairs(), e.inbound.CutPairs()), RelayAddr: e.cfg.RelayAdvertise, Doors: e.doors(), Outlook: e.outlook(),
		Load: &syncv1.Load{Accepted: e.spool.Stats().Rows, RelaysOut: int32(relaysOut), RelaysIn: int32(relaysIn)}}
}

// outcomes are how requests end under the table in force, for roll-outs: numbers by API, and no word of a request.
func (e *Edge) outcomes() ([]byte, []*syncv1.Outcome) {
	sum, outcomes := e.proxy.Outcomes()
	var out []*syncv1.Outcome
	for _, o := range outcomes {
		out = append(out, &syncv1.Outcome{Api: o.API, Kind: syncv1.OutcomeKind(o.Kind + 1), Requests: o.Requests, Failed: o.Failed, BeforeRequests: o.BeforeRequests, BeforeFailed: o.BeforeFailing})
	}
	return sum[:], out
}

package dataplane

import (
	"context"

	"bailiwick/dataplane/internal/enroll"
	"bailiwick/dataplane/internal/quota"
	usagev1 "bailiwick/proto/gen/bailiwick/usage/v1"
	"bailiwick/proto/gen/bailiwick/usage/v1/usagev1connect"
	"bailiwick/shared/fault"
	"bailiwick/shared/fault/rpcfault"

	"connectrpc.com/connect"
)

// lessor reaches the zone ledger's leader through a control node: the last one that answered, and after a
// failure the next. One call is one attempt, as the protocol of package quota wants it.
type lessor struct {
	nodes []usagev1connect.QuotaServiceClient
	at    int // the Book makes one exchange at a time
}

func (e *Edge) newLessor() *lessor {
	l := &lessor{}
	for _, p := range e.state.Peers {
		l.nodes = append(l.nodes, usagev1connect.NewQuotaServiceClient(enroll.HTTPClient(e.state.Source, p), p.URL(),
			connect.WithInterceptors(rpcfault.Client()), connect.WithReadMaxBytes(4<<20),
			connect.WithAcceptCompression("gzip", nil, nil))) // some kilobytes within the zone, several times a second
	}
	return l
}

func (l *lessor) Exchange(ctx context.Context, r *quota.Request) (*quota.Response, error) {
	if len(l.nodes) == 0 {
		return nil, fault.New(fault.Unavailable, "NO_CONTROL_NODE", "exchange quotas: this edge knows no control node")
	}
	out := &usagev1.ExchangeRequest{Epoch: r.Epoch, Sequence: r.Sequence}
	for _, p := range r.Pending {
		out.Pending = append(out.Pending, &usagev1.PendingEpoch{Epoch: p.Epoch, SealedSeq: p.Sealed})
	}
	asks := make([]usagev1.AccountAsk, len(r.Asks)) // in one piece: there are hundreds
	out.Accounts = make([]*usagev1.AccountAsk, len(r.Asks))
	for i := range r.Asks {
		a, to := &r.Asks[i], &asks[i]
		to.Customer, to.Subscription, to.Plan, to.Period = a.Customer, a.Subscription, a.Plan, a.Period
		to.Ceiling, to.Spent, to.InFlight, to.Want, to.DemandMilli, to.Starving = a.Ceiling, a.Spent, a.InFlight, a.Want, a.Demand, a.Starving
		out.Accounts[i] = to
	}
	in, err := l.nodes[l.at].Exchange(ctx, out)
	if err != nil {
		l.at = (l.at + 1) % len(l.nodes)
		return nil, err
	}
	response := &quota.Response{Sequence: in.GetSequence(), LiveEdges: int64(in.GetLiveEdges()), States: make([]quota.State, 0, len(in.GetAccounts()))}
	for _, s := range in.GetAccounts() {
		response.States = append(response.States, quota.State{ID: quota.ID{Customer: s.GetCustomer(), Subscription: s.GetSubscription()},
			Period: s.GetPeriod(), PeriodEnd: s.GetPeriodEnd(), Leased: s.GetLeased(), Limit: s.GetLimit(), Used: s.GetUsed(), UsedHere: s.GetUsedHere(),
			Leases: s.GetMode() == "strict" || s.GetMode() == "elastic", None: s.GetMode() == "none" || s.GetMode() == "",
			Recall: s.GetRecall(), Exhausted: s.GetExhausted(), Share: s.GetSharePpm()})
	}
	for _, n := range in.GetRecalled() {
		response.Recalled = append(response.Recalled, quota.ID{Customer: n.GetCustomer(), Subscription: n.GetSubscription()})
	}
	return response, nil
}

// pendingEpochs are those before this process's whose blocks are not all in the ledger.
func (e *Edge) pendingEpochs() []quota.Pending {
	current := e.spool.Stats().Epoch
	var out []quota.Pending
	for _, x := range e.spool.Epochs() {
		if x.Epoch != current && x.Oldest <= x.Sealed {
			out = append(out, quota.Pending{Epoch: x.Epoch, Sealed: x.Sealed})
		}
	}
	return out
}

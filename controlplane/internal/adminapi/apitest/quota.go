package apitest

import (
	"context"
	"time"

	"bailiwick/controlplane/internal/adminapi"
	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/ledger"
	"bailiwick/controlplane/internal/lessor"
	"bailiwick/controlplane/internal/model"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
)

// quotas answers from the zone's real ledger, as the leader's node does.
type quotas struct {
	catalog, store *Store
	ledger         *ledger.Ledger
}

func (q quotas) of(customer string) ([]lessor.Subscription, error) {
	kv, _ := q.store.Local().Get(model.PrefixCustomer + customer)
	c, err := model.Decode[model.Customer](kv.Key, kv.Value)
	if err != nil {
		return nil, err
	}
	return lessor.Subscriptions(q.catalog.Local(), c, time.Now())
}

func (q quotas) Quotas(ctx context.Context, customer string) ([]*adminv1.QuotaStatus, error) {
	l, err := lessor.New(lessor.Config{Zone: "any", Ledger: q.ledger, Catalog: func() group.Snapshot { return q.catalog.Local() }, Store: func() group.Snapshot { return q.store.Local() },
		RunLeader: func(ctx context.Context, work func(context.Context)) error { work(ctx); return nil }})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- l.Run(ctx) }()
	defer func() { cancel(); <-ended }()
	for {
		out, err := l.Quotas(ctx, customer)
		if err == nil || ctx.Err() != nil {
			return out, err
		}
		time.Sleep(time.Millisecond) // until its term has begun
	}
}

func (q quotas) TopUp(ctx context.Context, t adminapi.TopUp) (bool, error) {
	subs, err := q.of(t.Customer)
	if err != nil {
		return false, err
	}
	return lessor.TopUp(ctx, q.ledger, subs, ledger.TopUp{ID: ledger.AccountID{Customer: t.Customer, Subscription: t.Subscription}, Units: t.Units, RequestID: t.RequestID, At: time.Now().Unix(), By: t.By, Reason: t.Reason})
}

package proxy_test

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"bailiwick/dataplane/internal/failover"
	"bailiwick/dataplane/internal/gate"
	"bailiwick/dataplane/internal/limit"
	"bailiwick/dataplane/internal/policy"
	"bailiwick/dataplane/internal/proxy"
	"bailiwick/dataplane/internal/quota"
	"bailiwick/dataplane/internal/spool"
	"bailiwick/shared/apikey"
	"bailiwick/shared/revision"
	"bailiwick/shared/table"
	"bailiwick/shared/usage"
)

type granter struct{}

func (granter) Exchange(_ context.Context, r *quota.Request) (*quota.Response, error) {
	resp := &quota.Response{Sequence: r.Sequence, LiveEdges: 1}
	for _, a := range r.Asks {
		resp.States = append(resp.States, quota.State{ID: a.ID, Period: 1000, PeriodEnd: 1 << 40, Leased: 1 << 40, Limit: 1 << 50, Leases: true})
	}
	return resp, nil
}

// The whole decision, key, limit and lease included, and the row in a real spool cost no memory: whatever protocol asks.
func TestCall_DecidingAndCountingAllocateNothing(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector makes pools forget")
	}
	key, object := mint(t, "tested")
	objects := []table.Object{object}
	for id, v := range map[table.ObjectKey]any{
		{Kind: table.KindSettings, ID: table.SettingsID}: table.Settings{Zone: "emea", Region: "eu-west"},
		{Kind: table.KindAPI, ID: "orders"}:              table.API{Name: "orders", Zone: "emea", Hosts: []string{"orders.test"}, Targets: []string{"http://up"}, Routes: []table.Route{{Name: "all"}}},
		{Kind: table.KindPlan, ID: "tested"}:             table.Plan{Name: "tested", APIs: map[string]string{"orders": "core"}, RequestsPerSecond: 1 << 20, Burst: 1 << 30, QuotaMode: "strict"},
	} {
		o, err := table.Encode(id.Kind, id.ID, v)
		if err != nil {
			t.Fatal(err)
		}
		objects = append(objects, o)
	}
	c, z := revision.Revision{Epoch: 1, Index: 1}, revision.Revision{Epoch: 1, Index: 1}
	for _, o := range objects {
		if o.Kind.Scope() == table.ScopeZone {
			z.Sum = z.Sum.Add(o.Sum())
		} else {
			c.Sum = c.Sum.Add(o.Sum())
		}
	}
	tab, err := policy.NewTable(objects, c, z)
	if err != nil {
		t.Fatal(err)
	}
	tables := &policy.Holder{}
	tables.Swap(tab)
	log := slog.New(slog.DiscardHandler)
	book, err := quota.New(quota.Config{Epoch: 1, Logger: log, Wait: 10 * time.Second, Leader: granter{}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- book.Run(ctx) }()
	defer func() { cancel(); <-ended }()
	rows, err := spool.Open(spool.Config{Dir: t.TempDir(), Edge: "e1", Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	monitor, err := failover.New(failover.Config{Tables: tables, Prober: proxy.NewUpstreams(proxy.UpstreamConfig{}), Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	p, err := proxy.New(proxy.Config{Region: "eu-west", Tables: tables, Gate: &gate.Gate{Hasher: apikey.NewHasher(pepper), Limits: limit.NewMap(), Quotas: book},
		Monitor: monitor, Upstreams: proxy.NewUpstreams(proxy.UpstreamConfig{}), Meter: rows, Logger: log, TableAge: func(time.Time) time.Duration { return 0 }})
	if err != nil {
		t.Fatal(err)
	}
	once := p.DecideAndCount("orders.test", "/v1/items", key)
	if outcome := once(); outcome != usage.OutcomeSuccess {
		t.Fatalf("got outcome %v, want success", outcome)
	}
	if n := testing.AllocsPerRun(1000, func() { once() }); n != 0 {
		t.Errorf("got %v allocations a request, want none", n)
	}
	if got := rows.Stats().Rows; got < 1000 {
		t.Errorf("%d rows are in the spool, want one for each request", got)
	}
}

package lessor_test

import (
	"bytes"
	"context"
	"iter"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/ledger"
	"bailiwick/controlplane/internal/lessor"
	"bailiwick/controlplane/internal/model"
	usagev1 "bailiwick/proto/gen/bailiwick/usage/v1"
	"bailiwick/shared/usage"
)

// snap is a snapshot of a store by key.
type snap map[string]any

func (s snap) Revision() group.Revision { return group.Revision{} }
func (s snap) Len() int                 { return len(s) }
func (s snap) Get(key string) (group.KV, bool) {
	v, ok := s[key]
	if !ok {
		return group.KV{}, false
	}
	return group.KV{Key: key, Value: model.Encode(v)}, true
}
func (s snap) List(prefix string) iter.Seq[group.KV] {
	return func(yield func(group.KV) bool) {
		var keys []string
		for k := range s {
			if strings.HasPrefix(k, prefix) {
				keys = append(keys, k)
			}
		}
		slices.Sort(keys)
		for _, k := range keys {
			if kv, _ := s.Get(k); !yield(kv) {
				return
			}
		}
	}
}

func catalog(quotas map[string]*model.Quota) snap {
	s := snap{}
	for name, q := range quotas {
		s[model.PrefixPlan+name] = model.Plan{Name: name, Products: []string{"core"}, Quota: q, RateLimit: &model.RateLimit{RequestsPerSecond: 100}}
	}
	return s
}

func store(customers ...model.Customer) snap {
	s := snap{}
	for _, c := range customers {
		s[model.PrefixCustomer+c.Name] = c
	}
	return s
}

func customer(name, plan string) model.Customer {
	return model.Customer{Name: name, Zone: "emea", Subscriptions: []model.Subscription{{Name: plan, Plan: plan}}}
}

// alone applies what is proposed at once, as a group of one would.
type alone struct {
	mu    sync.Mutex
	m     *ledger.Machine
	index uint64
	turns int
}

func (r *alone) Propose(_ context.Context, cmd []byte) ([]byte, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.m.Check(cmd); err != nil {
		return nil, err
	}
	r.index++
	return r.m.Apply(r.index, time.Time{}, bytes.Clone(cmd))
}
func (r *alone) ReadIndex(context.Context) (uint64, error) { return 0, nil }
func (r *alone) WaitApplied(context.Context, uint64) error { return nil }
func (r *alone) lead(ctx context.Context, work func(context.Context)) error {
	work(ctx)
	return nil
}

type world struct {
	l *ledger.Ledger
	*lessor.Lessor
	catalog, store snap
	replica        *alone
	also           atomic.Pointer[ledger.Exchange] // goes into the next raft entry, behind what the lessor puts there
}

// Exchange of a world's ledger.
func (c company) Exchange(ctx context.Context, now int64, heard []string, xs []ledger.Exchange) ([]ledger.Leases, error) {
	also := c.w.also.Swap(nil)
	if also == nil {
		return c.Ledger.Exchange(ctx, now, heard, xs)
	}
	out, err := c.Ledger.Exchange(ctx, now, heard, append(slices.Clone(xs), *also))
	if err != nil {
		return nil, err
	}
	return out[:len(xs)], nil
}

// company is a ledger in which other edges' exchanges come at the worst moment.
type company struct {
	*ledger.Ledger
	w *world
}

func newWorld(t testing.TB, catalog, store snap) *world {
	t.Helper()
	m, err := ledger.OpenMachine(ledger.MachineConfig{Dir: filepath.Join(t.TempDir(), "cells"), OnFatal: func(err error) { t.Errorf("fatal: %v", err) }})
	if err != nil {
		t.Fatal(err)
	}
	r := &alone{m: m}
	l, err := ledger.New(ledger.Config{Machine: m, Replica: r})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{l: l, catalog: catalog, store: store, replica: r}
	w.Lessor, err = lessor.New(lessor.Config{Zone: "emea", Ledger: company{l, w}, Catalog: func() group.Snapshot { return w.catalog }, Store: func() group.Snapshot { return w.store }, RunLeader: r.lead})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { l.Run(ctx) })
	wg.Go(func() { w.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		wg.Wait()
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	for range 1000 { // until the term has begun
		if _, err := w.Exchange(t.Context(), "nobody", "nowhere", &usagev1.ExchangeRequest{Epoch: 1, Sequence: 1}); err == nil {
			break
		}
		time.Sleep(time.Millisecond)
	}
	return w
}

// edge speaks for one epoch of an edge.
type edge struct {
	t            testing.TB
	w            *world
	name, region string
	epoch, seq   uint64
	head         [32]byte
	blocks       uint64
	pending      []*usagev1.PendingEpoch
}

func (e *edge) ask(asks ...*usagev1.AccountAsk) *usagev1.ExchangeResponse {
	e.t.Helper()
	e.seq++
	out, err := e.w.Exchange(e.t.Context(), e.name, e.region, &usagev1.ExchangeRequest{Epoch: e.epoch, Sequence: e.seq, Pending: e.pending, Accounts: asks})
	if err != nil {
		e.t.Fatalf("exchange %d of %s: %v", e.seq, e.name, err)
	}
	return out
}

// one asks about one account.
func (e *edge) one(a *usagev1.AccountAsk) *usagev1.AccountState {
	e.t.Helper()
	out := e.ask(a)
	if len(out.Accounts) != 1 {
		e.t.Fatalf("exchange of %s: got %d accounts, want 1", e.name, len(out.Accounts))
	}
	return out.Accounts[0]
}

// ship brings a block of rows to the ledger.
func (e *edge) ship(customer, subscription string, period, start, units int64) {
	e.t.Helper()
	e.blocks++
	c := usage.Cell{Start: start, Customer: customer, Subscription: subscription, Plan: "p", Product: "core", API: "orders", Outcome: usage.OutcomeSuccess, ServedRegion: e.region, Period: period}
	b := ledger.Block{Region: e.region, Block: usage.NewBlock(e.name, e.epoch, e.blocks, e.head, usage.EncodePayload(map[usage.Cell]usage.Sums{c: {Requests: units, Units: units}}))}
	acks, err := e.w.l.Append(e.t.Context(), b)
	if err != nil || acks[0].Reason != "" {
		e.t.Fatalf("append block %d of %s: %+v, %v", e.blocks, e.name, acks, err)
	}
	e.head = b.Hash
}

package gate_test

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"weak"

	"bailiwick/dataplane/internal/gate"
	"bailiwick/dataplane/internal/limit"
	"bailiwick/dataplane/internal/policy"
	"bailiwick/dataplane/internal/quota"
	"bailiwick/shared/apikey"
	"bailiwick/shared/table"
	"bailiwick/shared/usage"
)

// lessor answers every ask with what state makes of it.
type lessor struct {
	mu    sync.Mutex
	state func(k quota.Ask) quota.State
	away  bool
}

func (l *lessor) Exchange(ctx context.Context, r *quota.Request) (*quota.Response, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.away {
		return nil, context.DeadlineExceeded
	}
	out := &quota.Response{Sequence: r.Sequence, LiveEdges: 1}
	for _, k := range r.Asks {
		s := l.state(k)
		s.ID = k.ID
		out.States = append(out.States, s)
	}
	return out, nil
}

// admit decides as the proxy does.
func admit(g *gate.Gate, tab *policy.Table, key string) gate.Verdict {
	r := gate.Request{Host: "orders.emea.test", Method: "GET", Path: "/v1/x", APIKey: []string{key}, Unix: time.Now().Unix()}
	v := g.Admit(tab, &r, time.Duration(time.Now().UnixNano()))
	if v.Parked {
		if v.Admitted() {
			panic("admitted and parked")
		}
		t, d := v.Account.Park(context.Background(), v.Units, v.Leased)
		g.Settle(&v, t, d, time.Now().Unix())
	}
	return v
}

func TestGate_QuotaVerdicts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := time.Now().Unix()
		const day = 86400
		lease := func(leased, used int64) func(quota.Ask) quota.State {
			return func(k quota.Ask) quota.State {
				return quota.State{Period: now - 100, PeriodEnd: now - 100 + 30*day, Leased: leased, Limit: 10, Used: used, Leases: true, Exhausted: leased == 0}
			}
		}
		for _, c := range []struct {
			name     string
			plan     table.Plan
			overdue  bool
			state    func(quota.Ask) quota.State // nil: nobody answers
			status   int
			reason   string
			outcome  usage.Outcome
			flags    usage.Flags
			retry    time.Duration
			policy   string
			limit    string
			period   int64
			holds    int64
			mustWait time.Duration
		}{
			{name: "no quota", plan: table.Plan{RequestsPerSecond: 5, Burst: 5}, policy: `"plan";q=5;w=1`, limit: `"plan";r=4;t=1`},
			{name: "strict, leased", plan: table.Plan{RequestsPerSecond: 5, Burst: 5, QuotaMode: "strict", QuotaPeriod: "month"}, state: lease(3, 2),
				policy: `"plan";q=5;w=1, "quota";q=10;w=2592000`, limit: `"plan";r=4;t=1, "quota";r=7;t=2591900`, period: now - 100, holds: 1},
			{name: "strict, used up", plan: table.Plan{QuotaMode: "strict", QuotaPeriod: "month"}, state: lease(0, 10), status: 429, reason: gate.ReasonQuotaExceeded,
				outcome: usage.OutcomeLimited, flags: usage.FlagQuotaLimited, retry: time.Hour, policy: `"quota";q=10;w=2592000`, limit: `"quota";r=0;t=2591900`},
			{name: "hourly, used up", plan: table.Plan{QuotaMode: "strict", QuotaPeriod: "hour"}, status: 429, reason: gate.ReasonQuotaExceeded, outcome: usage.OutcomeLimited,
				state: func(quota.Ask) quota.State {
					return quota.State{Period: now - 3000, PeriodEnd: now + 600, Limit: 10, Used: 10, Leases: true, Exhausted: true}
				},
				flags: usage.FlagQuotaLimited, retry: 600 * time.Second, policy: `"quota";q=10;w=3600`, limit: `"quota";r=0;t=600`},
			{name: "prepaid, used up", plan: table.Plan{QuotaMode: "strict", QuotaPeriod: "prepaid"}, status: 402, reason: gate.ReasonPrepaid, outcome: usage.OutcomeRefused,
				state: func(quota.Ask) quota.State {
					return quota.State{Period: usage.PeriodPrepaid, Limit: 10, Used: 10, Leases: true, Exhausted: true}
				},
				flags: usage.FlagQuotaLimited, policy: `"quota";q=10`, limit: `"quota";r=0`},
			{name: "rolling", plan: table.Plan{QuotaMode: "strict", QuotaPeriod: "rolling", QuotaWindow: time.Hour}, period: usage.PeriodRolling, holds: 1,
				state: func(quota.Ask) quota.State {
					return quota.State{Period: usage.PeriodRolling, Limit: 10, Leased: 5, Leases: true}
				},
				policy: `"quota";q=10;w=3600`, limit: `"quota";r=9`},
			{name: "strict, nobody answers", plan: table.Plan{RequestsPerSecond: 5, Burst: 5, QuotaMode: "strict"}, status: 503, reason: gate.ReasonUnconfirmed, outcome: usage.OutcomeUnserved,
				retry: time.Second, policy: `"plan";q=5;w=1`, limit: `"plan";r=5;t=1`, mustWait: quota.DefaultWait},
			{name: "elastic, used up", plan: table.Plan{QuotaMode: "elastic"}, state: lease(0, 10), status: 429, reason: gate.ReasonQuotaExceeded, outcome: usage.OutcomeLimited,
				flags: usage.FlagQuotaLimited, retry: time.Hour, policy: `"quota";q=10;w=2592000`, limit: `"quota";r=0;t=2591900`},
			{name: "soft with grace, used up", plan: table.Plan{QuotaMode: "soft", QuotaGrace: 10}, state: lease(0, 11), status: 429, reason: gate.ReasonQuotaExceeded, outcome: usage.OutcomeLimited,
				flags: usage.FlagQuotaLimited, retry: time.Hour, policy: `"quota";q=10;w=2592000`, limit: `"quota";r=0;t=2591900`},
			{name: "soft, far over", plan: table.Plan{QuotaMode: "soft"}, period: now - 100, holds: 1,
				state: func(quota.Ask) quota.State {
					return quota.State{Period: now - 100, PeriodEnd: now + day - 100, Limit: 10, Used: 500, Exhausted: true}
				},
				policy: `"quota";q=10;w=86400`, limit: `"quota";r=0;t=86300`},
			{name: "soft, nobody answers", plan: table.Plan{QuotaMode: "soft"}},
			{name: "strict here, no quota there", plan: table.Plan{QuotaMode: "strict"}, state: func(quota.Ask) quota.State { return quota.State{None: true} },
				status: 503, reason: gate.ReasonUnconfirmed, outcome: usage.OutcomeUnserved, retry: time.Second, mustWait: quota.DefaultWait},
			{name: "overdue", plan: table.Plan{RequestsPerSecond: 5, QuotaMode: "strict"}, overdue: true, state: lease(3, 0), status: 402, reason: gate.ReasonOverdue, outcome: usage.OutcomeRefused},
		} {
			w := sample(t)
			c.plan.Name, c.plan.APIs = "tested", map[string]string{"orders": "core"}
			w.add(table.KindPlan, "tested", c.plan)
			id, text, _ := apikey.Mint("emea", rand.Reader)
			d := apikey.Sum(pepper, text.Reveal())
			w.add(table.KindKey, id, table.Key{ID: id, DigestHex: hex.EncodeToString(d[:]), Customer: "acme", Subscription: "main", Plan: "tested", Overdue: c.overdue})
			l := &lessor{state: c.state, away: c.state == nil}
			b, err := quota.New(quota.Config{Leader: l, Epoch: 1, Logger: slog.New(slog.DiscardHandler), Wait: quota.DefaultWait})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(context.Background())
			done := make(chan struct{})
			go func() { defer close(done); b.Run(ctx) }()
			g := &gate.Gate{Hasher: apikey.NewHasher(pepper), Limits: limit.NewMap(), Quotas: b}
			time.Sleep(10 * time.Millisecond) // the first beat is over: the edge knows whether it is answered
			began := time.Now()
			v := admit(g, w.table(), text.Reveal())
			if v.Problem.Status != c.status || v.Problem.Reason != c.reason || c.status != 0 && v.Outcome != c.outcome || v.Flags != c.flags || !v.Counted {
				t.Errorf("%s: got %d %q, outcome %v, flags %v; want %d %q, %v, %v", c.name, v.Problem.Status, v.Problem.Reason, v.Outcome, v.Flags, c.status, c.reason, c.outcome, c.flags)
			}
			if c.status != 0 && v.Problem.Title == "" {
				t.Errorf("%s: the problem has no title", c.name)
			}
			if v.RetryAfter != c.retry || policyOf(&v) != c.policy || limitOf(&v) != c.limit {
				t.Errorf("%s: got retry %v, %s and %s; want %v, %s and %s", c.name, v.RetryAfter, policyOf(&v), limitOf(&v), c.retry, c.policy, c.limit)
			}
			if v.Ticket.Period() != c.period || v.Ticket.Units() != c.holds {
				t.Errorf("%s: got %d units in period %d, want %d in %d", c.name, v.Ticket.Units(), v.Ticket.Period(), c.holds, c.period)
			}
			if took := time.Since(began); took < c.mustWait || took > c.mustWait+5*time.Millisecond {
				t.Errorf("%s: took %v, want about %v", c.name, took, c.mustWait)
			}
			cancel()
			<-done
		}
	})
}

// The quota comes last: what the rate refuses takes no unit.
func TestGate_ARateLimitedRequestTakesNoUnit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := sample(t)
		w.add(table.KindPlan, "tested", table.Plan{Name: "tested", APIs: map[string]string{"orders": "core"}, RequestsPerSecond: 2, Burst: 2, QuotaMode: "strict"})
		key := w.key("emea", "acme", "tested", false)
		var mu sync.Mutex
		var last quota.Ask
		l := &lessor{state: func(k quota.Ask) quota.State {
			mu.Lock()
			defer mu.Unlock()
			last = k
			return quota.State{Period: 1000, Leased: 100, Limit: 100, Leases: true}
		}}
		b, err := quota.New(quota.Config{Leader: l, Epoch: 1, Logger: slog.New(slog.DiscardHandler), Wait: quota.DefaultWait})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { defer close(done); b.Run(ctx) }()
		g := &gate.Gate{Hasher: apikey.NewHasher(pepper), Limits: limit.NewMap(), Quotas: b}
		tab, taken := w.table(), int64(0)
		for i := range 5 {
			v := admit(g, tab, key)
			if v.Admitted() != (i < 2) {
				t.Errorf("request %d: got %v, want two admitted", i, v.Problem)
			}
			if !v.Admitted() && (v.Problem.Reason != gate.ReasonRateExceeded || v.Flags != usage.FlagRateLimited || !strings.Contains(limitOf(&v), `"quota";r=100`)) {
				t.Errorf("request %d: got %q, flags %v, %s", i, v.Problem.Reason, v.Flags, limitOf(&v))
			}
			taken += v.Ticket.Units()
		}
		time.Sleep(200 * time.Millisecond)
		cancel()
		<-done
		if taken != 2 || last.InFlight != 2 {
			t.Errorf("got %d units taken, %d in flight; want 2", taken, last.InFlight)
		}
	})
}

// A decision with a rate and a quota costs no memory, the text of its headers included.
func TestGate_AQuotaCostsNoAllocation(t *testing.T) {
	g, tab, r := leased(t)
	now := time.Duration(time.Now().UnixNano())
	if n := testing.AllocsPerRun(100, func() {
		if v := g.Admit(tab, r, now); !v.Admitted() {
			t.Fatal(v.Problem)
		}
	}); n != 0 && !raceDetector {
		t.Errorf("got %v allocations, want none", n)
	}
}

// leased is a gate that holds a large lease for a key.
func leased(t testing.TB) (*gate.Gate, *policy.Table, *gate.Request) {
	w := sample(t)
	w.add(table.KindPlan, "tested", table.Plan{Name: "tested", APIs: map[string]string{"orders": "core"}, RequestsPerSecond: 1 << 20, Burst: 1 << 30, QuotaMode: "strict"})
	key := w.key("emea", "acme", "tested", false)
	b, err := quota.New(quota.Config{Epoch: 1, Logger: slog.New(slog.DiscardHandler), Wait: time.Second, Leader: &lessor{state: func(quota.Ask) quota.State {
		return quota.State{Period: 1000, PeriodEnd: 1 << 40, Leased: 1 << 40, Limit: 1 << 50, Leases: true}
	}}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); b.Run(ctx) }()
	g, tab := &gate.Gate{Hasher: apikey.NewHasher(pepper), Limits: limit.NewMap(), Quotas: b}, w.table()
	if v := admit(g, tab, key); !v.Admitted() {
		t.Fatal(v.Problem)
	}
	t.Cleanup(func() { cancel(); <-done })
	return g, tab, &gate.Request{Host: "orders.emea.test", Method: "GET", Path: "/v1/x", APIKey: []string{key}, Unix: 2000}
}

func BenchmarkGate_AdmitWithQuota(b *testing.B) {
	g, tab, r := leased(b)
	b.ReportAllocs()
	now := time.Duration(time.Now().UnixNano())
	for i := 0; b.Loop(); i++ {
		if v := g.Admit(tab, r, now+time.Duration(i)*time.Microsecond); !v.Admitted() {
			b.Fatal(v.Problem)
		}
	}
}

// What a quota refuses takes nothing of the plan's other limits: once there are units again, the whole rate and all windows are
// there, and nobody is under way.
func TestGate_WhatAQuotaRefusesTakesNoOtherLimit(t *testing.T) {
	for _, exhausted := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			w := sample(t)
			w.add(table.KindPlan, "tested", table.Plan{Name: "tested", APIs: map[string]string{"orders": "core"}, RequestsPerSecond: 3, Burst: 3,
				Windows: []table.Window{{Requests: 3, Per: time.Hour}}, MaxConcurrent: 3, QuotaMode: "strict"})
			key := w.key("emea", "acme", "tested", false)
			var leased atomic.Int64
			l := &lessor{state: func(k quota.Ask) quota.State {
				n := leased.Load()
				if n == 0 && !exhausted {
					return quota.State{None: true}
				}
				return quota.State{Period: 1000, Leased: n, Limit: 100, Leases: true, Exhausted: n == 0}
			}}
			b, err := quota.New(quota.Config{Leader: l, Epoch: 1, Logger: slog.New(slog.DiscardHandler), Wait: quota.DefaultWait})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(context.Background())
			done := make(chan struct{})
			go func() { defer close(done); b.Run(ctx) }()
			defer func() { cancel(); <-done }()
			g := &gate.Gate{Hasher: apikey.NewHasher(pepper), Limits: limit.NewMap(), Quotas: b}
			tab := w.table()
			for range 10 {
				v := admit(g, tab, key)
				if reason := v.Problem.Reason; reason != gate.ReasonQuotaExceeded && reason != gate.ReasonUnconfirmed {
					t.Fatalf("got %q, want a quota that refuses", reason)
				}
				v.Pass.Leave()
			}
			leased.Store(100)
			time.Sleep(time.Second) // the edge hears of it
			for i := range 3 {
				if v := admit(g, tab, key); !v.Admitted() {
					t.Errorf("request %d of three that the plan allows at once: %q", i, v.Problem.Reason)
				}
			}
			if v := admit(g, tab, key); v.Problem.Reason != gate.ReasonRateExceeded {
				t.Errorf("a fourth: %q", v.Problem.Reason)
			}
		})
	}
}

// What a gate keeps with a key's owner is not used any more once the book has let it go: nobody would lease to it. Nor is it kept:
// the key may stay in the table for years.
func TestGate_AnAccountThatWasLetGoIsFoundAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := sample(t)
		w.add(table.KindPlan, "rated", table.Plan{Name: "rated", APIs: map[string]string{"orders": "core"}, RequestsPerSecond: 5, Burst: 5})
		key := w.key("emea", "initech", "rated", false)
		b, err := quota.New(quota.Config{Epoch: 1, Logger: slog.New(slog.DiscardHandler), Wait: time.Second, Leader: &lessor{state: func(quota.Ask) quota.State { return quota.State{} }}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); b.Run(ctx) }()
		g, tab := &gate.Gate{Hasher: apikey.NewHasher(pepper), Limits: limit.NewMap(), Quotas: b}, w.table()
		first := func() weak.Pointer[quota.Account] {
			first := admit(g, tab, key)
			if again := admit(g, tab, key); first.Account == nil || again.Account != first.Account {
				t.Fatalf("got accounts %p and %p, want one", first.Account, again.Account)
			}
			return weak.Make(first.Account)
		}()
		time.Sleep(15 * time.Minute)
		synctest.Wait()
		if n := b.Stats().Accounts; n != 0 {
			t.Fatalf("the book has %d accounts after a quarter of an hour, want none", n)
		}
		runtime.GC()
		if first.Value() != nil {
			t.Errorf("the account that was let go is still in memory")
		}
		if v := admit(g, tab, key); v.Account == nil || v.Account == first.Value() || b.Stats().Accounts != 1 {
			t.Errorf("got the account that was let go, of %d in the book", b.Stats().Accounts)
		}
		cancel()
		<-done
	})
}

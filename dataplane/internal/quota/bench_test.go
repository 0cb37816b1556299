package quota_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"bailiwick/dataplane/internal/quota"
)

func TestAccount_TakesWithoutAllocating(t *testing.T) {
	b := busyBook(t)
	unix := time.Now().Unix()
	if n := testing.AllocsPerRun(100, func() {
		a := b.Account(acme, strict)
		a.Offer()
		ticket, d := a.Take(1, true, unix)
		if d != quota.Taken {
			t.Fatal(d)
		}
		ticket.Spend()
	}); n != 0 {
		t.Errorf("got %v allocations a decision, want 0", n)
	}
}

// busyBook holds a large lease.
func busyBook(t testing.TB) *quota.Book {
	b := newBook(t, plenty{}, nil)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); b.Run(ctx) }()
	if _, d := request(ctx, b, strict); d != quota.Taken {
		t.Fatal(d)
	}
	cancel()
	<-done
	return b
}

// plenty leases more than is asked for.
type plenty struct{}

func (plenty) Exchange(_ context.Context, r *quota.Request) (*quota.Response, error) {
	out := &quota.Response{Sequence: r.Sequence, LiveEdges: 1}
	for _, k := range r.Asks {
		out.States = append(out.States, quota.State{ID: k.ID, Period: 1000, Leased: 1 << 50, Limit: 1 << 50, Leases: true})
	}
	return out, nil
}

func BenchmarkAccount_StrictDecision(b *testing.B) {
	book := busyBook(b)
	for i := range 10_000 { // among others
		book.Account(quota.ID{Customer: fmt.Sprint("c", i), Subscription: "main"}, strict)
	}
	unix := time.Now().Unix()
	b.ReportAllocs()
	for b.Loop() {
		a := book.Account(acme, strict)
		ticket, d := a.Take(1, true, unix)
		if d != quota.Taken {
			b.Fatal(d)
		}
		ticket.Spend()
	}
}

func BenchmarkAccount_StrictDecisionParallel(b *testing.B) {
	book := busyBook(b)
	unix := time.Now().Unix()
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			ticket, _ := book.Account(acme, strict).Take(1, true, unix)
			ticket.Spend()
		}
	})
}

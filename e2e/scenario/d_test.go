package scenario_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"bailiwick/e2e/harness"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/proto/gen/bailiwick/admin/v1/adminv1connect"
	"bailiwick/shared/fault"
)

const (
	wantKeys    = 500
	wantRevoked = 100
	keyLag      = time.Second // from the ack, or from the end of the election it fell into
)

// ledgerOfKeys is what the client knows: what was acknowledged, when, and from when it was seen to hold.
type ledgerOfKeys struct {
	mu      sync.Mutex // covers the rest
	acked   []ackedKey
	effects []effect // of creations and revocations at one edge each
	outages []outage // of the leader: from the kill to a new one
	lost    int      // requests that were carried out although nobody learned it
}

type ackedKey struct {
	id, text string
	revoked  time.Time // of the ack of its revocation
}

type effect struct {
	what     string
	ack, saw time.Time
	err      error
}

type outage struct{ from, to time.Time }

// leadersDie: three kills of the leader that every key change needs, while keys are made and revoked.
func leadersDie(t *testing.T, s *harness.Sandbox) {
	book := &ledgerOfKeys{}
	const customer = "initech"
	before := listKeys(t, s, customer)
	var clients []adminv1connect.KeyServiceClient
	for _, url := range s.AdminURLs("emea") {
		clients = append(clients, s.KeyService(url))
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()

	jobs := make(chan int)
	var workers, watchers sync.WaitGroup
	for w := range 4 {
		workers.Go(func() {
			for n := range jobs {
				makeKey(ctx, s, book, clients, (w+n)%len(clients), customer, &watchers)
				if n%(wantKeys/wantRevoked) == 0 {
					revokeOne(ctx, s, book, clients, n%len(clients), &watchers)
				}
			}
		})
	}
	killer := make(chan error, 1)
	go func() { killer <- killLeaders(s, book, 3) }()
	pace := time.NewTicker(50 * time.Millisecond) // so that the kills fall among the creations
	for n := range wantKeys {
		<-pace.C
		jobs <- n
	}
	pace.Stop()
	close(jobs)
	workers.Wait()
	if err := <-killer; err != nil {
		t.Fatal(err)
	}
	for revokeOne(ctx, s, book, clients, 0, &watchers) { // what was not revoked on the way
	}
	watchers.Wait()

	for _, e := range book.effects {
		if e.err != nil {
			t.Errorf("%s: %v", e.what, e.err)
		}
	}
	revoked := 0
	for _, k := range book.acked {
		if !k.revoked.IsZero() {
			revoked++
		}
	}
	if len(book.acked)+book.lost < wantKeys || len(book.acked) < wantKeys*9/10 || revoked != wantRevoked || len(book.outages) != 3 {
		t.Fatalf("%d keys were acknowledged, %d more carried out unheard, %d revoked, %d elections; want %d, %d and 3", len(book.acked), book.lost, revoked, len(book.outages), wantKeys, wantRevoked)
	}
	worst, late := time.Duration(0), 0
	for _, e := range book.effects {
		due := e.ack
		for _, o := range book.outages {
			// Acknowledged while there was no leader, or so shortly before that the news travelled into it.
			if e.ack.After(o.from.Add(-keyLag)) && e.ack.Before(o.to) && o.to.After(due) {
				due = o.to
			}
		}
		switch lag := e.saw.Sub(due); {
		case e.err != nil: // told above
		case lag > keyLag:
			late++
			t.Errorf("%s: held %s after it was due, want at most %s", e.what, lag.Round(time.Millisecond), keyLag)
		default:
			worst = max(worst, lag)
		}
	}
	t.Logf("%d keys, %d revoked, %d effects seen at an edge, the slowest %s after it was due", len(book.acked), revoked, len(book.effects), worst.Round(time.Millisecond))

	s.Settle()
	listed := listKeys(t, s, customer)
	for id, n := range listed {
		if n != 1 {
			t.Errorf("key %s is listed %d times", id, n)
		}
	}
	if grown := len(listed) - len(before); grown < len(book.acked) || grown > len(book.acked)+book.lost {
		t.Errorf("the customer has %d more keys, want the %d acknowledged and at most %d unheard: a request was carried out twice or not at all", grown, len(book.acked), book.lost)
	}
	for _, k := range book.acked {
		if listed[k.id] == 0 {
			t.Errorf("acknowledged key %s is not listed", k.id)
		}
		for _, region := range []string{"eu-west", "eu-central"} {
			a := s.Get(region, k.text)
			err := ok(a)
			if !k.revoked.IsZero() {
				err = refused(a, 401, "key-invalid")
			}
			if err != nil {
				t.Errorf("key %s at %s in the end: %v", k.id, region, err)
			}
		}
	}
}

// attempt calls at one node after another until an answer is final. A request id makes that safe: it is
// carried out once, however often it is sent. lost: it was carried out, but its answer never came.
func attempt[R any](ctx context.Context, clients []adminv1connect.KeyServiceClient, at int, call func(adminv1connect.KeyServiceClient) (R, error)) (answer R, lost bool, err error) {
	unheard := false
	for {
		answer, err = call(clients[at%len(clients)])
		if err == nil || ctx.Err() != nil {
			return answer, false, err
		}
		switch kind, reason := fault.KindOf(err), fault.ReasonOf(err); {
		case reason == "KEY_ALREADY_CREATED" && unheard:
			return answer, true, nil
		case kind == fault.Unavailable:
			unheard = true
			at++
		case reason != "CONCURRENT_CHANGE": // others changed the same customer: nothing was done
			return answer, false, err
		}
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func makeKey(ctx context.Context, s *harness.Sandbox, book *ledgerOfKeys, clients []adminv1connect.KeyServiceClient, at int, customer string, watchers *sync.WaitGroup) {
	request := &adminv1.CreateKeyRequest{Customer: customer, Plan: "unlimited", Zone: "emea", RequestId: rand.Text()}
	answer, lost, err := attempt(ctx, clients, at, func(c adminv1connect.KeyServiceClient) (*adminv1.CreateKeyResponse, error) {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		return c.CreateKey(ctx, request)
	})
	ack := time.Now()
	book.mu.Lock()
	defer book.mu.Unlock()
	switch {
	case err != nil:
		book.effects = append(book.effects, effect{what: "create key", err: err})
	case lost:
		book.lost++
	default:
		book.acked = append(book.acked, ackedKey{id: answer.GetId(), text: answer.GetKey()})
		book.watch(s, watchers, "key "+answer.GetId()+" works", ack, func(a harness.Answer) error { return ok(a) }, answer.GetKey())
	}
}

// revokeOne revokes the oldest key that stands, until enough are; false when there is nothing to do.
func revokeOne(ctx context.Context, s *harness.Sandbox, book *ledgerOfKeys, clients []adminv1connect.KeyServiceClient, at int, watchers *sync.WaitGroup) bool {
	book.mu.Lock()
	revoked := 0
	pick := -1
	for i, k := range book.acked {
		if !k.revoked.IsZero() {
			revoked++
		} else if pick < 0 {
			pick = i
		}
	}
	if pick < 0 || revoked >= wantRevoked {
		book.mu.Unlock()
		return false
	}
	key := book.acked[pick]
	book.acked[pick].revoked = time.Now() // taken; set again at the ack
	book.mu.Unlock()
	request := &adminv1.RevokeKeyRequest{Id: key.id, RequestId: rand.Text()}
	_, _, err := attempt(ctx, clients, at, func(c adminv1connect.KeyServiceClient) (*adminv1.RevokeKeyResponse, error) {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		return c.RevokeKey(ctx, request)
	})
	ack := time.Now()
	book.mu.Lock()
	defer book.mu.Unlock()
	if err != nil {
		book.effects = append(book.effects, effect{what: "revoke key " + key.id, err: err})
		return true
	}
	book.acked[pick].revoked = ack
	book.watch(s, watchers, "key "+key.id+" is refused", ack, func(a harness.Answer) error { return refused(a, 401, "key-invalid") }, key.text)
	return true
}

// watch notes when a change is seen at each emea edge. A key that is revoked before it was seen to work counts
// as seen: the later change is then watched. Called with mu held.
func (b *ledgerOfKeys) watch(s *harness.Sandbox, watchers *sync.WaitGroup, what string, ack time.Time, holds func(harness.Answer) error, key string) {
	for _, region := range []string{"eu-west", "eu-central"} {
		watchers.Go(func() {
			var err error
			for time.Since(ack) < 15*time.Second {
				if err = holds(s.Get(region, key)); err == nil || b.overtaken(key, ack) {
					err = nil
					break
				}
				time.Sleep(10 * time.Millisecond)
			}
			b.mu.Lock()
			defer b.mu.Unlock()
			b.effects = append(b.effects, effect{what: what + " at " + region, ack: ack, saw: time.Now(), err: err})
		})
	}
}

func (b *ledgerOfKeys) overtaken(key string, ack time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	i := slices.IndexFunc(b.acked, func(k ackedKey) bool { return k.text == key })
	return i >= 0 && b.acked[i].revoked.After(ack)
}

// killLeaders kills the leader of the zone store n times, each time waiting for another to lead.
func killLeaders(s *harness.Sandbox, book *ledgerOfKeys, n int) error {
	for range n {
		time.Sleep(4 * time.Second)
		var old string
		for begun := time.Now(); old == ""; old = s.Leaders()["store/emea"] {
			if time.Since(begun) > 20*time.Second {
				return errors.New("store/emea has no leader to kill")
			}
			time.Sleep(20 * time.Millisecond)
		}
		from := time.Now()
		if err := s.Try("kill", old); err != nil {
			return err
		}
		for {
			// As an operator hears of it: edges that were with the dead node find another one in about that time.
			if now := s.LeadersTold()["store/emea"]; now != "" && now != old {
				break
			}
			if time.Since(from) > 20*time.Second {
				return fmt.Errorf("no new leader 20 s after %s was killed", old)
			}
			time.Sleep(20 * time.Millisecond)
		}
		book.mu.Lock()
		book.outages = append(book.outages, outage{from, time.Now()})
		book.mu.Unlock()
		if err := s.Try("start", old); err != nil {
			return err
		}
	}
	return nil
}

// listKeys counts a customer's keys by id.
func listKeys(t *testing.T, s *harness.Sandbox, customer string) map[string]int {
	t.Helper()
	answer, err := s.KeyService(s.AdminURLs("emea")[0]).ListKeys(context.Background(), &adminv1.ListKeysRequest{Customer: customer})
	if err != nil {
		t.Fatalf("list keys of %s: %v", customer, err)
	}
	out := map[string]int{}
	for _, k := range answer.GetKeys() {
		out[k.GetId()]++
	}
	return out
}

package subscribe_test

import (
	"fmt"
	"slices"
	"sync"
	"testing"

	"bailiwick/dataplane/internal/policy"
	"bailiwick/dataplane/internal/subscribe"
	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"
	"bailiwick/shared/table"
)

// A process whose place was taken goes by the tables of the one that took it, and hands them on to one before it; the disk is not its
// own any more.
func TestTake_FollowsTheProcessThatTookThePlace(t *testing.T) {
	src, n, fs := newSource(t), newNode(t), memory(t)
	var on []*syncv1.Signed
	a := run(t, src, n, fs, func(c *subscribe.Config) { c.Updated = func(parts []*syncv1.Signed) { on = append(on, parts...) } })
	s := n.next()
	s.recv()
	s.send(src.snapshot())
	s.ack(src)
	a.stop()
	on = nil

	var mu sync.Mutex
	var updates []*syncv1.Signed
	b := run(t, src, n, fs, func(c *subscribe.Config) {
		c.Updated = func(parts []*syncv1.Signed) { mu.Lock(); defer mu.Unlock(); updates = append(updates, parts...) }
	})
	s = n.next()
	s.recv()
	s.send(src.delta([]table.Object{src.key("k2", "gold")}))
	s.ack(src)
	s.send(src.delta(nil, keyOf("k1")))
	s.ack(src)
	s.send(src.parts(3)...)
	s.ack(src)
	s.send(src.delta([]table.Object{src.key("k3", "gold")}))
	s.ack(src)
	b.stop()
	mu.Lock()
	defer mu.Unlock()
	if len(updates) != 6 {
		t.Fatalf("%d parts were handed on, want two deltas, a snapshot of three, and a delta", len(updates))
	}
	for _, u := range updates {
		if err := a.client.Take(u); err != nil {
			t.Fatal(err)
		}
	}
	if tab := a.holder.Load(); !at(tab, src) || tab.Key("k1") != nil || tab.Key("k2") == nil || tab.Key("k3") == nil {
		t.Errorf("it goes by %s, want %s", tab.Zone(), src.zon)
	}
	if !slices.Equal(on, updates) {
		t.Errorf("%d of %d parts were handed on further", len(on), len(updates))
	}
	if err := a.client.Take(updates[5]); err != nil {
		t.Errorf("what it has already: %v", err)
	}
	if err := a.client.Take(updates[2]); err != nil {
		t.Errorf("an old snapshot's first part: %v", err)
	}
	forged := &syncv1.Signed{Payload: updates[0].Payload, Signature: updates[1].Signature, Hashed: true}
	if err := a.client.Take(forged); err == nil {
		t.Error("what the zone has not signed is taken")
	}
	if tab := a.holder.Load(); !at(tab, src) {
		t.Errorf("then it goes by %s, want %s as before", tab.Zone(), src.zon)
	}
}

// What does not follow from what is held is said: the table would be out of date for good.
func TestTake_AGapIsSaid(t *testing.T) {
	src, n, fs := newSource(t), newNode(t), memory(t)
	a := run(t, src, n, fs, nil)
	s := n.next()
	s.recv()
	s.send(src.snapshot())
	s.ack(src)
	a.stop()
	src.delta([]table.Object{src.key("k2", "gold")}) // lost
	if err := a.client.Take(src.delta([]table.Object{src.key("k3", "gold")})); err == nil {
		t.Error("an update that does not follow is taken, or passed over")
	}
	if tab := a.holder.Load(); tab.Key("k3") != nil {
		t.Error("it is in force")
	}
}

// Whoever is told that a table has been taken may say that it is obeyed: what it forbids has ended, here and in processes before, which
// have it by then.
func TestTake_EndsWhatIsForbiddenBeforeItReturns(t *testing.T) {
	src, n, fs := newSource(t), newNode(t), memory(t)
	var holder *policy.Holder
	var did []string
	a := run(t, src, n, fs, func(c *subscribe.Config) {
		holder = c.Holder
		does := func(what string) {
			if !at(holder.Load(), src) {
				what += " too early"
			}
			did = append(did, what)
		}
		c.Updated = func([]*syncv1.Signed) { does("handed on") }
		c.Enforce = func() { does("enforced") }
	})
	s := n.next()
	s.recv()
	s.send(src.snapshot())
	s.ack(src)
	a.stop()
	did = nil
	delta := src.delta([]table.Object{src.key("k2", "gold")})
	if err := a.client.Take(delta); err != nil || fmt.Sprint(did) != "[handed on enforced]" {
		t.Errorf("a table is taken: %v, and it was %v", err, did)
	}
	if err := a.client.Take(delta); err != nil || len(did) != 2 {
		t.Errorf("what it has already: %v, and it was %v", err, did)
	}
	did = nil
	parts := src.parts(3)
	for i, part := range parts {
		if err := a.client.Take(part); err != nil || i < 2 && len(did) != 0 {
			t.Errorf("part %d: %v, and it was %v", i, err, did)
		}
	}
	if fmt.Sprint(did) != "[handed on enforced]" {
		t.Errorf("a table in three parts was %v", did)
	}
}

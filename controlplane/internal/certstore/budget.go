package certstore

import (
	"bytes"
	"context"
	"slices"
	"time"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
	joinv1 "bailiwick/proto/gen/bailiwick/join/v1"
	"bailiwick/shared/fault"
	"bailiwick/shared/identity/shelf"
)

// Budget is what the edges of a zone together ask of a public authority. The
// defaults are below what the authorities in use grant: an edge of its own mind
// would use up for all of them what is counted by host and account.
type Budget struct {
	Tries     int // validations of a host that fail, within TriesIn
	TriesIn   time.Duration
	Issued    int // first certificates of a host, within IssuedIn
	IssuedIn  time.Duration
	Renewed   int // renewals of a host, within RenewedIn: a stop for what goes round in circles
	RenewedIn time.Duration
	Unmade    int // orders of a host, within TriesIn, that are said not to have reached the authority; more cost as if they had failed
	Zone      int // orders of all hosts, within ZoneIn
	ZoneIn    time.Duration

	FirstWait time.Duration // after an order that failed; doubled by each further one, up to LastWait
	LastWait  time.Duration
}

// DefaultBudget is: 5 failed validations an hour, 5 first certificates a week and
// 24 renewals a day of one host, 60 orders an hour that never reached the authority, 250 orders in three hours of the zone; after a
// failure one minute, doubled up to an hour.
func DefaultBudget() Budget {
	return Budget{Tries: 5, TriesIn: time.Hour, Issued: 5, IssuedIn: 7 * 24 * time.Hour, Renewed: 24, RenewedIn: 24 * time.Hour, Unmade: 60,
		Zone: 250, ZoneIn: 3 * time.Hour, FirstWait: time.Minute, LastWait: time.Hour}
}

// history is what a host's certificate has cost so far.
type history struct {
	Failed  []time.Time `json:"failed,omitempty"` // one for each validation
	Issued  []time.Time `json:"issued,omitempty"`
	Renewed []time.Time `json:"renewed,omitempty"`
	Unmade  []time.Time `json:"unmade,omitempty"`
	Row     int         `json:"row,omitempty"`  // orders that failed one after another
	Wait    time.Time   `json:"wait,omitzero"`  // of the latest of them
	Open    *open       `json:"open,omitempty"` // the order that nobody has told the end of; counted as failed
}

type open struct {
	At      time.Time `json:"at"`
	Tries   int       `json:"tries"`
	Renewal bool      `json:"renewal,omitempty"`
	Fence   uint64    `json:"fence"` // of the lease it was asked under: there is one order to a lease
}

// since are the times that still count.
func since(times []time.Time, now time.Time, window time.Duration) []time.Time {
	return slices.DeleteFunc(times, func(t time.Time) bool { return !t.After(now.Add(-window)) })
}

// room is when n more fit into limit, given what counts now; zero if they do now.
func room(times []time.Time, n, limit int, window time.Duration) time.Time {
	if over := len(times) + n - limit; over > 0 && len(times) > 0 {
		return times[min(over, len(times))-1].Add(window)
	}
	return time.Time{}
}

// ask opens an order, or tells when it may be asked again.
func (h *history) ask(b Budget, now time.Time, fence uint64, tries int, renewal bool) (next time.Time) {
	h.close() // its edge is gone: what it has cost stays counted, but the next need not wait longer for it
	h.Failed, h.Issued, h.Renewed = since(h.Failed, now, b.TriesIn), since(h.Issued, now, b.IssuedIn), since(h.Renewed, now, b.RenewedIn)
	made := room(h.Issued, 1, b.Issued, b.IssuedIn)
	if renewal {
		made = room(h.Renewed, 1, b.Renewed, b.RenewedIn)
	}
	for _, t := range []time.Time{h.Wait, room(h.Failed, tries, b.Tries, b.TriesIn), made} {
		if t.After(next) {
			next = t
		}
	}
	if next.After(now) {
		return next
	}
	h.Open = &open{now, tries, renewal, fence}
	return time.Time{}
}

// close counts an open order as failed.
func (h *history) close() {
	if h.Open != nil {
		for range h.Open.Tries {
			h.Failed = append(h.Failed, h.Open.At)
		}
		h.Open = nil
	}
}

// settle says what became of the open order, and when the next may be made.
func (h *history) settle(b Budget, now time.Time, outcome joinv1.OrderOutcome) (next time.Time) {
	if h.Open == nil {
		return h.Wait
	}
	switch outcome {
	case joinv1.OrderOutcome_ORDER_OUTCOME_ISSUED:
		if h.Open.Renewal {
			h.Renewed = append(h.Renewed, now)
		} else {
			h.Issued = append(h.Issued, now)
		}
		h.Open, h.Row, h.Wait = nil, 0, time.Time{}
	default:
		// An edge's word that the authority was never asked costs nothing, or an authority that is away would use up the
		// host; but not without end, or one edge that goes round in circles takes the budget away from all.
		if h.Unmade = since(h.Unmade, now, b.TriesIn); outcome == joinv1.OrderOutcome_ORDER_OUTCOME_NOT_MADE && len(h.Unmade) < b.Unmade {
			h.Unmade, h.Open = append(h.Unmade, now), nil
			break
		}
		tries := h.Open.Tries
		h.close()
		h.Row++
		h.Wait = now.Add(min(b.FirstWait<<min(h.Row-1, 20), b.LastWait))
		next = room(since(h.Failed, now, b.TriesIn), tries, b.Tries, b.TriesIn)
		if h.Wait.After(next) {
			next = h.Wait
		}
	}
	return next
}

// slots count the zone's orders, by tenths of the window.
type slots map[int64]int

func (s slots) ask(b Budget, now time.Time) (next time.Time) {
	wide := max(b.ZoneIn/10, time.Second)
	slot, total, first := now.UnixNano()/int64(wide), 0, int64(0)
	for k, n := range s {
		if k <= slot-10 {
			delete(s, k)
			continue
		}
		if total += n; first == 0 || k < first {
			first = k
		}
	}
	if total >= b.Zone {
		return time.Unix(0, (first+10)*int64(wide))
	}
	s[slot]++
	return time.Time{}
}

func decodeOr[T any](kv group.KV, ok bool, zero T) (T, error) {
	if !ok {
		return zero, nil
	}
	return model.Decode[T](model.PrefixOrder, kv.Value)
}

// zoneOrders has no host's name.
const zoneOrders = model.PrefixOrder + "*"

// Order gives leave to order a certificate of a host, to who holds the lock of
// its issue, or tells when to ask again.
func (s *Service) Order(ctx context.Context, req *joinv1.OrderRequest) (*joinv1.OrderResponse, error) {
	if err := s.orderRequest(ctx, req.GetHost(), req.GetLease()); err != nil {
		return nil, err
	}
	if req.GetTries() < 1 || int(req.GetTries()) > s.budget.Tries {
		return nil, fault.New(fault.Invalid, ReasonLock, "tries is not between 1 and %d", s.budget.Tries).At("tries")
	}
	var resp *joinv1.OrderResponse
	err := s.count(ctx, req.GetHost(), req.GetLease(), func(h *history, zone slots, now time.Time) {
		if h.Open != nil && h.Open.Fence == req.GetLease().GetFence() {
			resp = &joinv1.OrderResponse{Granted: true} // asked again because an answer was lost
			return
		}
		next := h.ask(s.budget, now, req.GetLease().GetFence(), int(req.GetTries()), req.GetRenewal())
		if next.IsZero() {
			if next = zone.ask(s.budget, now); !next.IsZero() {
				h.Open = nil // what it would have cost was never spent
			}
		}
		resp = &joinv1.OrderResponse{Granted: next.IsZero(), RetryAfterMs: after(next, now)}
	})
	return resp, err
}

// Ordered tells what became of the order.
func (s *Service) Ordered(ctx context.Context, req *joinv1.OrderedRequest) (*joinv1.OrderedResponse, error) {
	if err := s.orderRequest(ctx, req.GetHost(), req.GetLease()); err != nil {
		return nil, err
	}
	var resp *joinv1.OrderedResponse
	err := s.count(ctx, req.GetHost(), req.GetLease(), func(h *history, _ slots, now time.Time) {
		resp = &joinv1.OrderedResponse{RetryAfterMs: after(h.settle(s.budget, now, req.GetOutcome()), now)}
	})
	return resp, err
}

func after(t, now time.Time) int64 { return max(t.Sub(now).Milliseconds(), 0) }

func (s *Service) orderRequest(ctx context.Context, host string, lease *joinv1.Lease) error {
	if err := s.edge(ctx); err != nil {
		return err
	}
	if host == "" || lease.GetName() != shelf.IssueLock(host) {
		return fault.New(fault.Invalid, ReasonUnguarded, "an order is made under the lock of the host's issue; the lease is of %q", lease.GetName()).At("lease")
	}
	return nil
}

// count changes what is counted of a host and of the zone, in the leader's time
// and while lease holds.
func (s *Service) count(ctx context.Context, host string, lease *joinv1.Lease, change func(*history, slots, time.Time)) error {
	key := model.PrefixOrder + host
	for range underway {
		held, err := s.leased(ctx, lease)
		if err != nil {
			return err
		}
		now, err := s.store.Txn(ctx, group.Txn{Compares: []group.Compare{held}})
		if err != nil {
			return err
		}
		snap, err := s.store.Sync(ctx)
		if err != nil {
			return err
		}
		hkv, hok := snap.Get(key)
		h, err := decodeOr(hkv, hok, history{})
		if err != nil {
			return err
		}
		zkv, zok := snap.Get(zoneOrders)
		zone, err := decodeOr(zkv, zok, slots{})
		if err != nil {
			return err
		}
		was := [2][]byte{model.Encode(h), model.Encode(zone)}
		change(&h, zone, now.Time.UTC())
		t := group.Txn{Compares: []group.Compare{held}}
		for i, c := range []struct {
			key   string
			index uint64
			value []byte
		}{{key, hkv.ModIndex, model.Encode(h)}, {zoneOrders, zkv.ModIndex, model.Encode(zone)}} {
			if !bytes.Equal(was[i], c.value) {
				t.Compares = append(t.Compares, group.Compare{Key: c.key, ModIndex: c.index})
				t.Ops = append(t.Ops, group.Op{Key: c.key, Value: c.value})
			}
		}
		if len(t.Ops) == 0 {
			return nil // refused as before: that need not be written again
		}
		res, err := s.store.Txn(ctx, t)
		if err != nil || res.Succeeded {
			return err
		}
	}
	return fault.New(fault.Unavailable, ReasonBusy, "too many orders at once; ask again")
}

package dataplane

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"bailiwick/dataplane/internal/evidence"
	"bailiwick/dataplane/internal/linger"
	"bailiwick/dataplane/internal/policy"
	"bailiwick/regions/grant"
)

const (
	lookEvery = 250 * time.Millisecond // whether earlier runs have ended
	twinTime  = 2 * time.Second        // the zone may take the process before this one for another machine; then its relays are cut
	maxCounts = 64                     // kinds of refusals, and pairs cut, that wait to be told to the process that serves; further ones are dropped
)

// borrowed is what relays go by in a process whose place was taken: first what it was granted itself, which this run of the edge
// holds for as long as it stays; then what the process that serves lends it.
type borrowed struct {
	mu    sync.Mutex // covers the rest
	stays func()     // ends the run; nil: it does not stay
	since time.Time  // when something was first lent; zero: nothing was yet
	ended bool       // all are cut
}

// rules notices when those of the table change.
type rules struct {
	mu   sync.Mutex // covers mark
	mark policy.Mark
}

func (r *rules) changed(mark policy.Mark) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mark == mark {
		return false
	}
	r.mark = mark
	return true
}

func (e *Edge) position() grant.At {
	t := e.tables.Load()
	return grant.At{Catalog: t.Catalog(), Store: t.Zone()}
}

// tighten returns when processes before this one relay nothing that the table in force forbids. Its keys alone change often, and forbid
// no pair.
func (e *Edge) tighten() {
	if k := e.before.keeper; k != nil && e.rules.changed(e.tables.Load().Mark()) {
		k.Tighten(e.position())
	}
}

// bury says of earlier runs of this edge that they have ended once they have, so that the zone gives back what they held.
func (e *Edge) bury(ctx context.Context) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for e.run.Stays() {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if e.run.Look() {
			e.grants.Again()
		}
	}
	<-ctx.Done()
	return nil
}

// lend is what the process before this one may relay by.
func (e *Edge) lend(now time.Time) (grant.Lent, bool) {
	if e.before.forsaken.Load() {
		return grant.Lent{}, true
	}
	l, ok := e.grants.Lend(now, linger.LentTime)
	if ok && e.tables.Load() == nil { // the edge was withdrawn, which is no table that could be handed on
		l = grant.Lent{}
	}
	return l, ok
}

// twin is asked when the zone gives this process nothing since it takes an earlier one for a machine that runs on. It hears soon that that
// one has left it; if it does not, relays there end, and the zone is told that the run is over.
func (e *Edge) twin() (again bool) {
	if !e.run.Stays() {
		return false
	}
	now := time.Now()
	if now.Sub(e.before.twinLast) > twinTime { // not again and again, since then
		e.before.twinFirst = now
	}
	if e.before.twinLast = now; now.Sub(e.before.twinFirst) > twinTime {
		e.before.forsaken.Store(true)
	}
	return true
}

// stay keeps this run of the edge from being over while relays go on that rest on it.
func (e *Edge) stay() error {
	over, err := e.run.Stay()
	if err != nil {
		return err
	}
	e.borrowed.mu.Lock()
	defer e.borrowed.mu.Unlock()
	e.borrowed.stays = over
	return nil
}

// crossing is how many relays are under way, here and in processes before.
func (e *Edge) crossing() (out, in int) {
	beforeOut, beforeIn, _ := e.before.relays()
	return e.relays.InFlight() + beforeOut, e.inbound.InFlight() + beforeIn
}

// relaying is crossing for who must not miss one: a process that has not said has one.
func (e *Edge) relaying() (out, in int) {
	e.borrowed.mu.Lock()
	ended := e.borrowed.ended
	e.borrowed.mu.Unlock()
	if !ended {
		out, in = e.relays.InFlight(), e.inbound.InFlight()
	}
	beforeOut, beforeIn, known := e.before.relays()
	if !known {
		beforeOut = 1
	}
	return out + beforeOut, in + beforeIn
}

// staying says whether anything may rest on this run still, and ends it if not: relays that are under way, here or behind this
// process, are all by what was lent by the process that serves, for longer than what was lent to those behind before.
func (e *Edge) staying() bool {
	out, in := e.relaying()
	e.borrowed.mu.Lock()
	defer e.borrowed.mu.Unlock()
	if e.borrowed.stays == nil {
		return false
	}
	if linger.Rests(out+in, e.borrowed.since, e.before.processes(), time.Now()) {
		return true
	}
	e.borrowed.stays()
	e.borrowed.stays = nil
	return false
}

// heed is what the process that serves is told of relays here.
func (e *Edge) heed() linger.Heed {
	e.staying()
	out, in := e.relaying()
	cuts, refused := e.records.take()
	return linger.Heed{Out: out, In: in, Cuts: slices.Concat(cuts, e.relays.CutPairs(), e.inbound.CutPairs()), Refused: refused}
}

// borrow takes what relays go by from here on.
func (e *Edge) borrow(l grant.Lent, asked time.Time) {
	e.goBy(l.Held(asked))
	e.borrowed.mu.Lock()
	defer e.borrowed.mu.Unlock()
	if e.borrowed.since.IsZero() {
		e.borrowed.since = time.Now()
	}
}

// endRelays cuts all.
func (e *Edge) endRelays() {
	e.goBy(&grant.Held{})
	e.borrowed.mu.Lock()
	defer e.borrowed.mu.Unlock()
	e.borrowed.ended = true
}

// goBy has relays go by it, and cuts the others.
func (e *Edge) goBy(h *grant.Held) {
	e.grants.Borrow(h)
	e.relays.Enforce()
	e.inbound.Enforce()
}

// toldOf takes what the process before this one says of its relays.
func (e *Edge) toldOf(h linger.Heed) {
	for _, r := range h.Refused {
		for range min(r.Count, maxCounts) {
			e.records.Refuse(r.Rule, r.From, r.To, r.Sample)
		}
	}
	e.records.cut(h.Cuts)
}

// records is the way to the evidence, whose owner is the process that serves: refusals that come when this one is not any more are kept
// for that one, to be told with Edge.heed. The zero value but for log is ready; its methods may be called at once.
type records struct {
	log *evidence.Log

	mu      sync.Mutex // covers the rest
	closed  bool
	refused map[linger.Refusal]linger.Refusal // by rule and pair alone
	cuts    map[string]struct{}               // in processes before this one
}

var errRecordsClosed = errors.New("record a relay: another process has taken this one's place")

// Relay records that a request is about to leave; not once another process has the evidence.
func (r *records) Relay(requestID, grantID, from, to string) error {
	r.mu.Lock()
	closed := r.closed
	r.mu.Unlock()
	if closed {
		return errRecordsClosed
	}
	return r.log.Relay(requestID, grantID, from, to)
}

// Refuse counts a refusal.
func (r *records) Refuse(rule, from, to, requestID string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.closed {
		r.log.Refuse(rule, from, to, requestID)
		return
	}
	key := linger.Refusal{Rule: rule, From: from, To: to}
	n, known := r.refused[key]
	if !known && len(r.refused) >= maxCounts {
		return
	}
	if r.refused == nil {
		r.refused = map[linger.Refusal]linger.Refusal{}
	}
	r.refused[key] = linger.Refusal{Rule: rule, From: from, To: to, Sample: requestID, Count: n.Count + 1}
}

func (r *records) cut(pairs []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range pairs {
		if r.cuts == nil {
			r.cuts = map[string]struct{}{}
		}
		if len(r.cuts) < maxCounts {
			r.cuts[p] = struct{}{}
		}
	}
}

// close has what comes be kept.
func (r *records) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
}

// takeCuts are the pairs that were cut since the last time.
func (r *records) takeCuts() (cuts []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	cuts = slices.Sorted(maps.Keys(r.cuts))
	r.cuts = nil
	return cuts
}

// take is what was kept since the last time.
func (r *records) take() (cuts []string, refused []linger.Refusal) {
	cuts = r.takeCuts()
	r.mu.Lock()
	defer r.mu.Unlock()
	refused = slices.SortedFunc(maps.Values(r.refused), func(x, y linger.Refusal) int {
		return cmp.Or(cmp.Compare(x.Rule, y.Rule), cmp.Compare(x.From, y.From), cmp.Compare(x.To, y.To))
	})
	r.refused = nil
	return cuts, refused
}

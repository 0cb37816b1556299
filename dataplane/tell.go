package dataplane

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"bailiwick/dataplane/internal/evidence"
	"bailiwick/dataplane/internal/relay"
	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"
)

// refusalsAtOnce bounds the entries of one request; what is left waits.
const refusalsAtOnce = 64

// toldRefusals is what the zone knows of the counts of refusals, which live as long as the process: those since the
// last answer are lost with it.
type toldRefusals struct {
	mu   sync.Mutex // covers last
	last map[relay.Refusal]int64
}

// tell adds to a request for grants what the zone does not know yet of relays and refusals.
func (e *Edge) tell(req *syncv1.RequestGrantsRequest) ([]evidence.Minute, map[relay.Refusal]int64) {
	now := time.Now()
	minutes := e.evidence.Untold(now)
	for _, m := range minutes {
		req.Relays = append(req.Relays, &syncv1.RelayMinute{Epoch: m.Epoch, Seq: m.Seq, Minute: m.Start, Grant: m.Grant, From: m.From, To: m.To,
			Count: m.Count, Prev: m.Prev, Digest: m.Digest})
	}
	counts := e.relays.Refusals()
	for r, n := range e.inbound.Refusals() {
		counts[r] += n
	}
	var fresh []relay.Refusal
	e.refused.mu.Lock()
	for r, n := range counts {
		if counts[r] = n - e.refused.last[r]; counts[r] > 0 {
			fresh = append(fresh, r)
		}
	}
	e.refused.mu.Unlock()
	slices.SortFunc(fresh, func(a, b relay.Refusal) int {
		return cmp.Or(cmp.Compare(a.Rule, b.Rule), cmp.Compare(a.From, b.From), cmp.Compare(a.To, b.To))
	})
	told := map[relay.Refusal]int64{}
	for _, r := range fresh[:min(len(fresh), refusalsAtOnce)] {
		told[r] = counts[r]
		req.Refusals = append(req.Refusals, &syncv1.RefusalMinute{Minute: now.Truncate(time.Minute).Unix(), Rule: r.Rule, From: r.From, To: r.To, Count: counts[r]})
	}
	return minutes, told
}

// untold says whether there is anything to tell.
func (e *Edge) untold() bool {
	var req syncv1.RequestGrantsRequest
	e.tell(&req)
	return len(req.Relays)+len(req.Refusals) > 0
}

// told takes note that the zone has it in its log. A relay that cannot be marked as told is told again.
func (e *Edge) told(minutes []evidence.Minute, refusals map[relay.Refusal]int64) {
	if err := e.evidence.Told(minutes); err != nil {
		e.log.Warn("relays that were told cannot be marked so", "error", err)
	}
	e.refused.mu.Lock()
	defer e.refused.mu.Unlock()
	if e.refused.last == nil {
		e.refused.last = map[relay.Refusal]int64{}
	}
	for r, n := range refusals {
		e.refused.last[r] += n
	}
}

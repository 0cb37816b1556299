package dataplane

import (
	"context"
	"slices"
	"sync"
	"time"

	"bailiwick/dataplane/internal/evidence"
	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"

	"google.golang.org/protobuf/proto"
)

// toldCounts is what the zone knows of this process's sentinel.
type toldCounts struct {
	mu   sync.Mutex // covers last
	last *syncv1.SentinelCount
}

// changed is what it does not know yet; nil: nothing.
func (t *toldCounts) changed(now *syncv1.SentinelCount) *syncv1.SentinelCount {
	t.mu.Lock()
	defer t.mu.Unlock()
	if proto.Equal(t.last, now) {
		return nil
	}
	return now
}

func (t *toldCounts) told(c *syncv1.SentinelCount) {
	if c != nil {
		t.mu.Lock()
		t.last = c
		t.mu.Unlock()
	}
}

func (e *Edge) sentinelCount() *syncv1.SentinelCount {
	return &syncv1.SentinelCount{Began: e.began.UnixMilli(), Violations: e.sentinel.Violations(), Late: e.sentinel.Late()}
}

// tell adds to a request for grants what the zone does not know yet of relays, refusals and the sentinel.
func (e *Edge) tell(req *syncv1.RequestGrantsRequest) ([]evidence.Minute, []evidence.Refused) {
	now := time.Now()
	req.Sentinel = e.stopped.changed(e.sentinelCount())
	minutes, refused := e.evidence.Untold(now), e.evidence.Refused(now)
	for _, m := range minutes {
		req.Relays = append(req.Relays, minuteProto(m))
	}
	for _, r := range refused {
		req.Refusals = append(req.Refusals, &syncv1.RefusalMinute{Minute: r.Start, Rule: r.Rule, From: r.From, To: r.To, Count: r.Count, Sample: r.Sample})
	}
	return minutes, refused
}

func minuteProto(m evidence.Minute) *syncv1.RelayMinute {
	return &syncv1.RelayMinute{Epoch: m.Epoch, Seq: m.Seq, Minute: m.Start, Grant: m.Grant, From: m.From, To: m.To, Count: m.Count, Prev: m.Prev, Digest: m.Digest}
}

// untold says whether there is anything to tell.
func (e *Edge) untold() bool {
	now := time.Now()
	return len(e.evidence.Untold(now)) > 0 || len(e.evidence.Refused(now)) > 0 || e.stopped.changed(e.sentinelCount()) != nil
}

// told takes note that the zone has it in its log. What cannot be marked as told is told again.
func (e *Edge) told(minutes []evidence.Minute, refused []evidence.Refused, stopped *syncv1.SentinelCount) {
	e.stopped.told(stopped)
	if err := e.evidence.Told(minutes); err != nil {
		e.log.Warn("relays that were told cannot be marked so", "error", err)
	}
	e.evidence.ToldRefused(refused)
}

// rowsAtOnce bounds a message of rows: a control node reads no more than a megabyte.
const rowsAtOnce = 2000

// rows hands out what the digests in the zone's log cover.
func (e *Edge) rows(ctx context.Context, wanted *syncv1.RowsWanted, tell func(*syncv1.TellRowsRequest) error) error {
	return e.evidence.Rows(ctx, time.Unix(wanted.GetFrom(), 0), time.Unix(wanted.GetTo(), 0), func(m evidence.Minute, rows [][]byte) error {
		if len(rows) == 0 {
			return tell(&syncv1.TellRowsRequest{Entry: minuteProto(m)})
		}
		left := len(rows)
		for part := range slices.Chunk(rows, rowsAtOnce) {
			left -= len(part)
			if err := tell(&syncv1.TellRowsRequest{Entry: minuteProto(m), Rows: part, More: left > 0}); err != nil {
				return err
			}
		}
		return nil
	})
}

package border

import (
	"time"

	"bailiwick/controlplane/internal/model"
	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"
	"bailiwick/shared/fault"
)

// Limits of what an edge may tell in one request; what is left comes with the next.
const (
	maxRelays   = 256
	maxRefusals = 64
	maxText     = 128
)

// told reads what an edge says of its relays and refusals. It goes into the record of its grants, and so into the
// zone's Merkle log; whether it fits what was granted is for those who read that.
func told(req *syncv1.RequestGrantsRequest) (relays []model.RelayMinute, refusals []model.RefusalMinute, err error) {
	bad := func(what string) error {
		return fault.New(fault.Invalid, "RELAYS_MALFORMED", "the edge's word on its relays: %s", what)
	}
	if len(req.GetRelays()) > maxRelays || len(req.GetRefusals()) > maxRefusals {
		return nil, nil, bad("more entries than one request may have")
	}
	for _, m := range req.GetRelays() {
		if len(m.GetDigest()) != 32 || len(m.GetPrev()) != 0 && len(m.GetPrev()) != 32 || m.GetCount() <= 0 || m.GetSeq() == 0 ||
			max(len(m.GetGrant()), len(m.GetFrom()), len(m.GetTo())) > maxText {
			return nil, nil, bad("an entry without count, number or digest, or with a text that is too long")
		}
		relays = append(relays, model.RelayMinute{Epoch: m.GetEpoch(), Seq: m.GetSeq(), Minute: time.Unix(m.GetMinute(), 0).UTC(), Grant: m.GetGrant(),
			From: m.GetFrom(), To: m.GetTo(), Count: m.GetCount(), Prev: m.GetPrev(), Digest: m.GetDigest()})
	}
	for _, m := range req.GetRefusals() {
		if m.GetCount() <= 0 || max(len(m.GetRule()), len(m.GetFrom()), len(m.GetTo()), len(m.GetSample())) > maxText {
			return nil, nil, bad("a refusal without count, or with a text that is too long")
		}
		refusals = append(refusals, model.RefusalMinute{Minute: time.Unix(m.GetMinute(), 0).UTC(), Rule: m.GetRule(), From: m.GetFrom(), To: m.GetTo(), Count: m.GetCount(), Sample: m.GetSample()})
	}
	return relays, refusals, nil
}

// sentinel reads what an edge's second opinion has stopped; nil: it says nothing new.
func sentinel(c *syncv1.SentinelCount) *model.SentinelCount {
	if c == nil {
		return nil
	}
	return &model.SentinelCount{Began: c.GetBegan(), Violations: max(0, c.GetViolations()), Late: max(0, c.GetLate())}
}

package dataplane

import (
	"bailiwick/dataplane/internal/observe"
	"bailiwick/dataplane/internal/policy"
	"bailiwick/dataplane/internal/ship"
	"bailiwick/dataplane/internal/witness"
	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"
	"bailiwick/shared/checkpoint"
	"bailiwick/shared/fault"
)

// What is wrong with this edge goes to its control plane as values of closed lists and numbers (invariant 19): words of an
// error may have come from anywhere, a request included. They stand in this edge's log and readyz?verbose.

func usageTrouble(r ship.Refusal, stuck bool) *syncv1.UsageTrouble {
	if !stuck {
		return nil
	}
	why, known := syncv1.UsageRefusal_value["USAGE_REFUSAL_"+r.Reason]
	if !known || why == 0 {
		why = int32(syncv1.UsageRefusal_USAGE_REFUSAL_OTHER)
	}
	return &syncv1.UsageTrouble{Why: syncv1.UsageRefusal(why), Epoch: r.Epoch, Final: r.Final}
}

func checkpointRefusal(err error) syncv1.CheckpointRefusal {
	if err == nil {
		return syncv1.CheckpointRefusal_CHECKPOINT_REFUSAL_UNSPECIFIED
	}
	switch fault.ReasonOf(err) {
	case checkpoint.ReasonInvalid:
		return syncv1.CheckpointRefusal_CHECKPOINT_REFUSAL_INVALID
	case checkpoint.ReasonInconsistent:
		return syncv1.CheckpointRefusal_CHECKPOINT_REFUSAL_INCONSISTENT
	case witness.ReasonProof:
		return syncv1.CheckpointRefusal_CHECKPOINT_REFUSAL_PROOF
	}
	return syncv1.CheckpointRefusal_CHECKPOINT_REFUSAL_OTHER
}

func verdictReason(v observe.Verdict) syncv1.VerdictReason {
	switch {
	case !v.Dead:
		return syncv1.VerdictReason_VERDICT_REASON_UNSPECIFIED
	case v.Why.By != "":
		return syncv1.VerdictReason_VERDICT_REASON_TOLD
	case v.Why.Of > 0:
		return syncv1.VerdictReason_VERDICT_REASON_NOT_REACHED
	}
	return syncv1.VerdictReason_VERDICT_REASON_OTHER
}

// maxQuarantined is how many objects a status names at most; how many there are it says all the same.
const maxQuarantined = 32

func quarantined(list []policy.Quarantined) (out []*syncv1.Quarantined) {
	for _, q := range list[:min(len(list), maxQuarantined)] {
		out = append(out, &syncv1.Quarantined{Kind: uint32(q.Key.Kind), Id: q.Key.ID, Reason: quarantineReason(q.Reason), Kept: q.Kept})
	}
	return out
}

func quarantineReason(r policy.Reason) syncv1.QuarantineReason {
	if v, known := syncv1.QuarantineReason_value["QUARANTINE_REASON_"+string(r)]; known && v != 0 {
		return syncv1.QuarantineReason(v)
	}
	return syncv1.QuarantineReason_QUARANTINE_REASON_OTHER
}

package adminapi

import (
	"fmt"

	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"
	"bailiwick/shared/table"
)

// An edge says what is wrong with it by values of closed lists; these are their words for people.

var refusalWords = map[syncv1.UsageRefusal]string{
	syncv1.UsageRefusal_USAGE_REFUSAL_WRONG_CHAIN:      "a block does not follow the one before it",
	syncv1.UsageRefusal_USAGE_REFUSAL_GAP:              "blocks are missing",
	syncv1.UsageRefusal_USAGE_REFUSAL_FOREIGN_CUSTOMER: "a row is of a customer that the zone does not know",
	syncv1.UsageRefusal_USAGE_REFUSAL_FOREIGN_REGION:   "a row is of a region that the zone does not know",
	syncv1.UsageRefusal_USAGE_REFUSAL_FOREIGN_API:      "a row is of an API that the zone does not know",
	syncv1.UsageRefusal_USAGE_REFUSAL_MALFORMED:        "a block does not read",
	syncv1.UsageRefusal_USAGE_REFUSAL_FORK:             "the ledger has other blocks under the same numbers: a disk was copied or restored",
	syncv1.UsageRefusal_USAGE_REFUSAL_EPOCH_CLOSED:     "an operator closed it",
	syncv1.UsageRefusal_USAGE_REFUSAL_IMPLAUSIBLE:      "a row is of a time or size that cannot be: look at the edge's clock",
	syncv1.UsageRefusal_USAGE_REFUSAL_QUARANTINED:      "two spools speak for it: close it when it is clear which is right",
}

var checkpointWords = map[syncv1.CheckpointRefusal]string{
	syncv1.CheckpointRefusal_CHECKPOINT_REFUSAL_INVALID:      "the zone has not signed it",
	syncv1.CheckpointRefusal_CHECKPOINT_REFUSAL_INCONSISTENT: "the log shows two histories",
	syncv1.CheckpointRefusal_CHECKPOINT_REFUSAL_PROOF:        "what came beside it is no proof",
}

const seeLog = "the edge's log and readyz?verbose say more"

// ailing is what does not work although an edge serves.
func ailing(st *syncv1.Status) (out []string) {
	if u := st.GetUsageTrouble(); u != nil {
		switch why := or(refusalWords[u.GetWhy()], seeLog); {
		case u.GetWhy() == syncv1.UsageRefusal_USAGE_REFUSAL_WITHDRAWN:
			out = append(out, "usage: the ledger takes no usage from this edge: it is withdrawn")
		case u.GetFinal():
			out = append(out, fmt.Sprintf("usage: the ledger refuses epoch %d for good (%s): what this edge serves is kept and not counted until it is restarted, which begins a new epoch", u.GetEpoch(), why))
		default:
			out = append(out, fmt.Sprintf("usage: the ledger refuses epoch %d (%s): what this edge serves is kept and not counted until that is repaired; it is tried again every few minutes", u.GetEpoch(), why))
		}
	}
	if n := st.GetSentinelViolations(); n > 0 {
		out = append(out, fmt.Sprintf("border: the sentinel stopped %d times what the first check let pass; take this edge out of service", n))
	}
	if c := st.GetCheckpointRefusal(); c != syncv1.CheckpointRefusal_CHECKPOINT_REFUSAL_UNSPECIFIED {
		out = append(out, "evidence: the newest head of the zone's log is not taken: "+or(checkpointWords[c], seeLog))
	}
	return out
}

var quarantineWords = map[syncv1.QuarantineReason]string{
	syncv1.QuarantineReason_QUARANTINE_REASON_MALFORMED:  "it does not read",
	syncv1.QuarantineReason_QUARANTINE_REASON_MISNAMED:   "it calls itself by another name",
	syncv1.QuarantineReason_QUARANTINE_REASON_UNFIT:      "it cannot be right",
	syncv1.QuarantineReason_QUARANTINE_REASON_HOST_TAKEN: "a host of it is another API's",
	syncv1.QuarantineReason_QUARANTINE_REASON_NEWER:      "it has fields that the edge's program does not know and must not serve without: upgrade the edge",
}

// quarantined is what of its table an edge cannot use, and what it does instead.
func quarantined(st *syncv1.Status) (out []string) {
	for _, q := range st.GetQuarantined() {
		instead := "nothing serves in its place"
		if q.GetKept() {
			instead = "the last good one serves at home"
		}
		out = append(out, fmt.Sprintf("%s %s: %s; %s", table.Kind(q.GetKind()), q.GetId(), or(quarantineWords[q.GetReason()], seeLog), instead))
	}
	if more := int(st.GetQuarantinedTotal()) - len(out); more > 0 && len(out) > 0 {
		out = append(out, fmt.Sprintf("and %d more", more))
	}
	return out
}

// verdictWords say why an edge takes a region for dead.
func verdictWords(v *syncv1.RegionVerdict) string {
	switch v.GetReason() {
	case syncv1.VerdictReason_VERDICT_REASON_UNSPECIFIED: // a program from before, if it is not well
		if v.GetHealthy() {
			return ""
		}
	case syncv1.VerdictReason_VERDICT_REASON_NOT_REACHED:
		return fmt.Sprintf("not reached by %d of %d observing regions", v.GetAgainst(), v.GetObservers())
	case syncv1.VerdictReason_VERDICT_REASON_TOLD:
		return "declared dead before this edge began, by one of another region"
	}
	return seeLog
}

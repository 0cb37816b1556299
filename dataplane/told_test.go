package dataplane

import (
	"errors"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"

	"bailiwick/dataplane/internal/observe"
	"bailiwick/dataplane/internal/policy"
	"bailiwick/dataplane/internal/ship"
	"bailiwick/dataplane/internal/witness"
	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"
	usagev1 "bailiwick/proto/gen/bailiwick/usage/v1"
	"bailiwick/shared/checkpoint"
	"bailiwick/shared/fault"
)

// told names each field of text or bytes that an edge sends to its control plane, and what is in it. Errors are a value of
// a list and an id; their words stay in the edge's log (invariant 19). What it sends to other edges is walked in package
// relay, what a zone sends to another in the control plane's carrier and model.
var told = map[string]string{
	"sync.v1.Hello.version":                    "constant",
	"sync.v1.Hello.incarnation":                "random",
	"sync.v1.Hello.dead":                       "random",
	"sync.v1.Position.sum":                     "digest",
	"sync.v1.Nack.reason":                      "enum: reasons of refused updates",
	"sync.v1.Resume.last_id":                   "id of an object of the table",
	"sync.v1.Quarantined.id":                   "id of an object of the table",
	"sync.v1.Status.cut_pairs":                 "catalogue ids",
	"sync.v1.Status.relay_addr":                "address of a node",
	"sync.v1.Doors.addresses":                  "addresses of a node",
	"sync.v1.RegionVerdict.region":             "catalogue id",
	"sync.v1.Outlook.silent_edges":             "names of nodes",
	"sync.v1.RelayMinute.grant":                "random",
	"sync.v1.RelayMinute.from":                 "catalogue id",
	"sync.v1.RelayMinute.to":                   "catalogue id",
	"sync.v1.RelayMinute.prev":                 "digest",
	"sync.v1.RelayMinute.digest":               "digest",
	"sync.v1.RefusalMinute.rule":               "enum: rules of refusal",
	"sync.v1.RefusalMinute.from":               "catalogue id",
	"sync.v1.RefusalMinute.to":                 "catalogue id",
	"sync.v1.RefusalMinute.sample":             "random: a request id",
	"sync.v1.TellRowsRequest.id":               "random",
	"sync.v1.TellRowsRequest.rows":             "rows of evidence: ids",
	"sync.v1.TellRowsRequest.failed":           "enum: reasons of faults",
	"sync.v1.Status.certificate_serial":        "number",
	"sync.v1.RequestGrantsRequest.incarnation": "random",
	"sync.v1.RequestGrantsRequest.dead":        "random",
	"usage.v1.Hello.head":                      "digest",
	"usage.v1.Block.prev":                      "digest",
	"usage.v1.Block.hash":                      "digest",
	"usage.v1.Block.payload":                   "ledger part: rows, as shared/usage TestRow_HoldsNoFreeText lists them; stays in the zone",
	"usage.v1.DetailBlock.payload":             "detail part: rows, as shared/usage TestRow_HoldsNoFreeText lists them; stays in the zone",
	"usage.v1.DetailBlock.hash":                "digest",
	"usage.v1.AccountAsk.customer":             "the customer's id, to his own zone",
	"usage.v1.AccountAsk.subscription":         "id in his record, to his own zone",
	"usage.v1.AccountAsk.plan":                 "catalogue id",
	"sync.v1.Outcome.api":                      "catalogue id",
	"sync.v1.Status.outcomes_sum":              "digest",
}

func TestEdge_TellsItsControlPlaneNoFreeText(t *testing.T) {
	const prefix = "bailiwick."
	known, seen := map[protoreflect.FullName]bool{}, map[string]bool{}
	var walk func(protoreflect.MessageDescriptor)
	walk = func(m protoreflect.MessageDescriptor) {
		if known[m.FullName()] {
			return
		}
		known[m.FullName()] = true
		for i := range m.Fields().Len() {
			switch f := m.Fields().Get(i); f.Kind() {
			case protoreflect.StringKind, protoreflect.BytesKind:
				name := string(f.FullName())[len(prefix):]
				if seen[name] = true; told[name] == "" {
					t.Errorf("%s goes from an edge to its control plane: it needs a line in this test's list, and free text has none", name)
				}
			case protoreflect.MessageKind:
				walk(f.Message())
			}
		}
	}
	for _, file := range []protoreflect.FileDescriptor{syncv1.File_bailiwick_sync_v1_sync_proto, usagev1.File_bailiwick_usage_v1_usage_proto} {
		services := file.Services()
		for i := range services.Len() {
			for j := range services.Get(i).Methods().Len() {
				walk(services.Get(i).Methods().Get(j).Input())
			}
		}
	}
	if len(seen) < 30 {
		t.Fatalf("the service takes %d fields of text: it is not where it was", len(seen))
	}
	for name := range told {
		if !seen[name] {
			t.Errorf("%s has a line and does not exist any more", name)
		}
	}
}

// Every reason for which the ledger refuses usage has a value of its own on the wire; what has none is OTHER and no word.
func TestEdge_TellsTroubleByName(t *testing.T) {
	for _, reason := range []string{ship.ReasonWrongChain, ship.ReasonGap, ship.ReasonForeign, ship.ReasonWithdrawn, ship.ReasonMalformed, ship.ReasonFork, ship.ReasonEpochClosed,
		ship.ReasonRegion, ship.ReasonAPI, ship.ReasonImplausible, ship.ReasonQuarantined} {
		u := usageTrouble(ship.Refusal{Epoch: 4, Reason: reason, Detail: "Erika", Final: true}, true)
		if u.GetWhy().String() != "USAGE_REFUSAL_"+reason || u.GetEpoch() != 4 || !u.GetFinal() {
			t.Errorf("%s is told as %v", reason, u)
		}
	}
	for _, reason := range []string{"", "UNSPECIFIED", "bw_emea_secret"} {
		if got := usageTrouble(ship.Refusal{Reason: reason}, true).GetWhy(); got != syncv1.UsageRefusal_USAGE_REFUSAL_OTHER {
			t.Errorf("%q is told as %v", reason, got)
		}
	}
	if usageTrouble(ship.Refusal{}, false) != nil {
		t.Error("no trouble is told as one")
	}
	for want, err := range map[syncv1.CheckpointRefusal]error{
		syncv1.CheckpointRefusal_CHECKPOINT_REFUSAL_UNSPECIFIED:  nil,
		syncv1.CheckpointRefusal_CHECKPOINT_REFUSAL_OTHER:        errors.New("write /var/lib/bailiwick: no space"),
		syncv1.CheckpointRefusal_CHECKPOINT_REFUSAL_INVALID:      fault.New(fault.Invalid, checkpoint.ReasonInvalid, "x"),
		syncv1.CheckpointRefusal_CHECKPOINT_REFUSAL_INCONSISTENT: fault.New(fault.Conflict, checkpoint.ReasonInconsistent, "x"),
		syncv1.CheckpointRefusal_CHECKPOINT_REFUSAL_PROOF:        fault.New(fault.Invalid, witness.ReasonProof, "x"),
	} {
		if got := checkpointRefusal(err); got != want {
			t.Errorf("%v is told as %v, want %v", err, got, want)
		}
	}
	for _, reason := range []policy.Reason{policy.ReasonMalformed, policy.ReasonMisnamed, policy.ReasonUnfit, policy.ReasonHostTaken, policy.ReasonNewer} {
		if got := quarantineReason(reason); got.String() != "QUARANTINE_REASON_"+string(reason) {
			t.Errorf("%s is told as %v", reason, got)
		}
	}
	for want, v := range map[syncv1.VerdictReason]observe.Verdict{
		syncv1.VerdictReason_VERDICT_REASON_UNSPECIFIED: {Why: observe.Why{Of: 2}},
		syncv1.VerdictReason_VERDICT_REASON_TOLD:        {Dead: true, Why: observe.Why{By: "eu-west"}},
		syncv1.VerdictReason_VERDICT_REASON_NOT_REACHED: {Dead: true, Why: observe.Why{Against: 1, Of: 1}},
		syncv1.VerdictReason_VERDICT_REASON_OTHER:       {Dead: true},
	} {
		if got := verdictReason(v); got != want {
			t.Errorf("%+v is told as %v, want %v", v, got, want)
		}
	}
}

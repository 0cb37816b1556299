package dataplane

import (
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"

	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"
)

// told names each field of text or bytes that an edge sends to its control plane beside usage, and what is in it.
// Errors are a name from a list and an id; their words stay in the edge's log (invariant 19). What says "own words" is
// made of constants, numbers and names of the catalog, and of no part of any request.
var told = map[string]string{
	"Hello.version": "constant", "Hello.incarnation": "random", "Hello.dead": "random", "Position.sum": "digest",
	"Nack.reason":                      "enum: reasons of refused updates",
	"Status.cut_pairs":                 "catalogue ids",
	"Status.relay_addr":                "address of a node",
	"Doors.addresses":                  "addresses of a node",
	"RegionVerdict.region":             "catalogue id",
	"RegionVerdict.why":                "own words: package observe",
	"Outlook.silent_edges":             "names of nodes",
	"Status.degraded":                  "own words: what the ledger refuses, and the sentinel's count",
	"RelayMinute.grant":                "random",
	"RelayMinute.from":                 "catalogue id",
	"RelayMinute.to":                   "catalogue id",
	"RelayMinute.prev":                 "digest",
	"RelayMinute.digest":               "digest",
	"RefusalMinute.rule":               "enum: rules of refusal",
	"RefusalMinute.from":               "catalogue id",
	"RefusalMinute.to":                 "catalogue id",
	"RefusalMinute.sample":             "random: a request id",
	"TellRowsRequest.id":               "random",
	"TellRowsRequest.rows":             "rows of evidence: ids",
	"TellRowsRequest.failed":           "enum: reasons of faults",
	"Status.certificate_serial":        "number",
	"Status.checkpoint_refused":        "own words: package witness",
	"RequestGrantsRequest.incarnation": "random",
	"RequestGrantsRequest.dead":        "random",
}

func TestEdge_TellsItsControlPlaneNoFreeText(t *testing.T) {
	const prefix = "bailiwick.sync.v1."
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
	services := syncv1.File_bailiwick_sync_v1_sync_proto.Services()
	for i := range services.Len() {
		for j := range services.Get(i).Methods().Len() {
			walk(services.Get(i).Methods().Get(j).Input())
		}
	}
	if len(seen) < 10 {
		t.Fatalf("the service takes %d fields of text: it is not where it was", len(seen))
	}
	for name := range told {
		if !seen[name] {
			t.Errorf("%s has a line and does not exist any more", name)
		}
	}
}

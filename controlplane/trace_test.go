package controlplane

import (
	"testing"
	"time"

	"bailiwick/controlplane/internal/adminapi"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	peerv1 "bailiwick/proto/gen/bailiwick/peer/v1"
	"bailiwick/shared/fault"

	"google.golang.org/protobuf/types/known/timestamppb"
)

// A piece whose acknowledgement was lost rests on two nodes; it is one piece all the same. What a node that does
// not answer would have said is missing, and that is said.
func TestMerge_CountsAPieceOnce(t *testing.T) {
	sum := func(shares ...*peerv1.TraceShare) []*peerv1.TraceSum {
		return []*peerv1.TraceSum{{Cell: 900, Api: "orders", Route: "get", Plan: "gold", ServedRegion: "eu-west", Outcome: "success", Shares: shares}}
	}
	share := func(edge string, number, seq uint64, n int64) *peerv1.TraceShare {
		return &peerv1.TraceShare{Edge: edge, Epoch: 1, Number: number, Seq: seq, Requests: n, Units: 2 * n}
	}
	row := func(number uint64, ms int64) *adminv1.TraceRow {
		return &adminv1.TraceRow{Edge: "e1", Epoch: 1, Number: number, End: timestamppb.New(time.UnixMilli(ms))}
	}
	facts := func(kept int64) *peerv1.DetailFacts {
		return &peerv1.DetailFacts{KeptSince: timestamppb.New(time.Unix(kept, 0)), Damaged: []string{"f"},
			Lost: []*adminv1.TraceLost{{Edge: "e1", Epoch: 1, Rows: 5}}}
	}
	got, err := merge([]string{"a", "b", "c"}, []answer{
		{sums: sum(share("e1", 1, 1, 10), share("e1", 2, 1, 20), share("e2", 1, 9, 1)), rows: []*adminv1.TraceRow{row(1, 3), row(2, 4)}, facts: facts(100)},
		{sums: sum(share("e1", 2, 1, 20), share("e1", 3, 2, 30)), rows: []*adminv1.TraceRow{row(2, 4), row(3, 1)}, facts: facts(200)},
		{err: fault.New(fault.Unavailable, "NODE_UNREACHABLE", "away")},
	}, 10)
	if err != nil {
		t.Fatal(err)
	}
	sums := got.Cells[adminapi.TraceCell{Start: 900, API: "orders", Route: "get", Plan: "gold", ServedRegion: "eu-west", Outcome: "success"}]
	if sums == nil || sums.Requests != 61 || sums.Units != 122 || len(sums.Blocks) != 3 || sums.Blocks[0] != "e1/1/1" || sums.Blocks[1] != "e2/1/9" || sums.Blocks[2] != "e1/1/2" {
		t.Errorf("sums %+v, want 61 requests out of three blocks", sums)
	}
	if len(got.Rows) != 3 || got.Rows[0].Number != 3 || got.Rows[2].Number != 2 {
		t.Errorf("rows %v, want one of each piece, by time", got.Rows)
	}
	if len(got.Unreachable) != 1 || got.Unreachable[0] != "c" || len(got.Lost) != 1 || !got.KeptSince.Equal(time.Unix(200, 0)) || len(got.Damaged) != 2 {
		t.Errorf("facts: unreachable %v, lost %v, kept since %v, damaged %v", got.Unreachable, got.Lost, got.KeptSince, got.Damaged)
	}
	if _, err := merge([]string{"a"}, []answer{{err: fault.New(fault.Unavailable, "NODE_UNREACHABLE", "away")}}, 10); err == nil {
		t.Error("nobody answers, and that is an answer")
	}
}

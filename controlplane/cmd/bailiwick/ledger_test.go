package main

import (
	"strings"
	"testing"
	"time"

	"bailiwick/controlplane/internal/adminapi/apitest"
	"bailiwick/controlplane/internal/ledger"
	"bailiwick/shared/usage"
)

// count brings one block of an edge's usage to a zone's ledger.
func count(t testing.TB, z *apitest.Zone, edge string, epoch, seq uint64, prev [32]byte, cells map[usage.Cell]usage.Sums) [32]byte {
	t.Helper()
	b := ledger.Block{Block: usage.NewBlock(edge, epoch, seq, prev, usage.EncodePayload(cells)), Region: "us-east"}
	if _, err := z.Ledger.Append(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	return b.Hash
}

func ordersCell(customer string, at time.Time) usage.Cell {
	return usage.Cell{Start: usage.CellStart(at.UnixMilli()), Customer: customer, Subscription: "gold", Plan: "gold", PlanRev: 7, Product: "commerce",
		API: "orders", Route: "all", Outcome: usage.OutcomeSuccess, ServedRegion: "us-east"}
}

func TestEpochs_AreListedAndClosed(t *testing.T) {
	d := seeded(t)
	us := d.in.Zones["us"]
	one := map[usage.Cell]usage.Sums{ordersCell("umbrella", time.Now()): {Requests: 1, Units: 1}}
	count(t, us, "us-east-edge-1", 5, 1, [32]byte{}, one)
	count(t, us, "us-east-edge-1", 6, 1, [32]byte{}, one)

	var list []ledgerEpoch
	d.must(&list, "usage", "epochs", "-o", "json")
	if len(list) != 2 || list[0].Zone != "us" || list[0].Status != "complete" || list[0].AppliedSeq != 1 || list[1].Epoch != 6 {
		t.Fatalf("epochs: got %+v", list)
	}
	if code, _, errs := d.run("", "usage", "close-epoch", "us-east-edge-1", "5"); code != exitUsage || !strings.Contains(errs, "reason") {
		t.Errorf("close without a reason: got exit %d, %s", code, errs)
	}
	for name, c := range map[string]struct {
		args []string
		exit int
		word string
	}{
		"an edge nobody knows":   {[]string{"nobody", "5"}, exitNotFound, "EDGE_NOT_FOUND"},
		"an epoch nobody knows":  {[]string{"us-east-edge-1", "4"}, exitFailure, "EPOCH_UNKNOWN"},
		"the epoch that is used": {[]string{"us-east-edge-1", "6"}, exitConflict, "EPOCH_IN_USE"},
		"no number":              {[]string{"us-east-edge-1", "x"}, exitUsage, "not a number"},
		"held to nothing":        {[]string{"us-east-edge-1", "5", "--held", "burn"}, exitUsage, "--held"},
	} {
		code, _, errs := d.run("", append([]string{"usage", "close-epoch", "--reason", "test"}, c.args...)...)
		if code != c.exit || !strings.Contains(errs, c.word) {
			t.Errorf("%s: got exit %d, %q, want %d and %s", name, code, errs, c.exit, c.word)
		}
	}
	d.must(&list, "usage", "close-epoch", "us-east-edge-1", "5", "--sealed", "4", "--held", "forfeit", "--reason", "the disk burnt", "-o", "json")
	if e := list[0]; e.Status != "closed" || e.Gap != 3 || e.ClosedBy != "admin" || e.ClosedReason != "the disk burnt" || e.Held != "forfeit" || e.ClosedAt == "" {
		t.Errorf("closed: got %+v", e)
	}

	// A copy of a disk shows up in warnings, and may be closed while its edge is connected.
	other := map[usage.Cell]usage.Sums{ordersCell("umbrella", time.Now()): {Requests: 9, Units: 9}}
	count(t, us, "us-east-edge-1", 6, 1, [32]byte{}, other)
	if code, out, errs := d.run("", "usage", "epochs", "--edge", "us-east-edge-1"); code != exitOK || !strings.Contains(errs, "quarantined") || !strings.Contains(out, "quarantined") {
		t.Errorf("quarantined: got exit %d, %s, %s", code, out, errs)
	}
	d.must(nil, "usage", "close-epoch", "us-east-edge-1", "6", "--reason", "cloned disk")
}

func TestNodeRemove_WarnsOfUnshippedUsage(t *testing.T) {
	d := seeded(t)
	us := d.in.Zones["us"]
	one := map[usage.Cell]usage.Sums{ordersCell("umbrella", time.Now()): {Requests: 1, Units: 1}}
	count(t, us, "us-east-edge-1", 5, 1, [32]byte{}, one)
	if _, err := us.Ledger.CloseEpoch(t.Context(), ledger.Closing{Edge: "us-east-edge-1", Epoch: 4, Sealed: 2}); err != nil { // a closed one is no news
		t.Fatal(err)
	}
	us.Ledger.NoteSealed("us-east-edge-1", 5, 3, 0, time.Time{})
	deadline := time.Now().Add(time.Minute)
	for {
		v, err := us.Ledger.View(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		list, err := v.Edges(t.Context())
		v.Close()
		if err != nil {
			t.Fatal(err)
		}
		if list[len(list)-1].Sealed == 3 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("what the edge sealed was never committed")
		}
		time.Sleep(20 * time.Millisecond)
	}
	code, _, errs := d.run("", "node", "remove", "us-east-edge-1")
	if code != exitOK || !strings.Contains(errs, "blocks 2 to 3 of epoch 5") || strings.Contains(errs, "epoch 4") {
		t.Errorf("got exit %d, %q, want a warning of blocks 2 to 3 of epoch 5 alone", code, errs)
	}
}

// A sink that was away for longer than the outbox has room is told of, with what it will never have.
func TestSinks_SayWhatTheyLost(t *testing.T) {
	d := seeded(t)
	us := d.in.Zones["us"]
	if err := us.Ledger.RegisterSinks(t.Context(), 1, []string{"kafka"}, nil); err != nil {
		t.Fatal(err)
	}
	prev := [32]byte{}
	for seq := range uint64(3) {
		prev = count(t, us, "us-east-edge-1", 5, seq+1, prev, map[usage.Cell]usage.Sums{ordersCell("umbrella", time.Now()): {Requests: 1, Units: 1}})
	}
	d.token("viewer-token")
	var list []sinkPosition
	d.must(&list, "usage", "sinks", "-o", "json")
	if len(list) != 1 || list[0].Zone != "us" || list[0].Sink != "kafka" || list[0].Lost == 0 || list[0].LostFrom != 1 || list[0].LostTo < list[0].LostFrom {
		t.Fatalf("sinks: got %+v, want kafka to have lost blocks from the first", list)
	}
	if _, out, errs := d.run("", "usage", "sinks"); !strings.Contains(out, "kafka") || !strings.Contains(errs, "has lost") {
		t.Errorf("table: %s, %s", out, errs)
	}
}

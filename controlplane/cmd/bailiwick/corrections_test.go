package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"bailiwick/controlplane/internal/correction"
	"bailiwick/shared/usage"
)

func TestCorrections_AreBookedShownAndUndoneOnce(t *testing.T) {
	d := seeded(t)
	us := d.in.Zones["us"]
	at := time.Now().UTC().Add(-time.Hour)
	count(t, us, "us-east-edge-1", 5, 1, [32]byte{}, map[usage.Cell]usage.Sums{ordersCell("umbrella", at): {Requests: 10, Units: 20}})
	cell := time.Unix(usage.CellStart(at.UnixMilli()), 0).UTC().Format(time.RFC3339)
	file := func(rows string) string { return d.file("rows.csv", "cell,api,served_region,requests,units\n"+rows) }
	minus := file(cell + ",orders,us-east,-4,-8\n")
	args := func(more ...string) []string {
		return append([]string{"usage", "correct", "--customer", "umbrella", "--reason", "billed twice", "-o", "json"}, more...)
	}
	type booking struct {
		Correction correctionReport
		Before     usageTotal
		After      usageTotal
		Repeated   bool
	}
	list := func() (out []correctionReport) {
		d.must(&out, "usage", "corrections", "--customer", "umbrella", "--verify", "-o", "json")
		return out
	}
	var b booking
	d.must(&b, args("-f", minus, "--dry-run")...)
	if b.Before.Requests != 10 || b.After.Requests != 6 || b.After.Units != 12 || len(list()) != 0 {
		t.Errorf("dry run: got %+v and %d corrections, want 10 before, 6 after and none booked", b, len(list()))
	}
	d.must(&b, args("-f", minus, "--request-id", "r1")...)
	if b.Repeated || b.Correction.ID != "admin/r1" || b.Correction.Kind != "correction" || b.Correction.Rows[0].Plan != "gold" || b.Correction.Rows[0].Route != "all" {
		t.Errorf("booked: got %+v", b)
	}
	d.must(&b, args("-f", minus, "--request-id", "r1")...)
	if !b.Repeated || b.Before.Requests != 6 || b.After.Requests != 6 {
		t.Errorf("the same request again: got %+v, want it to have had its effect once", b)
	}
	got := list()
	if len(got) != 1 || got[0].Verified == nil || !*got[0].Verified || got[0].By != "admin" || got[0].Reason != "billed twice" {
		t.Fatalf("corrections: got %+v", got)
	}

	// An import is a producer of its own.
	plus := d.file("rows.yaml", fmt.Sprintf("- {cell: %q, api: orders, served_region: us-west, requests: 3, units: 3}\n", cell))
	for i := range 2 {
		d.must(&b, args("-f", plus, "--producer", "old-gateway", "--request-id", "r1")...)
		if b.Repeated != (i == 1) || b.Correction.Kind != "import" || b.After.Requests != 9 {
			t.Errorf("import %d: got %+v", i, b)
		}
	}

	for name, c := range map[string]struct {
		args []string
		exit int
		word string
	}{
		"more than there is":      {args("-f", file(cell+",orders,us-east,-7,0\n")), exitFailure, "CELL_NEGATIVE"},
		"a cell that holds none":  {args("-f", file(cell+",orders,us-west,-4,0\n")), exitFailure, "CELL_NEGATIVE"},
		"another with the id":     {args("-f", file(cell+",orders,us-east,-1,0\n"), "--request-id", "r1"), exitConflict, "REQUEST_ID_USED"},
		"unknown API":             {args("-f", file(cell+",nothing,us-east,1,1\n")), exitFailure, "API_UNKNOWN"},
		"unknown region":          {args("-f", file(cell+",orders,moon,1,1\n")), exitFailure, "REGION_UNKNOWN"},
		"no region":               {args("-f", file(cell+",orders,,1,1\n")), exitFailure, "REGION_REQUIRED"},
		"before the first usage":  {args("-f", file("2020-01-01,orders,us-east,1,1\n")), exitFailure, "PERIOD_UNKNOWN"},
		"in the future":           {args("-f", file(time.Now().Add(time.Hour).UTC().Format(time.RFC3339)+",orders,us-east,1,1\n")), exitFailure, "PERIOD_IN_FUTURE"},
		"changes nothing":         {args("-f", file(cell+",orders,us-east,0,0\n")), exitFailure, "CORRECTION_INVALID"},
		"unknown plan":            {args("-f", d.file("r.csv", "cell,api,plan,served_region,requests\n"+cell+",orders,platinum,us-east,1\n")), exitFailure, "PLAN_UNKNOWN"},
		"unknown customer":        {[]string{"usage", "correct", "--customer", "nobody", "--reason", "x", "-f", minus}, exitNotFound, "CUSTOMER_NOT_FOUND"},
		"no reason":               {[]string{"usage", "correct", "--customer", "umbrella", "-f", minus}, exitUsage, "reason"},
		"a column nobody knows":   {args("-f", d.file("r.csv", "cell,price\n"+cell+",3\n")), exitUsage, "price"},
		"a number that is none":   {args("-f", file(cell+",orders,us-east,1.5,1\n")), exitUsage, "whole number"},
		"import without an id":    {args("-f", minus, "--producer", "p"), exitUsage, "--request-id"},
		"undo of nothing":         {[]string{"usage", "undo", "admin/r9", "--reason", "x"}, exitNotFound, "CORRECTION_UNKNOWN"},
		"undo that would be less": {[]string{"usage", "undo", "admin/r1"}, exitUsage, "reason"},
	} {
		code, _, errs := d.run("", c.args...)
		if code != c.exit || !strings.Contains(errs, c.word) {
			t.Errorf("%s: got exit %d, %q, want %d and %s", name, code, errs, c.exit, c.word)
		}
	}

	d.must(&b, "usage", "undo", "admin/r1", "--reason", "it was right", "--request-id", "u1", "-o", "json")
	if b.After.Requests-b.Before.Requests != 4 || b.Correction.Corrects != "admin/r1" || b.Correction.Rows[0].Units != 8 {
		t.Errorf("undo: got %+v", b)
	}
	if code, _, errs := d.run("", "usage", "undo", "admin/r1", "--reason", "again"); code != exitConflict || !strings.Contains(errs, "CORRECTION_UNDONE") {
		t.Errorf("undo twice: got exit %d, %q", code, errs)
	}
	if code, _, errs := d.run("", "usage", "undo", "admin/u1", "--reason", "back"); code != exitConflict || !strings.Contains(errs, "CORRECTION_IS_UNDO") {
		t.Errorf("undo of an undo: got exit %d, %q", code, errs)
	}
	got = list()
	if len(got) != 3 || got[0].UndoneBy != "admin/u1" || got[2].Corrects != "admin/r1" {
		text, _ := json.Marshal(got)
		t.Errorf("links: got %s", text)
	}
	// Another zone's key does not make a booking on this zone's customer good.
	c := correction.Correction{Producer: "admin", RequestID: "foreign", Kind: "correction", Customer: "umbrella", Reason: "x", By: "admin", Node: "emea-1", AtMS: time.Now().UnixMilli(),
		Rows: []correction.Row{{Start: usage.CellStart(at.UnixMilli()), Subscription: "gold", Plan: "gold", Product: "commerce", API: "orders", Route: "all", ServedRegion: "us-east", Outcome: "success", Requests: 1, Units: 1}}}
	if err := c.Sign(d.in.Zones["emea"].Signer); err != nil {
		t.Fatal(err)
	}
	if _, err := us.Ledger.Correct(t.Context(), &c); err != nil {
		t.Fatal(err)
	}
	if code, out, errs := d.run("", "usage", "corrections", "--customer", "umbrella", "--verify"); code != exitFailure || strings.Count(out, "FALSE") != 1 || !strings.Contains(errs, "zone us") {
		t.Errorf("a correction that emea signed: got exit %d, %s\n%s", code, errs, out)
	}
	d.token("viewer-token")
	if code, _, _ := d.run("", args("-f", minus)...); code != exitDenied {
		t.Errorf("a viewer corrects: got exit %d, want %d", code, exitDenied)
	}
}

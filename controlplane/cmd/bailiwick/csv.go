package main

import (
	"encoding/csv"
	"strconv"
	"strings"

	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
)

// hasCSV marks the commands that print CSV.
const hasCSV = "csv"

// The columns of CSV are an interface: new ones come at the end.
const (
	cellHeading   = "cell,subscription,plan,product,api,route,served_region,outcome,requests,units,bytes_in,bytes_out,billable,correction"
	totalsHeading = "zone,product,plan,api,served_region,outcome,requests,units"
	foldedHeading = "requests,billable,limited,errors,units,bytes_in,bytes_out,correction" // after the columns of --by
	sumsHeading   = "requests,billable,limited,errors,units"                               // after zone and the columns of --by
)

// printCSV writes RFC 4180: a heading, CRLF, quotes where they are needed.
func (a *app) printCSV(heading string, records [][]string) error {
	w := csv.NewWriter(a.out)
	w.UseCRLF = true
	if err := w.Write(strings.Split(heading, ",")); err != nil {
		return err
	}
	if err := w.WriteAll(records); err != nil { // flushes
		return err
	}
	return w.Error()
}

// text is a name in a cell of CSV. Names come from people, and a spreadsheet takes what begins like a formula for
// one: an apostrophe, which spreadsheets do not show, keeps it text. Numbers and times are ours and stay bare.
func text(s string) string {
	if s != "" && strings.ContainsRune("=+-@\t\r\n", rune(s[0])) {
		return "'" + s
	}
	return s
}

func cellRecords(rows []*adminv1.UsageRow) [][]string {
	var out [][]string
	for _, r := range rows {
		out = append(out, []string{clock(r.GetCell()), text(r.GetSubscription()), text(r.GetPlan()), text(r.GetProduct()), text(r.GetApi()), text(r.GetRoute()),
			text(r.GetServedRegion()), r.GetOutcome(), number(r.GetRequests()), number(r.GetUnits()), number(r.GetBytesIn()), number(r.GetBytesOut()),
			strconv.FormatBool(r.GetBillable()), strconv.FormatBool(r.GetCorrection())})
	}
	return out
}

func totalsRecords(zones []*adminv1.ZoneTotals) [][]string {
	var out [][]string
	for _, z := range zones {
		for _, r := range z.GetRows() {
			out = append(out, []string{z.GetZone(), text(r.GetProduct()), text(r.GetPlan()), text(r.GetApi()), text(r.GetServedRegion()), r.GetOutcome(),
				number(r.GetRequests()), number(r.GetUnits())})
		}
	}
	return out
}

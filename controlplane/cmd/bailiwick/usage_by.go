package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"bailiwick/controlplane/internal/calendar"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
)

// dimensions in the order of columns, whatever the order in which they were asked for.
var dimensions = []string{"hour", "day", "month", "subscription", "plan", "product", "api", "route", "served_region", "outcome"}

func columns(by []string) []string {
	return slices.DeleteFunc(slices.Clone(dimensions), func(d string) bool { return !slices.Contains(by, d) })
}

func isTime(column string) bool { return column == "hour" || column == "day" || column == "month" }

// fold is one folded row: a value for each column, and its sums.
type fold struct {
	names     []string
	start     time.Time
	total     usageTotal
	in, out   int64
	corrected bool
}

// object keeps the order of its fields: names as asked for, then sums.
type object []field
type field struct {
	name  string
	value any
}

func (o object) MarshalJSON() ([]byte, error) {
	var b strings.Builder
	b.WriteByte('{')
	for i, f := range o {
		if i > 0 {
			b.WriteByte(',')
		}
		switch v := f.value.(type) {
		case string:
			fmt.Fprintf(&b, "%q:%s", f.name, quoted(v))
		default:
			fmt.Fprintf(&b, "%q:%v", f.name, v)
		}
	}
	b.WriteByte('}')
	return []byte(b.String()), nil
}

func (f fold) object(columns []string, bytes bool) object {
	var o object
	for i, c := range columns {
		o = append(o, field{c, f.names[i]})
	}
	o = append(o, field{"requests", f.total.Requests}, field{"billable", f.total.Billable}, field{"limited", f.total.Limited}, field{"errors", f.total.Errors}, field{"units", f.total.Units})
	if bytes {
		o = append(o, field{"bytes_in", f.in}, field{"bytes_out", f.out}, field{"correction", f.corrected})
	}
	return o
}

// record is the row's line of CSV.
func (f fold) record(columns []string, bytes bool) []string {
	var out []string
	for i, c := range columns {
		if isTime(c) {
			out = append(out, f.names[i])
		} else {
			out = append(out, text(f.names[i]))
		}
	}
	out = append(out, number(f.total.Requests), number(f.total.Billable), number(f.total.Limited), number(f.total.Errors), number(f.total.Units))
	if bytes {
		out = append(out, number(f.in), number(f.out), fmt.Sprint(f.corrected))
	}
	return out
}

func (f fold) line(bytes bool) []string {
	out := append(slices.Clone(f.names), number(f.total.Requests), number(f.total.Billable), number(f.total.Limited), number(f.total.Errors), number(f.total.Units))
	if bytes {
		out = append(out, number(f.in), number(f.out))
	}
	return out
}

func (a *app) printFolded(resp *adminv1.QueryUsageResponse, by []string) error {
	cols := columns(by)
	var folds []fold
	for _, r := range resp.GetRows() {
		f := fold{start: r.GetCell().AsTime(), total: totalOf(r.GetTotal()), in: r.GetBytesIn(), out: r.GetBytesOut(), corrected: r.GetCorrection()}
		f.total.Requests, f.total.Units = r.GetRequests(), r.GetUnits()
		values := map[string]string{"subscription": r.GetSubscription(), "plan": r.GetPlan(), "product": r.GetProduct(), "api": r.GetApi(),
			"route": r.GetRoute(), "served_region": r.GetServedRegion(), "outcome": r.GetOutcome()}
		folds = append(folds, f.named(cols, r.GetTime(), values))
	}
	gaps := a.warnGaps(resp.GetGaps())
	if a.output == "csv" {
		var records [][]string
		for _, f := range folds {
			records = append(records, f.record(cols, true))
		}
		return a.printCSV(strings.Join(append(cols, foldedHeading), ","), records)
	}
	out := struct {
		Total           usageTotal `json:"total"`
		TimeZone        string     `json:"time_zone"`
		Rows            []object   `json:"rows"`
		CompleteThrough moment     `json:"complete_through"`
		Gaps            []usageGap `json:"gaps,omitempty"`
	}{totalOf(resp.GetTotal()), resp.GetTimeZone(), []object{}, moment(clock(resp.GetCompleteThrough())), gaps}
	for _, f := range folds {
		out.Rows = append(out.Rows, f.object(cols, true))
	}
	return a.print(out, func(w io.Writer) {
		a.printFolds(w, cols, folds, out.TimeZone, true)
		printTotal(w, out.Total)
		fmt.Fprintf(w, "time zone %s, complete through %s\n", out.TimeZone, or(string(out.CompleteThrough), "no time yet: not every edge has reported"))
	})
}

func (f fold) named(columns []string, time string, values map[string]string) fold {
	for _, c := range columns {
		if isTime(c) {
			f.names = append(f.names, time)
		} else {
			f.names = append(f.names, values[c])
		}
	}
	return f
}

func (a *app) printFoldedTotals(resp *adminv1.QueryTotalsResponse, by []string) error {
	cols := columns(by)
	type zone struct {
		Zone            string     `json:"zone"`
		Total           usageTotal `json:"total"`
		Rows            []object   `json:"rows"`
		CompleteThrough moment     `json:"complete_through"`
		AgeSeconds      float64    `json:"age_seconds"`
		Error           string     `json:"error"`
	}
	out := struct {
		TimeZone string `json:"time_zone"`
		Zones    []zone `json:"zones"`
	}{resp.GetTimeZone(), []zone{}}
	var records [][]string
	var folds [][]fold
	for _, z := range resp.GetZones() {
		one := zone{z.GetZone(), totalOf(z.GetTotal()), []object{}, moment(clock(z.GetCompleteThrough())), z.GetAge().AsDuration().Seconds(), z.GetError()}
		var of []fold
		for _, r := range z.GetRows() {
			f := fold{start: r.GetStart().AsTime(), total: totalOf(r.GetTotal())}
			f.total.Requests, f.total.Units = r.GetRequests(), r.GetUnits()
			f = f.named(cols, r.GetTime(), map[string]string{"plan": r.GetPlan(), "product": r.GetProduct(), "api": r.GetApi(), "served_region": r.GetServedRegion(), "outcome": r.GetOutcome()})
			of = append(of, f)
			one.Rows = append(one.Rows, f.object(cols, false))
			records = append(records, append([]string{one.Zone}, f.record(cols, false)...))
		}
		folds = append(folds, of)
		out.Zones = append(out.Zones, one)
	}
	if a.output == "csv" {
		return a.printCSV(strings.Join(append(append([]string{"zone"}, cols...), sumsHeading), ","), records)
	}
	return a.print(out, func(w io.Writer) {
		for i, z := range out.Zones {
			fmt.Fprintf(w, "zone %s, time zone %s, complete through %s", z.Zone, out.TimeZone, or(string(z.CompleteThrough), "no time yet"))
			if z.Error != "" {
				fmt.Fprintf(w, ", %v old: %s", time.Duration(z.AgeSeconds*float64(time.Second)).Round(time.Second), z.Error)
			}
			fmt.Fprintln(w)
			a.printFolds(w, cols, folds[i], out.TimeZone, false)
			printTotal(w, z.Total)
		}
	})
}

// printFolds writes the table and, for somebody who looks at a terminal, each group's requests over time.
func (a *app) printFolds(w io.Writer, cols []string, folds []fold, zone string, bytes bool) {
	heading := strings.ToUpper(strings.Join(cols, " ")) + " REQUESTS BILLABLE LIMITED ERRORS UNITS"
	if bytes {
		heading += " IN OUT"
	}
	var lines [][]string
	for _, f := range folds {
		lines = append(lines, f.line(bytes))
	}
	rows(w, heading, lines)
	if t := slices.IndexFunc(cols, isTime); t >= 0 && len(folds) > 0 && a.live() {
		printTrends(w, cols, t, folds, timeline(cols[t], zone, folds))
	}
}

// timeline names every hour, day or month from the first row to the last, those without usage too.
func timeline(unit, zone string, folds []fold) []string {
	loc, err := calendar.Load(zone)
	if err != nil {
		return nil // a server that knows more zones than this program
	}
	var labels []string
	for at := folds[0].start; !at.After(folds[len(folds)-1].start); {
		labels = append(labels, calendar.Label(at, unit, loc))
		_, at = calendar.Span(at, unit, loc)
	}
	return labels
}

// printTrends has one line for each group: every group over the same instants, nothing where it was not used.
func printTrends(w io.Writer, cols []string, t int, folds []fold, labels []string) {
	if len(labels) < 2 {
		return
	}
	at := map[string]int{} // label of time to place
	for i, l := range labels {
		at[l] = i
	}
	type trend struct {
		names  []string
		values []int64
	}
	groups := map[string]*trend{}
	var order []string
	for _, f := range folds {
		names := slices.Delete(slices.Clone(f.names), t, t+1)
		key := strings.Join(names, "\x00")
		if groups[key] == nil {
			groups[key] = &trend{names, make([]int64, len(labels))}
			order = append(order, key)
		}
		groups[key].values[at[f.names[t]]] += f.total.Requests
	}
	slices.Sort(order)
	const widest = 120 // characters of a line; older ones are left out
	cut := max(0, len(labels)-widest)
	var lines [][]string
	for _, key := range order {
		g := groups[key]
		lines = append(lines, append(g.names, number(slices.Max(g.values)), "|"+sparkline(g.values[cut:])+"|"))
	}
	heading := strings.Join(slices.Delete(slices.Clone(cols), t, t+1), " ")
	if heading != "" {
		heading += " "
	}
	fmt.Fprintln(w)
	rows(w, strings.ToUpper(heading)+"PEAK REQUESTS", lines)
	fmt.Fprintf(w, "each %s from %s to %s\n\n", cols[t], labels[cut], labels[len(labels)-1])
}

package evidence

import (
	"cmp"
	"fmt"
	"html/template"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"bailiwick/controlplane/internal/model"
)

// maxRows bounds each list of a report; what is left out is said.
const maxRows = 500

// Report is what a bundle says to people who answer for a zone.
type Report struct {
	Verdict    *Verdict          `json:"verdict"`
	Pairs      []ReportPair      `json:"pairs"`
	Bases      []ReportBasis     `json:"bases"`
	Closures   []ReportClosure   `json:"closures"`
	Decisions  []Decision        `json:"decisions"`
	Tightening []ReportTightened `json:"tightenings"`
	Relays     []ReportRelays    `json:"relays"`
	Refusals   []ReportRefusals  `json:"refusals"`
	Regions    []ReportRegion    `json:"regions"`
	Sentinel   []ReportSentinel  `json:"sentinel"`
	Operators  []ReportOperator  `json:"operators"`
	Reads      []ReportReads     `json:"reads"`
	LeftOut    int               `json:"left_out"` // rows of decisions and tightenings beyond the limit, the oldest
}

type ReportPair struct {
	Policy string `json:"policy"`
	From   string `json:"from"`
	To     string `json:"to"`
	Basis  string `json:"basis"`
	// Since is when it was permitted; nil: before the first record.
	Since     *time.Time `json:"since,omitempty"`
	ReviewBy  string     `json:"review_by,omitempty"`
	ReviewDue bool       `json:"review_due"` // at the end of the interval
	Grants    int64      `json:"grants"`
}

type ReportBasis struct {
	Name    string `json:"name"`
	Kind    string `json:"kind"`
	Status  string `json:"status"`
	Expires string `json:"expires,omitempty"`
	Source  string `json:"source,omitempty"`
	Expired bool   `json:"expired"` // at the end of the interval
}

type ReportClosure struct {
	Name     string     `json:"name"`
	What     string     `json:"what"`
	Reason   string     `json:"reason,omitempty"`
	ClosedAt time.Time  `json:"closed_at"`
	OpenedAt *time.Time `json:"reopened_at,omitempty"`
}

// Decision is one change of what may cross a border.
type Decision struct {
	At       time.Time `json:"at"`
	Record   int64     `json:"record"`
	What     string    `json:"what"`
	Operator string    `json:"operator,omitempty"`
}

type ReportTightened struct {
	Pair      string        `json:"pair"`
	Committed time.Time     `json:"committed_at"`
	InForce   time.Time     `json:"in_force_at"`
	After     time.Duration `json:"after_ns"`
	By        string        `json:"by"`
}

type ReportRelays struct {
	From  string `json:"from"`
	To    string `json:"to"`
	Edge  string `json:"edge"`
	Count int64  `json:"count"`
}

// ReportRefusals is what edges refused for one reason over one pair.
type ReportRefusals struct {
	Rule   string    `json:"rule"`
	From   string    `json:"from"`
	To     string    `json:"to"`
	Count  int64     `json:"count"`
	First  time.Time `json:"first"` // minutes
	Last   time.Time `json:"last"`
	Sample string    `json:"sample,omitempty"` // id of one of the requests
}

// ReportRegion says how most of the zone's observers saw a region. What nobody saw, before the first word or while no edge
// was connected, and what an operator drained counts neither way.
type ReportRegion struct {
	Region  string        `json:"region"`
	State   string        `json:"state"` // at the end
	Up      time.Duration `json:"up_ns"`
	Down    time.Duration `json:"down_ns"`
	Drained time.Duration `json:"drained_ns"`
	Unknown time.Duration `json:"unknown_ns"`
	Outages int64         `json:"outages"` // how often it went down
}

// ReportSentinel is what the second opinion of an edge has stopped, as told in the interval. Violations must be 0.
type ReportSentinel struct {
	Edge       string `json:"edge"`
	Region     string `json:"region"`
	Violations int64  `json:"violations"`
	Late       int64  `json:"late"` // because the rules had just changed
}

type ReportOperator struct {
	Operator string `json:"operator"`
	What     string `json:"what"`
	Count    int64  `json:"count"`
}

// ReportReads is what one operator was shown of customers' data by one procedure. A record stands for a minute.
type ReportReads struct {
	Operator  string    `json:"operator"`
	Procedure string    `json:"procedure"`
	Records   int64     `json:"records"`
	Customers int64     `json:"customers"` // that records name, each once
	Everyone  int64     `json:"everyone"`  // records that stand for every customer of the zone
	NoReason  int64     `json:"no_reason"` // records without a reason
	First     time.Time `json:"first"`
	Last      time.Time `json:"last"`
}

// Uptime is the share of the time in which it was seen up or down, in percent, cut to three digits.
func (r ReportRegion) Uptime() string {
	seen := (r.Up + r.Down).Milliseconds()
	if seen == 0 {
		return "-"
	}
	thousandths := r.Up.Milliseconds() * 100_000 / seen
	return fmt.Sprintf("%d.%03d %%", thousandths/1000, thousandths%1000)
}

type relayKey struct{ from, to, edge string }
type refusalKey struct{ rule, from, to string }
type refusalMinute struct {
	edge   string
	minute int64
	refusalKey
}
type operatorKey struct{ operator, what string }

// seenReads are an operator's reads by a procedure, with the digests of the customers.
type seenReads struct {
	ReportReads
	named map[string]bool
}

// seenRegion is a region's report with the state since when it holds.
type seenRegion struct {
	ReportRegion
	since time.Time
}

type sentinelKey struct {
	edge  string
	began int64
}

// tally gathers a report while records pass by.
type tally struct {
	from, to  time.Time
	rep       *Report
	adopted   model.Adopted
	permitted model.Permitted
	grants    map[pairKey]int64
	since     map[pairKey]time.Time // pairs that were permitted while records passed by
	closures  map[string]int
	relays    map[relayKey]int64
	refusals  map[refusalKey]*ReportRefusals
	refused   map[refusalMinute]int64 // an edge tells a minute again until it knows that it was heard
	operators map[operatorKey]int64
	reads     map[operatorKey]*seenReads
	regions   map[string]*seenRegion
	sentinel  map[string]*ReportSentinel          // by edge
	counts    map[sentinelKey]model.SentinelCount // the newest of each process
	last      time.Time
	seen      map[string]uint64 // the newest entry of each edge's relays: edges repeat themselves
	epochs    map[string]int64
}

// ReportOn verifies a bundle and sums it up. Records before the interval tell what held at its beginning and are counted
// nowhere.
func ReportOn(r io.Reader, trust Trust) (*Report, error) {
	t := &tally{rep: &Report{Pairs: []ReportPair{}, Bases: []ReportBasis{}, Closures: []ReportClosure{}, Decisions: []Decision{}, Tightening: []ReportTightened{}, Relays: []ReportRelays{},
		Refusals: []ReportRefusals{}, Regions: []ReportRegion{}, Sentinel: []ReportSentinel{}, Operators: []ReportOperator{}, Reads: []ReportReads{}},
		grants: map[pairKey]int64{}, since: map[pairKey]time.Time{}, closures: map[string]int{}, relays: map[relayKey]int64{}, refusals: map[refusalKey]*ReportRefusals{}, refused: map[refusalMinute]int64{},
		operators: map[operatorKey]int64{}, reads: map[operatorKey]*seenReads{}, regions: map[string]*seenRegion{}, sentinel: map[string]*ReportSentinel{}, counts: map[sentinelKey]model.SentinelCount{}, seen: map[string]uint64{}, epochs: map[string]int64{}}
	v, err := verify(r, trust, func(h heading) { t.from, t.to = h.From, h.To }, t.take)
	if err != nil {
		return nil, err
	}
	t.rep.Verdict = v
	t.finish()
	return t.rep, nil
}

func (t *tally) take(number int64, r entry) {
	inside := !r.At.Before(t.from) && !r.At.After(t.to)
	if r.At.After(t.to) {
		return
	}
	t.last = r.At
	decide := func(format string, args ...any) {
		if !inside {
			return
		}
		d := Decision{At: r.At, Record: number, What: fmt.Sprintf(format, args...)}
		if r.By != nil {
			d.Operator = r.By.Operator
		}
		t.rep.Decisions = append(t.rep.Decisions, d)
	}
	if inside && r.By != nil && r.Kind != KindRead {
		t.operators[operatorKey{r.By.Operator, r.Kind + " " + map[bool]string{true: r.Key}[r.Kind == KindWrite]}]++
	}
	switch v := r.value.(type) { // Verify has found what does not decode
	case state:
		for _, x := range v.Regions {
			t.saw(x)
		}
		if s := v; len(t.rep.Closures) == 0 && s.Adopted != nil {
			t.adopted = *s.Adopted
			if s.Permitted != nil {
				t.permitted = *s.Permitted
			}
			for _, c := range s.Closures {
				t.closed(c, c.At)
			}
		}
	case model.RegionState:
		t.saw(v)
	case model.Recovery:
		decide("node %s went on without a quorum or from a backup, by %s: %s", v.Node, v.Operator, v.Reason)
	case model.Crossing:
		if r.By != nil { // the first is the zone's beginning
			decide("pairs that cross zones were approved after a recovery")
		}
	case model.Adopted:
		t.adopted = v
		decide("the zone adopted the rules of catalog %d.%d", v.CatalogEpoch, v.CatalogIndex)
	case model.Permitted:
		t.differ(v, r.At, decide)
		t.permitted = v
	case model.Closure:
		if r.Kind == KindClosure {
			t.closed(v, r.At)
			decide("closure %s: %s", v.Name, scope(v))
			break
		}
		if i, ok := t.closures[r.Key]; ok {
			at := r.At
			t.rep.Closures[i].OpenedAt = &at
			delete(t.closures, r.Key)
		}
		decide("closure %s was lifted", r.Key)
	case model.Drain:
		if r.Kind == KindDrain {
			decide("region %s was drained: %s", v.Name, v.Reason)
			break
		}
		decide("the drain of region %s was ended", v.Name)
	case model.InForce:
		if f := v; r.Kind == KindInForce && inside && !f.At.IsZero() {
			t.rep.Tightening = append(t.rep.Tightening, ReportTightened{Pair: pairKey{f.Policy, f.From, f.To}.String(), Committed: f.CommittedAt, InForce: f.At, After: f.At.Sub(f.CommittedAt), By: f.By})
		}
	case model.GrantRecord:
		if inside {
			t.granted(v)
		}
	case model.Read:
		if inside && r.By != nil {
			t.read(r.By.Operator, v, r.At)
		}
	}
}

// differ tells what a new set of pairs opens and shuts.
func (t *tally) differ(p model.Permitted, at time.Time, decide func(string, ...any)) {
	was := map[model.PermittedPair]bool{}
	for _, x := range t.permitted.Pairs {
		was[x] = true
	}
	for _, x := range p.Pairs {
		if !was[x] {
			t.since[pairKey{x.Policy, x.From, x.To}] = at
			decide("%s to %s is permitted under policy %s, on %s", x.From, x.To, x.Policy, x.Basis)
		}
		delete(was, x)
	}
	for _, x := range t.permitted.Pairs {
		if was[x] {
			decide("%s to %s is no longer permitted under policy %s, on %s", x.From, x.To, x.Policy, x.Basis)
		}
	}
}

func (t *tally) closed(c model.Closure, at time.Time) {
	t.closures[c.Name] = len(t.rep.Closures)
	t.rep.Closures = append(t.rep.Closures, ReportClosure{Name: c.Name, What: scope(c), Reason: c.Reason, ClosedAt: at})
}

func scope(c model.Closure) string {
	var parts []string
	for _, p := range [][2]string{{"from", c.From}, {"to", c.To}, {"on basis", c.Basis}} {
		if p[1] != "" {
			parts = append(parts, p[0]+" "+p[1])
		}
	}
	if len(parts) == 0 {
		return "everything"
	}
	return "all relays " + strings.Join(parts, " ")
}

func (t *tally) granted(g model.GrantRecord) {
	s := t.sentinel[g.Edge]
	if s == nil {
		s = &ReportSentinel{Edge: g.Edge, Region: g.Region}
		t.sentinel[g.Edge] = s
	}
	if c := g.Sentinel; c != nil { // counts of one process only grow; an edge that was not heard repeats itself
		k := sentinelKey{g.Edge, c.Began}
		was := t.counts[k]
		s.Violations += max(0, c.Violations-was.Violations)
		s.Late += max(0, c.Late-was.Late)
		t.counts[k] = model.SentinelCount{Violations: max(c.Violations, was.Violations), Late: max(c.Late, was.Late)}
	}
	for _, x := range g.Grants {
		for _, p := range x.Policies {
			t.grants[pairKey{p, x.From, x.To}]++
		}
	}
	for _, m := range g.Relays {
		if m.Epoch < t.epochs[g.Edge] || m.Epoch == t.epochs[g.Edge] && m.Seq <= t.seen[g.Edge] {
			continue
		}
		t.epochs[g.Edge], t.seen[g.Edge] = m.Epoch, m.Seq
		t.relays[relayKey{m.From, m.To, g.Edge}] += m.Count
	}
	for _, m := range g.Refusals {
		k := refusalKey{m.Rule, m.From, m.To}
		at := refusalMinute{g.Edge, m.Minute.Unix(), k}
		x := t.refusals[k]
		if x == nil {
			x = &ReportRefusals{Rule: m.Rule, From: m.From, To: m.To, First: m.Minute}
			t.refusals[k] = x
		}
		x.Count += max(0, m.Count-t.refused[at])
		t.refused[at] = max(m.Count, t.refused[at])
		if m.Minute.Before(x.First) {
			x.First = m.Minute
		}
		if !m.Minute.Before(x.Last) {
			x.Last = m.Minute
			x.Sample = cmp.Or(m.Sample, x.Sample)
		}
	}
}

func (t *tally) read(by string, v model.Read, at time.Time) {
	k := operatorKey{by, v.Procedure}
	x := t.reads[k]
	if x == nil {
		x = &seenReads{ReportReads: ReportReads{Operator: by, Procedure: v.Procedure, First: at}, named: map[string]bool{}}
		t.reads[k] = x
	}
	x.Records++
	x.Last = at
	switch {
	case v.Customer == "":
		x.Everyone++
	case !x.named[v.Customer]:
		x.named[v.Customer] = true
		x.Customers++
	}
	if v.Reason == "" {
		x.NoReason++
	}
}

// saw ends the state that a region was in, and begins the next.
func (t *tally) saw(s model.RegionState) {
	x := t.regions[s.Region]
	if x == nil {
		x = &seenRegion{ReportRegion: ReportRegion{Region: s.Region, State: model.RegionUnknown}, since: t.from}
		t.regions[s.Region] = x
	}
	if s.State == model.RegionDown && x.State != model.RegionDown && s.At.After(t.from) {
		x.Outages++
	}
	x.until(s.At)
	x.State = s.State
}

func (x *seenRegion) until(at time.Time) {
	if !at.After(x.since) {
		return
	}
	d := at.Sub(x.since)
	x.since = at
	switch x.State {
	case model.RegionUp:
		x.Up += d
	case model.RegionDown:
		x.Down += d
	case model.RegionDrained:
		x.Drained += d
	default:
		x.Unknown += d
	}
}

func (t *tally) finish() {
	r := t.rep
	review := map[pairKey]string{}
	for _, p := range t.adopted.Policies {
		for _, x := range p.Pairs {
			review[pairKey{p.Name, x.From, x.To}] = x.ReviewBy
		}
	}
	day := t.to.UTC().Format(time.DateOnly)
	for _, x := range t.permitted.Pairs {
		k := pairKey{x.Policy, x.From, x.To}
		by := review[k]
		pair := ReportPair{Policy: x.Policy, From: x.From, To: x.To, Basis: x.Basis, ReviewBy: by, ReviewDue: by != "" && by <= day, Grants: t.grants[k]}
		if at, ok := t.since[k]; ok {
			pair.Since = &at
		}
		r.Pairs = append(r.Pairs, pair)
	}
	for _, b := range t.adopted.Bases {
		r.Bases = append(r.Bases, ReportBasis{b.Name, b.Kind, b.Status, b.Expires, b.Source, b.Expires != "" && b.Expires <= day})
	}
	for _, k := range slices.SortedFunc(maps.Keys(t.relays), func(a, b relayKey) int {
		return cmp.Or(cmp.Compare(a.from, b.from), cmp.Compare(a.to, b.to), cmp.Compare(a.edge, b.edge))
	}) {
		r.Relays = append(r.Relays, ReportRelays{k.from, k.to, k.edge, t.relays[k]})
	}
	for _, k := range slices.SortedFunc(maps.Keys(t.refusals), func(a, b refusalKey) int {
		return cmp.Or(cmp.Compare(a.rule, b.rule), cmp.Compare(a.from, b.from), cmp.Compare(a.to, b.to))
	}) {
		r.Refusals = append(r.Refusals, *t.refusals[k])
	}
	for _, k := range slices.SortedFunc(maps.Keys(t.operators), func(a, b operatorKey) int {
		return cmp.Or(cmp.Compare(a.operator, b.operator), cmp.Compare(a.what, b.what))
	}) {
		r.Operators = append(r.Operators, ReportOperator{k.operator, strings.TrimSpace(k.what), t.operators[k]})
	}
	for _, k := range slices.SortedFunc(maps.Keys(t.reads), func(a, b operatorKey) int {
		return cmp.Or(cmp.Compare(a.operator, b.operator), cmp.Compare(a.what, b.what))
	}) {
		r.Reads = append(r.Reads, t.reads[k].ReportReads)
	}
	end := t.to
	if t.last.Before(end) {
		end = t.last // nothing is known of the time after the last record
	}
	for _, region := range slices.Sorted(maps.Keys(t.regions)) {
		x := t.regions[region]
		x.until(end)
		r.Regions = append(r.Regions, x.ReportRegion)
	}
	for _, edge := range slices.Sorted(maps.Keys(t.sentinel)) {
		r.Sentinel = append(r.Sentinel, *t.sentinel[edge])
	}
	for _, n := range []int{len(r.Decisions), len(r.Tightening)} {
		r.LeftOut += max(0, n-maxRows)
	}
	r.Decisions = r.Decisions[max(0, len(r.Decisions)-maxRows):]
	r.Tightening = r.Tightening[max(0, len(r.Tightening)-maxRows):]
}

// HTML writes a report as one page without any outside asset.
func (r *Report) HTML(w io.Writer) error { return page.Execute(w, r) }

var page = template.Must(template.New("report").Funcs(template.FuncMap{
	"at":   func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05") },
	"ms":   func(d time.Duration) int64 { return d.Milliseconds() },
	"last": func(size int64) int64 { return size - 1 },
	"min":  func(d time.Duration) string { return fmt.Sprintf("%.1f", d.Minutes()) },
}).Parse(`<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Zone {{.Verdict.Zone}}: what crossed its borders</title>
<style>body{font:15px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222}table{border-collapse:collapse;width:100%}
th,td{text-align:left;padding:.2em .8em .2em 0;border-bottom:1px solid #ddd;vertical-align:top}h2{margin-top:2em}.bad{color:#a00;font-weight:bold}</style></head><body>
<h1>Zone {{.Verdict.Zone}}</h1>
<p>From {{at .Verdict.From}} to {{at .Verdict.To}}, UTC. Exported {{at .Verdict.Exported}} by node {{.Verdict.Node}}. Records {{.Verdict.First}} to {{last .Verdict.Size}} of the zone's log, root {{.Verdict.Root}}.</p>
{{if .Verdict.Total}}<p class="bad">The evidence is not sound: {{.Verdict.Total}} findings.</p><ul>{{range .Verdict.Findings}}<li>line {{.Line}}, record {{.Record}}: {{.What}}</li>{{end}}</ul>
{{else}}<p>The evidence is sound: every signature and proof checks out, and every decision follows from the rules that the zone had adopted. The zone's key was taken from: {{.Verdict.Anchor}}.</p>{{end}}
<h2>Permitted at the end</h2><table><tr><th>from</th><th>to</th><th>policy</th><th>legal basis</th><th>since</th><th>review by</th><th>grants</th></tr>
{{range .Pairs}}<tr><td>{{.From}}</td><td>{{.To}}</td><td>{{.Policy}}</td><td>{{.Basis}}</td><td>{{if .Since}}{{at .Since}}{{else}}before{{end}}</td><td{{if .ReviewDue}} class="bad"{{end}}>{{.ReviewBy}}{{if .ReviewDue}} (due){{end}}</td><td>{{.Grants}}</td></tr>{{else}}<tr><td colspan="7">nothing</td></tr>{{end}}</table>
<h2>Legal bases</h2><table><tr><th>name</th><th>kind</th><th>status</th><th>expires</th><th>source</th></tr>
{{range .Bases}}<tr><td>{{.Name}}</td><td>{{.Kind}}</td><td>{{.Status}}</td><td{{if .Expired}} class="bad"{{end}}>{{.Expires}}{{if .Expired}} (expired){{end}}</td><td>{{.Source}}</td></tr>{{end}}</table>
<h2>Closures</h2><table><tr><th>name</th><th>what</th><th>reason</th><th>closed</th><th>lifted</th></tr>
{{range .Closures}}<tr><td>{{.Name}}</td><td>{{.What}}</td><td>{{.Reason}}</td><td>{{at .ClosedAt}}</td><td>{{if .OpenedAt}}{{at .OpenedAt}}{{else}}it holds{{end}}</td></tr>{{else}}<tr><td colspan="5">none</td></tr>{{end}}</table>
<h2>Tightenings in force</h2><table><tr><th>pair</th><th>committed</th><th>in force</th><th>after, ms</th><th>by</th></tr>
{{range .Tightening}}<tr><td>{{.Pair}}</td><td>{{at .Committed}}</td><td>{{at .InForce}}</td><td>{{ms .After}}</td><td>{{.By}}</td></tr>{{else}}<tr><td colspan="5">none</td></tr>{{end}}</table>
<h2>Relays</h2><table><tr><th>from</th><th>to</th><th>edge</th><th>relays</th></tr>
{{range .Relays}}<tr><td>{{.From}}</td><td>{{.To}}</td><td>{{.Edge}}</td><td>{{.Count}}</td></tr>{{else}}<tr><td colspan="4">none</td></tr>{{end}}</table>
<h2>Refusals</h2><table><tr><th>rule</th><th>from</th><th>to</th><th>refusals</th><th>first</th><th>last</th><th>one of the requests</th></tr>
{{range .Refusals}}<tr><td>{{.Rule}}</td><td>{{.From}}</td><td>{{.To}}</td><td>{{.Count}}</td><td>{{at .First}}</td><td>{{at .Last}}</td><td>{{.Sample}}</td></tr>{{else}}<tr><td colspan="7">none</td></tr>{{end}}</table>
<h2>Regions</h2><p>How most of the zone's observers saw them, in minutes. Uptime is the share of the time seen up or down.</p><table><tr><th>region</th><th>at the end</th><th>up</th><th>down</th><th>outages</th><th>drained</th><th>not seen</th><th>uptime</th></tr>
{{range .Regions}}<tr><td>{{.Region}}</td><td{{if eq .State "down"}} class="bad"{{end}}>{{.State}}</td><td>{{min .Up}}</td><td>{{min .Down}}</td><td>{{.Outages}}</td><td>{{min .Drained}}</td><td>{{min .Unknown}}</td><td>{{.Uptime}}</td></tr>{{else}}<tr><td colspan="8">none seen</td></tr>{{end}}</table>
<h2>Sentinel</h2><p>A second, independent check at each edge's border. What it stopped although the first check had let it pass must be 0.</p><table><tr><th>edge</th><th>region</th><th>stopped</th><th>stopped just after a change of rules</th></tr>
{{range .Sentinel}}<tr><td>{{.Edge}}</td><td>{{.Region}}</td><td{{if .Violations}} class="bad"{{end}}>{{.Violations}}</td><td>{{.Late}}</td></tr>{{else}}<tr><td colspan="4">no edge was heard</td></tr>{{end}}</table>
<h2>Operators</h2><table><tr><th>operator</th><th>what</th><th>records</th></tr>
{{range .Operators}}<tr><td>{{.Operator}}</td><td>{{.What}}</td><td>{{.Count}}</td></tr>{{else}}<tr><td colspan="3">none</td></tr>{{end}}</table>
<h2>Reads of customers' data</h2><p>A record stands for what an operator reads in the same way, of the same customer, within a minute.</p><table><tr><th>operator</th><th>procedure</th><th>records</th><th>customers</th><th>of every customer</th><th>without a reason</th><th>first</th><th>last</th></tr>
{{range .Reads}}<tr><td>{{.Operator}}</td><td>{{.Procedure}}</td><td>{{.Records}}</td><td>{{.Customers}}</td><td>{{.Everyone}}</td><td>{{.NoReason}}</td><td>{{at .First}}</td><td>{{at .Last}}</td></tr>{{else}}<tr><td colspan="8">none</td></tr>{{end}}</table>
<h2>Decisions</h2>{{if .LeftOut}}<p>{{.LeftOut}} older rows are left out.</p>{{end}}<table><tr><th>at</th><th>record</th><th>what</th><th>operator</th></tr>
{{range .Decisions}}<tr><td>{{at .At}}</td><td>{{.Record}}</td><td>{{.What}}</td><td>{{.Operator}}</td></tr>{{else}}<tr><td colspan="4">none</td></tr>{{end}}</table>
</body></html>
`))

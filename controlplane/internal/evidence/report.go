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
	Operators  []ReportOperator  `json:"operators"`
	LeftOut    int               `json:"left_out"` // rows of decisions and tightenings beyond the limit, the oldest
}

type ReportPair struct {
	Policy    string `json:"policy"`
	From      string `json:"from"`
	To        string `json:"to"`
	Basis     string `json:"basis"`
	ReviewBy  string `json:"review_by,omitempty"`
	ReviewDue bool   `json:"review_due"` // at the end of the interval
	Grants    int64  `json:"grants"`
}

type ReportBasis struct {
	Name    string `json:"name"`
	Kind    string `json:"kind"`
	Status  string `json:"status"`
	Expires string `json:"expires,omitempty"`
	Source  string `json:"source,omitempty"`
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

// ReportRegion says in how many minutes of the interval an edge of a region asked the zone for grants. Edges that have no
// pair to ask for are not heard of this way, so a region without pairs out of it is not listed.
type ReportRegion struct {
	Region  string `json:"region"`
	Heard   int64  `json:"minutes_heard"`
	Minutes int64  `json:"minutes"`
}

type ReportOperator struct {
	Operator string `json:"operator"`
	What     string `json:"what"`
	Count    int64  `json:"count"`
}

// Uptime is a share in percent, cut to two digits.
func (r ReportRegion) Uptime() string {
	if r.Minutes == 0 {
		return "-"
	}
	hundredths := r.Heard * 10000 / r.Minutes
	return fmt.Sprintf("%d.%02d %%", hundredths/100, hundredths%100)
}

type relayKey struct{ from, to, edge string }
type refusalKey struct{ rule, from, to string }
type refusalMinute struct {
	edge   string
	minute int64
	refusalKey
}
type operatorKey struct{ operator, what string }

// tally gathers a report while records pass by.
type tally struct {
	from, to  time.Time
	rep       *Report
	adopted   model.Adopted
	permitted model.Permitted
	grants    map[pairKey]int64
	closures  map[string]int
	relays    map[relayKey]int64
	refusals  map[refusalKey]*ReportRefusals
	refused   map[refusalMinute]int64 // an edge tells a minute again until it knows that it was heard
	operators map[operatorKey]int64
	minutes   map[string]map[int64]bool
	last      time.Time
	seen      map[string]uint64 // the newest entry of each edge's relays: edges repeat themselves
	epochs    map[string]int64
}

// ReportOn verifies a bundle and sums it up. Records before the interval tell what held at its beginning and are counted
// nowhere.
func ReportOn(r io.Reader, trust Trust) (*Report, error) {
	t := &tally{rep: &Report{}, grants: map[pairKey]int64{}, closures: map[string]int{}, relays: map[relayKey]int64{}, refusals: map[refusalKey]*ReportRefusals{}, refused: map[refusalMinute]int64{},
		operators: map[operatorKey]int64{}, minutes: map[string]map[int64]bool{}, seen: map[string]uint64{}, epochs: map[string]int64{}}
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
	if inside && r.By != nil {
		t.operators[operatorKey{r.By.Operator, r.Kind + " " + map[bool]string{true: r.Key}[r.Kind == KindWrite]}]++
	}
	switch v := r.value.(type) { // Verify has found what does not decode
	case state:
		if s := v; len(t.rep.Closures) == 0 && s.Adopted != nil {
			t.adopted = *s.Adopted
			if s.Permitted != nil {
				t.permitted = *s.Permitted
			}
			for _, c := range s.Closures {
				t.closed(c, c.At)
			}
		}
	case model.Adopted:
		t.adopted = v
		decide("the zone adopted the rules of catalog %d.%d", v.CatalogEpoch, v.CatalogIndex)
	case model.Permitted:
		t.differ(v, decide)
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
	case model.InForce:
		if f := v; r.Kind == KindInForce && inside && !f.At.IsZero() {
			t.rep.Tightening = append(t.rep.Tightening, ReportTightened{Pair: pairKey{f.Policy, f.From, f.To}.String(), Committed: f.CommittedAt, InForce: f.At, After: f.At.Sub(f.CommittedAt), By: f.By})
		}
	case model.GrantRecord:
		if inside {
			t.granted(v, r.At)
		}
	}
}

// differ tells what a new set of pairs opens and shuts.
func (t *tally) differ(p model.Permitted, decide func(string, ...any)) {
	was := map[model.PermittedPair]bool{}
	for _, x := range t.permitted.Pairs {
		was[x] = true
	}
	for _, x := range p.Pairs {
		if !was[x] {
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

func (t *tally) granted(g model.GrantRecord, at time.Time) {
	if t.minutes[g.Region] == nil {
		t.minutes[g.Region] = map[int64]bool{}
	}
	t.minutes[g.Region][at.Unix()/60] = true
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
		r.Pairs = append(r.Pairs, ReportPair{x.Policy, x.From, x.To, x.Basis, by, by != "" && by <= day, t.grants[k]})
	}
	for _, b := range t.adopted.Bases {
		r.Bases = append(r.Bases, ReportBasis(b))
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
	end := t.to
	if t.last.Before(end) {
		end = t.last
	}
	for _, region := range slices.Sorted(maps.Keys(t.minutes)) {
		heard := t.minutes[region]
		first := slices.Min(slices.Collect(maps.Keys(heard)))
		begin := max(first, t.from.Unix()/60)
		r.Regions = append(r.Regions, ReportRegion{region, int64(len(heard)), max(end.Unix()/60-begin+1, int64(len(heard)))})
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
	"at": func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05") },
	"ms": func(d time.Duration) int64 { return d.Milliseconds() },
}).Parse(`<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Zone {{.Verdict.Zone}}: what crossed its borders</title>
<style>body{font:15px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222}table{border-collapse:collapse;width:100%}
th,td{text-align:left;padding:.2em .8em .2em 0;border-bottom:1px solid #ddd;vertical-align:top}h2{margin-top:2em}.bad{color:#a00;font-weight:bold}</style></head><body>
<h1>Zone {{.Verdict.Zone}}</h1>
<p>From {{at .Verdict.From}} to {{at .Verdict.To}}, UTC. Exported {{at .Verdict.Exported}} by node {{.Verdict.Node}}. Records {{.Verdict.First}} to {{.Verdict.Size}} of the zone's log, root {{.Verdict.Root}}.</p>
{{if .Verdict.Total}}<p class="bad">The evidence is not sound: {{.Verdict.Total}} findings.</p><ul>{{range .Verdict.Findings}}<li>line {{.Line}}, record {{.Record}}: {{.What}}</li>{{end}}</ul>
{{else}}<p>The evidence is sound: every signature and proof checks out, and every decision follows from the rules that the zone had adopted. The zone's key was taken from: {{.Verdict.Anchor}}.</p>{{end}}
<h2>Permitted at the end</h2><table><tr><th>from</th><th>to</th><th>policy</th><th>legal basis</th><th>review by</th><th>grants</th></tr>
{{range .Pairs}}<tr><td>{{.From}}</td><td>{{.To}}</td><td>{{.Policy}}</td><td>{{.Basis}}</td><td{{if .ReviewDue}} class="bad"{{end}}>{{.ReviewBy}}{{if .ReviewDue}} (due){{end}}</td><td>{{.Grants}}</td></tr>{{else}}<tr><td colspan="6">nothing</td></tr>{{end}}</table>
<h2>Legal bases</h2><table><tr><th>name</th><th>kind</th><th>status</th><th>expires</th><th>source</th></tr>
{{range .Bases}}<tr><td>{{.Name}}</td><td>{{.Kind}}</td><td>{{.Status}}</td><td>{{.Expires}}</td><td>{{.Source}}</td></tr>{{end}}</table>
<h2>Closures</h2><table><tr><th>name</th><th>what</th><th>reason</th><th>closed</th><th>lifted</th></tr>
{{range .Closures}}<tr><td>{{.Name}}</td><td>{{.What}}</td><td>{{.Reason}}</td><td>{{at .ClosedAt}}</td><td>{{if .OpenedAt}}{{at .OpenedAt}}{{else}}it holds{{end}}</td></tr>{{else}}<tr><td colspan="5">none</td></tr>{{end}}</table>
<h2>Tightenings in force</h2><table><tr><th>pair</th><th>committed</th><th>in force</th><th>after, ms</th><th>by</th></tr>
{{range .Tightening}}<tr><td>{{.Pair}}</td><td>{{at .Committed}}</td><td>{{at .InForce}}</td><td>{{ms .After}}</td><td>{{.By}}</td></tr>{{else}}<tr><td colspan="5">none</td></tr>{{end}}</table>
<h2>Relays</h2><table><tr><th>from</th><th>to</th><th>edge</th><th>relays</th></tr>
{{range .Relays}}<tr><td>{{.From}}</td><td>{{.To}}</td><td>{{.Edge}}</td><td>{{.Count}}</td></tr>{{else}}<tr><td colspan="4">none</td></tr>{{end}}</table>
<h2>Refusals</h2><table><tr><th>rule</th><th>from</th><th>to</th><th>refusals</th><th>first</th><th>last</th><th>one of the requests</th></tr>
{{range .Refusals}}<tr><td>{{.Rule}}</td><td>{{.From}}</td><td>{{.To}}</td><td>{{.Count}}</td><td>{{at .First}}</td><td>{{at .Last}}</td><td>{{.Sample}}</td></tr>{{else}}<tr><td colspan="7">none</td></tr>{{end}}</table>
<h2>Regions</h2><p>Minutes in which an edge of the region asked the zone for grants, since it first did. Regions with no pair out of them do not ask.</p><table><tr><th>region</th><th>minutes heard</th><th>of</th><th>share</th></tr>
{{range .Regions}}<tr><td>{{.Region}}</td><td>{{.Heard}}</td><td>{{.Minutes}}</td><td>{{.Uptime}}</td></tr>{{else}}<tr><td colspan="4">none</td></tr>{{end}}</table>
<h2>Operators</h2><table><tr><th>operator</th><th>what</th><th>records</th></tr>
{{range .Operators}}<tr><td>{{.Operator}}</td><td>{{.What}}</td><td>{{.Count}}</td></tr>{{else}}<tr><td colspan="3">none</td></tr>{{end}}</table>
<h2>Decisions</h2>{{if .LeftOut}}<p>{{.LeftOut}} older rows are left out.</p>{{end}}<table><tr><th>at</th><th>record</th><th>what</th><th>operator</th></tr>
{{range .Decisions}}<tr><td>{{at .At}}</td><td>{{.Record}}</td><td>{{.What}}</td><td>{{.Operator}}</td></tr>{{else}}<tr><td colspan="4">none</td></tr>{{end}}</table>
</body></html>
`))

package evidence

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"bailiwick/controlplane/internal/model"
	"bailiwick/shared/checkpoint"
	"bailiwick/shared/fault"
)

// RowsFormat is that of a file of rows: lines of JSON, a heading, entries with their rows, edges that did not answer, and
// an end. It carries no signature: each entry's digest is in the zone's log, which does. The heading is a claim: what an
// interval or a region should have had and the file has not is found by the log.
const (
	RowsFormat  = "bailiwick-rows/1"
	maxRowsLine = 256 << 20 // one edge's relays of a minute under one grant
)

// RowsHeading opens a file of rows.
type RowsHeading struct {
	Format   string    `json:"format"`
	Zone     string    `json:"zone"`
	Region   string    `json:"region"` // that the relays left
	From     time.Time `json:"from"`
	To       time.Time `json:"to"`
	Exported time.Time `json:"exported_at"`
}

// rowsLine is one line after the heading: an entry of an edge, an edge that is missing, or the end.
type rowsLine struct {
	Edge    string             `json:"edge,omitempty"`
	Entry   *model.RelayMinute `json:"entry,omitempty"`
	Rows    []rowText          `json:"rows,omitempty"`
	Missing string             `json:"missing,omitempty"` // why this edge's rows are not here, or not all
	End     *int64             `json:"end,omitempty"`     // how many entries there are
}

// rowText is a row as people read it; the entry has the rest.
type rowText struct {
	At        time.Time `json:"at"`
	RequestID string    `json:"request_id"`
}

// RowsWriter writes a file of rows.
type RowsWriter struct {
	out     *bufio.Writer
	entries int64
}

// NewRowsWriter writes the heading.
func NewRowsWriter(w io.Writer, h RowsHeading) (*RowsWriter, error) {
	o := &RowsWriter{out: bufio.NewWriterSize(w, 64<<10)}
	h.Format = RowsFormat
	return o, o.line(h)
}

func (o *RowsWriter) line(v any) error {
	_, err := o.out.Write(append(model.Encode(v), '\n'))
	return err
}

// Entry writes one edge's entry with its rows, as the edge gave them.
func (o *RowsWriter) Entry(edge string, m model.RelayMinute, rows [][]byte) error {
	l := rowsLine{Edge: edge, Entry: &m}
	for _, raw := range rows {
		r, err := checkpoint.ParseRow(raw)
		if err != nil || r.Grant != m.Grant || r.From != m.From || r.To != m.To {
			return o.Missing(edge, fmt.Sprintf("entry %d holds what is no row of it", m.Seq))
		}
		l.Rows = append(l.Rows, rowText{r.At, r.RequestID})
	}
	o.entries++
	return o.line(l)
}

// Missing says why rows of an edge are not in the file.
func (o *RowsWriter) Missing(edge, why string) error {
	return o.line(rowsLine{Edge: edge, Missing: why})
}

// Close writes the end: without it the file was cut short.
func (o *RowsWriter) Close() error {
	return errors.Join(o.line(rowsLine{End: &o.entries}), o.out.Flush())
}

// Rows is a file of rows, summed up.
type Rows struct {
	RowsHeading
	entries map[rowsKey]rowsSum
	missing map[string]string // edges, and why
}

type rowsKey struct {
	edge  string
	epoch int64
	seq   uint64
}

type rowsSum struct {
	model.RelayMinute        // as the edge says it
	rows              int64  // that are here
	digest            []byte // of them
}

// ReadRows reads a file of rows. Its memory is that of the entries, not of the rows.
func ReadRows(r io.Reader) (*Rows, error) {
	bad := func(line int, format string, args ...any) error {
		return fault.New(fault.Invalid, "ROWS_MALFORMED", "line %d of the rows: %w; get the file again from who exported it", line, fmt.Errorf(format, args...))
	}
	in := bufio.NewScanner(r)
	in.Buffer(nil, maxRowsLine)
	out := &Rows{entries: map[rowsKey]rowsSum{}, missing: map[string]string{}}
	line, ended := 1, false
	if !in.Scan() {
		return nil, bad(line, "there is nothing: %w", cmp.Or(in.Err(), io.ErrUnexpectedEOF))
	}
	if err := strictJSON(in.Bytes(), &out.RowsHeading); err != nil {
		return nil, bad(line, "%w", err)
	}
	if out.Format != RowsFormat {
		return nil, bad(line, "its format is %.40q, this program reads %s", out.Format, RowsFormat)
	}
	for in.Scan() {
		line++
		var l rowsLine
		if err := strictJSON(in.Bytes(), &l); err != nil {
			return nil, bad(line, "%w", err)
		}
		switch {
		case !bytes.Equal(model.Encode(l), in.Bytes()):
			return nil, bad(line, "it is not written as the program writes it")
		case ended:
			return nil, bad(line, "text follows the end")
		case l.End != nil:
			if ended = true; *l.End != int64(len(out.entries)) {
				return nil, bad(line, "it has %d entries and ends with %d", len(out.entries), *l.End)
			}
		case l.Missing != "":
			out.missing[l.Edge] = l.Missing
		case l.Entry == nil:
			return nil, bad(line, "it is no entry")
		default:
			k := rowsKey{l.Edge, l.Entry.Epoch, l.Entry.Seq}
			if _, twice := out.entries[k]; twice {
				return nil, bad(line, "entry %d of edge %s stands there twice", k.seq, k.edge)
			}
			d := checkpoint.NewDigest()
			var raw []byte
			for _, t := range l.Rows {
				raw = checkpoint.Row{At: t.At, RequestID: t.RequestID, Grant: l.Entry.Grant, From: l.Entry.From, To: l.Entry.To}.Append(raw[:0])
				d.Add(raw)
			}
			out.entries[k] = rowsSum{*l.Entry, int64(len(l.Rows)), d.Sum(l.Entry.Prev)}
		}
	}
	if err := in.Err(); err != nil {
		return nil, bad(line+1, "%w", err)
	}
	if !ended {
		return nil, bad(line+1, "the file ends here: it was cut short")
	}
	return out, nil
}

// RowsVerdict is what came of holding rows against the log.
type RowsVerdict struct {
	Region  string `json:"region"`
	Entries int64  `json:"entries"` // that are in the log as they are in the file
	Rows    int64  `json:"rows"`    // in them
	Untold  int64  `json:"untold"`  // entries that are later than what the bundle has of their edge
}

// rowsCheck holds a file of rows against the log while its records pass by.
type rowsCheck struct {
	*Rows
	v      *Verdict
	seen   map[rowsKey]bool
	newest map[string]rowsKey // by edge, of the log
	first  map[string]rowsKey
	result RowsVerdict
}

func (v *Verdict) holdRows(h heading, rows []*Rows) (checks []*rowsCheck) {
	for _, r := range rows {
		c := &rowsCheck{Rows: r, v: v, seen: map[rowsKey]bool{}, newest: map[string]rowsKey{}, first: map[string]rowsKey{}, result: RowsVerdict{Region: r.Region}}
		if r.Zone != h.Zone {
			v.find(0, 0, "the rows are of zone %s, the bundle is of zone %s", r.Zone, h.Zone)
		}
		if r.From.Before(h.From) { // those after its end are counted as untold
			v.find(0, 0, "the rows begin at %s, the bundle at %s: export one that begins no later", r.From.Format(time.RFC3339), h.From.Format(time.RFC3339))
		}
		checks = append(checks, c)
	}
	return checks
}

func (c *rowsCheck) take(line, number int64, e entry) {
	g, ok := e.value.(model.GrantRecord)
	if !ok {
		return
	}
	for _, m := range g.Relays {
		k := rowsKey{g.Edge, m.Epoch, m.Seq}
		if m.From != c.Region || c.seen[k] {
			continue
		}
		if _, any := c.first[g.Edge]; !any {
			c.first[g.Edge] = k
		}
		c.newest[g.Edge], c.seen[k] = k, true
		got, here := c.entries[k]
		what := fmt.Sprintf("relays of edge %s from %s to %s under grant %s at %s (entry %d)", g.Edge, m.From, m.To, m.Grant, m.Minute.Format("2006-01-02T15:04Z"), m.Seq)
		covered := m.Minute.Before(c.To) && m.Minute.Add(time.Minute).After(c.From)
		switch {
		case !here && !covered:
		case !here && c.missing[g.Edge] != "":
			c.v.find(line, number, "%s: the %d rows are missing, the edge did not hand them out: %s", what, m.Count, c.missing[g.Edge])
		case !here:
			c.v.find(line, number, "%s: the %d rows are missing: the edge has them no longer (see relay rows in its limits), or they were left out", what, m.Count)
		case got.rows < m.Count:
			c.v.find(line, number, "%s: %d of %d rows are missing", what, m.Count-got.rows, m.Count)
		case got.rows > m.Count:
			c.v.find(line, number, "%s: there are %d rows more than the %d that were logged", what, got.rows-m.Count, m.Count)
		case !bytes.Equal(got.digest, m.Digest) || !bytes.Equal(model.Encode(got.RelayMinute), model.Encode(m)):
			c.v.find(line, number, "%s: a row was changed or moved, the %d rows do not come to the logged digest", what, m.Count)
		default:
			c.result.Entries++
			c.result.Rows += got.rows
		}
	}
}

// finish looks at what the log does not have.
func (c *rowsCheck) finish() {
	for _, k := range slices.SortedFunc(maps.Keys(c.entries), func(a, b rowsKey) int {
		return cmp.Or(cmp.Compare(a.edge, b.edge), cmp.Compare(a.epoch, b.epoch), cmp.Compare(a.seq, b.seq))
	}) {
		newest, any := c.newest[k.edge]
		switch m := c.entries[k]; {
		case c.seen[k]:
		case !any || k.epoch > newest.epoch || k.epoch == newest.epoch && k.seq > newest.seq:
			c.result.Untold++
		case k.epoch < c.first[k.edge].epoch || k.epoch == c.first[k.edge].epoch && k.seq < c.first[k.edge].seq: // told before the bundle
		default:
			c.v.find(0, 0, "entry %d of edge %s, %d relays from %s to %s at %s, is not in the log: the rows are extra", k.seq, k.edge, m.rows, m.From, m.To, m.Minute.Format("2006-01-02T15:04Z"))
		}
	}
	c.v.Rows = append(c.v.Rows, c.result)
}

package evidence

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"bailiwick/controlplane/internal/model"
)

// rowsFile writes what the edge of a history keeps, after change has had its way with it.
func (h *history) rowsFile(change func(told []model.RelayMinute, rows map[uint64][][]byte) []model.RelayMinute) []byte {
	h.t.Helper()
	rows := map[uint64][][]byte{}
	for seq, all := range h.rows {
		rows[seq] = slices.Clone(all)
	}
	told := slices.Clone(h.told)
	if change != nil {
		told = change(told, rows)
	}
	var b bytes.Buffer
	w, err := NewRowsWriter(&b, RowsHeading{Zone: "emea", Region: "eu-west", From: h.at.Add(-time.Hour), To: h.at.Add(time.Hour)})
	if err != nil {
		h.t.Fatal(err)
	}
	for _, m := range told {
		if err := w.Entry("eu-west-edge-1", m, rows[m.Seq]); err != nil {
			h.t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		h.t.Fatal(err)
	}
	return b.Bytes()
}

func TestRows_AreThoseOfTheLogOrItIsSaid(t *testing.T) {
	h := day(t) // entries 1 to 3 with 3, 4 and 5 rows
	bundle := h.export()
	hold := func(t *testing.T, file []byte) *Verdict {
		r, err := ReadRows(bytes.NewReader(file))
		if err != nil {
			t.Fatal(err)
		}
		trust := h.trust()
		trust.Rows = []*Rows{r}
		return verdict(t, bundle, trust)
	}
	if v := hold(t, h.rowsFile(nil)); v.Total != 0 || len(v.Rows) != 1 || v.Rows[0] != (RowsVerdict{Region: "eu-west", Entries: 3, Rows: 12}) {
		t.Fatalf("as they are: %+v, findings %+v", v.Rows, v.Findings)
	}
	type told = []model.RelayMinute
	for _, c := range []struct {
		name   string
		change func(m told, rows map[uint64][][]byte) told
		want   string
	}{
		{"a row is missing", func(m told, rows map[uint64][][]byte) told { rows[2] = rows[2][:3]; return m }, "(entry 2): 1 of 4 rows are missing"},
		{"a row is extra", func(m told, rows map[uint64][][]byte) told { rows[2] = append(rows[2], rows[2][0]); return m }, "(entry 2): there are 1 rows more than the 4"},
		{"a row is another", func(m told, rows map[uint64][][]byte) told {
			rows[2][1] = bytes.Replace(rows[2][1], []byte("r2-1"), []byte("r2-9"), 1)
			return m
		}, "(entry 2): a row was changed or moved"},
		{"two rows change places", func(m told, rows map[uint64][][]byte) told {
			rows[3][0], rows[3][1] = rows[3][1], rows[3][0]
			return m
		}, "(entry 3): a row was changed or moved"},
		{"an entry is left out", func(m told, _ map[uint64][][]byte) told { return m[:2] }, "(entry 3): the 5 rows are missing"},
		{"an entry is made up", func(m told, rows map[uint64][][]byte) told {
			x := m[1]
			x.Epoch = 0
			return append(told{x}, m...)
		}, ""},
		{"an entry says another count", func(m told, _ map[uint64][][]byte) told { m[1].Count++; return m }, "(entry 2): a row was changed or moved"},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := hold(t, h.rowsFile(c.change))
			if c.want == "" { // of an epoch before the log knows the edge: nobody can say
				if v.Total != 0 {
					t.Errorf("findings %+v", v.Findings)
				}
				return
			}
			if v.Total != 1 || !strings.Contains(fmt.Sprint(v.Findings), c.want) {
				t.Errorf("want %q, findings %+v", c.want, v.Findings)
			}
		})
	}
	t.Run("an entry that the log leaves out is extra", func(t *testing.T) {
		other := newHistory(t)
		other.rules()
		other.grant(1)
		other.chain["eu-west-edge-1"] = model.RelayMinute{Seq: 2, Epoch: 1}
		other.grant(1)
		other.head()
		b := other.export()
		r, err := ReadRows(bytes.NewReader(other.rowsFile(func(m []model.RelayMinute, rows map[uint64][][]byte) []model.RelayMinute {
			x := m[0]
			x.Seq = 2
			rows[2] = rows[1]
			return append(m, x)
		})))
		if err != nil {
			t.Fatal(err)
		}
		trust := h.trust()
		trust.Rows = []*Rows{r}
		if v := verdict(t, b, trust); !strings.Contains(fmt.Sprint(v.Findings), "entry 2 of edge eu-west-edge-1, 1 relays from eu-west to eu-central") {
			t.Errorf("findings %+v", v.Findings)
		}
	})
}

// No byte of a file of rows can be changed without an error or a finding.
func TestRows_EveryByteCounts(t *testing.T) {
	h := newHistory(t)
	h.rules()
	h.grant(2, 1)
	h.head()
	bundle, file := h.export(), h.rowsFile(nil)
	for i := bytes.IndexByte(file, '\n'); i < len(file); i++ { // behind the heading, which is a claim
		for _, flip := range []byte{1, 2, 0x10} {
			bad := bytes.Clone(file)
			bad[i] ^= flip
			r, err := ReadRows(bytes.NewReader(bad))
			if err != nil {
				continue
			}
			trust := h.trust()
			trust.Rows = []*Rows{r}
			if v := verdict(t, bundle, trust); v.Total == 0 {
				t.Errorf("byte %d of %d flipped, nothing found: %q", i, len(file), bad[max(0, i-30):min(len(bad), i+30)])
			}
		}
	}
	for cut := range file {
		if _, err := ReadRows(bytes.NewReader(file[:cut])); err == nil && cut < len(file)-1 {
			t.Errorf("cut to %d of %d bytes it reads", cut, len(file))
		}
	}
}

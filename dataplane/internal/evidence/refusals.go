package evidence

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"bailiwick/shared/durable"
)

// Limits of the refusals that wait to be told.
const (
	maxRefusals    = 1024 // of (minute, rule, from, to); what comes beyond is counted under OtherRule
	RefusalsAtOnce = 64   // in one request
	refusedName    = "refused"
	maxName        = 64 // bytes of a rule's or a region's
	maxRefusedFile = 1 << 20
	saveEvery      = time.Second // what the file may lag behind, and a kill may cost

	// OtherRule stands for rules and pairs that there was no room for.
	OtherRule = "more-rules"
)

// refusal is what is counted apart.
type refusal struct {
	Start          int64 // of the minute, unix seconds
	Rule, From, To string
}

// Refused is how often an edge refused for one reason over one pair in one minute.
type Refused struct {
	Start  int64  `json:"start"`
	Rule   string `json:"rule"`
	From   string `json:"from"`
	To     string `json:"to"`
	Count  int64  `json:"count"`
	Sample string `json:"sample,omitempty"` // id of the first request
}

// refusals counts them until they are told. The file is replaced, not appended to: strangers cannot fill it.
type refusals struct {
	path string

	mu    sync.Mutex // covers what follows
	wait  map[refusal]*Refused
	other *Refused // the entry of OtherRule that is open
	dirty bool
	saved time.Time

	saving sync.Mutex // one writer of the file at a time; never taken under mu
}

var refusedHeader = durable.Header{Magic: "bwrefus", Version: 1, Program: "bailiwick-edge"}

// openRefusals takes up what was not told. A file that does not read costs its counts, and that is said: it must not keep
// an edge from serving.
func openRefusals(dir string, log *slog.Logger) (*refusals, error) {
	r := &refusals{path: filepath.Join(dir, refusedName), wait: map[refusal]*Refused{}}
	blob, _, err := durable.ReadSealed(durable.OS(), r.path, refusedHeader, maxRefusedFile)
	var all []*Refused
	if err == nil {
		err = json.Unmarshal(blob, &all)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.Error("counts of refusals that were not told yet do not read; they are lost", "error", err)
		return r, nil
	}
	for _, x := range all {
		r.wait[refusal{x.Start, x.Rule, x.From, x.To}] = x
		if x.Rule == OtherRule {
			r.other = x
		}
	}
	return r, nil
}

func (r *refusals) add(now time.Time, rule, from, to, sample string) {
	if max(len(rule), len(from), len(to)) > maxName { // a peer's word for why it refused
		rule, from, to = OtherRule, "", ""
	}
	key := refusal{now.Unix() / 60 * 60, rule, from, to}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dirty = true
	x := r.wait[key]
	if x == nil && len(r.wait) >= maxRefusals {
		if x = r.other; x == nil { // one for as long as nobody hears this edge
			key.Rule, key.From, key.To = OtherRule, "", ""
		}
	}
	if x == nil {
		x = &Refused{Start: key.Start, Rule: key.Rule, From: key.From, To: key.To, Sample: sampled(sample)}
		r.wait[key] = x
		if key.Rule == OtherRule {
			r.other = x
		}
	}
	x.Count++
}

// sampled lets only what looks like a request id pass: a peer says which one it was.
func sampled(id string) string {
	if len(id) > 64 {
		return ""
	}
	for _, c := range []byte(id) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') && c != '-' {
			return ""
		}
	}
	return id
}

// Refused gives counts of minutes that are over and not known to be told, oldest first, at most RefusalsAtOnce. The same
// count may be told twice: who sums up takes each minute's once.
func (l *Log) Refused(now time.Time) []Refused {
	r := l.refused
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []Refused
	for _, x := range r.wait {
		if now.Unix() >= x.Start+60 {
			out = append(out, *x)
		}
	}
	slices.SortFunc(out, func(a, b Refused) int {
		return cmp.Or(cmp.Compare(a.Start, b.Start), cmp.Compare(a.Rule, b.Rule), cmp.Compare(a.From, b.From), cmp.Compare(a.To, b.To))
	})
	return out[:min(len(out), RefusalsAtOnce)]
}

// ToldRefused says that the zone has them.
func (l *Log) ToldRefused(told []Refused) {
	r := l.refused
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, t := range told {
		key := refusal{t.Start, t.Rule, t.From, t.To}
		if x := r.wait[key]; x != nil && x.Count == t.Count { // one that has grown meanwhile is told again, as a whole
			delete(r.wait, key)
			r.dirty = true
			if r.other == x {
				r.other = nil
			}
		}
	}
}

// saveNow saves if there is something to save and it is time.
func (r *refusals) saveNow(now time.Time) error {
	r.mu.Lock()
	due := r.dirty && now.Sub(r.saved) >= saveEvery
	if due {
		r.saved = now
	}
	r.mu.Unlock()
	if !due {
		return nil
	}
	return r.save()
}

func (r *refusals) save() error {
	r.saving.Lock()
	defer r.saving.Unlock()
	r.mu.Lock()
	all := []*Refused{}
	for _, x := range r.wait {
		y := *x
		all = append(all, &y)
	}
	r.dirty = false
	r.mu.Unlock()
	blob, err := json.Marshal(all)
	if err == nil {
		err = durable.WriteSealed(durable.OS(), r.path, refusedHeader, blob)
	}
	if err != nil {
		return fmt.Errorf("save counts of refusals: %w", err)
	}
	return nil
}

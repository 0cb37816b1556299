package evidence

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
	"bailiwick/shared/fault"
)

// The catalog belongs to all zones and so has no owner whose signature all would take. Each zone's leader writes into its
// own zone's log, and so under the zone's signed heads, what became of the catalog, transaction by transaction. Two
// zones' bundles must tell the same of it (Agree).

// catalogBatch is how many changes of the catalog make one record at most; one transaction is never parted.
const catalogBatch = 500

// Pseudonym stands in the catalog, which rests in every zone, for an operator of one zone. Only that zone can tell whose
// it is.
func Pseudonym(pepper []byte, zone, operator string) string {
	h := hmac.New(sha256.New, pepper)
	h.Write([]byte("operator in the catalog 1\n" + operator))
	return zone + "/" + hex.EncodeToString(h.Sum(nil)[:8])
}

// catalogKinds say what rests under a prefix of the catalog.
var catalogKinds = []struct{ prefix, kind string }{
	{model.PrefixZone, "Zone"}, {model.PrefixRegion, "Region"}, {model.PrefixBasis, "LegalBasis"}, {model.PrefixPolicy, "Policy"},
	{model.PrefixAPI, "API"}, {model.PrefixProduct, "Product"}, {model.PrefixPlan, "Plan"}, {model.PrefixNode, "Node"},
	{model.PrefixSwitch, "Switch"}, {model.PrefixRollout, "Rollout"},
	{model.PrefixCluster, "Cluster"}, {model.PrefixRelease, "Release"},
}

// witness follows the catalog while this node leads the zone store.
func (l *Log) witness(ctx context.Context) {
	said := false
	for ctx.Err() == nil {
		err := l.followCatalog(ctx)
		if fault.ReasonOf(err) == group.ReasonCompacted {
			err = l.leap(ctx)
		}
		if err != nil && ctx.Err() == nil && !said {
			l.cfg.Logger.Warn("the catalog's history is not being logged", "zone", l.cfg.Zone, "error", err)
		}
		said = err != nil
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

func (l *Log) seen() (model.CatalogSeen, uint64, error) {
	kv, ok := l.cfg.Store.Local().Get(model.KeyCatalogSeen)
	if !ok {
		return model.CatalogSeen{}, 0, nil
	}
	s, err := model.Decode[model.CatalogSeen](kv.Key, kv.Value)
	return s, kv.ModIndex, err
}

func (l *Log) followCatalog(ctx context.Context) error {
	seen, mod, err := l.seen()
	if err != nil {
		return err
	}
	// Of another epoch positions say nothing. A node that follows the catalog at a distance waits.
	if at := l.cfg.Catalog.Local().Revision(); seen.Epoch != 0 && at.Epoch > seen.Epoch {
		return fault.New(fault.Conflict, group.ReasonCompacted, "the catalog opened epoch %d", at.Epoch)
	} else if at.Epoch < seen.Epoch || at.Epoch == seen.Epoch && at.Index < seen.Through {
		return nil
	}
	w, err := l.cfg.Catalog.Watch(seen.Through+1, "")
	if err != nil {
		return err
	}
	defer w.Close()
	for {
		events, rev, err := w.Next(ctx)
		if err != nil {
			return err
		}
		for len(events) > 0 {
			next := model.CatalogSeen{Epoch: rev.Epoch}
			for changes := 0; len(events) > 0; {
				n := 1
				for n < len(events) && events[n].Index == events[0].Index {
					n++
				}
				one, err := l.catalogWrite(events[:n])
				if err != nil {
					return err
				}
				if changes += len(one.Changes); changes > catalogBatch && len(next.Writes) > 0 {
					break
				}
				next.Writes, next.Through, events = append(next.Writes, one), one.Index, events[n:]
			}
			if mod, err = l.writeSeen(ctx, next, mod); err != nil {
				return err
			}
		}
	}
}

func (l *Log) writeSeen(ctx context.Context, next model.CatalogSeen, mod uint64) (uint64, error) {
	res, err := l.cfg.Store.Txn(ctx, group.Txn{Compares: []group.Compare{{Key: model.KeyCatalogSeen, ModIndex: mod}},
		Ops: []group.Op{{Key: model.KeyCatalogSeen, Value: model.Encode(next)}}})
	if err == nil && !res.Succeeded {
		err = fault.New(fault.Unavailable, group.ReasonNotLeader, "another node logs the catalog")
	}
	return res.Revision.Index, err
}

// leap goes on at the catalog's present when what lies between is not to be had any more, and says so.
func (l *Log) leap(ctx context.Context) error {
	seen, mod, err := l.seen()
	if err != nil {
		return err
	}
	at := l.cfg.Catalog.Local().Revision()
	if at.Less(group.Revision{Epoch: seen.Epoch, Index: seen.Through}) || at == (group.Revision{Epoch: seen.Epoch, Index: seen.Through}) {
		return nil
	}
	// A recovery opens an epoch and changes nothing: then nothing is missing.
	gap := !(at.Epoch > seen.Epoch && at.Index == seen.Through+1)
	_, err = l.writeSeen(ctx, model.CatalogSeen{Epoch: at.Epoch, Through: at.Index, Gap: gap}, mod)
	return err
}

// catalogWrite is what one transaction of the catalog comes to.
func (l *Log) catalogWrite(events []group.Event) (model.CatalogWrite, error) {
	w := model.CatalogWrite{Index: events[0].Index, At: events[0].Time.UTC()}
	for _, e := range events {
		key := e.KV.Key
		if key == model.KeyAudit {
			a, err := model.Decode[model.Audit](key, e.KV.Value)
			if err != nil {
				return w, err
			}
			w.By, w.Call, w.RequestSHA256 = a.Operator, a.Call, a.RequestSHA256
			continue
		}
		for _, k := range catalogKinds {
			name, ok := strings.CutPrefix(key, k.prefix)
			if !ok {
				continue
			}
			c := model.CatalogChange{Kind: k.kind, Name: name}
			var before, after []byte
			if e.Prev != nil {
				before = e.Prev.Value
				c.Before = sum(before)
			}
			if !e.Delete {
				after = e.KV.Value
				c.After = sum(after)
			}
			if k.kind == "Region" {
				was, err := drainOf(key, before)
				if err != nil {
					return w, err
				}
				is, err := drainOf(key, after)
				if err != nil {
					return w, err
				}
				if was != is {
					c.Drain = &is
				}
			}
			w.Changes = append(w.Changes, c)
		}
	}
	if zone, _, ok := strings.Cut(w.By, "/"); ok && zone == l.cfg.Zone && l.cfg.Pepper != nil {
		for kv := range l.cfg.Store.Local().List(model.PrefixOperator) {
			if op, err := model.Decode[model.Operator](model.PrefixOperator, kv.Value); err == nil && Pseudonym(l.cfg.Pepper, zone, op.Name) == w.By {
				w.Name = op.Name
			}
		}
	}
	return w, nil
}

func sum(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

func drainOf(key string, value []byte) (string, error) {
	if len(value) == 0 {
		return "", nil
	}
	r, err := model.Decode[model.Region](key, value)
	return r.Drain, err
}

// catalog judges a record of the catalog's history: no transaction of it is left out, but for what is said to be.
func (w *replay) catalog(r entry, wrong *problems) {
	s := r.value.(model.CatalogSeen)
	last := w.seen
	if s.Epoch < last.Epoch || s.Epoch == last.Epoch && s.Through <= last.Through && last.Through > 0 {
		wrong.add("catalog %d.%d is logged after %d.%d: never backwards", s.Epoch, s.Through, last.Epoch, last.Through)
	}
	at := last.Through
	for _, x := range s.Writes {
		if x.Index != at+1 && (w.begin.IsZero() || last.Through > 0) {
			wrong.add("catalog transactions %d to %d are left out", at+1, x.Index-1)
		}
		at = x.Index
	}
	if len(s.Writes) > 0 && s.Through != at || s.Gap && len(s.Writes) > 0 || !s.Gap && len(s.Writes) == 0 && (s.Epoch == last.Epoch || s.Through != last.Through+1) {
		wrong.add("the catalog's history through %d.%d does not add up", s.Epoch, s.Through)
	}
	w.seen = model.CatalogSeen{Epoch: s.Epoch, Through: s.Through}
}

// Agree compares what bundles tell of the catalog: those of several zones, and those that several nodes of one zone gave
// out. Add takes every record of every bundle.
type Agree struct {
	told map[group.Revision][]toldWrite
	// Differences are sentences; Compared counts transactions that two bundles at least have told.
	Differences []string
	Compared    int
	// Gaps are sentences: what a zone says that it cannot tell. The bundles of others may.
	Gaps []string
	last map[string]model.CatalogSeen // by bundle
}

type toldWrite struct{ zone, name, text string }

// Add takes a record of a zone's bundle.
func (a *Agree) Add(bundle, zone string, r Record) error {
	if r.Kind != KindCatalog {
		return nil
	}
	s, err := model.Decode[model.CatalogSeen](model.KeyCatalogSeen, r.Value)
	if err != nil {
		return err
	}
	if a.told == nil {
		a.told, a.last = map[group.Revision][]toldWrite{}, map[string]model.CatalogSeen{}
	}
	if last, ok := a.last[bundle]; s.Gap && ok && len(a.Gaps) < maxFindings {
		a.Gaps = append(a.Gaps, fmt.Sprintf("zone %s does not tell what became of the catalog after %d.%d until %d.%d (%s): compare with another zone's bundle", zone, last.Epoch, last.Through, s.Epoch, s.Through, r.At.Format(time.RFC3339)))
	}
	a.last[bundle] = model.CatalogSeen{Epoch: s.Epoch, Through: s.Through}
	for _, x := range s.Writes {
		name := x.Name
		x.Name = "" // each zone knows its own operators alone
		at, is := group.Revision{Epoch: s.Epoch, Index: x.Index}, toldWrite{zone, name, string(model.Encode(x))}
		for i, was := range a.told[at] {
			if i == 0 {
				a.Compared++
			}
			if (was.text != is.text || was.zone == zone && was.name != name) && len(a.Differences) < maxFindings {
				a.Differences = append(a.Differences, fmt.Sprintf("catalog %s: zone %s tells %s, zone %s tells %s", at, was.zone, was.words(), zone, is.words()))
				break
			}
		}
		if !slices.Contains(a.told[at], is) {
			a.told[at] = append(a.told[at], is)
		}
	}
	return nil
}

func (t toldWrite) words() string {
	if t.name == "" {
		return t.text
	}
	return t.text + " by " + t.name
}

// Read is Verify, which hands each record but grants on to each.
func Read(r io.Reader, trust Trust, each func(number int64, r Record)) (*Verdict, error) {
	return verify(r, trust, func(heading) {}, func(n int64, e entry) {
		if e.Kind != KindGrant { // their values are not kept as text
			each(n, e.Record)
		}
	})
}

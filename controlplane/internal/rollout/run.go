package rollout

import (
	"context"
	"log/slog"
	"strings"
	"time"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/history"
	"bailiwick/controlplane/internal/model"
	"bailiwick/shared/fault"
)

const writeWithin = 3 * time.Second

// Conductor advances the roll-out under way on the leader of the catalog.
type Conductor struct {
	Catalog group.Store
	Soak    Soak
	Logger  *slog.Logger
}

// Run works until ctx ends.
func (c *Conductor) Run(ctx context.Context) error {
	if c.Catalog == nil || c.Logger == nil {
		return errRequired
	}
	c.Soak = c.Soak.WithDefaults()
	return c.Catalog.RunLeader(ctx, c.lead)
}

// lead goes on from the record, whoever led before. How long zones have been silent it has to find out anew.
func (c *Conductor) lead(ctx context.Context) {
	start, pulse := time.Now(), Pulse{Silent: c.Soak.Silent}
	var number, round uint64
	follow(ctx, c.Catalog, model.KeyRollout, max(c.Soak.poll(), c.Soak.Silent/8), func() {
		snap := c.Catalog.Local()
		r, ok, err := underWay(snap)
		if err != nil {
			c.Logger.Error("roll-out does not read", "error", err)
			return
		}
		if !ok {
			number, round = 0, 0
			return
		}
		if number != r.Number || round != r.Round {
			number, round, pulse = r.Number, r.Round, Pulse{Silent: c.Soak.Silent}
		}
		if err := c.step(ctx, snap, r, &pulse, time.Since(start)); err != nil && ctx.Err() == nil {
			c.Logger.Warn("roll-out waits", "rollout", r.Name(), "error", err)
		}
	})
}

func (c *Conductor) step(ctx context.Context, snap group.Snapshot, r model.Rollout, pulse *Pulse, now time.Duration) error {
	f, err := facts(snap, time.Now())
	if err != nil {
		return err
	}
	for _, e := range f.Edges {
		pulse.Hear(e.Zone, f.Words[e.Zone], now)
	}
	f.Silent = pulse.Quiet(now)
	next, act := Advance(r, f)
	ctx, cancel := context.WithTimeout(ctx, writeWithin)
	defer cancel()
	at := time.Now().UTC()
	switch act {
	case Finish:
		e, err := Release(snap, next, at)
		if err != nil {
			return err
		}
		done, err := c.write(ctx, e)
		if done {
			c.Logger.Info("roll-out is done", "rollout", r.Name())
		}
		return err
	case TakeBack:
		e, err := Back(snap, next, at)
		if err == nil && e.Stopped != nil {
			done, err := c.write(ctx, e)
			if done {
				c.Logger.Error("roll-out is stopped: no edge holds it, and somebody has to decide", "rollout", r.Name(), "error", e.Stopped)
			}
			return err
		}
		if err == nil {
			var t group.Txn
			t, err = history.Record(snap, group.Txn{Ops: e.Ops, Compares: e.Compares}, "", "rollout/"+r.Name(), at)
			e.Ops, e.Compares = t.Ops, t.Compares
		}
		if err == nil {
			var done bool
			if done, err = c.write(ctx, e); done || err == nil || fault.KindOf(err) != fault.TooLarge {
				if done {
					c.Logger.Warn("roll-out is taken back", "rollout", r.Name(), "reason", next.Why, "edge", next.Edge, "api", next.API)
				}
				return err
			}
		}
		// At least nobody holds it any longer.
		c.Logger.Error("roll-out cannot be taken back; no edge holds it", "rollout", r.Name(), "error", err)
		next.State, next.Why, next.Since = model.RolloutStopped, WhyStuck, at
	default:
		if string(model.Encode(next)) == string(model.Encode(r)) {
			return nil
		}
		if next.Why == WhyFolded && len(next.Zones) > 0 {
			next.Why = ""
		}
	}
	_, err = c.write(ctx, Ending{Ops: []group.Op{{Key: model.KeyRollout, Value: model.Encode(next)}}, Compares: []group.Compare{compare(snap, model.KeyRollout)}})
	return err
}

// write says whether it happened; if something it rests on has changed meanwhile, the next look sees that.
func (c *Conductor) write(ctx context.Context, e Ending) (bool, error) {
	res, err := c.Catalog.Txn(ctx, group.Txn{Ops: e.Ops, Compares: e.Compares})
	return err == nil && res.Succeeded, err
}

func underWay(snap group.Snapshot) (r model.Rollout, ok bool, err error) {
	kv, ok := snap.Get(model.KeyRollout)
	if !ok {
		return r, false, nil
	}
	r, err = model.Decode[model.Rollout](kv.Key, kv.Value)
	return r, err == nil, err
}

// facts are what the catalog says. Pairs are of both its rules and those before: an end of either counts.
func facts(snap group.Snapshot, now time.Time) (Facts, error) {
	f := Facts{Words: map[string]model.RolloutWord{}}
	err := each(snap, model.PrefixNode, func(_ string, n model.Node) {
		if n.Kind == "edge" {
			f.Edges = append(f.Edges, n)
		}
	})
	if err != nil {
		return f, err
	}
	if err = each(snap, model.PrefixWord, func(key string, w model.RolloutWord) { f.Words[strings.TrimPrefix(key, model.PrefixWord)] = w }); err != nil {
		return f, err
	}
	var a model.Adopted
	if err = each(snap, model.PrefixRegion, func(_ string, r model.Region) { a.Regions = append(a.Regions, r) }); err != nil {
		return f, err
	}
	if err = each(snap, model.PrefixBasis, func(_ string, b model.LegalBasis) { a.Bases = append(a.Bases, b) }); err != nil {
		return f, err
	}
	if err = each(snap, model.PrefixPolicy, func(_ string, p model.Policy) { a.Policies = append(a.Policies, p) }); err != nil {
		return f, err
	}
	for _, rules := range []model.Adopted{a, before(snap, a)} {
		set, err := rules.Compile()
		if err != nil {
			continue // no edge relays by it
		}
		for _, p := range set.Pairs(now, nil) {
			f.Pairs = append(f.Pairs, [2]string{p.From, p.To})
		}
	}
	return f, nil
}

// before adds to the rules the policies that are held back.
func before(snap group.Snapshot, a model.Adopted) model.Adopted {
	a.Policies = append([]model.Policy(nil), a.Policies...)
	for kv := range snap.List(model.PrefixHeld + model.PrefixPolicy) {
		h, err := model.Decode[model.Held](kv.Key, kv.Value)
		if err != nil || h.Absent {
			continue
		}
		p, err := model.Decode[model.Policy](kv.Key, h.Value)
		if err != nil {
			continue
		}
		for i := range a.Policies {
			if a.Policies[i].Name == p.Name {
				a.Policies[i] = p
				p.Name = ""
			}
		}
		if p.Name != "" {
			a.Policies = append(a.Policies, p)
		}
	}
	return a
}

// Watch writes a zone's word on the roll-out under way, on the leader of the zone's store.
type Watch struct {
	Zone    string
	Catalog group.Store
	Store   group.Store                  // of the zone
	Reports func() ([]EdgeReport, error) // of the zone's edges, as its leader knows them
	Soak    Soak
	Logger  *slog.Logger
}

// EdgeReport is a Report with the place in the catalog that the edge has acknowledged.
type EdgeReport struct {
	Report
	Epoch, Index uint64
	Newest       bool // these are the objects that the edge is to hold, as far as its control node knows; the place may move on
}

// Run works until ctx ends.
func (w *Watch) Run(ctx context.Context) error {
	if w.Zone == "" || w.Catalog == nil || w.Store == nil || w.Reports == nil || w.Logger == nil {
		return errRequired
	}
	w.Soak = w.Soak.WithDefaults()
	return w.Store.RunLeader(ctx, w.lead)
}

func (w *Watch) lead(ctx context.Context) {
	start, judge := time.Now(), &Judge{Zone: w.Zone, Soak: w.Soak, ring: -2}
	follow(ctx, w.Catalog, model.KeyRollout, w.Soak.poll(), func() {
		snap := w.Catalog.Local()
		r, ok, err := underWay(snap)
		if err != nil {
			w.Logger.Error("roll-out does not read", "error", err)
			return
		}
		if !ok || !r.Active() {
			return
		}
		if err := w.look(ctx, judge, snap, r, time.Since(start)); err != nil && ctx.Err() == nil {
			w.Logger.Warn("zone's word on a roll-out", "zone", w.Zone, "rollout", r.Name(), "error", err)
		}
	})
}

func (w *Watch) look(ctx context.Context, judge *Judge, snap group.Snapshot, r model.Rollout, now time.Duration) error {
	known, err := w.Reports()
	if err != nil {
		return err
	}
	if said, ok := snap.Get(model.PrefixWord + w.Zone); ok {
		// A leader before this one found the round bad, or this one did: nothing takes that back before it is acted upon.
		word, err := model.Decode[model.RolloutWord](said.Key, said.Value)
		if err == nil && word.Verdict == Bad && word.Number == r.Number && word.Round == r.Round {
			return nil
		}
	}
	kv, _ := snap.Get(model.KeyRollout)
	var reports []Report
	for _, e := range known {
		// A control node that has not seen the record yet takes for newest what was so before.
		e.Holds = e.Newest && e.Epoch == snap.Revision().Epoch && e.Index >= kv.ModIndex
		e.Judged = e.Judged && e.Holds
		reports = append(reports, e.Report)
	}
	word, news := judge.Speak(judge.Look(r, reports, now), now)
	if !news {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, writeWithin)
	defer cancel()
	key := model.PrefixWord + w.Zone
	res, err := w.Catalog.Txn(ctx, group.Txn{Ops: []group.Op{{Key: key, Value: model.Encode(word)}}, Compares: []group.Compare{compare(snap, key)}})
	if err == nil && res.Succeeded {
		judge.Spoken(word, now)
	}
	return err
}

// follow calls look at once, on every change below a prefix and at least every so often while ctx lasts.
func follow(ctx context.Context, store group.Store, prefix string, every time.Duration, look func()) {
	for ctx.Err() == nil {
		w, err := store.Watch(store.Local().Revision().Index+1, prefix)
		for err == nil && ctx.Err() == nil {
			look()
			wait, cancel := context.WithTimeout(ctx, every)
			_, _, err = w.Next(wait)
			if cancel(); err != nil && wait.Err() != nil {
				err = nil
			}
		}
		if w != nil {
			w.Close()
		}
		select { // compacted, most likely
		case <-ctx.Done():
		case <-time.After(every):
		}
	}
}

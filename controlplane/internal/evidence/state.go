package evidence

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"bailiwick/controlplane/internal/model"
)

// state is the value of a KindState record.
type state struct {
	Adopted  *model.Adopted  `json:"adopted,omitempty"`
	Closures []model.Closure `json:"closures,omitempty"`
	Crossing *model.Crossing `json:"crossing,omitempty"`
	// Catalog is how far the catalog's history is told.
	Catalog   *model.CatalogSeen `json:"catalog,omitempty"`
	Permitted *model.Permitted   `json:"permitted,omitempty"`
	Pending   []string           `json:"pending,omitempty"`
	Grants    []given            `json:"grants,omitempty"`
	Chains    []chain            `json:"chains,omitempty"`
	// Regions are the newest of each, for reports that begin here.
	Regions []model.RegionState `json:"regions,omitempty"`
}

// snapshot is what a state record at this point has to say. It also forgets what nobody will ask for.
func (w *replay) snapshot(at time.Time) state {
	s := state{Adopted: w.adopted, Crossing: w.crossing, Permitted: w.permitted, Pending: slices.Sorted(maps.Keys(w.pending))}
	if w.seen.Through > 0 {
		seen := w.seen
		s.Catalog = &seen
	}
	for _, name := range slices.Sorted(maps.Keys(w.closures)) {
		s.Closures = append(s.Closures, w.closures[name])
	}
	for id, g := range w.grants { // most have ended: only what is told is put in order
		switch over := at.Sub(g.end()); {
		case over <= afterlife:
			s.Grants = append(s.Grants, g)
		case over > remember:
			delete(w.grants, id)
		}
	}
	slices.SortFunc(s.Grants, func(a, b given) int { return cmp.Compare(a.ID, b.ID) })
	for _, edge := range slices.Sorted(maps.Keys(w.chains)) {
		s.Chains = append(s.Chains, w.chains[edge])
	}
	for _, name := range slices.Sorted(maps.Keys(w.regions)) {
		s.Regions = append(s.Regions, w.regions[name])
	}
	return s
}

// state begins with one, or checks that it says what the records before it come to.
func (w *replay) state(r entry, first bool, wrong *problems) error {
	if !first {
		if string(model.Encode(w.snapshot(r.At))) != string(r.Value) {
			wrong.add("the state does not follow from the records before it")
		}
		return nil
	}
	s := r.value.(state)
	w.begin, w.crossing = r.At, s.Crossing
	if s.Catalog != nil {
		w.seen = *s.Catalog
	}
	if s.Adopted != nil {
		var err error
		w.adopted = s.Adopted
		if w.set, err = s.Adopted.Compile(); err != nil {
			return fmt.Errorf("the adopted rules do not compile: %w", err)
		}
	}
	if w.permitted = s.Permitted; s.Permitted != nil {
		for _, p := range s.Permitted.Pairs {
			w.base[pairKey{p.Policy, p.From, p.To}] = true
		}
	}
	for _, c := range s.Closures {
		w.closures[c.Name] = c
	}
	for _, k := range s.Pending {
		w.pending[k] = true
	}
	for _, g := range s.Grants {
		w.grants[g.ID] = g
	}
	for _, c := range s.Chains {
		w.chains[c.Edge] = c
	}
	for _, x := range s.Regions {
		w.regions[x.Region] = x
	}
	return nil
}

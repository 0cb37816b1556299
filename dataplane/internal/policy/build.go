package policy

import (
	"cmp"
	"crypto/ed25519"
	"encoding/hex"
	"hash/fnv"
	"maps"
	"slices"
	"strings"
	"unique"

	"bailiwick/shared/fault"
	"bailiwick/shared/revision"
	"bailiwick/shared/table"
)

// ReasonSumMismatch is the fault of an update whose result does not have the announced sum: something was
// lost or doubled, and only a snapshot heals that.
const ReasonSumMismatch = "SUM_MISMATCH"

// NewTable builds a table from all its objects and checks the sums of both positions.
func NewTable(objects []table.Object, catalog, zone revision.Revision) (*Table, error) {
	return (&Table{keys: &keys{}, index: noIndex}).Apply(objects, nil, catalog, zone)
}

// Apply makes the next version: upserts first, then removals, then both sums are held against the positions
// it must have reached. The old table stays as it is. An object that does not decode or does not fit is a
// fault that names it, and nothing of the update is taken: a table is whole or not there (invariant 28).
func (t *Table) Apply(upserts []table.Object, removals []table.ObjectKey, catalogTo, zoneTo revision.Revision) (*Table, error) {
	sums := [2]revision.Sum{table.ScopeCatalog: t.catalog.Sum, table.ScopeZone: t.zone.Sum}
	objects, cloned := t.objects, false
	own := func() {
		if !cloned {
			if objects = maps.Clone(objects); objects == nil {
				objects = map[table.ObjectKey]entry{}
			}
			cloned = true
		}
	}
	edit := t.keys.edit()
	for _, o := range upserts {
		sum, scope := o.Sum(), o.Kind.Scope()
		if o.Kind == table.KindKey {
			k, err := decodeKey(o)
			if err != nil {
				return nil, err
			}
			if old := edit.get(o.ID); old != nil {
				sums[scope] = sums[scope].Sub(old.sum)
			}
			k.sum = sum
			edit.put(k)
		} else {
			value, err := decode(o)
			if err != nil {
				return nil, err
			}
			own()
			if old, ok := objects[o.Key()]; ok {
				sums[scope] = sums[scope].Sub(old.sum)
			}
			objects[o.Key()] = entry{sum, value}
		}
		sums[scope] = sums[scope].Add(sum)
	}
	for _, key := range removals {
		scope := key.Kind.Scope()
		if key.Kind == table.KindKey {
			if old := edit.get(key.ID); old != nil {
				sums[scope] = sums[scope].Sub(old.sum)
				edit.remove(key.ID)
			}
		} else if old, ok := objects[key]; ok {
			own()
			sums[scope] = sums[scope].Sub(old.sum)
			delete(objects, key)
		}
	}
	for _, c := range []struct {
		name      string
		got, want revision.Sum
	}{{"catalog", sums[table.ScopeCatalog], catalogTo.Sum}, {"zone", sums[table.ScopeZone], zoneTo.Sum}} {
		if c.got != c.want {
			return nil, fault.New(fault.Conflict, ReasonSumMismatch, "apply update to %s and %s: sum of %s objects is %.12s, want %.12s",
				catalogTo, zoneTo, c.name, c.got.String(), c.want.String())
		}
	}
	next := &Table{catalog: catalogTo, zone: zoneTo, objects: objects, keys: edit.keys, index: t.index}
	switch {
	case cloned || t.index == noIndex:
		idx, err := makeIndex(objects)
		if err != nil {
			return nil, err
		}
		next.index = idx
	case catalogTo.Epoch != t.catalog.Epoch || zoneTo.Epoch != t.zone.Epoch:
		idx := *t.index // the same answers under another Mark: a recovery ends what was granted before
		next.index = &idx
	}
	return next, nil
}

func decodeKey(o table.Object) (*Key, error) {
	var w table.Key
	if err := table.Decode(o, &w); err != nil {
		return nil, err
	}
	k := &Key{ID: o.ID, Suspended: w.Suspended, Overdue: w.Overdue, Customer: intern(w.Customer), Subscription: intern(w.Subscription), Plan: intern(w.Plan)}
	switch {
	case w.ID != o.ID:
		return nil, misfit(o, "it calls itself by another id")
	case len(w.DigestHex) != hex.EncodedLen(len(k.Digest)):
		return nil, misfit(o, "its digest has the wrong length")
	case w.Customer == "" || w.Plan == "":
		return nil, misfit(o, "it names no customer or no plan")
	}
	if _, err := hex.Decode(k.Digest[:], []byte(w.DigestHex)); err != nil {
		return nil, misfit(o, "its digest is no hexadecimal text") // err would quote a digit of the digest
	}
	return k, nil
}

// intern lets a million keys of a thousand customers hold a thousand names.
func intern(s string) string { return unique.Make(s).Value() }

func misfit(o table.Object, what string) error {
	return fault.New(fault.Invalid, "OBJECT_MALFORMED", "decode %s %s: %s", o.Kind, o.ID, what)
}

func decode(o table.Object) (any, error) {
	if o.ID == "" {
		return nil, misfit(o, "it has no id")
	}
	switch o.Kind {
	case table.KindSettings:
		v, err := decoded[table.Settings](o)
		if err == nil && (o.ID != table.SettingsID || v.Zone == "" || v.Region == "") {
			err = misfit(o, "it names no zone and region")
		}
		return v, err
	case table.KindAPI:
		v, err := decoded[table.API](o)
		if err != nil {
			return nil, err
		}
		if v.Name == "" || v.Zone == "" || o.ID != table.APIID(v) {
			return nil, misfit(o, "it calls itself by another id")
		}
		if v.Foreign && len(v.Hosts) > 0 {
			return nil, misfit(o, "a foreign API with hosts would be served here")
		}
		return newAPI(v), nil
	case table.KindPlan:
		v, err := decoded[table.Plan](o)
		if err == nil && v.Name != o.ID {
			err = misfit(o, "it calls itself by another id")
		}
		return &Plan{*v}, err
	case table.KindPair:
		v, err := decoded[table.Pair](o)
		if err == nil && table.PairID(v.Policy, v.From, v.To) != o.ID {
			err = misfit(o, "it calls itself by another id")
		}
		return v, err
	case table.KindDirectory:
		v, err := decoded[table.Directory](o)
		if err == nil && table.DirectoryID(v.Zone, v.API) != o.ID {
			err = misfit(o, "it calls itself by another id")
		}
		return v, err
	case table.KindNode:
		v, err := decoded[table.Node](o)
		if err == nil && v.Name != o.ID {
			err = misfit(o, "it calls itself by another id")
		}
		return v, err
	case table.KindZoneKey:
		v, err := decoded[table.ZoneKey](o)
		if err == nil && (v.Zone != o.ID || len(v.PublicKey) != ed25519.PublicKeySize) {
			err = misfit(o, "it is not that zone's Ed25519 key")
		}
		return v, err
	case table.KindRegion:
		v, err := decoded[table.Region](o)
		if err == nil && v.Name != o.ID {
			err = misfit(o, "it calls itself by another id")
		}
		return v, err
	case table.KindDrain:
		v, err := decoded[table.Drain](o)
		if err == nil && (v.Region != o.ID || v.Reason == "") {
			err = misfit(o, "it calls itself by another id, or has no reason")
		}
		return v, err
	case table.KindDoors:
		v, err := decoded[table.Doors](o)
		if err == nil && v.Edge != o.ID {
			err = misfit(o, "it calls itself by another id")
		}
		return v, err
	}
	// A kind from a newer control node: it counts in the sum and means nothing here.
	return nil, nil
}

func decoded[T any](o table.Object) (*T, error) {
	v := new(T)
	return v, table.Decode(o, v)
}

// implied is the one route of an API that names none.
var implied = table.Route{Name: "default"}

func newAPI(v *table.API) *API {
	h := fnv.New32a()
	h.Write([]byte(table.APIID(v)))
	a := &API{API: *v, spread: h.Sum32()}
	given := v.Routes
	if len(given) == 0 && !v.Foreign {
		given = []table.Route{implied}
	}
	for _, r := range given {
		r.PathPrefix = strings.TrimRight(r.PathPrefix, "/")
		a.routes = append(a.routes, Route{r})
	}
	slices.SortStableFunc(a.routes, func(x, y Route) int {
		if n := len(y.PathPrefix) - len(x.PathPrefix); n != 0 {
			return n
		}
		if c := strings.Compare(x.PathPrefix, y.PathPrefix); c != 0 {
			return c // routes of one prefix stand together: Route relies on it
		}
		if c := catchAll(x) - catchAll(y); c != 0 {
			return c // a route for all methods answers what no named method takes
		}
		return strings.Compare(x.Name, y.Name)
	})
	return a
}

func catchAll(r Route) int {
	if len(r.Methods) == 0 {
		return 1
	}
	return 0
}

// within is the inner map under a key, made if there is none.
func within[V any](m map[string]map[string]V, key string) map[string]V {
	inner := m[key]
	if inner == nil {
		inner = map[string]V{}
		m[key] = inner
	}
	return inner
}

func makeIndex(objects map[table.ObjectKey]entry) (*index, error) {
	drains := map[string]string{}
	x := &index{
		byHost: map[string]*API{}, apis: map[string]map[string]*API{}, plans: map[string]*Plan{},
		outbound: map[policyFrom][]table.Pair{}, leaving: map[string][]string{}, entering: map[string]map[string]struct{}{},
		directory: map[zoneName]*table.Directory{}, dirByHost: map[string]*table.Directory{}, dirByZone: map[string][]table.Directory{},
		nodes: map[string]*table.Node{}, zoneKeys: map[string]ed25519.PublicKey{},
	}
	settings, ok := objects[table.ObjectKey{Kind: table.KindSettings, ID: table.SettingsID}]
	if !ok {
		return nil, fault.New(fault.Invalid, "SETTINGS_MISSING", "build table: it does not say for which zone and region it is")
	}
	x.settings = *settings.value.(*table.Settings)
	x.own = within(x.apis, x.settings.Zone)
	for key, e := range objects {
		switch v := e.value.(type) {
		case *API:
			within(x.apis, v.Zone)[v.Name] = v
			for _, h := range v.Hosts {
				h = strings.ToLower(h)
				if other := x.byHost[h]; other != nil {
					return nil, fault.New(fault.Invalid, "HOST_DUPLICATE", "build table: host %s belongs to api %s and to api %s", h, other.Name, v.Name)
				}
				x.byHost[h] = v
				x.hosts = append(x.hosts, h)
			}
		case *Plan:
			x.plans[v.Name] = v
		case *table.Pair:
			switch x.settings.Region {
			case v.From:
				from := policyFrom{v.Policy, v.From}
				x.outbound[from] = append(x.outbound[from], *v)
				x.leaving[v.Policy] = append(x.leaving[v.Policy], v.To)
			case v.To:
				within(x.entering, v.Policy)[v.From] = struct{}{}
				x.inbound = append(x.inbound, *v)
			default:
				return nil, misfit(table.Object{Kind: key.Kind, ID: key.ID}, "it has nothing to do with region "+x.settings.Region)
			}
		case *table.Directory:
			x.directory[zoneName{v.Zone, v.API}] = v
			x.dirByZone[v.Zone] = append(x.dirByZone[v.Zone], *v)
			for _, h := range v.Hosts {
				x.dirByHost[strings.ToLower(h)] = v
			}
		case *table.Node:
			x.nodes[v.Name] = v
		case *table.ZoneKey:
			x.zoneKeys[v.Zone] = v.PublicKey
		case *table.Region:
			x.regions = append(x.regions, *v)
		case *table.Drain:
			drains[v.Region] = v.Reason
		case *table.Doors:
			x.doors = append(x.doors, *v)
		}
	}
	for i, r := range x.regions {
		x.regions[i].Drain = cmp.Or(drains[r.Name], r.Drain)
	}
	slices.SortFunc(x.regions, func(a, b table.Region) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(x.doors, func(a, b table.Doors) int { return strings.Compare(a.Edge, b.Edge) })
	byTarget := func(a, b table.Pair) int {
		return cmp.Or(cmp.Compare(a.Priority, b.Priority), cmp.Compare(away(a), away(b)),
			strings.Compare(a.To, b.To), strings.Compare(a.From, b.From), strings.Compare(a.Policy, b.Policy))
	}
	for _, pairs := range x.outbound {
		slices.SortFunc(pairs, byTarget)
	}
	slices.SortFunc(x.inbound, byTarget)
	for _, rows := range x.dirByZone {
		slices.SortFunc(rows, func(a, b table.Directory) int { return strings.Compare(a.API, b.API) })
	}
	slices.Sort(x.hosts)
	return x, nil
}

// away puts pairs inside one zone before those that leave it, as regions.Targets does.
func away(p table.Pair) int {
	if p.FromZone == p.ToZone {
		return 0
	}
	return 1
}

package policy

import (
	"bytes"
	"cmp"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"hash/fnv"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unsafe"

	"bailiwick/shared/table"
	"bailiwick/shared/table/schema"
)

// decodeKey reads a key. canonical: its sum follows from the Key.
func decodeKey(o table.Object) (k Key, canonical bool, reason Reason) {
	var w table.Key
	// Nothing of w outlives this call, so it may alias the data: a million copies would be 180 MB of garbage.
	if canonical = table.ReadKey(unsafe.String(unsafe.SliceData(o.Data), len(o.Data)), &w); !canonical {
		if err := table.Decode(o, &w); err != nil {
			return k, false, ReasonMalformed
		}
		if len(w.DigestHex) != hex.EncodedLen(len(w.Digest)) {
			return k, false, ReasonUnfit
		}
		if _, err := hex.Decode(w.Digest[:], []byte(w.DigestHex)); err != nil {
			return k, false, ReasonUnfit
		}
	}
	switch {
	case w.Needs > table.Current:
		return k, false, ReasonNewer
	case w.ID != o.ID || o.ID == "":
		return k, false, ReasonMisnamed
	case w.Customer == "" || w.Plan == "" || w.Ends < 0 || w.Ends > math.MaxUint32:
		return k, false, ReasonUnfit
	}
	return Key{ID: o.ID, Digest: w.Digest, Owner: owners.intern(&w), Suspended: w.Suspended, Overdue: w.Overdue, Ends: uint32(w.Ends)}, canonical, ""
}

// decode reads any other object; its value is nil if there is a reason not to use it.
func decode(o table.Object) (any, Reason) {
	if o.ID == "" {
		return nil, ReasonMisnamed
	}
	if newer(o) {
		return nil, ReasonNewer
	}
	switch o.Kind {
	case table.KindSettings:
		return decoded(o, func(v *table.Settings) Reason {
			return unless(o.ID == table.SettingsID && v.Zone != "" && v.Region != "" && !slices.ContainsFunc(v.UpstreamNetworks, noNetwork), ReasonUnfit)
		})
	case table.KindAPI:
		v, reason := decoded(o, func(v *table.API) Reason {
			if v.Name == "" || v.Zone == "" || o.ID != table.APIID(v) {
				return ReasonMisnamed
			}
			return unless(!v.Foreign || len(v.Hosts) == 0, ReasonUnfit) // a foreign API with hosts would be served here
		})
		if reason != "" {
			return nil, reason
		}
		api, err := newAPI(v.(*table.API))
		if err != nil { // apply has looked at it with this code: a control node of another version
			return nil, ReasonUnfit
		}
		return api, ""
	case table.KindPlan:
		v, reason := decoded(o, func(v *table.Plan) Reason {
			if v.Name != o.ID {
				return ReasonMisnamed
			}
			// A limit that this program cannot keep must not look as if it did, nor end requests halfway.
			impossible := func(w table.Window) bool { return w.Requests < 1 || w.Per < time.Second || w.Burst < 0 }
			return unless(len(v.Windows) <= maxWindows && !slices.ContainsFunc(v.Windows, impossible), ReasonUnfit)
		})
		if reason != "" {
			return nil, reason
		}
		return &Plan{*v.(*table.Plan)}, ""
	case table.KindPair:
		return decoded(o, func(v *table.Pair) Reason {
			return unless(table.PairID(v.Policy, v.From, v.To) == o.ID, ReasonMisnamed)
		})
	case table.KindDirectory:
		return decoded(o, func(v *table.Directory) Reason {
			return unless(table.DirectoryID(v.Zone, v.API) == o.ID, ReasonMisnamed)
		})
	case table.KindNode:
		return decoded(o, func(v *table.Node) Reason { return unless(v.Name == o.ID, ReasonMisnamed) })
	case table.KindZoneKey:
		return decoded(o, func(v *table.ZoneKey) Reason {
			if v.Zone != o.ID {
				return ReasonMisnamed
			}
			return unless(len(v.PublicKey) == ed25519.PublicKeySize, ReasonUnfit)
		})
	case table.KindRegion:
		return decoded(o, func(v *table.Region) Reason { return unless(v.Name == o.ID, ReasonMisnamed) })
	case table.KindDrain:
		return decoded(o, func(v *table.Drain) Reason {
			if v.Region != o.ID {
				return ReasonMisnamed
			}
			return unless(v.Reason != "", ReasonUnfit)
		})
	case table.KindSwitch:
		return decoded(o, func(v *table.Switch) Reason { return unless(table.SwitchID(*v) == o.ID, ReasonMisnamed) })
	case table.KindPurges:
		return decoded(o, func(v *table.Purges) Reason {
			if v.API != o.ID {
				return ReasonMisnamed
			}
			return unless(v.Sound(), ReasonUnfit)
		})
	case table.KindTargets:
		return decoded(o, func(v *table.Targets) Reason { return unless(v.API == o.ID, ReasonMisnamed) })
	case table.KindDoors:
		return decoded(o, func(v *table.Doors) Reason { return unless(v.Edge == o.ID, ReasonMisnamed) })
	}
	// A kind from a newer control node: it counts in the sum and means nothing here.
	return nil, ""
}

// newer says whether an object, of whatever kind, must not be used by who does not know more than this program.
func newer(o table.Object) bool {
	if !bytes.Contains(o.Data, []byte(`"needs":`)) {
		return false
	}
	var v struct {
		Needs table.Level `json:"needs"`
	}
	return json.Unmarshal(o.Data, &v) == nil && v.Needs > table.Current // one that does not read is found malformed
}

func decoded[T any](o table.Object, check func(*T) Reason) (any, Reason) {
	v := new(T)
	if err := table.Decode(o, v); err != nil {
		return nil, ReasonMalformed
	}
	if reason := check(v); reason != "" {
		return nil, reason
	}
	return v, ""
}

func noNetwork(text string) bool {
	_, err := netip.ParsePrefix(text)
	return err != nil
}

func unless(fine bool, reason Reason) Reason {
	if fine {
		return ""
	}
	return reason
}

// maxWindows is what package limit has room for.
const maxWindows = 4

// implied is the one route of an API that names none.
var implied = table.Route{Name: "default"}

func newAPI(v *table.API) (*API, error) {
	h, id := fnv.New32a(), table.APIID(v)
	h.Write([]byte(id))
	a := &API{API: *v, spread: h.Sum32(), id: id}
	documents := documents{room: compiledAtOnce, schemas: map[string]*schema.Later[schema.Schema]{}}
	given := v.Routes
	if len(given) == 0 && (!v.Foreign || v.Rewrite != nil) { // of a foreign one: where its zone's requests go when they are served here
		given = []table.Route{implied}
	}
	for _, r := range given {
		r.PathPrefix = strings.TrimRight(r.PathPrefix, "/")
		r.CORS, r.Rewrite, r.Validation = cmp.Or(r.CORS, v.CORS), cmp.Or(r.Rewrite, v.Rewrite), cmp.Or(r.Validation, v.Validation)
		a.Shared = a.Shared || r.CORS != nil
		if g := r.GraphQL; g != nil && g.Batch > 0 && r.Units == nil && !r.Free { // one request that asks as much as many costs as much
			r.Units = &table.Units{GraphQL: UnitsOfOperations, Most: int64(g.Batch)}
		}
		route := Route{Route: r, Shaped: r.CORS != nil || r.Rewrite != nil || r.GraphQL != nil || r.Validation != nil}
		if check := r.Validation; check != nil && !v.Foreign { // the accepting edge's to do
			var err error
			switch {
			case check.Schema != "":
				route.Schema, err = documents.schema(check.Schema)
			case check.OpenAPI:
				route.Document, err = documents.openAPI(v.OpenAPI)
			}
			if err != nil {
				return nil, err
			}
		}
		a.routes = append(a.routes, route)
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
	return a, nil
}

// compiledAtOnce is how many bytes of an API's documents are compiled when the API is decoded, so that one that is none sets it
// aside. 64 KiB take a second, and an API may have a thousand of them: what is beyond is compiled by the first request that needs
// it, and refused to it where it is none. A control node has compiled all of them with the same code.
const compiledAtOnce = 8 << 10

// documents are those of one API: each text is compiled once.
type documents struct {
	room    int
	schemas map[string]*schema.Later[schema.Schema]
	whole   *schema.Later[schema.Document]
}

func (d *documents) schema(text string) (*schema.Later[schema.Schema], error) {
	if l := d.schemas[text]; l != nil {
		return l, nil
	}
	l := schema.Lazily(text, schema.Compile)
	d.schemas[text] = l
	return l, soon(d, text, l)
}

func (d *documents) openAPI(text string) (*schema.Later[schema.Document], error) {
	if d.whole != nil {
		return d.whole, nil
	}
	d.whole = schema.Lazily(text, schema.CompileOpenAPI)
	return d.whole, soon(d, text, d.whole)
}

// soon compiles a document now if there is room for it.
func soon[T any](d *documents, text string, l *schema.Later[T]) error {
	if len(text) > d.room {
		return nil
	}
	d.room -= len(text)
	_, err := l.Get()
	return err
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

func makeIndex(objects map[table.ObjectKey]entry) *index {
	drains := map[string]string{}
	x := &index{
		byHost: map[string]*API{}, apis: map[string]map[string]*API{}, plans: map[string]*Plan{},
		outbound: map[policyFrom][]table.Pair{}, leaving: map[string][]string{}, entering: map[string]map[string]struct{}{},
		directory: map[zoneName]*table.Directory{}, dirByHost: map[string]*table.Directory{}, dirByZone: map[string][]table.Directory{},
		nodes: map[string]*table.Node{}, zoneKeys: map[string]ed25519.PublicKey{}, off: map[table.Switch]bool{},
		purges: map[string]*table.Purges{}, targets: map[string][]string{},
	}
	x.settings = *objects[table.ObjectKey{Kind: table.KindSettings, ID: table.SettingsID}].value.(*table.Settings)
	for _, text := range x.settings.UpstreamNetworks {
		if p, err := netip.ParsePrefix(text); err == nil { // decode refused what is none
			x.networks = append(x.networks, p.Masked())
		}
	}
	x.own = within(x.apis, x.settings.Zone)
	x.publish(objects)
	for _, e := range objects {
		switch v := e.value.(type) {
		case *API:
			within(x.apis, v.Zone)[v.Name] = v
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
		case *table.Switch:
			x.off[*v] = true
		case *table.Drain:
			drains[v.Region] = v.Reason
		case *table.Purges:
			x.purges[v.API] = v
		case *table.Targets:
			x.targets[v.API] = v.URLs
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
	return x
}

// publish gives each host to one API. Of two that claim it the one that reads wins, then the first by name, so that all
// edges and all restarts agree; the other keeps what else it has.
func (x *index) publish(objects map[table.ObjectKey]entry) {
	var claims []table.ObjectKey
	for key, e := range objects {
		if _, ok := e.value.(*API); ok {
			claims = append(claims, key)
		}
	}
	kept := func(key table.ObjectKey) int { return min(len(objects[key].reason), 1) }
	slices.SortFunc(claims, func(a, b table.ObjectKey) int { return cmp.Or(kept(a)-kept(b), strings.Compare(a.ID, b.ID)) })
	for _, key := range claims {
		api, lost := objects[key].value.(*API), false
		for _, h := range api.Hosts {
			h = strings.ToLower(h)
			if other := x.byHost[h]; other != nil {
				lost = lost || other != api
				continue
			}
			x.byHost[h] = api
			x.hosts = append(x.hosts, h)
		}
		if lost {
			x.taken = append(x.taken, Quarantined{key, ReasonHostTaken, true})
		}
	}
	slices.Sort(x.hosts)
}

// away puts pairs inside one zone before those that leave it, as regions.Targets does.
func away(p table.Pair) int {
	if p.FromZone == p.ToZone {
		return 0
	}
	return 1
}

package policy

import (
	"crypto/ed25519"
	"iter"
	"maps"
	"net/netip"
	"slices"

	"bailiwick/shared/revision"
	"bailiwick/shared/table"
	"bailiwick/shared/table/schema"
)

// Table is one version of all an edge knows. A nil *Table answers like an empty one.
type Table struct {
	catalog, zone revision.Revision

	// objects are all but keys: some hundreds. The indexes below are made anew from them when one changes.
	objects map[table.ObjectKey]entry
	keys    *keys
	*index

	quarantined []Quarantined
	keyless     *Table
}

// entry is an object as held: its sum, to take it out of the total again, and its decoded value.
type entry struct {
	sum    revision.Sum
	value  any    // nil for a kind this program does not know, and for what is quarantined
	reason Reason // why it is; then value is what serves in its place
}

type index struct {
	settings  table.Settings
	byHost    map[string]*API
	apis      map[string]map[string]*API // zone, name
	own       map[string]*API            // those of the own zone, which relays ask for most
	plans     map[string]*Plan
	outbound  map[policyFrom][]table.Pair
	leaving   map[string][]string            // policy: where to from the own region, a few
	entering  map[string]map[string]struct{} // policy, whence
	inbound   []table.Pair
	directory map[zoneName]*table.Directory
	dirByHost map[string]*table.Directory
	dirByZone map[string][]table.Directory
	nodes     map[string]*table.Node
	zoneKeys  map[string]ed25519.PublicKey
	hosts     []string
	regions   []table.Region
	doors     []table.Doors
	taken     []Quarantined // APIs that lost a host to another
	networks  []netip.Prefix
	off       map[table.Switch]bool
	purges    map[string]*table.Purges
	targets   map[string][]string
}

type (
	zoneName   struct{ zone, name string }
	policyFrom struct{ policy, from string }
)

var noIndex = &index{}

func (t *Table) idx() *index {
	if t == nil {
		return noIndex
	}
	return t.index
}

// Mark is which rules a table has: of two tables with the same one, every answer is the same but for keys and for
// places within an epoch. It is what may be kept of a table without keeping its keys in memory. The zero Mark is no
// table's.
type Mark struct{ of *index }

// Keyless answers as the table does, but knows no key and lists no objects: for whoever keeps a table for hours. While keys change
// each version kept would keep its own, of a million 64 MB.
func (t *Table) Keyless() *Table {
	if t == nil || t.keyless == nil { // it is one
		return t
	}
	return t.keyless
}

var noKeys = &keys{}

// Mark is the table's.
func (t *Table) Mark() Mark { return Mark{t.idx()} }

// API is a service of the own zone, or a foreign one this region may receive relays for (Foreign, no hosts).
type API struct {
	table.API
	// Shared says that scripts of some pages may use some of its routes: browsers ask for that without a key.
	Shared bool
	routes []Route // longest prefix first, then by name
	spread uint32
	id     string
}

// UnitsOfOperations is what a route costs that takes lists of GraphQL operations and says nothing of units: each is one.
const UnitsOfOperations = "operations"

// ID tells APIs of all zones apart: as table.APIID, made when the API is decoded.
func (a *API) ID() string { return a.id }

// Spread is a number that differs between most APIs, for whoever keeps something for each in few places. It is made
// when the API is decoded, since hashing names on the request path costs more than what is kept saves.
func (a *API) Spread() uint32 { return a.spread }

// Route is one rule of an API. What it does not say of CORS, rewriting and validation it has from the API.
type Route struct {
	table.Route
	// Shaped says that something is done to its requests or answers beside sending them on.
	Shaped   bool
	Schema   *schema.Later[schema.Schema]   // that bodies are held against; nil: none
	Document *schema.Later[schema.Document] // that requests are; nil: none
}

// Plan is a plan as an edge enforces it.
type Plan struct{ table.Plan }

// Match says what Route found.
type Match uint8

const (
	RouteNotFound    Match = iota // no route covers the path: 404
	RouteFound                    // the route is the answer
	MethodNotAllowed              // routes cover the path, none with this method: 405
)

// API is the own zone's API published at a host name, given in lower case and without a port. nil: none.
func (t *Table) API(host string) *API { return t.idx().byHost[host] }

// APIOf is the API of that name in a zone: the own one, or a foreign one this region may receive relays
// for. nil: this edge has no business with it.
func (t *Table) APIOf(zone, name string) *API {
	x := t.idx()
	if zone == x.settings.Zone {
		return x.own[name]
	}
	return x.apis[zone][name]
}

// UpstreamNetworks are where this region's upstreams are; none: anywhere. Do not write to the slice.
func (t *Table) UpstreamNetworks() []netip.Prefix { return t.idx().networks }

// Purges are what has ended of the kept answers of an API of the own zone; nil: nothing.
func (t *Table) Purges(api string) *table.Purges { return t.idx().purges[api] }

// Found are base URLs of this region's upstreams that the zone found for an API of its own. Do not write to the slice.
func (t *Table) Found(api *table.API) []string {
	if api.Foreign || api.Dispatch.Discovery != "etcd" {
		return nil
	}
	return t.idx().targets[api.Name]
}

// Home says whether the API has upstreams in this region.
func (t *Table) Home(api *API) bool { return len(api.Targets) > 0 || len(t.Found(&api.API)) > 0 }

// APIs are those of the own zone, in no order.
func (t *Table) APIs() iter.Seq2[string, *API] { return maps.All(t.idx().own) }

// Route is the route with the longest prefix that covers path by whole segments. Only routes of that
// longest prefix count: a shorter one never answers for a method the longer one does not take, or adding
// a narrower route would not narrow anything. GET includes HEAD.
func (a *API) Route(method, path string) (*Route, Match) {
	for i := range a.routes {
		prefix := a.routes[i].PathPrefix
		if !covers(prefix, path) {
			continue
		}
		for ; i < len(a.routes) && a.routes[i].PathPrefix == prefix; i++ {
			if a.routes[i].takes(method) {
				return &a.routes[i], RouteFound
			}
		}
		return nil, MethodNotAllowed
	}
	return nil, RouteNotFound
}

// Allowed are the methods the routes at path take, for the Allow header of a 405.
func (a *API) Allowed(path string) []string {
	var methods []string
	for i := range a.routes {
		prefix := a.routes[i].PathPrefix
		if !covers(prefix, path) {
			continue
		}
		for ; i < len(a.routes) && a.routes[i].PathPrefix == prefix; i++ {
			methods = append(methods, a.routes[i].Methods...)
			if slices.Contains(a.routes[i].Methods, "GET") {
				methods = append(methods, "HEAD")
			}
		}
		break
	}
	slices.Sort(methods)
	return slices.Compact(methods)
}

// covers says whether prefix ends path or is followed by a new segment. Prefixes carry no trailing slash
// (normalised when the table is made); "" covers everything.
func covers(prefix, path string) bool {
	n := len(prefix)
	return len(path) >= n && path[:n] == prefix && (len(path) == n || n == 0 || path[n] == '/')
}

func (r *Route) takes(method string) bool {
	if len(r.Methods) == 0 {
		return true
	}
	for _, m := range r.Methods {
		if m == method || m == "GET" && method == "HEAD" {
			return true
		}
	}
	return false
}

// Key is the key with that id, nil if none. The caller compares digests, in constant time, also when there
// is no key (against any digest), so that an unknown id and a wrong secret take the same time.
func (t *Table) Key(id string) *Key {
	var k Key // short enough to be inlined: then it is the caller's, and costs no memory
	if t.Find(id, &k) {
		return &k
	}
	return nil
}

// Find puts the key with that id into a Key of the caller's; false: there is none, and nothing was put.
//
//go:noinline
func (t *Table) Find(id string, into *Key) bool { return t != nil && t.keys.get(id, into) }

// Plan by name, nil if none.
func (t *Table) Plan(name string) *Plan { return t.idx().plans[name] }

// Includes says whether the plan sells the API (of the own zone), and through which product.
func (p *Plan) Includes(api string) (product string, ok bool) {
	product, ok = p.APIs[api]
	return product, ok
}

// Pairs are the permissions to relay from a region under a policy, best first: lowest priority number,
// then inside the zone, then by name. Only pairs of the own region are ever known. Do not write to the slice.
func (t *Table) Pairs(policy, from string) []table.Pair {
	return t.idx().outbound[policyFrom{policy, from}]
}

// Permits says whether the table has the pair. A region never needs a pair to itself and has none here:
// home is not a relay.
func (t *Table) Permits(policy, from, to string) bool {
	x := t.idx()
	if from == x.settings.Region {
		return slices.Contains(x.leaving[policy], to)
	}
	_, ok := x.entering[policy][from]
	return ok && to == x.settings.Region
}

// Inbound are the pairs that end in this region.
func (t *Table) Inbound() []table.Pair { return t.idx().inbound }

// Directory are the public hosts of an API in another zone, nil if none.
func (t *Table) Directory(api, zone string) []string {
	if d := t.idx().directory[zoneName{zone, api}]; d != nil {
		return d.Hosts
	}
	return nil
}

// DirectoryByHost is the directory row of another zone's host, nil if none.
func (t *Table) DirectoryByHost(host string) *table.Directory { return t.idx().dirByHost[host] }

// DirectoryByZone are all rows of another zone, by API name.
func (t *Table) DirectoryByZone(zone string) []table.Directory { return t.idx().dirByZone[zone] }

// Node is an edge that may relay to this one, nil if that name is none.
func (t *Table) Node(name string) *table.Node { return t.idx().nodes[name] }

// ZoneKey verifies a zone's grants; nil if this edge takes none of it.
func (t *Table) ZoneKey(zone string) ed25519.PublicKey { return t.idx().zoneKeys[zone] }

// Settings are what the edge is told of itself.
func (t *Table) Settings() table.Settings { return t.idx().settings }

// Hosts are the public hosts of the own zone's APIs, sorted: those to have certificates for.
func (t *Table) Hosts() []string { return t.idx().hosts }

// Regions are the serving regions of the own zone, by name. Do not write to the slice.
func (t *Table) Regions() []table.Region { return t.idx().regions }

// Doors are where clients reach the edges of the own zone, by the edge's name. Do not write to the slice.
func (t *Table) Doors() []table.Doors { return t.idx().doors }

// Off says whether a feature of this edge is turned off: http3, detail, relay, dns.
func (t *Table) Off(feature string) bool {
	off := t.idx().off
	return len(off) > 0 && off[table.Switch{Feature: feature}]
}

// RelayOff says whether nothing of an API is to be relayed from here.
func (t *Table) RelayOff(a *table.API) bool {
	off := t.idx().off
	return len(off) > 0 && (off[table.Switch{Feature: "relay"}] || off[table.Switch{Feature: "relay", API: a.Zone + "/" + a.Name}])
}

// All are the objects as held, but for keys, in no order: for whoever must not rest on the lookups above.
func (t *Table) All() iter.Seq2[table.ObjectKey, any] {
	return func(yield func(table.ObjectKey, any) bool) {
		if t == nil {
			return
		}
		for key, e := range t.objects {
			if !yield(key, e.value) {
				return
			}
		}
	}
}

// Catalog is the position of the catalog's objects.
func (t *Table) Catalog() revision.Revision {
	if t == nil {
		return revision.Revision{}
	}
	return t.catalog
}

// Zone is the position of the zone store's objects.
func (t *Table) Zone() revision.Revision {
	if t == nil {
		return revision.Revision{}
	}
	return t.zone
}

// Epoch is the zone store's: what a grant and a relay session are bound to.
func (t *Table) Epoch() uint64 { return t.Zone().Epoch }

// Size is how many keys and how many other objects there are.
func (t *Table) Size() (keys, objects int) {
	if t == nil {
		return 0, 0
	}
	return t.keys.n, len(t.objects)
}

package syncserver

import (
	"slices"
	"strings"
	"time"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
	"bailiwick/controlplane/internal/view"
	"bailiwick/shared/revision"
	"bailiwick/shared/table"
)

// edge is what this node knows of one edge that has connected to it since its start. Covered by Server.mu.
type edge struct {
	node     model.Node
	level    table.Level // of the program that holds its stream, or held it last
	view     *view.View
	log      changeLog // of objects that are no keys
	sent     []place   // positions this edge was sent, oldest first, to find what a returning edge holds
	conn     *conn     // nil while it is not connected
	gone     bool      // it left the registry
	buildErr error
	report   report
}

// place is a version by the positions an edge knows it under.
type place struct {
	version       uint64
	catalog, zone revision.Revision
}

const (
	rememberedPlaces  = 64 // at most one update is under way to an edge: it comes back from one of the latest
	rememberedChanges = 65_536
)

// changeLog remembers which objects changed at which version, so that a difference from any remembered
// version costs the changes since then and not a second copy of the objects.
type changeLog struct {
	floor   uint64 // differences from below this version are unknown
	entries []change
	count   int // keys in entries
}

type change struct {
	version uint64
	keys    []table.ObjectKey
}

func (l *changeLog) add(version uint64, keys []table.ObjectKey) {
	if len(keys) == 0 {
		return
	}
	l.entries = append(l.entries, change{version, keys})
	l.count += len(keys)
	for l.count > rememberedChanges && len(l.entries) > 0 {
		l.count -= len(l.entries[0].keys)
		l.floor = l.entries[0].version
		l.entries[0] = change{}
		l.entries = l.entries[1:]
	}
}

// since adds what changed after a version; false if that is not remembered.
func (l *changeLog) since(version uint64, into map[table.ObjectKey]struct{}) bool {
	if version < l.floor {
		return false
	}
	for i := len(l.entries) - 1; i >= 0 && l.entries[i].version > version; i-- {
		for _, k := range l.entries[i].keys {
			into[k] = struct{}{}
		}
	}
	return true
}

func (s *Server) resetCatalog(snap group.Snapshot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.catalogRev = snap.Revision()
	s.version++
	s.rebuildAll()
	s.catalogSeen = true
	s.advance()
}

func (s *Server) resetZone(snap group.Snapshot) {
	keys := view.NewKeys(snap) // not under mu: it may take seconds
	s.mu.Lock()
	defer s.mu.Unlock()
	s.version++
	if s.keys != nil {
		s.keyLog.add(s.version, view.DiffKeys(s.keys, keys))
	}
	s.keys, s.zoneRev = keys, snap.Revision()
	s.rebuildAll()
	s.advance()
}

// catalogEvents says whether it woke the streams.
func (s *Server) catalogEvents(events []group.Event, rev group.Revision) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.catalogRev = rev
	s.version++
	if !slices.ContainsFunc(events, func(e group.Event) bool { return view.DependsOnCatalog(e.KV.Key) }) {
		s.nudge() // zones' words on a roll-out
		return false
	}
	s.rebuildAll() // some hundred objects an edge; catalog changes are rare
	s.advance()
	return true
}

// zoneEvents says whether it woke the streams.
func (s *Server) zoneEvents(events []group.Event, rev group.Revision) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.zoneRev = rev
	s.version++
	malformed := s.keys.Malformed()
	s.keyLog.add(s.version, s.keys.Update(events))
	if n := s.keys.Malformed(); n > malformed {
		s.cfg.Logger.Error("key or customer record does not read, its keys are refused", "records", n-malformed, "revision", rev.String())
	}
	quiet := true
	for _, e := range events {
		if view.Depends(e.KV.Key) {
			s.rebuildAll()
			quiet = false
			break
		}
		if strings.HasPrefix(e.KV.Key, model.PrefixKey) || strings.HasPrefix(e.KV.Key, model.PrefixKeyEnd) || strings.HasPrefix(e.KV.Key, model.PrefixCustomer) {
			quiet = false
		}
	}
	if !quiet {
		s.advance()
		return true
	}
	// Grant records, locks and certificates move the index and no object.
	s.nudge()
	return false
}

// nudge has a revision without objects told a little later, with others: an fsync on every edge for each of them would be
// for nothing. Caller holds mu.
func (s *Server) nudge() {
	for _, e := range s.edges {
		if e.conn != nil {
			e.conn.nudge()
		}
	}
	s.announce()
}

// advance wakes every stream that has not to wait for its edge anyway; announce only those who wait for a revision.
func (s *Server) advance() {
	for _, e := range s.edges {
		if e.conn != nil {
			e.conn.kick()
		}
	}
	s.announce()
}

func (s *Server) announce() {
	close(s.advanced)
	s.advanced = make(chan struct{})
}

func (s *Server) rebuildAll() {
	if s.keys == nil {
		return
	}
	s.rebuildAt, s.built = time.Time{}, newBuilder()
	for _, e := range s.edges {
		s.rebuild(e)
	}
}

// builder makes one view for all edges that may hold the same, and one difference: a thousand edges of a region cost what
// one does.
type builder struct {
	views   map[alikeness]*built
	rollout model.Rollout // as read at mod
	mod     uint64
}

// alikeness is all that edges must differ in to get different views.
type alikeness struct {
	kind, zone, region string
	behind             bool        // the roll-out under way has not reached it: a canary differs from its neighbours
	level              table.Level // 0, or any other: from 1 on edges see to what they do not know themselves
}

type built struct {
	view  *view.View
	err   error
	since map[*view.View][]table.ObjectKey
}

func newBuilder() *builder { return &builder{views: map[alikeness]*built{}} }

// of is the view of an edge.
func (b *builder) of(catalog, zone group.Snapshot, node model.Node, level table.Level, now time.Time) *built {
	key := alikeness{node.Kind, node.Zone, node.Region, b.behind(catalog, node), min(level, 1)}
	if b.views[key] == nil {
		v, err := view.Build(catalog, zone, node, level, now)
		b.views[key] = &built{v, err, map[*view.View][]table.ObjectKey{}}
	}
	return b.views[key]
}

// behind says whether the roll-out under way has yet to reach an edge. One that does not read reaches nobody, and no view
// is built by it.
func (b *builder) behind(catalog group.Snapshot, node model.Node) bool {
	kv, ok := catalog.Get(model.KeyRollout)
	if !ok {
		return false
	}
	if b.mod != kv.ModIndex {
		r, err := model.Decode[model.Rollout](kv.Key, kv.Value)
		if err != nil {
			return true
		}
		b.rollout, b.mod = r, kv.ModIndex
	}
	return !b.rollout.Reaches(node)
}

func (b *built) diff(old, new *view.View) []table.ObjectKey {
	if new != b.view {
		return view.Diff(old, new)
	}
	d, ok := b.since[old]
	if !ok {
		d = view.Diff(old, new)
		b.since[old] = d
	}
	return d
}

// rebuild makes an edge's view anew. One that cannot be built leaves the last in place, never serve less
// than was good because of a record that does not read, but for its pairs: the edge's position moves on, and
// with it what the zone's leader takes for closed.
func (s *Server) rebuild(e *edge) {
	catalog, zone := s.cfg.Catalog.Local(), s.cfg.Zone.Local()
	kv, ok := catalog.Get(model.PrefixNode + e.node.Name)
	e.gone = !ok || !registered(kv, e.node.Name, e.node.Region, e.node.Zone)
	if e.gone {
		if e.conn != nil {
			e.conn.withdraw() // the stream says so and ends
		}
		return
	}
	now := s.cfg.Now()
	made := s.built.of(catalog, zone, e.node, e.level, now)
	v, err := made.view, made.err
	e.buildErr = err
	if err != nil {
		s.stats.BuildErrors.Add(1)
		s.cfg.Logger.Error("view cannot be built, the edge keeps the last one without its pairs", "edge", e.node.Name, "error", err)
		if e.view == nil {
			return
		}
		v = e.view.Closed()
	}
	if changed := made.diff(e.view, v); len(changed) > 0 || err == nil {
		e.log.add(s.version, changed)
		e.view = v
	}
	if at := v.NextChange; at.After(now) && (s.rebuildAt.IsZero() || at.Before(s.rebuildAt)) {
		s.rebuildAt = at
		select {
		case s.retime <- struct{}{}:
		default:
		}
	}
}

// track finds or begins an edge. The log of a new one starts here: what came before is not remembered.
func (s *Server) track(node model.Node, level table.Level) *edge {
	e := s.edges[node.Name]
	if e == nil || e.node.Region != node.Region {
		e = &edge{node: node}
		s.edges[node.Name] = e
		e.log.floor = s.version
	}
	if e.view == nil || e.gone || e.level != level {
		e.level = level
		s.version++
		s.rebuild(e)
	}
	return e
}

// now is where an edge should stand.
func (s *Server) now(e *edge) place {
	return place{version: s.version,
		catalog: revision.Revision{Epoch: s.catalogRev.Epoch, Index: s.catalogRev.Index, Sum: e.view.CatalogSum},
		zone:    revision.Revision{Epoch: s.zoneRev.Epoch, Index: s.zoneRev.Index, Sum: e.view.ZoneSum(s.keys)}}
}

// find is the version at which an edge was at these positions; false: it is unknown here.
func (s *Server) find(e *edge, catalog, zone revision.Revision) (place, bool) {
	if now := s.now(e); now.catalog.Sum == catalog.Sum && now.zone.Sum == zone.Sum {
		// Equal sums are equal objects, whichever node they came from.
		return place{now.version, catalog, zone}, true
	}
	for i := len(e.sent) - 1; i >= 0; i-- {
		if p := e.sent[i]; p.catalog == catalog && p.zone == zone {
			return p, true
		}
	}
	return place{}, false
}

func (e *edge) remember(p place) {
	if len(e.sent) >= rememberedPlaces {
		e.sent = append(e.sent[:0], e.sent[rememberedPlaces/2:]...)
	}
	e.sent = append(e.sent, p)
}

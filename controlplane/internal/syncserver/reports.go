package syncserver

import (
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	peerv1 "bailiwick/proto/gen/bailiwick/peer/v1"
	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"
	"bailiwick/shared/revision"
)

// report is what is known of an edge from its own words. Covered by Server.mu.
type report struct {
	ackedCatalog, ackedZone revision.Revision
	nackReason              string
	status                  *syncv1.Status
	lastSeen                time.Time
	version                 string
	incarnation             string
	level                   uint32
	dead                    []string
}

func (r *report) connected(now time.Time, h *syncv1.Hello) {
	r.lastSeen, r.version, r.nackReason = now, versionOf(h), ""
	r.incarnation, r.dead, r.level = h.Incarnation, h.Dead, h.Level
}

// returned notes what an edge that connects says it holds, and says whether that is less than it had acked.
func (r *report) returned(catalog, zone *revision.Revision) (less bool) {
	back := func(acked *revision.Revision, held *revision.Revision) bool {
		was := *acked
		*acked = revision.Revision{}
		if held == nil {
			return !was.IsZero()
		}
		*acked = *held
		return held.Less(was)
	}
	c, z := back(&r.ackedCatalog, catalog), back(&r.ackedZone, zone)
	return c || z
}

// tell wakes who waits on ReportsChanged. Caller holds mu.
func (s *Server) tell() {
	if s.reported != nil {
		close(s.reported)
		s.reported = nil
	}
}

// ReportsChanged closes when any report changes. Take the channel first, then read.
func (s *Server) ReportsChanged() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.reported == nil {
		s.reported = make(chan struct{})
	}
	return s.reported
}

// Reports are the edges that have connected to this node since its start and are still registered, by name.
func (s *Server) Reports() []*peerv1.EdgeReport {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]*peerv1.EdgeReport, 0, len(s.edges))
	for _, e := range s.edges {
		if e.gone || e.view == nil {
			continue
		}
		want, r := s.now(e), &e.report
		out = append(out, &peerv1.EdgeReport{Edge: e.node.Name, Region: e.node.Region, Control: s.cfg.Node, Connected: e.conn != nil,
			Catalog: wire(r.ackedCatalog), Zone: wire(r.ackedZone), CatalogWant: wire(want.catalog), ZoneWant: wire(want.zone),
			NackReason: r.nackReason, Status: r.status, LastSeen: timestamppb.New(r.lastSeen), Version: r.version,
			Incarnation: r.incarnation, Dead: r.dead, Level: r.level})
	}
	slices.SortFunc(out, func(a, b *peerv1.EdgeReport) int { return strings.Compare(a.Edge, b.Edge) })
	return out
}

// Acked is what an edge last said it holds; false if it never said so to this node.
func (s *Server) Acked(edge string) (catalog, zone revision.Revision, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.edges[edge]
	if e == nil || e.report.ackedZone.IsZero() {
		return revision.Revision{}, revision.Revision{}, false
	}
	return e.report.ackedCatalog, e.report.ackedZone, true
}

// Package syncserver owns the policy stream from this control node to the edges of its zone: it follows the
// catalog and the zone store, keeps for each edge what it may hold now (package view), and sends each the
// difference, signed.
//
// It never decides what an edge may hold, never writes to a store and never grants anything itself. It keeps
// nothing on disk: after a restart an edge whose sums equal the present view gets nothing, any other one a
// snapshot. All exported methods may be called at once; see DESIGN.md for the flow.
package syncserver

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sync/errgroup"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
	"bailiwick/controlplane/internal/view"
	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"
	"bailiwick/proto/gen/bailiwick/sync/v1/syncv1connect"
	"bailiwick/shared/fault"
	"bailiwick/shared/fault/rpcfault"
)

// Granter hands out permissions to relay; the border's leader work implements or carries it.
type Granter interface {
	Grant(ctx context.Context, edge, region string, req *syncv1.RequestGrantsRequest) (*syncv1.RequestGrantsResponse, error)
}

// Config of a Server.
type Config struct {
	Node     string             // required: this control node's name
	ZoneName string             // required: the zone whose edges are served
	Catalog  group.Store        // required
	Zone     group.Store        // required: the zone store
	Signer   ed25519.PrivateKey // required: the zone's signing key
	Granter  Granter            // nil: RequestGrants is unavailable
	// Checkpoint is the newest head of the zone's Merkle log, with the proof that it continues the one of held
	// records; an empty note if there is nothing newer. nil: none is sent.
	Checkpoint func(held int64) (note []byte, proof [][]byte)
	// Peer names the verified peer of a request, from its certificate. Required.
	Peer   func(ctx context.Context) (node, region, zone, kind string, err error)
	Logger *slog.Logger // nil: slog.Default()

	Heartbeat   time.Duration    // between heartbeats; 0: 5 s
	SyncTimeout time.Duration    // for the linearizable read before a stream is served; 0: 2 s
	AckTimeout  time.Duration    // an update not answered for so long ends the stream; 0: 30 s
	PartBytes   int              // size of a message of objects, at most; 0: 1 MiB
	Now         func() time.Time // for the ends of legal bases and for reports; nil: time.Now

	// DropDelta is a fault hook for tests: when it answers true one delta that has objects is skipped as if it had been sent.
	// nil in production.
	DropDelta func() bool
}

// Validate fills in defaults.
func (c Config) Validate() (Config, error) {
	switch {
	case c.Node == "" || c.ZoneName == "":
		return c, errors.New("sync server config: node and zone name are required")
	case c.Catalog == nil || c.Zone == nil || c.Peer == nil:
		return c, errors.New("sync server config: both stores and Peer are required")
	case len(c.Signer) != ed25519.PrivateKeySize:
		return c, errors.New("sync server config: the signer is no Ed25519 private key")
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&c.Heartbeat, 5*time.Second)
	def(&c.SyncTimeout, 2*time.Second)
	def(&c.AckTimeout, 30*time.Second)
	if c.PartBytes == 0 {
		c.PartBytes = 1 << 20
	}
	return c, nil
}

// Stats are counts since the start, for metrics.
type Stats struct {
	Streams     atomic.Int64 // open now
	Accepted    atomic.Int64 // streams
	Refused     atomic.Int64 // streams of strangers, other zones and withdrawn edges
	Snapshots   atomic.Int64
	Resumed     atomic.Int64 // snapshots that went on where a stream had broken them off
	Deltas      atomic.Int64
	Objects     atomic.Int64 // sent, snapshots included
	Bytes       atomic.Int64 // of signed payloads
	Acks        atomic.Int64
	Nacks       atomic.Int64
	Withdrawals atomic.Int64
	BuildErrors atomic.Int64 // a view that could not be built; the edge keeps the last one
	Dropped     atomic.Int64 // by the DropDelta hook
	Unheard     atomic.Int64 // values that edges said of themselves and that are none
	WentBack    atomic.Int64 // edges that came back with less than they had acknowledged (a restored disk)
}

// Server serves SyncService.
type Server struct {
	cfg   Config
	stats Stats

	// mu covers all below. It is held for work on memory only, never across a send, a read or a callback.
	mu          sync.Mutex
	stopped     bool
	catalogSeen bool           // the catalog was read once; the zone store was if keys is not nil
	catalogRev  group.Revision // as far as the watch has looked
	zoneRev     group.Revision
	keys        *view.Keys
	keyLog      changeLog
	version     uint64 // counts every change of keyLog, an edge's log, or a revision
	edges       map[string]*edge
	pacing      pacer
	advanced    chan struct{}       // closes when version moves on
	reported    chan struct{}       // closes when a report changes; nil: nobody waits
	shared      map[way]*difference // of sharedAt
	sharedAt    uint64
	sharedSize  int
	built       *builder  // the views of now, until something changes that they rest on
	rebuildAt   time.Time // earliest NextChange of the views
	questions   map[string]*question

	streams  sync.WaitGroup
	stopping chan struct{} // closed when Run ends
	retime   chan struct{} // tells the timer that rebuildAt moved
}

// New makes a Server; Run starts it.
func New(cfg Config) (*Server, error) {
	cfg, err := cfg.Validate()
	if err != nil {
		return nil, err
	}
	return &Server{cfg: cfg, edges: map[string]*edge{}, questions: map[string]*question{}, built: newBuilder(), advanced: make(chan struct{}),
		stopping: make(chan struct{}), retime: make(chan struct{}, 1)}, nil
}

// Stats are live counters.
func (s *Server) Stats() *Stats { return &s.stats }

// Handler is the service with its path. It wraps the generated one, since only an http.Handler can set the
// deadlines by which a withdrawn edge that reads nothing is still rid of in time.
func (s *Server) Handler(opts ...connect.HandlerOption) (string, http.Handler) {
	// No compression: half of a table is random digests, and a difference is a few hundred bytes. It would cost more of the
	// processor than all else together, and each stream a window of its own.
	opts = append([]connect.HandlerOption{connect.WithCompression("gzip", nil, nil), connect.WithReadMaxBytes(1 << 20), connect.WithInterceptors(rpcfault.Server(s.cfg.Logger))}, opts...)
	path, h := syncv1connect.NewSyncServiceHandler(s, opts...)
	return path, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), controllerKey{}, http.NewResponseController(w))))
	})
}

type controllerKey struct{}

// RequestGrants is part of the service: it checks who asks and passes the question on.
func (s *Server) RequestGrants(ctx context.Context, req *syncv1.RequestGrantsRequest) (*syncv1.RequestGrantsResponse, error) {
	node, region, err := s.peer(ctx)
	if err != nil {
		return nil, err
	}
	catalog := s.cfg.Catalog.Local()
	if kv, ok := catalog.Get(model.PrefixNode + node); !ok || !registered(kv, node, region, s.cfg.ZoneName) {
		if at := catalog.Revision(); !ok && at.Less(group.Revision{Epoch: req.GetCatalog().GetEpoch(), Index: req.GetCatalog().GetIndex()}) {
			return nil, fault.New(fault.Unavailable, "CATALOG_BEHIND", "edge %s is not in the catalog as far as %s has it", node, s.cfg.Node)
		}
		return nil, fault.New(fault.Denied, "EDGE_WITHDRAWN", "edge %s is not in the node registry", node)
	}
	if s.cfg.Granter == nil {
		return nil, fault.New(fault.Unavailable, "NO_GRANTER", "control node %s hands out no grants", s.cfg.Node)
	}
	return s.cfg.Granter.Grant(ctx, node, region, req)
}

// peer lets edges of the own zone in and nobody else.
func (s *Server) peer(ctx context.Context) (node, region string, err error) {
	node, region, zone, kind, err := s.cfg.Peer(ctx)
	switch {
	case err != nil:
		return "", "", fault.New(fault.Unauthenticated, "PEER_UNKNOWN", "identify peer: %w", err)
	case kind != "edge":
		return "", "", fault.New(fault.Denied, "NOT_AN_EDGE", "%s is no edge: only edges follow tables", node)
	case zone != s.cfg.ZoneName:
		return "", "", fault.New(fault.Denied, "FOREIGN_ZONE", "edge %s is of another zone than %s", node, s.cfg.ZoneName)
	}
	return node, region, nil
}

func registered(kv group.KV, node, region, zone string) bool {
	n, err := model.Decode[model.Node](kv.Key, kv.Value)
	return err == nil && n.Name == node && n.Kind == "edge" && n.Region == region && n.Zone == zone
}

// Run follows both stores until ctx ends, then ends every stream and returns when they are gone.
func (s *Server) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.follow(ctx, s.cfg.Catalog, s.resetCatalog, s.catalogEvents) })
	g.Go(func() error { return s.follow(ctx, s.cfg.Zone, s.resetZone, s.zoneEvents) })
	g.Go(func() error { return s.clock(ctx) })
	err := g.Wait()
	s.mu.Lock()
	s.stopped = true
	close(s.stopping)
	s.mu.Unlock()
	s.streams.Wait()
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// follow starts from what the node has applied and then takes every event once. A watch that fell out of the
// window starts over from the state itself.
func (s *Server) follow(ctx context.Context, store group.Store, reset func(group.Snapshot), events func([]group.Event, group.Revision) bool) error {
	for {
		snap := store.Local()
		reset(snap)
		err := s.watch(ctx, store, snap.Revision().Index+1, events)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case fault.ReasonOf(err) == group.ReasonCompacted:
			s.cfg.Logger.Info("watch starts over", "group", store.Name(), "error", err)
		default:
			return fmt.Errorf("follow %s: %w", store.Name(), err)
		}
	}
}

// watch hands on events. What wakes the streams begins a step, and the next ones wait for its end.
func (s *Server) watch(ctx context.Context, store group.Store, from uint64, events func([]group.Event, group.Revision) bool) error {
	w, err := store.Watch(from, "")
	if err != nil {
		return err
	}
	defer w.Close()
	for {
		list, rev, err := w.Next(ctx)
		if err != nil {
			return err
		}
		if !events(list, rev) {
			continue
		}
		if err := s.pace(ctx); err != nil {
			return err
		}
	}
}

// clock rebuilds views when a legal basis ends. It wakes at least once a minute: wall clocks get set.
func (s *Server) clock(ctx context.Context) error {
	for {
		s.mu.Lock()
		at, now := s.rebuildAt, s.cfg.Now()
		if !at.IsZero() && !now.Before(at) {
			s.version++
			s.rebuildAll()
			s.advance()
			at = s.rebuildAt
		}
		s.mu.Unlock()
		wait := time.Minute
		if !at.IsZero() {
			wait = min(wait, max(at.Sub(now), time.Millisecond))
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		case <-s.retime:
		case <-t.C:
		}
		t.Stop()
	}
}

// wait returns once the watches have looked at both revisions, or with ctx.
func (s *Server) wait(ctx context.Context, catalog, zone group.Revision) error {
	for {
		s.mu.Lock()
		done := s.catalogSeen && s.keys != nil && !s.catalogRev.Less(catalog) && !s.zoneRev.Less(zone)
		ch := s.advanced
		s.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-ch:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

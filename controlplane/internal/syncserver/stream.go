package syncserver

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
	"time"

	"connectrpc.com/connect"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"
	"bailiwick/regions/grant"
	"bailiwick/shared/fault"
	"bailiwick/shared/revision"
	"bailiwick/shared/table"
)

const (
	protocol    = 1
	quietDelay  = 500 * time.Millisecond // for revisions that change no object
	helloWithin = 5 * time.Second
	endWithin   = 800 * time.Millisecond // a withdrawn edge's stream, also if it reads nothing
	leaderless  = 2                      // heartbeats without a zone leader until edges are sent elsewhere
)

type stream = connect.BidiStream[syncv1.SubscribeRequest, syncv1.SubscribeResponse]

// conn is one stream as others see it: they wake it and end it.
type conn struct {
	wake chan struct{} // one of the below is set
	end  chan struct{} // closed by a newer stream of the same edge
	gone chan struct{} // closed when the edge left the registry
	ask  chan *syncv1.RowsWanted

	pace *pacer

	// Covered by Server.mu. Who changes due, inflight or slow calls tally.
	due      bool // something changed for this edge
	later    bool // only a revision moved
	inflight bool // an update is out that the edge has not answered: its answer wakes the stream, and nothing else need to
	slow     bool // a step has ended without its answer
	busy     bool // pacer counts it

	endOnce, goneOnce sync.Once
}

// kick says that something changed. Caller holds Server.mu.
func (c *conn) kick() {
	c.due = true
	c.tally()
	if !c.inflight {
		poke(c.wake)
	}
}

// nudge says that a revision moved. Caller holds Server.mu.
func (c *conn) nudge() {
	if c.later {
		return
	}
	c.later = true
	if !c.inflight {
		poke(c.wake)
	}
}

func (c *conn) replace() { c.endOnce.Do(func() { close(c.end) }); poke(c.wake) }

func (c *conn) withdraw() { c.goneOnce.Do(func() { close(c.gone) }); poke(c.wake) }

func poke(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default: // one is waiting already: changes fold into one
	}
}

// session is one stream. Two goroutines have it: one sends, one takes what the edge says.
type session struct {
	s       *Server
	ctx     context.Context
	stream  *stream
	edge    *edge
	conn    *conn
	hashed  bool        // the edge reads updates that are signed by their hash
	mute    int         // heartbeats without a leader
	stalled *time.Timer // ends a Send that the edge does not read
	timer   *time.Timer // wakes the sender for what had to wait
	armed   bool

	// Covered by Server.mu, as is conn.inflight.
	held     *place // what the edge holds once it took what was sent; nil: unknown, a snapshot is next
	acked    *place // what it said it holds
	sentAt   time.Time
	refusals int       // nacks in a row
	holdOff  time.Time // after a nack: not before
	resume   *syncv1.Resume
}

// Subscribe is part of the service. It returns when the edge leaves, is withdrawn, or connects anew.
func (s *Server) Subscribe(ctx context.Context, stream *stream) error {
	node, region, err := s.peer(ctx)
	if err != nil {
		s.stats.Refused.Add(1)
		return err
	}
	rc, ok := ctx.Value(controllerKey{}).(*http.ResponseController)
	if !ok {
		return fault.New(fault.Internal, "HANDLER_MISSING", "the service is not mounted through Handler")
	}
	if !s.enter() {
		return errStopping()
	}
	defer s.streams.Done()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	c := &conn{wake: make(chan struct{}, 1), end: make(chan struct{}), gone: make(chan struct{}), due: true, pace: &s.pacing,
		ask: make(chan *syncv1.RowsWanted, questionsWait)}
	ss := &session{s: s, ctx: ctx, stream: stream, conn: c, timer: time.NewTimer(time.Hour),
		stalled: time.AfterFunc(time.Hour, func() { rc.SetWriteDeadline(time.Unix(1, 0)) })}
	defer ss.stalled.Stop()
	defer ss.timer.Stop()
	ss.timer.Stop()
	var helpers sync.WaitGroup
	helpers.Go(func() { // guard: a Send may be waiting on an edge that reads nothing
		select {
		case <-ctx.Done():
			return
		case <-c.end:
		case <-c.gone:
		}
		rc.SetWriteDeadline(time.Now().Add(endWithin))
	})
	greeting, opened, ended := make(chan *syncv1.SubscribeRequest, 1), make(chan struct{}), make(chan error, 1)
	helpers.Go(func() { ss.read(cancel, greeting, opened, ended) })
	defer func() {
		cancel()
		rc.SetReadDeadline(time.Unix(1, 0)) // ends a Receive in progress
		helpers.Wait()
	}()

	hello, err := s.hello(ctx, greeting)
	if err != nil {
		return err
	}
	ss.resume, ss.hashed = hello.Resume, hello.Hashed
	if err := ss.open(node, region, hello); err != nil || ss.edge == nil {
		return err
	}
	defer s.leave(ss.edge, ss.conn)
	close(opened)
	return ss.run(ended)
}

// read takes what the edge says: the first message is handed out, all others are taken once the stream is opened. Nobody
// is woken for an answer that leaves nothing to be sent.
func (ss *session) read(cancel context.CancelFunc, greeting chan<- *syncv1.SubscribeRequest, opened <-chan struct{}, ended chan<- error) {
	for first := true; ; first = false {
		m, err := ss.stream.Receive()
		if err != nil {
			if !errors.Is(err, io.EOF) { // an edge that parts properly may have said something last
				cancel()
			}
			close(greeting)
			ended <- nil
			return
		}
		if first {
			greeting <- m
			select {
			case <-opened:
			case <-ss.ctx.Done():
				return
			}
			continue
		}
		if err := ss.receive(m); err != nil {
			ended <- err
			return
		}
	}
}

func errReplaced() error {
	return fault.New(fault.Conflict, "REPLACED", "a newer stream of this edge took over")
}

func errStopping() error {
	return fault.New(fault.Unavailable, "STOPPING", "control node is stopping: connect to another one")
}

// enter counts a stream in, so that Run waits for it; false once Run has ended.
func (s *Server) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return false
	}
	s.streams.Add(1)
	return true
}

func (s *Server) hello(ctx context.Context, requests <-chan *syncv1.SubscribeRequest) (*syncv1.Hello, error) {
	t := time.NewTimer(helloWithin)
	defer t.Stop()
	select {
	case m := <-requests: // nil if it is gone already
		h := m.GetHello()
		if h == nil {
			return nil, fault.New(fault.Invalid, "HELLO_MISSING", "a stream opens with Hello")
		}
		if h.Protocol != protocol {
			return nil, fault.New(fault.Invalid, "PROTOCOL_UNKNOWN", "edge speaks protocol %d, this node %d", h.Protocol, protocol)
		}
		if !(grant.Process{Incarnation: h.Incarnation}).Reads(h.Dead) {
			return nil, fault.New(fault.Invalid, "INCARNATION_MALFORMED", "edge says which run of it this is, and which have ended, in a way that does not read")
		}
		return h, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-s.stopping:
		return nil, errStopping()
	case <-t.C:
		return nil, fault.New(fault.Invalid, "HELLO_MISSING", "no Hello within %v", helloWithin)
	}
}

// open makes sure that this node knows enough to serve the edge, then registers the stream. An edge that is
// withdrawn is told so, and there is no edge after it.
func (ss *session) open(node, region string, hello *syncv1.Hello) error {
	s := ss.s
	catalog, zone, err := positions(hello.Catalog, hello.Zone)
	if err != nil {
		return err
	}
	catalogSure, err := s.catchUp(ss.ctx, catalog, zone)
	if err != nil {
		return err
	}
	kv, ok := s.cfg.Catalog.Local().Get(model.PrefixNode + node)
	if !ok || !registered(kv, node, region, s.cfg.ZoneName) {
		s.stats.Refused.Add(1)
		// An edge that holds a table of this catalog or an older one was registered then. Its absence now is
		// its removal, also if no quorum can be asked.
		at := s.cfg.Catalog.Local().Revision()
		if catalogSure || catalog != nil && catalog.Epoch == at.Epoch && catalog.Index <= at.Index {
			s.stats.Withdrawals.Add(1)
			return ss.withdraw()
		}
		return fault.New(fault.Unavailable, "CATALOG_BEHIND", "edge %s is not in the catalog as far as %s has it", node, s.cfg.Node)
	}

	n, err := model.Decode[model.Node](kv.Key, kv.Value)
	if err != nil {
		return err
	}
	s.mu.Lock()
	e := s.track(n, table.Level(hello.GetLevel()))
	if e.view == nil {
		err := e.buildErr
		s.mu.Unlock()
		if err == nil {
			err = fault.New(fault.Unavailable, "VIEW_MISSING", "view of edge %s is not built", node)
		}
		return err
	}
	if e.conn != nil {
		e.conn.replace()
	}
	e.conn = ss.conn
	e.report.connected(s.cfg.Now(), hello)
	if catalog != nil && zone != nil {
		if p, ok := s.find(e, *catalog, *zone); ok {
			ss.held, ss.acked = &p, &p
			e.remember(p)
		}
	}
	if e.report.returned(catalog, zone) {
		s.stats.WentBack.Add(1)
		s.cfg.Logger.Warn("edge came back with less than it had acknowledged", "edge", node)
	}
	s.tell()
	s.mu.Unlock()
	s.stats.Accepted.Add(1)
	s.stats.Streams.Add(1)
	ss.edge = e
	return nil
}

// catchUp makes this node no older than the quorum of the zone and than what the edge has seen. The catalog's
// quorum may be in another zone, and out of reach: then what is applied here has to do, and the answer says so.
func (s *Server) catchUp(ctx context.Context, catalog, zone *revision.Revision) (catalogSure bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.SyncTimeout)
	defer cancel()
	var (
		wg      sync.WaitGroup
		cat     = s.cfg.Catalog.Local().Revision()
		catErr  error
		quarter = s.cfg.SyncTimeout / 4
	)
	wg.Go(func() {
		cctx, cancel := context.WithTimeout(ctx, quarter)
		defer cancel()
		var snap group.Snapshot
		if snap, catErr = s.cfg.Catalog.Sync(cctx); catErr == nil {
			cat = snap.Revision()
		}
	})
	snap, err := s.cfg.Zone.Sync(ctx)
	wg.Wait()
	if err != nil {
		return false, fault.New(fault.Unavailable, "ZONE_QUORUM", "zone store has no quorum to serve from: keep the table and try again: %w", err)
	}
	want := func(have group.Revision, held *revision.Revision) group.Revision {
		if held != nil && held.Epoch == have.Epoch && held.Index > have.Index {
			have.Index = held.Index
		}
		return have
	}
	cat, zrev := want(cat, catalog), want(snap.Revision(), zone)
	if catalog != nil && catalog.Epoch > cat.Epoch || zone != nil && zone.Epoch > zrev.Epoch {
		return false, behind(s.cfg.Node)
	}
	if err := s.wait(ctx, cat, zrev); err != nil {
		return false, behind(s.cfg.Node)
	}
	return catErr == nil, nil
}

func behind(node string) error {
	return fault.New(fault.Unavailable, "NODE_BEHIND", "control node %s has less than the edge has seen: connect to another one", node)
}

func (s *Server) leave(e *edge, c *conn) {
	s.stats.Streams.Add(-1)
	s.mu.Lock()
	defer s.mu.Unlock()
	c.due, c.inflight = false, false
	c.tally()
	if e.conn != c {
		return
	}
	e.conn = nil
	e.report.lastSeen = s.cfg.Now()
	if e.gone {
		delete(s.edges, e.node.Name)
	}
	s.tell()
}

func (ss *session) run(ended <-chan error) error {
	beat := time.NewTicker(ss.s.cfg.Heartbeat)
	defer beat.Stop()
	// The first frame carries the response headers: until one is sent the edge knows of nothing.
	if err := ss.heartbeat(); err != nil {
		return err
	}
	fired := false
	for {
		if gone, err := ss.push(fired); err != nil {
			return err
		} else if gone {
			ss.s.stats.Withdrawals.Add(1)
			return ss.withdraw()
		}
		fired = false
		select {
		case <-ss.ctx.Done():
			return ss.ctx.Err()
		case <-ss.s.stopping:
			return errStopping()
		case err := <-ended:
			return err
		case <-ss.conn.wake:
		case <-ss.timer.C:
			fired, ss.armed = true, false
		case <-beat.C:
			if err := ss.beat(); err != nil {
				return err
			}
		}
		select {
		case <-ss.conn.end:
			return errReplaced()
		default:
		}
		for asked := true; asked; {
			select {
			case q := <-ss.conn.ask:
				if err := ss.send(&syncv1.SubscribeResponse{Message: &syncv1.SubscribeResponse_RowsWanted{RowsWanted: q}}); err != nil {
					return err
				}
			default:
				asked = false
			}
		}
	}
}

// beat sends a heartbeat, unless this node has nothing to vouch for.
func (ss *session) beat() error {
	s := ss.s
	s.mu.Lock()
	late := ss.conn.inflight && s.cfg.Now().Sub(ss.sentAt) > s.cfg.AckTimeout
	s.mu.Unlock()
	if late {
		return fault.New(fault.Unavailable, "ACK_MISSING", "edge did not answer an update within %v", s.cfg.AckTimeout)
	}
	// Cut off from its peers a node would go on saying that all is well while keys are revoked elsewhere.
	if name, _ := s.cfg.Zone.Leader(); name != "" {
		ss.mute = 0
	} else if ss.mute++; ss.mute >= leaderless {
		return fault.New(fault.Unavailable, "ZONE_QUORUM", "zone store has no leader that %s knows of: try another node", s.cfg.Node)
	}
	return ss.heartbeat()
}

func (ss *session) receive(m *syncv1.SubscribeRequest) error {
	s := ss.s
	now := s.cfg.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.tell()
	defer ss.conn.tally()
	if ss.edge.conn != ss.conn {
		// What the report says is the newer stream's, which may be another machine's: no word of this one may count for it.
		return errReplaced()
	}
	r := &ss.edge.report
	r.lastSeen = now
	switch m := m.Message.(type) {
	case *syncv1.SubscribeRequest_Hello:
		ss.conn.slow = false
		ss.held, ss.conn.inflight, ss.resume = nil, false, nil // it wants to begin anew
		ss.conn.kick()
	case *syncv1.SubscribeRequest_Ack:
		s.stats.Acks.Add(1)
		catalog, zone, err := positions(m.Ack.Catalog, m.Ack.Zone)
		if err != nil || catalog == nil || zone == nil {
			return errors.Join(fault.New(fault.Invalid, "ACK_MALFORMED", "an ack names both positions"), err)
		}
		r.ackedCatalog, r.ackedZone, r.nackReason = *catalog, *zone, ""
		if ss.held != nil && ss.held.catalog == *catalog && ss.held.zone == *zone {
			ss.acked, ss.conn.inflight, ss.conn.slow, ss.refusals = ss.held, false, false, 0
			if now := s.now(ss.edge); now.catalog != *catalog || now.zone != *zone {
				ss.conn.kick()
			} else {
				ss.held.version, ss.conn.due, ss.conn.later = now.version, false, false
			}
		}
	case *syncv1.SubscribeRequest_Nack:
		ss.nack(m.Nack, now)
	case *syncv1.SubscribeRequest_Status:
		status, left := heard(m.Status)
		if left > 0 && s.stats.Unheard.Add(int64(left)) == int64(left) {
			s.cfg.Logger.Warn("an edge says of itself what no edge should: it is left out", "edge", ss.edge.node.Name, "count", left)
		}
		r.status = status
	}
	return nil
}

// nack: what was sent is not held. A refusal that repeats is retried ever more rarely, since nothing says
// that the next try fares better, but it is retried: the edge may have been restarted or repaired.
func (ss *session) nack(n *syncv1.Nack, now time.Time) {
	s := ss.s
	s.stats.Nacks.Add(1)
	ss.held, ss.conn.inflight, ss.conn.slow = ss.acked, false, false
	ss.resume = nil
	if n.WantSnapshot {
		ss.held = nil
	}
	reason := reasonOf(n)
	ss.edge.report.nackReason = reason
	ss.refusals++
	if ss.refusals > 1 {
		ss.holdOff = now.Add(min(time.Second<<min(ss.refusals-2, 5), 30*time.Second))
	}
	ss.conn.kick()
	s.cfg.Logger.Warn("edge refused an update", "edge", ss.edge.node.Name, "reason", reason, "want_snapshot", n.WantSnapshot)
}

func positions(catalog, zone *syncv1.Position) (c, z *revision.Revision, err error) {
	one := func(p *syncv1.Position) (*revision.Revision, error) {
		if p == nil {
			return nil, nil
		}
		sum, err := revision.FromBytes(p.Sum)
		if err != nil {
			return nil, fault.New(fault.Invalid, "POSITION_MALFORMED", "read position: %w", err)
		}
		return &revision.Revision{Epoch: p.Epoch, Index: p.Index, Sum: sum}, nil
	}
	if c, err = one(catalog); err == nil {
		z, err = one(zone)
	}
	return c, z, err
}

package subscribe

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"bailiwick/dataplane/internal/policy"
	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"
	"bailiwick/proto/gen/bailiwick/sync/v1/syncv1connect"
	"bailiwick/shared/fault"
	"bailiwick/shared/fault/rpcfault"
	"bailiwick/shared/revision"
	"bailiwick/shared/table"
	"connectrpc.com/connect"
)

const (
	protocol     = 1
	maxMessage   = 8 << 20 // parts are 1 MiB; one object may be larger
	patience     = 2       // heartbeats to wait for a snapshot that was asked for
	confirmEvery = time.Minute
	partWithin   = 500 * time.Millisecond
	freshFor     = time.Minute // after other objects of the catalog came into force
	freshEvery   = time.Second
)

var (
	errRenew     = errors.New("stream is renewed")
	errSilent    = errors.New("control node is silent")
	errWithdrawn = errors.New("edge is withdrawn")
)

// session is one stream.
type session struct {
	c        *Client
	stream   *connect.BidiStreamForClientSimple[syncv1.SubscribeRequest, syncv1.SubscribeResponse]
	sending  sync.Mutex    // covers Send: reports go up from their own goroutine
	telling  sync.Mutex    // one answer to RowsWanted at a time
	report   chan struct{} // send a status now
	begun    bool          // an update came on this stream
	asked    bool          // a snapshot was asked for and has not come
	waited   int           // heartbeats since then
	heard    bool
	markedAt time.Time
}

// session follows one control node until the stream ends. heard says that the node was of use.
func (c *Client) session(ctx context.Context, addr string) (heard bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	url := addr
	if !strings.Contains(url, "://") {
		url = "https://" + addr
	}
	client := syncv1connect.NewSyncServiceClient(c.cfg.HTTPClient(addr), url, connect.WithReadMaxBytes(maxMessage), connect.WithAcceptCompression("gzip", nil, nil), connect.WithInterceptors(rpcfault.Client()))
	watchdog := time.AfterFunc(c.cfg.FirstFrame, func() { cancel(errSilent) })
	defer watchdog.Stop()
	renew := time.AfterFunc(c.cfg.RenewAfter, func() { cancel(errRenew) })
	defer renew.Stop()

	stream, err := client.Subscribe(ctx)
	if err != nil {
		return false, cause(ctx, fmt.Errorf("open policy stream: %w", err))
	}
	s := &session{c: c, stream: stream, report: make(chan struct{}, 1), markedAt: c.cfg.Now()}
	c.stats.Streams.Add(1)
	var helpers sync.WaitGroup
	helpers.Go(func() {
		// net/http looks at the context of a request only between reads of its body, and ours blocks in one until
		// we send: without this a cancelled stream would wait for the node to speak (seen with Go 1.26).
		<-ctx.Done()
		s.sending.Lock()
		defer s.sending.Unlock()
		stream.CloseRequest()
	})
	defer func() {
		cancel(nil)
		helpers.Wait()
		stream.CloseResponse()
		c.stats.Connected.Store(0)
	}()
	if err := s.send(&syncv1.SubscribeRequest{Message: &syncv1.SubscribeRequest_Hello{Hello: c.hello()}}); err != nil {
		return false, cause(ctx, err)
	}
	helpers.Go(func() { s.reportStatus(ctx) })
	for {
		m, err := stream.Receive()
		if err != nil {
			return s.heard, cause(ctx, fmt.Errorf("receive from control node: %w", err))
		}
		watchdog.Reset(c.cfg.Silence)
		c.stats.Connected.Store(1)
		switch m := m.Message.(type) {
		case *syncv1.SubscribeResponse_Table:
			err = s.take(m.Table)
		case *syncv1.SubscribeResponse_Heartbeat:
			err = s.heartbeat(m.Heartbeat)
		case *syncv1.SubscribeResponse_Withdrawn:
			c.withdrawn(m.Withdrawn.GetReason())
			err = errWithdrawn
		case *syncv1.SubscribeResponse_RowsWanted:
			if c.cfg.Rows != nil {
				helpers.Go(func() { s.tellRows(ctx, client, m.RowsWanted) })
			}
		}
		if err != nil {
			s.part(cancel)
			return s.heard, cause(ctx, err)
		}
	}
}

// part ends the stream so that what was sent last, a Nack mostly, arrives: a cancelled stream may drop it.
func (s *session) part(cancel context.CancelCauseFunc) {
	limit := time.AfterFunc(partWithin, func() { cancel(nil) })
	defer limit.Stop()
	s.sending.Lock()
	s.stream.CloseRequest()
	s.sending.Unlock()
	for {
		if _, err := s.stream.Receive(); err != nil {
			return
		}
	}
}

// cause prefers why the stream was cancelled over the cancellation's echo.
func cause(ctx context.Context, err error) error {
	if c := context.Cause(ctx); c != nil && !errors.Is(c, context.Canceled) {
		return c
	}
	return err
}

// hello says what is held: nothing, if what is in force is not whole on disk.
func (c *Client) hello() *syncv1.Hello {
	h := &syncv1.Hello{Protocol: protocol, Hashed: true, Level: uint32(table.Current), Version: c.cfg.Version, Incarnation: c.cfg.Incarnation, Dead: c.dead()}
	if c.table != nil && !c.needBase {
		h.Catalog, h.Zone = wire(c.table.Catalog()), wire(c.table.Zone())
	}
	h.Resume = c.staged.resume()
	return h
}

func wire(r revision.Revision) *syncv1.Position {
	return &syncv1.Position{Epoch: r.Epoch, Index: r.Index, Sum: r.Sum[:]}
}

// send passes over io.EOF: the node has ended the stream, and what it said last (a withdrawal, a refusal) is
// still to be received.
func (s *session) send(m *syncv1.SubscribeRequest) error {
	s.sending.Lock()
	defer s.sending.Unlock()
	if err := s.stream.Send(m); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("send to control node: %w", err)
	}
	return nil
}

func (s *session) reportStatus(ctx context.Context) {
	if s.c.cfg.Status == nil {
		return
	}
	t := time.NewTimer(s.c.cfg.StatusEvery)
	defer t.Stop()
	for {
		// What became of new objects is told sooner for a while: a roll-out waits for it.
		every := s.c.cfg.StatusEvery
		if since := s.c.objectsSince.Load(); since != nil && s.c.cfg.Now().Sub(*since) < freshFor {
			every = min(every, freshEvery)
		}
		t.Reset(every)

		st := s.c.cfg.Status()
		if s.send(&syncv1.SubscribeRequest{Message: &syncv1.SubscribeRequest_Status{Status: st}}) != nil {
			return // Receive learns why
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		case <-s.report:
		}
	}
}

// take handles one part of an update. The error it returns ends the stream.
func (s *session) take(signed *syncv1.Signed) error {
	u, err := s.c.open(signed)
	if err != nil {
		return s.distrust(nil, err)
	}
	if s.asked && !u.Snapshot {
		return nil // was under way when the snapshot was asked for, and cannot fit
	}
	c := s.c
	if !s.begun {
		s.begun = true
		if c.staged != nil && (!u.Snapshot || u.Skipped != c.staged.objects) {
			c.staged = nil // the node begins anew
		} else if u.Skipped > 0 {
			c.stats.Resumed.Add(1)
		}
	}
	st, whole, err := c.staged.add(u, c.table, c.cfg.MaxBytes)
	if err != nil {
		c.staged = nil
		return s.distrust(nil, err)
	}
	c.staged = st
	s.waited = 0
	if !whole {
		return nil
	}
	c.staged = nil
	if err := st.stale(s.c.floor); err != nil {
		return s.distrust(st, err)
	}
	next, err := st.apply(s.c.table, s.c.cfg.Region)
	if err != nil {
		return s.refuse(st, err)
	}
	return s.accept(st, next)
}

// accept puts the update on disk, then in force, has what it forbids ended, then acks.
func (s *session) accept(st *staged, next *policy.Table) error {
	c := s.c
	var err error
	switch {
	case st.snapshot:
		err = c.disk.rebase(st.parts)
	case c.needBase:
		err = errors.New("the table on disk is not the one in force")
	default:
		err = c.disk.append(st.parts)
	}
	if err != nil {
		// A full disk must not keep a revocation from taking effect. It is in force, not acked, and only a
		// snapshot can bring disk and memory together again.
		c.needBase = true
		c.force(next, st) // also in processes before, which are taken to have cut by what is in force here when the next one comes
		return s.distrust(st, fault.New(fault.Internal, ReasonPersist, "write table to disk: %w", err))
	}
	c.force(next, st)
	if st.snapshot {
		c.needBase, s.asked = false, false
		c.stats.Snapshots.Add(1)
	} else {
		c.stats.Deltas.Add(1)
	}
	c.confirmed()
	if err := s.mark(); err != nil {
		c.needBase = true
		return s.distrust(st, fault.New(fault.Internal, ReasonPersist, "write mark to disk: %w", err))
	}
	s.heard = true
	ack := &syncv1.Ack{Catalog: wire(next.Catalog()), Zone: wire(next.Zone())}
	if err := s.send(&syncv1.SubscribeRequest{Message: &syncv1.SubscribeRequest_Ack{Ack: ack}}); err != nil {
		return err
	}
	select {
	case s.report <- struct{}{}:
	default:
	}
	if c.disk.wantsBase() && !s.asked {
		// Only the zone can sign a base, so the log is folded by asking for a snapshot: Hello without positions.
		return s.ask(&syncv1.SubscribeRequest{Message: &syncv1.SubscribeRequest_Hello{Hello: &syncv1.Hello{Protocol: protocol, Level: uint32(table.Current), Version: c.cfg.Version}}})
	}
	return nil
}

func (c *Client) dead() []string {
	if c.cfg.Dead == nil {
		return nil
	}
	return c.cfg.Dead()
}

// force puts a table in force, hands on the update that brought it, and ends what it forbids.
func (c *Client) force(next *policy.Table, st *staged) {
	c.put(next)
	if c.cfg.Updated != nil {
		c.cfg.Updated(st.parts)
	}
	if c.cfg.Enforce != nil {
		c.cfg.Enforce()
	}
}

func (s *session) mark() error {
	s.markedAt = s.c.cfg.Now()
	return s.c.disk.writeMark(mark{Catalog: s.c.table.Catalog(), Zone: s.c.table.Zone(), Confirmed: s.c.Fresh().Unix()})
}

// ask sends a request for a snapshot.
func (s *session) ask(m *syncv1.SubscribeRequest) error {
	s.asked, s.waited = true, 0
	return s.send(m)
}

func (s *session) nack(st *staged, err error, wantSnapshot bool) error {
	s.c.stats.Nacks.Add(1)
	s.c.cfg.Logger.Warn("update refused", "reason", fault.ReasonOf(err), "error", err, "want_snapshot", wantSnapshot)
	n := &syncv1.Nack{Reason: fault.ReasonOf(err), WantSnapshot: wantSnapshot}
	if st != nil {
		n.Catalog, n.Zone = wire(st.to[0]), wire(st.to[1])
	}
	m := &syncv1.SubscribeRequest{Message: &syncv1.SubscribeRequest_Nack{Nack: n}}
	if wantSnapshot {
		return s.ask(m)
	}
	return s.send(m)
}

// refuse keeps the stream. What a snapshot can heal is asked for; a snapshot that does not apply is not asked
// for again, its sender tries on its own terms.
func (s *session) refuse(st *staged, err error) error {
	if st.snapshot {
		s.asked = false
		return s.nack(st, err, false)
	}
	reason := fault.ReasonOf(err)
	return s.nack(st, err, reason == policy.ReasonSumMismatch || reason == ReasonPosition)
}

// distrust says why and leaves: this node has nothing better to offer.
func (s *session) distrust(st *staged, err error) error {
	return errors.Join(err, s.nack(st, err, false))
}

// heartbeat compares what the node has sent with what is held. Messages keep their order, so a difference is
// a loss, not a delay.
func (s *session) heartbeat(h *syncv1.Heartbeat) error {
	c := s.c
	if take := c.cfg.Checkpoint; take != nil && len(h.Checkpoint) > 0 {
		_ = take(h.CheckpointFrom, h.Checkpoint, h.CheckpointProof) // tables are judged by themselves
	}
	if s.asked || s.begun && c.staged != nil {
		if s.waited++; s.waited <= patience {
			return nil
		}
		c.staged = nil
		return s.nack(nil, fault.New(fault.Conflict, ReasonLost, "snapshot does not come"), true)
	}
	if h.Catalog == nil || h.Zone == nil {
		return nil // the node does not vouch for a position
	}
	if c.table != nil && same(h.Catalog, c.table.Catalog()) && same(h.Zone, c.table.Zone()) {
		s.heard = true
		c.staged = nil // of an earlier stream
		c.confirmed()
		if c.cfg.Now().Sub(s.markedAt) >= confirmEvery && !c.needBase {
			if err := s.mark(); err != nil {
				c.cfg.Logger.Error("mark cannot be written", "error", err)
			}
		}
		return nil
	}
	return s.nack(nil, fault.New(fault.Conflict, ReasonLost, "control node has sent up to %d.%d and %d.%d, held is %s and %s",
		h.Catalog.Epoch, h.Catalog.Index, h.Zone.Epoch, h.Zone.Index, c.table.Catalog(), c.table.Zone()), true)
}

func same(p *syncv1.Position, r revision.Revision) bool {
	return p.Epoch == r.Epoch && p.Index == r.Index && string(p.Sum) == string(r.Sum[:])
}

// tellRows answers a question for rows of relays, in a call of its own. One at a time: each reads the disk.
func (s *session) tellRows(ctx context.Context, client syncv1connect.SyncServiceClient, wanted *syncv1.RowsWanted) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	out, err := client.TellRows(ctx)
	if err != nil {
		s.c.cfg.Logger.Warn("rows of relays cannot be told", "error", err)
		return
	}
	last := &syncv1.TellRowsRequest{Id: wanted.GetId(), Done: true}
	if s.telling.TryLock() {
		err = s.c.cfg.Rows(ctx, wanted, func(m *syncv1.TellRowsRequest) error {
			m.Id = wanted.GetId()
			return out.Send(m)
		})
		s.telling.Unlock()
	} else {
		err = fault.New(fault.Unavailable, "ROWS_BUSY", "it is answering another question; ask again later")
	}
	if err != nil {
		last.Done, last.Failed = false, cmp.Or(fault.ReasonOf(err), "ROWS_UNREADABLE") // the words stay here
		s.c.cfg.Logger.Warn("rows of relays cannot be told", "error", err)
	}
	_ = out.Send(last) // what ended the call is in the answer
	if _, err := out.CloseAndReceive(); err != nil && ctx.Err() == nil {
		s.c.cfg.Logger.Warn("rows of relays cannot be told", "error", err)
	}
}

package syncserver

import (
	"cmp"
	"crypto/ed25519"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"
	"bailiwick/shared/fault"
	"bailiwick/shared/revision"
	"bailiwick/shared/table"
)

// push sends what the edge is missing, if it has answered what it was sent before. So at most one update is
// under way to an edge, and however slow it is, what waits for it is one difference made when it is due.
func (ss *session) push(retry *time.Timer) (gone bool, err error) {
	s, e := ss.s, ss.edge
	s.mu.Lock()
	if e.gone {
		s.mu.Unlock()
		return true, nil
	}
	now := s.now(e)
	e.report.wantCatalog, e.report.wantZone = now.catalog, now.zone
	if wait := ss.holdOff.Sub(s.cfg.Now()); ss.inflight || wait > 0 {
		s.mu.Unlock()
		if wait > 0 {
			retry.Reset(wait)
		}
		return false, nil
	}
	if ss.held != nil && ss.held.catalog == now.catalog && ss.held.zone == now.zone {
		ss.held.version = now.version
		s.mu.Unlock()
		return false, nil
	}
	update := &syncv1.TableUpdate{Edge: e.node.Name, Region: e.node.Region, Zone: s.cfg.ZoneName,
		CatalogTo: wire(now.catalog), ZoneTo: wire(now.zone)}
	changed := map[table.ObjectKey]struct{}{}
	if ss.held != nil && s.keyLog.since(ss.held.version, changed) && e.log.since(ss.held.version, changed) {
		update.CatalogFrom, update.ZoneFrom = wire(ss.held.catalog), wire(ss.held.zone)
	} else {
		update.Snapshot = true
	}
	var upserts iter.Seq[table.Object]
	var removals []table.ObjectKey
	if update.Snapshot {
		upserts, update.Skipped = s.whole(e, ss.resume, now)
		ss.resume = nil
	} else {
		upserts, removals = s.collect(e, changed)
	}
	e.remember(now)
	s.mu.Unlock()

	ss.held, ss.inflight, ss.sentAt = &now, true, s.cfg.Now()
	if !update.Snapshot && len(changed) > 0 && s.cfg.DropDelta != nil && s.cfg.DropDelta() {
		s.stats.Dropped.Add(1)
		ss.inflight = false
		return false, nil
	}
	if update.Snapshot {
		s.stats.Snapshots.Add(1)
	} else {
		s.stats.Deltas.Add(1)
	}
	if update.Skipped > 0 {
		s.stats.Resumed.Add(1)
	}
	return false, ss.sendUpdate(update, upserts, removals)
}

// collect copies references to the objects that changed: what is sent must not change while it is sent. Caller holds mu.
func (s *Server) collect(e *edge, changed map[table.ObjectKey]struct{}) (iter.Seq[table.Object], []table.ObjectKey) {
	var upserts []table.Object
	var removals []table.ObjectKey
	for k := range changed {
		o, ok := e.view.Objects[k]
		if k.Kind == table.KindKey {
			o, ok = s.keys.Get(k.ID)
		}
		if ok {
			upserts = append(upserts, o)
		} else {
			removals = append(removals, k)
		}
	}
	return slices.Values(upserts), removals
}

// whole is all that the edge may hold, in the one order of all nodes, behind what it says it has already if that is of the
// very same objects. It is read while it is sent, by this stream's pace, and costs others nothing. Caller holds mu.
func (s *Server) whole(e *edge, have *syncv1.Resume, now place) (objects iter.Seq[table.Object], skipped uint64) {
	others := e.view.Ordered
	walk := s.keys.Walk()
	last := table.ObjectKey{Kind: table.Kind(have.GetLastKind()), ID: have.GetLastId()}
	if have.GetObjects() > 0 && alike(have.Catalog, now.catalog) && alike(have.Zone, now.zone) {
		n := 0
		for n < len(others) && (last.Kind == table.KindKey || compareKeys(others[n].Key(), last) <= 0) {
			n++
		}
		skipped = uint64(n)
		if last.Kind == table.KindKey {
			skipped += uint64(walk.Through(last.ID))
		}
		if skipped == have.Objects {
			others = others[n:]
		} else {
			skipped = 0 // it counts otherwise, so it has not what it would be spared
		}
	}
	from := ""
	if skipped > 0 && last.Kind == table.KindKey {
		from = last.ID
	}
	return func(yield func(table.Object) bool) {
		for _, o := range others {
			if !yield(o) {
				return
			}
		}
		walk.From(from)(yield)
	}, skipped
}

// compareKeys orders what is no key of a customer; those come last, in an order of their own.
func compareKeys(a, b table.ObjectKey) int {
	return cmp.Or(cmp.Compare(a.Kind, b.Kind), strings.Compare(a.ID, b.ID))
}

// alike says whether a position is of the same objects, whatever place in the log they were taken at.
func alike(p *syncv1.Position, now revision.Revision) bool {
	return p.GetEpoch() == now.Epoch && string(p.GetSum()) == string(now.Sum[:]) && p.GetIndex() <= now.Index
}

// sendUpdate sends an update in as many signed parts as it needs.
func (ss *session) sendUpdate(update *syncv1.TableUpdate, upserts iter.Seq[table.Object], removals []table.ObjectKey) error {
	size, limit := 0, ss.s.cfg.PartBytes-1024
	var err error
	room := func(n int) bool {
		if size > 0 && size+n > limit {
			update.More = true
			err = ss.sendPart(update)
			update.Upserts, update.Removals, size = update.Upserts[:0], update.Removals[:0], 0
		}
		size += n
		return err == nil
	}
	objects := 0
	for o := range upserts {
		if !room(len(o.ID) + len(o.Data) + 16) {
			return err
		}
		update.Upserts = append(update.Upserts, &syncv1.Object{Kind: uint32(o.Kind), Id: o.ID, Data: o.Data})
		objects++
	}
	for _, k := range removals {
		if !room(len(k.ID) + 16) {
			return err
		}
		update.Removals = append(update.Removals, &syncv1.ObjectKey{Kind: uint32(k.Kind), Id: k.ID})
	}
	ss.s.stats.Objects.Add(int64(objects + len(removals)))
	update.More = false
	return ss.sendPart(update)
}

func (ss *session) sendPart(update *syncv1.TableUpdate) error {
	payload, err := proto.Marshal(update)
	if err != nil {
		return fault.New(fault.Internal, "ENCODE", "encode update for %s: %w", update.Edge, err)
	}
	ss.s.stats.Bytes.Add(int64(len(payload)))
	signed := &syncv1.Signed{Payload: payload, Signature: ed25519.Sign(ss.s.cfg.Signer, table.SignedBytes(update.Edge, payload))}
	update.Skipped = 0 // said once
	return ss.send(&syncv1.SubscribeResponse{Message: &syncv1.SubscribeResponse_Table{Table: signed}})
}

// heartbeat says what the edge holds once it took all that was sent on this stream. Messages keep their order,
// so an edge that stands elsewhere when it reads this has lost something.
func (ss *session) heartbeat() error {
	h := &syncv1.Heartbeat{UnixMs: ss.s.cfg.Now().UnixMilli()}
	if ss.held != nil {
		h.Catalog, h.Zone = wire(ss.held.catalog), wire(ss.held.zone)
	}
	if head := ss.s.cfg.Checkpoint; head != nil {
		// What was sent may not have been taken yet: the edge says itself which head it holds, in its status.
		ss.s.mu.Lock()
		status := ss.edge.report.status
		ss.s.mu.Unlock()
		if status != nil {
			h.CheckpointFrom = status.GetCheckpointSize()
			h.Checkpoint, h.CheckpointProof = head(h.CheckpointFrom)
		}
	}
	return ss.send(&syncv1.SubscribeResponse{Message: &syncv1.SubscribeResponse_Heartbeat{Heartbeat: h}})
}

func (ss *session) withdraw() error {
	ss.conn.withdraw()
	return ss.send(&syncv1.SubscribeResponse{Message: &syncv1.SubscribeResponse_Withdrawn{
		Withdrawn: &syncv1.Withdrawn{Reason: "EDGE_WITHDRAWN"}}})
}

// send gives an edge that reads nothing AckTimeout, and then ends its stream: what waits for it keeps a state of all keys
// in memory, and nothing else.
func (ss *session) send(m *syncv1.SubscribeResponse) error {
	ss.stalled.Reset(ss.s.cfg.AckTimeout)
	defer ss.stalled.Stop()
	if err := ss.stream.Send(m); err != nil {
		return fmt.Errorf("send to edge: %w", err)
	}
	return nil
}

func wire(r revision.Revision) *syncv1.Position {
	return &syncv1.Position{Epoch: r.Epoch, Index: r.Index, Sum: r.Sum[:]}
}

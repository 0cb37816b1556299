package syncserver

import (
	"crypto/ed25519"
	"fmt"
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
	upserts, removals := s.collect(e, update.Snapshot, changed)
	e.remember(now)
	s.mu.Unlock()

	ss.held, ss.inflight, ss.sentAt = &now, true, s.cfg.Now()
	if !update.Snapshot && s.cfg.DropDelta != nil && s.cfg.DropDelta() {
		s.stats.Dropped.Add(1)
		ss.inflight = false
		return false, nil
	}
	if update.Snapshot {
		s.stats.Snapshots.Add(1)
	} else {
		s.stats.Deltas.Add(1)
	}
	s.stats.Objects.Add(int64(len(upserts) + len(removals)))
	return false, ss.sendUpdate(update, upserts, removals)
}

// collect copies references to the objects an update holds: what is sent must not change while it is sent.
// Caller holds mu.
func (s *Server) collect(e *edge, all bool, changed map[table.ObjectKey]struct{}) (upserts []table.Object, removals []table.ObjectKey) {
	if all {
		upserts = make([]table.Object, 0, len(e.view.Objects)+s.keys.Len())
		for _, o := range e.view.Objects {
			upserts = append(upserts, o)
		}
		return append(upserts, s.keys.All()...), nil
	}
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
	return upserts, removals
}

// sendUpdate sends an update in as many signed parts as it needs.
func (ss *session) sendUpdate(update *syncv1.TableUpdate, upserts []table.Object, removals []table.ObjectKey) error {
	for size := 0; ; {
		switch {
		case len(upserts) > 0:
			o := upserts[0]
			upserts = upserts[1:]
			update.Upserts = append(update.Upserts, &syncv1.Object{Kind: uint32(o.Kind), Id: o.ID, Data: o.Data})
			size += len(o.ID) + len(o.Data) + 16
		case len(removals) > 0:
			update.Removals = append(update.Removals, &syncv1.ObjectKey{Kind: uint32(removals[0].Kind), Id: removals[0].ID})
			size += len(removals[0].ID) + 16
			removals = removals[1:]
		}
		next := 0
		if len(upserts) > 0 {
			next = len(upserts[0].ID) + len(upserts[0].Data) + 16
		} else if len(removals) > 0 {
			next = len(removals[0].ID) + 16
		}
		if next > 0 && size+next <= ss.s.cfg.PartBytes-1024 {
			continue
		}
		update.More = next > 0
		payload, err := proto.Marshal(update)
		if err != nil {
			return fault.New(fault.Internal, "ENCODE", "encode update for %s: %w", update.Edge, err)
		}
		ss.s.stats.Bytes.Add(int64(len(payload)))
		signed := &syncv1.Signed{Payload: payload, Signature: ed25519.Sign(ss.s.cfg.Signer, table.SignedBytes(update.Edge, payload))}
		if err := ss.send(&syncv1.SubscribeResponse{Message: &syncv1.SubscribeResponse_Table{Table: signed}}); err != nil {
			return err
		}
		if !update.More {
			return nil
		}
		update.Upserts, update.Removals, size = update.Upserts[:0], update.Removals[:0], 0
	}
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

func (ss *session) send(m *syncv1.SubscribeResponse) error {
	if err := ss.stream.Send(m); err != nil {
		return fmt.Errorf("send to edge: %w", err)
	}
	return nil
}

func wire(r revision.Revision) *syncv1.Position {
	return &syncv1.Position{Epoch: r.Epoch, Index: r.Index, Sum: r.Sum[:]}
}

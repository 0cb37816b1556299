package syncserver

import (
	"cmp"
	"crypto/ed25519"
	"crypto/sha256"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"bailiwick/controlplane/internal/view"
	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"
	"bailiwick/shared/fault"
	"bailiwick/shared/revision"
	"bailiwick/shared/table"
)

// push sends what the edge is missing, if it has answered what it was sent before. So at most one update is
// under way to an edge, and however slow it is, what waits for it is one difference made when it is due.
func (ss *session) push(fired bool) (gone bool, err error) {
	s, e, c := ss.s, ss.edge, ss.conn
	s.mu.Lock()
	unlock := func() { c.tally(); s.mu.Unlock() }
	if e.gone {
		s.mu.Unlock()
		return true, nil
	}
	due := c.due || fired
	c.due, c.later = false, false
	now := s.now(e)
	hold := ss.holdOff.Sub(s.cfg.Now())
	switch {
	case c.inflight:
		unlock()
		return false, nil
	case hold > 0:
		unlock()
		ss.wakeIn(hold)
		return false, nil
	case ss.held != nil && ss.held.catalog == now.catalog && ss.held.zone == now.zone:
		ss.held.version = now.version
		unlock()
		return false, nil
	case !due:
		unlock()
		if !ss.armed {
			ss.wakeIn(quietDelay)
		}
		return false, nil
	}
	update := &syncv1.TableUpdate{Region: e.node.Region, Zone: s.cfg.ZoneName, CatalogTo: wire(now.catalog), ZoneTo: wire(now.zone)}
	var d *difference
	if ss.held != nil {
		d = s.difference(e, *ss.held, now)
	}
	var upserts iter.Seq[table.Object]
	var removals []table.ObjectKey
	if d != nil {
		update.CatalogFrom, update.ZoneFrom = wire(ss.held.catalog), wire(ss.held.zone)
		upserts, removals = slices.Values(d.upserts), d.removals
	} else {
		update.Snapshot = true
		upserts, update.Skipped = s.whole(e, ss.resume, now)
		ss.resume = nil
	}
	e.remember(now)
	ss.held, ss.sentAt, c.inflight = &now, s.cfg.Now(), true
	unlock()

	switch {
	case d != nil && d.size > 0 && s.cfg.DropDelta != nil && s.cfg.DropDelta():
		s.stats.Dropped.Add(1)
		s.mu.Lock()
		defer s.mu.Unlock()
		c.inflight = false
		c.tally()
		if c.due || c.later {
			poke(c.wake)
		}
		return false, nil
	case update.Snapshot:
		s.stats.Snapshots.Add(1)
	default:
		s.stats.Deltas.Add(1)
	}
	if update.Skipped > 0 {
		s.stats.Resumed.Add(1)
	}
	if d != nil && ss.hashed && d.size < s.cfg.PartBytes-headRoom {
		s.stats.Objects.Add(int64(len(d.upserts) + len(d.removals)))
		return false, ss.sendShared(d, update)
	}
	return false, ss.sendUpdate(update, upserts, removals)
}

func (ss *session) wakeIn(d time.Duration) {
	ss.timer.Reset(d)
	ss.armed = true
}

// way is from where to where edges go that are sent the same. Which view they are to hold takes part, so that what an edge
// is sent is of its own view, whatever sums say.
type way struct {
	view                  *view.View
	fromCatalog, fromZone revision.Revision
	toCatalog, toZone     revision.Revision
}

// difference is what leads from one place to another. It is encoded once, and kept as long as edges are sent to that place.
type difference struct {
	upserts  []table.Object
	removals []table.ObjectKey
	size     int // of both, at most

	once    sync.Once
	payload []byte
	hash    [sha256.Size]byte
	err     error
}

// difference gives what an edge is missing; nil: what it holds is not remembered. It has references to the objects that
// changed: what is sent must not change while it is sent. Caller holds mu.
func (s *Server) difference(e *edge, held, now place) *difference {
	if s.sharedAt != s.version || s.shared == nil {
		s.shared, s.sharedAt, s.sharedSize = map[way]*difference{}, s.version, 0
	}
	w := way{e.view, held.catalog, held.zone, now.catalog, now.zone}
	if d := s.shared[w]; d != nil {
		return d
	}
	changed := map[table.ObjectKey]struct{}{}
	if !s.keyLog.since(held.version, changed) || !e.log.since(held.version, changed) {
		return nil
	}
	d := &difference{}
	for k := range changed {
		o, ok := e.view.Objects[k]
		if k.Kind == table.KindKey {
			o, ok = s.keys.Get(k.ID)
		}
		d.size += len(k.ID) + len(o.Data) + objectRoom
		if ok {
			d.upserts = append(d.upserts, o)
		} else {
			d.removals = append(d.removals, k)
		}
	}
	// What takes several parts is encoded part by part for each edge, and a crowd that comes from everywhere shares little.
	if d.size < s.cfg.PartBytes-headRoom && s.sharedSize+d.size <= maxShared {
		s.shared[w] = d
		s.sharedSize += d.size
	}
	return d
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

const (
	headRoom   = 1024     // of a part, for all but its objects
	objectRoom = 16       // of an object, for all but its id and data
	maxShared  = 64 << 20 // of differences kept for the next edge that goes the same way
)

// sendShared sends a difference as it was made for the first edge that goes this way.
func (ss *session) sendShared(d *difference, update *syncv1.TableUpdate) error {
	d.once.Do(func() {
		if d.payload, d.err = encode(update, d.removals); d.err == nil {
			for _, o := range d.upserts {
				d.payload = appendObject(d.payload, &o)
			}
			d.hash = sha256.Sum256(d.payload)
		}
	})
	if d.err != nil {
		return d.err
	}
	return ss.sendSigned(d.payload, d.hash)
}

// sendUpdate sends an update in as many signed parts as it needs.
func (ss *session) sendUpdate(update *syncv1.TableUpdate, upserts iter.Seq[table.Object], removals []table.ObjectKey) error {
	var objects []byte // those of the next part
	var gone []table.ObjectKey
	size, limit := 0, ss.s.cfg.PartBytes-headRoom
	if !ss.hashed {
		update.Edge = ss.edge.node.Name
	}
	part := func() error {
		payload, err := encode(update, gone)
		if err != nil {
			return err
		}
		update.Skipped = 0 // said once
		payload = append(payload, objects...)
		objects, gone, size = objects[:0], gone[:0], 0
		if ss.hashed {
			return ss.sendSigned(payload, sha256.Sum256(payload))
		}
		return ss.sendPayload(&syncv1.Signed{Payload: payload, Signature: ed25519.Sign(ss.s.cfg.Signer, table.SignedWhole(update.Edge, payload))})
	}
	room := func(n int) (err error) {
		if size > 0 && size+n > limit {
			update.More = true
			err = part()
		}
		size += n
		return err
	}
	n := 0
	for o := range upserts {
		if err := room(len(o.ID) + len(o.Data) + objectRoom); err != nil {
			return err
		}
		objects = appendObject(objects, &o)
		n++
	}
	for _, k := range removals {
		if err := room(len(k.ID) + objectRoom); err != nil {
			return err
		}
		gone = append(gone, k)
	}
	ss.s.stats.Objects.Add(int64(n + len(removals)))
	update.More = false
	return part()
}

// encode is an update without its upserts, which may follow: a message's fields come in any order.
func encode(update *syncv1.TableUpdate, removals []table.ObjectKey) ([]byte, error) {
	update.Removals = update.Removals[:0]
	for _, k := range removals {
		update.Removals = append(update.Removals, &syncv1.ObjectKey{Kind: uint32(k.Kind), Id: k.ID})
	}
	payload, err := proto.Marshal(update)
	if err != nil {
		return nil, fault.New(fault.Internal, "ENCODE", "encode update for region %s: %w", update.Region, err)
	}
	return payload, nil
}

// appendObject appends one of TableUpdate.upserts. There may be a million of them in an update, and as messages they would
// cost an allocation and two copies each.
func appendObject(b []byte, o *table.Object) []byte {
	n := protowire.SizeTag(1) + protowire.SizeVarint(uint64(o.Kind)) + protowire.SizeTag(2) + protowire.SizeBytes(len(o.ID)) + protowire.SizeTag(3) + protowire.SizeBytes(len(o.Data))
	b = protowire.AppendTag(b, 10, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(n))
	b = protowire.AppendTag(b, 1, protowire.VarintType)
	b = protowire.AppendVarint(b, uint64(o.Kind))
	b = protowire.AppendTag(b, 2, protowire.BytesType)
	b = protowire.AppendString(b, o.ID)
	b = protowire.AppendTag(b, 3, protowire.BytesType)
	return protowire.AppendBytes(b, o.Data)
}

func (ss *session) sendSigned(payload []byte, hash [sha256.Size]byte) error {
	signature := ed25519.Sign(ss.s.cfg.Signer, table.SignedBytes(ss.edge.node.Name, hash))
	return ss.sendPayload(&syncv1.Signed{Payload: payload, Signature: signature, Hashed: true})
}

func (ss *session) sendPayload(signed *syncv1.Signed) error {
	ss.s.stats.Bytes.Add(int64(len(signed.Payload)))
	return ss.send(&syncv1.SubscribeResponse{Message: &syncv1.SubscribeResponse_Table{Table: signed}})
}

// heartbeat says what the edge holds once it took all that was sent on this stream. Messages keep their order,
// so an edge that stands elsewhere when it reads this has lost something.
func (ss *session) heartbeat() error {
	h := &syncv1.Heartbeat{UnixMs: ss.s.cfg.Now().UnixMilli()}
	ss.s.mu.Lock()
	if ss.held != nil {
		h.Catalog, h.Zone = wire(ss.held.catalog), wire(ss.held.zone)
	}
	status := ss.edge.report.status
	ss.s.mu.Unlock()
	if head := ss.s.cfg.Checkpoint; head != nil {
		// What was sent may not have been taken yet: the edge says itself which head it holds, in its status.
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

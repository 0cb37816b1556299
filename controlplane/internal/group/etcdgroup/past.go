package etcdgroup

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"bailiwick/controlplane/internal/group"
	"bailiwick/shared/durable"
)

// past is what this node knows of etcd's own history: its cluster's id, its raft's term and an entry that was committed.
// None of them goes back while a cluster lives. One that was made from a snapshot has a new raft log, and often a new id.
type past struct {
	mu      sync.Mutex // covers all below
	cluster uint64
	term    uint64
	entry   uint64
	told    bool   // the server's version
	wrote   string // what Seen holds
}

// saw takes the header of an answer that a quorum confirmed.
func (p *past) saw(h *pb.ResponseHeader) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cluster != h.ClusterId {
		p.cluster, p.term, p.entry = h.ClusterId, 0, 0
	}
	p.term = max(p.term, h.RaftTerm)
}

func (p *past) now() (cluster, term, entry uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cluster, p.term, p.entry
}

// look asks the members how far they are; the farthest counts.
func (p *past) look(ctx context.Context, s *Store) (entry uint64, known bool) {
	for _, e := range s.cfg.Endpoints {
		actx, cancel := context.WithTimeout(ctx, readLimit)
		st, err := s.client.Status(actx, e)
		cancel()
		if err != nil || st.Leader == 0 {
			continue
		}
		entry, known = max(entry, st.RaftAppliedIndex), true
		p.mu.Lock()
		tell := !p.told
		p.told = true
		if p.cluster == st.Header.ClusterId {
			p.entry = max(p.entry, st.RaftAppliedIndex)
		}
		p.mu.Unlock()
		if tell && losesDeletes(st.Version) {
			s.cfg.Logger.Warn("etcd is older than 3.5.18 and 3.4.36, which fixed watches that miss deletes: upgrade it", "addr", e)
		}
	}
	return entry, known
}

// losesDeletes: etcd#18089, fixed in 3.5.18 and 3.4.36. This engine watches keys that are only ever overwritten, and one that
// expires, so it suffers little.
func losesDeletes(version string) bool {
	var a, b, c int
	if n, _ := fmt.Sscanf(version, "%d.%d.%d", &a, &b, &c); n < 3 {
		return false
	}
	switch {
	case a != 3:
		return a < 3
	case b == 5:
		return c < 18
	case b == 4:
		return c < 36
	}
	return b < 4
}

// isBehind says that etcd lost commits that were there.
func isBehind(known, found head) bool {
	if found.rev.Epoch != known.rev.Epoch {
		return found.rev.Epoch < known.rev.Epoch // a later epoch says so itself
	}
	return found.serial < known.serial || found.serial == known.serial && found.nonce != known.nonce
}

// setBack says why etcd does not hold what it held, "" if it does.
func (p *past) setBack(ctx context.Context, s *Store, known *position, l *listing) string {
	found := l.pos.head
	if known != nil && isBehind(known.head, found) {
		return fmt.Sprintf("this node has seen commit %d of revision %s", known.head.serial, known.head.rev)
	}
	if seen, ok := s.recall(); ok && isBehind(seen, found) {
		return fmt.Sprintf("this node remembers commit %d of revision %s", seen.serial, seen.rev)
	}
	if l.pos.raw == nil {
		p.look(ctx, s)
		return ""
	}
	if l.cluster != found.cluster {
		return fmt.Sprintf("the group was last written in cluster %016x, this is cluster %016x", found.cluster, l.cluster)
	}
	// The member that was asked may only be slow: it has a while to catch up.
	entry, sure := p.look(ctx, s)
	for i := 0; i < 10 && sure && entry < found.entry && pause(ctx, readLimit/5); i++ {
		entry, sure = p.look(ctx, s)
	}
	switch {
	case sure && entry < found.entry:
		return fmt.Sprintf("etcd has committed %d entries, it had committed %d when the group was last written", entry, found.entry)
	case !sure && l.term < found.term:
		return fmt.Sprintf("etcd's raft is in term %d, it was in term %d when the group was last written", l.term, found.term)
	}
	return ""
}

// reopen begins a new epoch where etcd was set back: positions given out before mean nothing any more, watches end, and
// what crosses zones closes until it is decided on anew.
func (s *Store) reopen(ctx context.Context, known *position, l *listing, why string) error {
	if l.pos.bulk != nil {
		if _, err := s.spread(ctx, l.pos); err != nil {
			return err
		}
		return errGap // its head is another now
	}
	found := Restored{Why: why, Found: l.pos.state.Rev}
	serial := l.pos.head.serial
	if known != nil {
		found.Seen, serial = known.state.Rev, max(serial, known.head.serial)
	}
	if seen, ok := s.recall(); ok {
		serial = max(serial, seen.serial)
		if found.Seen.Less(seen.rev) {
			found.Seen = seen.rev
		}
	}
	at := later(l.pos.head.at, time.Now())
	found.Opened = group.Revision{Epoch: max(found.Found.Epoch+1, found.Seen.Epoch+1, firstEpoch(at)), Index: found.Found.Index + 1}
	var ops []group.Op
	if s.cfg.Restored != nil {
		var err error
		if ops, err = s.cfg.Restored(found); err != nil {
			s.cfg.Logger.Error("etcd was set back, and what its new epoch begins with cannot be told", "why", why, "err", err)
			return err
		}
		if err := (group.Txn{Ops: ops}).Validate(); err != nil {
			return err
		}
	}
	h := s.nextHead(l.pos.head, at)
	h.serial, h.rev = serial+1, found.Opened
	base := l.pos.state
	base.Rev = group.Revision{Epoch: h.rev.Epoch, Index: h.rev.Index - 1}
	rec := record{id: "epoch/" + rand.Text(), failed: -1, ops: ops}
	c, err := s.draft(l.pos, base, h, []record{rec}, true)
	if err != nil {
		return err
	}
	if _, err := s.send(ctx, c); err != nil {
		return err
	}
	s.cfg.Logger.Error("etcd was set back: the group begins a new epoch", "why", why, "epoch", found.Opened.Epoch, "index", found.Opened.Index)
	return nil
}

func later(a, b time.Time) time.Time {
	b = time.Unix(0, b.UnixNano()).UTC() // as it is read back
	if b.After(a) {
		return b
	}
	return a
}

// remember writes down how far this node has seen the group.
func (s *Store) remember() {
	if s.cfg.Seen == "" {
		return
	}
	p, _ := s.here()
	if p == nil || p.raw == nil {
		return
	}
	s.past.mu.Lock()
	defer s.past.mu.Unlock()
	if s.past.wrote == p.head.nonce {
		return
	}
	if seen, ok := s.recall(); ok && isBehind(seen, p.head) {
		return // a node that began in the past is on its way
	}
	if err := durable.WriteFileAtomic(durable.OS(), s.cfg.Seen, p.raw, durable.FilePerm); err != nil {
		s.cfg.Logger.Warn("how far the group was seen cannot be written", "err", err)
		return
	}
	s.past.wrote = p.head.nonce
}

// recall is what remember wrote. What cannot be read is no proof of anything.
func (s *Store) recall() (head, bool) {
	if s.cfg.Seen == "" {
		return head{}, false
	}
	b, err := durable.ReadFile(durable.OS(), s.cfg.Seen, 4<<10)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			s.cfg.Logger.Warn("how far the group was seen cannot be read", "err", err)
		}
		return head{}, false
	}
	h, err := decodeHead(b)
	return h, err == nil && h.group == s.cfg.Name
}

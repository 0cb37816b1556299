package etcdgroup

import (
	"context"
	"crypto/rand"
	"errors"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/group/replica"
)

// Limits of one commit, inside NeedTxnOps and NeedRequestBytes.
const (
	maxKeyOps  = NeedTxnOps - 8             // keys of one etcd transaction, beside the head, the log and the requests
	maxRecords = 512                        // transactions of one commit
	maxCommit  = NeedRequestBytes - 128<<10 // bytes of one transaction with its keys; a larger one is spread
	maxBatch   = 512 << 10                  // bytes after which a commit takes no further transaction
	perOp      = 64                         // what an operation costs beside key and value
)

// maxStale is how much older than now the stamp of a transaction that changes nothing may be, before a head is written that
// carries a new one: such transactions ask for the time, of a group that may have been quiet for days.
const maxStale = time.Second

// commit is one etcd transaction: it takes the group from prev to next, or does nothing.
type commit struct {
	prev, next *position
	steps      []step
	results    []replica.Remembered
	epoch      bool
	ops        []clientv3.Op
}

func (s *Store) nextHead(h head, at time.Time) head {
	h.group, h.nonce, h.at = s.cfg.Name, rand.Text(), at
	h.serial++
	h.bulk = false
	h.cluster, h.term, h.entry = s.past.now()
	return h
}

// draft makes the commit of records on base, which is prev's state but for the revision of a new epoch. h lacks what
// follows from the records.
func (s *Store) draft(prev *position, base replica.State, h head, records []record, epoch bool) (*commit, error) {
	c := &commit{prev: prev, epoch: epoch}
	st, steps, results := fold(base, h.at, records)
	if epoch {
		st.Rev = h.rev
	}
	c.steps, c.results = steps, results
	first := h.requests
	h.rev, h.keys, h.requests = st.Rev, uint64(st.Len()), h.requests+uint64(len(records))
	keys, size, spread := s.keyWrites(steps, records)
	for _, r := range records {
		size += len(r.id) + perOp
		for _, op := range r.ops {
			size += len(op.Key) + len(op.Value) + perOp
		}
	}
	h.bulk = spread || size > maxCommit
	c.next = &position{state: st, head: h, raw: h.encode()}
	if h.bulk {
		c.next.bulk, keys = bulkOps(records), nil
	}
	log := entry{head: c.next.raw, prev: prev.head.nonce, epoch: epoch, records: records}
	c.ops = append(keys, clientv3.OpPut(s.keyHead(), string(c.next.raw)), clientv3.OpPut(s.keyLog(), string(log.encode())))
	if len(results) > 0 {
		c.ops = append(c.ops, clientv3.OpPut(s.requestsAt(first), string(encodeResults(results))))
	}
	// What no node remembers goes, now and then: a key holds the requests of one commit.
	const often = 1024
	if old := group.RememberedRequests + maxRecords + often; h.requests/often != first/often && h.requests > uint64(old) {
		c.ops = append(c.ops, clientv3.OpDelete(s.keyRequests(), clientv3.WithRange(s.requestsAt(h.requests-uint64(old)))))
	}
	return c, nil
}

// keyWrites are what steps leave at their keys; spread says that they are too many for one etcd transaction. A
// transaction that deletes a prefix is alone, so that its range meets no other's keys.
func (s *Store) keyWrites(steps []step, records []record) (ops []clientv3.Op, size int, spread bool) {
	if len(records) == 1 && deletesPrefix(records[0].ops) {
		size = 0
		if len(steps) == 0 {
			return nil, 0, false
		}
		if len(records[0].ops) > maxKeyOps {
			return nil, 0, true
		}
		for _, e := range steps[0].events {
			if !e.Delete {
				ops = append(ops, s.putKV(e.KV))
				size += len(s.cfg.Prefix) + len(e.KV.Key) + len(e.KV.Value) + perOp
			}
		}
		for _, op := range records[0].ops {
			if op.Delete || op.DeletePrefix {
				ops = append(ops, s.remove(op))
				size += len(s.cfg.Prefix) + len(op.Key) + perOp
			}
		}
		return ops, size, false
	}
	last := map[string]group.Event{}
	var order []string
	for _, x := range steps {
		for _, e := range x.events {
			if _, ok := last[e.KV.Key]; !ok {
				order = append(order, e.KV.Key)
			}
			last[e.KV.Key] = e
		}
	}
	if len(order) > maxKeyOps {
		return nil, 0, true
	}
	for _, key := range order {
		e := last[key]
		size += len(s.cfg.Prefix) + len(key) + len(e.KV.Value) + perOp
		if e.Delete {
			ops = append(ops, s.remove(group.Op{Key: key, Delete: true}))
		} else {
			ops = append(ops, s.putKV(e.KV))
		}
	}
	return ops, size, false
}

func (s *Store) putKV(kv group.KV) clientv3.Op {
	return clientv3.OpPut(s.keyOf(kv.Key), string(encodeKV(kv)))
}

func (s *Store) remove(op group.Op) clientv3.Op {
	if op.DeletePrefix {
		return clientv3.OpDelete(s.keyOf(op.Key), clientv3.WithPrefix())
	}
	return clientv3.OpDelete(s.keyOf(op.Key))
}

func deletesPrefix(ops []group.Op) bool {
	for _, op := range ops {
		if op.DeletePrefix {
			return true
		}
	}
	return false
}

// only is the compare that makes a commit: etcd holds the head it began with. The nonce inside makes it the only one.
func (s *Store) only(p *position) clientv3.Cmp {
	if p.raw == nil {
		return clientv3.Compare(clientv3.CreateRevision(s.keyHead()), "=", 0)
	}
	return clientv3.Compare(clientv3.Value(s.keyHead()), "=", string(p.raw))
}

// send attempts c once. Not ok: etcd held another head, nothing was done. With an error it may or may not be done, now
// or later.
func (s *Store) send(ctx context.Context, c *commit) (ok bool, err error) {
	actx, cancel := limited(ctx, writeLimit)
	defer cancel()
	ops := c.ops
	if len(ops) == 0 {
		ops = []clientv3.Op{clientv3.OpGet(s.keyHead(), clientv3.WithKeysOnly())} // without any, etcd takes it for a read that need not be linearizable
	}
	resp, err := s.client.Txn(actx).If(s.only(c.prev)).Then(ops...).Commit()
	if err != nil {
		return false, err
	}
	s.past.saw(resp.Header)
	if resp.Succeeded {
		c.next.mod = resp.Header.Revision
	}
	return resp.Succeeded, nil
}

// batch is a commit under way with those who wait for it.
type batch struct {
	*commit  // without ops: all that its members did is see that prev is still the head
	members  []*request
	outcomes []group.Result
}

// commitAll is the one that writes, a batch at a time. Whoever finds another head than its own looks again and makes its
// batch anew, so that all compares are made on the state they are committed on.
func (s *Store) commitAll(ctx context.Context) {
	var wait []*request
	var unknown []*batch // attempts of which the outcome is not known
	for ctx.Err() == nil {
		if len(wait) == 0 && len(unknown) == 0 {
			select {
			case <-s.queue.signal:
			case <-ctx.Done():
				return
			}
		}
		wait = append(wait, s.queue.take()...)
		p, moved := s.here()
		if p == nil {
			select {
			case <-moved:
			case <-ctx.Done():
				return
			}
			continue
		}
		if len(unknown) > 0 {
			unknown = s.settle(ctx, unknown, &wait)
			continue
		}
		if p.bulk != nil {
			if _, err := s.spread(ctx, p); err != nil {
				s.trouble.Store(&err)
				s.catchUp(ctx)
			}
			continue
		}
		b, rest, err := s.gather(p, wait)
		wait = rest
		if err != nil || b == nil {
			continue
		}
		s.claim(b)
		ok, err := s.send(ctx, b.commit)
		switch {
		case err != nil && (len(b.ops) == 0 || certainlyNot(err)):
			s.trouble.Store(&err)
			s.disclaim(b)
			wait = append(undo(b.members), wait...)
			pause(ctx, pauseMax)
		case err != nil:
			s.trouble.Store(&err)
			unknown = append(unknown, b)
		case !ok:
			s.disclaim(b)
			wait = append(undo(b.members), wait...)
			s.catchUp(ctx)
		default:
			s.finished(b)
			if b.next.bulk != nil {
				_, _ = s.spread(ctx, b.next) // else the next that writes does it
			}
		}
	}
}

// claim notes an attempt before it is made, so that following its commit tells of it.
func (s *Store) claim(b *batch) {
	if len(b.ops) == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.own[b.next.head.nonce] = false
}

// disclaim forgets it, and says whether it was followed.
func (s *Store) disclaim(b *batch) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	done := s.own[b.next.head.nonce]
	delete(s.own, b.next.head.nonce)
	return done
}

// finished makes a commit part of this node's copy, unless the watch was faster, and tells those who wait.
func (s *Store) finished(b *batch) {
	if len(b.ops) > 0 {
		s.install(b.prev, b.next, b.steps, b.results, false)
	}
	s.disclaim(b)
	b.answer()
}

func (b *batch) answer() {
	for i, r := range b.members {
		r.answer(b.outcomes[i], nil)
	}
}

func undo(members []*request) (left []*request) {
	for _, r := range members {
		if r.undo() {
			left = append(left, r)
		}
	}
	return left
}

// catchUp waits until this node stands where etcd does.
func (s *Store) catchUp(ctx context.Context) {
	_, mod, err := s.readHead(ctx)
	for err == nil && ctx.Err() == nil {
		wctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		_, e := s.reach(wctx, mod)
		cancel()
		if e == nil {
			return
		}
		s.kickFollower()
	}
}

// settle finds out what became of attempts. Once this node stands where etcd does, an attempt either is part of what it
// has followed, or began with a head that is gone and can never succeed, or may still.
func (s *Store) settle(ctx context.Context, unknown []*batch, wait *[]*request) (left []*batch) {
	s.catchUp(ctx)
	p, _ := s.here()
	if p == nil {
		return unknown
	}
	for _, b := range unknown {
		if p.head.nonce == b.prev.head.nonce {
			// Still under way, or lost: the same again. One head lets only one of them through.
			switch ok, err := s.send(ctx, b.commit); {
			case ok:
				s.finished(b)
				continue
			case err != nil:
				s.trouble.Store(&err)
				pause(ctx, pauseMin)
			}
			left = append(left, b)
			continue
		}
		if s.disclaim(b) {
			b.answer()
			continue
		}
		// Not among what was followed. If a list stood in for the watch, the ids it brought tell.
		*wait = append(undo(b.members), *wait...)
	}
	return left
}

// gather makes a batch of those who wait, in order, on the state at p. rest is for the next.
func (s *Store) gather(p *position, wait []*request) (b *batch, rest []*request, err error) {
	b = &batch{}
	st, at := p.state, s.pace.stamp(p.head.at, time.Now(), s.cfg.ClockAgrees)
	var records []record
	var first []int // of each record, its member
	ids := map[string]int{}
	size, keys := 0, map[string]bool{}
	for i, r := range wait {
		if _, again := ids[r.txn.RequestID]; again {
			rest = append(rest, r) // the next batch finds it remembered
			continue
		}
		res, changed, events := s.try(p, &st, at, r)
		grows, own := 0, 0
		for _, e := range events {
			if !keys[e.KV.Key] {
				grows++
			}
			own += 2*len(e.KV.Key) + 2*len(e.KV.Value) + len(s.cfg.Prefix) + 2*perOp
		}
		alone := changed && (deletesPrefix(r.txn.Ops) || len(events) > maxKeyOps || own > maxBatch)
		if len(b.members) > 0 && (alone || len(records) >= maxRecords || len(keys)+grows > maxKeyOps || size+own > maxBatch) {
			rest = append(rest, wait[i:]...)
			break
		}
		if !r.begin() {
			continue // its caller has left
		}
		if !changed && res.Replayed {
			r.answer(res, nil)
			continue
		}
		b.members = append(b.members, r)
		b.outcomes = append(b.outcomes, res)
		ids[r.txn.RequestID] = i
		if !changed && r.drawn {
			continue // it leaves nothing behind
		}
		size += own
		for _, e := range events {
			keys[e.KV.Key] = true
		}
		rec := record{id: r.txn.RequestID, failed: res.Failed}
		if res.Succeeded {
			rec.ops = r.txn.Ops
		}
		records, first = append(records, rec), append(first, len(b.members)-1)
		st, _, _ = fold(st, at, []record{rec})
		if alone {
			rest = append(rest, wait[i+1:]...)
			break
		}
	}
	if len(b.members) == 0 {
		return nil, rest, nil
	}
	if stale := p.raw != nil && at.Sub(p.head.at) > maxStale; len(records) == 0 && !stale {
		b.commit = &commit{prev: p, next: &position{}}
		return b, rest, nil
	}
	for i, r := range b.members { // the head that is written carries the stamp of those who change nothing, too
		if _, before := s.ids.Recall(r.txn.RequestID); !before {
			b.outcomes[i].Time = at
		}
	}
	if b.commit, err = s.draft(p, p.state, s.nextHead(p.head, at), records, false); err != nil {
		return nil, rest, err
	}
	for n, i := range first {
		b.outcomes[i] = b.results[n].Result
	}
	return b, rest, nil
}

// try says what r would do at st, and whether it would change it.
func (s *Store) try(p *position, st *replica.State, at time.Time, r *request) (res group.Result, changed bool, events []group.Event) {
	if res, ok := s.ids.Recall(r.txn.RequestID); ok {
		res.Replayed = !r.drawn
		return res, false, nil
	}
	res = group.Result{Failed: r.failed(st), Revision: st.Rev, Time: at}
	if p.raw != nil && st.Rev == p.state.Rev {
		res.Time = p.head.at // nothing is written that would carry a later one
	}
	if res.Succeeded = res.Failed < 0; res.Succeeded {
		_, events = st.Change(r.txn.Ops, at)
	}
	return res, len(events) > 0, events
}

// certainlyNot are errors of etcd that say it did nothing.
func certainlyNot(err error) bool {
	for _, sure := range []error{rpctypes.ErrNoLeader, rpctypes.ErrTooManyOps, rpctypes.ErrRequestTooLarge, rpctypes.ErrNoSpace,
		rpctypes.ErrPermissionDenied, rpctypes.ErrInvalidAuthToken, rpctypes.ErrUserEmpty, rpctypes.ErrTooManyRequests, rpctypes.ErrDuplicateKey} {
		if errors.Is(err, sure) {
			return true
		}
	}
	return false
}

// spread writes the keys of a bulk transaction, which is committed already, and then the head that says so. While its
// head is the group's nothing else is written, so that whoever does it, and however often, writes the same.
func (s *Store) spread(ctx context.Context, p *position) (done bool, err error) {
	var ops []clientv3.Op
	size := 0
	flush := func() (int64, bool, error) {
		actx, cancel := limited(ctx, writeLimit)
		defer cancel()
		resp, err := s.client.Txn(actx).If(s.only(p)).Then(ops...).Commit()
		ops, size = nil, 0
		if err != nil {
			return 0, false, err
		}
		return resp.Header.Revision, resp.Succeeded, nil
	}
	for _, op := range p.bulk {
		if kv, ok := p.state.Get(op.Key); ok && !op.Delete && !op.DeletePrefix {
			ops = append(ops, s.putKV(kv))
			size += len(kv.Value)
		} else {
			ops = append(ops, s.remove(op))
		}
		size += len(s.cfg.Prefix) + len(op.Key) + perOp
		if len(ops) == maxKeyOps || size > maxBatch {
			if _, ok, err := flush(); err != nil || !ok {
				return false, s.spreadElsewhere(ctx, err)
			}
		}
	}
	c, err := s.draft(p, p.state, s.nextHead(p.head, p.head.at), nil, false)
	if err != nil {
		return false, err
	}
	ops = append(ops, c.ops...)
	rev, ok, err := flush()
	if err != nil || !ok {
		return false, s.spreadElsewhere(ctx, err)
	}
	c.next.mod = rev
	s.install(p, c.next, nil, nil, false)
	return true, nil
}

// spreadElsewhere: another node was faster, or etcd did not answer.
func (s *Store) spreadElsewhere(ctx context.Context, err error) error {
	if err == nil {
		s.catchUp(ctx)
	}
	return err
}

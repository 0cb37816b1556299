package etcdgroup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	iradix "github.com/hashicorp/go-immutable-radix"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/group/replica"
)

// Pages of a list grow and shrink between these many keys, so that an answer stays near a few MiB.
const (
	pageMin   = 16
	pageMax   = 8192
	pageBytes = 4 << 20
)

// errGap: the watch does not continue where this node stands.
var errGap = errors.New("the log does not continue where this node stands")

// follow loads the group and then follows its log, one key of etcd whose every revision is one commit: etcd delivers all
// of them in order or says that it cannot. Each names the head it began with, so that a gap cannot pass for silence.
func (s *Store) follow(ctx context.Context) {
	told := false
	for wait := pauseMin; ctx.Err() == nil; wait = min(2*wait, pauseMax) {
		from, err := s.load(ctx)
		if err == nil {
			wait, told = pauseMin, false
			err = s.watch(ctx, from)
		}
		var newer newerFormat
		var foreign foreignError
		var not refused
		if errors.As(err, &not) {
			s.fail(not.error)
			return
		}
		if errors.As(err, &newer) || errors.As(err, &foreign) || errors.Is(err, rpctypes.ErrTooManyOps) {
			s.fail(s.plain(err))
			return
		}
		if err != nil && ctx.Err() == nil {
			s.trouble.Store(&err)
			if !told && !errors.Is(err, errGap) && !errors.Is(err, rpctypes.ErrCompacted) {
				s.cfg.Logger.Warn("etcd is not followed: it is tried again", "err", s.plain(err))
				told = true
			}
		}
		pause(ctx, wait)
	}
}

// foreignError ends the node: something else writes below the prefix.
type foreignError string

func (f foreignError) Error() string { return string(f) }

// watch follows the log and the leader's key after etcd's revision from, until it has to list again.
func (s *Store) watch(ctx context.Context, from int64) error {
	for {
		wctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
		ch := s.client.Watch(wctx, s.cfg.Prefix+"now/", clientv3.WithPrefix(), clientv3.WithRev(from+1), clientv3.WithProgressNotify())
		again, err := s.drain(ctx, ch, &from)
		cancel()
		if !again {
			return err
		}
		if !pause(ctx, 100*time.Millisecond) {
			return ctx.Err()
		}
	}
}

// drain reads one watch. again: another from the same place will do.
func (s *Store) drain(ctx context.Context, ch clientv3.WatchChan, from *int64) (again bool, err error) {
	for {
		select {
		case resp, ok := <-ch:
			if !ok {
				return ctx.Err() == nil, ctx.Err()
			}
			if err := resp.Err(); err != nil {
				s.trouble.Store(&err)
				return !errors.Is(err, rpctypes.ErrCompacted), err
			}
			for _, ev := range resp.Events {
				if err := s.saw(ev); err != nil {
					return false, err
				}
			}
			// A header may be ahead of its events; a notice of progress, which has none, is not.
			if n := len(resp.Events); n > 0 {
				*from = max(*from, resp.Events[n-1].Kv.ModRevision)
			} else if resp.IsProgressNotify() {
				*from = max(*from, resp.Header.Revision)
			}
		case <-s.kick:
			if s.followed() == nil {
				return false, errGap // distrusted: load again
			}
			return true, nil // the watch may be deaf
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
}

func (s *Store) saw(ev *clientv3.Event) error {
	switch string(ev.Kv.Key) {
	case s.keyLeader():
		if ev.Type == clientv3.EventTypeDelete {
			s.leader.is("", 0, ev.Kv.ModRevision)
		} else {
			s.leader.is(string(ev.Kv.Value), ev.Kv.CreateRevision, ev.Kv.ModRevision)
		}
		s.turn.Moved()
	case s.keyLog():
		if ev.Type == clientv3.EventTypeDelete {
			return errGap
		}
		n, err := decodeEntry(ev.Kv.Value)
		if err != nil {
			return err
		}
		return s.apply(n, ev.Kv.ModRevision)
	}
	return nil
}

// apply makes one commit part of this node's copy, unless it is already.
func (s *Store) apply(n entry, mod int64) error {
	for {
		p := s.followed()
		if p == nil {
			return errGap
		}
		if mod <= p.mod {
			return nil
		}
		if n.prev != p.head.nonce {
			if s.followed() != p {
				continue // this node's own commit came first
			}
			return errGap
		}
		next, steps, results, err := p.after(n, mod)
		if err != nil {
			return err
		}
		if s.install(p, next, steps, results, n.epoch) {
			return nil
		}
	}
}

// load lists the group at one revision of etcd and makes that this node's position. What watches have not seen then is
// lost to them, and they are told so, unless nothing happened.
func (s *Store) load(ctx context.Context) (from int64, err error) {
	lctx, cancel := context.WithTimeout(clientv3.WithRequireLeader(ctx), 5*time.Minute)
	defer cancel()
	s.mu.Lock()
	known, distrust := s.pos, s.distrust
	s.mu.Unlock()
	if err := s.enter(lctx); err != nil {
		return 0, err
	}
	l, err := s.list(lctx, 0)
	if err != nil {
		return 0, err
	}
	why := s.past.setBack(lctx, s, known, l)
	if why == "" && distrust != "" && known != nil && l.pos.head.rev.Epoch == known.head.rev.Epoch {
		why = distrust // and nobody has opened an epoch since
	}
	if why == "" {
		if why, err = s.strayed(lctx, known, l); err != nil {
			return 0, err
		}
	}
	if why != "" {
		if err := s.reopen(lctx, known, l, why); err != nil {
			return 0, err
		}
		return 0, errGap // and load what this node or another has made of it
	}
	s.leader.is(l.leader, l.leaderMade, l.at)
	present := l.pos.mod
	if known == nil {
		if l, err = s.rewind(lctx, l); err != nil {
			return 0, err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.turn.Moved()
	if s.pos != nil && s.pos.mod >= l.pos.mod && s.distrust == "" && s.pos.head.rev.Epoch == l.pos.head.rev.Epoch {
		return l.at, nil // nothing happened, or this node's own commit
	}
	s.distrust = ""
	if l.pos.mod < present {
		s.pos, s.catching = l.pos, &catching{until: present, from: l.pos.state.Rev}
		s.ids.Replace(l.ids)
		return l.at, nil
	}
	if s.catching != nil || s.pos != nil && s.pos.state.Rev != l.pos.state.Rev || s.pos == nil && l.pos.raw != nil {
		s.hist.Reset(l.pos.state.Rev)
	}
	s.pos, s.catching = l.pos, nil
	s.ids.Replace(l.ids)
	s.cur.Store(&l.pos.state)
	s.tell()
	return l.at, nil
}

// listing is what etcd holds at one of its revisions.
type listing struct {
	pos        *position
	ids        []replica.Remembered
	at         int64 // etcd's revision
	cluster    uint64
	term       uint64
	leader     string
	leaderMade int64
}

// list reads the group at one revision of etcd; 0: now.
func (s *Store) list(ctx context.Context, at int64) (*listing, error) {
	// A first answer fixes the revision. The compare cannot fail: only the number of operations is looked at.
	probe := make([]clientv3.Op, NeedTxnOps)
	for i := range probe {
		probe[i] = clientv3.OpGet(s.keyHead(), clientv3.WithKeysOnly())
	}
	if _, err := s.client.Txn(ctx).If(clientv3.Compare(clientv3.CreateRevision(s.keyHead()), ">", -1)).Else(probe...).Commit(); err != nil {
		return nil, err
	}
	resp, err := s.client.Get(ctx, s.keyHead(), clientv3.WithRev(at))
	if err != nil {
		return nil, err
	}
	s.past.saw(resp.Header)
	if at == 0 {
		at = resp.Header.Revision
	}
	l := &listing{pos: &position{state: replica.Empty()}, at: at, cluster: resp.Header.ClusterId, term: resp.Header.RaftTerm}
	if len(resp.Kvs) > 0 {
		l.pos.raw, l.pos.mod = resp.Kvs[0].Value, resp.Kvs[0].ModRevision
		if l.pos.head, err = decodeHead(l.pos.raw); err != nil {
			return nil, err
		}
		if l.pos.head.group != s.cfg.Name {
			return nil, foreignError(fmt.Sprintf("the prefix of etcd holds group %s: give each group a prefix of its own", l.pos.head.group))
		}
	}
	lead, err := s.client.Get(ctx, s.keyLeader(), clientv3.WithRev(l.at))
	if err != nil {
		return nil, err
	}
	if len(lead.Kvs) > 0 {
		l.leader, l.leaderMade = string(lead.Kvs[0].Value), lead.Kvs[0].CreateRevision
	}
	err = s.pages(ctx, s.keyRequests(), l.at, func(_ string, value []byte) error {
		ids, err := decodeResults(value)
		l.ids = append(l.ids, ids...)
		return err
	})
	if err != nil {
		return nil, err
	}
	tx := iradix.New().Txn()
	err = s.pages(ctx, s.keyOf(""), l.at, func(key string, value []byte) error {
		kv, err := decodeKV(key, value)
		if err == nil && kv.ModIndex > l.pos.head.rev.Index {
			err = foreignError("keys below the prefix are of a later revision than the group's head: something else writes there")
		}
		tx.Insert([]byte(key), &kv)
		return err
	})
	if err != nil {
		return nil, err
	}
	l.pos.state = replica.State{Rev: l.pos.head.rev, Tree: tx.CommitOnly()}
	if l.pos.head.bulk {
		if err := s.finish(ctx, l); err != nil {
			return nil, err
		}
	}
	if n := uint64(l.pos.state.Len()); n != l.pos.head.keys {
		return nil, foreignError(fmt.Sprintf("%d keys lie below the prefix, the group's head counts %d: something else writes or deletes there", n, l.pos.head.keys))
	}
	return l, nil
}

// finish makes a bulk transaction part of a listing in which some of its keys are written and some are not.
func (s *Store) finish(ctx context.Context, l *listing) error {
	resp, err := s.client.Get(ctx, s.keyLog(), clientv3.WithRev(l.at))
	if err != nil {
		return err
	}
	if len(resp.Kvs) == 0 {
		return foreignError("the group's log is gone: something else deletes below the prefix")
	}
	n, err := decodeEntry(resp.Kvs[0].Value)
	if err != nil {
		return err
	}
	if !bytes.Equal(n.head, l.pos.raw) {
		return errGap
	}
	l.pos.bulk = bulkOps(n.records)
	st := l.pos.state
	st.Rev.Index-- // it is this transaction's
	var rest []group.Op
	for _, op := range l.pos.bulk {
		if kv, ok := st.Get(op.Key); ok && !op.Delete && !op.DeletePrefix && kv.ModIndex == l.pos.head.rev.Index {
			continue
		}
		rest = append(rest, op)
	}
	l.pos.state.Tree, _ = st.Change(rest, l.pos.head.at)
	return nil
}

// pages lists a prefix at one revision of etcd, in key order.
func (s *Store) pages(ctx context.Context, prefix string, rev int64, each func(key string, value []byte) error) error {
	end := clientv3.GetPrefixRangeEnd(prefix)
	from, page := prefix, int64(1024)
	for {
		actx, cancel := context.WithTimeout(ctx, time.Minute)
		resp, err := s.client.Get(actx, from, clientv3.WithRange(end), clientv3.WithRev(rev), clientv3.WithLimit(page), clientv3.WithSort(clientv3.SortByKey, clientv3.SortAscend))
		cancel()
		if err != nil {
			return err
		}
		size := 0
		for _, kv := range resp.Kvs {
			size += len(kv.Value)
			if err := each(strings.TrimPrefix(string(kv.Key), prefix), kv.Value); err != nil {
				return err
			}
		}
		if !resp.More || len(resp.Kvs) == 0 {
			return nil
		}
		from = string(resp.Kvs[len(resp.Kvs)-1].Key) + "\x00"
		if size > pageBytes {
			page = max(pageMin, page/2)
		} else {
			page = min(pageMax, page*2)
		}
	}
}

// look finds what no watch would tell: a watch that went deaf, an etcd that was set back.
func (s *Store) look(ctx context.Context) {
	for pause(ctx, s.cfg.LookEvery) {
		s.past.look(ctx, s)
		_ = s.client.RequestProgress(clientv3.WithRequireLeader(ctx)) // so that a quiet group's watch does not fall behind a compaction
		_, mod, err := s.readHead(ctx)
		if err != nil {
			return
		}
		wctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		if _, err := s.reach(wctx, mod); err != nil && ctx.Err() == nil {
			s.kickFollower()
		}
		cancel()
		s.remember()
	}
}

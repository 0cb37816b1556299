package etcdgroup

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/group/replica"
	"bailiwick/shared/fault"
)

// leader is what this node knows of the leader's key: whoever made it leads for as long as its lease lives. Its revision
// of making is the fencing token.
type leader struct {
	changed chan struct{} // buffered

	mu      sync.Mutex // covers all below
	name    string
	made    int64 // etcd's revision that made the key, 0 if there is none
	at      int64 // etcd's revision of this news
	elected int64 // made, if this node made it and its lease lives
}

func (l *leader) is(name string, made, at int64) {
	l.mu.Lock()
	if at > l.at {
		l.name, l.made, l.at = name, made, at
	}
	l.mu.Unlock()
	select {
	case l.changed <- struct{}{}:
	default:
	}
}

// latest is etcd's revision of the newest news.
func (l *leader) latest() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.at
}

// forget makes news of an etcd that counts again from before at news again.
func (l *leader) forget(at int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.at = min(l.at, at-1)
}

func (l *leader) elect(made int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.elected = made
}

func (l *leader) now() (name string, made, elected int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.name, l.made, l.elected
}

// Leader is part of group.Store.
func (s *Store) Leader() (name string, self bool) {
	select {
	case <-s.halted:
		return "", false
	default:
	}
	name, made, elected := s.leader.now()
	return name, elected != 0 && elected == made
}

// VerifyLeader is part of group.Store: it asks etcd, after the call began, for the key that this node made.
func (s *Store) VerifyLeader(ctx context.Context) error {
	select {
	case <-s.halted:
		return replica.ErrStopped
	default:
	}
	not := fault.New(fault.Unavailable, group.ReasonNotLeader, "this node does not lead group %s", s.cfg.Name)
	_, _, mine := s.leader.now()
	if mine == 0 {
		return not
	}
	made, err := s.readLeader(ctx)
	if err != nil {
		return s.noLeader("verify leadership in", err)
	}
	if _, _, still := s.leader.now(); made != mine || still != mine {
		return not
	}
	return nil
}

func (s *Store) readLeader(ctx context.Context) (made int64, err error) {
	err = s.again(ctx, readLimit, func(ctx context.Context) error {
		before := s.leader.latest()
		resp, err := s.client.Get(ctx, s.keyLeader())
		if err != nil {
			return err
		}
		if now := resp.Header.Revision; now < before { // etcd was set back, and who led then leads no more
			s.leader.forget(now)
		}
		s.past.saw(resp.Header)
		name := ""
		if made = 0; len(resp.Kvs) > 0 {
			name, made = string(resp.Kvs[0].Value), resp.Kvs[0].CreateRevision
		}
		s.leader.is(name, made, resp.Header.Revision)
		return nil
	})
	return made, err
}

// campaign seeks leadership whenever nobody has it.
func (s *Store) campaign(ctx context.Context) {
	for ctx.Err() == nil {
		p, moved := s.here()
		if p == nil {
			select {
			case <-moved:
			case <-ctx.Done():
			}
			continue
		}
		if name, _, _ := s.leader.now(); name == "" {
			if err := s.reign(ctx); err != nil {
				s.trouble.Store(&err)
				pause(ctx, pauseMax)
			}
			continue
		}
		poll := time.NewTimer(s.cfg.LeaseTTL) // no news is not trusted for ever
		select {
		case <-s.leader.changed:
		case <-poll.C:
			_, _ = s.readLeader(ctx)
		case <-ctx.Done():
		}
		poll.Stop()
	}
}

// reign tries to become leader and, if it does, leads until the lease is lost.
func (s *Store) reign(ctx context.Context) error {
	sent := time.Now()
	actx, cancel := limited(ctx, writeLimit)
	defer cancel()
	lease, err := s.client.Grant(actx, int64((s.cfg.LeaseTTL+time.Second-1)/time.Second))
	if err != nil {
		return err
	}
	defer s.revoke(ctx, lease.ID)
	resp, err := s.client.Txn(actx).If(clientv3.Compare(clientv3.CreateRevision(s.keyLeader()), "=", 0)).
		Then(clientv3.OpPut(s.keyLeader(), s.cfg.Node, clientv3.WithLease(lease.ID))).
		Else(clientv3.OpGet(s.keyLeader())).Commit()
	if err != nil {
		return err
	}
	if !resp.Succeeded {
		if kvs := resp.Responses[0].GetResponseRange().Kvs; len(kvs) > 0 {
			s.leader.is(string(kvs[0].Value), kvs[0].CreateRevision, resp.Header.Revision)
		}
		return nil
	}
	made := resp.Header.Revision
	s.leader.is(s.cfg.Node, made, made)
	s.leader.elect(made)
	s.turn.Moved()
	turn, end := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { s.takeTurn(turn) })
	s.keep(turn, end, lease.ID, time.Duration(lease.TTL)*time.Second, sent, made)
	end()
	s.leader.elect(0)
	s.turn.End()
	wg.Wait()
	s.cfg.Logger.Info("leadership lost")
	return nil
}

// takeTurn opens a turn once all that was committed before is here.
func (s *Store) takeTurn(ctx context.Context) {
	if _, err := s.Sync(ctx); err == nil {
		s.turn.Begin(ctx)
		s.cfg.Logger.Info("leadership gained")
	}
}

// keep renews the lease until it is lost. The turn ends, by this node's clock, when a fifth of the lease is still left
// by etcd's, which counts from the renewal's arrival there.
func (s *Store) keep(turn context.Context, end func(), id clientv3.LeaseID, ttl time.Duration, sent time.Time, made int64) {
	limit := ttl * 4 / 5
	guard := time.AfterFunc(time.Until(sent.Add(limit)), end)
	defer guard.Stop()
	wait := ttl / 3
	for {
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-s.leader.changed:
			if _, now, _ := s.leader.now(); now != made {
				timer.Stop()
				return
			}
		case <-turn.Done():
			timer.Stop()
			return
		}
		timer.Stop()
		sent := time.Now()
		actx, cancel := limited(turn, max(ttl/4, 500*time.Millisecond))
		_, err := s.client.KeepAliveOnce(actx, id)
		cancel()
		switch {
		case err == nil:
			if !guard.Stop() {
				return // too late: the turn is over
			}
			guard.Reset(time.Until(sent.Add(limit)))
			wait = ttl / 3
		case errors.Is(err, rpctypes.ErrLeaseNotFound):
			return
		default:
			err = fmt.Errorf("renew leadership: %w", err)
			s.trouble.Store(&err)
			wait = 50 * time.Millisecond
		}
	}
}

// revoke spares the others the wait for a lease of a node that stops, or that did not win.
func (s *Store) revoke(ctx context.Context, id clientv3.LeaseID) {
	actx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	_, _ = s.client.Revoke(actx, id) // else it expires
}

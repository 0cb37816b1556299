package etcdgroup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	clientv3 "go.etcd.io/etcd/client/v3"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/group/replica"
)

// Store is group.Store below a prefix of etcd.
type Store struct {
	cfg    Config
	client *clientv3.Client // of Run
	turn   *replica.Turn
	hist   *replica.History
	ids    replica.Requests
	cur    atomic.Pointer[replica.State]
	queue  queue
	reads  reads
	leader leader
	past   past
	pace   pace

	trouble atomic.Pointer[error] // the latest error of etcd

	// mu covers what follows; it is never held across I/O.
	mu       sync.Mutex
	pos      *position       // nil until loaded
	moved    chan struct{}   // closed and replaced whenever pos changes
	own      map[string]bool // this node's attempts under way, by nonce: true once they were followed
	catching *catching       // non-nil while pos is still of the past: nobody is shown it
	distrust string          // why etcd may have been set back; pos is not to be served until that is settled

	kick     chan struct{} // the follower is to look again; buffered
	failOnce sync.Once
	failErr  error // set before halted closes
	haltOnce sync.Once
	halted   chan struct{}
	running  atomic.Bool
}

var _ group.Store = (*Store)(nil)

// Open does no I/O. Run makes the Store work; until then reads and writes wait.
func Open(cfg Config) (*Store, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	s := &Store{cfg: cfg, turn: replica.NewTurn(), hist: replica.NewHistory(cfg.Name, cfg.WatchWindow),
		moved: make(chan struct{}), own: map[string]bool{},
		kick: make(chan struct{}, 1), halted: make(chan struct{})}
	s.queue.init()
	s.reads.signal = make(chan struct{}, 1)
	s.leader.changed = make(chan struct{}, 1)
	empty := replica.Empty()
	s.cur.Store(&empty)
	return s, nil
}

// Run follows the group until ctx ends (nil) or the node cannot go on. It hands leadership back before it returns.
func (s *Store) Run(ctx context.Context) error {
	if !s.running.CompareAndSwap(false, true) {
		return fmt.Errorf("run group %s: it runs already", s.cfg.Name)
	}
	defer s.halt()
	work, stop := context.WithCancel(ctx)
	defer stop()
	defer context.AfterFunc(work, s.halt)()
	if s.connect(work) == nil {
		defer s.client.Close()
		var wg sync.WaitGroup
		parts := []func(context.Context){s.follow, s.look, s.commitAll, s.read}
		if !s.cfg.Observer {
			parts = append(parts, s.campaign)
		}
		for _, part := range parts {
			wg.Go(func() { part(work) })
		}
		select {
		case <-s.halted:
		case <-ctx.Done():
		}
		stop()
		wg.Wait()
	}
	s.remember()
	return s.failErr
}

// Close is for a Store that is never Run.
func (s *Store) Close() error { s.halt(); return nil }

func (s *Store) halt() {
	s.haltOnce.Do(func() {
		s.turn.End()
		close(s.halted)
	})
}

// fail ends the node for good.
func (s *Store) fail(err error) {
	s.failOnce.Do(func() {
		s.mu.Lock()
		s.failErr = fmt.Errorf("group %s on %s: %w", s.cfg.Name, s.cfg.Node, err)
		s.mu.Unlock()
		s.halt()
		if s.cfg.OnFatal != nil {
			s.cfg.OnFatal(s.failErr)
		}
	})
}

// Err is why the node failed, nil while it has not.
func (s *Store) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failErr
}

// Keys below the prefix.
func (s *Store) keyHead() string            { return s.cfg.Prefix + "head" }
func (s *Store) keyLog() string             { return s.cfg.Prefix + "now/log" } // watched together with the leader
func (s *Store) keyLeader() string          { return s.cfg.Prefix + "now/leader" }
func (s *Store) keyOf(key string) string    { return s.cfg.Prefix + "k/" + key }
func (s *Store) keyRequests() string        { return s.cfg.Prefix + "r/" }
func (s *Store) requestsAt(n uint64) string { return fmt.Sprintf("%s%016x", s.keyRequests(), n) }

// catching is what watches are told once a node that began in the past has come to the present.
type catching struct {
	until int64 // etcd's revision of the head to come to
	from  group.Revision
	steps []step
}

// here is the position this node serves, nil while it has none, and the channel that tells of the next.
func (s *Store) here() (*position, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.distrust != "" || s.catching != nil {
		return nil, s.moved
	}
	return s.pos, s.moved
}

// followed is the position that this node has come to, whether it is served or not.
func (s *Store) followed() *position {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.distrust != "" {
		return nil
	}
	return s.pos
}

func (s *Store) tell() {
	close(s.moved)
	s.moved = make(chan struct{})
}

// install makes next the position if this node stands at prev; if it went on meanwhile it says so.
func (s *Store) install(prev, next *position, steps []step, results []replica.Remembered, reset bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pos != prev {
		return false
	}
	s.pos = next
	for _, r := range results {
		s.ids.Remember(r.ID, r.Result)
	}
	if _, ok := s.own[next.head.nonce]; ok {
		s.own[next.head.nonce] = true
	}
	before := next.state.Rev
	before.Index -= uint64(len(steps))
	if c := s.catching; c != nil {
		if reset {
			c.from, c.steps = before, nil
		}
		if c.steps = append(c.steps, steps...); next.mod < c.until {
			return true
		}
		s.catching, reset, before, steps = nil, true, c.from, c.steps
	}
	s.cur.Store(&next.state) // before the events: whoever saw one finds the state
	if reset {               // watches end, and those that begin anew are told with what the epoch began
		s.hist.Reset(before)
	}
	for _, x := range steps {
		s.hist.Add(x.rev, x.events)
	}
	s.tell()
	return true
}

// observe compares what a linearizable read of the head found with the position from before the read began. etcd never
// goes back by itself.
func (s *Store) observe(before *position, kv []byte, mod int64, cluster uint64) {
	if before == nil {
		return
	}
	why := ""
	switch {
	case mod < before.mod:
		why = "the group's head is older than it was"
	case mod == before.mod && !bytes.Equal(kv, before.raw):
		why = "the group's head is another of the same revision"
	case before.raw != nil && cluster != before.head.cluster:
		why = "it is another cluster"
	default:
		return
	}
	s.suspect(why)
}

func (s *Store) suspect(why string) {
	s.mu.Lock()
	if s.distrust == "" {
		s.distrust = why
	}
	s.mu.Unlock()
	s.kickFollower()
}

func (s *Store) kickFollower() {
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// Name is part of group.Store.
func (s *Store) Name() string { return s.cfg.Name }

// Local is part of group.Store.
func (s *Store) Local() group.Snapshot { return s.cur.Load() }

// Sync is part of group.Store.
func (s *Store) Sync(ctx context.Context) (group.Snapshot, error) {
	r := s.reads.join()
	select {
	case <-r.done:
	case <-s.halted:
		return nil, replica.ErrStopped
	case <-ctx.Done():
		return nil, s.noLeader("read", s.lastTrouble(ctx.Err()))
	}
	p, err := s.reach(ctx, r.mod)
	if err != nil {
		return nil, err
	}
	return &p.state, nil
}

// reach waits for the position of etcd's revision mod, or a later one.
func (s *Store) reach(ctx context.Context, mod int64) (*position, error) {
	for {
		p, moved := s.here()
		if p != nil && p.mod >= mod {
			return p, nil
		}
		select {
		case <-moved:
		case <-s.halted:
			return nil, replica.ErrStopped
		case <-ctx.Done():
			return nil, s.noLeader("read", s.lastTrouble(fmt.Errorf("wait for what etcd has committed: %w", ctx.Err())))
		}
	}
}

// Get is part of group.Store.
func (s *Store) Get(ctx context.Context, key string) (group.KV, bool, group.Revision, error) {
	snap, err := s.Sync(ctx)
	if err != nil {
		return group.KV{}, false, group.Revision{}, err
	}
	kv, ok := snap.Get(key)
	return kv, ok, snap.Revision(), nil
}

// List is part of group.Store.
func (s *Store) List(ctx context.Context, prefix string) ([]group.KV, group.Revision, error) {
	snap, err := s.Sync(ctx)
	if err != nil {
		return nil, group.Revision{}, err
	}
	var out []group.KV
	for kv := range snap.List(prefix) {
		out = append(out, kv)
	}
	return out, snap.Revision(), nil
}

// Watch is part of group.Store.
func (s *Store) Watch(from uint64, prefix string) (group.Watch, error) {
	return s.hist.Watch(from, prefix, s.halted)
}

// WaitFor is part of group.Store.
func (s *Store) WaitFor(ctx context.Context, index uint64) error {
	return s.hist.WaitFor(ctx, index, s.halted)
}

// RunLeader is part of group.Store.
func (s *Store) RunLeader(ctx context.Context, work func(ctx context.Context)) error {
	return s.turn.Serve(ctx, s.halted, s.Err, work)
}

// reads joins linearizable reads: one answer of etcd serves all that asked before its read began.
type reads struct {
	mu     sync.Mutex // covers next
	next   *round
	signal chan struct{} // buffered
}

type round struct {
	done chan struct{}
	mod  int64 // set before done closes
}

func (r *reads) join() *round {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.next == nil {
		r.next = &round{done: make(chan struct{})}
		select {
		case r.signal <- struct{}{}:
		default:
		}
	}
	return r.next
}

func (r *reads) take() *round {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.next
	r.next = nil
	return n
}

// read answers the rounds.
func (s *Store) read(ctx context.Context) {
	for {
		select {
		case <-s.reads.signal:
		case <-ctx.Done():
			return
		}
		r := s.reads.take()
		if r == nil {
			continue
		}
		_, mod, err := s.readHead(ctx)
		if err != nil {
			return // ctx ended
		}
		r.mod = mod
		close(r.done)
	}
}

// readHead is linearizable.
func (s *Store) readHead(ctx context.Context) (raw []byte, mod int64, err error) {
	before, _ := s.here()
	var cluster uint64
	err = s.again(ctx, readLimit, func(ctx context.Context) error {
		resp, err := s.client.Get(ctx, s.keyHead())
		if err != nil {
			return err
		}
		raw, mod = nil, 0
		if len(resp.Kvs) > 0 {
			raw, mod = resp.Kvs[0].Value, resp.Kvs[0].ModRevision
		}
		cluster = resp.Header.ClusterId
		s.past.saw(resp.Header)
		return nil
	})
	if err == nil {
		s.observe(before, raw, mod, cluster)
	}
	return raw, mod, err
}

// Txn is part of group.Store.
func (s *Store) Txn(ctx context.Context, t group.Txn) (group.Result, error) {
	if err := t.Validate(); err != nil {
		return group.Result{}, err
	}
	r, err := s.queue.add(ctx, s.halted, t, s.cur.Load().Rev.Epoch)
	if err != nil {
		if errors.Is(err, replica.ErrStopped) {
			return group.Result{}, err
		}
		return group.Result{}, s.noLeader("change", s.lastTrouble(fmt.Errorf("wait for a place among %d transactions under way: %w", maxQueued, err)))
	}
	defer s.queue.leave()
	select {
	case <-r.done:
		return r.result, r.err
	case <-ctx.Done():
		err = s.noLeader("change", s.lastTrouble(ctx.Err()))
	case <-s.halted:
		err = replica.ErrStopped
	}
	switch r.giveUp() {
	case answered:
		<-r.done
		return r.result, r.err
	case maybe:
		return group.Result{}, s.unknownOutcome(err)
	}
	return group.Result{}, err
}

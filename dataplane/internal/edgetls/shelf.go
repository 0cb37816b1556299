package edgetls

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	randv2 "math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3/acme"

	joinv1 "bailiwick/proto/gen/bailiwick/join/v1"
	"bailiwick/proto/gen/bailiwick/join/v1/joinv1connect"
	"bailiwick/shared/fault"
	shelfrule "bailiwick/shared/identity/shelf"
)

// shelf is certmagic's Storage on the zone's shelf.
type shelf struct {
	rpc    joinv1connect.CertStoreServiceClient
	box    box
	holder string // of locks: the edge and a number of this process
	limit  time.Duration
	log    *slog.Logger

	ctx    context.Context // ends with close
	cancel context.CancelFunc
	wg     sync.WaitGroup

	strangers chan struct{} // slots of waitings that strangers cause: see Load

	mu   sync.Mutex // covers held and closed
	held map[string]*held
	over bool
}

// held is a lock that a goroutine keeps alive.
type held struct {
	holder string
	fence  uint64
	cancel context.CancelFunc
	ended  chan struct{}

	alive context.Context // ends when another edge has the lock, or may have
	lose  context.CancelCauseFunc
	over  *time.Timer // ends it when nothing was heard for lockTTL
}

const (
	// lockTTL is how long the zone waits for an edge that died with a lock.
	lockTTL = 15 * time.Second
	// patience is how long a call in the middle of an order waits for the zone
	// store to have a leader again: given up, the order would be made anew.
	patience = lockTTL
	// answerPatience is the same of an authority's challenge, which some other
	// edge may have ordered: no longer than the authority waits.
	answerPatience = 10 * time.Second
	// maxStrangers may wait so at once: anybody can ask for a challenge.
	maxStrangers = 16
)

func newShelf(rpc joinv1connect.CertStoreServiceClient, b box, node string, limit time.Duration, log *slog.Logger) *shelf {
	ctx, cancel := context.WithCancel(context.Background())
	return &shelf{rpc: rpc, box: b, holder: node, limit: limit, log: log, ctx: ctx, cancel: cancel, strangers: make(chan struct{}, maxStrangers), held: map[string]*held{}}
}

var (
	_ certmagic.Storage          = (*shelf)(nil)
	_ certmagic.TryLocker        = (*shelf)(nil)
	_ certmagic.LockLeaseRenewer = (*shelf)(nil)
)

// call bounds one call: certmagic loads under a lock that handshakes need.
func (s *shelf) call(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, s.limit)
}

// insist makes a call, again while the zone has no leader and at most so long.
// Every call of the shelf may be repeated.
func insist[Resp any](ctx context.Context, s *shelf, long time.Duration, call func(context.Context) (Resp, error)) (Resp, error) {
	end := time.Now().Add(long)
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		once, cancel := s.call(ctx)
		resp, err := call(once)
		cancel()
		late := errors.Is(err, context.DeadlineExceeded) || fault.KindOf(err) == fault.Unavailable
		if err == nil || !late || ctx.Err() != nil || !time.Now().Add(wait).Before(end) {
			return resp, err
		}
		select {
		case <-ctx.Done():
			return resp, err
		case <-s.ctx.Done():
			return resp, err
		case <-time.After(wait/2 + randv2.N(wait)):
		}
	}
}

// lease is of the lock held that guards key, nil if none is.
func (s *shelf) lease(key string) *joinv1.Lease {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, h := range s.held {
		if shelfrule.Guards(name, key) {
			return h.lease(name)
		}
	}
	return nil
}

func (h *held) lease(name string) *joinv1.Lease {
	return &joinv1.Lease{Name: name, Holder: h.holder, Fence: h.fence}
}

func notExist(err error, key string) error {
	if err != nil && fault.KindOf(err) == fault.NotFound {
		return &fs.PathError{Op: "load", Path: key, Err: fs.ErrNotExist}
	}
	return err
}

// Store writes under the lock that guards key. Without one certmagic writes
// metadata alone: when to renew, as the authority says.
func (s *shelf) Store(ctx context.Context, key string, value []byte) error {
	lease, version := s.lease(key), uint64(0)
	if lease == nil && shelfrule.Metadata(key) {
		var err error
		if version, err = s.sameCertificate(ctx, key, value); err != nil {
			return err
		}
	}
	req := &joinv1.StoreRequest{Key: key, Value: s.box.seal(key, value), Lease: lease, IfVersion: version}
	_, err := insist(ctx, s, patience, func(ctx context.Context) (*joinv1.StoreResponse, error) { return s.rpc.Store(ctx, req) })
	return err
}

// sameCertificate tells the version of the metadata that value replaces, if both
// are of one certificate: another edge may have renewed it meanwhile, and the old
// one's times beside the new one would have everybody renew it again.
func (s *shelf) sameCertificate(ctx context.Context, key string, value []byte) (uint64, error) {
	once, cancel := s.call(ctx)
	defer cancel()
	now, version, err := s.load(once, key)
	if err != nil {
		return 0, err
	}
	if of := certificateURL(value); of == "" || of != certificateURL(now) {
		return 0, fmt.Errorf("bring %s up to date: the certificate was replaced meanwhile", key)
	}
	return version, nil
}

// certificateURL is where the authority keeps the certificate that metadata is of.
func certificateURL(metadata []byte) string {
	var res certmagic.CertificateResource
	var cert acme.Certificate
	if json.Unmarshal(metadata, &res) != nil || json.Unmarshal(res.IssuerData, &cert) != nil {
		return ""
	}
	return cert.URL
}

func (s *shelf) load(ctx context.Context, key string) ([]byte, uint64, error) {
	resp, err := s.rpc.Load(ctx, &joinv1.LoadRequest{Key: key})
	if err != nil {
		return nil, 0, notExist(err, key)
	}
	value, err := s.box.open(key, resp.GetValue())
	return value, resp.GetVersion(), err
}

// Load asks once, except in the middle of an order: this edge's or, for a
// challenge that it answers, another's.
func (s *shelf) Load(ctx context.Context, key string) ([]byte, error) {
	var long time.Duration
	switch {
	case s.lease(key) != nil:
		long = patience
	case strings.Contains(key, "/challenge_tokens/"):
		select {
		case s.strangers <- struct{}{}:
			defer func() { <-s.strangers }()
			long = answerPatience
		default:
		}
	}
	return insist(ctx, s, long, func(ctx context.Context) ([]byte, error) {
		value, _, err := s.load(ctx, key)
		return value, err
	})
}

func (s *shelf) Delete(ctx context.Context, key string) error {
	req := &joinv1.DeleteRequest{Key: key, Lease: s.lease(key)}
	_, err := insist(ctx, s, patience, func(ctx context.Context) (*joinv1.DeleteResponse, error) { return s.rpc.Delete(ctx, req) })
	return err
}

func (s *shelf) Exists(ctx context.Context, key string) bool {
	_, err := s.Stat(ctx, key)
	return err == nil
}

func (s *shelf) List(ctx context.Context, prefix string, recursive bool) ([]string, error) {
	ctx, cancel := s.call(ctx)
	defer cancel()
	resp, err := s.rpc.List(ctx, &joinv1.ListRequest{Prefix: prefix, Recursive: recursive})
	return resp.GetKeys(), notExist(err, prefix)
}

func (s *shelf) Stat(ctx context.Context, key string) (certmagic.KeyInfo, error) {
	ctx, cancel := s.call(ctx)
	defer cancel()
	resp, err := s.rpc.Stat(ctx, &joinv1.StatRequest{Key: key})
	if err != nil {
		return certmagic.KeyInfo{}, notExist(err, key)
	}
	return certmagic.KeyInfo{Key: key, Modified: time.UnixMilli(resp.GetModifiedUnixMs()), Size: resp.GetSize(), IsTerminal: resp.GetTerminal()}, nil
}

// TryLock takes a lock if nobody has it. From then on a goroutine keeps it until
// Unlock: certmagic holds locks for as long as an authority takes to answer.
func (s *shelf) TryLock(ctx context.Context, name string) (bool, error) {
	// A holder of its own for each taking: two goroutines of one process exclude
	// each other like two edges.
	b := make([]byte, 8)
	rand.Read(b)
	h := &held{holder: s.holder + "/" + hex.EncodeToString(b), ended: make(chan struct{})}
	// Nobody may have taken it when the answer is lost; the same holder asks again.
	asked := time.Now()
	resp, err := insist(ctx, s, s.limit, func(ctx context.Context) (*joinv1.LockResponse, error) { return s.take(ctx, name, h.holder) })
	if err != nil || !resp.GetHeld() {
		return false, err
	}
	h.fence = resp.GetFence()
	h.alive, h.lose = context.WithCancelCause(context.Background())
	h.over = time.AfterFunc(time.Until(asked.Add(lockTTL)), func() { h.lose(errors.New("the zone was not heard for longer than the lock lives")) })
	s.mu.Lock()
	if s.over {
		h.over.Stop()
		s.mu.Unlock()
		return false, context.Canceled // it ends by itself
	}
	var keep context.Context
	keep, h.cancel = context.WithCancel(s.ctx)
	s.held[name] = h
	s.wg.Go(func() { s.keep(keep, name, h) })
	s.mu.Unlock()
	return true, nil
}

func (s *shelf) take(ctx context.Context, name, holder string) (*joinv1.LockResponse, error) {
	return s.rpc.Lock(ctx, &joinv1.LockRequest{Name: name, TtlMs: lockTTL.Milliseconds(), Holder: holder})
}

// extend tells whether the lock is still this taking's, and lengthens it.
func (s *shelf) extend(ctx context.Context, name string, h *held) (bool, error) {
	ctx, cancel := s.call(ctx)
	defer cancel()
	resp, err := s.take(ctx, name, h.holder)
	if err != nil {
		return false, err
	}
	// Between may lie another edge's whole order: then this is a new taking, which
	// what was begun under the old one must not use.
	return resp.GetHeld() && resp.GetFence() == h.fence, nil
}

func (s *shelf) keep(ctx context.Context, name string, h *held) {
	defer close(h.ended)
	t := time.NewTicker(lockTTL / 4)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-h.alive.Done():
			s.log.Warn("certificate lock was lost", "lock", name, "error", context.Cause(h.alive))
			return
		case <-t.C:
		}
		asked := time.Now()
		ok, err := s.extend(ctx, name, h)
		switch {
		case err == nil && !ok:
			h.lose(errors.New("another edge has taken it"))
		case err == nil && h.over.Stop(): // it had not fired
			h.over.Reset(time.Until(asked.Add(lockTTL)))
		}
	}
}

// whileHeld ends with the lock of the host's issue: who has lost it, or has
// slept for so long that he must have, asks the authority for nothing more.
func (s *shelf) whileHeld(ctx context.Context, hosts []string) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	var h *held
	s.mu.Lock()
	for _, host := range hosts {
		h = s.held[shelfrule.IssueLock(host)]
	}
	s.mu.Unlock()
	if h == nil {
		cancel(fmt.Errorf("order a certificate of %v: its lock is not held", hosts))
		return ctx, func() {}
	}
	stop := context.AfterFunc(h.alive, func() { cancel(context.Cause(h.alive)) })
	return ctx, func() { stop(); cancel(nil) }
}

// Lock waits until it has the lock. A shelf that is away is an error at once:
// waiting for it is for the caller to decide.
func (s *shelf) Lock(ctx context.Context, name string) error {
	for {
		ok, err := s.TryLock(ctx, name)
		if err != nil {
			return err
		}
		if ok {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.ctx.Done():
			return s.ctx.Err()
		case <-time.After(250 * time.Millisecond):
		}
	}
}

// RenewLockLease tells whether the lock is still held, and lengthens it.
func (s *shelf) RenewLockLease(ctx context.Context, name string, lease time.Duration) error {
	s.mu.Lock()
	h := s.held[name]
	s.mu.Unlock()
	if h == nil {
		return fmt.Errorf("renew lock %s: it is not held", name)
	}
	ok, err := s.extend(ctx, name, h)
	if err == nil && !ok {
		err = fmt.Errorf("renew lock %s: another edge has it", name)
	}
	return err
}

func (s *shelf) Unlock(ctx context.Context, name string) error {
	s.mu.Lock()
	h := s.held[name]
	delete(s.held, name)
	s.mu.Unlock()
	if h == nil {
		return nil
	}
	h.over.Stop()
	h.cancel()
	<-h.ended // else a late extension would take the lock again
	// The work is over even if its context is: the next edge should not wait.
	_, err := insist(context.WithoutCancel(ctx), s, patience, func(ctx context.Context) (*joinv1.UnlockResponse, error) {
		return s.rpc.Unlock(ctx, &joinv1.UnlockRequest{Name: name, Holder: h.holder})
	})
	return err
}

// order asks for leave to order a certificate of a host whose lock is held; wait
// is how long it is not given.
func (s *shelf) order(ctx context.Context, host string, tries int, renewal bool) (wait time.Duration, err error) {
	req := &joinv1.OrderRequest{Host: host, Lease: s.lockOf(host), Tries: uint32(tries), Renewal: renewal}
	resp, err := insist(ctx, s, patience, func(ctx context.Context) (*joinv1.OrderResponse, error) { return s.rpc.Order(ctx, req) })
	if err != nil || resp.GetGranted() {
		return 0, err
	}
	return max(time.Duration(resp.GetRetryAfterMs())*time.Millisecond, time.Second), nil
}

// ordered tells what became of an order, and learns when the next may be made.
func (s *shelf) ordered(ctx context.Context, host string, outcome joinv1.OrderOutcome) (wait time.Duration, err error) {
	req := &joinv1.OrderedRequest{Host: host, Lease: s.lockOf(host), Outcome: outcome}
	resp, err := insist(context.WithoutCancel(ctx), s, patience, func(ctx context.Context) (*joinv1.OrderedResponse, error) { return s.rpc.Ordered(ctx, req) })
	return time.Duration(resp.GetRetryAfterMs()) * time.Millisecond, err
}

func (s *shelf) lockOf(host string) *joinv1.Lease {
	s.mu.Lock()
	defer s.mu.Unlock()
	if h := s.held[shelfrule.IssueLock(host)]; h != nil {
		return h.lease(shelfrule.IssueLock(host))
	}
	return nil
}

// close stops keeping locks; those held end by themselves.
func (s *shelf) close() {
	s.mu.Lock()
	s.over = true
	s.mu.Unlock()
	s.cancel()
	s.wg.Wait()
}

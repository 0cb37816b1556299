package edgetls

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"

	joinv1 "bailiwick/proto/gen/bailiwick/join/v1"
	"bailiwick/proto/gen/bailiwick/join/v1/joinv1connect"
	"bailiwick/shared/durable"
	"bailiwick/shared/fault"
)

// box seals values under the zone's key, bound to the name they are kept under:
// a control node or a thief of a disk can neither read nor exchange them. All
// values are sealed, not only keys: nothing has to know which are secret.
type box struct{ aead cipher.AEAD }

var boxMark = []byte("bws1")

func newBox(key []byte) (box, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return box{}, fmt.Errorf("make the seal: %w", err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	return box{aead}, err
}

func (b box) seal(name string, value []byte) []byte {
	return b.aead.Seal(bytes.Clone(boxMark), nil, value, []byte(name))
}

func (b box) open(name string, sealed []byte) ([]byte, error) {
	text, ok := bytes.CutPrefix(sealed, boxMark)
	if !ok {
		return nil, fmt.Errorf("open %s: not a sealed value", name)
	}
	value, err := b.aead.Open(nil, nil, text, []byte(name))
	if err != nil {
		return nil, fmt.Errorf("open %s: not sealed under this zone's key and name", name)
	}
	return value, nil
}

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

	mu   sync.Mutex // covers held and closed
	held map[string]*held
	over bool
}

// held is a lock that a goroutine keeps alive.
type held struct {
	holder string
	cancel context.CancelFunc
	ended  chan struct{}
}

// lockTTL is how long the zone waits for an edge that died with a lock.
const lockTTL = 15 * time.Second

func newShelf(rpc joinv1connect.CertStoreServiceClient, b box, node string, limit time.Duration, log *slog.Logger) *shelf {
	ctx, cancel := context.WithCancel(context.Background())
	return &shelf{rpc: rpc, box: b, holder: node, limit: limit, log: log, ctx: ctx, cancel: cancel, held: map[string]*held{}}
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

func notExist(err error, key string) error {
	if err != nil && fault.KindOf(err) == fault.NotFound {
		return &fs.PathError{Op: "load", Path: key, Err: fs.ErrNotExist}
	}
	return err
}

func (s *shelf) Store(ctx context.Context, key string, value []byte) error {
	ctx, cancel := s.call(ctx)
	defer cancel()
	_, err := s.rpc.Store(ctx, &joinv1.StoreRequest{Key: key, Value: s.box.seal(key, value)})
	return err
}

func (s *shelf) Load(ctx context.Context, key string) ([]byte, error) {
	ctx, cancel := s.call(ctx)
	defer cancel()
	resp, err := s.rpc.Load(ctx, &joinv1.LoadRequest{Key: key})
	if err != nil {
		return nil, notExist(err, key)
	}
	return s.box.open(key, resp.GetValue())
}

func (s *shelf) Delete(ctx context.Context, key string) error {
	ctx, cancel := s.call(ctx)
	defer cancel()
	_, err := s.rpc.Delete(ctx, &joinv1.DeleteRequest{Key: key})
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
	ok, err := s.extend(ctx, name, h.holder, lockTTL)
	if err != nil || !ok {
		return false, err
	}
	s.mu.Lock()
	if s.over {
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

func (s *shelf) extend(ctx context.Context, name, holder string, ttl time.Duration) (bool, error) {
	ctx, cancel := s.call(ctx)
	defer cancel()
	resp, err := s.rpc.Lock(ctx, &joinv1.LockRequest{Name: name, TtlMs: ttl.Milliseconds(), Holder: holder})
	return resp.GetHeld(), err
}

func (s *shelf) keep(ctx context.Context, name string, h *held) {
	defer close(h.ended)
	t := time.NewTicker(lockTTL / 4)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			if ok, err := s.extend(ctx, name, h.holder, lockTTL); err == nil && !ok {
				s.log.Warn("certificate lock was lost", "lock", name)
				return
			}
		}
	}
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
	ok, err := s.extend(ctx, name, h.holder, lockTTL)
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
	h.cancel()
	<-h.ended // else a late extension would take the lock again
	// The work is over even if its context is: the next edge should not wait.
	ctx, cancel := s.call(context.WithoutCancel(ctx))
	defer cancel()
	_, err := s.rpc.Unlock(ctx, &joinv1.UnlockRequest{Name: name, Holder: h.holder})
	return err
}

// close stops keeping locks; those held end by themselves.
func (s *shelf) close() {
	s.mu.Lock()
	s.over = true
	s.mu.Unlock()
	s.cancel()
	s.wg.Wait()
}

// local is this edge's disk, sealed like the shelf. certmagic reads it first
// and keeps it up to date; it takes no locks here.
type local struct {
	fs  durable.FS
	dir string
	box box
	mu  sync.Mutex // one change at a time: writers of one file would share its temporary name
}

var (
	_           certmagic.Storage = (*local)(nil)
	localHeader                   = durable.Header{Magic: "bwcert", Version: 1, Program: "bailiwick-edge"}
)

func (l *local) path(key string) (string, error) {
	if !filepath.IsLocal(key) || strings.ContainsRune(key, '\\') {
		return "", fmt.Errorf("certificate file %q: not a relative path", key)
	}
	return filepath.Join(l.dir, filepath.FromSlash(key)), nil
}

func (l *local) Store(_ context.Context, key string, value []byte) error {
	p, err := l.path(key)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.fs.MkdirAll(filepath.Dir(p), durable.DirPerm); err != nil {
		return fmt.Errorf("make %s: %w", filepath.Dir(p), err)
	}
	return durable.WriteSealed(l.fs, p, localHeader, l.box.seal(key, value))
}

func (l *local) Load(_ context.Context, key string) ([]byte, error) {
	p, err := l.path(key)
	if err != nil {
		return nil, err
	}
	sealed, _, err := durable.ReadSealed(l.fs, p, localHeader, 1<<20)
	if err != nil {
		return nil, err
	}
	return l.box.open(key, sealed)
}

func (l *local) Delete(_ context.Context, key string) error {
	p, err := l.path(key)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.remove(p)
}

// remove deletes a file or a directory with all it holds.
func (l *local) remove(p string) error {
	info, err := l.fs.Stat(p)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.IsDir() {
		entries, err := l.fs.ReadDir(p)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if err := l.remove(filepath.Join(p, e.Name())); err != nil {
				return err
			}
		}
	}
	return l.fs.Remove(p)
}

func (l *local) Stat(_ context.Context, key string) (certmagic.KeyInfo, error) {
	p, err := l.path(key)
	if err != nil {
		return certmagic.KeyInfo{}, err
	}
	info, err := l.fs.Stat(p)
	if err != nil {
		return certmagic.KeyInfo{}, err
	}
	return certmagic.KeyInfo{Key: key, Modified: info.ModTime(), Size: info.Size(), IsTerminal: !info.IsDir()}, nil
}

func (l *local) Exists(ctx context.Context, key string) bool {
	_, err := l.Stat(ctx, key)
	return err == nil
}

// Listing and locking are never asked of a local cache: they are how edges
// coordinate, which a disk of one edge cannot answer.
func (l *local) List(context.Context, string, bool) ([]string, error) {
	return nil, errors.ErrUnsupported
}
func (l *local) Lock(context.Context, string) error   { return errors.ErrUnsupported }
func (l *local) Unlock(context.Context, string) error { return errors.ErrUnsupported }

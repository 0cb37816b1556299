package relay_test

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"bailiwick/dataplane/internal/policy"
	"bailiwick/dataplane/internal/relay"
	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"
	"bailiwick/shared/fault"
)

// memory is a network of one listener, without a kernel: what waits in it waits in virtual time.
type memory struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func (m *memory) Accept() (net.Conn, error) {
	select {
	case c := <-m.conns:
		return c, nil
	case <-m.done:
		return nil, net.ErrClosed
	}
}
func (m *memory) Close() error   { m.once.Do(func() { close(m.done) }); return nil }
func (m *memory) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 443} }

func (m *memory) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	near, far := net.Pipe()
	select {
	case m.conns <- far:
		return near, nil
	case <-m.done:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// bubble is a subtest in virtual time.
func bubble(t *testing.T, name string, test func(t *testing.T)) {
	t.Helper()
	t.Run(name, func(t *testing.T) { synctest.Test(t, test) })
}

// newVirtualBorder is a border over such a network, for a synctest bubble.
func newVirtualBorder(t *testing.T) *border {
	t.Helper()
	return newVirtualBorderWith(t, nil, nil)
}

// newVirtualBorderWith is to newVirtualBorder what newBorderWith is to newBorder.
func newVirtualBorderWith(t *testing.T, truth, truthThere *policy.Holder) *border {
	t.Helper()
	network := &memory{conns: make(chan net.Conn), done: make(chan struct{})}
	b := newBorderOver(t, truth, truthThere, network, network.dial)
	if truth == nil && truthThere == nil {
		b.trueTo(t)
	}
	return b
}

// The whole border of a relay in virtual time: the client with its grants and sentinel, mutual TLS, HTTP/2, the server.
// The control plane falls silent; what was granted goes on for its offline lifetime, to the second, over a session that
// stays; then a relay under way is cut within the sweep, and no other leaves.
func TestRelay_OfflineLifetimeInVirtualTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const offline = time.Hour
		b := newVirtualBorder(t)
		b.mu.Lock()
		b.mint = func() []*syncv1.SignedGrant {
			g := b.grant()
			g.OfflineTtlMs = offline.Milliseconds()
			return []*syncv1.SignedGrant{sign(t, emeaKey, g)}
		}
		b.mu.Unlock()
		time.Sleep(time.Minute) // some questions later
		one := func() error {
			resp, err := b.do(t.Context(), strings.NewReader("x"))
			if err != nil {
				return err
			}
			io.Copy(io.Discard, resp.Body)
			return resp.Body.Close()
		}
		if err := one(); err != nil {
			t.Fatalf("while the control plane answers: %v", err)
		}
		b.mu.Lock()
		b.deny = fault.New(fault.Unavailable, "NO_LEADER", "nobody answers")
		b.mu.Unlock()
		b.sentinel.Silent()
		silent := time.Now()
		time.Sleep(30 * time.Minute)
		if err := one(); err != nil {
			t.Fatalf("after half an hour of silence: %v", err)
		}
		b.local.mu.Lock()
		b.local.wait = make(chan struct{})
		b.local.mu.Unlock()
		resp, err := b.do(t.Context(), nil) // a long one
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		_, err = io.ReadAll(resp.Body)
		cut := time.Since(silent)
		// The last question that was answered came within a third of a grant's 30 s before the silence.
		if err == nil || cut < offline-10*time.Second || cut > offline+200*time.Millisecond {
			t.Errorf("the relay under way ended after %v of silence with %v, want it cut when the hour that was granted is over", cut, err)
		}
		if err := one(); rule(err) != relay.RuleNoGrant {
			t.Errorf("after the offline lifetime: %v, want %s", err, relay.RuleNoGrant)
		}
		<-b.local.cut
	})
}

// late is a connection over which what the peer says comes late.
type late struct {
	net.Conn
	by *atomic.Int64
}

func (l late) Read(p []byte) (int, error) {
	n, err := l.Conn.Read(p)
	time.Sleep(time.Duration(l.by.Load()))
	return n, err
}

// A peer that is busy for some hundred milliseconds is no peer that is gone: a POST waits for its sign of life. One that says
// nothing for longer is unreachable, and the POST has not left.
func TestRelay_APeerIsGivenTimeForItsSignOfLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var by atomic.Int64
		network := &memory{conns: make(chan net.Conn), done: make(chan struct{})}
		b := newBorderOver(t, nil, nil, network, func(ctx context.Context, n, addr string) (net.Conn, error) {
			c, err := network.dial(ctx, n, addr)
			if err != nil {
				return nil, err
			}
			return late{c, &by}, nil
		})
		time.Sleep(time.Second)
		post := func() error {
			resp, err := b.do(t.Context(), strings.NewReader("x"))
			if err != nil {
				return err
			}
			io.Copy(io.Discard, resp.Body)
			return resp.Body.Close()
		}
		if err := post(); err != nil {
			t.Fatalf("a peer that is quick: %v", err)
		}
		time.Sleep(time.Second)
		by.Store(int64(200 * time.Millisecond))
		if err := post(); err != nil {
			t.Errorf("a peer that is late by 200 ms: %v", err)
		}
		time.Sleep(time.Second)
		by.Store(int64(700 * time.Millisecond))
		began, before := time.Now(), b.local.count()
		err := post()
		e, ok := errors.AsType[*relay.Error](err)
		if took := time.Since(began); !ok || !e.Unreachable || e.Sent || took > 600*time.Millisecond || b.local.count() != before {
			t.Errorf("a peer that says nothing for 700 ms: %v after %v, %d reached it; want it unreachable and nothing sent", err, took, b.local.count()-before)
		}
		by.Store(0)
		time.Sleep(time.Second)
	})
}

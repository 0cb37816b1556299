package relay_test

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"bailiwick/dataplane/internal/relay"
)

// begin has a relay under way whose upstream works for so long, and says what it came to and when.
func (b *border) begin(t *testing.T, works time.Duration) func() (took time.Duration, err error) {
	t.Helper()
	b.local.mu.Lock()
	b.local.late = works
	b.local.mu.Unlock()
	type end struct {
		took time.Duration
		err  error
	}
	ended, began, before := make(chan end, 1), time.Now(), b.local.count()
	go func() {
		resp, err := b.do(t.Context(), nil)
		if err == nil {
			_, err = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
		ended <- end{time.Since(began), err}
	}()
	eventually(t, time.Second, "the relay is under way", func() bool { return b.local.count() > before })
	b.local.mu.Lock()
	b.local.late = 0
	b.local.mu.Unlock()
	return func() (time.Duration, error) {
		e := <-ended
		return e.took, e.err
	}
}

// An edge that stops answers the relays that it has taken for as long as it does clients' requests, and takes no other: who asks
// hears that no upstream got it, and dials another edge, or this one's successor.
func TestServer_DrainsWhatItHasTaken(t *testing.T) {
	const grace = 10 * time.Second
	drain := func(t *testing.T, b *border) func() time.Duration {
		ctx, cancel := context.WithTimeout(context.Background(), grace)
		took, began := make(chan time.Duration, 1), time.Now()
		go func() {
			defer cancel()
			b.server.Drain(ctx)
			took <- time.Since(began)
		}()
		synctest.Wait()
		return func() time.Duration { return <-took }
	}
	leaves := func(t *testing.T, b *border) {
		t.Helper()
		before := b.local.count()
		_, err := b.do(t.Context(), nil)
		e, ok := errors.AsType[*relay.Error](err)
		if !ok || e.Sent || e.Down || b.local.count() != before {
			t.Errorf("a relay that comes meanwhile: %v, %d reached the upstream; want it unsent, and no word on its API", err, b.local.count()-before)
		}
	}
	bubble(t, "one that ends in time is answered", func(t *testing.T) {
		b := newVirtualBorder(t)
		over := b.begin(t, 5*time.Second)
		ended := drain(t, b)
		time.Sleep(100 * time.Millisecond)
		leaves(t, b)
		if took, err := over(); err != nil || took != 5*time.Second {
			t.Errorf("the relay under way: %v after %s, want its answer after 5s", err, took)
		}
		if took := ended(); took < 4900*time.Millisecond || took > 5200*time.Millisecond {
			t.Errorf("drained after %s, want as soon as the relay has its answer", took)
		}
	})
	bubble(t, "one that does not is cut, and nobody waits for longer", func(t *testing.T) {
		b := newVirtualBorder(t)
		over := b.begin(t, time.Minute)
		ended := drain(t, b)
		took, err := over()
		if e, ok := errors.AsType[*relay.Error](err); !ok || !e.Sent || took < grace || took > grace+200*time.Millisecond {
			t.Errorf("the relay under way: %v after %s, want it cut after %s", err, took, grace)
		}
		if took := ended(); took < grace || took > grace+200*time.Millisecond {
			t.Errorf("drained after %s, want %s", took, grace)
		}
		select {
		case <-b.local.cut:
		case <-time.After(time.Second):
			t.Error("nobody tells the upstream")
		}
	})
	bubble(t, "nobody has to wait where there is none", func(t *testing.T) {
		b := newVirtualBorder(t)
		if _, err := b.begin(t, 0)(); err != nil {
			t.Fatal(err)
		}
		if took := drain(t, b)(); took > 100*time.Millisecond {
			t.Errorf("drained after %s", took)
		}
		leaves(t, b)
	})
}

// A peer that leaves says so of itself, not of its region: the session to it is given up, and whoever comes next dials.
func TestClient_DialsAnewWhereAPeerLeaves(t *testing.T) {
	for _, once := range []bool{false, true} { // told by the answer, or by the sign of life before
		bubble(t, map[bool]string{false: "in its answer", true: "at its sign of life"}[once], func(t *testing.T) {
			var at atomic.Pointer[memory]
			at.Store(&memory{conns: make(chan net.Conn), done: make(chan struct{})})
			b := newBorderOver(t, nil, nil, at.Load(), func(ctx context.Context, n, addr string) (net.Conn, error) { return at.Load().dial(ctx, n, addr) })
			b.trueTo(t)
			over := b.begin(t, 3*time.Second)
			go b.server.Drain(t.Context())
			time.Sleep(time.Second)
			at.Store(&memory{conns: make(chan net.Conn), done: make(chan struct{})})
			there, next := b.there, &local{}
			there.Local = next
			server, err := relay.NewServer(there)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(context.Background())
			var wg sync.WaitGroup
			wg.Go(func() { server.Serve(ctx, at.Load()) })
			defer wg.Wait()
			defer cancel()
			if !once {
				f := b.forward(nil, 0)
				f.Once = false
				_, err := b.client.Do(t.Context(), f)
				if e, ok := errors.AsType[*relay.Error](err); !ok || !e.Leaving || e.Sent || e.Down || e.Unreachable {
					t.Fatalf("got %v, want that the peer leaves", err)
				}
			}
			resp, err := b.do(t.Context(), nil)
			if err != nil {
				t.Fatalf("its successor is there: %v", err)
			}
			resp.Body.Close()
			if next.count() != 1 {
				t.Errorf("the successor got %d relays, want the one", next.count())
			}
			if took, err := over(); err != nil || took != 3*time.Second {
				t.Errorf("the relay of before: %v after %s, want its answer after 3s", err, took)
			}
		})
	}
}

// What goes on in a process whose place another has taken relays nothing: nobody there would cut what is not permitted any more, and
// the control plane has been told that its run has ended. Its grants live on for a while.
func TestClient_RelaysNothingOnceItHasEnded(t *testing.T) {
	b := newBorder(t)
	resp, err := b.do(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	b.end()
	before, rows := b.local.count(), len(b.evidence.rows)
	_, err = b.do(t.Context(), nil)
	e, ok := errors.AsType[*relay.Error](err)
	if !ok || e.Sent || e.Down || e.Unreachable || b.local.count() != before {
		t.Errorf("a relay after the end: %v, %d reached the upstream; want it unsent, and no word on its region", err, b.local.count()-before)
	}
	if n := len(b.evidence.rows) - rows; n != 0 {
		t.Errorf("%d rows say that it was relayed", n)
	}
	if n := b.client.Sessions(); n != 0 {
		t.Errorf("%d sessions were opened", n)
	}
}

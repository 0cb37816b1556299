package channel_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"bailiwick/dataplane/internal/channel"
)

// taken sends a request of somebody's and takes it back as soon as it has come.
func taken(t *testing.T, p *channel.Pool, url, whose string, came <-chan uint32) channel.Fate {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "GET", url+"/x", nil)
	if err != nil {
		t.Fatal(err)
	}
	var back sync.WaitGroup
	back.Go(func() { <-came; cancel() })
	_, fate, err := p.Send(ctx, channel.Ask{Request: req, Whose: whose, Bounded: true})
	back.Wait()
	if err == nil || !errors.Is(err, context.Canceled) || !fate.Sent {
		t.Fatalf("one that was taken back: %v, sent %v", err, fate.Sent)
	}
	return fate
}

// A request that was taken back is let go of when its upstream has read that it was, not when it is told.
func TestPool_IsLetGoOfByTheUpstream(t *testing.T) {
	came, read := make(chan uint32, 10), make(chan struct{})
	p, url, _ := raw(t, func(_ *http2.Framer, _ net.Conn, id uint32) { came <- id; <-read }) // reads nothing meanwhile
	fate := taken(t, p, url, "", came)
	var asks sync.WaitGroup
	defer asks.Wait()
	let := make(chan struct{})
	asks.Go(func() { fate.LetGo(t.Context()); close(let) })
	select {
	case <-let:
		t.Error("let go before the upstream has read anything")
	case <-time.After(50 * time.Millisecond): // a correct one never comes here early, however slow the machine
	}
	close(read)
	<-let

	stuck := func() (*channel.Pool, string, <-chan net.Conn) {
		conns := make(chan net.Conn, 1)
		p, url, _ := raw(t, func(_ *http2.Framer, c net.Conn, id uint32) { conns <- c; came <- id; <-t.Context().Done() })
		return p, url, conns
	}
	p, url, conns := stuck()
	fate = taken(t, p, url, "", came)
	(<-conns).Close() // with what was not read
	fate.LetGo(t.Context())
	p, url, _ = stuck()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	taken(t, p, url, "", came).LetGo(ctx)
}

// gRPC closes the connection, with whatever else is on it, of a client that sends it a fourth PING while it says nothing.
func TestPool_AsksAQuietUpstreamOnce(t *testing.T) {
	const many = 20
	began := time.Now()
	own := func() int32 { return 1 + int32(time.Since(began)/(10*time.Second)) } // the transport's: of its first reset, and of silence
	came := make(chan uint32, many+1)
	var pings atomic.Int32
	var quiet func()
	p, url, _ := pinged(t, &pings, func(fr *http2.Framer, _ net.Conn, id uint32) {
		if quiet == nil {
			quiet = func() { ok(fr, id) }
		}
		came <- id
	})
	answered := make(chan error, 1)
	var all sync.WaitGroup
	defer all.Wait()
	all.Go(func() {
		req, _ := http.NewRequestWithContext(t.Context(), "POST", url+"/quiet", nil)
		resp, _, err := p.Send(t.Context(), channel.Ask{Request: req, Whose: "quiet"})
		if err == nil {
			resp.Body.Close()
		}
		answered <- err
	})
	<-came
	over := make(chan struct{}, many)
	for range many {
		fate := taken(t, p, url, "restless", came)
		all.Go(func() { fate.LetGo(t.Context()); over <- struct{}{} })
	}
	<-over // one at least is asked for
	if n := pings.Load() - own(); n > 1 {
		t.Errorf("%d PINGs more than the transport's own while the upstream says nothing, want 1 at most", n)
	}
	quiet()
	if err := <-answered; err != nil {
		t.Fatal(err)
	}
	for range many - 1 {
		<-over
	}
	if n := pings.Load() - own(); n > 3 {
		t.Errorf("%d PINGs more than the transport's own for %d that were taken back, want 3 at most", n, many)
	}
}

// Who takes much back has no more to do with others' connections, and a connection on which many streams were reset takes no more:
// an upstream that counts resets closes it.
func TestPool_ResetsHaveABudget(t *testing.T) {
	var conns [10]atomic.Int32 // resets that a connection had
	var mu sync.Mutex
	of := map[net.Conn]int{}
	where := make(chan int, 1000)
	came := make(chan uint32, 1000)
	var answers atomic.Bool
	p, url, dials := raw(t, func(fr *http2.Framer, conn net.Conn, id uint32) {
		mu.Lock()
		n, known := of[conn]
		if !known {
			n = len(of)
			of[conn] = n
		}
		mu.Unlock()
		if answers.Load() {
			where <- n
			ok(fr, id)
			return
		}
		conns[n].Add(1)
		hints(fr, id)
		came <- id
	})
	asks := func(whose string) int {
		t.Helper()
		answers.Store(true)
		defer answers.Store(false)
		req, err := http.NewRequestWithContext(t.Context(), "GET", url+"/x", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, _, err := p.Send(t.Context(), channel.Ask{Request: req, Whose: whose})
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return <-where
	}
	for range 300 {
		taken(t, p, url, "restless", came).LetGo(t.Context())
	}
	if n := conns[0].Load(); n != 50 {
		t.Errorf("one customer had %d streams reset on a connection that others use, want 50 at most", n)
	}
	if n := asks("quiet"); n != 0 {
		t.Errorf("another's request goes over connection %d, want the one that there was", n)
	}
	if n := asks("restless"); n == 0 {
		t.Error("the restless one is among the others again")
	}
	if n := dials.Load(); n != 3 { // one of them retired; the next would be in a second
		t.Errorf("%d connections, want 3", n)
	}

	// Many who take back a little each: what is under way ends where it is, what comes goes over another connection.
	for i := range 50 {
		taken(t, p, url, fmt.Sprint("some ", i), came).LetGo(t.Context())
	}
	if n := conns[0].Load(); n != 100 {
		t.Fatalf("%d resets, want 100", n)
	}
	if n := asks("quiet"); n != 3 {
		t.Errorf("a connection of which 100 streams were reset is used on: %d", n)
	}
}

// A retired connection is closed when the last of its requests has ended, and not before.
func TestPool_RetiredConnectionsServeToTheEnd(t *testing.T) {
	const long = 2
	came := make(chan uint32, 1000)
	var ends []func()
	var conn net.Conn // of those
	p, url, _ := raw(t, func(fr *http2.Framer, c net.Conn, id uint32) {
		if len(ends) < long {
			conn, ends = c, append(ends, func() { ok(fr, id) })
		}
		hints(fr, id)
		came <- id
	})
	answers := make(chan error, long)
	var done sync.WaitGroup
	defer done.Wait()
	for range long {
		done.Go(func() {
			req, _ := http.NewRequestWithContext(t.Context(), "GET", url+"/long", nil)
			resp, _, err := p.Send(t.Context(), channel.Ask{Request: req, Whose: "quiet"})
			if err == nil {
				resp.Body.Close()
			}
			answers <- err
		})
		<-came
	}
	for i := range 120 {
		taken(t, p, url, fmt.Sprint("some ", i), came).LetGo(t.Context())
	}
	for _, end := range ends {
		end()
		if err := <-answers; err != nil {
			t.Fatalf("what was under way on the connection that retired: %v", err)
		}
	}
	for end := time.Now().Add(20 * time.Second); !errors.Is(conn.SetDeadline(time.Time{}), net.ErrClosed); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it is still open with nothing on it")
		}
	}
}

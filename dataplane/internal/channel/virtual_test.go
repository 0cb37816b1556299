package channel_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/test/bufconn"

	"bailiwick/dataplane/internal/channel"
)

// posted is a pipe whose writer never waits, so that two ends that write at once do not wait for each other.
type posted struct {
	net.Conn
	out chan []byte
}

func posting(conn net.Conn, wg *sync.WaitGroup) *posted {
	p := &posted{conn, make(chan []byte, 1<<12)}
	wg.Go(func() {
		for b := range p.out {
			if len(b) == 0 {
				return
			}
			conn.Write(b)
		}
	})
	return p
}

func (p *posted) Write(b []byte) (int, error) {
	p.out <- append([]byte(nil), b...)
	return len(b), nil
}

func (p *posted) Close() error {
	p.out <- nil
	return p.Conn.Close()
}

// virtual is a pool whose upstream is in memory, for virtual time.
func virtual(t *testing.T, max int, pings *atomic.Int32, serve func(fr *http2.Framer, conn net.Conn, id uint32)) (p *channel.Pool, dials *atomic.Int32) {
	dials = new(atomic.Int32)
	var wg sync.WaitGroup
	p = channel.New(channel.Config{Max: max, Dial: func(context.Context) (net.Conn, error) {
		dials.Add(1)
		near, far := net.Pipe()
		wg.Go(func() {
			conn := posting(far, &wg)
			defer conn.Close()
			speak(conn, pings, serve)
		})
		return near, nil
	}})
	t.Cleanup(func() { p.CloseIdle(); wg.Wait() })
	return p, dials
}

// Whoever has one request that lasts on each connection that retired for its resets does not keep later ones from it for ever: the
// oldest ends, once it is old.
func TestPool_WhatLastsHoldsNoPlaceForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const most = 2
		came := make(chan uint32, 1000)
		var lasts atomic.Bool
		p, dials := virtual(t, most, new(atomic.Int32), func(fr *http2.Framer, _ net.Conn, id uint32) {
			if !lasts.Load() {
				hints(fr, id)
				came <- id
			}
		})
		ctx, cancel := context.WithCancel(t.Context())
		var long [most + 1]chan error
		var all sync.WaitGroup
		begin := func(n int) {
			long[n] = make(chan error, 1)
			lasts.Store(true)
			all.Go(func() {
				req, _ := http.NewRequestWithContext(ctx, "GET", "http://up.test/long", nil)
				_, _, err := p.Send(ctx, channel.Ask{Request: req, Whose: "patient"})
				long[n] <- err
			})
			synctest.Wait()
			lasts.Store(false)
		}
		names := 0
		reset := func(n int) {
			for range n {
				names++
				taken(t, p, "http://up.test", fmt.Sprint("some ", names), came)
				synctest.Wait()
			}
			time.Sleep(time.Second)
		}
		for n := range most + 1 { // each goes over a connection that retires then
			begin(n)
			reset(100)
		}
		reset(1)
		if n := dials.Load(); n != most+1 {
			t.Fatalf("%d connections, want %d: no more may retire", n, most+1)
		}
		time.Sleep(5 * time.Minute)
		reset(100)
		reset(1)
		if n := dials.Load(); n != most+2 {
			t.Errorf("%d connections, want %d: the oldest has had its time", n, most+2)
		}
		select {
		case err := <-long[0]:
			if err == nil {
				t.Error("the oldest was answered")
			}
		default:
			t.Error("what lasts on the oldest goes on")
		}
		for n := 1; n <= most; n++ {
			select {
			case err := <-long[n]:
				t.Errorf("what lasts on a younger one ended: %v", err)
			default:
			}
		}
		cancel()
		all.Wait()
	})
}

// A connection that retires with nothing on it ends at once, and what lasts elsewhere goes on.
func TestPool_RetiringWithoutRequestsTakesNoPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		came := make(chan uint32, 1000)
		var lasts atomic.Bool
		p, dials := virtual(t, 1, new(atomic.Int32), func(fr *http2.Framer, _ net.Conn, id uint32) {
			if !lasts.Load() {
				hints(fr, id)
				came <- id
			}
		})
		ctx, cancel := context.WithCancel(t.Context())
		long := make(chan error, 1)
		var all sync.WaitGroup
		lasts.Store(true)
		all.Go(func() {
			req, _ := http.NewRequestWithContext(ctx, "GET", "http://up.test/long", nil)
			_, _, err := p.Send(ctx, channel.Ask{Request: req, Whose: "patient"})
			long <- err
		})
		synctest.Wait()
		lasts.Store(false)
		names := 0
		reset := func(n int) {
			for range n {
				names++
				taken(t, p, "http://up.test", fmt.Sprint("some ", names), came)
				synctest.Wait()
			}
			time.Sleep(time.Second)
		}
		reset(100)
		reset(1)
		time.Sleep(5 * time.Minute)
		reset(100)
		reset(1)
		if n := dials.Load(); n != 4 { // one ended for it was idle
			t.Errorf("%d connections, want 4: two retired", n)
		}
		select {
		case err := <-long:
			t.Errorf("what lasts has ended: %v", err)
		default:
		}
		cancel()
		all.Wait()
	})
}

// A stream of gRPC may be silent for long: its server ends the connection of whoever asks too often whether it is there, with all
// that is on it. This is grpc-go's own, with its defaults.
func TestPool_AQuietStreamOfGRPC(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := bufconn.Listen(1 << 20)
		state, srv := health.NewServer(), grpc.NewServer()
		healthpb.RegisterHealthServer(srv, state)
		var served sync.WaitGroup
		served.Go(func() { srv.Serve(l) })
		var dials atomic.Int32
		p := channel.New(channel.Config{Dial: func(ctx context.Context) (net.Conn, error) { dials.Add(1); return l.DialContext(ctx) }})
		defer func() { p.CloseIdle(); srv.Stop(); served.Wait() }()
		ask := func(ctx context.Context, method string) (*http.Response, error) {
			req, err := http.NewRequestWithContext(ctx, "POST", "http://up.test/grpc.health.v1.Health/"+method, bytes.NewReader([]byte{0, 0, 0, 0, 0}))
			if err != nil {
				t.Fatal(err)
			}
			req.Header = http.Header{"Content-Type": {"application/grpc"}, "Te": {"trailers"}}
			resp, _, err := p.Send(ctx, channel.Ask{Request: req})
			return resp, err
		}
		resp, err := ask(t.Context(), "Watch")
		if err != nil {
			t.Fatal(err)
		}
		message := func(want byte) {
			t.Helper()
			b := make([]byte, 7)
			if _, err := io.ReadFull(resp.Body, b); err != nil || b[6] != want {
				t.Fatalf("got %v, %v, want state %d", b, err, want)
			}
		}
		message(1)
		time.Sleep(time.Hour)
		for range 3 { // others come and go, and are taken back, beside it
			ctx, cancel := context.WithCancel(t.Context())
			other, err := ask(ctx, "Watch")
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Minute)
			cancel()
			other.Body.Close()
			time.Sleep(time.Minute)
		}
		state.SetServingStatus("", healthpb.HealthCheckResponse_NOT_SERVING)
		message(2)
		if n := dials.Load(); n != 1 {
			t.Errorf("%d connections, want 1", n)
		}
		resp.Body.Close()
	})
}

// Who is dead is found out while somebody waits for him, and nobody is asked while nobody does.
func TestPool_AsksWhoIsSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var pings atomic.Int32
		var dead atomic.Bool
		p, _ := virtual(t, 1, &pings, func(fr *http2.Framer, _ net.Conn, id uint32) {
			if dead.Load() {
				time.Sleep(time.Hour) // and reads nothing
				return
			}
			ok(fr, id)
		})
		resp, _, err := get(t, p, "http://up.test")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		time.Sleep(50 * time.Second)
		if n := pings.Load(); n != 0 {
			t.Errorf("%d PINGs while nobody waits", n)
		}
		dead.Store(true)
		began := time.Now()
		if _, _, err := get(t, p, "http://up.test"); err == nil || time.Since(began) > 16*time.Second {
			t.Errorf("of a peer that is dead: %v after %v, want an error within 15 s", err, time.Since(began))
		}
		time.Sleep(time.Hour)
	})
}

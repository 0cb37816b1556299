package channel_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"bailiwick/dataplane/internal/channel"
)

// raw is an upstream that does with each stream what a test says: its number on the connection, counted from 1.
func raw(t *testing.T, serve func(fr *http2.Framer, conn net.Conn, id uint32)) (p *channel.Pool, url string, dials *atomic.Int32) {
	return pinged(t, new(atomic.Int32), serve)
}

// pinged is raw that counts PINGs.
func pinged(t *testing.T, pings *atomic.Int32, serve func(fr *http2.Framer, conn net.Conn, id uint32)) (p *channel.Pool, url string, dials *atomic.Int32) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	over := make(chan struct{})
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { <-over; conn.Close() }) // a client that was sent away may leave it open until its PING is not answered
			wg.Go(func() {
				defer conn.Close()
				speak(conn, pings, serve)
			})
		}
	})
	dials = new(atomic.Int32)
	p = channel.New(channel.Config{Dial: func(ctx context.Context) (net.Conn, error) {
		dials.Add(1)
		return (&net.Dialer{}).DialContext(ctx, "tcp", l.Addr().String())
	}})
	t.Cleanup(func() { p.CloseIdle(); l.Close(); close(over); wg.Wait() })
	return p, "http://" + l.Addr().String(), dials
}

// speak is the upstream's end of a connection.
func speak(conn net.Conn, pings *atomic.Int32, serve func(fr *http2.Framer, conn net.Conn, id uint32)) {
	io.ReadFull(conn, make([]byte, len(http2.ClientPreface)))
	fr := http2.NewFramer(conn, conn)
	fr.WriteSettings()
	for {
		f, err := fr.ReadFrame()
		if err != nil {
			return
		}
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				fr.WriteSettingsAck()
			}
		case *http2.PingFrame:
			if !f.IsAck() {
				pings.Add(1)
				fr.WritePing(true, f.Data)
			}
		case *http2.HeadersFrame:
			serve(fr, conn, f.StreamID)
		}
	}
}

func ok(fr *http2.Framer, id uint32) { says(fr, id, "200", true) }

// hints says something that is no answer yet: without that PINGs are few.
func hints(fr *http2.Framer, id uint32) { says(fr, id, "103", false) }

func says(fr *http2.Framer, id uint32, status string, ends bool) {
	var head bytes.Buffer
	hpack.NewEncoder(&head).WriteField(hpack.HeaderField{Name: ":status", Value: status})
	fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: head.Bytes(), EndHeaders: true, EndStream: ends})
}

func post(t *testing.T, p *channel.Pool, url string, again bool) (*http.Response, bool, error) {
	req, err := http.NewRequestWithContext(t.Context(), "POST", url+"/x", io.NopCloser(strings.NewReader("hello")))
	if err != nil {
		t.Fatal(err)
	}
	req.ContentLength = 5
	if again {
		req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("hello")), nil }
	}
	return send(t, p, req)
}

func send(t *testing.T, p *channel.Pool, req *http.Request) (*http.Response, bool, error) {
	resp, fate, err := p.Send(t.Context(), channel.Ask{Request: req})
	if resp != nil {
		t.Cleanup(func() { resp.Body.Close() })
	}
	return resp, fate.Sent, err
}

func get(t *testing.T, p *channel.Pool, url string) (*http.Response, bool, error) {
	req, err := http.NewRequestWithContext(t.Context(), "GET", url+"/x", nil)
	if err != nil {
		t.Fatal(err)
	}
	return send(t, p, req)
}

// What an upstream refused it did not begin: it is sent anew, or said to be unsent. What it may have begun is neither.
func TestPool_RepeatsWhatWasRefusedAndNothingElse(t *testing.T) {
	var streams atomic.Int32
	p, url, _ := raw(t, func(fr *http2.Framer, _ net.Conn, id uint32) {
		if streams.Add(1) == 1 {
			fr.WriteRSTStream(id, http2.ErrCodeRefusedStream)
			return
		}
		ok(fr, id)
	})
	if resp, _, err := post(t, p, url, true); err != nil || resp.StatusCode != 200 || streams.Load() != 2 {
		t.Errorf("refused once: got %v, %v after %d streams, want 200 after two", resp, err, streams.Load())
	}

	var cut atomic.Int32
	p, url, _ = raw(t, func(fr *http2.Framer, conn net.Conn, id uint32) { cut.Add(1); conn.Close() })
	if _, sent, err := post(t, p, url, true); err == nil || !sent || cut.Load() != 1 {
		t.Errorf("a connection that broke: got %v, sent %v, %d times; want an error, sent, once", err, sent, cut.Load())
	}

	var reset atomic.Int32
	p, url, _ = raw(t, func(fr *http2.Framer, _ net.Conn, id uint32) {
		reset.Add(1)
		fr.WriteRSTStream(id, http2.ErrCodeInternal)
	})
	if _, sent, err := post(t, p, url, true); err == nil || !sent || reset.Load() != 1 {
		t.Errorf("a stream that was reset: got %v, sent %v, %d times; want an error, sent, once", err, sent, reset.Load())
	}

	// net/http's own transport would send this one seven times.
	var wrong atomic.Int32
	p, url, _ = raw(t, func(fr *http2.Framer, _ net.Conn, id uint32) {
		wrong.Add(1)
		fr.WriteRSTStream(id, http2.ErrCodeProtocol)
	})
	if _, sent, err := post(t, p, url, true); err == nil || !sent || wrong.Load() != 1 {
		t.Errorf("a stream that was reset with PROTOCOL_ERROR: got %v, sent %v, %d times; want an error, sent, once", err, sent, wrong.Load())
	}

	// Nor one without a body, of which it says that the transport may repeat it.
	wrong.Store(0)
	if _, sent, err := get(t, p, url); err == nil || !sent || wrong.Load() != 1 {
		t.Errorf("a GET that was reset with PROTOCOL_ERROR: got %v, sent %v, %d times; want an error, sent, once", err, sent, wrong.Load())
	}

	var always atomic.Int32
	p, url, _ = raw(t, func(fr *http2.Framer, _ net.Conn, id uint32) {
		always.Add(1)
		fr.WriteRSTStream(id, http2.ErrCodeRefusedStream)
	})
	for _, c := range []struct {
		again bool
		times int32
	}{{true, 3}, {false, 1}} {
		always.Store(0)
		if _, sent, err := post(t, p, url, c.again); err == nil || sent || always.Load() != c.times {
			t.Errorf("refused each time, with its body %v: got %v, sent %v, %d times; want an error, unsent, %d", c.again, err, sent, always.Load(), c.times)
		}
	}

	always.Store(0)
	if _, sent, err := get(t, p, url); err == nil || sent || always.Load() != 3 {
		t.Errorf("a GET refused each time: got %v, sent %v, %d times; want an error, unsent, three", err, sent, always.Load())
	}

	var away atomic.Int32
	p, url, dials := raw(t, func(fr *http2.Framer, _ net.Conn, id uint32) {
		if away.Add(1) == 1 {
			fr.WriteGoAway(0, http2.ErrCodeNo, nil)
			return
		}
		ok(fr, id)
	})
	if resp, _, err := post(t, p, url, true); err != nil || resp.StatusCode != 200 || dials.Load() != 2 {
		t.Errorf("sent away: got %v, %v after %d connections, want 200 over the second", resp, err, dials.Load())
	}

	gone := channel.New(channel.Config{Dial: func(context.Context) (net.Conn, error) { return nil, errors.New("nobody there") }})
	if _, sent, err := post(t, gone, url, true); err == nil || sent {
		t.Errorf("nobody there: got %v, sent %v; want an error, unsent", err, sent)
	}
}

func TestPool_OpensAsManyConnectionsAsItMay(t *testing.T) {
	release := make(chan struct{})
	const requests = 150
	here := make(chan struct{}, requests)
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Protocols: &protocols, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		here <- struct{}{}
		<-release
		io.WriteString(w, r.Proto)
	})}
	var wg sync.WaitGroup
	wg.Go(func() { srv.Serve(l) })
	defer wg.Wait()
	defer srv.Close()
	var dials atomic.Int32
	p := channel.New(channel.Config{Max: 2, Dial: func(ctx context.Context) (net.Conn, error) {
		dials.Add(1)
		return (&net.Dialer{}).DialContext(ctx, "tcp", l.Addr().String())
	}})
	defer p.CloseIdle()
	var done sync.WaitGroup
	for range requests {
		done.Go(func() {
			req, _ := http.NewRequestWithContext(t.Context(), "GET", "http://"+l.Addr().String(), nil)
			resp, _, err := p.Send(t.Context(), channel.Ask{Request: req})
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			if said, err := io.ReadAll(resp.Body); string(said) != "HTTP/2.0" {
				t.Errorf("got %q, %v", said, err)
			}
		})
	}
	for range requests { // all at once, over two connections
		<-here
	}
	close(release)
	done.Wait()
	if n := dials.Load(); n != 2 {
		t.Errorf("%d connections, want the 2 that there may be", n)
	}
}

func TestCheck_AsksTheHealthService(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv, says := grpc.NewServer(), health.NewServer()
	healthpb.RegisterHealthServer(srv, says)
	says.SetServingStatus("shop.v1.Orders", healthpb.HealthCheckResponse_SERVING)
	says.SetServingStatus("shop.v1.Stock", healthpb.HealthCheckResponse_NOT_SERVING)
	var wg sync.WaitGroup
	wg.Go(func() { srv.Serve(l) })
	defer wg.Wait()
	defer srv.Stop()
	p := channel.New(channel.Config{Dial: func(ctx context.Context) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", l.Addr().String())
	}})
	defer p.CloseIdle()
	for service, well := range map[string]bool{"": true, "shop.v1.Orders": true, "shop.v1.Stock": false, "shop.v1.None": false} {
		if err := channel.Check(t.Context(), p, "http://"+l.Addr().String(), service); (err == nil) != well {
			t.Errorf("service %q: got %v, want well %v", service, err, well)
		}
	}
}

// What an upstream sends while its client takes nothing waits at the upstream.
func TestPool_HoldsLittleOfAnAnswerThatNobodyTakes(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	p := channel.New(channel.Config{Dial: func(ctx context.Context) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", l.Addr().String())
	}})
	var wg sync.WaitGroup
	wg.Go(func() { post(t, p, "http://"+l.Addr().String(), false) })
	defer wg.Wait()
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.ReadFull(conn, make([]byte, len(http2.ClientPreface)))
	f, err := http2.NewFramer(conn, conn).ReadFrame()
	if err != nil {
		t.Fatal(err)
	}
	if most, said := f.(*http2.SettingsFrame).Value(http2.SettingInitialWindowSize); !said || most > 1<<20 {
		t.Errorf("an answer may bring %d bytes (said %v) before any is taken", most, said)
	}
}

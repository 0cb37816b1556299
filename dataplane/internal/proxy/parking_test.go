package proxy_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"bailiwick/dataplane/internal/proxy"
	"bailiwick/shared/usage"
)

// client is a connection that asks one thing after the other.
type client struct {
	*tls.Conn
	frames *http2.Framer // of HTTP/2
	last   uint32
	block  []byte
	text   string
}

func newClient(t testing.TB, addr, key, proto string) *client {
	t.Helper()
	c, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true, ServerName: "orders.test", NextProtos: []string{proto}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(2 * time.Minute))
	a := &client{Conn: c, text: fmt.Sprintf("GET /v1/x HTTP/1.1\r\nHost: orders.test\r\nX-Api-Key: %s\r\n\r\n", key)}
	if proto == "h2" {
		a.block = headerBlock(":method", "GET", ":scheme", "https", ":authority", "orders.test", ":path", "/v1/x", "x-api-key", key)
		a.frames = http2.NewFramer(c, c)
		io.WriteString(c, http2.ClientPreface)
		a.frames.WriteSettings()
		a.frames.WriteSettingsAck()
	}
	return a
}

// ask asks and reads the answer.
func (c *client) ask() error {
	if c.frames == nil {
		io.WriteString(c, c.text)
		b := make([]byte, 4096)
		if n, err := c.Read(b); err != nil || string(b[:12]) != "HTTP/1.1 200" {
			return fmt.Errorf("got %q, %v", b[:n], err)
		}
		return nil
	}
	c.last += 2
	id := c.last - 1
	c.frames.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: c.block, EndHeaders: true, EndStream: true})
	for {
		f, err := c.frames.ReadFrame()
		if err != nil {
			return err
		}
		if h := f.Header(); h.StreamID == id && h.Type == http2.FrameData && h.Flags.Has(http2.FlagDataEndStream) {
			return nil
		}
	}
}

// ends reads to the end, and says whether that came without a reset, and whether it was announced.
func (c *client) ends() (goAway bool, err error) {
	for c.frames != nil {
		f, err := c.frames.ReadFrame()
		if err == io.EOF {
			return goAway, nil
		}
		if err != nil {
			return goAway, err
		}
		switch f := f.(type) {
		case *http2.GoAwayFrame:
			goAway = true
		case *http2.PingFrame:
			if !f.IsAck() {
				c.frames.WritePing(true, f.Data)
			}
		}
	}
	_, err = io.Copy(io.Discard, c)
	return false, err
}

var protos = []string{"http/1.1", "h2"}

// A connection that waits costs little: neither a goroutine nor a buffer.
func TestParking_AnIdleConnectionIsSmall(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector has memory of its own")
	}
	for _, proto := range protos {
		t.Run(proto, func(t *testing.T) {
			if !alone(t) {
				return
			}
			w := newWorld(t, nil)
			servers, addr := w.securely(func(d *proxy.Door) { d.ParkAfter(50 * time.Millisecond) })
			if err := newClient(t, addr, w.key, proto).ask(); err != nil {
				t.Fatal(err)
			}
			eventually(t, time.Minute, "the first to be parked", func() bool { return servers.HTTPS.Parked() == 1 })
			held := func() int64 {
				var m runtime.MemStats
				runtime.GC()
				runtime.GC()
				runtime.ReadMemStats(&m)
				return int64(m.HeapAlloc + m.StackInuse)
			}
			const n = 300
			fds := make([]int, 0, n)
			defer func() {
				for _, fd := range fds {
					syscall.Close(fd)
				}
			}()
			for range n {
				c, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true, ServerName: "orders.test", NextProtos: []string{proto}})
				if err != nil {
					t.Fatal(err)
				}
				raw, err := c.NetConn().(*net.TCPConn).SyscallConn()
				if err != nil {
					t.Fatal(err)
				}
				if proto == "h2" {
					io.WriteString(c, http2.ClientPreface)
					http2.NewFramer(c, c).WriteSettings()
				}
				raw.Control(func(fd uintptr) {
					if fd, err := syscall.Dup(int(fd)); err == nil {
						fds = append(fds, fd)
					}
				})
				c.NetConn().Close() // nothing is left of the client but its end of the connection
			}
			eventually(t, time.Minute, "all to be parked", func() bool { return servers.HTTPS.Parked() == n+1 })
			with := held()
			for _, fd := range fds {
				syscall.Close(fd)
			}
			fds = nil
			eventually(t, time.Minute, "all to be gone", func() bool { return servers.HTTPS.Guests() == 1 })
			each := (with - held()) / n
			t.Logf("%d bytes a connection", each)
			if each > 10<<10 { // one that is not parked holds 20 KiB
				t.Errorf("an idle connection holds %d bytes", each)
			}
		})
	}
}

// Where there are few, nobody pays for being parked.
func TestParking_ManyAreParkedSooner(t *testing.T) {
	if few, many := proxy.Patience(2048), proxy.Patience(2049); few != 5*time.Second || many != 250*time.Millisecond {
		t.Errorf("few wait %v, many %v", few, many)
	}
}

// Whatever comes to a connection that is just being parked, or roused, is answered and counted once.
func TestParking_LosesNothing(t *testing.T) {
	for _, proto := range protos {
		t.Run(proto, func(t *testing.T) {
			w := newWorld(t, nil)
			servers, addr := w.securely(func(d *proxy.Door) { d.ParkAfter(200 * time.Microsecond) })
			const clients, each = 8, 100
			var wg sync.WaitGroup
			for range clients {
				c := newClient(t, addr, w.key, proto)
				wg.Go(func() {
					for i := range each {
						time.Sleep(rand.N(3 * time.Millisecond))
						if err := c.ask(); err != nil {
							t.Errorf("request %d: %v", i, err)
							return
						}
					}
				})
			}
			wg.Wait()
			if got := w.west.meter.finals(t)[usage.OutcomeSuccess]; got != clients*each {
				t.Errorf("%d rows of %d requests", got, clients*each)
			}
			eventually(t, time.Minute, "all to be parked", func() bool { return servers.HTTPS.Parked() == clients })
		})
	}
}

// A door that shuts ends what is parked as it ends what waits: in good order, and after its linger.
func TestParking_ADoorShuts(t *testing.T) {
	for _, proto := range protos {
		t.Run(proto, func(t *testing.T) {
			w := newWorld(t, nil)
			servers, addr := w.securely(func(d *proxy.Door) { d.ParkAfter(time.Millisecond); d.Linger = 300 * time.Millisecond })
			var clients []*client
			for range 5 {
				c := newClient(t, addr, w.key, proto)
				if err := c.ask(); err != nil {
					t.Fatal(err)
				}
				clients = append(clients, c)
			}
			eventually(t, time.Minute, "all to be parked", func() bool { return servers.HTTPS.Parked() == 5 })
			over := make(chan error, 1)
			go func() {
				ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
				defer cancel()
				over <- servers.HTTPS.Shutdown(ctx)
			}()
			var wg sync.WaitGroup
			for i, c := range clients {
				wg.Go(func() {
					if goAway, err := c.ends(); err != nil || proto == "h2" && !goAway {
						t.Errorf("client %d: announced %v, %v", i, goAway, err)
					}
					c.Close()
				})
			}
			wg.Wait()
			if err := <-over; err != nil {
				t.Fatal(err)
			}
			if n := servers.HTTPS.Parked(); n != 0 {
				t.Errorf("%d are parked in a door that is shut", n)
			}
		})
	}
}

// What is parked may be broken off too.
func TestParking_ADoorCloses(t *testing.T) {
	w := newWorld(t, nil)
	servers, addr := w.securely(func(d *proxy.Door) { d.ParkAfter(time.Millisecond) })
	for _, proto := range protos {
		if err := newClient(t, addr, w.key, proto).ask(); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, time.Minute, "all to be parked", func() bool { return servers.HTTPS.Parked() == 2 })
	servers.HTTPS.Close()
	eventually(t, time.Minute, "all to be gone", func() bool { return servers.HTTPS.Parked() == 0 && servers.HTTPS.Guests() == 0 }) // also if nobody shuts it after that
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := servers.HTTPS.Shutdown(ctx); err != nil {
		t.Errorf("connections that were broken off are still there: %v", err)
	}
}

// Where there are as many connections as there may be, who is parked longest goes; and who leaves, or has waited for as long as it
// may, gives its place back.
func TestParking_GivesPlacesBack(t *testing.T) {
	for _, proto := range protos {
		t.Run(proto, func(t *testing.T) {
			cert, _ := selfSigned(t, "orders.test")
			door := proxy.NewServers(proxy.ServersConfig{TLS: &tls.Config{Certificates: []tls.Certificate{cert}}, Logger: slog.New(slog.DiscardHandler), MaxConnections: 3,
				Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "ok") })}).HTTPS
			door.ParkAfter(time.Millisecond)
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() { ended <- door.Serve(l) }()
			defer func() { door.Close(); <-ended }()
			parked := func(n int) {
				t.Helper()
				eventually(t, time.Minute, fmt.Sprintf("%d to be parked", n), func() bool { return door.Parked() == n })
			}
			var clients []*client
			for i := range 5 {
				c := newClient(t, l.Addr().String(), "", proto)
				if err := c.ask(); err != nil {
					t.Fatalf("client %d: %v", i, err)
				}
				clients = append(clients, c)
				parked(min(i+1, 3))
			}
			for i, c := range clients[:2] { // in whose place the last two came
				if _, err := c.ends(); err != nil {
					t.Errorf("client %d: %v", i, err)
				}
			}
			if err := clients[2].ask(); err != nil {
				t.Errorf("one that came later than others went before them: %v", err)
			}
			parked(3)
			left := func(n int) {
				t.Helper()
				eventually(t, time.Minute, fmt.Sprintf("%d to be counted", n), func() bool { return door.Guests() == n })
			}
			clients[3].Close()
			left(2)
			if proto == "http/1.1" {
				door.Age()
			} else {
				clients[4].Close()
			}
			if _, err := clients[4].ends(); proto == "http/1.1" && err != nil {
				t.Error(err)
			}
			left(1)
			for range 2 {
				if err := newClient(t, l.Addr().String(), "", proto).ask(); err != nil {
					t.Fatal(err)
				}
			}
			if err := clients[2].ask(); err != nil {
				t.Errorf("it goes although places were given back: %v", err)
			}
		})
	}
}

// A connection that waits for a request goes after 90 s, of which it may be parked for most.
func TestParking_LastsNoLongerThanWaiting(t *testing.T) {
	for _, proto := range protos {
		t.Run(proto, func(t *testing.T) {
			w := newWorld(t, nil)
			servers, addr := w.securely(func(d *proxy.Door) { d.ParkAfter(time.Millisecond) })
			c := newClient(t, addr, w.key, proto)
			before := time.Now()
			if err := c.ask(); err != nil {
				t.Fatal(err)
			}
			eventually(t, time.Minute, "it to be parked", func() bool { return servers.HTTPS.Parked() == 1 })
			if until := servers.HTTPS.ParkedUntil(); until.Before(before.Add(89*time.Second)) || until.After(time.Now().Add(90*time.Second)) {
				t.Errorf("it is parked for %v, want what is left of 90 s", time.Until(until))
			}
		})
	}
}

// One that goes for another client just as it is parked is gone at once, not when its time is over.
func TestParking_WhoGoesIsNotLeftParked(t *testing.T) {
	for _, proto := range protos {
		t.Run(proto, func(t *testing.T) {
			w := newWorld(t, nil)
			servers, addr := w.securely(func(d *proxy.Door) { d.ParkAfter(time.Millisecond) })
			c := newClient(t, addr, w.key, proto)
			if err := c.ask(); err != nil {
				t.Fatal(err)
			}
			eventually(t, time.Minute, "it to be parked", func() bool { return servers.HTTPS.Parked() == 1 })
			if !servers.HTTPS.AnyGoes() {
				t.Fatal("it does not go")
			}
			eventually(t, 30*time.Second, "its place", func() bool { return servers.HTTPS.Guests() == 0 })
			if n := servers.HTTPS.Parked(); n != 0 {
				t.Errorf("%d are parked", n)
			}
		})
	}
}

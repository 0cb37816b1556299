package proxy_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"bailiwick/dataplane/internal/proxy"
)

// A client that sends the beginning of a chunk and then nothing is answered, and holds nothing: nobody waits for the rest of a
// body that was refused.
func TestConn_ARefusalWaitsForNoBody(t *testing.T) {
	w := newWorld(t, nil)
	for _, sent := range []string{"", "5\r\n", "5\r\nhello\r\n", "5\r\nhello\r\n0\r\n"} {
		conn, in := w.dial()
		io.WriteString(conn, "POST /v1/x HTTP/1.1\r\nHost: orders.test\r\nTransfer-Encoding: chunked\r\n\r\n"+sent)
		if resp, body := read(t, in, "POST"); resp.StatusCode != 401 || !resp.Close {
			t.Errorf("behind %q: got %d %q, close %v", sent, resp.StatusCode, body, resp.Close)
		}
	}
}

// A small body has one time to come in, however it comes.
func TestConn_ASmallBodyThatTricklesIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mine, theirs := net.Pipe()
		var wg sync.WaitGroup
		defer wg.Wait() // time stands still once this function has returned
		defer theirs.Close()
		wg.Go(func() {
			for range 20 {
				if _, err := mine.Write([]byte("x")); err != nil {
					return
				}
				time.Sleep(15 * time.Second)
			}
		})
		began := time.Now()
		if got := proxy.Within(theirs, 20, 30*time.Second); got || time.Since(began) > 31*time.Second {
			t.Errorf("got it whole: %v, after %v; want to give up after 30 s", got, time.Since(began))
		}
	})
}

// door is one in virtual time whose connections are pipes.
func door(t *testing.T, handler http.HandlerFunc) (d *proxy.Door, open func() net.Conn, done func()) {
	servers := proxy.NewServers(proxy.ServersConfig{TLS: &tls.Config{}, Logger: slog.New(slog.DiscardHandler), Handler: handler})
	l := &pipe{ch: make(chan net.Conn), over: make(chan struct{})}
	var wg sync.WaitGroup
	wg.Go(func() { servers.HTTP.Serve(l) })
	return servers.HTTP, func() net.Conn {
		mine, theirs := net.Pipe()
		l.ch <- theirs
		return mine
	}, wg.Wait
}

// A client that was asked for a body and takes nothing afterwards is given up all the same.
func TestConn_AClientThatTakesNothingIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, open, done := door(t, func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) })
		defer done()
		c := open()
		defer c.Close()
		in := bufio.NewReader(c)
		io.WriteString(c, "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n")
		read(t, in, "POST")
		io.WriteString(c, "x")
		read(t, in, "POST")
		io.WriteString(c, "nonsense\r\n\r\n")
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := d.Shutdown(ctx); err != nil {
			t.Errorf("Shutdown: got %v, want the connection to end after 30 s", err)
		}
	})
}

// A request of which a byte has come in is served by a door that shuts meanwhile.
func TestDoor_DrainsWhatHasBegun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, open, done := door(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "ok") })
		defer done()
		c := open()
		defer c.Close()
		io.WriteString(c, "GET / HT")
		synctest.Wait()
		shut := make(chan error, 1)
		go func() { shut <- d.Shutdown(context.Background()) }()
		synctest.Wait()
		go io.WriteString(c, "TP/1.1\r\nHost: a\r\n\r\n")
		if resp, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil || resp.StatusCode != 200 || !resp.Close {
			t.Errorf("got %v %v, want an answer that ends the connection", resp, err)
		}
		if err := <-shut; err != nil {
			t.Errorf("Shutdown: got %v", err)
		}
	})
}

// A door that was shut before it was opened does not open.
func TestDoor_StaysShut(t *testing.T) {
	servers := proxy.NewServers(proxy.ServersConfig{TLS: &tls.Config{}, Logger: slog.New(slog.DiscardHandler), Handler: http.NotFoundHandler()})
	for name, d := range map[string]*proxy.Door{"HTTPS": servers.HTTPS, "HTTP": servers.HTTP} {
		l := &pipe{ch: make(chan net.Conn), over: make(chan struct{})}
		if err := d.Shutdown(context.Background()); err != nil {
			t.Errorf("%s: Shutdown: got %v", name, err)
		}
		if err := d.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("%s: Serve: got %v", name, err)
		}
	}
}

package http2

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	theirs "golang.org/x/net/http2"
)

func to(host string) []string {
	return []string{":method", "GET", ":scheme", "https", ":authority", host, ":path", "/"}
}

// A header block continues one that has begun, or nothing.
func TestConn_NothingIsContinued(t *testing.T) {
	c := dial(t, serving(t, hello))
	c.WriteRawFrame(theirs.FrameContinuation, theirs.FlagContinuationEndHeaders, 0, c.fields("x", "1"))
	if got, err := c.answer(1); err == nil || !strings.Contains(err.Error(), "connection: PROTOCOL_ERROR") {
		t.Errorf("got %q %v, want the connection ended", got, err)
	}
}

// Names of trailers are the request's own, also those that are in canonical form as they come.
func TestHTTP_TrailersAreTheirOwn(t *testing.T) {
	c := dial(t, serving(t, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		fmt.Fprintf(w, "%q", r.Trailer)
	}))
	c.open(1, false, to("a.test")...)
	c.open(1, true, "1-2", "v")
	if got, err := c.answer(1); err != nil || got != `200 map["1-2":["v"]]` {
		t.Errorf("got %q %v", got, err)
	}
}

// Of windows in one SETTINGS frame the last holds, and costs once what one costs.
func TestConn_TheLastWindowHolds(t *testing.T) {
	c := dial(t, serving(t, hello))
	c.WriteSettings(theirs.Setting{ID: theirs.SettingInitialWindowSize, Val: 0})
	c.open(1, true, to("a.test")...)
	c.WriteWindowUpdate(1, 1<<10)
	c.WriteSettings(theirs.Setting{ID: theirs.SettingInitialWindowSize, Val: 1<<31 - 1}, theirs.Setting{ID: theirs.SettingInitialWindowSize, Val: 7})
	c.open(3, true, to("b.test")...)
	for {
		f, err := c.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if d, ok := f.(*theirs.DataFrame); ok && d.StreamID == 3 {
			if len(d.Data()) != 7 {
				t.Errorf("got %d bytes through a window of 7", len(d.Data()))
			}
			return
		}
	}
}

// A few bytes of header blocks must not become many of heads, over all requests of a connection.
func TestConn_HeadsUnderWayAreBounded(t *testing.T) {
	proceed := make(chan struct{})
	at := serving(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Host == "slow.test" {
			<-proceed
		}
		io.WriteString(w, "here")
	})
	c := dial(t, at)
	bomb := to("slow.test")
	for range 20 { // each but the first is a byte
		bomb = append(bomb, "x-bomb", strings.Repeat("b", 3000))
	}
	const held = headsMost / 60_000
	for i := range uint32(2 * held) {
		c.open(2*i+1, true, bomb...)
	}
	if got, err := c.answer(4*held - 1); err == nil || !strings.Contains(err.Error(), "REFUSED_STREAM") {
		t.Errorf("got %q %v, want it refused", got, err)
	}
	close(proceed)
	if got, err := c.answer(1); err != nil || got != "200 here" {
		t.Errorf("the first: got %q %v", got, err)
	}
	for id := uint32(4*held + 1); ; id += 2 { // as soon as they are over there is room again
		c.open(id, true, bomb...)
		if got, err := c.answer(id); err == nil && got == "200 here" {
			break
		} else if err == nil || !strings.Contains(err.Error(), "REFUSED_STREAM") {
			t.Fatalf("afterwards: got %q %v", got, err)
		}
	}
}

// A client that gives room for a byte now and then is given up as one that gives none.
func TestConn_AClientThatTakesAByteAtATimeIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		over := make(chan time.Duration, 1)
		c, _, done := pipe(t, func(w http.ResponseWriter, r *http.Request) {
			began := time.Now()
			w.Write(make([]byte, 10_000))
			over <- time.Since(began)
		}, theirs.Setting{ID: theirs.SettingInitialWindowSize, Val: 0})
		defer done()
		c.open(1, true, to("a.test")...)
		go func() {
			for range 200 {
				select {
				case <-time.After(10 * time.Second):
				case <-t.Context().Done():
					return
				}
				if c.WriteWindowUpdate(1, 1) != nil {
					return
				}
			}
		}()
		c.answer(1)
		if d := <-over; d > sendTimeout+time.Second {
			t.Errorf("the handler was held for %v", d)
		}
		c.conn.Close()
	})
}

// Whoever has written must not write for others for as long as they have something: he has an upstream to hear.
func TestHTTP_NobodyWritesForOthersForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		wrote := make(chan time.Time, 1)
		c, _, done := pipe(t, func(w http.ResponseWriter, r *http.Request) {
			if r.Host == "a.test" {
				w.Write(make([]byte, 32<<10))
				wrote <- time.Now()
				return
			}
			for until := time.Now().Add(5 * time.Minute); time.Now().Before(until); {
				if _, err := w.Write(make([]byte, 32<<10)); err != nil {
					return
				}
			}
		}, theirs.Setting{ID: theirs.SettingInitialWindowSize, Val: 1 << 30})
		defer done()
		var skip [64 << 10]byte
		io.ReadAtLeast(c.conn, skip[:], 9) // SETTINGS begin
		c.WriteWindowUpdate(0, 1<<30)
		c.open(1, true, to("a.test")...)
		io.ReadFull(c.conn, skip[:1<<10]) // its handler writes by now
		c.open(3, true, to("b.test")...)
		c.open(5, true, to("c.test")...)
		began := time.Now()
		for time.Since(began) < 2*time.Minute { // 32 KiB a second
			time.Sleep(time.Second)
			if _, err := io.ReadFull(c.conn, skip[:32<<10]); err != nil {
				t.Fatal(err)
			}
			if time.Since(began) > 20*time.Second {
				select {
				case at := <-wrote:
					wrote <- at
				default:
					t.Error("the first still writes for the others")
					c.conn.Close()
					return
				}
			}
		}
		if d := (<-wrote).Sub(began); d > 10*time.Second {
			t.Errorf("the first wrote for the others for %v", d)
		}
		c.conn.Close()
	})
}

// A slow client that takes what it is sent is there, however long it takes to come to the question whether it is.
func TestConn_ASlowClientIsNotGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size = 1 << 20
		c, _, done := pipe(t, func(w http.ResponseWriter, r *http.Request) { w.Write(make([]byte, size)) }, theirs.Setting{ID: theirs.SettingInitialWindowSize, Val: 1 << 30})
		defer done()
		c.WriteWindowUpdate(0, 1<<30)
		c.open(1, true, to("a.test")...)
		go c.open(3, true, to("b.test")...)
		got := 0
		for got < 2*size {
			f, err := c.ReadFrame()
			if err != nil {
				t.Fatalf("%d bytes of %d came, then: %v", got, 2*size, err)
			}
			switch f := f.(type) {
			case *theirs.DataFrame:
				got += len(f.Data())
				time.Sleep(3 * time.Second) // 5 KiB a second
			case *theirs.PingFrame:
				c.WritePing(true, f.Data)
			}
		}
		c.conn.Close()
	})
}

// lagging is a connection whose writes return a while after the other end has what they wrote.
type lagging struct{ net.Conn }

func (l lagging) Write(p []byte) (int, error) {
	n, err := l.Conn.Write(p)
	time.Sleep(200 * time.Millisecond)
	return n, err
}

// A connection that drains ends also if its client answers before who wrote the question is done.
func TestConn_DrainEndsWhatIsIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mine, other := net.Pipe()
		var wg sync.WaitGroup
		v := New(Config{MaxHead: 64 << 10, Go: wg.Go, Panicked: func(p any) { t.Errorf("panic: %v", p) }})
		conn := v.NewConn(lagging{other}, Peer{}, func(s *Stream) { s.HTTP(hello) })
		ended := make(chan time.Time, 1)
		wg.Go(func() {
			conn.Run()
			ended <- time.Now()
			other.Close()
			v.Close()
		})
		c := connect(t, mine)
		wg.Go(func() {
			for {
				f, err := c.ReadFrame()
				if err != nil {
					return
				}
				if p, ok := f.(*theirs.PingFrame); ok {
					go c.WritePing(true, p.Data)
				}
			}
		})
		time.Sleep(time.Second)
		began := time.Now()
		conn.Drain()
		if d := (<-ended).Sub(began); d > drainTimeout {
			t.Errorf("it ended after %v", d)
		}
		mine.Close()
		wg.Wait()
	})
}

// A connection without requests gives its place up, and one with a request does not.
func TestConn_YieldsWhenIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		proceed := make(chan struct{})
		c, conn, done := pipe(t, func(w http.ResponseWriter, r *http.Request) { <-proceed })
		defer done()
		frames := make(chan theirs.Frame, 100)
		go func() {
			defer close(frames)
			for {
				f, err := c.ReadFrame()
				if err != nil {
					return
				}
				frames <- f
			}
		}()
		c.open(1, true, to("a.test")...)
		synctest.Wait()
		if conn.Yield() {
			t.Error("it yields with a request under way")
		}
		close(proceed)
		synctest.Wait()
		began := time.Now()
		if !conn.Yield() {
			t.Error("it does not yield")
		}
		if conn.Yield() {
			t.Error("it yields twice")
		}
		away := false
		for f := range frames {
			if g, ok := f.(*theirs.GoAwayFrame); ok {
				away = g.LastStreamID == 1 && g.ErrCode == theirs.ErrCodeNo
			}
		}
		if d := time.Since(began); !away || d > time.Second {
			t.Errorf("it went after %v, told: %v", d, away)
		}
	})
}

// Who has this side reset streams, or send bytes one by one, and waits each time, pays for it all the same.
func TestConn_WhatIsMadeHappenIsPaidFor(t *testing.T) {
	at := serving(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Host == "large.test" {
			w.Write(make([]byte, 1<<20))
			return
		}
		<-r.Context().Done()
	})
	for name, one := range map[string]func(c *client, id uint32){
		"data behind the end": func(c *client, id uint32) {
			c.open(id, true, to("slow.test")...)
			c.WriteData(id, true, []byte("x"))
		},
		"more than is declared": func(c *client, id uint32) {
			c.open(id, false, append(to("slow.test"), "content-length", "1")...)
			c.WriteData(id, false, []byte("xx"))
		},
		"trailers that are malformed": func(c *client, id uint32) {
			c.open(id, false, to("slow.test")...)
			c.open(id, true, "X", "1")
		},
		"a window beyond": func(c *client, id uint32) {
			c.open(id, true, to("slow.test")...)
			c.WriteWindowUpdate(id, 1<<31-1)
		},
		"a window of a byte": func(c *client, id uint32) {
			if id == 1 {
				c.WriteSettings(theirs.Setting{ID: theirs.SettingInitialWindowSize, Val: 0})
				c.open(1, true, to("large.test")...)
			}
			c.WriteWindowUpdate(1, 1)
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := dial(t, at)
			for i := range uint32(20_000) {
				one(c, 2*i+1)
				for waits := true; waits; {
					f, err := c.ReadFrame()
					if err != nil {
						t.Fatalf("after %d: %v", i, err)
					}
					switch f := f.(type) {
					case *theirs.GoAwayFrame:
						if f.ErrCode != theirs.ErrCodeEnhanceYourCalm {
							t.Errorf("it ends with %v", f.ErrCode)
						}
						return
					case *theirs.RSTStreamFrame, *theirs.DataFrame:
						waits = false
					}
				}
			}
			t.Error("it goes on for ever")
		})
	}
}

// Many answers at once to a client that takes them slowly arrive all, each in its turn.
func TestConn_ManyAnswersWaitForTheirTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const streams = 60
		c, _, done := pipe(t, func(w http.ResponseWriter, r *http.Request) { w.Write(make([]byte, maxFrame)) }, theirs.Setting{ID: theirs.SettingInitialWindowSize, Val: 1 << 30})
		defer done()
		c.WriteWindowUpdate(0, 1<<30)
		go func() {
			for i := range uint32(streams) {
				c.open(2*i+1, true, to("a.test")...)
			}
		}()
		for ended := 0; ended < streams; {
			f, err := c.ReadFrame()
			if err != nil {
				t.Fatalf("after %d: %v", ended, err)
			}
			switch f := f.(type) {
			case *theirs.DataFrame:
				if f.StreamEnded() {
					ended++
				}
				if len(f.Data()) > 0 {
					time.Sleep(3 * time.Second)
				}
			case *theirs.RSTStreamFrame:
				t.Fatalf("%d of %d had ended when %d was given up: %v", ended, streams, f.StreamID, f.ErrCode)
			}
		}
		c.conn.Close()
	})
}

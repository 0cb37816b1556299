package http3

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
)

// Long heads and trailers that were announced and do not come take room of their connection's: few bytes of a client must not
// make this side keep many for it.
func TestConn_WhatIsAnnouncedIsHeld(t *testing.T) {
	const long = 60 << 10
	post := section(":method", "POST", ":scheme", "https", ":authority", "a.test", ":path", "/")
	for name, x := range map[string]struct {
		b    []byte
		want string
	}{
		"heads":    {appendFrame(nil, frameHeaders, long), "stream: 10b"},
		"trailers": {join(post, data("a"), appendFrame(nil, frameHeaders, long)), "stream: 107"},
	} {
		t.Run(name, func(t *testing.T) {
			c := serving(t, hello).dial(t)
			const asked = 60
			ends := make(chan string, asked)
			for range asked {
				s := c.open(x.b, false)
				go func() { ends <- answer(s) }()
			}
			for range asked - headsMost/long - 1 {
				if got := <-ends; got != x.want && got != "stream: 10b" { // a head may find no room for what trailers have taken
					t.Fatalf("got %q, want %s", got, x.want)
				}
			}
		})
	}
}

// Of a body that is longer than was said nobody sees more than was said, also while it streams and has no end yet.
func TestHTTP_NoBodyIsLongerThanItSays(t *testing.T) {
	const said = 6000 // more than is read before anybody is asked
	saw := make(chan int64, 1)
	c := serving(t, func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		if saw <- n; err != nil {
			panic(http.ErrAbortHandler)
		}
	}).dial(t)
	head := section(":method", "POST", ":scheme", "https", ":authority", "a.test", ":path", "/", "content-length", fmt.Sprint(said))
	for _, parts := range [][]int{{said + 1}, {said - 1, 2}, {said, 1}} {
		b := head
		for _, n := range parts {
			b = join(b, data(strings.Repeat("x", n)))
		}
		s := c.open(b, false)
		select {
		case n := <-saw:
			if n > said {
				t.Errorf("%v: %d bytes of a body of %d were seen", parts, n, said)
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("%v: it is read on", parts)
		}
		if got := answer(s); got != "stream: 10e" {
			t.Errorf("%v: got %q", parts, got)
		}
	}
}

// What is between a body and its end may come late: it is read on from where it was, not from its middle.
func TestConn_WhatFollowsABodyMayComeLate(t *testing.T) {
	begun := make(chan struct{}, 1)
	d := serving(t, func(w http.ResponseWriter, r *http.Request) {
		begun <- struct{}{} // whoever reads small bodies has given up
		body, err := io.ReadAll(r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		fmt.Fprintf(w, "%s %s", body, r.Trailer.Get("X"))
	})
	trailer, other := section("x", "late"), []byte{0x21, 4, 0, 1, 'b', 0} // with a frame of a body's in it
	for _, x := range []struct {
		name, want string
		b          []byte
	}{
		{"a trailer", "200 a late", trailer},
		{"a frame of an extension's", "200 a", other},
		{"both", "200 a late", join(other, trailer)},
		{"both, the other way round", "200 a late", join(trailer, other)},
	} {
		c := d.dial(t)
		for cut := 1; cut < len(x.b); cut++ {
			s := c.open(join(section(":method", "POST", ":scheme", "https", ":authority", "a.test", ":path", "/", "content-length", "1"), data("a"), x.b[:cut]), false)
			<-begun
			s.Write(x.b[cut:])
			s.Close()
			if got := answer(s); got != x.want {
				t.Fatalf("%s, of which %d bytes are late: got %q, want %q", x.name, len(x.b)-cut, got, x.want)
			}
		}
	}
}

// Who begins requests and never says one keeps no place from others: the connection goes for another's, and goes as an idle one.
func TestConn_WhoNeverAsksGoes(t *testing.T) {
	for name, goes := range map[string]func(c *Conn){
		"for another": func(c *Conn) {
			if !c.Yield() {
				t.Error("it stays where another needs its place")
			}
		},
		"idle": func(c *Conn) {
			for range 4 {
				c.look()
			}
			c.mu.Lock()
			defer c.mu.Unlock()
			if !c.gone {
				t.Error("it stays as if it asked something")
			}
			c.yields = true // nobody waits ten seconds here for what never comes
		},
	} {
		d := serving(t, hello)
		c := d.dial(t)
		for range 3 {
			c.open([]byte{frameHeaders}, false)
		}
		conn := <-d.conns
		for mute := 0; mute < 3; time.Sleep(time.Millisecond) {
			conn.mu.Lock()
			mute = conn.mute
			conn.mu.Unlock()
		}
		goes(conn)
		select {
		case <-c.Context().Done():
		case <-time.After(time.Minute):
			t.Errorf("%s: it stays", name)
		}
	}
}

// What is said before the answer and finds no room at the client is left out: it holds up nobody, and the answer comes whole.
func TestHTTP_HintsWithoutRoomAreLeftOut(t *testing.T) {
	past := make(chan struct{})
	d := serving(t, func(w http.ResponseWriter, r *http.Request) {
		for range 4 { // each would have 30 s
			w.Header().Set("Link", "<"+strings.Repeat("/x", 200)+">")
			w.WriteHeader(http.StatusEarlyHints)
		}
		w.Header().Del("Link")
		close(past)
		io.WriteString(w, "whole")
	})
	q, err := quic.DialAddr(t.Context(), d.at, d.tls, &quic.Config{InitialStreamReceiveWindow: 128, MaxStreamReceiveWindow: 1 << 10})
	if err != nil {
		t.Fatal(err)
	}
	defer q.CloseWithError(0, "")
	s := client{t, q}.open(section(usual...), true)
	select {
	case <-past:
	case <-time.After(time.Minute):
		t.Fatal("hints hold up the answer")
	}
	if got := answer(s); got != "200 whole" {
		t.Errorf("got %q", got)
	}
}

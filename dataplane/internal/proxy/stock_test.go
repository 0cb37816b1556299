//go:build linux

package proxy

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"bailiwick/dataplane/internal/direct"
	"bailiwick/dataplane/internal/http1"
	"bailiwick/dataplane/internal/loop"
)

type heard func(e loop.Event)

func (h heard) Ready(e loop.Event) { h(e) }

// looping is a loop that runs, for a test.
func looping(t *testing.T) *loop.Loop {
	t.Helper()
	l, err := loop.New(func(time.Time) time.Duration { return 0 })
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- l.Run() }()
	t.Cleanup(func() { l.Close(); <-ended })
	return l
}

// ends are both ends of a TCP connection.
func ends(t *testing.T) (near, far net.Conn) {
	t.Helper()
	at, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer at.Close()
	if near, err = net.Dial("tcp", at.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if far, err = at.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close(); far.Close() })
	far.SetDeadline(time.Now().Add(30 * time.Second))
	return near, far
}

// comes waits until something has come on a connection, or its end.
func comes(t *testing.T, c *loop.Conn) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); c.Quiet(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("nothing comes")
		}
	}
}

// An upstream's idle connections are bounded, go when all are closed, whoever has them, and are not kept with bytes that nobody asked
// for: those of goroutines, and those of loops.
func TestStock_KeepsWhatMayBeKept(t *testing.T) {
	home := &turn{loop: looping(t)}
	for name, whose := range map[string]*turn{"of goroutines": nil, "of a loop": home} {
		t.Run(name, func(t *testing.T) {
			fars := make(chan net.Conn, 1)
			o := &origin{max: 2, dial: func(context.Context) (net.Conn, error) { near, far := ends(t); fars <- far; return near, nil }}
			open := func() *link {
				for len(fars) > 0 {
					<-fars
				}
				l, err := o.open(t.Context(), whose)
				if err != nil {
					t.Fatal(err)
				}
				return l
			}
			closed := func(l *link) bool { return errors.Is(l.conn.SetDeadline(time.Time{}), net.ErrClosed) }
			if whose != nil { // which takes deadlines when it is closed
				closed = func(l *link) bool { return l.lc.Closed() }
			}
			one, two, three, under := open(), open(), open(), open()
			for _, l := range []*link{one, two, three} {
				o.put(l, time.Now())
			}
			if closed(one) || closed(two) || !closed(three) {
				t.Errorf("of three where two may be: closed %v, %v, %v", closed(one), closed(two), closed(three))
			}
			if o.closeIdle(); !closed(one) || !closed(two) {
				t.Errorf("after all were closed: closed %v, %v", closed(one), closed(two))
			}
			if o.put(under, time.Now()); !closed(under) {
				t.Error("one that was under way when all were closed is kept")
			}
			unasked := open()
			copy(unasked.buf, "HTTP")
			unasked.w = 4
			if o.put(unasked, time.Now()); !closed(unasked) {
				t.Error("one with bytes that nobody asked for is kept")
			}
			if whose != nil {
				unread := open()
				(<-fars).Write([]byte("HTTP"))
				comes(t, unread.lc)
				unread.lc.Poll(make([]byte, 1)) // and this is not all
				if o.put(unread, time.Now()); !closed(unread) {
					t.Error("one on which something has come that nobody asked for is kept")
				}
			}
			last := open()
			last.answer.Close = true
			if o.put(last, time.Now()); !closed(last) {
				t.Error("one that its answer ends is kept")
			}
			o.sweep()
			if o.swept {
				t.Error("a sweep is due where nothing is kept")
			}
		})
	}
}

// A connection that another loop does not take, since it has ended, rests where it was: nobody would hear of it else.
func TestLoops_KeepWhatAnotherDoesNotTake(t *testing.T) {
	ended, err := loop.New(func(time.Time) time.Duration { return 0 })
	if err != nil {
		t.Fatal(err)
	}
	ended.Close()
	if err := ended.Run(); err != nil {
		t.Fatal(err)
	}
	from := &turn{loop: looping(t)}
	near, far := ends(t)
	lc, err := from.loop.Adopt(near.(*net.TCPConn), false)
	if err != nil {
		t.Fatal(err)
	}
	defer lc.Close()
	told := make(chan struct{}, 8)
	lc.Owner = heard(func(loop.Event) {
		if n, _ := lc.TryRead(make([]byte, 8)); n > 0 {
			told <- struct{}{}
		}
		lc.Rest()
	})
	for one := make([]byte, 1); !lc.Watch(); lc.Poll(one) {
	}
	for !lc.Claim() {
		time.Sleep(time.Millisecond)
	}
	c := &conn{door: &Door{}, lc: lc, home: from, turn: from}
	from.move(c, &turn{loop: ended})
	if c.home != from || c.turn != from {
		t.Error("it is taken for the other's")
	}
	if !lc.Rests() { // whoever shuts its door, or looks how long it has waited, would not find it
		t.Error("it does not rest")
	}
	far.Write([]byte("x"))
	select {
	case <-told:
	case <-time.After(20 * time.Second):
		t.Error("nobody hears of it")
	}
}

// Nothing is written, by a goroutine either, to a loop's connection on which something has come.
func TestStock_IsLookedAtBeforeItIsAsked(t *testing.T) {
	home, o := &turn{loop: looping(t)}, &origin{max: 4}
	near, far := ends(t)
	l := o.adopt(near, home)
	if l == nil {
		t.Fatal("no loop takes it")
	}
	defer l.conn.Close()
	far.Write([]byte("unasked"))
	comes(t, l.lc)
	if _, err := l.ask([]byte("GET")); err != direct.ErrStale {
		t.Errorf("asked where something has come: %v, want %v", err, direct.ErrStale)
	}
	l.conn.(*loop.Conn).CloseWrite()
	if b, err := io.ReadAll(far); len(b) > 0 || err != nil {
		t.Errorf("%q was written: %v", b, err)
	}
}

// filled is a loop's connection with no room for what is written, which has so many bytes before that.
func filled(t *testing.T) (lc *loop.Conn, far net.Conn, sent int) {
	t.Helper()
	near, far := ends(t)
	lc, err := looping(t).Adopt(near.(*net.TCPConn), false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lc.Close() })
	for block := bytes.Repeat([]byte("."), 64<<10); ; {
		n, err := lc.TryWrite(block)
		if err != nil {
			t.Fatal(err)
		}
		if sent += n; n == 0 {
			return lc, far, sent
		}
	}
}

// An answer that a client does not take at once is written on by a goroutine, whatever becomes of the loop's buffer, and ends the
// connection where it is the last.
func TestLoops_WhatFindsNoRoomIsWrittenOn(t *testing.T) {
	for _, secure := range []bool{false, true} {
		for _, last := range []bool{false, true} {
			lc, far, sent := filled(t)
			c := &conn{raw: lc, rwc: lc, lc: lc, turn: &turn{}, last: last}
			if secure { // what TLS writes goes the same way
				c.under = &under{Conn: lc, c: c}
				c.rwc = c.under
			}
			n := 0
			for ; c.turn.then == nil && n < 1<<20; n++ { // what is on its way makes room for some
				b := []byte("an answer")
				if !c.tryWrite(b) {
					t.Fatalf("over TLS %v: it is given up", secure)
				}
				clear(b)
			}
			if c.turn.then == nil {
				t.Fatalf("over TLS %v: nobody goes on", secure)
			}
			then := c.turn.then
			c.turn = nil
			got := make(chan string, 1)
			go func() {
				io.ReadFull(far, make([]byte, sent))
				b, _ := io.ReadAll(far)
				got <- string(b)
			}()
			if keep := then(); keep == last {
				t.Errorf("the last: %v, and the connection goes on: %v", last, keep)
			}
			lc.CloseWrite()
			if s := <-got; s != strings.Repeat("an answer", n) {
				t.Errorf("over TLS %v: got %d bytes of %d answers: …%q", secure, len(s), n, s[max(0, len(s)-20):])
			}
		}
	}
}

// What TLS writes for a loop and finds no room is owed in its order, and goes out before whatever a goroutine writes; a read that
// takes all it had room for says so, since nobody is told again of what it has left.
func TestUnder_OwesInOrder(t *testing.T) {
	lc, far, sent := filled(t)
	c := &conn{raw: lc, lc: lc, turn: &turn{}}
	u := &under{Conn: lc, c: c}
	c.under = u
	write := func(s string) {
		t.Helper()
		if n, err := u.Write([]byte(s)); n != len(s) || err != nil {
			t.Fatalf("wrote %d of %q: %v", n, s, err)
		}
	}
	n := 0
	for ; len(u.owed) == 0 && n < 1<<20; n++ { // what is on its way makes room for some
		write("first, ")
	}
	if len(u.owed) == 0 || !strings.HasSuffix("first, ", string(u.owed)) {
		t.Fatalf("owed %q", u.owed)
	}
	io.ReadFull(far, make([]byte, sent)) // there is room again
	write("second, ")
	got := make(chan string, 1)
	go func() {
		b, _ := io.ReadAll(far)
		got <- string(b)
	}()
	c.turn = nil // a goroutine has it
	write("third, ")
	c.turn = &turn{}
	u.owed = []byte("fourth, ")
	c.turn = nil
	if !c.flush() || len(u.owed) > 0 || c.wuntil.IsZero() {
		t.Errorf("%q are owed behind a flush, with the deadline %v", u.owed, c.wuntil)
	}
	write("last")
	lc.CloseWrite()
	if <-got != strings.Repeat("first, ", n)+"second, third, fourth, last" {
		t.Error("what came is not what was written")
	}

	near, far := ends(t)
	lc, err := looping(t).Adopt(near.(*net.TCPConn), false)
	if err != nil {
		t.Fatal(err)
	}
	defer lc.Close()
	c = &conn{raw: lc, lc: lc, turn: &turn{}}
	u = &under{Conn: lc, c: c}
	far.Write([]byte("0123456789"))
	comes(t, lc)
	b := make([]byte, 6)
	for _, want := range []struct {
		n    int
		full bool
		err  error
	}{{6, true, nil}, {4, false, nil}, {0, false, errNothing}} {
		if n, err := u.Read(b); n != want.n || u.full != want.full || err != want.err {
			t.Errorf("read %d, all there was room for: %v, %v; want %+v", n, u.full, err, want)
		}
	}
}

// A connection on which an answer was read is used again when it has been heard what came behind that, not before.
func TestStock_WaitsForARound(t *testing.T) {
	near, far := ends(t)
	home, o := &turn{loop: looping(t)}, &origin{max: 4}
	link := o.adopt(near, home)
	if link == nil {
		t.Fatal("no loop takes it")
	}
	defer link.conn.Close()
	took := make(chan *struct{ same, next bool }, 1)
	var got struct{ same, next bool }
	rounds := 0
	link.lc.Owner = heard(func(e loop.Event) {
		if e&loop.In == 0 {
			link.lc.Rest()
			return
		}
		link.conn.(*loop.Conn).TryRead(make([]byte, 8))
		if rounds++; rounds == 1 {
			o.put(link, time.Now())
			got.same = o.take(home) != nil
			far.Write([]byte("b"))
			return
		}
		link.lc.Rest()
		got.next = o.take(home) == link
		took <- &got
	})
	for one := make([]byte, 1); !link.lc.Watch(); link.lc.Poll(one) {
	}
	far.Write([]byte("a"))
	if r := <-took; r.same || !r.next {
		t.Errorf("taken in the same round: %v, in the next: %v", r.same, r.next)
	}
}

// One that its loop has in hand when all idle ones are closed is not asked any more, though nobody could take it then.
func TestStock_AsksNothingFromBeforeAllWereClosed(t *testing.T) {
	near, far := ends(t)
	home, o := &turn{loop: looping(t)}, &origin{max: 4}
	link := o.adopt(near, home)
	if link == nil {
		t.Fatal("no loop takes it")
	}
	defer link.conn.Close()
	got := make(chan *struct{ closed, asked bool }, 1)
	rounds := 0
	link.lc.Owner = heard(func(e loop.Event) {
		if e&loop.In == 0 {
			link.lc.Rest()
			return
		}
		link.conn.(*loop.Conn).TryRead(make([]byte, 8))
		if rounds++; rounds == 1 {
			o.put(link, time.Now())
			far.Write([]byte("b"))
			return
		}
		o.closeIdle()
		was := link.lc.Closed()
		link.lc.Rest()
		got <- &struct{ closed, asked bool }{was, o.take(home) != nil}
	})
	for one := make([]byte, 1); !link.lc.Watch(); link.lc.Poll(one) {
	}
	far.Write([]byte("a"))
	if r := <-got; r.closed || r.asked || !link.lc.Closed() {
		t.Errorf("closed in its loop's hand: %v; asked again: %v; closed then: %v", r.closed, r.asked, link.lc.Closed())
	}
}

// A loop that fails between taking a connection and the door's knowing of it leaves nobody waiting for ever.
func TestDoor_ALoopFailsBeforeItsConnectionIsKnown(t *testing.T) {
	d := NewServers(ServersConfig{Handler: &Proxy{}, TLS: &tls.Config{}, Logger: slog.New(slog.DiscardHandler)}).HTTP
	at, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer at.Close()
	client, err := net.Dial("tcp", at.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	raw, err := at.Accept()
	if err != nil {
		t.Fatal(err)
	}
	adopted, lc, home := d.adopt(raw)
	if lc == nil {
		t.Fatal("no loop takes it")
	}
	for _, other := range d.turns {
		other.loop.Close() // its Run ends
	}
	d.wg.Wait()
	d.unloop(home)
	d.admit(adopted, lc, home)
	client.SetReadDeadline(time.Now().Add(time.Minute))
	if n, err := client.Read(make([]byte, 1)); n != 0 || isTimeout(err) {
		t.Errorf("a connection of a loop that failed is held: %v", err)
	}
	if len(d.conns) != 0 || d.guests.total != 0 {
		t.Errorf("%d connections are known, and %d guests", len(d.conns), d.guests.total)
	}
}

// A bound on interim answers holds however the reading of a head is cut.
func TestLink_BoundsInterimAnswers(t *testing.T) {
	l := &link{buf: make([]byte, linkBuffer), still: true} // nothing more comes than what is put there
	for n := 1; n <= interims+1; n++ {
		l.w += copy(l.buf[l.w:], "HTTP/1.1 102 Processing\r\n\r\n")
		want := http1.ErrWait
		if n > interims {
			want = errInterims
		}
		if err := l.head("GET"); err != want {
			t.Errorf("interim answer %d: got %v, want %v", n, err, want)
		}
	}
}

//go:build linux

package proxy

import (
	"crypto/tls"
	"log/slog"
	"net"
	"testing"
	"time"

	"bailiwick/dataplane/internal/http1"
	"bailiwick/dataplane/internal/loop"
)

type heard func(e loop.Event)

func (h heard) Ready(e loop.Event) { h(e) }

// A connection on which an answer was read is used again when it has been heard what came behind that, not before.
func TestStock_WaitsForARound(t *testing.T) {
	l, err := loop.New(func(time.Time) time.Duration { return 0 })
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- l.Run() }()
	defer func() { l.Close(); <-ended }()
	at, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer at.Close()
	near, err := net.Dial("tcp", at.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	far, err := at.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	home, o := &turn{loop: l}, &origin{max: 4}
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

package proxy

import (
	"net"
	"testing"
	"time"

	"bailiwick/dataplane/internal/http1"
)

// What takes an answer back after its last byte has left, and before anybody knows that it is over, does not take away the next
// one on the connection: the deadline that ends whoever waits is not the next answer's.
func TestFlow_TheNextAnswerHasItsOwnTime(t *testing.T) {
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	c := &conn{rwc: near, wuntil: time.Now().Add(sendTimeout * 5 / 6), req: http1.Request{Minor: 1}}
	k := &work{from: c}
	k.call.p = &Proxy{counts: newCounts()}
	c.active = &k.call
	f := &flow{begun: true}
	f.over = func() { // the cut was waited for
		f.taken.Store(true)
		c.stop()
	}
	if !k.flown(f) {
		t.Fatal("the connection ends")
	}
	go far.Read(make([]byte, 16))
	if !c.write([]byte("next"), time.Now()) {
		t.Error("the next answer was not written")
	}
}

package handover_test

import (
	"net"
	"testing"

	"bailiwick/dataplane/internal/handover"
)

// What is asked before there is no way back: an address that could not be listened at is found out, one that the process before
// holds, as this very socket or otherwise, is none.
func TestSockets_CheckFindsWhatCannotBeListenedAt(t *testing.T) {
	dir := t.TempDir()
	var first, second handover.Sockets
	l, err := first.Listen("https", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	u, err := first.ListenPacket("h3", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	offer(t, t.Context(), dir, &first)
	ask(t, dir, &second)
	defer second.Forget()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	for _, c := range []struct {
		network, name, address string
		ok                     bool
	}{
		{"tcp", "https", l.Addr().String(), true}, {"udp", "h3", l.Addr().String(), true}, {"tcp", "admin", l.Addr().String(), true}, {"tcp", "https", ":" + port, true},
		{"tcp", "admin", "127.0.0.1:0", true}, {"udp", "dns-udp", "127.0.0.1:0", true},
		{"tcp", "https", "192.0.2.1:" + port, false}, {"udp", "h3", "192.0.2.1:" + port, false}, {"tcp", "admin", "127.0.0.1", false}, {"tcp", "admin", "127.0.0.1:no", false},
	} {
		if err := second.Check(c.network, c.name, c.address); (err == nil) != c.ok {
			t.Errorf("%s at %s over %s: %v, want it possible %v", c.name, c.address, c.network, err, c.ok)
		}
	}
	again, err := second.Listen("https", l.Addr().String())
	if err != nil {
		t.Fatalf("it was taken by looking: %v", err)
	}
	again.Close()
}

package upstream_test

import (
	"net"
	"testing"

	"golang.org/x/sys/unix"

	"bailiwick/dataplane/internal/upstream"
)

// A host that is gone with requests on its connection is found by the kernel where HTTP/2's PINGs are few: to keep a connection
// alive it asks only while nothing is on its way.
func TestDialer_QuitsWhoTakesNothing(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := upstream.NewDialer(upstream.Config{Allow: upstream.Loopback()}).DialHTTP2(t.Context(), upstream.Place{Base: "http://" + l.Addr().String(), Protocol: "h2c"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) {
		if ms, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT); err != nil || ms != 60_000 {
			t.Errorf("got %d ms, %v, want a minute", ms, err)
		}
	})
}

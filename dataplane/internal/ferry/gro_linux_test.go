package ferry_test

import (
	"testing"

	"golang.org/x/sys/unix"
)

// A packet that is read is one packet: QUIC does not have the system put several of one sender together (UDP_GRO), whose marks could
// differ. If a version of it does, sift has to take them apart.
func TestQUIC_ReadsPacketsOneByOne(t *testing.T) {
	one, _ := two(t, "127.0.0.1:0")
	serve(t, "before", one, false, nil)
	raw, err := one.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var on int
	if cerr := raw.Control(func(fd uintptr) { on, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_GRO) }); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
	if on != 0 {
		t.Error("UDP_GRO is on")
	}
}

package upstream

import (
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// quit has the kernel end a connection whose peer takes none of what was sent for so long, instead of after a quarter of an hour.
func quit(conn net.Conn, after time.Duration) {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return
	}
	raw.Control(func(fd uintptr) { // best effort: who cannot have it waits
		unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(after.Milliseconds()))
	})
}

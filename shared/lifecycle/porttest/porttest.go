// Package porttest owns ports of loopback that a test may close and open again: a server that is killed and comes
// back, a port for TCP and UDP, one that surely nobody listens on. Port 0 gives none of these: once it is closed, the
// system may give it to anybody's next connection.
//
// It is for tests only. Each process takes blocks of its own, which it holds by listening on their first port, so
// nothing survives it. Everything may be called at once.
package porttest

import (
	"fmt"
	"net"
	"os"
	"sync"
)

// T is of testing.TB what is needed here.
type T interface {
	Helper()
	Fatalf(format string, args ...any)
	Cleanup(func())
}

// first to last lie above the ports that Linux gives to connections (32768 to 60999) and above those of sandboxes.
const (
	first = 61_000
	last  = 65_499
	block = 100
)

// mu covers what this process holds.
var (
	mu    sync.Mutex
	held  []net.Listener // the first port of each block
	free  []int          // the one that was given back last comes last
	tries int
)

// Addr is "127.0.0.1:port", free in TCP and UDP, and nobody else's until the test ends.
func Addr(t T) string {
	t.Helper()
	mu.Lock()
	defer mu.Unlock()
	for {
		for range len(free) {
			port := free[0]
			free = free[1:]
			addr := fmt.Sprintf("127.0.0.1:%d", port)
			if !isFree(addr) {
				free = append(free, port)
				continue
			}
			t.Cleanup(func() {
				mu.Lock()
				defer mu.Unlock()
				free = append(free, port)
			})
			return addr
		}
		if !take() {
			t.Fatalf("no port of %d to %d is free", first, last)
			return ""
		}
	}
}

// isFree also tells of a process that knows nothing of blocks.
func isFree(addr string) bool {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return false
	}
	defer l.Close()
	u, err := net.ListenPacket("udp", addr)
	if err != nil {
		return false
	}
	u.Close()
	return true
}

// take adds a block, of which each process begins at another one.
func take() bool {
	const blocks = (last + 1 - first) / block
	for ; tries < blocks; tries++ {
		base := first + (os.Getpid()+tries)%blocks*block
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", base))
		if err != nil {
			continue
		}
		tries++
		held = append(held, l)
		for port := base + 1; port < base+block; port++ {
			free = append(free, port)
		}
		return true
	}
	return false
}

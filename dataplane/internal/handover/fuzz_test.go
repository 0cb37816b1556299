package handover_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bailiwick/dataplane/internal/handover"
)

// Whatever a process says that has an edge's socket: it is a predecessor by the letter, or an error, and no descriptor is left.
func FuzzAsk(f *testing.F) {
	f.Add([]byte(`{"version":1,"program":"p","sockets":["https"]}`+"\n"), uint8(1))
	f.Add([]byte(`{"version":1,"sockets":[]}`), uint8(2))
	f.Add([]byte(`{"version":2}`), uint8(0))
	f.Add([]byte("{"), uint8(3))
	f.Fuzz(func(t *testing.T, said []byte, files uint8) {
		if len(said) == 0 || len(said) > 4<<10 {
			return
		}
		n := int(files % 4)
		dir, err := os.MkdirTemp("", "h")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "successor"), Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		before := descriptors(t)
		done := make(chan struct{})
		go func() {
			defer close(done)
			c, err := l.AcceptUnix()
			if err != nil {
				return
			}
			defer c.Close()
			var fds []int
			for range n {
				fds = append(fds, int(os.Stdin.Fd()))
			}
			c.WriteMsgUnix(said, unix.UnixRights(fds...), nil)
		}()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		var s handover.Sockets
		p, err := handover.Ask(ctx, dir, &s)
		<-done
		if err == nil {
			if p == nil {
				t.Fatal("there is a process, and Ask finds none")
			}
			p.Succeed(ctx, time.Second) // it is gone: nothing is waited for
			s.Forget()
		}
		if after := descriptors(t); after > before { // fewer: of other tests, which the collector closed
			t.Fatalf("%q with %d files: %d descriptors before, %d after", said, n, before, after)
		}
	})
}

func descriptors(t *testing.T) int {
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip("no /proc here")
	}
	return len(all)
}

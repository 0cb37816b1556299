package proxy_test

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"bailiwick/dataplane/internal/proxy"
)

func TestReplay_IsWipedAndGivesNothingMore(t *testing.T) {
	var room atomic.Int64
	data := []byte("CANARY-of-a-body")
	r, wipe := proxy.Kept(data, &room)
	got := make([]byte, 6)
	if _, err := io.ReadFull(r, got); err != nil || string(got) != "CANARY" || room.Load() != 16 {
		t.Fatalf("got %q, %v and %d bytes held", got, err, room.Load())
	}
	wipe()
	wipe()
	if !bytes.Equal(data, make([]byte, len(data))) || room.Load() != 0 {
		t.Errorf("after the wipe: %q in memory, %d bytes held, want zeros and none", data, room.Load())
	}
	if n, err := r.Read(got); n != 0 || err == nil || err == io.EOF {
		t.Errorf("a transport that reads on: got %d bytes and %v, want an error; zeros would be sent as the body", n, err)
	}
}

// However a request ends, nothing of its body stays.
func TestReplay_EndsWithTheRequest(t *testing.T) {
	w := newWorld(t, nil)
	arrived, leave := make(chan struct{}), make(chan struct{})
	w.west.up.does(func(rw http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		arrived <- struct{}{}
		<-leave
	})
	done := make(chan answer, 1)
	go func() { done <- w.send("POST", "/v1/x", strings.Repeat("x", 1000)) }()
	<-arrived
	if n := w.west.proxy.ReplayBytes(); n != 1000 {
		t.Errorf("under way: got %d bytes kept, want 1000", n)
	}
	close(leave)
	<-done
	eventually(t, 5*time.Second, "nothing is kept", func() bool { return w.west.proxy.ReplayBytes() == 0 })
	w.west.up.kill()
	w.central.up.kill()
	for range 3 {
		w.send("POST", "/v1/x", strings.Repeat("x", 1000)) // refused: nobody is well
	}
	eventually(t, 5*time.Second, "nothing is kept of what was refused", func() bool { return w.west.proxy.ReplayBytes() == 0 })
}

package proxy

import (
	"errors"
	"sync/atomic"
	"testing"

	"bailiwick/dataplane/internal/websocket"
)

// Whoever watches over a connection may be held up; what is told to end passes nothing all the same.
func TestTab_LetsNothingPassOnceTold(t *testing.T) {
	var told atomic.Pointer[websocket.Order]
	b := &tab{told: &told}
	if err := b.Spend(true, 1, 5); err != nil {
		t.Fatal(err)
	}
	told.Store(&websocket.Order{Code: websocket.ClosePolicy, Reason: "the key was revoked"})
	var o *websocket.Order
	if err := b.Spend(false, 1, 5); !errors.As(err, &o) || o.Code != websocket.ClosePolicy || b.in != 5 || b.out != 0 {
		t.Errorf("%v; %d bytes up and %d down, want 5 and 0", err, b.in, b.out)
	}
}

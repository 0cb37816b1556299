package websocket_test

import (
	"testing"
	"testing/synctest"
	"time"

	"bailiwick/dataplane/internal/websocket"
)

// A side that takes not even the question whether it lives keeps nobody from ending the connection.
func TestJoin_IsNotHeldByWhoItAsks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := join(t, websocket.Config{Ping: 10 * time.Second, Idle: time.Hour})
		go hear(j.upstream, true)
		time.Sleep(15 * time.Second) // the client reads nothing, and is asked by now
		began := time.Now()
		j.orders <- websocket.Order{Code: websocket.ClosePolicy, Reason: "the key was revoked"}
		<-j.end
		if took := time.Since(began); took > 40*time.Second {
			t.Errorf("it ended after %v", took)
		}
	})
}

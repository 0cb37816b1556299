package proxy_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"bailiwick/dataplane/internal/proxy"
	reach "bailiwick/dataplane/internal/upstream"
)

// Addresses of a name come and go. What a late request or probe makes anew of one that went does not stay for ever.
func TestUpstreams_PlacesThatWentLeaveNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := proxy.NewUpstreams(proxy.UpstreamConfig{Dialer: reach.NewDialer(reach.Config{})})
		held := 0
		for i := range 10_000 {
			at := reach.Place{Base: fmt.Sprint("http://u", i, ".test")}
			held = max(held, u.Pools(at))
			u.Left(at)
			u.Pools(at) // somebody who was on his way
			time.Sleep(5 * time.Second)
		}
		if held > 300 { // ten minutes of them, each a pool and a note
			t.Errorf("%d pools and notes were held for one target at a time", held)
		}
		time.Sleep(11 * time.Minute)
		if n := u.Pools(reach.Place{Base: "http://stays.test"}); n != 1 {
			t.Errorf("%d are held in the end, want the one that is in use", n)
		}
	})
}

// What a loop remembers of connections to an upstream is forgotten when they are.
func TestUpstreams_ALoopForgetsWhatWasDropped(t *testing.T) {
	u := proxy.NewUpstreams(proxy.UpstreamConfig{Dialer: reach.NewDialer(reach.Config{})})
	if same, stale := u.FoundByALoop(reach.Place{Base: "http://u.test"}); !same || stale {
		t.Errorf("found again: %v; found although it was dropped: %v", same, stale)
	}
}

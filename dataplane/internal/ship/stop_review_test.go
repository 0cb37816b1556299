package ship_test

import (
	"context"
	"net/http"
	"testing"
	"time"

	"bailiwick/dataplane/internal/ship"
	"bailiwick/dataplane/internal/spool"
)

// An edge that is stopped in order leaves nothing behind: what its spool sealed last, and up to when it is
// complete, reach the ledger before the shipper ends. Else removing the edge afterwards loses it.
func TestShipper_StopTakesTheLastBlockAlong(t *testing.T) {
	p, led := newPKI(t), newLedger()
	n := newNode(t, p, led, true, true)
	s, err := spool.Open(spool.Config{Dir: t.TempDir(), Edge: edge, SegmentBytes: 64 << 10, SealEvery: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	spoolCtx, stopSpool := context.WithCancel(t.Context())
	spoolDone := make(chan error, 1)
	go func() { spoolDone <- s.Run(spoolCtx) }()
	tr := &http.Transport{TLSClientConfig: p.client, ForceAttemptHTTP2: true}
	defer tr.CloseIdleConnections()
	f, err := ship.New(ship.Config{Spool: s, Addrs: func() []string { return []string{n.addr} }, QUICTLS: p.quic, HTTPClient: &http.Client{Transport: tr}, Heartbeat: time.Hour, Drain: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	eventually(t, "a session", func() bool { return f.Stats().Transport != "" })
	add(t, s, "acme", 3)
	stopSpool()
	if err := <-spoolDone; err != nil {
		t.Fatal(err)
	}
	last := s.SealedThrough()
	stop()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got := led.rows("acme"); got != 3 {
		t.Errorf("the ledger has %d requests, want 3", got)
	}
	if got := led.through(last.Epoch); !got.Equal(last.At) {
		t.Errorf("the ledger was told %v, want %v", got, last.At)
	}
	if n := s.Stats().Unacked; n != 0 {
		t.Errorf("%d blocks wait, want none", n)
	}
}

// An edge that was withdrawn and is in the registry again brings its usage without a restart.
func TestShipper_WithdrawnAsksAgainLater(t *testing.T) {
	p, led := newPKI(t), newLedger()
	n := newNode(t, p, led, true, true)
	n.withdrawn.Store(true)
	s := openSpool(t, t.TempDir())
	addBlocks(t, s, "acme", 2)
	f := start(t, s, p, n.addr) // asks again after 300 ms
	eventually(t, "withdrawal", func() bool { return f.ship.Stats().Withdrawn })
	n.withdrawn.Store(false)
	eventually(t, "usage of an edge that joined again", func() bool { return led.rows("acme") == 2 && !f.ship.Stats().Withdrawn })
}

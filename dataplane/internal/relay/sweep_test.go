package relay_test

import (
	"io"
	"testing"
	"time"

	"bailiwick/dataplane/internal/failover"
	"bailiwick/shared/table"
)

// A sweep may have a relay in hand that ends by itself before it is cut. The response of a handler that has returned
// must not be touched: that would end the whole process.
func TestServer_ASweepMeetsARelayThatHasEnded(t *testing.T) {
	b := newBorder(t)
	b.local.wait = make(chan struct{})
	resp, err := b.do(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	cuts := b.server.Cuts()
	if len(cuts) != 1 {
		t.Fatalf("%d relays under way, want 1", len(cuts))
	}
	close(b.local.wait)
	io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	eventually(t, 5*time.Second, "the relay's end", func() bool { return b.server.InFlight() == 0 })
	time.Sleep(50 * time.Millisecond) // the library takes the response back after that
	cuts[0]()
	b.local.wait = nil
	if resp, err = b.do(t.Context(), nil); err != nil {
		t.Fatalf("the next: %v", err)
	}
	resp.Body.Close()
}

// A pair opens while a sweep is under way. The relay that begins by the newer table is not judged by the older one.
func TestRelay_ASweepLeavesWhatANewerTablePermits(t *testing.T) {
	b := newBorder(t)
	west, central := b.west.Load(), b.central.Load()
	held, err := failover.Verify(central, sign(t, emeaKey, b.grant()))
	if err != nil {
		t.Fatal(err)
	}
	b.west.Swap(view(t, "eu-west", nil, nil))
	b.central.Swap(view(t, "eu-central", nil, []table.Node{westNode}))
	if b.client.Amid(west.API("orders.test"), "eu-central", b.centre.Name().Node, func() { b.west.Swap(west) }) {
		t.Error("the sender cut it")
	}
	if b.server.Amid(central.API("orders.test"), b.westEdge.Name(), held, func() { b.central.Swap(central) }) {
		t.Error("the receiver cut it")
	}
}

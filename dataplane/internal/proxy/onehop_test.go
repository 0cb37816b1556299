package proxy_test

import "testing"

// Invariant 4: with both regions' upstreams dead and pairs in both directions, the region that took a relay
// answers for itself. It does not send the request on, not even back to where it came from.
func TestRelayed_IsNeverRelayedAgain(t *testing.T) {
	w := newWorld(t, nil)
	w.west.up.kill()
	w.central.up.kill()
	for range 5 {
		if a := w.send("GET", "/v1/x", ""); a.status != 503 && a.status != 502 {
			t.Errorf("got %d, want 502 or 503", a.status)
		}
	}
	if n := w.west.evidence.n.Load(); n == 0 {
		t.Error("the home region relayed nothing: the test shows nothing")
	}
	if n := w.central.evidence.n.Load(); n != 0 {
		t.Errorf("the receiving region relayed %d times", n)
	}
}

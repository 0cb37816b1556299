package peer_test

import (
	"strings"
	"testing"

	"bailiwick/controlplane/internal/peer"
	"bailiwick/shared/fault"
	"bailiwick/shared/identity"
)

// Whom the registry refuses may reach the RPCs to be told so, if Farewell says it, and no group ever.
func TestMux_Farewell(t *testing.T) {
	w := newWorld(t)
	a := w.start(t, "emea", "emea-1", nil)
	c := w.start(t, "us", "us-1", nil)
	b := w.start(t, "emea", "emea-2", func(cfg *peer.Config) {
		cfg.Farewell = func(n identity.Name) error {
			if n.Zone == "emea" {
				return nil
			}
			return fault.New(fault.Denied, "FOREIGN_ZONE", "not of this zone")
		}
	})
	from, to := a.Stream("store/emea", nil), b.Stream("store/emea", nil)
	defer from.Close()
	defer to.Close()
	w.reg.withdraw("emea-1")
	w.reg.withdraw("us-1")
	if got, err := get(t, a.Client("emea-2"), peer.URL("emea-2")); err != nil || !strings.HasSuffix(got, "emea-1") {
		t.Errorf("RPC of one who is to be told: got %q, %v, want answered", got, err)
	}
	if _, err := get(t, c.Client("emea-2"), peer.URL("emea-2")); err == nil {
		t.Error("RPC of another zone's: got an answer, want refused")
	}
	refused := b.Refused()
	if conn, err := from.Dial(t.Context(), "emea-2"); err == nil {
		// The refusal of a client certificate arrives with the first read.
		if _, err := conn.Read(make([]byte, 1)); err == nil {
			t.Error("group: got a byte, want refused")
		}
		conn.Close()
	}
	eventually(t, "group: the withdrawn node is refused", func() bool { return b.Refused() > refused }) // counted after it was told
}

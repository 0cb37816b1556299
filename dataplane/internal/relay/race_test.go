package relay_test

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"bailiwick/dataplane/internal/policy"
	"bailiwick/dataplane/internal/relay"
	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"
	"bailiwick/shared/fault"
	"bailiwick/shared/identity"
	"bailiwick/shared/table"
)

// Between the first question and the first byte lie a dial and an fsync. What ends meanwhile, the pair or the
// grant, ends the attempt.
func TestClient_AsksAgainAfterTheEvidence(t *testing.T) {
	for _, c := range []struct {
		name string
		turn func(b *border)
		rule string
	}{
		{"the pair is closed", func(b *border) {
			// The receiver has not heard of it: this end alone must hold.
			b.west.Swap(view(b.t, "eu-west", nil, nil))
		}, relay.RulePair},
		{"the grants are denied", func(b *border) {
			b.mu.Lock()
			b.deny = fault.New(fault.Denied, "WITHDRAWN", "withdrawn")
			b.mu.Unlock()
			b.west.Swap(view(b.t, "eu-west", []string{"eu-west>eu-central", "eu-west>eu-south"}, nil)) // asked anew at once
			eventually(b.t, 5*time.Second, "no grant", func() bool { return len(b.grants.Held()) == 0 })
		}, relay.RuleNoGrant},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBorder(t)
			b.evidence.turn = func() { c.turn(b) }
			if _, err := b.do(context.Background(), nil); rule(err) != c.rule || b.local.count() != 0 {
				t.Errorf("got %v and %d served, want rule %s and none", err, b.local.count(), c.rule)
			}
			// And from the start, for whoever comes later.
			if _, err := b.do(context.Background(), nil); rule(err) != c.rule || b.local.count() != 0 {
				t.Errorf("the next: got %v and %d served, want rule %s and none", err, b.local.count(), c.rule)
			}
		})
	}
}

// The table says in which zone the pair ends. A peer of the same name and region under another zone's
// certificate is a stranger.
func TestClient_PeerOfAnotherZoneIsNoPeer(t *testing.T) {
	b := newBorder(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	tables := &policy.Holder{}
	tables.Swap(view(t, "eu-central", []string{"eu-west>eu-central"}, []table.Node{westNode}))
	impostor, err := relay.NewServer(relay.ServerConfig{Identity: b.in.Source(t, "us", "eu-central", identity.Edge, "eu-central-edge-1"), Tables: tables, Leave: b, Local: b.local, Evidence: &evidence{}, Sentinel: b.arrivals, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { impostor.Serve(ctx, l) })
	defer wg.Wait()
	defer cancel()
	b.mu.Lock()
	b.mint = func() []*syncv1.SignedGrant {
		g := b.grant()
		g.Peers = []*syncv1.Peer{{Edge: "eu-central-edge-1", RelayAddr: l.Addr().String()}}
		return []*syncv1.SignedGrant{sign(t, emeaKey, g)}
	}
	b.mu.Unlock()
	b.west.Swap(view(t, "eu-west", []string{"eu-west>eu-central", "eu-west>eu-south"}, nil)) // asked anew at once
	eventually(t, 5*time.Second, "the grant that names the impostor", func() bool {
		held := b.grants.Held()
		return len(held) > 0 && b.grants.Live(b.west.Load(), "gdpr", "eu-central").Peers[0].Addr == l.Addr().String()
	})
	if resp, err := b.do(t.Context(), nil); err == nil {
		resp.Body.Close()
		t.Error("relayed to a peer of another zone")
	}
	if n := b.local.count(); n != 0 {
		t.Errorf("%d requests reached the impostor", n)
	}
}

// The receiver asks its own table, whatever grant it is shown: not the peer's, and not the other direction.
func TestServer_WithoutThePairRefuses(t *testing.T) {
	b := newBorder(t)
	b.central.Swap(view(t, "eu-central", []string{"eu-north>eu-central", "eu-central>eu-west"}, []table.Node{westNode}))
	b.server.Enforce()
	w := b.arrives(t, shown(t, "eu-west", sign(t, emeaKey, b.grant())))
	if got := w.Header().Get(relay.HeaderRefused); got != relay.RulePair || b.local.count() != 0 {
		t.Errorf("refused by %q, %d served, want %s and none", got, b.local.count(), relay.RulePair)
	}
}

// shown is what a sender says of itself in headers.
func shown(t *testing.T, home string, g *syncv1.SignedGrant) http.Header {
	t.Helper()
	data, err := proto.Marshal(g)
	if err != nil {
		t.Fatal(err)
	}
	return http.Header{relay.HeaderAPI: {"orders"}, relay.HeaderHome: {home}, relay.HeaderGrant: {b64(data)}}
}

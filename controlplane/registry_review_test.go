package controlplane

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"bailiwick/controlplane/internal/adminapi/apitest"
	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
	"bailiwick/controlplane/internal/peer"
	"bailiwick/controlplane/internal/pki"
	"bailiwick/proto/gen/bailiwick/join/v1/joinv1connect"
	"bailiwick/proto/gen/bailiwick/peer/v1/peerv1connect"
	"bailiwick/proto/gen/bailiwick/sync/v1/syncv1connect"
	"bailiwick/shared/fault"
	"bailiwick/shared/identity"
)

// Raft dials its members from the moment that the catalog opens, while the stores behind it are still being
// replayed: a handshake then must be refused, and not end the process.
func TestAllow_BeforeTheCatalogIsOpen(t *testing.T) {
	n := &Node{}
	name := identity.Name{Zone: "emea", Installation: "test.example", Region: "eu-west", Kind: identity.Control, Node: "emea-2"}
	if err := n.allow(name); fault.KindOf(err) != fault.Unavailable {
		t.Errorf("got %v, want unavailable", err)
	}
	if at := n.since(name); !at.IsZero() {
		t.Errorf("since: got %v, want zero", at)
	}
}

// endless is a watch that ends when the test says so.
type endless struct {
	group.Store
	watches int
}

func (s *endless) Watch(from uint64, prefix string) (group.Watch, error) {
	s.watches++
	return ended{}, nil
}

type ended struct{ group.Watch }

func (ended) Next(context.Context) ([]group.Event, group.Revision, error) {
	return nil, group.Revision{}, errors.New("compacted")
}
func (ended) Close() {}

// A watch that fell behind starts over. A node withdrawn in between is in no watch: it must be found by looking
// at the registry once the new watch stands, or its connections live on for days.
func TestWatchRegistry_LooksAgainOnceItStands(t *testing.T) {
	s := &endless{Store: apitest.NewStore("catalog")}
	looked := 0
	recheck := func() {
		looked++
		if s.watches != looked {
			t.Errorf("look %d: %d watches stand, want it after the watch began", looked, s.watches)
		}
	}
	for range 2 {
		if err := watchRegistry(t.Context(), s, recheck, func(group.Event) {}); err == nil {
			t.Error("the watch ended without an error")
		}
	}
	if looked != 2 {
		t.Errorf("looked %d times, want once for each watch", looked)
	}
}

// An edge that was withdrawn while it was away must be able to ask, or it serves revoked keys from its disk for
// ever; and it must be able to ask for nothing else.
func TestRegisteredOnly(t *testing.T) {
	catalog := apitest.NewStore("catalog")
	catalog.Put(model.PrefixNode+"emea-1", model.Encode(model.Node{Name: "emea-1", Kind: identity.Control, Region: "eu-west", Zone: "emea"}))
	catalog.Put(model.PrefixNode+"e1", model.Encode(model.Node{Name: "e1", Kind: identity.Edge, Region: "eu-west", Zone: "emea"}))
	n := &Node{}
	n.registry.Store(&pki.Registry{Catalog: catalog, Installation: &pki.Installation{}})
	h := n.registeredOnly(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) }))
	for _, c := range []struct {
		node, path string
		through    bool
	}{
		{"e1", syncv1connect.SyncServiceSubscribeProcedure, true},
		{"e1", joinv1connect.CertStoreServiceLoadProcedure, true},
		{"gone", syncv1connect.SyncServiceSubscribeProcedure, true},
		{"gone", syncv1connect.SyncServiceRequestGrantsProcedure, false},
		{"gone", joinv1connect.CertStoreServiceLoadProcedure, false},
		{"gone", joinv1connect.IdentityServiceRenewProcedure, false},
		{"gone", peerv1connect.GroupServiceProposeProcedure, false},
		{"gone", "/", false},
		{"gone", syncv1connect.SyncServiceSubscribeProcedure + "/../RequestGrants", false},
		{"", syncv1connect.SyncServiceSubscribeProcedure, false},
	} {
		r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader("{}"))
		r.URL.Path = c.path
		r.Header.Set("Content-Type", "application/json")
		if c.node != "" {
			r = r.WithContext(peer.WithName(r.Context(), identity.Name{Zone: "emea", Installation: "x.example", Region: "eu-west", Kind: identity.Edge, Node: c.node}))
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if got := w.Code == http.StatusTeapot; got != c.through {
			t.Errorf("%q calls %s: got through %v, want %v (%d %s)", c.node, c.path, got, c.through, w.Code, w.Body)
		}
	}
}

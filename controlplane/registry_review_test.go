package controlplane

import (
	"context"
	"errors"
	"testing"

	"bailiwick/controlplane/internal/adminapi/apitest"
	"bailiwick/controlplane/internal/group"
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

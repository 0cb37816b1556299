package relay_test

import (
	"errors"
	"testing"
	"time"

	"bailiwick/dataplane/internal/relay"
	"bailiwick/shared/table"
)

// What is said of a region to all who would relay there is said when nobody there answers, and of an API there when it
// serves nobody of it. A relay that was cut is no word on either: others would be refused for a second, though a region that
// may serve them is there.
func TestClient_SaysOfARegionWhatItKnows(t *testing.T) {
	word := func(t *testing.T, err error) relay.Error {
		t.Helper()
		e, ok := errors.AsType[*relay.Error](err)
		if !ok {
			t.Fatalf("got %v, want an error of this package", err)
		}
		return *e
	}
	t.Run("a rule of the receiver refuses", func(t *testing.T) {
		b := newBorder(t)
		b.mu.Lock()
		b.noLeave = true
		b.mu.Unlock()
		_, err := b.do(t.Context(), nil)
		if e := word(t, err); e.Unreachable || !e.Down || e.Sent || e.Rule == "" {
			t.Errorf("got %+v, want that its API is served by nobody there", e)
		}
	})
	t.Run("the sender's own rule refuses", func(t *testing.T) {
		b := newBorder(t)
		b.west.Swap(view(t, "eu-west", nil, nil))
		_, err := b.do(t.Context(), nil)
		if e := word(t, err); e.Unreachable || e.Down || e.Rule != relay.RulePair {
			t.Errorf("got %+v, want nothing about the region", e)
		}
	})
	for _, c := range []struct {
		name string
		cut  func(*border)
	}{
		{"the receiver cuts what it has", func(b *border) {
			b.mu.Lock()
			b.noLeave = true
			b.mu.Unlock()
		}},
		{"the receiver ends the session", func(b *border) {
			b.central.Swap(view(t, "eu-central", []string{"eu-west>eu-central"}, []table.Node{{Name: "eu-north-edge-1", Zone: "emea", Region: "eu-north"}}))
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBorder(t)
			resp, err := b.do(t.Context(), nil) // the session has answered
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			b.local.mu.Lock()
			b.local.mum = true
			b.local.mu.Unlock()
			ended := make(chan error, 1)
			go func() { _, err := b.do(t.Context(), nil); ended <- err }()
			eventually(t, 5*time.Second, "the relay is under way", func() bool { return b.local.count() == 2 })
			c.cut(b)
			if e := word(t, <-ended); e.Unreachable || e.Down || !e.Sent {
				t.Errorf("got %+v, want nothing about the region", e)
			}
		})
	}
	t.Run("nobody there knows this edge", func(t *testing.T) {
		b := newBorder(t)
		b.central.Swap(view(t, "eu-central", []string{"eu-west>eu-central"}, nil))
		b.west.Swap(view(t, "eu-west", nil, nil)) // a session of before would be refused by a rule, request by request
		b.client.Enforce()
		b.west.Swap(view(t, "eu-west", []string{"eu-west>eu-central"}, nil))
		eventually(t, 5*time.Second, "the region does not answer", func() bool {
			_, err := b.do(t.Context(), nil)
			return word(t, err).Unreachable
		})
	})
}

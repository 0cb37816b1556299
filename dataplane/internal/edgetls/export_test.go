package edgetls

import (
	"bytes"
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/caddyserver/certmagic"

	"bailiwick/proto/gen/bailiwick/join/v1/joinv1connect"
)

// NewShelf is the storage that certmagic is given, until the test ends.
func NewShelf(t *testing.T, rpc joinv1connect.CertStoreServiceClient) certmagic.Storage {
	b, err := newBox(bytes.Repeat([]byte{7}, 32))
	if err != nil {
		t.Fatal(err)
	}
	s := newShelf(rpc, b, "test", time.Second, slog.New(slog.DiscardHandler))
	t.Cleanup(s.close)
	return s
}

// Rotation is the keys of one host, as they follow each other.
type Rotation struct{ k ticketKeys }

// At are the keys under scope at now.
func (r *Rotation) At(scope string, now time.Time) [][32]byte {
	r.k = r.k.next(scope, now)
	return r.k.keys
}

// WhileHeld ends with the lock of host's issue.
func WhileHeld(s certmagic.Storage, ctx context.Context, host string) (context.Context, context.CancelFunc) {
	return s.(*shelf).whileHeld(ctx, []string{host})
}

// TicketHosts is for how many hosts there are ticket keys in memory.
func (m *Manager) TicketHosts() int {
	m.tickets.mu.Lock()
	defer m.tickets.mu.Unlock()
	return len(m.tickets.hosts)
}

package rollout

import (
	"context"
	"time"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
)

// Step is one look of a conductor at a state of the catalog, which may be old: of one who led before.
func (c *Conductor) Step(ctx context.Context, snap group.Snapshot, r model.Rollout) error {
	return c.step(ctx, snap, r, &Pulse{Silent: time.Hour}, 0)
}

// Look is what a zone's leader does each time, with what its judge has seen so far.
func (w *Watch) Look(ctx context.Context, j *Judge, snap group.Snapshot, r model.Rollout, now time.Duration) error {
	w.Soak = w.Soak.WithDefaults()
	return w.look(ctx, j, snap, r, now)
}

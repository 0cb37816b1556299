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

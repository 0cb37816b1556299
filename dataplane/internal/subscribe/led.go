package subscribe

import (
	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"
)

// Take brings one part of an update that the process which took this one's place has on its disk and in force (Config.Updated
// there), after Run has returned; one goroutine calls it. It is handed on likewise, and not written: the disk is that process's. What
// is older than what is held is passed over. When it returns, Config.Enforce has ended what the table forbids. An error means that what is held can no longer be brought up to date.
func (c *Client) Take(signed *syncv1.Signed) error {
	u, err := c.open(signed)
	if err != nil {
		return err
	}
	if head, err := headOf(u.TableUpdate); err != nil {
		return err
	} else if c.staged == nil && !u.Snapshot && head.to == c.floor {
		return nil // both have it from before
	}
	st, whole, err := c.staged.add(u, c.table, c.cfg.MaxBytes)
	if err != nil {
		return err
	}
	c.staged = st
	if !whole {
		return nil
	}
	c.staged = nil
	if st.stale(c.floor) != nil {
		return nil
	}
	next, err := st.apply(c.table, c.cfg.Region)
	if err != nil {
		return err
	}
	c.force(next, st)
	return nil
}

package controlplane

import (
	"context"
	"time"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
	"bailiwick/shared/table"
)

const (
	// levelsRetry is the wait after the catalog refused, levelsSoon until the registry knows this node, and in which reports
	// gather; levelsEvery is how often the registry is looked at without one.
	levelsRetry = time.Second
	levelsSoon  = 200 * time.Millisecond
	levelsEvery = 30 * time.Second
	// maxLevels bounds the words of one transaction.
	maxLevels = 512
)

// registerLevels keeps in the catalog which fields this node's program knows, and those of the edges whose streams it
// holds: what no program may serve without is not written before all know it.
func (n *Node) registerLevels(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		changed, wait := n.sync.ReportsChanged(), levelsEvery
		done, err := n.registerLevelsOnce(ctx)
		switch {
		case err != nil && ctx.Err() == nil:
			n.log.Debug("levels cannot be registered; it will be tried again", "error", err)
			changed, wait = nil, levelsRetry
		case !done:
			changed, wait = nil, levelsSoon
		}
		timer.Reset(wait)
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
			continue
		case <-changed:
		}
		timer.Reset(levelsSoon)
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
	}
}

// registerLevelsOnce says whether all is as it should be.
func (n *Node) registerLevelsOnce(ctx context.Context) (done bool, err error) {
	catalog := n.catalog.Local()
	told := []model.NodeLevel{{Name: n.self.Name, Level: table.Current}}
	for _, r := range n.sync.Reports() {
		if r.GetConnected() {
			told = append(told, model.NodeLevel{Name: r.GetEdge(), Level: table.Level(r.GetLevel())})
		}
	}
	var txn group.Txn
	for _, l := range told {
		row, registered := catalog.Get(model.PrefixNode + l.Name)
		kv, ok := catalog.Get(model.PrefixLevel + l.Name)
		if !registered || ok && string(kv.Value) == string(model.Encode(l)) || !ok && l.Level == 0 || len(txn.Ops) == maxLevels {
			continue
		}
		txn.Compares = append(txn.Compares, group.Compare{Key: row.Key, ModIndex: row.ModIndex}, group.Compare{Key: model.PrefixLevel + l.Name, ModIndex: kv.ModIndex})
		txn.Ops = append(txn.Ops, group.Op{Key: model.PrefixLevel + l.Name, Value: model.Encode(l)})
	}
	if len(txn.Ops) == 0 {
		_, registered := catalog.Get(model.PrefixNode + n.self.Name) // not before the catalog is seeded
		return registered, nil
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	_, err = n.catalog.Txn(ctx, txn)
	return false, err // it is looked at once more: others write as well
}

package controlplane

import (
	"context"
	"path/filepath"
	"time"

	"bailiwick/controlplane/internal/detail"
	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/ingest"
	"bailiwick/controlplane/internal/model"
	"bailiwick/shared/identity"
)

func (n *Node) openDetail() (err error) {
	n.detail, err = detail.Open(detail.Config{Dir: filepath.Join(n.cfg.Dir, "detail"), Retention: n.cfg.DetailRetention, Budget: n.cfg.DetailBudget,
		Erased: func(customer string) bool { return erased(n.store.Local(), customer) }, Logger: n.log})
	return err
}

// erased says whether a customer was erased, as far as this store knows. His name is never given again.
func erased(store group.Snapshot, customer string) bool {
	kv, ok := store.Get(model.PrefixGone + customer)
	if !ok {
		return false
	}
	gone, err := model.Decode[model.Gone](kv.Key, kv.Value)
	return err == nil && !gone.Erased.IsZero()
}

// attributeDetail judges an edge that brings detail, and the customers that the detail names, as attribute does.
func (n *Node) attributeDetail(edge, region string, customers []string) (string, error) {
	if err := n.allow(identity.Name{Zone: n.self.Zone, Installation: n.in.Name, Region: region, Kind: identity.Edge, Node: edge}); err != nil {
		return ingest.ReasonWithdrawn, nil
	}
	foreign := func(store group.Snapshot) bool {
		for _, c := range customers {
			if !homed(store, c) {
				return true
			}
		}
		return false
	}
	if !foreign(n.store.Local()) {
		return "", nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	fresh, err := n.store.Sync(ctx)
	if err != nil {
		return "", err
	}
	if foreign(fresh) {
		return ingest.ReasonForeignCustomer, nil
	}
	return "", nil
}

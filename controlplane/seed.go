package controlplane

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"sync"
	"time"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
	"bailiwick/shared/durable"
	"bailiwick/shared/identity"
)

// FileOperator is the first operator in a node's kit: a token's SHA-256, never the token.
const FileOperator = "operator.json"

// Operator is the content of FileOperator.
type Operator struct {
	Name      string `json:"name"`
	Role      string `json:"role"`
	TokenHash string `json:"token_sha256"` // hexadecimal
}

// seed writes what an empty group must hold before anybody can write to it through a door: the leader of the
// catalog lays down zones, regions and control nodes of the installation, the leader of the zone store the
// first operator. A group that holds anything of the kind is left alone: operators may have changed it.
func (n *Node) seed(ctx context.Context) error {
	var wg sync.WaitGroup
	var catalogErr, storeErr error
	wg.Go(func() { catalogErr = n.catalog.RunLeader(ctx, n.untilDone(n.seedCatalog)) })
	wg.Go(func() { storeErr = n.store.RunLeader(ctx, n.untilDone(n.seedStore)) })
	wg.Wait()
	return errors.Join(catalogErr, storeErr)
}

// untilDone repeats work until it succeeds, then waits for the end of the leadership.
func (n *Node) untilDone(work func(context.Context) error) func(context.Context) {
	return func(ctx context.Context) {
		for {
			err := work(ctx)
			if err == nil {
				break
			}
			n.log.Warn("seed", "error", err)
			select {
			case <-ctx.Done():
				return
			case <-time.After(time.Second):
			}
		}
		<-ctx.Done()
	}
}

func (n *Node) seedCatalog(ctx context.Context) error {
	var ops []group.Op
	put := func(key string, v any) { ops = append(ops, group.Op{Key: key, Value: model.Encode(v)}) }
	for _, z := range n.in.Zones {
		zone := model.Zone{Name: z.Name, Jurisdiction: z.Jurisdiction, SigningKey: z.SigningKey}
		for _, c := range n.in.InZone(z.Name) {
			zone.AdminURLs = append(zone.AdminURLs, c.Admin)
		}
		put(model.PrefixZone+z.Name, zone)
	}
	for _, r := range n.in.Regions {
		put(model.PrefixRegion+r.Name, model.Region{Name: r.Name, Zone: r.Zone, Provider: r.Provider, Country: r.Country, Jurisdiction: r.Jurisdiction, ControlOnly: r.ControlOnly})
	}
	for _, c := range n.in.ControlNodes {
		put(model.PrefixNode+c.Name, model.Node{Name: c.Name, Kind: identity.Control, Region: c.Region, Zone: c.Zone, PeerAddr: c.Peer, AdminURL: c.Admin})
	}
	first := model.PrefixZone + n.in.PrimaryZone
	_, err := n.catalog.Txn(ctx, group.Txn{Compares: []group.Compare{{Key: first}}, Ops: ops})
	return err
}

func (n *Node) seedStore(ctx context.Context) error {
	path := filepath.Join(n.cfg.Dir, "identity", FileOperator)
	data, err := durable.ReadFile(durable.OS(), path, 64<<10)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var o Operator
	if err := json.Unmarshal(data, &o); err != nil || len(o.TokenHash) != 64 {
		return fmt.Errorf("read %s: not an operator with a token hash: %v", path, err)
	}
	for range n.store.Local().List(model.PrefixOperator) {
		return nil
	}
	key := model.PrefixOperator + o.TokenHash
	_, err = n.store.Txn(ctx, group.Txn{Compares: []group.Compare{{Key: key}}, Ops: []group.Op{{Key: key, Value: model.Encode(model.Operator{Name: o.Name, Role: o.Role})}}})
	return err
}

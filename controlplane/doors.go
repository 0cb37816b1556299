package controlplane

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
	peerv1 "bailiwick/proto/gen/bailiwick/peer/v1"
	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"
)

const (
	// maxDoorAddresses bounds what one edge may put into its zone's DNS answers.
	maxDoorAddresses = 8
	// doorsRetry is the wait after the catalog refused: its quorum may be away, and nothing hurries.
	doorsRetry = 5 * time.Second
)

// registerDoors keeps in the node registry where clients reach the edges connected to this node, as they say
// themselves: DNS answers are made of it. What an edge says that has left its stream is old and not written.
func (n *Node) registerDoors(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		changed := n.sync.ReportsChanged()
		wait := 10 * doorsRetry // also without a report: the registry itself may have changed
		for _, r := range n.sync.Reports() {
			if !r.GetConnected() || r.GetStatus().GetDoors() == nil {
				continue // it has not said yet: what is registered stays
			}
			if err := n.registerDoorsOf(ctx, r); err != nil && ctx.Err() == nil {
				n.log.Warn("where clients reach an edge cannot be registered; it will be tried again", "edge", r.GetEdge(), "error", err)
				wait = doorsRetry
			}
		}
		timer.Reset(wait)
		if wait == doorsRetry {
			changed = nil // a report must not make the pause shorter
		}
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		case <-changed:
		}
	}
}

func (n *Node) registerDoorsOf(ctx context.Context, r *peerv1.EdgeReport) error {
	told, err := doorsOf(r.GetStatus().GetDoors())
	if err != nil {
		return err
	}
	kv, ok := n.catalog.Local().Get(model.PrefixNode + r.GetEdge())
	if !ok {
		return nil // withdrawn meanwhile
	}
	node, err := model.Decode[model.Node](kv.Key, kv.Value)
	if err != nil || sameDoors(node.Doors, told) {
		return err
	}
	node.Doors = told
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	_, err = n.catalog.Txn(ctx, group.Txn{Compares: []group.Compare{{Key: kv.Key, ModIndex: kv.ModIndex}}, Ops: []group.Op{{Key: kv.Key, Value: model.Encode(node)}}})
	return err // a compare that failed is seen at the next change, which is on its way
}

// doorsOf checks what an edge says of itself: it goes into the catalog and from there to strangers.
func doorsOf(d *syncv1.Doors) (*model.Doors, error) {
	if len(d.GetAddresses()) == 0 {
		return nil, nil
	}
	if len(d.Addresses) > maxDoorAddresses || d.HttpsPort == 0 || d.HttpsPort > 65535 {
		return nil, fmt.Errorf("register doors: %d addresses and port %d; at most %d addresses and a port from 1 to 65535", len(d.Addresses), d.HttpsPort, maxDoorAddresses)
	}
	out := &model.Doors{HTTPSPort: int(d.HttpsPort), DNS: d.Dns}
	for _, text := range d.Addresses {
		a, err := netip.ParseAddr(text)
		if err != nil || a.IsUnspecified() || a.IsMulticast() || a.Zone() != "" {
			return nil, fmt.Errorf("register doors: %.64q is no address that clients can reach", text)
		}
		out.Addresses = append(out.Addresses, a.Unmap().String())
	}
	return out, nil
}

func sameDoors(a, b *model.Doors) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.HTTPSPort == b.HTTPSPort && a.DNS == b.DNS && slices.Equal(a.Addresses, b.Addresses)
}

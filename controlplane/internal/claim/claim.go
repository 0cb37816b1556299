// Package claim owns which zone keeps its store in which cluster of etcd: one cluster is one zone's, and a zone has one. The
// catalog, which all zones share, holds it (model.Cluster), and how a claim was released (model.Release).
//
// A release is a question to whoever uses the cluster. It is put into the catalog, and each control node whose store is in that
// cluster objects by taking it out again; what nobody has objected to within the window is done. So nothing is written while
// nothing is asked, and no clocks of two machines are compared. A node that has lost the catalog cannot object: an operator stops
// the zone's nodes first.
//
// It never talks to etcd and decides no node's end. What was asked survives a crash of who asked, and does nothing by itself.
// All functions may be called at once, by any node.
package claim

import (
	"context"
	"fmt"
	"strings"
	"time"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
	"bailiwick/shared/fault"
)

const (
	Window   = 10 * time.Second // in which nodes object
	look     = 50 * time.Millisecond
	attempts = 5
	waits    = 72 * time.Hour // for a second operator
)

// Reasons of errors.
const (
	ReasonNotClaimed = "CLUSTER_NOT_CLAIMED"
	ReasonInUse      = "CLUSTER_IN_USE"
	ReasonTwo        = "STORE_IN_TWO_CLUSTERS"
)

// Catalog is what of the catalog's store is used here.
type Catalog interface {
	Local() group.Snapshot
	Sync(ctx context.Context) (group.Snapshot, error)
	Txn(ctx context.Context, t group.Txn) (group.Result, error)
}

// Request is for the release of a claim.
type Request struct {
	Cluster string // 16 hexadecimal digits
	Zone    string // whose claim By may release; one that is another's by now stays. "": whoever's
	By      string // an operator's pseudonym, which is one for one person, or a control node
	From    string // zone
	Reason  string
	Two     bool   // By alone may not
	Moves   string // the cluster that becomes the zone's in the same transaction; "": none
	At      time.Time
	Window  time.Duration // 0: Window
	// Commit makes a transaction; nil: Catalog.Txn.
	Commit func(ctx context.Context, t group.Txn) (group.Result, error)
}

// Of is the claim on a cluster.
func Of(snap group.Snapshot, cluster string) (row model.Cluster, mod uint64, err error) {
	kv, ok := snap.Get(model.PrefixCluster + cluster)
	if !ok {
		return row, 0, nil
	}
	row, err = model.Decode[model.Cluster](kv.Key, kv.Value)
	return row, kv.ModIndex, err
}

// ReleaseOf is the latest release of a claim on a cluster, the zero one if there is none.
func ReleaseOf(snap group.Snapshot, cluster string) (r model.Release, mod uint64, err error) {
	kv, ok := snap.Get(model.PrefixRelease + cluster)
	if !ok {
		return r, 0, nil
	}
	r, err = model.Decode[model.Release](kv.Key, kv.Value)
	return r, kv.ModIndex, err
}

// Release releases a claim, or says by a status of ReleaseWaits that somebody else has to ask for it too.
func Release(ctx context.Context, c Catalog, req Request) (model.Release, error) {
	commit, window := req.Commit, req.Window
	if commit == nil {
		commit = c.Txn
	}
	if window == 0 {
		window = Window
	}
	for n := range attempts {
		snap, err := c.Sync(ctx)
		if err != nil {
			return model.Release{}, err
		}
		row, rowMod, err := Of(snap, req.Cluster)
		if err != nil {
			return model.Release{}, err
		}
		was, wasMod, err := ReleaseOf(snap, req.Cluster)
		if err != nil {
			return model.Release{}, err
		}
		if rowMod == 0 {
			if n > 0 && was.Status == model.ReleaseDone && was.Reason == req.Reason { // another who asked for the same was quicker
				return was, nil
			}
			return model.Release{}, NotClaimed(req.Cluster)
		}
		if req.Zone != "" && row.Zone != req.Zone {
			return model.Release{}, outran(req.Cluster)
		}
		next := model.Release{ID: row.ID, Zone: row.Zone, Status: model.ReleaseUnder, By: req.By, From: req.From, Reason: req.Reason, At: req.At.UTC().Truncate(time.Second)}
		if req.Two {
			switch waiting := was.Status == model.ReleaseWaits && req.At.Before(was.At.Add(waits)); {
			case !waiting:
				next.Status = model.ReleaseWaits
			case was.From != req.From:
				return was, fault.New(fault.Conflict, "APPROVAL_REQUIRED", "the release of cluster %s waits for a second operator of zone %s, where it was asked for", req.Cluster, was.From)
			case was.By == req.By:
				return was, nil
			default:
				next = was
				next.Status, next.Second = model.ReleaseUnder, req.By
			}
		}
		asked := wasMod
		if same := was.Status == next.Status && was.Reason == next.Reason && was.From == next.From && was.Second == next.Second; same {
			next = was // asked for already: all who ask for it wait on one question
		} else {
			res, err := commit(ctx, group.Txn{Compares: []group.Compare{{Key: model.PrefixCluster + req.Cluster, ModIndex: rowMod}, {Key: model.PrefixRelease + req.Cluster, ModIndex: wasMod}},
				Ops: []group.Op{{Key: model.PrefixRelease + req.Cluster, Value: model.Encode(next)}}})
			if err != nil {
				return model.Release{}, err
			}
			if !res.Succeeded {
				continue // another asks too, or it was released meanwhile
			}
			asked = res.Revision.Index
		}
		if err := unopposed(ctx, c, req.Cluster, asked, window); err != nil || next.Status == model.ReleaseWaits {
			return next, err
		}
		next.Status = model.ReleaseDone
		t := group.Txn{Compares: []group.Compare{{Key: model.PrefixCluster + req.Cluster, ModIndex: rowMod}, {Key: model.PrefixRelease + req.Cluster, ModIndex: asked}},
			Ops: []group.Op{{Key: model.PrefixCluster + req.Cluster, Delete: true}, {Key: model.PrefixRelease + req.Cluster, Value: model.Encode(next)}}}
		if req.Moves != "" {
			key := model.PrefixCluster + req.Moves
			t.Compares = append(t.Compares, group.Compare{Key: key})
			t.Ops = append(t.Ops, group.Op{Key: key, Value: model.Encode(model.Cluster{ID: req.Moves, Zone: row.Zone})})
		}
		if res, err := commit(ctx, t); err != nil || res.Succeeded {
			return next, err
		}
		if snap, err = c.Sync(ctx); err != nil {
			return model.Release{}, err
		}
		switch now, mod, err := ReleaseOf(snap, req.Cluster); {
		case err != nil || mod == 0:
			return model.Release{}, inUse(row, err)
		case now.Reason != req.Reason:
			return model.Release{}, outran(req.Cluster)
		}
	}
	return model.Release{}, outran(req.Cluster)
}

// NotClaimed is what is said of a cluster that nobody keeps a store in.
func NotClaimed(cluster string) error {
	return fault.New(fault.NotFound, ReasonNotClaimed, "no zone keeps its store in a cluster of etcd with id %s: bailiwick cluster claims lists those that one does", cluster).At("cluster")
}

func outran(cluster string) error {
	return fault.New(fault.Conflict, "CONCURRENT_CHANGE", "others release the claim on cluster %s at the same time: see bailiwick cluster claims, and try again", cluster)
}

// unopposed waits for objections to what was asked at an index of the catalog's log.
func unopposed(ctx context.Context, c Catalog, cluster string, asked uint64, window time.Duration) error {
	end := time.NewTimer(window)
	defer end.Stop()
	tick := time.NewTicker(look)
	defer tick.Stop()
	for {
		snap := c.Local()
		if snap.Revision().Index >= asked {
			row, _, err := Of(snap, cluster)
			if err != nil {
				return err
			}
			if _, mod, err := ReleaseOf(snap, cluster); err != nil || mod == 0 {
				return inUse(row, err)
			}
		}
		select {
		case <-tick.C:
		case <-end.C:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func inUse(row model.Cluster, err error) error {
	if err != nil {
		return err
	}
	return fault.New(fault.Conflict, ReasonInUse, "a control node of zone %s has its store in cluster %s and objects to its release: stop the zone's control nodes first, or lead them to another cluster", row.Zone, row.ID)
}

// Object takes back what was asked of a cluster that a node of the zone uses.
func Object(ctx context.Context, c Catalog, cluster, zone string) (objected bool, err error) {
	r, mod, err := ReleaseOf(c.Local(), cluster)
	if err != nil || mod == 0 || r.Zone != zone || r.Status == model.ReleaseDone {
		return false, err
	}
	key := model.PrefixRelease + cluster
	res, err := c.Txn(ctx, group.Txn{Compares: []group.Compare{{Key: key, ModIndex: mod}}, Ops: []group.Op{{Key: key, Delete: true}}})
	return res.Succeeded, err
}

// Taking is a node's wish to have its zone's store in a cluster.
type Taking struct {
	Cluster, Zone, Node string
	// Restored: the cluster holds the zone's store already. One that was put back from a snapshot has an id of its own, and takes
	// the place of the one that it was saved from, unless somebody uses that. One whose place was taken does not take it back:
	// a node that was away meanwhile comes back to it, perhaps before those that use the other.
	Restored bool
	At       time.Time
	Window   time.Duration // 0: Window
}

// Take says which zone keeps its store in a cluster: that of t, if none did and it keeps it nowhere else.
func Take(ctx context.Context, c Catalog, t Taking) (holder string, err error) {
	if holder, earlier, _, err := standing(c.Local(), t); err != nil || holder != "" && len(earlier) == 0 {
		return holder, err
	}
	key := model.PrefixCluster + t.Cluster
	for range attempts { // nothing is opened before it is known that nobody was first
		snap, err := c.Sync(ctx)
		if err != nil {
			return "", err
		}
		holder, earlier, mod, err := standing(snap, t)
		switch {
		case err != nil || holder != "" && len(earlier) == 0:
			return holder, err
		}
		was, _, err := ReleaseOf(snap, t.Cluster)
		if err != nil {
			return "", err
		}
		left := was.Status == model.ReleaseDone && was.Zone == t.Zone // what is in it is of before: the zone went on in another
		switch {
		case len(earlier) > 0 && t.Restored && !left:
			if err := t.follow(ctx, c, earlier[0], mod == 0 && len(earlier) == 1); err != nil {
				return "", err
			}
		case len(earlier) > 0:
			if mod != 0 { // claimed at the same moment as the other, which was first
				if _, err := c.Txn(ctx, group.Txn{Compares: []group.Compare{{Key: key, ModIndex: mod}}, Ops: []group.Op{{Key: key, Delete: true}}}); err != nil {
					return "", err
				}
			}
			if left && t.Restored {
				return "", fault.New(fault.Conflict, ReasonTwo, "-etcd-endpoints lead to a cluster of etcd (%s) that was released at %s (%s): zone %s keeps its store in another (%s) since, and what was written there is not in this one: name that one's endpoints. If this one shall be the zone's again, stop the zone's nodes and say at a node of another zone: bailiwick cluster release %s --reason TEXT; or save a snapshot of this one and put it back with another --initial-cluster-token", t.Cluster, was.At.Format(time.RFC3339), was.Reason, t.Zone, earlier[0], earlier[0])
			}
			return "", fault.New(fault.Conflict, ReasonTwo, "-etcd-endpoints lead to a cluster of etcd (%s) that holds nothing of zone %s, which keeps its store in another (%s): name that one's endpoints. If that one is lost, put a snapshot of it back; if this one shall begin with nothing, stop the zone's nodes and say at a node of another zone: bailiwick cluster release %s --reason TEXT", t.Cluster, t.Zone, earlier[0], earlier[0])
		default:
			if _, err := c.Txn(ctx, group.Txn{Compares: []group.Compare{{Key: key}}, Ops: []group.Op{{Key: key, Value: model.Encode(model.Cluster{ID: t.Cluster, Zone: t.Zone})}}}); err != nil {
				return "", err
			}
		}
	}
	return "", fmt.Errorf("claim cluster %s: others claim at the same time", t.Cluster)
}

// standing says who has a cluster, at which revision it was claimed, and which others the zone of t had before.
func standing(snap group.Snapshot, t Taking) (holder string, earlier []string, mod uint64, err error) {
	row, mod, err := Of(snap, t.Cluster)
	if err != nil || mod != 0 && row.Zone != t.Zone {
		return row.Zone, nil, mod, err
	}
	for kv := range snap.List(model.PrefixCluster) {
		x, err := model.Decode[model.Cluster](kv.Key, kv.Value)
		if err != nil {
			return "", nil, 0, err
		}
		if x.Zone == t.Zone && x.ID != t.Cluster && (mod == 0 || kv.ModIndex < mod) {
			earlier = append(earlier, x.ID)
		}
	}
	return row.Zone, earlier, mod, nil
}

// follow takes the place of another cluster of the zone.
func (t Taking) follow(ctx context.Context, c Catalog, other string, moves bool) error {
	req := Request{Cluster: other, Zone: t.Zone, By: "control node " + t.Node, From: t.Zone, Reason: "its store was put back as cluster " + t.Cluster, At: t.At, Window: t.Window}
	if moves {
		req.Moves = t.Cluster
	}
	_, err := Release(ctx, c, req)
	if fault.ReasonOf(err) == ReasonInUse {
		return fault.New(fault.Conflict, ReasonTwo, "-etcd-endpoints lead to a cluster of etcd (%s) that holds a copy of the store of zone %s, and nodes of the zone use another (%s): name that one's endpoints, or stop all nodes of the zone before they are led to the copy", t.Cluster, t.Zone, other)
	}
	if fault.ReasonOf(err) == ReasonNotClaimed { // another node of the zone was quicker
		return nil
	}
	return err
}

// List are all claims, and all releases of clusters that nobody claims.
func List(snap group.Snapshot) (rows []model.Cluster, releases map[string]model.Release, err error) {
	releases = map[string]model.Release{}
	for kv := range snap.List(model.PrefixCluster) {
		row, err := model.Decode[model.Cluster](kv.Key, kv.Value)
		if err != nil {
			return nil, nil, err
		}
		rows = append(rows, row)
	}
	for kv := range snap.List(model.PrefixRelease) {
		r, err := model.Decode[model.Release](kv.Key, kv.Value)
		if err != nil {
			return nil, nil, err
		}
		releases[strings.TrimPrefix(kv.Key, model.PrefixRelease)] = r
	}
	return rows, releases, nil
}

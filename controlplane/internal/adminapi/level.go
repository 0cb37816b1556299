package adminapi

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
	"bailiwick/shared/fault"
)

const (
	// levelWait is how long a write waits for nodes to say what they know: one that has just started is about to.
	levelWait = 2 * time.Second
	levelTick = 50 * time.Millisecond
	// reasonUpgrading is of kind Unavailable: a program that has to know a field does not yet.
	reasonUpgrading = "UPGRADE_UNDER_WAY"
	maxBehind       = 8 // nodes that an error names
)

// leveled refuses a record with a field that a program does not know which would read it, or serve by it: a control node
// could build no view any more, and an edge would serve as if the field were not there. zone is whose control nodes hold
// the record ("": all), served whose edges serve by it ("": all).
func leveled(catalog group.Snapshot, what string, rec any, zone, served string) error {
	return known(catalog, what, model.NeedsOf(rec), zone, served)
}

// known is leveled of what asks for these levels.
func known(catalog group.Snapshot, what string, needs model.Needs, zone, served string) error {
	if needs.Nodes == 0 && needs.Edges == 0 {
		return nil
	}
	var behind []string
	for kv := range catalog.List(model.PrefixNode) {
		n, err := model.Decode[model.Node](kv.Key, kv.Value)
		if err != nil {
			return err
		}
		want, of := needs.Nodes, zone
		if n.Kind == "edge" {
			want, of = needs.Edges, served
		}
		if of != "" && of != n.Zone {
			continue
		}
		var has model.NodeLevel
		kv, heard := catalog.Get(model.PrefixLevel + n.Name)
		if heard {
			if has, err = model.Decode[model.NodeLevel](kv.Key, kv.Value); err != nil {
				return err
			}
		}
		switch {
		case has.Level >= want:
		case heard:
			behind = append(behind, fmt.Sprintf("%s (level %d)", n.Name, has.Level))
		default:
			behind = append(behind, n.Name+" (has not said)")
		}
	}
	if len(behind) == 0 {
		return nil
	}
	slices.Sort(behind)
	if more := len(behind) - maxBehind; more > 0 {
		behind = append(behind[:maxBehind], fmt.Sprintf("and %d more", more))
	}
	why := fmt.Sprintf("it has fields of level %d", needs.Nodes)
	if needs.Edges > 0 {
		why = fmt.Sprintf("%s is of level %d, and an edge that does not know it would serve without it", needs.Field, needs.Edges)
	}
	return fault.New(fault.Unavailable, reasonUpgrading, "%s: %s. Still to be upgraded, or to be removed with `bailiwick node remove`: %s", what, why, strings.Join(behind, ", "))
}

// levels judges the documents of a plan that change something.
func (p *plan) levels(catalog group.Snapshot, zone string) error {
	for _, d := range p.docs {
		if d.rec == nil || d.change.Action == unchanged {
			continue
		}
		nodes, edges := "", ""
		if d.kind.Zonal {
			nodes, edges = zone, zone
		}
		if a, ok := d.rec.(model.API); ok {
			edges = a.Zone // in other zones an edge that does not know enough takes no relay for it
		}
		if r, ok := d.rec.(model.Region); ok {
			edges = r.Zone
		}
		if err := leveled(catalog, fmt.Sprintf("%s %s", d.kind.Name, d.name), d.rec, nodes, edges); err != nil {
			return d.field(err)
		}
	}
	return nil
}

// onceLeveled does what may be refused because a node has not said yet what its program knows, again for a while.
func onceLeveled(ctx context.Context, wait time.Duration, do func() error) error {
	end := time.Now().Add(min(levelWait, wait/2))
	for {
		err := do()
		if fault.ReasonOf(err) != reasonUpgrading || time.Now().After(end) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(levelTick):
		}
	}
}

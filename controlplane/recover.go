package controlplane

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/group/raftgroup"
	"bailiwick/controlplane/internal/model"
	"bailiwick/controlplane/internal/pki"
	"bailiwick/shared/durable"
	"bailiwick/shared/fault"
	"bailiwick/shared/identity"
)

// Offline is a stopped control node: what an operator does with its directory while no process runs on it. It
// answers to who holds the directory, whose files only their owner can read.
type Offline struct {
	Dir string

	in      *pki.Installation
	secrets *pki.ZoneSecrets
	name    identity.Name
	server  string // its id in its groups
	engine  string // of the catalog and the zone's store
}

// OpenOffline reads the node's kit.
func OpenOffline(dir string) (*Offline, error) {
	home := filepath.Join(dir, "identity")
	source, err := identity.Load(home)
	if err != nil {
		return nil, err
	}
	in, secrets, _, err := pki.Load(home)
	if err != nil {
		return nil, err
	}
	server := source.Name().Node
	switch text, err := durable.ReadFile(durable.OS(), filepath.Join(home, pki.FileServer), 1<<10); {
	case err == nil:
		server = strings.TrimSpace(string(text))
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	engine, err := storesOf(dir)
	if err != nil {
		return nil, err
	}
	return &Offline{Dir: dir, in: in, secrets: secrets, name: source.Name(), server: server, engine: engine}, nil
}

// Outside are the node's groups that rest in etcd, and of which its directory holds nothing.
func (o *Offline) Outside() []string {
	if o.engine != EngineEtcd {
		return nil
	}
	return []string{catalogGroup, storeGroup(o.name.Zone)}
}

// outside refuses what cannot be done to a group in etcd from here.
func (o *Offline) outside(groupName, what, instead string) error {
	if !slices.Contains(o.Outside(), groupName) {
		return nil
	}
	return fault.New(fault.Unimplemented, ReasonInEtcd, "%s %s: the group rests in etcd: %s", what, groupName, instead)
}

// groupsOf are a node's groups and the directories they rest in.
func groupsOf(zone string) []struct{ Name, Dir string } {
	return []struct{ Name, Dir string }{
		{ledgerGroup(zone), filepath.Join("ledger", "raft")}, {catalogGroup, "catalog"}, {storeGroup(zone), "zone"},
	}
}

// stopped refuses a directory in which a node runs.
func stopped(dir string) error {
	for _, g := range groupsOf("") {
		if err := raftgroup.Unused(filepath.Join(dir, g.Dir)); err != nil {
			return err
		}
	}
	return nil
}

// Inspect says what the node holds of each of its groups; an error of one is told beside the others.
func (o *Offline) Inspect() (found []raftgroup.Inspection, err error) {
	for _, g := range groupsOf(o.name.Zone) {
		if slices.Contains(o.Outside(), g.Name) {
			continue
		}
		in, e := raftgroup.Inspect(filepath.Join(o.Dir, g.Dir), g.Name)
		if e != nil {
			err = errors.Join(err, e)
			continue
		}
		found = append(found, in)
	}
	return found, err
}

// Recovery is what an operator decides: which groups go on with this node alone, who says so and why.
type Recovery struct {
	Zone, Catalog    bool // the zone's store and ledger; the catalog
	Operator, Reason string
}

// Validate says what is missing.
func (r Recovery) Validate() error {
	if !r.Zone && !r.Catalog {
		return fault.New(fault.Invalid, "GROUPS_REQUIRED", "recover: say which groups have lost their quorum: the zone's, the catalog, or both")
	}
	return accounted("recover", r.Operator, r.Reason)
}

// accounted asks for what a signed record says of who decided.
func accounted(what, operator, reason string) error {
	switch {
	case operator == "" || reason == "":
		return fault.New(fault.Invalid, "REASON_REQUIRED", "%s: an operator's name and a reason are required: they are part of the signed record", what)
	case len(operator) > 200 || len(reason) > 500:
		return fault.New(fault.Invalid, "REASON_TOO_LONG", "%s: the operator's name holds at most 200 bytes, the reason 500", what)
	}
	return nil
}

// Recover makes this node the only member of groups that have lost their quorum for good. The ledger comes first and
// the store last, whose first transaction in its new epoch is the signed record of all of it; cut short, it is done
// again from the start. That a new epoch closes what crosses zones is the border's own rule.
func (o *Offline) Recover(r Recovery, now time.Time) (record model.Recovery, err error) {
	if err := r.Validate(); err != nil {
		return record, err
	}
	if r.Catalog && o.name.Zone != o.in.PrimaryZone {
		return record, fault.New(fault.Invalid, "NOT_PRIMARY_ZONE", "recover the catalog: %s is of zone %s, and only nodes of the primary zone %s vote on it: recover it there", o.name.Node, o.name.Zone, o.in.PrimaryZone)
	}
	if r.Catalog {
		if err := o.outside(catalogGroup, "recover", "bring its cluster back, or a snapshot of it, with etcd's own tools; nodes notice, and begin a new epoch by themselves"); err != nil {
			return record, err
		}
	}
	record = model.Recovery{Zone: o.name.Zone, Node: o.name.Node, Operator: r.Operator, Reason: r.Reason, At: now.UTC().Truncate(time.Millisecond)}
	for _, g := range groupsOf(o.name.Zone) {
		if g.Name == catalogGroup && !r.Catalog || g.Name != catalogGroup && !r.Zone || slices.Contains(o.Outside(), g.Name) {
			continue
		}
		cfg := raftgroup.Config{Group: g.Name, Node: o.name.Node, Dir: filepath.Join(o.Dir, g.Dir)}
		var open func(raftgroup.Recovered) ([]group.Op, error)
		switch g.Name {
		case catalogGroup:
			open = func(raftgroup.Recovered) ([]group.Op, error) { return nil, nil }
		case storeGroup(o.name.Zone):
			open = func(got raftgroup.Recovered) ([]group.Op, error) {
				record.Groups = append(record.Groups, recoveredGroup(g.Name, got))
				return o.recoveryOps(&record, got.Incarnation), nil
			}
		}
		got, err := raftgroup.Recover(cfg, open, now)
		if err != nil {
			return record, err
		}
		if g.Name != storeGroup(o.name.Zone) {
			record.Groups = append(record.Groups, recoveredGroup(g.Name, got))
		}
	}
	o.sign(&record)
	return record, o.keep(record)
}

// keep leaves the record beside the groups: of the catalog and the ledger alone there is no other.
func (o *Offline) keep(record model.Recovery) error {
	dir := filepath.Join(o.Dir, "recoveries")
	if err := durable.OS().MkdirAll(dir, durable.DirPerm); err != nil {
		return err
	}
	path := filepath.Join(dir, strconv.FormatInt(record.At.UnixMilli(), 10)+".json")
	return durable.WriteFileAtomic(durable.OS(), path, append(model.Encode(record), '\n'), durable.FilePerm)
}

func recoveredGroup(name string, r raftgroup.Recovered) model.RecoveredGroup {
	g := model.RecoveredGroup{Group: name, Incarnation: r.Incarnation, Last: r.Before.Last, Promoted: r.Promoted}
	for _, m := range r.Before.Members {
		g.Members = append(g.Members, m.Server)
	}
	return g
}

func (o *Offline) sign(r *model.Recovery) {
	r.Signature = ed25519.Sign(o.secrets.Signer, r.Statement())
}

func (o *Offline) recoveryOps(r *model.Recovery, incarnation uint64) []group.Op {
	return recoveryOps(o.secrets.Signer, r, incarnation, "recover")
}

// recoveryOps is how the zone store begins its new epoch. The epoch closes what crosses zones only where a record says under
// which epochs that is approved, and what the store went back to may be of before there was one: so one is written that
// approves none.
func recoveryOps(signer ed25519.PrivateKey, r *model.Recovery, incarnation uint64, call string) []group.Op {
	r.Signature = ed25519.Sign(signer, r.Statement())
	return []group.Op{
		{Key: model.PrefixRecovery + strconv.FormatUint(incarnation, 10), Value: model.Encode(*r)},
		{Key: model.KeyCrossing, Value: model.Encode(model.Crossing{At: r.At, Reason: r.Reason})},
		{Key: model.KeyAudit, Value: model.Encode(model.Audit{Operator: r.Operator, Call: call})},
	}
}

// Summary tells an operator what a recovery did, line by line.
func Summary(r model.Recovery) (lines []string) {
	for _, g := range r.Groups {
		line := fmt.Sprintf("%s: %s is its only member; entries up to %d are kept", g.Group, r.Node, g.Last)
		if g.Promoted > 0 {
			line += fmt.Sprintf(", of which the last %d were not known to be committed: they count as committed now", g.Promoted)
		}
		lines = append(lines, line)
	}
	return lines
}

package pki

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"slices"
	"time"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
	joinv1 "bailiwick/proto/gen/bailiwick/join/v1"
	"bailiwick/shared/durable"
	"bailiwick/shared/fault"
	"bailiwick/shared/identity"
)

// FileServer holds the id that a node which joined has in its groups.
const FileServer = "server"

const reasonControlAddr = "CONTROL_ADDR_INVALID" // Invalid

// checkControlAddrs looks at the form of what a control node says of itself.
func checkControlAddrs(req *joinv1.JoinRequest) error {
	if req.GetAdminUrl() == "" && req.GetPeerAddr() == "" {
		return nil // an edge
	}
	if u, err := url.Parse(req.GetAdminUrl()); err != nil || u.Scheme != "https" || u.Hostname() == "" || u.Path != "" && u.Path != "/" || len(req.GetAdminUrl()) > 255 {
		return fault.New(fault.Invalid, reasonControlAddr, "join: %.80q is not an https URL of a host and port", req.GetAdminUrl()).At("admin_url")
	}
	if host, port, err := net.SplitHostPort(req.GetPeerAddr()); err != nil || host == "" || port == "" || len(req.GetPeerAddr()) > 255 {
		return fault.New(fault.Invalid, reasonControlAddr, "join: %.80q is not host:port", req.GetPeerAddr()).At("peer_addr")
	}
	return nil
}

// registerControl enters a control node, and where people reach it in its zone's record. A node of that name that is
// there already is replaced: its certificate and its place in the groups are the earlier node's.
func (e *Enroll) registerControl(ctx context.Context, tok claimedToken, req *joinv1.JoinRequest) (uint64, time.Time, error) {
	never := time.Time{}
	if req.GetAdminUrl() == "" {
		return 0, never, fault.New(fault.Invalid, reasonControlAddr, "join: a control node says where people and other nodes reach it").At("admin_url")
	}
	key, zoneKey := model.PrefixNode+tok.Name, model.PrefixZone+e.cfg.CA.Zone()
	for range 8 {
		snap, err := e.cfg.Catalog.Sync(ctx)
		if err != nil {
			return 0, never, err
		}
		n := model.Node{Name: tok.Name, Kind: identity.Control, Region: tok.Region, Zone: e.cfg.CA.Zone(), PeerAddr: req.GetPeerAddr(), AdminURL: req.GetAdminUrl(),
			JoinedAt: time.Now().UTC().Truncate(time.Millisecond)}
		kv, ok := snap.Get(key)
		before := model.Node{}
		switch {
		case ok:
			if before, err = e.sameNode(kv, tok); err != nil {
				return 0, never, err
			}
			if tok.Done { // the same key asks again
				return snap.Revision().Index, before.JoinedAt, nil
			}
			if !n.JoinedAt.After(before.JoinedAt) {
				n.JoinedAt = before.JoinedAt.Add(time.Millisecond)
			}
		case tok.Done:
			return 0, never, fault.New(fault.Denied, ReasonWithdrawn, "join: node %s was withdrawn: ask for a new token", tok.Name)
		}
		txn := group.Txn{Compares: []group.Compare{{Key: key, ModIndex: kv.ModIndex}}, Ops: []group.Op{{Key: key, Value: model.Encode(n)}, levelOf(tok.Name, req)}}
		if zkv, ok := snap.Get(zoneKey); ok {
			z, err := model.Decode[model.Zone](zkv.Key, zkv.Value)
			if err != nil {
				return 0, never, err
			}
			urls := slices.DeleteFunc(slices.Clone(z.AdminURLs), func(u string) bool { return u == before.AdminURL })
			if c, born := e.cfg.Installation.Control(tok.Name); born {
				urls = slices.DeleteFunc(urls, func(u string) bool { return u == c.Admin })
			}
			if !slices.Contains(urls, n.AdminURL) {
				urls = append(urls, n.AdminURL)
			}
			z.AdminURLs = urls
			txn.Compares = append(txn.Compares, group.Compare{Key: zoneKey, ModIndex: zkv.ModIndex})
			txn.Ops = append(txn.Ops, group.Op{Key: zoneKey, Value: model.Encode(z)})
		}
		res, err := e.cfg.Catalog.Txn(ctx, txn)
		if err != nil {
			return 0, never, err
		}
		if res.Succeeded {
			return res.Revision.Index, n.JoinedAt, nil
		}
	}
	return 0, never, fault.New(fault.Conflict, ReasonNameTaken, "register node %s: its entry changes all the time", tok.Name)
}

// controlKit is what the node that joined as name gets of the zone. The zone key goes to whoever holds the token, once:
// tokens of kind control are as good as a control node's disk.
func (e *Enroll) controlKit(name string) (*joinv1.ControlKit, error) {
	if e.cfg.Dir == "" {
		return nil, fault.New(fault.Unimplemented, "CONTROL_JOIN_OFF", "join: this node gives out no kits")
	}
	read := func(file string) ([]byte, error) {
		return durable.ReadFile(durable.OS(), filepath.Join(e.cfg.Dir, file), 1<<20)
	}
	zoneKey, err := read(fileZoneKey)
	if err != nil {
		return nil, err
	}
	authority, err := read(fileCA)
	if err != nil {
		return nil, err
	}
	sealed, err := read(fileCAKey)
	if err != nil {
		return nil, err
	}
	in := *e.cfg.Installation
	in.ControlNodes = ControlNodes(e.cfg.Catalog.Local(), e.cfg.Installation)
	public, err := json.MarshalIndent(in, "", "  ")
	if err != nil {
		return nil, err
	}
	kv, ok := e.cfg.Catalog.Local().Get(model.PrefixNode + name)
	if !ok {
		return nil, fault.New(fault.Denied, ReasonWithdrawn, "join: node %s was withdrawn meanwhile", name)
	}
	n, err := model.Decode[model.Node](kv.Key, kv.Value)
	if err != nil {
		return nil, err
	}
	return &joinv1.ControlKit{ZoneKey: zoneKey, Authority: authority, AuthorityKeySealed: sealed, Installation: public, Server: n.Server(), Incarnations: e.cfg.Incarnations()}, nil
}

// ControlNodes are the control nodes of the installation as the registry has them, in the order of their names; those of
// the installation file while it has none.
func ControlNodes(catalog group.Snapshot, in *Installation) (nodes []ControlNode) {
	for kv := range catalog.List(model.PrefixNode) {
		n, err := model.Decode[model.Node](kv.Key, kv.Value)
		if err != nil || n.Kind != identity.Control {
			continue
		}
		c := ControlNode{Name: n.Name, Zone: n.Zone, Region: n.Region, Admin: n.AdminURL, Peer: n.PeerAddr}
		if born, ok := in.Control(n.Name); ok && c.Admin == "" {
			c.Admin = born.Admin
		}
		nodes = append(nodes, c)
	}
	if len(nodes) == 0 {
		return in.ControlNodes
	}
	return nodes
}

// WriteKit writes what a control node got when it joined, as Init writes kits.
func WriteKit(dir string, r *joinv1.JoinResponse, keyPEM []byte) error {
	kit := r.GetControl()
	if err := writeFiles(dir, map[string][]byte{FileServer: append([]byte(kit.GetServer()), '\n'), fileZoneKey: kit.GetZoneKey(), fileCA: kit.GetAuthority(), fileCAKey: kit.GetAuthorityKeySealed(), fileInst: kit.GetInstallation()}); err != nil {
		return err
	}
	if err := identity.WriteDir(dir, r.GetCertificateChain(), keyPEM, r.GetRoots()); err != nil {
		return err
	}
	_, _, _, err := Load(dir)
	if err != nil {
		return fmt.Errorf("the kit that was handed out does not hold together: %w", err)
	}
	return nil
}

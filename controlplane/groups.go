package controlplane

import (
	"context"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"bailiwick/controlplane/internal/alert"
	"bailiwick/controlplane/internal/border"
	"bailiwick/controlplane/internal/carrier"
	"bailiwick/controlplane/internal/certstore"
	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/group/raftgroup"
	"bailiwick/controlplane/internal/ingest"
	"bailiwick/controlplane/internal/ledger"
	"bailiwick/controlplane/internal/lessor"
	"bailiwick/controlplane/internal/model"
	"bailiwick/controlplane/internal/peer"
	"bailiwick/controlplane/internal/pki"
	"bailiwick/controlplane/internal/rollout"
	"bailiwick/controlplane/internal/rotation"
	"bailiwick/controlplane/internal/syncserver"
	"bailiwick/controlplane/internal/uptime"
	"bailiwick/proto/gen/bailiwick/join/v1/joinv1connect"
	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"
	"bailiwick/proto/gen/bailiwick/sync/v1/syncv1connect"
	"bailiwick/proto/gen/bailiwick/usage/v1/usagev1connect"
	"bailiwick/shared/fault"
	"bailiwick/shared/fault/rpcfault"
	"bailiwick/shared/identity"

	"connectrpc.com/connect"
)

const catalogGroup = "catalog"

func storeGroup(zone string) string  { return "store/" + zone }
func ledgerGroup(zone string) string { return "ledger/" + zone }

// openPeer opens the peer port, the groups that speak over it, and the doors behind it.
func (n *Node) openPeer(ca *pki.CA) error {
	listen := orElse(n.cfg.PeerListen, n.self.Peer)
	tcp, err := net.Listen("tcp", listen)
	if err != nil {
		return fmt.Errorf("listen on the peer port: %w", err)
	}
	udp, err := net.ListenPacket("udp", listen)
	if err != nil {
		tcp.Close()
		return fmt.Errorf("listen on the peer port, UDP: %w", err)
	}
	n.source.RefuseOlder(n.since)
	handler := http.NewServeMux()
	n.mux, err = peer.New(peer.Config{Listener: tcp, Source: n.source, Handler: n.registeredOnly(handler), Logger: n.log,
		Resolve: n.resolve,
		Allow:   n.allow,
		Farewell: func(name identity.Name) error {
			if name.Kind == identity.Edge && name.Zone == n.self.Zone {
				return nil
			}
			return fault.New(fault.Denied, "NOT_AN_EDGE", "%s is no edge of zone %s", name.Node, n.self.Zone)
		},
	})
	if err != nil {
		return err
	}
	n.carrier = carrier.New(carrier.Config{Zone: n.self.Zone, Client: n.mux.Client, Peer: peer.NameFrom, Logger: n.log})
	if err := n.openGroups(); err != nil {
		return err
	}
	if n.keeper, err = border.New(border.Config{Zone: n.self.Zone, Catalog: n.catalog, Store: n.store, Signer: n.secrets.Signer, Logger: n.log,
		LeftBehind: n.leftBehind}); err != nil {
		return err
	}
	if err := n.openEvidence(ca); err != nil {
		return err
	}
	if n.finder, err = n.openFinder(); err != nil {
		return err
	}
	if n.uptime, err = uptime.New(uptime.Config{Zone: n.self.Zone, Store: n.store, Regions: n.regions, Outlooks: n.outlooks, Logger: n.log}); err != nil {
		return err
	}
	n.conductor = &rollout.Conductor{Catalog: n.catalog, Soak: n.cfg.Soak, Logger: n.log}
	n.rollout = &rollout.Watch{Zone: n.self.Zone, Catalog: n.catalog, Store: n.store, Reports: n.rolloutReports, Soak: n.cfg.Soak, Logger: n.log}
	n.sync, err = syncserver.New(syncserver.Config{Node: n.self.Name, ZoneName: n.self.Zone, Catalog: n.catalog, Zone: n.store,
		Signer: n.secrets.Signer, Granter: granter{n}, Checkpoint: n.evidence.Head, Logger: n.log, DropDelta: n.cfg.DropDelta,
		Peer: func(ctx context.Context) (node, region, zone, kind string, err error) {
			name, ok := peer.NameFrom(ctx)
			if !ok {
				return "", "", "", "", fault.New(fault.Unauthenticated, "NO_PEER", "the request carries no verified certificate")
			}
			return name.Node, name.Region, name.Zone, name.Kind, nil
		}})
	if err != nil {
		return err
	}
	if n.ledger, err = ledger.New(ledger.Config{Machine: n.machine, Replica: n.replica, Logger: n.log}); err != nil {
		return err
	}
	if n.lessor, err = lessor.New(lessor.Config{Zone: n.self.Zone, Ledger: n.ledger, Catalog: n.catalog.Local, Store: n.store.Local,
		RunLeader: n.replica.RunLeader, Logger: n.log}); err != nil {
		return err
	}
	if err := n.openDetail(); err != nil {
		return err
	}
	if err := n.openIngest(udp); err != nil {
		return err
	}
	n.enroll, err = pki.NewEnroll(pki.EnrollConfig{CA: ca, Secrets: n.secrets, Installation: n.in, RootsPEM: n.source.RootsPEM(),
		Catalog: n.catalog, ZoneStore: n.store, Allow: n.allow, Dir: filepath.Join(n.cfg.Dir, "identity"), Incarnations: n.incarnations, Logger: n.log})
	if err != nil {
		return err
	}
	if n.certs, err = certstore.New(n.store, n.source.Name().TrustDomain(), published{n}); err != nil {
		return err
	}
	n.central = newCentral(n)
	n.audit, err = ledger.NewAudit(ledger.AuditConfig{Ledger: n.ledger, Leader: n.replica, Node: n.self.Name, Members: n.ledgerVoters, Ask: n.carrier.StateHash,
		Every: n.cfg.StateCheck, Logger: n.log})
	if err != nil {
		return err
	}
	if err := n.openSinks(); err != nil {
		return err
	}
	n.days, err = ledger.NewDays(ledger.DaysConfig{Ledger: n.ledger, Leader: n.replica, Edges: n.central.owing, Grace: n.cfg.PeriodGrace, FoldAfter: n.cfg.FoldAfter, Logger: n.log})
	if err != nil {
		return err
	}
	if n.rotation, err = rotation.New(rotation.Config{Store: n.store, Clock: n.replica, Logger: n.log}); err != nil {
		return err
	}
	if n.alerts, err = alert.New(alert.Config{Zone: n.self.Zone, Store: n.store, SealKey: n.secrets.HookSeal, Accounts: n.central.accounts,
		Allow: n.cfg.WebhookAllow, Logger: n.log}); err != nil {
		return err
	}

	opts := []connect.HandlerOption{connect.WithInterceptors(rpcfault.Server(n.log)), connect.WithReadMaxBytes(1 << 20)}
	handler.Handle(n.sync.Handler())
	handler.Handle(n.ingest.Handler())
	handler.Handle(usagev1connect.NewQuotaServiceHandler(quotaDoor{n}, opts...))
	handler.Handle(joinv1connect.NewIdentityServiceHandler(n.enroll, opts...))
	handler.Handle(joinv1connect.NewCertStoreServiceHandler(n.certs, opts...))
	n.carrier.Register(handler, n.keeper, ownEvidence{n}, carrier.Ledger{Lessor: n.lessor, Detail: ownDetail{n}, Checkpoint: n.machine.CheckpointSum}, n.central.own)
	return nil
}

// allow asks the registry. A group dials its members as soon as it is opened: until the catalog is, there is
// nobody to ask, and they dial again.
func (n *Node) allow(name identity.Name) error {
	r := n.registry.Load()
	if r == nil {
		return fault.New(fault.Unavailable, "REGISTRY_NOT_OPEN", "node %s: the registry is not open yet", name.Node)
	}
	return r.Allow(name)
}

// registeredOnly refuses the RPCs of nodes that the registry does not hold, on standing connections too. They
// may subscribe: syncserver sends them nothing but the word that they are withdrawn, upon which an edge stops.
func (n *Node) registeredOnly(next http.Handler) http.Handler {
	errs := connect.NewErrorWriter()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name, ok := peer.NameFrom(r.Context())
		err := error(fault.New(fault.Unauthenticated, "NO_PEER", "the request carries no verified certificate"))
		if ok {
			err = n.allow(name)
		}
		if err == nil || ok && r.URL.Path == syncv1connect.SyncServiceSubscribeProcedure {
			next.ServeHTTP(w, r)
			return
		}
		if !errs.IsSupported(r) {
			http.Error(w, http.StatusText(http.StatusForbidden), http.StatusForbidden)
			return
		}
		_ = errs.Write(w, r, rpcfault.ToConnect(err))
	})
}

func (n *Node) since(name identity.Name) time.Time {
	if r := n.registry.Load(); r != nil {
		return r.Since(name)
	}
	return time.Time{} // allow refuses it
}

func (n *Node) timing() (raftgroup.Timing, error) {
	switch n.cfg.Timing {
	case "", "regional":
		return raftgroup.Regional(), nil
	case "local":
		return raftgroup.Local(), nil
	case "global":
		return raftgroup.Global(), nil
	}
	return raftgroup.Timing{}, fmt.Errorf("raft timing %q: choose local, regional or global", n.cfg.Timing)
}

// openGroups opens the catalog, of which every control node has a part, and the two groups of the zone.
func (n *Node) openGroups() error {
	timing, err := n.timing()
	if err != nil {
		return err
	}
	var zone, primary, others []string
	for _, c := range n.in.ControlNodes {
		if c.Zone == n.self.Zone {
			zone = append(zone, c.Name)
		}
		if c.Zone == n.in.PrimaryZone {
			primary = append(primary, c.Name)
		} else {
			others = append(others, c.Name)
		}
	}
	ofInstallation := func(identity.Name) error { return nil } // the peer port has asked the registry already
	config := func(name, dir string, voters, nonvoters []string, allow func(identity.Name) error) raftgroup.Config {
		return raftgroup.Config{Group: name, Node: n.self.Name, Dir: filepath.Join(n.cfg.Dir, dir), Voters: voters, Nonvoters: nonvoters,
			Timing: timing, Forward: n.carrier, Version: n.cfg.Version, Logger: n.log, OnFatal: n.fail,
			Listen: func(wire string) raftgroup.Stream { return n.mux.Stream(wire, controls(allow)) }}
	}
	ofZone := func(name identity.Name) error {
		if name.Zone != n.self.Zone {
			return fault.New(fault.Denied, "FOREIGN_ZONE", "%s is of zone %s and has no part in the groups of zone %s", name.Node, name.Zone, n.self.Zone)
		}
		return nil
	}
	if n.cfg.Stores.Engine == EngineEtcd {
		if err := n.openEtcd(n.cfg.Stores); err != nil {
			return err
		}
	} else {
		catalog, err := raftgroup.NewStore(config(catalogGroup, "catalog", primary, others, ofInstallation))
		if err != nil {
			return err
		}
		n.catalog, n.leftBehind = catalog, catalog.Node().LeftBehind
		n.registry.Store(&pki.Registry{Catalog: n.catalog, Installation: n.in})
		store, err := raftgroup.NewStore(config(storeGroup(n.self.Zone), "zone", zone, nil, ofZone))
		if err != nil {
			return err
		}
		n.store = store
		n.parts = []replica{{catalogGroup, catalog.Node()}, {storeGroup(n.self.Zone), store.Node()}}
	}
	n.machine, err = ledger.OpenMachine(ledger.MachineConfig{Dir: filepath.Join(n.cfg.Dir, "ledger", "cells"), Logger: n.log, OnFatal: n.fail})
	if err != nil {
		return err
	}
	n.replica, err = raftgroup.New(config(ledgerGroup(n.self.Zone), filepath.Join("ledger", "raft"), zone, nil, ofZone), n.machine)
	if err != nil {
		return err
	}
	n.parts = append(n.parts, replica{ledgerGroup(n.self.Zone), n.replica})
	for _, r := range n.parts {
		n.carrier.Serve(r.Name, r.Node)
	}
	return nil
}

// controls lets control nodes alone into a group.
func controls(allow func(identity.Name) error) func(identity.Name) error {
	return func(name identity.Name) error {
		if name.Kind != identity.Control {
			return fault.New(fault.Denied, "NOT_A_CONTROL_NODE", "%s is no control node", name.Node)
		}
		return allow(name)
	}
}

func (n *Node) openIngest(udp net.PacketConn) error {
	edgeOf := func(name identity.Name) error {
		if name.Kind != identity.Edge || name.Zone != n.self.Zone {
			return fault.New(fault.Denied, "NOT_AN_EDGE", "%s is no edge of zone %s", name.Node, n.self.Zone)
		}
		return n.allow(name)
	}
	reset, err := hkdf.Key(sha256.New, n.secrets.Signer.Seed(), nil, "bailiwick quic reset "+n.self.Name, 32)
	if err != nil {
		return err
	}
	n.ingest, err = ingest.New(ingest.Config{Ledger: n.ledger, Conn: udp, TLS: n.source.ServerTLS([]string{ingest.ALPN}, edgeOf), ResetKey: [32]byte(reset), Logger: n.log,
		Peer: func(cs tls.ConnectionState) (string, string, error) {
			name, err := n.source.Peer(cs)
			return name.Node, name.Region, err
		},
		PeerFromContext: func(ctx context.Context) (string, string, error) {
			name, ok := peer.NameFrom(ctx)
			if !ok {
				return "", "", fault.New(fault.Unauthenticated, "NO_PEER", "the request carries no verified certificate")
			}
			return name.Node, name.Region, edgeOf(name)
		},
		Allow: n.attribute, Detail: n.detail, AllowDetail: n.attributeDetail,
	})
	return err
}

// granter asks the border here if this node leads the zone store, and carries the question to the leader if not.
type granter struct{ *Node }

func (g granter) Grant(ctx context.Context, edge, region string, req *syncv1.RequestGrantsRequest) (*syncv1.RequestGrantsResponse, error) {
	leader, self := g.store.Leader()
	switch {
	case self:
		return g.keeper.Grant(ctx, edge, region, req)
	case leader == "":
		return nil, fault.New(fault.Unavailable, "NO_LEADER", "zone store of %s has no leader now; grants wait for one", g.self.Zone)
	}
	return g.carrier.Grant(ctx, leader, edge, region, req)
}

// published implements certstore.Hosts by the catalog.
type published struct{ *Node }

func (p published) Published(ctx context.Context, host string) (bool, error) {
	is := func(snap group.Snapshot) (bool, error) {
		for kv := range snap.List(model.PrefixAPI) {
			a, err := model.Decode[model.API](kv.Key, kv.Value)
			if err != nil {
				return false, err
			}
			if a.Zone == p.self.Zone && slices.ContainsFunc(a.Hosts, func(h string) bool { return strings.EqualFold(h, host) }) {
				return true, nil
			}
		}
		return false, nil
	}
	if known, err := is(p.catalog.Local()); known || err != nil {
		return known, err
	}
	// The edge may have heard of it from a node that is further; while the catalog is away this copy is all there is.
	limited, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	snap, err := p.catalog.Sync(limited)
	if err != nil {
		return false, nil
	}
	return is(snap)
}
